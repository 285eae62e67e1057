"""Audit recorded episodes with a reward model: how far each came and by what way, and which are bad.

From each episode's curve of progress: the most it reached, how straight it went there, what it lost on the way, how
long it stalled, how much of its largest fall it won back. An episode is bad where it ends below `least`; a success
model (reward=success) says yes, no or unsure itself, and unsure is not bad. Writes audit.json into a run folder, lists
the bad episodes, and with drop=true writes the dataset without them. The source is never touched.

    embodied audit data=runs/rollouts reward=process reward.model=fitted/process
    embodied audit data=path/to/lerobot reward=success reward.model=fitted/success drop=true out=data/clean
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from embodied import runs
from embodied.building import scorers
from embodied.building.goals import of_other_tasks
from embodied.collecting.opening import open_dataset, reading
from embodied.datasets import Dataset
from embodied.datasets.dropping import check_droppable, drop
from embodied.datasets.encoding import Encoded
from embodied.errors import UserError
from embodied.files import check_place, write_text
from embodied.literal import resolved
from embodied.locks import alone
from embodied.scoring.labelling import KeptLabels, by_goal, chosen_cameras, instructions, label_all, progress_range
from embodied.settings import check_least
from rewards.calibration import NO, YES
from rewards.core import Encoder, Scorer
from rewards.trace import Trace, trace

ROOT = Path("runs", "audit")
LISTED = 20  # episodes of a verdict that are printed
FIGURES = ("reached", "path_efficiency", "regression", "stalls", "recovery")


def run(config: DictConfig) -> None:
    """Label, audit, tell, and leave out what is bad where that is asked for."""
    _check(config)
    torch.set_num_threads(config.threads)
    encoder, loaded = scorers.encoder_checked(config)
    dataset = open_dataset(config.data, **reading(config))
    cameras = chosen_cameras(dataset, config.cameras)
    name = scorers.reward_name(config.reward)
    out = Path(config.out or ROOT / f"{dataset.root.name}-kept")
    if config.drop:
        check_droppable(dataset)
        if out.exists():
            raise UserError(f"out must be a new folder; got {out}.")
    check_place(out, "out")
    told = of_other_tasks(resolved(config)["reward"], instructions(dataset))
    if told and config.drop:
        raise UserError(
            f"drop=true must be with a reward of the data's own tasks: {told} Fit one to data={config.data}."
        )
    if told:
        print(told, file=sys.stderr)
    labels = KeptLabels(dataset, ROOT / f".{dataset.root.name}-{name}.labels")
    with alone(labels.root, "data"):
        _audit(config, labels, cameras, encoder, out)
        shutil.rmtree(labels.root, ignore_errors=True)
    del loaded  # until then nothing is loaded twice


def _audit(config: DictConfig, labels: KeptLabels, cameras: Sequence[str], encoder: Encoder | None, out: Path) -> None:
    """Label, audit, tell, leave out."""
    dataset, name = labels.dataset, scorers.reward_name(config.reward)
    verdicts: dict[int, int] = {}
    label_all(
        config, labels, cameras, by_goal(config, dataset),
        told=lambda scorer, members: verdicts.update(_verdicts(dataset, scorer, members, cameras)), encoder=encoder,
    )  # fmt: skip
    low, high = progress_range(*labels.extremes())
    episodes = []
    for i in range(len(dataset)):
        progress = np.clip((labels[i]["potential"] - low) / ((high - low) or 1.0), 0, 1)
        episodes.append(_episode(dataset, i, progress, verdicts.get(i), config))
    bad, unsure = ([e["episode"] for e in episodes if e["verdict"] == word] for word in ("bad", "unsure"))
    folder = runs.new_folder(ROOT, dataset.root.name, name, 0) if config.run is None else Path(config.run)
    folder.mkdir(parents=True, exist_ok=True)
    runs.save_config(folder, config)
    about = {"verb": "audit", "data": f"{dataset.root}, {len(dataset)} episodes", "cameras": ", ".join(cameras)}
    runs.write_run(folder, **about, command=sys.argv, **runs.facts())
    summary = _summary(episodes)
    result = {"summary": summary, "range": [low, high], "bad": bad, "unsure": unsure, "episodes": episodes}
    write_text(folder / "audit.json", json.dumps(result, indent=1) + "\n")
    print(_told(summary, {"Bad": bad, "Unsure": unsure}, folder))
    if config.drop and bad:
        numbers = set(bad)
        gone = [i for i in range(len(dataset)) if dataset.span(i).index in numbers]
        made = drop(dataset, gone, out)
        print(f"Without them: {out} ({len(made)} episodes)")
    elif config.drop:
        print("No episode is bad: nothing is written.")


def _check(config: DictConfig) -> None:
    """Refuse what cannot be, before anything is read.

    Raises:
        UserError: a value out of its range, or a run folder that exists.
    """
    check_least(config, batch=1, threads=1)
    if config.reward.get("_target_") is None:
        raise UserError("reward=true audits nothing: it is the task's own. Choose a reward model.")
    for name in ("least", "stall"):
        if not 0 < config[name] < 1:
            raise UserError(f"{name} must be between 0 and 1; got {config[name]}.")
    if config.out and not config.drop:
        raise UserError("out must be left out without drop=true: it is the dataset without its bad episodes.")
    runs.check_new(config.run)


@torch.inference_mode()
def _verdicts(dataset: Dataset, scorer: Scorer, members: Sequence[int], cameras: Sequence[str]) -> dict[int, int]:
    """What a success model says of each episode's last frame: 1, 0, or -1; nothing of other rewards."""
    head: Any = next(iter(scorer.heads.values()))
    if len(scorer.heads) > 1 or not hasattr(head, "verdicts") or scorer.frames_read != "none":
        return {}
    encoded = Encoded(dataset, scorer.encoder, cameras=cameras)
    return {i: int(head.verdicts(encoded[i].features)[0, -1]) for i in members}


def _episode(dataset: Dataset, i: int, progress: np.ndarray, verdict: int | None, config: DictConfig) -> dict[str, Any]:
    """What is told of one episode."""
    found: Trace = trace(progress, stall=config.stall)
    if verdict is None:
        word = "good" if progress[-1] >= config.least else "bad"
    else:
        word = {YES: "good", NO: "bad"}.get(verdict, "unsure")
    recording = dataset.recording(i, cameras=())
    recorded = None if recording.success is None else bool(recording.success[-1])
    figures = {name: round(float(getattr(found, name)), 6) for name in FIGURES}
    return {
        "episode": dataset.span(i).index, "instruction": recording.instruction, "verdict": word,
        "recorded_success": recorded, "end": round(float(progress[-1]), 6), **figures, "fell": found.fell,
    }  # fmt: skip


def _summary(episodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over episodes; of `recovery`, over those that fell."""
    counts = {word: sum(each["verdict"] == word for each in episodes) for word in ("good", "bad", "unsure")}
    fell = [each["recovery"] for each in episodes if each["fell"]]
    means = {name: round(float(np.mean([each[name] for each in episodes])), 6) for name in FIGURES[:-1]}
    milestones = {f"reached_{k}": round(float(np.mean([e["reached"] >= k / 100 for e in episodes])), 6)
                  for k in (25, 50, 75)}  # fmt: skip
    known = [each for each in episodes if each["recorded_success"] is not None and each["verdict"] != "unsure"]
    agree = [each["recorded_success"] == (each["verdict"] == "good") for each in known]
    return {
        "episodes": len(episodes), **counts, **means, "recovery": round(float(np.mean(fell)), 6) if fell else None,
        "fell": len(fell), **milestones, "agrees_with_recorded": round(float(np.mean(agree)), 6) if agree else None,
    }  # fmt: skip


def _told(summary: dict[str, Any], listed: dict[str, Sequence[int]], folder: Path) -> str:
    """For the terminal."""
    names = {
        "reached": "most progress", "path_efficiency": "path efficiency", "regression": "lost to regressions",
        "stalls": "steps that stall", "recovery": "won back after falls",
    }  # fmt: skip
    lines = [f"{text:22} {'none' if summary[name] is None else f'{summary[name]:.3f}'}" for name, text in names.items()]
    unsure = f", {summary['unsure']} unsure" if summary["unsure"] else ""
    lines.append(f"\n{summary['good']} good, {summary['bad']} bad{unsure}")
    for word, episodes in listed.items():
        more = f" and {len(episodes) - LISTED} more" if len(episodes) > LISTED else ""
        if episodes:
            lines.append(f"{word}: episodes {', '.join(map(str, episodes[:LISTED]))}{more}")
    return "\n".join([*lines, f"Audit: {folder / 'audit.json'}"])
