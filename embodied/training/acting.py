"""The policy of a run, to act with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gymnasium import spaces
from omegaconf import DictConfig

from embodied.building.build import build
from embodied.building.scorers import kept, make_scorer
from embodied.building.worlds import SEEN
from embodied.errors import UserError
from embodied.files import latest_checkpoint
from embodied.finetuning.places import PlaceActor
from embodied.literal import load_literal, resolved
from embodied.runs import find
from embodied.training import places
from embodied.training.checkpoints import load_learner
from embodied.training.collector import Collector
from embodied.training.perception import Perception
from embodied.training.stage import Stage
from embodied.trust import check_trusted
from policies.core import Actor, Learner

RESIDUAL = "policies.residual.residual"  # corrects the policy whose places are read, where there is one


def take_kept(config: DictConfig, folder: Path) -> None:
    """Let a run's config take what was fitted for the run and kept in its folder: rewards, and where to look."""
    kept(config.reward, folder)
    if (folder / places.FOLDER).is_dir():
        config.env.places = str(folder / places.FOLDER)


def make_learner(config: DictConfig, collector: Collector, *, device: str | None = None) -> Learner:
    """The config's learner, for what the worlds of a collector show and want."""
    space, perception = collector.worlds.action_space, collector.perception
    base: dict[str, Any] = {}
    if config.policy["_target_"] == RESIDUAL and perception is not None and perception.places is not None:
        if not isinstance(space, spaces.Box):
            raise UserError(f"policy=residual needs actions that are vectors in a box; got {space}.")
        base["base"] = PlaceActor(perception.places, perception.layout.signals, space)
    return build(
        config.policy,
        observation_space=collector.observation_space,
        action_space=space,
        num_worlds=collector.worlds.num_envs,
        total_steps=int(config.steps),
        seed=int(config.seed),
        device=device or config.device,
        **base,
    )


def actor_of(config: DictConfig, stage: Stage, checkpoint: Path, *, device: str) -> Learner:
    """A run's policy at a checkpoint, made from the run's config."""
    collector = stage.collector(config.num_worlds, seed=int(config.seed))  # PPO checks how many there are
    try:
        learner = make_learner(config, collector, device=device)
    finally:
        collector.close()
    load_learner(checkpoint, learner)
    return learner


def load_policy(folder: Path, *, trust: Iterable[str] | None = None) -> tuple[Actor, Perception | None]:
    """The newest policy of a run and what it perceives with, None where it reads the world's own observation.

    Args:
        folder: of the run.
        trust: what its config may reach out to; see `embodied.trust`.

    Raises:
        UserError: no such run, or one that stopped before its first checkpoint.
    """
    checkpoint = latest_checkpoint(find(str(folder), folder.parent))
    if checkpoint is None:
        raise UserError(f"run must hold a checkpoint; {folder} stopped before its first.")
    config = load_literal(folder / "config.yaml")
    sees = config.env.get("obs") in SEEN
    built = ("env", "encoder", "reward") if sees else ("env",)  # all that is built of it here
    check_trusted(folder, {name: resolved(config)[name] for name in built}, trust)
    if sees:
        take_kept(config, folder)
    stage = Stage(config, make_scorer(config) if sees else None)
    actor = actor_of(config, stage, checkpoint, device="cpu")
    return actor, stage.perception if sees else None
