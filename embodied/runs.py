"""The run folder: what was run, with what, how far it came; begun, gone on in, and ended in words.

runs/<verb>/<stamp>-<env>-<reward>-s<seed>/
    config.yaml  run.json  progress.csv  events.out.tfevents.*  evaluations.jsonl  checkpoints/<steps>/  videos/
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from omegaconf import DictConfig

from embodied.config import GIVEN, compose, given
from embodied.errors import UserError
from embodied.files import check_place, latest_checkpoint, write_text
from embodied.literal import load_literal, resolved, saved_text
from embodied.locks import only
from embodied.trust import check_trusted, remember

STEPS = "time/total_timesteps"  # the column of progress.csv that counts
FREE = ("run", "resume", "steps", "trust")  # what may be given to go on with a run
ROOT = Path("runs")  # of the folders that commands make
RESULTS = ("--", ".", ":!benchmarks/results", ":!docs/results")  # what measuring writes does not change the code
PACKAGES = ("embodied-rewards", "torch", "stable_baselines3", "gymnasium", "mujoco", "open_clip_torch", "numpy")


class Run:
    """A run of a verb that writes a folder: how it ended is written down, and how to go on is told.

        with Run(config, "train") as run:
            …                     # build from run.config
            run.begin(reward)
            …
            run.finish(steps=…)

    Args:
        config: the verb's, with run, resume, steps, seed and env.
        verb: its name.

    Attributes:
        config: what to build from; when resumed, that of the start, with `steps` where given as their new number.
        folder: the run folder; None before `begin`, unless resumed.
        checkpoint: to go on from; None for a new run.

    Raises:
        UserError: the folder exists; or, to resume, there is no such run, it has no checkpoint, or it is beyond the
            steps given.
        BusyError: another process is at work on it.
    """

    def __init__(self, config: DictConfig, verb: str) -> None:
        self.verb, self.config = verb, config
        self._working = ExitStack()
        self.folder: Path | None = None
        self.checkpoint: Path | None = None
        if config.resume:
            with self._working as held:  # let go where it is refused
                self._resume(config, held)
                self._working = held.pop_all()
        else:
            check_new(config.run, "Add resume=true to go on with it.")

    def _resume(self, config: DictConfig, held: ExitStack) -> None:
        folder = find(config.run or "latest", ROOT / self.verb)
        verb_of(folder, self.verb)
        held.enter_context(working(folder))
        checkpoint = latest_checkpoint(folder)
        if checkpoint is None:
            raise UserError(f"resume: {folder} must hold a checkpoint; it stopped before its first. Start it again.")
        old = saved_config(folder, self.verb, trust=config.get("trust"))
        if others := changed(config, old, self.verb, FREE):
            raise UserError(
                f"resume: {folder} goes on with its own settings; got others for {', '.join(others)}. "
                "Leave them out, or begin a new run."
            )
        if given(config, "steps") and config.steps != old.steps:
            if config.steps < old.steps:
                raise UserError(f"steps must be at least {old.steps}, as {folder} was begun; got {config.steps}.")
            old.steps = config.steps
            save_config(folder, old)
        self.folder, self.config, self.checkpoint = folder, old, checkpoint

    @property
    def done(self) -> int | None:
        """Steps at the checkpoint; None for a new run."""
        return None if self.checkpoint is None else int(self.checkpoint.name)

    def begin(self, reward: str) -> Path:
        """Make the folder, unless resumed, and write down that it runs: once everything could be built.

        Args:
            reward: for the folder's name.
        """
        if self.folder is None:
            config = self.config
            name = str(config.env.id).removeprefix("embodied/").removesuffix("-v0")
            folder = new_folder(ROOT / self.verb, name, reward, config.seed, run=config.run)
            self._working.enter_context(working(folder))
            self.folder = folder
            save_config(folder, config)
            remember(resolved(config))
            write_run(folder, verb=self.verb, seed=config.seed, command=sys.argv, **facts())
        write_run(self.folder, status="running")
        return self.folder

    def finish(self, **values: Any) -> None:
        """Write down that it is done, with what it found."""
        assert self.folder is not None
        write_run(self.folder, status="finished", **values)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._working:
            self._ended(error)

    def _ended(self, error: BaseException | None) -> None:
        if error is None or self.folder is None:
            return
        write_run(self.folder, status="interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed")
        if latest_checkpoint(self.folder) is not None:
            print(f"Go on with: embodied {self.verb} {shlex.quote(f'run={self.folder}')} resume=true", file=sys.stderr)


def changed(config: DictConfig, old: DictConfig, verb: str, free: Collection[str]) -> list[str]:
    """The settings that a person gave and that are not those of the saved run.

    Args:
        config: with what was given.
        old: the run's own.
        verb: whose they are.
        free: settings, and groups of them, that may be others.
    """
    given, saved, defaults = (dict(_flat(resolved(each))) for each in (config, old, compose(verb, [])))
    given = {key: value for key, value in given.items() if key.partition(".")[0] not in free}
    asked = [key for key, value in given.items() if value != defaults.get(key, value) or _set(config, key)]
    return [key for key in asked if given[key] != saved.get(key)]


def _set(config: DictConfig, key: str) -> bool:
    """Whether a key, or a group that it is of, was given, be it as its default."""
    node: Any = config
    for part in key.split("."):  # of a mapping with any keys, the mapping's own flag counts
        below = node._get_node(part) if isinstance(node, DictConfig) and part in node else None
        if below is None:
            break
        node = below
    return bool(node._get_flag(GIVEN))


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def saved_config(folder: Path, verb: str, *, trust: Iterable[str] | None = None) -> DictConfig:
    """The config a run was started with; settings that came later have their defaults.

    The run may be somebody else's, so its config is data: no text in it is resolved, and it reaches out to nothing that
    the person at hand did not name.

    Args:
        folder: of the run.
        verb: whose defaults are taken.
        trust: addresses, names of keys and modules that the command line allows it; see `embodied.trust`.

    Raises:
        UserError: no config, a damaged one, or one that wants more than it is allowed.
    """
    saved, defaults = load_literal(folder / "config.yaml"), compose(verb, [])
    check_trusted(folder, resolved(saved), trust)
    for now, default in ((saved, defaults), (saved.env, defaults.env)):
        for key, value in default.items():
            if key not in now:
                now[key] = value
    return saved


def save_config(folder: Path, config: DictConfig) -> None:
    """Write config.yaml, whole or not at all."""
    write_text(folder / "config.yaml", saved_text(config))


# Names and facts ------------------------------------------------------------------------------------------


def new_folder(root: Path, env: str, reward: str, seed: int, *, run: str | None = None) -> Path:
    """A folder that was not there, made: the one that a person asks for as `run`, or below root, named by time, env,
    reward and seed."""
    if run:
        Path(run).mkdir(parents=True)
        return Path(run)
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    return fresh_folder(root / f"{stamp}-{re.sub('[/:]', '-', env)}-{reward}-s{seed}")


def fresh_folder(wanted: Path) -> Path:
    """A folder that was not there, made: the one wanted, or with a number after it, as where two begin in one second.

    Raises:
        UserError: there are a hundred already.
    """
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = wanted.with_name(f"{wanted.name}{suffix}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise UserError(f"{wanted} exists a hundred times. Choose another folder with run=FOLDER.")


def find(run: str | None, *roots: Path) -> Path:
    """The run folder a person means: a path, or "latest", the newest one below the roots.

    Raises:
        UserError: there is none.
    """
    if run == "latest":
        folders = [path.parent for root in roots for path in root.glob("*/run.json")]
        if not folders:
            places, verbs = " or ".join(map(str, roots)), " or ".join(root.name for root in roots)
            raise UserError(f"run=latest: {places} must hold a run; there is none. Begin one: embodied {verbs}")
        return max(folders, key=lambda folder: (folder / "run.json").stat().st_mtime)
    if not run or not (Path(run) / "run.json").is_file():
        raise UserError(f"run must be a run folder (with run.json) or latest; got {run}.")
    return Path(run)


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """Hold a run's folder: two processes that go on with one run would write into each other's checkpoints.

    Raises:
        BusyError: another process holds it.
    """
    with only(folder / ".lock", f"run: another process is at work in {folder}. Wait for it, or begin a new run."):
        yield


def check_new(run: str | None, advice: str = "") -> None:
    """Refuse a folder for a new run that is there, or cannot be made, before any work is done for it.

    Args:
        run: as a person gave it; None: it gets a name of its own.
        advice: the end of the error where it is there.

    Raises:
        UserError: so.
    """
    if run == "latest":
        raise UserError(f"run must be a new folder; latest means the newest that is there. {advice}".rstrip())
    if run and Path(run).exists():
        raise UserError(f"run must be a new folder; got {run}. {advice}".rstrip())
    check_place(Path(run or ROOT / "new"), "run")


def verb_of(folder: Path, *verbs: str) -> str | None:
    """Which verb made a run's folder; None where it does not say.

    Args:
        folder: of the run.
        *verbs: those whose runs will do; none given: any.

    Raises:
        UserError: it is another's, or run.json is damaged.
    """
    told = parsed((folder / "run.json").read_text("utf-8", "replace"))
    if told is None:
        raise UserError(f"run: {folder / 'run.json'} must be an object in JSON; it is damaged.")
    verb = told.get("verb")
    if verbs and verb is not None and verb not in verbs:
        raise UserError(f"run must be of embodied {' or '.join(verbs)}; {folder} is of embodied {verb}.")
    return verb


def write_run(folder: Path, **values: Any) -> None:
    """Set values in run.json, keeping the others."""
    file = folder / "run.json"
    old = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    write_text(file, json.dumps(old | values, indent=2) + "\n")


def facts() -> dict[str, Any]:
    """Versions, commit and hardware, for run.json."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": gpu, "system": platform.platform()},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this checkout, with + where files differ from it, but for results; None for an installed wheel."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", *RESULTS], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed.strip() else "")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def append_line(file: Path, values: Mapping[str, Any]) -> None:
    """One JSON object on one line; a `final` one takes the place of a former, as when a finished run is resumed."""
    if values.get("final") and file.is_file():
        lines = file.read_text("utf-8").splitlines()
        write_text(file, "".join(f"{line}\n" for line in lines if not (parsed(line) or {}).get("final")))
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(values) + "\n")


def parsed(line: str) -> dict[str, Any] | None:
    """A line's object; None of half a line, which a kill or a full disk leaves."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
