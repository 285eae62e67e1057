"""Demonstrations of two desk tasks that undo each other, recorded by turns: each begins where the other one ended.

That is how practice goes, so that a policy has seen from where it will have to begin; demonstrations that all begin at
a reset leave it helpless there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embodied.collecting import COLLECTED
from embodied.collecting.opening import open_dataset
from embodied.datasets import Dataset, Writer
from embodied.envs import WORLDS
from embodied.envs.bridge import make
from embodied.envs.desk import Desk
from embodied.envs.experts import expert
from embodied.errors import UserError
from rewards.progress import tqdm

SUFFIX = "-turns"
STEPS, REST = 60, 4  # actions of a demonstration at most, and after its success
RESET_EVERY = 2  # rounds: half of the first task's begin at a reset, half where the second one ended
IMAGE_SIZE, CAMERAS = 192, ("front", "side")


def open_pair(sources: Sequence[str], episodes: int) -> list[Dataset]:
    """The datasets of a task and of its undoing.

    Args:
        sources: two datasets as `open_dataset` takes them; or `<world>-turns` twice, desk worlds that undo each other,
            whose expert is then recorded by turns, once, below `COLLECTED`.
        episodes: of each that is recorded, at least; where there are fewer, it is gone on.

    Raises:
        UserError: as `open_dataset`; or a world that is none of the desk's.
    """
    folders = [COLLECTED / source for source in sources]
    if all(map(by_turns, sources)):
        if any(not (folder / "meta").is_dir() or len(Dataset(folder)) < episodes for folder in folders):
            record_by_turns([source.removesuffix(SUFFIX) for source in sources], folders, episodes)
        return [Dataset(folder) for folder in folders]
    return [open_dataset(source) for source in sources]


def by_turns(source: str) -> bool:
    """Whether it names demonstrations that the expert records by turns."""
    return source.endswith(SUFFIX) and source.removesuffix(SUFFIX) in WORLDS and not Path(source).exists()


def record_by_turns(worlds: Sequence[str], folders: Sequence[Path], episodes: int, *, seed: int = 0) -> None:
    """Let the desk's expert do a task and undo it, again and again; only what succeeded is kept.

    Args:
        worlds: names of two desk worlds, the first one possible after a reset.
        folders: of the two datasets; what was recorded before a kill stays.
        episodes: of each.
        seed: of the resets, one every `RESET_EVERY` rounds or after a failure, and of the expert's noise.

    Raises:
        UserError: a world that is none of the desk's.
    """
    envs = [make(world, image_size=IMAGE_SIZE) for world in worlds]
    if not all(isinstance(env.unwrapped, Desk) for env in envs):
        raise UserError(f"demos={worlds[0]}{SUFFIX} needs desk worlds, which have an expert; got {', '.join(worlds)}.")
    try:
        desks: Any = [env.unwrapped for env in envs]
        for env in envs:
            env.reset(seed=seed)
        description: list[dict[str, Any]] = [{"id": f"embodied/{world}-v0", "obs": "state"} for world in worlds]
        sizes = dict.fromkeys(CAMERAS, (IMAGE_SIZE, IMAGE_SIZE))
        features = _features(desks[0])
        writers = [
            Writer(folder, fps=round(1 / desks[0].ctrl_dt), features=features, cameras=sizes, env=about)
            for folder, about in zip(folders, description, strict=True)
        ]
        with writers[0], writers[1], tqdm(total=2 * episodes, desc="demonstrating", unit="episode") as bar:
            rng, rounds = np.random.default_rng((seed, *map(len, writers))), 0
            while min(map(len, writers)) < episodes:
                if rounds % RESET_EVERY == 0:
                    desks[0].reset(seed=int(rng.integers(2**31)))
                rounds += 1
                for k, desk in enumerate(desks):
                    if k:
                        desk.set_state(desks[0].get_state())
                    take = _demonstration(desk, rng)
                    if take is None:
                        rounds = 0  # back to a reset
                        break
                    if len(writers[k]) < episodes:
                        frames = {camera: take.pop(camera) for camera in CAMERAS}
                        writers[k].add(
                            take, frames, instruction=desk.instruction, kind="expert", steps=[len(take["action"]) - 1]
                        )
                        bar.update()
                else:
                    desks[0].set_state(desks[1].get_state())
    finally:
        for env in envs:
            env.close()


def _features(desk: Desk) -> dict[str, dict[str, Any]]:
    def feature(width: int, dtype: str = "float32", names: list[str] | None = None) -> dict[str, Any]:
        return {"dtype": dtype, "shape": [width], "names": names}

    return {
        "observation.state": feature(len(desk.signals()), names=list(desk.signals())),
        "observation.environment_state": feature(len(desk._state())),
        "action": feature(desk.action_dim),
        "next.success": feature(1, "bool"),
    }


def _demonstration(desk: Desk, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    """From where the desk stands: the dataset's columns and frames, until a little after success; None without."""
    act, rows = expert(desk, noise=0.1, rng=rng), list[dict[str, Any]]()
    held = 0
    while held < REST:
        if len(rows) == STEPS:
            return None
        row: dict[str, Any] = {camera: desk.frame(camera, IMAGE_SIZE) for camera in CAMERAS}
        row["observation.state"] = np.array(list(desk.signals().values()), np.float32)
        row["observation.environment_state"] = desk._state()
        row["action"] = act(desk)
        *_, info = desk.step(row["action"])
        row["next.success"] = bool(info["is_success"])
        held = held + 1 if info["is_success"] else 0
        rows.append(row)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
