"""A dataset by folder or by name; one of ours that is named and not there yet is collected first."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from embodied import hub, locks
from embodied.building.worlds import env_maker
from embodied.collecting import COLLECTED, COUNTERFACTUAL, POLICIES
from embodied.datasets import Dataset
from embodied.datasets.layout import STAGING
from embodied.envs import DESK, SCRIPTED, WORLDS, world_cameras
from embodied.errors import UserError, nearest


def open_dataset(
    source: str | Path,
    *,
    setting: str = "data",
    episodes: int | None = None,
    cameras: Sequence[str] = (),
    **how: Any,
) -> Dataset:
    """A dataset by folder or by name.

    Args:
        source: a LeRobot folder; `hub:OWNER/NAME`, which is fetched; or `<world>-<policy>` (policy one of
            `POLICIES`), a dataset below `COLLECTED`, which is collected first if it is not there.
        setting: what errors call it.
        episodes: as many are enough: where a named dataset is missing or has fewer, so many are collected; None:
            `collect`'s own number, of one that is missing.
        cameras: that a named dataset must show: where it does not, one with these alone is collected beside it.
        how: it is read: `success`, `kind`, `tolerance` and `surplus` of `Dataset`.

    Raises:
        UserError: neither; or a damaged dataset.
    """
    if hub.is_hub(source):
        return Dataset(hub.fetched(str(source), hub.DATASET, setting), **how)
    root, name = Path(source), str(source)
    recorded(root)
    if root.exists() or len(root.parts) > 1:
        return Dataset(root, **how)
    if not _begun(COLLECTED / name):
        _check(name, setting)
    with _turn(COLLECTED / name):
        return _collected(name, setting, episodes, cameras, how)


def open_demonstrations(config: DictConfig, cameras: Sequence[str]) -> tuple[Dataset, Sequence[int]]:
    """What a verb's `demos` names: a number of expert episodes of the world, or a dataset.

    Args:
        config: with `demos`, which asks for some, and `env`.
        cameras: that it must show.

    Returns:
        The dataset, and which of its episodes.

    Raises:
        UserError: neither; no expert for a number of episodes, or one who plays another task; fewer than asked for; a
            dataset without a camera.
    """
    wanted = config.demos
    if isinstance(wanted, str):
        dataset = open_dataset(Path(wanted) if "/" in wanted else wanted, setting="demos", cameras=cameras)
        if missing := [name for name in cameras if name not in dataset.cameras]:
            raise UserError(
                f"demos: {dataset.root} must have the cameras {', '.join(cameras)}; {', '.join(missing)} is missing. "
                f"It has {', '.join(dataset.cameras) or 'none'}."
            )
        return dataset, range(len(dataset))
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0:
        raise UserError(f"demos must be a number of expert episodes, or a dataset; got {wanted!r}. Try demos=10.")
    world = str(config.env.id).removeprefix("embodied/").removesuffix("-v0")
    if world not in SCRIPTED:
        raise UserError(
            f"demos must be a dataset where the world has no expert; got {wanted} for {config.env.id}. "
            "Give a LeRobot folder: demos=path/to/lerobot."
        )
    check_same_task(config, "demos", wanted)
    dataset = open_dataset(f"{world}-expert", setting="demos", episodes=wanted, cameras=cameras)
    if len(dataset) < wanted:
        raise UserError(f"demos must be at most {len(dataset)}, as many as {dataset.root} has; got {wanted}.")
    return dataset, range(wanted)


def check_same_task(config: DictConfig, setting: str, wanted: int) -> None:
    """Refuse a number of expert episodes, which show a world as it ships, where `env.kwargs` make another task of it.

    Args:
        config: with `env`, a world of ours that has an expert.
        setting: what asks for the episodes.
        wanted: how many.

    Raises:
        UserError: the tasks differ.
    """
    if not config.env.get("kwargs"):
        return
    from embodied.envs.bridge import make  # MuJoCo, which whoever has a dataset does without

    texts = []
    for env in (make(str(config.env.id)), env_maker(config)()):
        texts.append(env.get_wrapper_attr("instruction"))
        env.close()
    if texts[0] != texts[1]:
        raise UserError(
            f"{setting} must be a dataset where env.kwargs change the task; got {wanted}, which would show "
            f"{texts[0]!r}, not {texts[1]!r}. Collect one with embodied collect policy=expert env=… env.kwargs=… "
            f"out=FOLDER, and give {setting}=FOLDER."
        )


def _check(name: str, setting: str) -> tuple[str, str]:
    """The world and the policy of a named dataset."""
    world, _, policy = name.rpartition("-")
    if world not in WORLDS or policy not in POLICIES:
        played = {name: [kind for kind in POLICIES if name in DESK or kind != COUNTERFACTUAL] for name in SCRIPTED}
        known = [f"{each}-{kind}" for each in WORLDS for kind in played.get(each, ("random",))]
        raise UserError(
            f"{setting} must be a LeRobot folder or a name such as desk-drawer-mixed; got {name!r}. "
            f"{nearest(name, known, listed='worlds')}"
        )
    return world, policy


@contextmanager
def _turn(root: Path) -> Iterator[None]:
    """Hold a lock while a named dataset is looked for and collected: two runs that want the same one take turns."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / f".{root.name}.lock").open("a") as lock:
        waits = False
        while True:
            try:
                locks.hold(lock)
                break
            except BlockingIOError:
                if not waits:
                    print(f"Waiting for another process, which reads or collects {root}.", file=sys.stderr)
                waits = True
                time.sleep(0.5)
        yield


def _collected(name: str, setting: str, episodes: int | None, cameras: Sequence[str], how: dict[str, Any]) -> Dataset:
    """A named dataset of ours with so many episodes from these cameras; collected where there is none."""
    place, grows, began = COLLECTED / name, False, []
    if cameras and _begun(place) and not set(cameras) <= set(Dataset(place).cameras):
        place = COLLECTED / f"{name}-{'-'.join(cameras)}"
    if _begun(place):
        found = Dataset(place, **how)
        if episodes is None or len(found) >= episodes:
            return found
        cameras, grows = found.cameras, True  # as it began
        began = [f"{key}={value}" for key, value in found.made.items() if key != "policy"]
    world, policy = _check(name, setting)
    from embodied.collecting.collect import collect  # MuJoCo, which whoever has a dataset does without
    from embodied.config import compose

    wanted = [] if episodes is None else [f"episodes={episodes}"]
    if grows or not set(cameras) <= set(world_cameras(world)[:2]):  # those that are recorded unasked
        wanted.append(f"cameras=[{','.join(cameras)}]")
    made = collect(compose("collect", [f"env={world}", f"policy={policy}", f"out={place}", *began, *wanted]))
    return Dataset(made.root, **how) if how else made


def _begun(root: Path) -> bool:
    return any((root / part).is_dir() for part in ("meta", STAGING))


def reading(config: DictConfig) -> dict[str, Any]:
    """How a verb's config says that its dataset is read, for `open_dataset`."""
    return {name: config[name] for name in ("success", "kind", "tolerance", "surplus") if config.get(name) is not None}


def recorded(root: Path) -> None:
    """Finish the record of a camera that lies around a dataset, where it was killed and nobody records there now."""
    from embodied.sinks import packing

    if not (root.parent / packing.JOURNAL).is_dir():
        return
    from embodied.sinks.record import Folder

    try:
        Folder(root.parent, new=False).close()
    except UserError:  # it is being written, or cannot be: what is there is read
        return
