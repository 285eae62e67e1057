"""Watch a camera: one number a frame from any reward model, live, shown and recorded.

The source may be a device, a network camera, a video, a folder of images, an episode of a dataset, one of our own
worlds, or several of them by name. From a live camera the newest frame is scored, so numbers stay fresh however slow
the model is; frames that are old, lost or could not be scored are marked. From a recording every frame is scored, and
gets the number that `embodied label` gives it. Ctrl-C ends the run with a summary and complete files.

    embodied watch source=0 reward=clip goal="the drawer is open"
    embodied watch source=rtsp://host/stream reward=[clip,process] goal="it is open" reward.process.model=models/open
    embodied watch 'source={front:0,side:1}' reward=success reward.model=fitted threshold=0.7 hysteresis=0.2
    embodied watch source=film.mp4 reward.goals=["the drawer is open","the drawer is closed"] | jq .combined
    embodied watch source=zmq://robot:5555 server=http://gpu:8765

While it runs: n begins a new episode, g asks for another goal, space marks, q quits; or over HTTP with control=PORT.
"""

from __future__ import annotations

import math
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from embodied import paths
from embodied.building import far_worlds, scorers
from embodied.building.goals import any_open, told_goals, with_goal
from embodied.cameras import CameraError, open_source
from embodied.collecting.opening import open_dataset
from embodied.envs import WORLDS, is_world, world_cameras
from embodied.errors import UserError, nearest
from embodied.sinks import FORMATS, make_sinks
from embodied.watching.control import HOST, ControlServer, Keys
from embodied.watching.live_scoring import LocalScoring, RemoteScoring, check_goal
from embodied.watching.pipeline import MAX_AGE_S, SUCCESS, MomentSource, Pipeline
from embodied.watching.smoothing import PotentialRanges, SuccessSmoothing
from embodied.watching.terminal_view import TerminalView

VIEWS, RERUNS = ("terminal", "rerun", "both", "none"), ("web", "window")
SHOWN = ("terminal", "rerun")  # sinks that keep nothing
TRANSFORM = ("crop", "flip", "rotate", "resize", "fps", "max_age_s")
LIVE_ROWS = 1000  # of an episode that is scored whole each time: the model must not fall behind the camera
LIVE_PIXELS = 128_000_000  # of such an episode's images, as a server keeps: hours of large ones do not fit in memory
RECORDED_PIXELS = 256_000_000  # of a recorded episode's images: 5,000 of 224 pixels a side, 123 of Full HD, 0.8 GB
LOOKED_AT = 5  # first moments, by which a source is told to look unlike all that the encoder was taught
SUCCESS_THRESHOLD = 0.5  # of a success head, which gives 0 and 1 or a probability


def run(config: DictConfig) -> None:
    """Watch until the source ends, the time is over or somebody ends it; the summary goes to standard error."""
    _check(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with ExitStack() as opened:
        source = _source(config)
        opened.callback(source.close)
        scoring = _scoring(config, source)
        opened.callback(scoring.close)
        _watch(config, source, scoring, opened)


def _watch(config: DictConfig, source: MomentSource, scoring: LocalScoring | RemoteScoring, opened: ExitStack) -> None:
    """The run itself, with its sinks, its view and what steers it."""
    smoothing = SuccessSmoothing(
        _threshold(config, scoring.heads),
        hysteresis=float(config.hysteresis),
        time_constant_s=float(config.smoothing_s),
    )
    ranges = (config.ranges or {}).items()
    normaliser = PotentialRanges({str(name): (float(low), float(high)) for name, (low, high) in ranges})
    keys: list[Keys] = []
    view = TerminalView(sys.stderr, typed=lambda: keys[0].typed if keys else None)
    seen = config.view in ("terminal", "both")
    tell = view.tell if seen else _print
    if isinstance(scoring, LocalScoring):
        encoder = scoring.stream.scorer.encoder
        scoring.show_first(LOOKED_AT, lambda seen: far_worlds.warn(config, encoder, seen, "the source", tell))
    to_lines = not sys.stdout.isatty() if config.json is None else config.json
    sinks = make_sinks(
        live=source.live,
        record=config.record,
        formats=None if config.formats is None else list(config.formats),
        view=config.rerun if config.view in ("rerun", "both") else None,
        lines=sys.stdout.fileno() if to_lines else None,
        fps=getattr(source, "fps", None),
    )
    pipeline = Pipeline(
        source,
        scoring,
        [*sinks, view] if seen else sinks,
        smoothing=smoothing,
        normaliser=normaliser,
        tell=tell,
        max_age_s=getattr(source, "max_age_s", None) or MAX_AGE_S,  # a rig's cameras may have their own
    )
    opened.callback(pipeline.close)
    for sink in sinks:
        if address := getattr(sink, "address", None):
            tell(f"Rerun: {address}")
    if config.control is not None:
        control = ControlServer(pipeline.ask, pipeline.status, config.control, private=config.control_token)
        opened.callback(control.close)
        bearer = f' -H "Authorization: Bearer $(cat {shlex.quote(str(control.token_file))})"'
        tell(f"Control: curl{bearer if control.token_file else ''} http://{HOST}:{control.port}/status")
    if config.keys and seen and sys.stdin.isatty() and sys.stderr.isatty():
        keys.append(Keys(pipeline.ask, sys.stdin.fileno()))
        opened.callback(keys[0].close)
    with stopping(pipeline.stop):
        try:
            pipeline.run(config.duration_s, keys[0].poll if keys else lambda: None)
        except CameraError as error:
            raise UserError(str(error)) from error
        finally:
            opened.close()
            summary = pipeline.summary()
            if summary.told or not sys.exception():  # of what failed at once there is nothing to sum up
                _print(summary.text())
                if config.record is not None:
                    _print(f"Record: {config.record}")
    if lost := [f"{name} {summary.sinks[name]}".rstrip(".") for name in summary.lost if name not in SHOWN]:
        where = "" if config.record is None else f"record={config.record}: "
        raise UserError(
            f"{where}not everything was kept: {'; '.join(lost)}. What was written before stays readable. Free some "
            "space, or choose another folder with record=FOLDER."
        )


def _print(text: str) -> None:
    """To a person, on standard error; where that cannot be written (a full disk), the run is worth more."""
    with suppress(OSError):
        print(text, file=sys.stderr)


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a terminal that goes away call `stop`, once; after that they do what they did before.

    Only a main thread hears them. Of a terminal that goes away the kernel and the shell both tell, so the second time
    is ignored; where it was ignored before, as under `nohup`, it stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def end(number: int, frame: FrameType | None) -> None:
        stop()
        restore()
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    for number in (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,))):
        before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        restore()


# What the config says -----------------------------------------------------------------------------------


def _check(config: DictConfig) -> None:
    """Before anything is opened."""
    if config.view not in VIEWS:
        raise UserError(f"view must be one of {', '.join(VIEWS)}; got {config.view!r}.")
    if config.rerun not in RERUNS:
        raise UserError(f"rerun must be web or window; got {config.rerun!r}.")
    for name, lowest, kinds, word in (
        ("duration_s", 0, int | float, "number"), ("max_age_s", 0, int | float, "number"),
        ("threads", 1, int, "whole number"), ("control", 0, int, "whole number"), ("max_rows", 2, int, "whole number"),
    ):  # fmt: skip
        value = config[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not value >= lowest):
            raise UserError(f"{name} must be a {word}, at least {lowest}, or null; got {value!r}.")
    for name in ("threshold", "hysteresis", "smoothing_s"):
        value = config[name]
        if not _finite(value) and not (name == "threshold" and value is None):
            raise UserError(f"{name} must be a number; got {value!r}.")
    if config.ranges is not None and not OmegaConf.is_dict(config.ranges):
        raise UserError(f"ranges must be {{head: [low, high]}}, or null; got {config.ranges!r}.")
    for name, bounds in (config.ranges or {}).items():
        numbers = isinstance(bounds, Sequence) and all(map(_finite, bounds))
        if not numbers or len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise UserError(f"ranges.{name} must be [low, high], low < high; got {bounds}.")
    if config.record is not None and not isinstance(config.record, str):
        raise UserError(f"record must be a folder, or null; got {config.record!r}.")
    if isinstance(config.formats, str):
        raise UserError(f"formats must be a list, as [{config.formats}]; got {config.formats!r}.")
    for name in config.formats or ():
        if name not in FORMATS:
            raise UserError(f"formats must be of {', '.join(FORMATS)}; got {name!r}. {nearest(str(name), FORMATS)}")
    for text in told_goals(_plain(config.reward)):
        if text:  # "" is a server's own
            check_goal(text)
    if config.server is None and config.reward.get("_target_") is None:
        raise UserError("reward=true watches nothing: it is the task's own. Choose a reward model.")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _source(config: DictConfig) -> MomentSource:
    transform = {name: _plain(config[name]) for name in TRANSFORM if config[name] is not None}
    try:
        return open_source(_plain(config.source), **transform)
    except CameraError as error:
        raise UserError(str(error)) from error


def _scoring(config: DictConfig, source: MomentSource) -> LocalScoring | RemoteScoring:
    """The reward model, here or at the server."""
    if config.server is not None:
        goals = [goal for goal in told_goals(_plain(config.reward)) if goal]
        if len(goals) > 1:
            raise UserError(f"goal must be one text for a server; got {', '.join(map(repr, goals))}.")
        goal = goals[0] if goals else None
        from embodied.serving.client import RemoteStream  # of the extra serve

        stream = RemoteStream(
            config.server,
            views=source.names,
            goal=goal,
            token_file=config.token_file,
            form=config.image_form,
        )
        return RemoteScoring(stream, goal)
    origin = _origin(config.source, asks=any_open(_plain(config.reward)))
    names = origin.views if source.names == ("main",) else source.names
    reward = with_goal(_plain(config.reward), origin.goal)
    scorer = scorers.make_scorer(config, env=origin.env, goal=origin.goal, views=names)
    assert scorer is not None
    bound = config.max_rows is None  # what a person asks for is kept
    scoring = LocalScoring(
        scorer,
        source.names,
        called=names,
        reward=reward,
        max_rows=LIVE_ROWS if bound and source.live and not scorer.advances else config.max_rows,
        max_pixels=(LIVE_PIXELS if source.live else RECORDED_PIXELS) if bound else None,
    )
    scoring.warm_up()
    return scoring


def _threshold(config: DictConfig, heads: Sequence[str]) -> float | None:
    """A person's, or that of a success head, wherever it scores."""
    if config.threshold is not None:
        return float(config.threshold)
    return SUCCESS_THRESHOLD if SUCCESS in heads else None


class _Origin(NamedTuple):
    """What is known of a source of ours, as `embodied label` knows it.

    Attributes:
        env: the world's config, plain; {} where there is none of ours.
        goal: its episode's task text.
        views: what its one camera is called in the data; ("main",) where nobody says.
    """

    env: dict[str, Any] = {}  # noqa: RUF012  (never changed)
    goal: str | None = None
    views: tuple[str, ...] = ("main",)


def _origin(source: Any, *, asks: bool) -> _Origin:
    """Of a rig, its first camera tells; the task text is read only where someone asks for it."""
    specs = [spec.partition("=")[2] if re.match(r"[A-Za-z_][\w.-]*=", spec) else spec for spec in _specs(source)]
    kind, _, rest = (specs or [""])[0].partition(":")
    if kind == "env" and rest.partition("/")[0] in WORLDS:
        env = _plain(OmegaConf.load(paths.configs() / "env" / f"{rest.partition('/')[0]}.yaml"))
        cameras = tuple(camera for spec in specs if (camera := spec.partition("/")[2]))
        own = world_cameras(rest.partition("/")[0])
        return _Origin(env | {"cameras": list(cameras) or None}, views=(cameras or own)[:1])
    if kind == "dataset":
        root, _, place = rest.partition("#")
        number, _, camera = place.partition("/")
        dataset = open_dataset(root)
        goal = dataset.instruction(dataset.position(int(number)) if number.isdigit() else 0) if asks else ""
        views = (camera or dataset.cameras[0],) if dataset.cameras else ("main",)
        return _Origin(dataset.env if is_world(dataset.env_id) else {}, goal or None, views)
    return _Origin()


def _specs(source: Any) -> list[str]:
    """What names each camera; see `open_source`."""
    if OmegaConf.is_dict(source):
        return _specs(source.spec) if "spec" in source else [spec for each in source.values() for spec in _specs(each)]
    return [spec for each in source for spec in _specs(each)] if OmegaConf.is_list(source) else [str(source)]


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
