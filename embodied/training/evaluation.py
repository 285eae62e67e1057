"""How good a policy is: success over episodes with its 95 % interval, rewards, and episodes to look at.

Shape letters: E worlds; V views; T actions of an episode; H, W image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from embodied import scoring
from embodied.envs.spaces import JUDGED, told_success
from embodied.reports.video import OUTCOME, write_video
from embodied.scoring import Track
from embodied.training.collector import Collector
from embodied.training.perception import Perception
from embodied.training.playing import play
from embodied.training.worth import Ended, Rewards
from policies.core import Actor, Rollout
from rewards.core import Scorer
from rewards.metrics import wilson_interval

HELD_OUT = 1_000_000  # added to a run's seed for its periodic evaluations
FINAL = JUDGED.start  # and for its last one, which chooses nothing


@dataclass(frozen=True)
class Evaluation:
    """What a policy did in some episodes."""

    episodes: list[Ended]

    def summary(self) -> dict[str, Any]:
        """`success_rate` of the `known` episodes, whose world told it, with `ci_low` and `ci_high` (None where none
        did); one in which a person acted is no success. `episodes`, `mean_reward`, `mean_env_reward` (returns); and,
        where the world counts them, the mean actions of an episode that passed a limit of the robot, or what else it
        tells for judging, by name."""
        known = [episode.own_success for episode in self.episodes if episode.own_success is not None]
        return (
            success_rate(known)
            | {
                "episodes": len(self.episodes),
                "mean_reward": float(np.mean([episode.rewards.sum() for episode in self.episodes])),
                "mean_env_reward": float(np.mean([episode.env_return for episode in self.episodes])),
            }
            | {name: float(np.mean([each.limits[name] for each in self.episodes])) for name in self.episodes[0].limits}
        )


def success_rate(known: Sequence[bool]) -> dict[str, Any]:
    """`success_rate`, `ci_low` and `ci_high` of the episodes whose success is `known`; None where there is none."""
    low, high = wilson_interval(sum(known), len(known)) if known else (None, None)
    rate = sum(known) / len(known) if known else None
    return {"success_rate": rate, "ci_low": low, "ci_high": high, "known": len(known)}


def evaluate(
    actor: Actor, collector: Collector, rewards: Rewards, episodes: int, *, tick: Callable[[], object] = lambda: None,
    watch: Callable[[Rollout, np.ndarray], object] = lambda rollout, reward: None,
) -> Evaluation:  # fmt: skip
    """Let a policy act as well as it can for a number of episodes.

    The start states are the same for one seed and number of worlds, whatever the policy.

    Args:
        actor: acts on the worlds' observations.
        collector: a fresh one, of worlds that are not those of training.
        rewards: fresh too; gives what the policy would learn from.
        episodes: at least 1; world i plays every E-th of them, so short ones are not favoured.
        tick: called after every episode.
        watch: called with every rollout and its rewards.
    """
    if episodes < 1:
        raise ValueError(f"evaluate: episodes must be at least 1; got {episodes}.")
    count = collector.worlds.num_envs
    shares = [len(part) for part in np.array_split(np.arange(episodes), count)]
    played: list[list[Ended]] = [[] for _ in shares]
    while any(len(done) < share for done, share in zip(played, shares, strict=True)):
        collected = collector.collect(actor, 1, explore=False)
        labels = rewards.label(collected)
        watch(collected.rollout, labels.reward)
        for ended in labels.ended:
            if len(played[ended.world]) < shares[ended.world]:
                played[ended.world].append(ended)
                tick()
    return Evaluation([episode for done in played for episode in done])


def film(
    actor: Actor, env: gymnasium.Env, perception: Perception | None, *, seed: int, scorer: Scorer | None = None
) -> tuple[Ended, list[np.ndarray]]:
    """One episode, with a picture of every moment, the last one included.

    World i of `evaluate` plays the same first episode under `seed + i`.

    Args:
        actor: acts as well as it can.
        env: one world; stays open.
        perception: what the policy and the scorer read; None: the world's own observation alone.
        seed: of the episode.
        scorer: gives the rewards; None takes the task's own.

    Returns:
        The episode, and its T + 1 pictures, (H, W, 3) uint8 RGB.
    """
    pictures, own, info, track = [], [], {}, Track()
    for moment in play(actor, env, perception, seed=seed, depth=scorer is not None and scorer.frames_read != "none"):
        pictures.append(env.render())
        info = moment.info
        if moment.action is not None:
            own.append(moment.reward)
        if scorer is not None:
            assert moment.row is not None
            keeps = scorer.frames_read == "all" or (scorer.frames_read == "first" and not track.rows)
            track.add(moment.row, moment.terminated, moment.frames if keeps else None)
            track.depth = moment.depth if track.depth is None else track.depth
    rewards = np.array(own, np.float32)
    if scorer is not None:
        assert perception is not None
        del track.terminated[0]  # of the reset
        rewards = scoring.label(scorer, [track], perception.layout)[0].rewards
    return Ended(0, rewards, float(np.sum(own)), told_success(info)), pictures


def save_videos(
    folder: Path,
    name: str,
    actor: Actor,
    env: gymnasium.Env,
    perception: Perception | None,
    *,
    seed: int,
    count: int,
    scorer: Scorer | None,
) -> None:
    """Film the first episodes of an evaluation into `videos/`, with their reward curves."""
    for i in range(count):
        episode, pictures = film(actor, env, perception, seed=seed + i, scorer=scorer)
        word = OUTCOME[episode.success]
        file = folder / "videos" / f"{name}_{i}_{word}.mp4"
        write_video(file, pictures, episode.rewards, title=f"{name} · {word}")
