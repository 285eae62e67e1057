"""Collect episodes as a LeRobot dataset: from a scripted expert, random actions, a mixture, or a trained policy.

Rewards are judged on policy=mixed: the expert, the expert with noise, near misses (almost solved, then stopped or
undone), failures (begun well, then wandered off) and random actions, in the shares that `shares` gives. In
counterfactual episodes robot and outcome differ; `embodied judge` uses them.

Each row holds what was seen before an action and what followed it. Rows at which a phase of the expert ends are marked.
The dataset opens in LeRobot itself; it has no column of success where the world does not tell success. Frames are
square, as the reward model gets them in training: where a world's own pictures are not, the whole picture is squeezed.
The same command continues after a kill.

    embodied collect env=desk-drawer policy=mixed episodes=40
    embodied collect env=desk-place policy=expert cameras=[front,side,wrist] out=data/place
    embodied collect env=desk-drawer policy=counterfactual episodes=64
    embodied collect policy=run:latest episodes=20
"""

from __future__ import annotations

import copy
from typing import Any

from omegaconf import DictConfig, OmegaConf

from embodied import runs
from embodied.collecting.collect import collect
from embodied.collecting.episodes import Player
from embodied.config import given, given_in
from embodied.errors import UserError
from embodied.literal import load_literal
from embodied.training.acting import load_policy
from embodied.training.playing import Solo

HEEDED = {"hold": ("random", "mixed"), "noise": ("mixed",), "shares": ("mixed",)}  # by whom alone


def run(config: DictConfig) -> None:
    """Collect, and tell what there is."""
    for key, policies in HEEDED.items():
        if config.policy not in policies and given_in(config, key):
            raise UserError(f"{key} is for policy={' and '.join(policies)}; got it for {config.policy}. Leave it out.")
    learner = None
    if str(config.policy).startswith("run:"):
        config, learner = _trained(config)
    dataset = collect(config, learner)
    kinds = [dataset.kind(i) for i in range(len(dataset))]
    rows = [dataset.recording(i, cameras=()) for i in range(len(dataset))]
    for kind in dict.fromkeys(kinds):
        of = [row for row, its in zip(rows, kinds, strict=True) if its == kind]
        known = [bool(row.success[-1]) for row in of if row.success is not None]
        told = f"solved at the end {sum(known)}" if known else "success is not told"
        if 0 < len(known) < len(of):
            told += f" of {len(known)} that tell"
        print(f"{kind:10} {len(of):4} episode{'s' * (len(of) != 1)}, {told}")
    size = sum(path.stat().st_size for path in dataset.root.rglob("*") if path.is_file())
    frames = sum(map(len, rows))
    print(f"Dataset: {dataset.root} ({len(rows)} episodes, {frames} rows, {size / 1e6:.1f} MB)")


def _trained(config: DictConfig) -> tuple[Any, Player]:
    """The config with the run's own world, and the policy of its newest checkpoint."""
    folder = runs.find(config.policy.removeprefix("run:"), runs.ROOT / "train")
    runs.verb_of(folder, "train")
    actor, perception = load_policy(folder, trust=config.get("trust"))
    trained = load_literal(folder / "config.yaml")
    if others := [key for key in config.env if given(config.env, key)]:
        raise UserError(
            f"policy=run:… plays in its run's own world; got env.{others[0]}. Leave env out, or train the policy there."
        )
    changed = copy.deepcopy(config)
    OmegaConf.set_struct(changed, False)
    changed.env, changed.policy = trained.env, f"run:{folder.name}"  # in place of ours: its keys may be others
    return changed, lambda env: Solo(actor, env, perception)
