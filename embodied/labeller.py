"""Rewards for a learner from a slow, batched reward model, written before any update reads them.

Frames are queued as worlds step and encoded in batches on threads of their own; at the end of a rollout the rewards
are added into the buffer's slots. Features stay beside the replay, so a new goal relabels it without encoding.

Shape letters: E worlds, V views, N frames, D feature width, S signals.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from embodied import scoring
from embodied.divergence import DivergenceWatch
from embodied.envs.vector import WorldVecEnv
from embodied.feature_memory import FeatureMemory
from embodied.scoring import Layout, Track
from rewards.combine import LagrangianConstraints
from rewards.core import Scorer

STATS_WINDOW = 1000  # potentials per head, and encoder calls, behind the logged statistics
EPISODES_WINDOW = 100  # ended episodes behind a firing rate, as many as SB3's mean return has
RELABEL_BATCH = 256  # episodes scored at once when relabelling


class Labeller(BaseCallback):
    """The callback that gives SB3's algorithms their rewards; the worlds return zeros, or the
    part of their own reward that is to be learned from too (`env_weight`).

    Off-policy: rewards go to the ring slots of the rollout, over the wrap too; n-step returns are summed at sampling
    time, so they see them. On-policy: rewards are *added*, which keeps the time-limit bootstrap SB3 put there, and
    advantages are computed again.

    Constraints (`LagrangianConstraints`) move after each rollout, a step for every episode that ended in it, by the sum
    of each head's potentials after its actions: so a rollout's rewards are of one μ, and a replay's each of their time.

    Logs `rollout/ep_rew_mean` (the reward learned from, through SB3), `reward/<head>_{mean,std}` (potentials),
    `reward/<head>_firing_rate` (of heads that say only 0 and 1: the share of an episode's steps with 1, mean of the
    last 100), `reward/lambda_<head>` (μ of a constrained one), `reward/latency_ms_{p50,p95}` (one encoder call) and
    `reward/divergence` (see `DivergenceWatch`).

    Args:
        scorer: frames to rewards.
        batch_size: frames per encoder call; the end of a rollout flushes what is left.
        encode_threads: encoder calls at once. On the CPU, one a core beats one call on all cores: they wait for
            nothing of each other while worlds step.
    """

    def __init__(self, scorer: Scorer, *, batch_size: int = 32, encode_threads: int = 1) -> None:
        super().__init__()
        self.scorer = scorer
        self.watch = DivergenceWatch()
        self.memory: FeatureMemory | None = None
        self._frames = _EncodingQueue(scorer, batch_size, encode_threads)
        self._steps: list[_Step] = []
        self._episodes: list[_Episode] | None = None
        self._layout = Layout()
        self._forget(scorer)

    @property
    def venv(self) -> WorldVecEnv:
        """The worlds, below whatever SB3 wrapped around them."""
        venv = self.training_env.unwrapped
        assert isinstance(venv, WorldVecEnv)
        return venv

    @property
    def _buffer(self) -> ReplayBuffer | RolloutBuffer:
        return getattr(self.model, "replay_buffer", None) or self.model.rollout_buffer  # pyright: ignore

    def _forget(self, scorer: Scorer) -> None:
        """Begin the statistics of a scorer's heads."""
        self._potentials = {name: deque(maxlen=STATS_WINDOW) for name in scorer.heads}
        self._firing = {name: deque(maxlen=EPISODES_WINDOW) for name in scorer.heads}
        self._returns: list[dict[str, float]] = []  # of the rollout's ended episodes, by head

    @property
    def _constraints(self) -> LagrangianConstraints | None:
        combine = self.scorer.combine
        return combine if isinstance(combine, LagrangianConstraints) else None

    # SB3's hooks ----------------------------------------------------------------------------------------

    def _on_training_start(self) -> None:
        if self.venv.frame_size is None:
            raise ValueError("Labeller: the worlds must render frames; got frame_size None. Set it to the encoder's.")
        if self._episodes is not None and not self.locals["reset_num_timesteps"]:
            self._layout = Layout(self.venv.views, self._layout.signals)
            return  # goes on in the middle of episodes
        self._layout = Layout(self.venv.views, tuple(sorted(self.venv.reset_infos[0].get("signals", {}))))
        self._frames.put(self.venv.reset_frames)
        start = self._start(np.arange(self.venv.num_envs))
        self._episodes = start.episodes(self._layout.rows(self._frames.collect(), start.signals))

    def _on_step(self) -> bool:
        dones, infos = self.locals["dones"], self.locals["infos"]
        self._frames.put(self.venv.frames)
        step = _Step(
            slot=self._buffer.pos,  # SB3 stores the transition there after this call
            dones=dones.copy(),
            truncated=np.array([info["TimeLimit.truncated"] for info in infos]),
            signals=[info.get("signals", {}) for info in infos],
            truths=[_truths(info) for info in infos],
            rewards=self.locals["rewards"].copy(),
            frames=self.venv.frames.copy() if self.scorer.frames_read == "all" else None,
        )
        if dones.any():
            self._frames.put(self.venv.reset_frames[dones])
            step.start = self._start(np.flatnonzero(dones))
        self._steps.append(step)
        return True

    def _start(self, worlds: np.ndarray) -> _Start:
        """What begins the episodes that these worlds are in; called before they step again."""
        signals = [self.venv.reset_infos[e].get("signals", {}) for e in worlds]
        if self.scorer.frames_read == "none":
            return _Start(signals)
        depth = self.venv.reset_depth
        return _Start(signals, self.venv.reset_frames[worlds], None if depth is None else depth[worlds])

    def _on_rollout_end(self) -> None:
        self._label()
        buffer = self._buffer
        if isinstance(buffer, RolloutBuffer):
            buffer.compute_returns_and_advantage(self.locals["values"], self.locals["dones"])
        for name, values in self._potentials.items():
            self.logger.record(f"reward/{_key(name)}_mean", float(np.mean(values)))
            self.logger.record(f"reward/{_key(name)}_std", float(np.std(values)))
            if self._firing[name] and set(values) <= {0.0, 1.0}:
                self.logger.record(f"reward/{_key(name)}_firing_rate", float(np.mean(self._firing[name])))
        for name, multiplier in (self._constraints.multipliers if self._constraints else {}).items():
            self.logger.record(f"reward/lambda_{_key(name)}", multiplier)
        for percent in (50, 95):
            latency = 1e3 * float(np.percentile(self._frames.seconds, percent))
            self.logger.record(f"reward/latency_ms_p{percent}", latency)

    def _on_training_end(self) -> None:
        assert not self._steps, "a rollout was left unlabelled"

    # Labelling ------------------------------------------------------------------------------------------

    def _label(self) -> None:
        """Give every queued step its reward; afterwards nothing in the buffer is unlabelled."""
        assert self._episodes is not None
        features, views, at = self._frames.collect(), len(self._layout.views), 0
        for step in self._steps:
            end = at + len(step.dones) * views
            rows, at = self._layout.rows(features[at:end], step.signals), end
            for e, (episode, new) in enumerate(zip(self._episodes, rows, strict=True)):
                ended = bool(step.dones[e] and not step.truncated[e])
                episode.add(new, ended, None if step.frames is None else step.frames[e])
                episode.slots.append(step.slot)
                episode.learned += float(step.rewards[e])
            if step.start is not None:
                chosen = np.flatnonzero(step.dones).tolist()
                self._score(chosen)
                end = at + len(chosen) * views
                starts, at = step.start.episodes(self._layout.rows(features[at:end], step.start.signals)), end
                for e, start in zip(chosen, starts, strict=True):
                    self._finish(self._episodes[e], step.truths[e])
                    self._episodes[e] = start
        assert at == len(features), "frames and steps must match"
        self._steps.clear()
        self._score(range(len(self._episodes)))
        for returns in self._returns:
            if self._constraints is not None:
                self._constraints.update(returns)
        self._returns.clear()

    def _score(self, worlds: Iterable[int]) -> None:
        """Write the rewards of the new steps of these worlds' episodes into the buffer."""
        assert self._episodes is not None
        worlds = [e for e in worlds if self._episodes[e].slots]
        episodes = [self._episodes[e] for e in worlds]
        labels = scoring.label(self.scorer, episodes, self._layout)
        buffer = self._buffer
        for e, episode, (rewards, potentials) in zip(worlds, episodes, labels, strict=True):
            new = len(episode.slots)
            buffer.rewards[episode.slots, e] += rewards[-new:]
            episode.learned += float(rewards[-new:].sum(dtype=np.float64))
            episode.potentials = potentials
            for name, values in potentials.items():
                self._potentials[name].extend(values[-new:].tolist())
            if isinstance(buffer, ReplayBuffer):
                self._remember(buffer, e, episode)
            episode.slots.clear()

    def _remember(self, buffer: ReplayBuffer, world: int, episode: _Episode) -> None:
        if self.memory is None:
            self.memory = FeatureMemory(buffer.buffer_size, buffer.n_envs, episode.rows[0].shape[0])
        first = len(episode.rows) - len(episode.slots)
        for k, slot in enumerate(episode.slots, start=first):
            self.memory.put(slot, world, episode.rows[k], start=episode.rows[0] if k == 1 else None)

    def _finish(self, episode: _Episode, truths: dict[str, float]) -> None:
        """Log an ended episode as SB3's Monitor would, with the reward learned from, and keep what its heads said."""
        assert self.model.ep_info_buffer is not None
        self.model.ep_info_buffer.append({"r": episode.learned, "l": len(episode.rows) - 1, "t": time.time()})
        self.logger.record("reward/divergence", self.watch.add(episode.learned, truths, self.num_timesteps))
        after = {name: values[1:].astype(np.float64) for name, values in episode.potentials.items()}
        self._returns.append({name: float(values.sum()) for name, values in after.items()})
        for name, values in after.items():
            self._firing[name].append(float((values > 0).mean()))

    def relabel(self, scorer: Scorer) -> None:
        """Take another goal: rewrite every stored reward from the kept features, encoding nothing.

        The rewards agree with fresh ones to the features' half precision. Call between rollouts, on an off-policy
        learner; the new scorer must have the same encoder.

        Raises:
            ValueError: there is no replay, the worlds have stepped since the last label, the worlds' reward is part of
                it, or the new scorer reads images, which the replay does not keep.
        """
        buffer = self._buffer
        if self.memory is None or not isinstance(buffer, ReplayBuffer) or self._steps:
            raise ValueError("Labeller.relabel: there must be a labelled replay buffer. Call it between rollouts.")
        if self.venv.env_weight:
            raise ValueError(
                f"Labeller.relabel: env_weight must be 0; got {self.venv.env_weight}. The replay keeps only the sum of "
                "the worlds' reward and the scorer's. Train anew."
            )
        if scorer.frames_read != "none":
            raise ValueError(
                "Labeller.relabel: the scorer's heads must read features alone; one reads images, which the replay "
                "does not keep. Train anew with it."
            )
        self.scorer = self._frames.scorer = scorer
        self._forget(scorer)
        terminated = (buffer.dones * (1 - buffer.timeouts)).astype(bool)
        stretches = list(self.memory.stretches(buffer.pos, buffer.full))
        for first in range(0, len(stretches), RELABEL_BATCH):
            part = stretches[first : first + RELABEL_BATCH]
            episodes = [Track(list(rows), terminated[slots, e].tolist()) for slots, e, rows in part]
            labels = scoring.label(scorer, episodes, self._layout)
            for (slots, e, _), (rewards, potentials) in zip(part, labels, strict=True):
                buffer.rewards[slots, e] = rewards
                for name, values in potentials.items():
                    self._potentials[name].extend(values[1:].tolist())

    def close(self) -> None:
        """End the encoding threads."""
        self._frames.close()

    # Resume ---------------------------------------------------------------------------------------------

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values, between rollouts; the feature memory is saved apart."""
        assert self._episodes is not None
        assert not self._steps, "a checkpoint falls between rollouts"
        arrays = {f"potentials/{name}": np.array(values) for name, values in self._potentials.items()}
        for e, episode in enumerate(self._episodes):
            arrays[f"rows/{e}"] = np.stack(episode.rows)
            arrays[f"terminated/{e}"] = np.array(episode.terminated, dtype=bool)
            if episode.frames:
                arrays[f"frames/{e}"] = np.stack(episode.frames)
            if episode.depth is not None:
                arrays[f"depth/{e}"] = episode.depth
        learned = [episode.learned for episode in self._episodes]
        values = {"views": self._layout.views, "names": self._layout.signals, "watch": self.watch.get_state()}
        values |= {"learned": learned, "firing": {name: list(rates) for name, rates in self._firing.items()}}
        return arrays, values | {"multipliers": self._constraints.state_dict() if self._constraints else {}}

    def set_state(self, arrays: dict[str, np.ndarray], values: dict[str, Any], *, episodes: bool) -> None:
        """Undo of `get_state`, before training starts; without `episodes`, the worlds begin new ones."""
        views = values.get("views", ("main",))  # old checkpoints have one view, without a name
        self._layout = Layout(tuple(views), tuple(values["names"]))
        self.watch.set_state(values["watch"])
        for name in self._potentials:
            self._potentials[name].extend(arrays[f"potentials/{name}"].tolist())
            self._firing[name].extend(values.get("firing", {}).get(name, ()))
        restore_constraints(self.scorer, values)
        if not episodes:
            return
        self._episodes = [
            _Episode(
                list(arrays[f"rows/{e}"]),
                arrays[f"terminated/{e}"].tolist(),
                list(arrays.get(f"frames/{e}", ())),
                arrays.get(f"depth/{e}"),
                learned=learned,
            )
            for e, learned in enumerate(values["learned"])
        ]


@dataclass
class _Episode(Track):
    """One world's running episode, the slots that still want a reward, the reward so far, what heads said last."""

    slots: list[int] = field(default_factory=list)
    learned: float = 0.0
    potentials: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class _Start:
    """What begins some episodes, beside their encoded frames: images and depth only where a head reads images."""

    signals: list[dict[str, float]]
    frames: np.ndarray | None = None
    depth: np.ndarray | None = None

    def episodes(self, rows: list[np.ndarray]) -> list[_Episode]:
        return [
            _Episode(
                [row],
                frames=[] if self.frames is None else [self.frames[k]],
                depth=None if self.depth is None else self.depth[k],
            )
            for k, row in enumerate(rows)
        ]


@dataclass
class _Step:
    """What one vector step told, beside its encoded frames."""

    slot: int
    dones: np.ndarray
    truncated: np.ndarray
    signals: list[dict[str, float]]
    truths: list[dict[str, float]]
    rewards: np.ndarray  # the worlds' own, where they give any
    frames: np.ndarray | None = None
    start: _Start | None = None


class _EncodingQueue:
    """Frames in, features out in the same order, encoded in batches on background threads."""

    def __init__(self, scorer: Scorer, batch_size: int, threads: int) -> None:
        for name, value in {"batch_size": batch_size, "encode_threads": threads}.items():
            if value < 1:
                raise ValueError(f"Labeller: {name} must be at least 1; got {value}.")
        self.scorer, self._batch_size = scorer, batch_size
        self.seconds: deque[float] = deque(maxlen=STATS_WINDOW)
        share = max(1, torch.get_num_threads() // threads)  # torch counts threads for each caller apart
        self._pool = ThreadPoolExecutor(threads, "encoder", torch.set_num_threads, (share,))
        self._waiting: list[np.ndarray] = []
        self._results: list[Future[np.ndarray]] = []

    def put(self, frames: np.ndarray) -> None:
        """(E, V, H, W, 3) uint8; copied, as the worlds will draw over it."""
        self._waiting.append(frames.reshape(-1, *frames.shape[-3:]).copy())
        if sum(map(len, self._waiting)) >= self._batch_size:
            frames = np.concatenate(self._waiting)
            whole = len(frames) // self._batch_size * self._batch_size
            for i in range(0, whole, self._batch_size):
                self._results.append(self._pool.submit(self._encode, frames[i : i + self._batch_size]))
            self._waiting = [frames[whole:]]

    def collect(self) -> np.ndarray:
        """(N, D) float32 of every frame put since the last call, view by view within a world."""
        rest = np.concatenate(self._waiting)
        if len(rest):
            self._results.append(self._pool.submit(self._encode, rest))
        results, self._results, self._waiting = self._results, [], []
        return np.concatenate([result.result() for result in results])

    def _encode(self, frames: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        features = scoring.encode(self.scorer, frames)
        self.seconds.append(time.perf_counter() - start)
        return features

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def restore_constraints(scorer: Scorer, values: Mapping[str, Any]) -> None:
    """Give a scorer's constraints the multipliers of a labeller's state; what has none is left as it is."""
    if isinstance(scorer.combine, LagrangianConstraints) and values.get("multipliers"):
        scorer.combine.load_state_dict(values["multipliers"])


def _key(name: str) -> str:
    """A head's name in the log: a goal's text may be one, and a comma would break progress.csv."""
    return re.sub(r"[^\w.-]+", "-", name)


def _truths(info: dict[str, Any]) -> dict[str, float]:
    """What the world itself says of an ended episode; for logs and warnings only."""
    if "env_episode" not in info:
        return {}
    truths = {"env return": float(info["env_episode"][0])}
    if "is_success" in info:
        truths["success"] = float(info["is_success"])
    return truths
