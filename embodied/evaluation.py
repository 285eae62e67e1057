"""How good a policy is: success over episodes with its 95 % interval, rewards, and episodes to look at.

Shape letters: E worlds; V views; T actions of an episode; H, W image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from embodied import scoring
from embodied.envs.vector import WorldVecEnv
from embodied.envs.wrappers import ScoredEnv
from embodied.report import write_video
from embodied.scoring import Layout, Track
from policies.core import Policy
from rewards.core import Scorer
from rewards.metrics import wilson_interval

HELD_OUT = 1_000_000  # added to a run's seed for its periodic evaluations
FINAL = 2_000_000  # and for its last one, which chooses nothing


@dataclass
class Episode:
    """One finished episode.

    Attributes:
        success: at its last step; None where the world does not tell.
        env_reward: its return under the task's own reward.
        rewards: (T,) of the reward model; the task's own without one.
    """

    success: bool | None
    env_reward: float
    rewards: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """What a policy did in some episodes."""

    episodes: list[Episode]

    def summary(self) -> dict[str, Any]:
        """`success_rate` of the `known` episodes, whose world told it, with `ci_low` and `ci_high` (None where none
        did); `episodes`, `mean_reward`, `mean_env_reward` (returns)."""
        known = [episode.success for episode in self.episodes if episode.success is not None]
        low, high = wilson_interval(sum(known), len(known)) if known else (None, None)
        return {
            "success_rate": sum(known) / len(known) if known else None,
            "ci_low": low,
            "ci_high": high,
            "known": len(known),
            "episodes": len(self.episodes),
            "mean_reward": float(np.mean([episode.rewards.sum() for episode in self.episodes])),
            "mean_env_reward": float(np.mean([episode.env_reward for episode in self.episodes])),
        }


def evaluate(
    policy: Policy,
    venv: WorldVecEnv,
    episodes: int,
    *,
    seed: int,
    scorer: Scorer | None = None,
    tick: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Let a policy act deterministically for a number of episodes.

    The start states are the same for one seed and number of worlds, whatever the policy.

    Args:
        policy: acts on the worlds' observations.
        venv: the worlds, not those of training; rendering frames where there is a scorer.
        episodes: at least 1; world i plays every E-th of them, so short ones are not favoured.
        seed: world i starts from seed + i.
        scorer: gives the learned-from rewards; None takes the task's own.
        tick: called after every episode.
    """
    if episodes < 1:
        raise ValueError(f"evaluate: episodes must be at least 1; got {episodes}.")
    shares = [len(part) for part in np.array_split(np.arange(episodes), venv.num_envs)]
    venv.seed(seed)
    obs = venv.reset()
    layout = Layout(venv.views, tuple(sorted(venv.reset_infos[0].get("signals", {}))))
    reads = "none" if scorer is None else scorer.frames_read

    def rows(frames: np.ndarray, infos: Sequence[dict[str, Any]]) -> list[np.ndarray]:
        assert scorer is not None
        encoded = scoring.encode(scorer, frames.reshape(-1, *frames.shape[-3:]))
        return layout.rows(encoded, [info.get("signals", {}) for info in infos])

    def begin(worlds: np.ndarray) -> list[_Running]:
        if scorer is None:
            return [_Running() for _ in worlds]
        depth = venv.reset_depth
        return [
            _Running(
                [row],
                frames=[] if reads == "none" else [venv.reset_frames[e].copy()],
                depth=None if depth is None else depth[e].copy(),
            )
            for e, row in zip(
                worlds, rows(venv.reset_frames[worlds], [venv.reset_infos[e] for e in worlds]), strict=True
            )
        ]

    played: list[list[Episode]] = [[] for _ in shares]
    running = begin(np.arange(venv.num_envs))
    while any(len(done) < share for done, share in zip(played, shares, strict=True)):
        actions, _ = policy.predict(obs, deterministic=True)
        obs, _, dones, infos = venv.step(actions)
        new = rows(venv.frames, infos) if scorer is not None else []
        for e, (episode, info) in enumerate(zip(running, infos, strict=True)):
            episode.env_rewards.append(info["env_reward"])
            if scorer is not None:
                ended = bool(dones[e] and not info["TimeLimit.truncated"])
                episode.add(new[e], ended, venv.frames[e].copy() if reads == "all" else None)
        chosen = np.flatnonzero(dones)
        for e in chosen:
            if len(played[e]) < shares[e]:
                played[e].append(_finish(running[e], infos[e], scorer, layout))
                tick()
        if len(chosen):
            for e, episode in zip(chosen, begin(chosen), strict=True):
                running[e] = episode
    return Evaluation([episode for done in played for episode in done])


def film(
    policy: Policy, env: gymnasium.Env, *, seed: int, scorer: Scorer | None = None, cameras: Sequence[str] = ()
) -> tuple[Episode, list]:
    """One episode, with a picture of every moment, the last one included.

    World i of `evaluate` plays the same first episode under `seed + i`.

    Args:
        policy: acts deterministically.
        env: one world; stays open.
        seed: of the episode.
        scorer: see `evaluate`.
        cameras: see `WorldVecEnv`.

    Returns:
        The episode, and its T + 1 pictures, (H, W, 3) uint8 RGB.
    """
    if scorer is not None:
        env = ScoredEnv(env, scorer, cameras)
    obs, _ = env.reset(seed=seed)
    pictures, rewards, env_rewards, info, ended = [env.render()], [], [], {}, False
    while not ended:
        action, _ = policy.predict(obs, deterministic=True)
        obs, reward, terminated, truncated, info = env.step(action)
        pictures.append(env.render())
        rewards.append(float(reward))
        env_rewards.append(info.get("env_reward", float(reward)))
        ended = terminated or truncated
    success = bool(info["is_success"]) if "is_success" in info else None
    return Episode(success, sum(env_rewards), np.array(rewards, np.float32)), pictures


def save_videos(
    folder: Path,
    name: str,
    policy: Policy,
    env: gymnasium.Env,
    *,
    seed: int,
    count: int,
    scorer: Scorer | None,
    cameras: Sequence[str] = (),
) -> list[Path]:
    """Film the first episodes of an evaluation into `videos/`, with their reward curves; returns the files."""
    files = []
    for i in range(count):
        episode, pictures = film(policy, env, seed=seed + i, scorer=scorer, cameras=cameras)
        word = {True: "success", False: "failure", None: "episode"}[episode.success]
        files.append(folder / "videos" / f"{name}_{i}_{word}.mp4")
        write_video(files[-1], pictures, episode.rewards, title=f"{name} · {word}")
    return files


@dataclass
class _Running(Track):
    env_rewards: list[float] = field(default_factory=list)


def _finish(running: _Running, info: dict[str, Any], scorer: Scorer | None, layout: Layout) -> Episode:
    if scorer is None:
        rewards = np.array(running.env_rewards, np.float32)
    else:
        rewards = scoring.label(scorer, [running], layout)[0].rewards
    success = bool(info["is_success"]) if "is_success" in info else None
    return Episode(success, info["env_episode"][0], rewards)
