"""Fit a trainable reward to demonstrations and keep it in a folder.

The episodes are encoded, the reward's head is fitted to all of them, whatever tasks they show, and its weights are
written as safetensors and JSON. `reward.model=FOLDER` then takes it in any other verb, without fitting again.

    embodied fit reward=process demos=[desk-drawer-expert,desk-lift-expert] out=models/process
    embodied fit reward=process demos=path/to/lerobot episodes=0 cameras=[front,wrist] out=models/mine
    embodied train env=desk-drawer reward=process reward.model=models/process
"""

from __future__ import annotations

import inspect
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from embodied.build import build, locate
from embodied.collecting import open_dataset, reading
from embodied.datasets.encoding import encode
from embodied.errors import UserError
from embodied.settings import check_least
from rewards.core import Encoder, Episode
from rewards.storage import CONFIG


def run(config: DictConfig) -> None:
    """Encode, fit, save."""
    reward: Any = OmegaConf.to_container(config.reward, resolve=True)
    folder = Path(config.out)
    _check(reward, folder)
    check_least(config, episodes=0, threads=1)
    torch.set_num_threads(config.threads)
    encoder = build(config.encoder)
    demos = _episodes(config, encoder)
    start = time.perf_counter()
    head = _fitted(reward, encoder, demos)
    head.save(folder, encoder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    tasks = len({demo.instruction for demo in demos})
    print(
        f"{head.name}: fitted to {len(demos)} episodes of {tasks} task{'s'[: tasks > 1]} in "
        f"{time.perf_counter() - start:.0f} s, {size / 1e3:.0f} kB. Use it: reward.model={folder}"
    )


def _check(reward: dict[str, Any], folder: Path) -> None:
    """Before anything is encoded.

    Raises:
        UserError: a reward that learns nothing from demonstrations, or a folder that holds something else.
    """
    target = reward.get("_target_")
    learns = target is not None and "demos" in inspect.signature(locate(target)).parameters
    if not learns:
        raise UserError(f"reward must be one that is fitted to demonstrations; got {target}. Try reward=process.")
    if reward.get("model") is not None:
        raise UserError(f"reward.model must be null, for it is what is made here; got {reward['model']}.")
    if folder.exists() and not (folder / CONFIG).is_file() and any(folder.iterdir()):
        raise UserError(f"out must be a new folder, or hold a fitted head; {folder} holds something else.")


def _episodes(config: DictConfig, encoder: Encoder) -> list[Episode]:
    """The demonstrations of every dataset, encoded."""
    sources = list(config.demos) if isinstance(config.demos, ListConfig) else [config.demos]
    cameras = None if config.cameras is None else list(config.cameras)
    goal, demos = config.reward.get("goal"), []
    for source in sources:
        dataset = open_dataset(str(source), setting="demos", **reading(config))
        count = min(config.episodes or len(dataset), len(dataset))
        if "goal" in config.reward and goal is None:
            for i in range(count):
                dataset.instruction(i)  # refused where the frames of one have several
        demos += encode(dataset, encoder, cameras=cameras, indices=range(count), goal=str(goal or ""))
    if not demos:
        raise UserError(f"demos must hold at least one episode; got none in {', '.join(map(str, sources))}.")
    return demos


def _fitted(reward: dict[str, Any], encoder: Encoder, demos: list[Episode]) -> Any:
    """The head that the reward's factory fits.

    Raises:
        UserError: it fits none that can be saved.
    """
    if "goal" in reward and reward["goal"] is None:
        reward = reward | {"goal": demos[0].instruction or None}
    heads = build(reward, encoder=encoder, demos=demos).heads.values()
    (head,) = heads if len(heads) == 1 else [None]
    if not hasattr(head, "save"):
        raise UserError(f"reward must be one whose head can be saved; got {reward['_target_']}.")
    return head
