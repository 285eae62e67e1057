"""Give demonstrations that lack actions what was done in them, learned from free steps of the same robot.

`play` holds steps with actions: random ones will do, and thousands do better than hundreds. An inverse model learns
from them which action led from one moment to the next: from own readings where both datasets have the same, from the
pictures of the cameras that both share, or from both. Every fifth episode of play is held out, and R² there (1 is
perfect, 0 as good as the mean action) is told before anything is written; below `least` nothing is. How many of the
films' changes lie outside those of play is told too, for there that R² says little; and where films have recorded
actions, how well the inferred ones meet them. Recorded ones are never learned from.

`out` is a copy of `data` with the inferred `action`, in the names and units of play, for `embodied train demos=…` and
`embodied finetune`. `data` stays as it is. The last row of an episode, after which nobody looked, repeats the action
before it.

    embodied collect env=desk-drawer policy=random hold=5 episodes=40 cameras=[front,wrist] out=demos/play
    embodied actions data=demos/films play=demos/play out=demos/acted
    embodied finetune data=demos/acted
    embodied actions data=path/to/lerobot play=demos/play read=pictures cameras=[wrist]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from embodied.building.build import build
from embodied.collecting.opening import open_dataset, reading
from embodied.datasets import Dataset
from embodied.datasets.columns import with_columns
from embodied.datasets.inferring import Agreement, Inferrer, infer
from embodied.datasets.seen import Common, in_common, read_all
from embodied.datasets.windows import ACTION
from embodied.errors import UserError
from embodied.files import check_place
from embodied.locks import alone
from embodied.settings import check_least

ROOT = Path("runs", "actions")
FAR = 0.25  # share of changes outside play's, from which a person is warned


def run(config: DictConfig) -> None:
    """Check, learn, tell, write."""
    _check(config)
    torch.set_num_threads(config.threads)
    films = open_dataset(config.data, **reading(config))
    play = open_dataset(config.play, setting="play", **reading(config))
    out = Path(config.out or ROOT / films.root.name)
    if out.exists():
        raise UserError(f"out must be a new folder; got {out}.")
    check_place(out, "out")
    if films.root.resolve() == play.root.resolve():
        raise UserError(f"play must be another dataset than data; got {play.root} for both.")
    cameras = None if config.cameras is None else [str(name) for name in config.cameras]
    common = in_common(films, play, read=config.read, cameras=cameras)
    with alone(out, "out"):
        _infer(config, films, play, common, out)


def _infer(config: DictConfig, films: Dataset, play: Dataset, common: Common, out: Path) -> None:
    """Learn, tell, write."""
    print(f"data      {_size(films)}", flush=True)
    print(f"play      {_size(play)}; reads {common.told()}", flush=True)
    model = infer(
        films, play, common, build(config.encoder) if common.cameras else None, layer=config.layer,
        channels=config.channels, held_out=config.held_out, steps=config.steps, batch_size=config.batch_size,
        learning_rate=config.learning_rate, members=config.members, seed=config.seed, places=config.places,
        inner=config.inner, grid=config.grid, widths=tuple(config.network),
    )  # fmt: skip
    print(f"held out  {model.held_out.told(common.actions)}", flush=True)
    _refuse(model.held_out.overall, config.least, play)
    found, outside, done, unread = [], [], [], 0
    for episode in read_all(films, common, model.eyes, "films"):
        found.append(model.actions(episode))
        outside.append(model.outside(episode))
        done.append(episode.actions)
        unread += int((~episode.readable).sum())
    far = float(np.concatenate(outside).mean()) if sum(map(len, outside)) else 0.0
    print(f"films     {far:.0%} of their changes lie outside play's (1% of play's own do)", flush=True)
    if unread:
        print(f"          {unread} rows beside readings that are no numbers repeat the action before them", flush=True)
    if far > FAR:
        print("          Careful: there R² on play says little. Let play go where the films go.", file=sys.stderr)
    about = _about(model, play, far)
    if (recorded := _recorded(films, common, found, done)) is not None:
        print(f"recorded  {recorded.told(common.actions)}; never learned from", flush=True)
        about["recorded_r_squared"] = _known(recorded.overall)
    _write(films, play, out, found, about)
    rows = sum(map(len, found))
    print(f"Actions: {out} ({len(found)} episodes, {rows} rows, {len(common.actions)} entries)")


def _check(config: DictConfig) -> None:
    least = {
        "held_out": 2,
        "channels": 1,
        "places": 1,
        "inner": 1,
        "grid": 1,
        "members": 1,
        "steps": 1,
        "batch_size": 1,
    }
    check_least(config, threads=1, **least)
    for name in ("network", "cameras"):
        if isinstance(config[name], str | int):
            raise UserError(f"{name} must be a list; got {config[name]}. Write {name}=[{config[name]}].")
    if any(not isinstance(width, int) or width < 1 for width in config.network):
        raise UserError(f"network must be a list of widths, each 1 or more; got {list(config.network)}.")
    if config.learning_rate is None or not config.learning_rate > 0:
        raise UserError(f"learning_rate must be above 0; got {config.learning_rate}.")


def _size(dataset: Dataset) -> str:
    rows = sum(span.length for span in dataset.spans)
    return f"{dataset.root}: {len(dataset)} episodes, {rows} rows, {dataset.fps:g} fps"


def _refuse(known: float, least: float | None, play: Dataset) -> None:
    """Go no further where play says that the actions would be no good.

    Raises:
        UserError: so.
    """
    if least is not None and not known >= least:
        raise UserError(
            f"play: R² on episodes held out must be {least:g} or more; got {known:.3f} of {play.root}. Nothing is "
            "written. Record more steps, or such as go where the films go; or say least=null to write all the same."
        )
    if least is None and not known >= 0.5:
        print(f"          Careful: R² {known:.3f} is low; least=null writes all the same.", file=sys.stderr)


def _about(model: Inferrer, play: Dataset, far: float) -> dict[str, Any]:
    """What `embodied.json` tells of the actions."""
    held = model.held_out
    return {
        "inferred_from": play.root.name, "cameras": list(model.common.cameras), "states": list(model.common.states),
        "held_out_r_squared": _known(held.overall), "held_out_steps": held.count, "outside_share": far,
        "by_entry": {name: _known(each) for name, each in zip(model.common.actions, held.entries, strict=True)},
    }  # fmt: skip


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return value if np.isfinite(value) else None


def _recorded(films: Dataset, common: Common, found: list[np.ndarray], done: list[np.ndarray]) -> Agreement | None:
    """How the actions meet those that the films have; None where they have none, or others."""
    if ACTION not in films.features:
        return None
    width = done[0].shape[1]
    if width != len(common.actions):
        print(f"recorded  {films.root} has actions of {width} entries, play of {len(common.actions)}: not compared")
        return None
    return Agreement.of(np.concatenate(found), np.concatenate(done))


def _write(films: Dataset, play: Dataset, out: Path, found: list[np.ndarray], about: dict[str, Any]) -> None:
    """The copy with actions, as a whole: made beside its place and moved there."""
    part = out.with_name(f".{out.name}.part")
    feature = {**play.features[ACTION], "dtype": "float32"}
    one = list(feature["shape"]) == [1]

    def values(i: int) -> dict[str, np.ndarray]:
        return {ACTION: found[i][:, 0] if one else found[i]}

    with_columns(films, part, {ACTION: feature}, values, {"actions": about})
    try:
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
