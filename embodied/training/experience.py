"""What an earlier run did, paid by another reward: a new run begins with its steps, and no frame is encoded again.

The replay of a run keeps the features of every moment beside what the policy saw, so a new goal needs no world and no
encoder to say what each step was worth. The learner is a new one: it makes as many updates on those steps as it would
have made had they been its own, and half of each later batch comes from them (RLPD's way with prior data: Ball et al.,
arXiv 2302.02948, §4.1).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from safetensors.numpy import load_file

from embodied import runs, scoring
from embodied.building.worlds import SEEN, policy_cameras, reward_cameras, things_of
from embodied.errors import UserError
from embodied.files import latest_checkpoint
from embodied.literal import resolved
from embodied.scoring import Layout, Track
from embodied.training.checkpoints import loaded
from embodied.training.collector import Collector, below
from embodied.training.loop import Training
from embodied.training.stage import Stage
from policies.replay import Replay
from rewards.core import Scorer

BATCH = 256  # episodes scored at once


def earlier(config: DictConfig, stage: Stage, training: Training) -> Replay:
    """The steps of the run that `experience` names, with the rewards of this one; none is to be imitated.

    Raises:
        UserError: no such run, one that kept no features, or one whose policy saw or did something else; a reward that
            reads images, or the task's own; a learner that keeps no steps of its own.
    """
    sampling, scorer = training.learner.sampling, stage.scorer
    if training.replay is None or sampling is None or sampling.demo_share == 1:
        raise UserError("experience needs a learner from its own steps. Use policy=rlpd, the default, sac or tdmpc2.")
    if scorer is None or scorer.frames_read != "none":
        what = "the task's own reward is not known for other runs' steps" if scorer is None else "it reads images"
        raise UserError(f"experience needs a reward that reads features alone; {what}. Use reward=clip, say.")
    folder = runs.find(str(config.experience), runs.ROOT / "train")
    runs.verb_of(folder, "train")
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        raise UserError(f"experience: {folder} must hold a checkpoint; it stopped before its first.")
    _check(config, runs.saved_config(folder, "train", trust=config.trust), stage, folder)
    replay = _stored(checkpoint, training.collector, folder)
    score_replay(scorer, replay, training.collector.layout, env_weight=float(config.env_weight))
    return replay


@torch.inference_mode()
def score_replay(scorer: Scorer, replay: Replay, layout: Layout, *, env_weight: float = 0.0) -> None:
    """Give every step of a replay with rows its reward anew; they agree with fresh ones to the rows' half precision.

    Args:
        scorer: of the new goal, with the same encoder.
        replay: demonstrations are one too.
        layout: what a row holds.
        env_weight: of the task's own reward.
    """
    stretches = list(replay.stretches())
    for first in range(0, len(stretches), BATCH):
        part = stretches[first : first + BATCH]
        tracks = [Track(list(each.rows.astype(np.float32)), each.terminated.tolist()) for each in part]
        for each, (rewards, _) in zip(part, scoring.label(scorer, tracks, layout), strict=True):
            own = replay.env_reward[each.slots, each.world]
            replay.set_rewards(each.slots, each.world, rewards + env_weight * own)


def _check(config: DictConfig, old: DictConfig, stage: Stage, folder: Path) -> None:
    """Refuse a run that saw other things than this one does."""
    if stage.form == "places":
        raise UserError("experience: env.obs=places looks where each run has learned to. Use env.obs=points.")
    ours, theirs = (_told(each, stage) for each in (config, old))
    if stage.form not in SEEN or config.env_weight:  # what a world says itself is another thing in another world
        ours["env"], theirs["env"] = config.env.id, old.env.id
    for name, wanted in ours.items():
        if (got := theirs[name]) != wanted:
            advice = f" Say {name}=[{','.join(got)}]." if name == "env.points" else ""
            raise UserError(f"experience: {folder} must have this run's {name}, {wanted}; got {got}.{advice}")


def _told(config: DictConfig, stage: Stage) -> dict[str, Any]:
    """What two runs must share, by the setting's name."""
    form = str(config.env.get("obs", "state"))
    told: dict[str, Any] = {"env.obs": form, "encoder": resolved(config.encoder)}
    told |= {"env.cameras": reward_cameras(config), "env.policy_cameras": policy_cameras(config)}
    told["env.camera"] = config.env.get("camera")
    if form == "points":
        assert stage.scorer is not None
        told["env.points"] = things_of(config, stage.scorer.encoder)
    return told


def _stored(checkpoint: Path, collector: Collector, folder: Path) -> Replay:
    """The replay of a checkpoint."""
    try:
        values: Mapping[str, Any] = json.loads((checkpoint / "state.json").read_text("utf-8"))
        arrays = below(load_file(checkpoint / "state.safetensors"), "replay")
    except (OSError, ValueError) as error:
        raise UserError(f"experience: {checkpoint} must be a checkpoint of this version; got {error}.") from error
    if "replay" not in values or "rows" not in arrays:
        raise UserError(
            f"experience: {folder} must have kept its steps with their features; it kept none. Off-policy learners do, "
            "where a reward model or env.obs=points or features made them."
        )
    kept, layout = values["rewards"], collector.layout
    for what, wanted in (("views", layout.views), ("signals", layout.signals)):
        if tuple(kept.get(what, wanted)) != wanted:
            ours, theirs = (", ".join(each) or "none" for each in (wanted, kept[what]))
            raise UserError(f"experience: {folder} must have this run's {what}, {ours}; got {theirs}.")
    arrays["imitate"] = np.zeros_like(arrays["imitate"])  # a person showed another goal there
    try:
        return loaded(arrays, values["replay"], collector)
    except (ValueError, KeyError) as error:
        raise UserError(f"experience: {folder} must have this run's observations and actions; {error}") from error
