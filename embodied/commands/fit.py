"""Fit a trainable reward to demonstrations and keep it in a folder.

The episodes are encoded, the reward's head is fitted to all of them, whatever tasks they show, and its weights are
written as safetensors and JSON. `reward.model=FOLDER` then takes it in any other verb, without fitting again.

    embodied fit reward=process demos=[desk-drawer-expert,desk-lift-expert] out=models/process
    embodied fit reward=process demos=path/to/lerobot cameras=[front,wrist] out=models/mine
    embodied train env=desk-drawer reward=process reward.model=models/process
"""

from __future__ import annotations

import inspect
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from embodied import hub
from embodied.building.build import build, locate
from embodied.building.goals import FITTED_TO, OF_GOAL, is_open, takes_goal, with_goal, without_own
from embodied.building.scorers import reward_name
from embodied.collecting.opening import open_dataset, reading
from embodied.config import given_in
from embodied.datasets import Dataset
from embodied.datasets.encoding import encode
from embodied.errors import UserError
from embodied.files import check_place
from embodied.literal import resolved
from embodied.locks import alone
from embodied.scoring.labelling import chosen_cameras
from embodied.settings import check_least
from rewards.core import Encoder, Episode
from rewards.members import of_goal
from rewards.phrases import distinct, plain
from rewards.storage import CONFIG, former_of, replace_folder

SEVERAL = ("rewards.process.process_scorer",)  # one head for many tasks, whichever of them is asked for later


def run(config: DictConfig) -> None:
    """Encode, fit, save."""
    reward = resolved(config)["reward"]
    folder = Path(config.out)
    if given_in(config, "reward.demos"):
        raise UserError("reward.demos must be left out: a head is fitted to demos=….")
    _check(reward, folder)
    check_least(config, episodes=0, threads=1)
    hub.check_id(config.push)
    torch.set_num_threads(config.threads)
    sources = _sources(config)
    given = reward.get("goal")  # then nobody asks what the frames' own tasks are
    own = (dataset.instruction(i) for dataset, count in sources if given is None for i in range(count))
    texts = distinct(own) or [str(given)]
    reward = _with_goal(reward, texts)
    about = {"goal": reward.get("goal") if takes_goal(reward) else None, "tasks": texts}
    with alone(folder, "out"):
        if former_of(folder).is_dir() and not folder.exists():  # of a run that was killed
            former_of(folder).rename(folder)
        _check_same(folder, str(reward["_target_"]), about)
        encoder = build(config.encoder)
        demos = _episodes(config, encoder, sources)
        if told := without_own(reward, demos):
            print(f"{reward_name(reward)}: {told}", file=sys.stderr)
        used = of_goal(demos, reward.get("goal")) if reward["_target_"] in OF_GOAL else demos
        start = time.perf_counter()
        head = _fitted(reward, encoder, used)
        _save(head, folder, encoder, about)
        size = sum(path.stat().st_size for path in folder.iterdir())
        tasks = len(distinct(demo.instruction for demo in used))
        some = f" of the {len(demos)}" if len(used) < len(demos) else ""
        print(
            f"{head.name}: fitted to {len(used)}{some} episodes of {tasks} task{'s'[: tasks > 1]} in "
            f"{time.perf_counter() - start:.0f} s, {size / 1e3:.0f} kB. Use it: reward.model={folder}"
        )
        if config.push:
            facts = {"reward": reward_name(reward), "encoder": hub.encoder(config), "fitted_to": about}
            facts |= {"demos": [dataset.root.name for dataset, _ in sources], "episodes": len(used)}
            told = [
                "A reward's head, fitted to demonstrations by `embodied fit`. Take it with "
                f"`reward={reward_name(reward)} reward.model=hub:{config.push}`, with the encoder that is named below.",
                "How good it is was not measured by pushing it: `embodied judge` tells, on labelled episodes of yours.",
            ]
            readme = hub.card(f"A {head.name} reward", told, facts, ("robotics", "reward-model", "embodied"))
            files = hub.folder_files(folder) | {"README.md": readme}
            print(f"Pushed: {hub.push(files, config.push, hub.MODEL, private=config.private)}")


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
    check_place(folder, "out")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out must be a folder; got {folder}, a file.")
    if folder.exists() and not (folder / CONFIG).is_file() and any(folder.iterdir()):
        raise UserError(f"out must be a new folder, or hold a fitted head; {folder} holds something else.")


def _check_same(folder: Path, target: str, about: dict[str, Any]) -> None:
    """Refuse to write over a head of another kind or of other tasks.

    Raises:
        UserError: a folder that holds such a head, or one that does not say what it was fitted to.
    """
    if not (folder / CONFIG).is_file():
        return
    same, kind = False, target.rpartition(".")[2].removesuffix("_scorer")
    try:
        kept = json.loads((folder / CONFIG).read_text("utf-8"))
        held = {key: kept[FITTED_TO][key] for key in about} | {"kind": str(kept["kind"])}
        same = held["kind"] == kind and _plainly(held) == _plainly(about)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        held = None
    if not same:
        what = "a head that does not say its tasks" if held is None else f"a {held['kind']} head for {_told(held)}"
        raise UserError(
            f"out must be a new folder, or hold a head for {_told(about)}; {folder} holds {what}. Give another folder."
        )


def _plainly(about: dict[str, Any]) -> list[str | None]:
    goal, tasks = about["goal"], about["tasks"]
    return [None if goal is None else plain(goal), *map(plain, tasks)]


def _told(about: dict[str, Any]) -> str:
    tasks = about["tasks"] if about["goal"] is None else [about["goal"]]
    return ", ".join(repr(text) for text in tasks[:3]) + (f" and {len(tasks) - 3} more" if len(tasks) > 3 else "")


def _save(head: Any, folder: Path, encoder: Encoder, about: dict[str, Any]) -> None:
    """Write the head with what it was fitted to, whole or not at all."""
    made = folder.with_name(f".{folder.name}.made")
    shutil.rmtree(made, ignore_errors=True)  # of a run that was killed
    try:
        head.save(made, encoder)
        kept = json.loads((made / CONFIG).read_text("utf-8"))
        text = json.dumps({**kept, FITTED_TO: about}, indent=2, ensure_ascii=False)
        (made / CONFIG).write_text(text + "\n", "utf-8")
        replace_folder(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sources(config: DictConfig) -> list[tuple[Dataset, int]]:
    """Every dataset of demonstrations, and how many of its episodes are taken."""
    given = list(config.demos) if isinstance(config.demos, ListConfig) else [config.demos]
    datasets = [open_dataset(str(source), setting="demos", **reading(config)) for source in given]
    sources = [(dataset, min(config.episodes or len(dataset), len(dataset))) for dataset in datasets]
    if not any(count for _, count in sources):
        raise UserError(f"demos must hold at least one episode; got none in {', '.join(map(str, given))}.")
    return sources


def _episodes(config: DictConfig, encoder: Encoder, sources: list[tuple[Dataset, int]]) -> list[Episode]:
    """The demonstrations of every dataset, encoded."""
    goal = str(config.reward.get("goal") or "")  # "": each episode's own
    return [
        episode
        for dataset, count in sources
        for episode in encode(
            dataset, encoder, cameras=chosen_cameras(dataset, config.cameras), indices=range(count), goal=goal
        )
    ]


def _with_goal(reward: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """The reward with the demonstrations' own task text, where its goal is open.

    Raises:
        UserError: they are of several tasks, and the reward can be fitted to one alone.
    """
    one = is_open(reward) or not takes_goal(reward)
    if one and len(texts) > 1 and reward["_target_"] not in SEVERAL:
        advice = ", or say with goal=… which one counts" if is_open(reward) else ""
        raise UserError(
            f"demos must be of one task for {reward_name(reward)}; they are of {len(texts)}: "
            f"{', '.join(map(repr, texts[:3]))}{' …' if len(texts) > 3 else ''}. Leave the others out{advice}."
        )
    return with_goal(reward, texts[0] or None)


def _fitted(reward: dict[str, Any], encoder: Encoder, demos: list[Episode]) -> Any:
    """The head that the reward's factory fits.

    Raises:
        UserError: it fits none that can be saved.
    """
    heads = build(reward, encoder=encoder, demos=demos).heads.values()
    (head,) = heads if len(heads) == 1 else [None]
    if not hasattr(head, "save"):
        raise UserError(f"reward must be one whose head can be saved; got {reward['_target_']}.")
    return head
