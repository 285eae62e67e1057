"""Behaviour cloning: the action, or the next few actions, that a demonstration shows for an observation.

Chunks of actions are Zhao et al.'s (ACT, arXiv 2304.13705, §4.1), by an MLP and squared errors, without their
transformer, their variational part and their averaging of overlapping chunks: a chunk's first `execute` are played.

Shape letters: E worlds, B batch, K actions of a chunk, A action.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from policies.chunks import forget_plans, imitation_error, nothing_planned, play
from policies.core import Actor, Batch, Memory, Obs, Pace, Rollout, Sampling, map_leaves
from policies.networks import (
    MLP,
    Standardise,
    action_size,
    adam,
    dormant_ratio,
    flat,
    flat_size,
)  # fmt: skip
from policies.saving import State, pack, unpack
from policies.settings import check, maker


@dataclass(frozen=True, kw_only=True)
class ImitationSettings:
    """What can be set.

    Attributes:
        learning_rate: Adam's.
        batch_size: windows an update.
        network: widths of the hidden layers.
        norm: whether with LayerNorm.
        standardise: observations by their mean and deviation.
        chunk: K, actions predicted together.
        execute: of them, how many are played before it looks again; at most `chunk`.
        noise: standard deviation of what is added in training.
        pretraining: updates before the first step.
        rollout_steps: steps of every world between rounds of updates.
        updates_per_step: updates for each transition.
    """

    learning_rate: float = 1e-3
    batch_size: int = 128
    network: tuple[int, ...] = (128, 128)
    norm: bool = False
    standardise: bool = True
    chunk: int = 1
    execute: int = 1
    noise: float = 0.0
    pretraining: int = 5000
    rollout_steps: int = 4
    updates_per_step: float = 0.1

    def __post_init__(self) -> None:
        check(
            self,
            counts=("batch_size", "rollout_steps"),
            positive=["learning_rate"],
            least_zero=("noise", "pretraining", "updates_per_step"),
        )
        if not 1 <= self.execute <= self.chunk:
            raise ValueError(f"imitation: execute must be from 1 to chunk ({self.chunk}); got {self.execute}.")


class Imitation:
    """The learner; see the module.

    Args:
        observation_space: vectors.
        action_space: a Box.
        seed: of weights and exploration.
        device: where the network lives.
        settings: see `ImitationSettings`.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        seed: int,
        device: str,
        settings: ImitationSettings,
    ) -> None:
        size, self.num_actions = flat_size(observation_space, "imitation"), action_size(action_space, "imitation")
        self.settings, self.device = settings, torch.device(device)
        self.pace = Pace(
            rollout_steps=settings.rollout_steps,
            updates_per_step=settings.updates_per_step,
            learning_starts=0,
            pretraining=settings.pretraining,
        )
        self.sampling: Sampling | None = Sampling(length=settings.chunk, batch_size=settings.batch_size, demo_share=1.0)
        self._acting = torch.Generator().manual_seed(seed + 1)
        build = torch.Generator().manual_seed(seed)
        outputs = settings.chunk * self.num_actions
        self.mlp = MLP(size, settings.network, outputs, generator=build, norm=settings.norm).to(self.device)
        self.norm = Standardise(size).to(self.device)
        self._adam = adam(self.mlp, settings.learning_rate)

    def begin(self, count: int) -> Memory:
        """The rest of each world's chunk, and how many of it are left."""
        return nothing_planned(count, self.settings.chunk, self.num_actions)

    @torch.no_grad()
    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        """(E, A) in [-1, 1]: the next of the chunk, or of a new one."""

        def plan(new: np.ndarray) -> np.ndarray:
            chunks = self._chunks(flat(map_leaves(lambda leaf: leaf[new], obs)).to(self.device))
            return chunks.unflatten(-1, (self.settings.chunk, self.num_actions)).cpu().numpy()

        action, memory = play(memory, first, self.settings.execute, plan)
        if explore and self.settings.noise:
            noise = torch.randn(action.shape, generator=self._acting).numpy()
            action = np.clip(action + np.float32(self.settings.noise) * noise, -1, 1)
        return action, memory

    def executed(self, memory: Memory, action: np.ndarray, intervened: np.ndarray, *, explore: bool) -> Memory:
        """Where a person acted there is a new chunk next."""
        return forget_plans(memory, intervened)

    def _chunks(self, x: Tensor) -> Tensor:
        """(B, K·A)."""
        return torch.tanh(self.mlp(self.norm(x)))

    def acting(self) -> Actor:
        """An actor with the weights of now, which stay; it draws from the same generator."""
        actor = copy.copy(self)
        actor.mlp, actor.norm = copy.deepcopy(self.mlp), copy.deepcopy(self.norm)
        return actor

    def observe(self, rollout: Rollout, reward: np.ndarray) -> None:
        """Nothing: what it does itself is not imitated."""

    def update(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """So many steps towards what is shown.

        Raises:
            ValueError: nothing in the batches is to be imitated.
        """
        errors, seen, out = [], torch.zeros((), device=self.device), {}
        for k in range(count):
            batch = next(batches).to(self.device)
            x = flat(map_leaves(lambda leaf: leaf[0], batch.obs))
            if self.settings.standardise:
                self.norm.add(x)
            error = imitation_error(self._chunks(x), batch)
            self._adam.zero_grad()
            error.backward()
            self._adam.step()
            errors.append(error.detach())
            seen += (batch.valid & batch.imitate).sum()
            if k == count - 1:
                out["dormant_actor"] = dormant_ratio(self.mlp.hidden(self.norm(x)))
        if count and not seen:
            raise ValueError("imitation: demonstrations must be given; got none that is to be imitated. Set demos=….")
        return out | ({"imitation_error": float(torch.stack(errors).mean())} if errors else {})

    @property
    def taught(self) -> bool:
        """Whether there was an update yet."""
        return bool(self._adam.state)

    @property
    def _parts(self) -> dict[str, Any]:
        return {"mlp": self.mlp, "norm": self.norm, "adam": self._adam, "acting": self._acting}

    def state(self) -> State:
        """Everything that continuing needs."""
        return pack(self._parts), {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        unpack("Imitation.load_state", self._parts, tensors)


imitation = maker(Imitation, ImitationSettings)
