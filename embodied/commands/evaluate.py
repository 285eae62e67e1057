"""Judge a trained policy: success rate with its 95 % interval, returns, videos.

Rebuilds the world, the reward and the policy from the run's config, which is data and never runs code, and loads the
newest checkpoint. From a config of somebody else it uses only the servers, keys and modules that you name by trust=[…].
Writes evaluation.json, videos and a new report.html into the run folder.

distractors=… shows the policy a world that looks otherwise than in training; with align=… a policy of RePo first learns
to see that world, without rewards, and is judged before and after. imagined=10, for a policy with a world model,
compares what the model predicts up to ten steps ahead with what then happened (imagination.json, and charts in the
report).

    embodied evaluate run=latest
    embodied evaluate run=runs/train/20260101-120000-desk-drawer-clip-s0 episodes=200 videos=0
    embodied evaluate run=latest looks=[100,101,102,103]
    embodied evaluate run=latest 'distractors={camera:0.3,light:0.7}' align=1600
    embodied evaluate run=latest imagined=10
    embodied evaluate run=runs/finetune/20260101-120000-desk-place-solved-s0 env=desk-place
    embodied evaluate run=runs/finetune/20260101-120000-desk-place-solved-s0 instruction="open the drawer"
"""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from embodied import files, runs
from embodied.building.scorers import make_scorer
from embodied.commands.train import filmed, judged, told
from embodied.config import given
from embodied.errors import UserError
from embodied.finetuning import trying
from embodied.reports.page import write_report
from embodied.settings import check_device, check_least
from embodied.training import checkpoints
from embodied.training.acting import actor_of, take_kept
from embodied.training.aligning import align
from embodied.training.imagination import WholeEpisodes, compare, names_of
from embodied.training.stage import Stage
from policies.core import Imagines, Learner
from rewards.progress import tqdm

ALIGNING = 1_000_000  # added to the seed for the worlds that alignment steps


def run(config: DictConfig) -> None:
    """Evaluate the newest checkpoint of a run."""
    check_least(config, episodes=1, num_worlds=1, videos=0, threads=1, imagined=0, align=0)
    check_device(config.device)
    folder = runs.find(config.run, runs.ROOT / "train", runs.ROOT / "finetune")
    if runs.verb_of(folder, "train", "finetune") == "finetune":
        print(trying.evaluate(config, folder))
        return
    for key in trying.OWN:
        if given(config, key):
            raise UserError(f"{key} is for runs of embodied finetune; {folder} is of embodied train. Leave it out.")
    if config.get("env") is not None:
        raise UserError("env is for runs of embodied finetune; this one is judged in the world it was trained in.")
    checkpoint = files.latest_checkpoint(folder)
    if checkpoint is None:
        raise UserError(f"run must hold a checkpoint; {folder} stopped before its first.")
    trained = runs.saved_config(folder, "train", trust=config.trust)
    if config.looks is not None:
        OmegaConf.update(trained, "env.looks", config.looks, force_add=True)
    take_kept(trained, folder)
    torch.set_num_threads(config.threads)
    scorer = make_scorer(trained)
    checkpoints.load_constraints(checkpoint, scorer)
    before = Stage(trained, scorer)
    actor = actor_of(trained, before, checkpoint, device=config.device)
    model = actor if isinstance(actor, Imagines) else None
    if config.imagined and model is None:
        raise UserError("imagined is for policies with a world model; this one has none. Try policy=tdmpc2 or repo.")
    changed = _changed(config, trained)
    stage = before if changed is trained else Stage(changed, scorer)
    summary: dict[str, Any] = {"steps": int(checkpoint.name), "seed": config.seed, "observation": stage.observation}
    if config.align:
        summary |= {"unaligned": _judged(config, stage, actor), "align": _aligned(config, before, stage, actor)}
    played = WholeEpisodes()
    summary |= _judged(config, stage, actor, **({"watch": played.add} if config.imagined else {}))
    if config.imagined and model is not None:
        found = compare(model, played.whole, config.imagined, names_of(stage.perception))
        files.write_text(folder / "imagination.json", json.dumps(found, indent=2) + "\n")
    filmed(stage, folder, "evaluate", actor, seed=config.seed, count=config.videos)
    env: Any = OmegaConf.to_container(changed.env)
    summary |= {name: env.get(name) for name in ("looks", "distractors")}
    files.write_text(folder / "evaluation.json", json.dumps(summary, indent=2) + "\n")
    if config.align:
        print(f"Before it was aligned: {told(summary['unaligned'])}.")
    print(f"{told(summary)}. Report: {write_report(folder)}")


def _changed(config: DictConfig, trained: DictConfig) -> DictConfig:
    """A run's config with the world as `distractors` says that it looks now; the same where it says nothing."""
    if config.distractors is None:
        if config.align:
            raise UserError("distractors must say what has changed where align is not 0; got null.")
        return trained
    changed = copy.deepcopy(trained)
    OmegaConf.update(changed, "env.distractors", config.distractors, force_add=True)
    return changed


def _aligned(config: DictConfig, before: Stage, now: Stage, actor: Learner) -> dict[str, float]:
    """Let a policy see again."""
    try:
        seed = config.seed + ALIGNING
        return align(actor, before, now, steps=config.align, num_worlds=config.num_worlds, seed=seed)
    except ValueError as error:
        raise UserError(str(error)) from error


def _judged(config: DictConfig, stage: Stage, actor: Learner, **watch: Any) -> dict[str, Any]:
    """The summary of so many episodes."""
    count = min(config.num_worlds, config.episodes)
    with tqdm(total=config.episodes, desc="evaluation", unit="episode", leave=False) as bar:
        result = judged(stage, actor, config.episodes, count=count, seed=config.seed, tick=bar.update, **watch)
    return result.summary()
