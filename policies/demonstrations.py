"""Demonstrations beside stable-baselines3's SAC: half of every batch, and a step of imitation; nothing is overridden.

Half and half is RLPD's symmetric sampling (Ball et al., arXiv 2302.02948, §4.1); the rest of RLPD (layer norm, ten
critics, many updates a step) is not here.

Shape letters: N transitions, S observation, A action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float32
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """What was demonstrated.

    Attributes:
        observations, next_observations: (N, S) float32.
        actions: (N, A) float32, scaled to [-1, 1].
        rewards: (N,) float32.
        terminated: (N,) bool, whether the task ended there.
        good: (N,) bool, whether the action is one to imitate.
    """

    observations: Float32[np.ndarray, "N S"]
    next_observations: Float32[np.ndarray, "N S"]
    actions: Float32[np.ndarray, "N A"]
    rewards: Float32[np.ndarray, " N"]
    terminated: Bool[np.ndarray, " N"]
    good: Bool[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.actions)


class SymmetricReplay(ReplayBuffer):
    """SB3's replay of what the learner did itself; half of every sample comes from demonstrations.

    Before anything was done, all of it does. The demonstrations are never overwritten.

    Args:
        buffer_size: transitions kept of the learner's own.
        observation_space: of flat observations.
        action_space: a Box.
        device: where samples go.
        demos: at least one transition.

    Raises:
        ValueError: no demonstrations.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str,
        *,
        demos: Transitions,
    ) -> None:
        super().__init__(buffer_size, observation_space, action_space, device)
        if not len(demos):
            raise ValueError("SymmetricReplay: demos must hold at least one transition; got none.")
        self.demos = demos

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """(batch_size) transitions, `batch_size // 2` of them the learner's own."""
        own = batch_size // 2 if self.size() else 0
        shown = self._shown(np.random.randint(len(self.demos), size=batch_size - own))
        if not own:
            return shown
        parts = zip(super().sample(own, env), shown, strict=True)
        return ReplayBufferSamples(*(None if a is None else torch.cat([a, b]) for a, b in parts))  # pyright: ignore

    def _shown(self, rows: np.ndarray) -> ReplayBufferSamples:
        demos = self.demos
        columns: list[Any] = [demos.observations, demos.actions, demos.next_observations]
        columns += [demos.terminated.astype(np.float32)[:, None], demos.rewards[:, None]]
        return ReplayBufferSamples(*(self.to_torch(column[rows]) for column in columns))


class Imitation:
    """Steps of the policy's mean towards demonstrated actions: RoboFuME's BC term, as a step of its own.

    Args:
        model: SB3's SAC, whose actor's optimizer takes the steps.
        demos: of which the good are imitated.
        weight: of the mean squared error, > 0; 0: `step` does nothing.
        batch_size: transitions a step.
    """

    def __init__(self, model: SAC, demos: Transitions, *, weight: float, batch_size: int) -> None:
        self._model, self._weight, self._batch_size = model, weight, batch_size
        self._observations = torch.from_numpy(demos.observations[demos.good]).to(model.device)
        self._actions = torch.from_numpy(demos.actions[demos.good]).to(model.device)

    def step(self) -> float:
        """One gradient step; returns the error, 0 where there is nothing to imitate."""
        if not self._weight or not len(self._actions):
            return 0.0
        rows = torch.from_numpy(np.random.randint(len(self._actions), size=self._batch_size)).to(self._model.device)
        actor = self._model.actor
        actor.set_training_mode(True)
        error = (actor(self._observations[rows], deterministic=True) - self._actions[rows]).square().mean()
        actor.optimizer.zero_grad()
        (self._weight * error).backward()
        actor.optimizer.step()
        return float(error.detach())


def narrow(model: SAC, log_std: float = -2.0) -> None:
    """Start with actions near the mean (σ = e^log_std before squashing): imitation teaches the mean, not the width."""
    with torch.no_grad():
        model.actor.log_std.weight.mul_(0.1)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        model.actor.log_std.bias.fill_(log_std)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
