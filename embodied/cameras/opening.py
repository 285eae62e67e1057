"""From what a person writes to cameras: an index, a path, a URL, a `kind:` of ours, or several of them by name."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from embodied.cameras import recorded
from embodied.cameras.camera import CameraError
from embodied.cameras.decoding import without_password
from embodied.cameras.foreign import ForeignDriver, is_camera
from embodied.cameras.live import CameraDriver, LiveCamera
from embodied.cameras.realsense import RealSenseDriver
from embodied.cameras.recorded import RecordedCamera, Shots
from embodied.cameras.ros2 import Ros2Driver
from embodied.cameras.source import KEPT, Source
from embodied.cameras.streams import StreamDriver
from embodied.cameras.transforms import Transform
from embodied.cameras.zmq_stream import ZmqDriver
from embodied.errors import UserError, nearest

SETTINGS = ("crop", "flip", "rotate", "resize", "fps", "max_age_s")
FILMS = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v")  # over HTTP these are records, everything else is live
FORMS = (
    "a camera's index (0) or path (/dev/video0), rtsp://…, http://… (MJPEG or video), a video file, a folder of "
    "images, zmq://HOST:PORT[/CAMERA], dataset:FOLDER_OR_NAME[#EPISODE][/CAMERA], env:WORLD[/CAMERA], "
    "realsense:[SERIAL] or ros2:/TOPIC"
)

Record = tuple[Callable[[], Shots], str, float | None]  # begins it, its name for texts, its images a second
Named = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)


def open_source(spec: Any, **settings: Any) -> Source:
    """The camera, record or rig that a person named, connected.

    Args:
        spec: one of `FORMS`; a camera object with LeRobot's methods; a mapping or list of several: {"front": 0,
            "side": "rtsp://…"} or ["front=0", "side=rtsp://…"]; or, for one with settings of its own, a mapping
            {"spec": "rtsp://…", "crop": [0, 0, 320, 240]}. A single camera's view is called "main".
        settings: of every camera: `crop` [x, y, width, height], `flip` h, v or hv, `rotate` 0, 90, 180 or 270
            (clockwise), `resize` [H, W]; `fps` (live: at most; a record: sampled at that rate; a folder of images: its
            rate), `max_age_s` 0.5 (live). By kind: a device and RealSense: `size` [H, W]; RTSP, HTTP, devices and
            ZeroMQ: `trust_stamps`; ZeroMQ: `swapped`; dataset: `tolerance` and `surplus`; env: `live`, `policy`,
            `seed`, `image_size`, `episodes`.

    Raises:
        UserError: nothing of that kind, a wrong setting, or a missing extra.
        CameraError: it cannot be opened.
    """
    changed = threading.Condition()
    views = _views(spec)
    keep = KEPT if len(views) > 1 else 1
    cameras: dict[str, Any] = {
        name: _camera(each, name, changed, keep, {**settings, **own}) for name, (each, own) in views.items()
    }
    return Source(cameras, changed=changed)


def open_camera(spec: Any, **settings: Any) -> LiveCamera | RecordedCamera:
    """One camera or record by `open_source`'s names and settings, with LeRobot's methods; `connect` is left to you.

    Raises:
        UserError: several, nothing of that kind, a wrong setting, or a missing extra.
        CameraError: a record that is not there.
    """
    views = _views(spec)
    if len(views) != 1:
        raise UserError(f"source must be one camera; got {', '.join(views) or 'nothing'}.")
    ((name, (each, own)),) = views.items()
    return _camera(each, name, threading.Condition(), 1, {**settings, **own})


def _views(spec: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """View name -> what was written for it, and its own settings."""
    if isinstance(spec, Mapping):
        if "spec" in spec:
            return {"main": _own(spec)}
        return {str(name): _own(each) for name, each in spec.items()}
    if isinstance(spec, str) or not isinstance(spec, Sequence):
        return {"main": (spec, {})}
    views: dict[str, tuple[Any, dict[str, Any]]] = {}
    for i, each in enumerate(spec):
        named = Named.fullmatch(each) if isinstance(each, str) else None
        name, what = (named[1], named[2]) if named else (f"camera{i}", each)
        if name in views:
            raise UserError(f"source: views must differ in name; got {name} twice.")
        views[name] = _own(what)
    return views


def _own(each: Any) -> tuple[Any, dict[str, Any]]:
    if not isinstance(each, Mapping):
        return each, {}
    if "spec" not in each:
        raise UserError(f"source: a camera with settings must have a key spec; got {', '.join(map(str, each))}.")
    return each["spec"], {str(key): value for key, value in each.items() if key != "spec"}


def _camera(
    spec: Any, name: str, changed: threading.Condition, keep: int, settings: Mapping[str, Any]
) -> LiveCamera | RecordedCamera:
    if isinstance(spec, RecordedCamera):
        return spec
    options = {key: value for key, value in settings.items() if key not in SETTINGS}
    transform = Transform(
        crop=_whole("crop", settings.get("crop"), 4),
        flip=settings.get("flip") or "",
        rotate=settings.get("rotate") or 0,
        resize=_whole("resize", settings.get("resize")),
    )
    fps = settings.get("fps")
    if fps is not None and not (isinstance(fps, int | float) and fps > 0):
        raise UserError(f"fps must be a number above 0, or null; got {fps!r}.")
    fps = None if fps is None else float(fps)
    made = ForeignDriver(spec) if is_camera(spec) else _named(spec, fps, options)
    if isinstance(made, tuple):
        begin, label, own_fps = made
        resample = None if own_fps is None or fps == own_fps else fps
        return RecordedCamera(begin, label=label, name=name, fps=own_fps, resample=resample, transform=transform)
    max_age_s = settings.get("max_age_s")
    return LiveCamera(
        made,
        name=name,
        transform=transform,
        fps=fps,
        max_age_s=0.5 if max_age_s is None else float(max_age_s),
        keep=keep,
        changed=changed,
    )


def _named(spec: Any, fps: float | None, options: dict[str, Any]) -> CameraDriver | Record:
    """The driver of a live camera, or a record."""
    if isinstance(spec, bool) or not isinstance(spec, int | str | Path) or spec == "":
        raise UserError(f"source must be {FORMS}; got {spec!r}.")
    text = str(spec)
    if text.isdigit():
        return _device(f"/dev/video{text}", **_taken(_device, options, text))
    if text.startswith("/dev/"):
        return _device(text, **_taken(_device, options, text))
    kind, separator, rest = text.partition(":")
    openers: dict[str, Callable[..., CameraDriver | Record]] = {
        "rtsp": _stream, "rtsps": _stream, "http": _http, "https": _http, "zmq": _zmq, "dataset": _dataset,
        "env": _world, "realsense": _realsense, "ros2": Ros2Driver,
    }  # fmt: skip
    if separator and kind.lower() in openers:
        opener = openers[kind.lower()]
        return opener(text if "://" in text else rest, **_taken(opener, options, text))
    path = Path(text).expanduser()
    if not path.exists() and ("://" in text or (separator and re.fullmatch(r"[a-z0-9]{2,}", kind))):
        known = nearest(kind, openers, listed="sources")
        raise UserError(f"source: no kind {kind!r} of source, and no such file. {known}")
    return _path(path, fps, **_taken(_path, options, text))


def _taken(opener: Callable[..., Any], options: dict[str, Any], text: str) -> dict[str, Any]:
    """The options, where the opener takes each of them."""
    takes = [name for name, p in inspect.signature(opener).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for key in options:
        if key not in takes:
            what = without_password(text)
            raise UserError(f"source {what}: unknown setting {key!r}. {nearest(key, [*SETTINGS, *takes])}")
    return {key: value for key, value in options.items() if value is not None}


# Kinds; what follows * is what a person can set ---------------------------------------------------------


def _device(path: str, *, size: Sequence[int] | None = None, trust_stamps: bool = True) -> CameraDriver:
    shape = _whole("size", size)
    options = {} if shape is None else {"video_size": f"{shape[1]}x{shape[0]}"}
    return StreamDriver(path, format="v4l2", options=options, trust_stamps=trust_stamps)


def _stream(url: str, *, trust_stamps: bool = True) -> CameraDriver:
    return StreamDriver(url, trust_stamps=trust_stamps)


def _http(url: str, *, trust_stamps: bool = True) -> CameraDriver | Record:
    if urlsplit(url).path.lower().endswith(FILMS):
        return partial(recorded.video, url), without_password(url), recorded.video_fps(url)
    return StreamDriver(url, trust_stamps=trust_stamps)


def _zmq(url: str, *, swapped: bool = True, trust_stamps: bool = True) -> CameraDriver:
    address, _, camera = url.partition("://")[2].partition("/")
    if not re.fullmatch(r".+:\d+", address):
        raise UserError(f"source: a ZeroMQ camera must be zmq://HOST:PORT[/CAMERA]; got {url!r}.")
    return ZmqDriver(address, camera=camera or None, swapped=swapped, trust_stamps=trust_stamps)


def _realsense(serial: str, *, size: Sequence[int] | None = None) -> CameraDriver:
    return RealSenseDriver(serial, size=_whole("size", size))


def _dataset(text: str, *, tolerance: float | None = None, surplus: str | None = None) -> Record:
    root, _, place = text.partition("#")
    number, _, camera = place.partition("/")
    if not root or (number and not number.isdigit()):
        raise UserError(f"source: a dataset must be dataset:FOLDER_OR_NAME[#EPISODE][/CAMERA]; got dataset:{text}.")
    from embodied.collecting.opening import open_dataset  # torch, for those who want a dataset

    how = {"tolerance": tolerance, "surplus": surplus}
    dataset = open_dataset(root, **{name: value for name, value in how.items() if value is not None})
    if not dataset.cameras:
        raise UserError(f"source dataset:{text}: the dataset has no cameras.")
    index = int(number) if number else dataset.span(0).index
    begin = partial(recorded.episode, dataset, index, camera or dataset.cameras[0])
    return begin, f"dataset:{text}", float(dataset.fps)


def _world(
    text: str,
    *,
    live: bool = False,
    policy: str | None = None,
    seed: int = 0,
    image_size: int = 224,
    episodes: int = 1,
) -> CameraDriver | Record:
    world, _, camera = text.partition("/") if not text.startswith("embodied/") else (text, "", "")
    from embodied.cameras import worlds  # MuJoCo, for those who want a world

    show = worlds.Show(world=world, camera=camera or None, policy=policy, seed=seed, image_size=image_size)
    if live:
        return worlds.WorldDriver(show)
    if episodes < 1:
        raise UserError(f"source env:{text}: episodes must be at least 1; got {episodes}.")
    return partial(worlds.shots, show, episodes), f"env:{text}", worlds.fps(show)


def _path(path: Path, fps: float | None) -> Record:
    if not path.exists():
        raise CameraError(f"{path}: no such file or folder.")
    if path.is_dir():
        if (path / "meta" / "info.json").is_file():
            raise UserError(f"{path}: is a LeRobot dataset. Write dataset:{path}#EPISODE/CAMERA.")
        if not recorded.folder_images(path):
            raise CameraError(f"{path}: holds no images ({', '.join(recorded.IMAGES)}).")
    if path.is_dir() or path.suffix.lower() in recorded.IMAGES:
        rate = fps or recorded.FOLDER_FPS
        return partial(recorded.images, path, rate), str(path), rate
    return partial(recorded.video, str(path)), str(path), recorded.video_fps(str(path))


def _whole(name: str, values: Any, count: int = 2) -> Any:
    """A tuple of that many whole numbers, or None."""
    if values is None:
        return None
    whole = isinstance(values, Sequence) and all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    if not whole or len(values) != count:
        form = "[x, y, width, height]" if count == 4 else "[height, width]"
        raise UserError(f"{name} must be {form}, whole numbers of pixels; got {values!r}.")
    return tuple(values)
