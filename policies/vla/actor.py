"""A chunk policy in many worlds: it looks when its queue is empty, and executes the first so many actions of a chunk.

Shape letters: E worlds, H actions of a chunk, A action, S own readings; H, W image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from policies.vla.core import Spec
from policies.vla.embedded import Observation

See = Callable[[str, np.ndarray], Tensor]  # camera, (n, H, W, 3) uint8 -> (n, C, h, w), as the policy reads maps
Say = Callable[[Sequence[str]], Tensor]  # sentences -> (n, D)


@runtime_checkable
class Deciding(Protocol):
    """What gives chunks: `ChunkPolicy`, or one that chooses among several of them."""

    spec: Spec

    def predict_chunk(self, obs: Observation, random: torch.Generator | None = None) -> Tensor: ...


@dataclass
class Memory:
    """Actions that are still to come.

    Attributes:
        queue: (E, H, A) in [-1, 1].
        at: (E,) of the next one; the number executed where the queue is empty.
        chunks: how many were asked for.
    """

    queue: np.ndarray
    at: np.ndarray
    chunks: int = 0


class ChunkActor:
    """Observations in, actions in [-1, 1] out.

    An observation is a mapping with `images`, camera -> (E, H, W, 3) uint8, or a function from world numbers to that,
    so that only worlds that need a chunk are rendered; `state` (E, S) and `instruction`, E sentences.

    Args:
        policy: what acts.
        see: pictures to maps, by camera.
        say: sentences to vectors.
        low, high: (A,) of the worlds' actions.
        execute: how many actions of a chunk are executed before the next look, 1 to H.
        noise: standard deviation of what `explore` adds to actions in [-1, 1], held for a chunk.
        seed: of that, and of heads that start from noise.

    Raises:
        ValueError: execute beyond the chunk.
    """

    def __init__(
        self, policy: Deciding, see: See, say: Say, *, low: np.ndarray, high: np.ndarray, execute: int,
        noise: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        if not 1 <= execute <= policy.spec.horizon:
            raise ValueError(f"ChunkActor: execute must be from 1 to {policy.spec.horizon}; got {execute}.")
        self.policy, self._see, self._say, self.execute = policy, see, say, execute
        self._low, self._high, self._noise = low.astype(np.float64), high.astype(np.float64), noise
        self._random = np.random.default_rng(seed)
        self._drawn = torch.Generator().manual_seed(seed)

    def begin(self, count: int) -> Memory:
        """A memory for E worlds that know nothing yet."""
        shape = (count, self.policy.spec.horizon, len(self.policy.spec.actions))
        return Memory(np.zeros(shape, np.float32), np.full(count, self.execute))

    def act(
        self, obs: Mapping[str, Any], memory: Memory, first: np.ndarray, *, explore: bool = False
    ) -> tuple[np.ndarray, Memory]:
        """Actions (E, A) in [-1, 1], and the memory for the next moment.

        Args:
            obs: of all worlds.
            memory: of the moment before; is not changed.
            first: (E,) bool, worlds whose episode has just begun: what was planned there is forgotten.
            explore: whether to add noise.
        """
        queue, at, chunks = memory.queue.copy(), np.where(first, self.execute, memory.at), memory.chunks
        worlds = np.flatnonzero(at >= self.execute)
        if len(worlds):
            chunk = self.policy.predict_chunk(self.look(obs, worlds), self._drawn if explore else None)
            queue[worlds], at[worlds] = self.scaled(chunk, explore), 0
            chunks += len(worlds)
        actions = queue[np.arange(len(queue)), at]
        return actions, Memory(queue, at + 1, chunks)

    def look(self, obs: Mapping[str, Any], worlds: np.ndarray) -> Observation:
        """What the policy is told of some worlds."""
        images: Any = obs["images"]
        shown: Any = images(worlds) if callable(images) else {name: each[worlds] for name, each in images.items()}
        spec, count = self.policy.spec, len(worlds)
        blank = {name: torch.zeros(count, channels, 1, 1) for name, channels in spec.cameras.items()}
        return Observation(
            blank | {name: self._see(name, shown[name]) for name in spec.cameras if name in shown},
            {name: torch.full((count,), name in shown) for name in spec.cameras},
            self._say([obs["instruction"][e] for e in worlds]),
            torch.from_numpy(np.asarray(obs["state"], np.float32)[worlds]),
        )

    def scaled(self, chunk: Tensor, explore: bool = False) -> np.ndarray:
        """Chunks in the robot's units (n, H, A) as actions in [-1, 1], with noise where it explores."""
        scaled = 2 * (chunk.double().numpy() - self._low) / (self._high - self._low) - 1
        if explore and self._noise:
            scaled += self._noise * self._random.normal(size=(len(scaled), 1, scaled.shape[-1]))
        return np.clip(scaled, -1, 1).astype(np.float32)
