"""A chunk policy in many worlds: it looks when its queue is empty, and executes the first so many actions of a chunk.

Shape letters: E worlds, H actions of a chunk, A action, S own readings; H, W image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from policies.vla.core import ChunkPolicy, Spec
from policies.vla.embedded import ChunkObservation
from policies.vla.execute import Ensemble, GoingOn

See = Callable[[str, np.ndarray], Tensor]  # camera, (n, H, W, 3) uint8 -> (n, C, h, w), as the policy reads maps
Say = Callable[[Sequence[str]], Tensor]  # sentences -> (n, D)


@runtime_checkable
class Deciding(Protocol):
    """What gives chunks: `ChunkPolicy`, or one that chooses among several of them."""

    spec: Spec

    def predict_chunk(self, obs: ChunkObservation, random: torch.Generator | None = None) -> Tensor: ...


@dataclass
class ChunkMemory:
    """Actions that are still to come.

    Attributes:
        queue: (E, H, A) in [-1, 1].
        at: (E,) of the next one; the number executed where the queue is empty.
        chunks: how many were asked for.
        coming: (E, H, A), chunks that are being computed.
        wait: (E,) steps until they are there; -1: none is.
        ensemble: what all chunks so far say, where they are averaged.
    """

    queue: np.ndarray
    at: np.ndarray
    coming: np.ndarray
    wait: np.ndarray
    chunks: int = 0
    ensemble: Ensemble | None = None


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
        ensemble: rate of `Ensemble`: a chunk is asked for at every step, and all that speak of it are averaged; None:
            the newest chunk is followed.
        delay: steps that a chunk takes to come, while the one before it is followed; but an episode's first, for which
            the robot waits.
        go_on: whether a chunk that comes late goes on from the one that is followed meanwhile (`GoingOn`).

    Raises:
        ValueError: execute beyond the chunk, a delay beyond execute or the chunk's rest, or settings that exclude each
            other.
    """

    def __init__(
        self, policy: Deciding, see: See, say: Say, *, low: np.ndarray, high: np.ndarray, execute: int,
        noise: float = 0.0, seed: int = 0, ensemble: float | None = None, delay: int = 0, go_on: bool = False,
    ) -> None:  # fmt: skip
        horizon = policy.spec.horizon
        if not 1 <= execute <= horizon:
            raise ValueError(f"ChunkActor: execute must be from 1 to {horizon}; got {execute}.")
        if not 0 <= delay <= min(execute, horizon - execute):
            most = min(execute, horizon - execute)
            raise ValueError(f"ChunkActor: delay must be from 0 to {most}, so that actions are left; got {delay}.")
        if ensemble is not None and (delay or go_on or not ensemble >= 0):
            raise ValueError("ChunkActor: ensemble must be 0 or more, and goes with no delay and no go_on.")
        if go_on and not (isinstance(policy, ChunkPolicy) and policy.spec.head == "flow"):
            raise ValueError(f"ChunkActor: go_on needs a policy with head=flow; got {policy.spec.head}.")
        self.policy, self._see, self._say, self.execute = policy, see, say, execute
        self._low, self._high, self._noise = low.astype(np.float64), high.astype(np.float64), noise
        self._ensemble, self._delay, self._go_on = ensemble, delay, go_on
        self._random = np.random.default_rng(seed)
        self._drawn = torch.Generator().manual_seed(seed)

    def begin(self, count: int) -> ChunkMemory:
        """A memory for E worlds that know nothing yet."""
        horizon, actions = self.policy.spec.horizon, len(self.policy.spec.actions)
        queue = np.zeros((count, horizon, actions), np.float32)
        ensemble = None if self._ensemble is None else Ensemble.begun(count, horizon, actions, self._ensemble)
        return ChunkMemory(queue, np.full(count, self.execute), queue, np.full(count, -1), 0, ensemble)

    def act(
        self, obs: Mapping[str, Any], memory: ChunkMemory, first: np.ndarray, *, explore: bool = False
    ) -> tuple[np.ndarray, ChunkMemory]:
        """Actions (E, A) in [-1, 1], and the memory for the next moment.

        Args:
            obs: of all worlds.
            memory: of the moment before; is not changed.
            first: (E,) bool, worlds whose episode has just begun: what was planned there is forgotten.
            explore: whether to add noise.
        """
        if memory.ensemble is not None:
            chunks = self._chunk(obs, np.arange(len(first)), explore, None)
            now, ensemble = memory.ensemble.add(chunks.astype(np.float64), np.asarray(first, bool))
            return now.astype(np.float32), replace(memory, chunks=memory.chunks + len(first), ensemble=ensemble)
        queue, coming = memory.queue.copy(), memory.coming.copy()
        at, wait = memory.at.copy(), np.where(first, -1, memory.wait)
        begun, after = np.flatnonzero(first), np.flatnonzero(~first & (at >= self.execute) & (wait < 0))
        if len(begun):
            queue[begun], at[begun] = self._chunk(obs, begun, explore, None), 0
        if len(after):
            coming[after] = self._chunk(obs, after, explore, (queue[after], at[after]))
            wait[after] = self._delay
        there = wait == 0
        queue[there], at[there], wait[there] = coming[there], self._delay, -1
        actions = queue[np.arange(len(queue)), at]
        chunks = memory.chunks + len(begun) + len(after)
        return actions, ChunkMemory(queue, at + 1, coming, np.where(wait > 0, wait - 1, wait), chunks)

    def _chunk(
        self, obs: Mapping[str, Any], worlds: np.ndarray, explore: bool, before: tuple[np.ndarray, np.ndarray] | None
    ) -> np.ndarray:
        """Chunks (n, H, A) in [-1, 1] of some worlds, that go on from those `before`, (n, H, A) at (n,)."""
        looked, random = self.look(obs, worlds), self._drawn if explore else None
        if before is None or not self._go_on:
            return self.scaled(self.policy.predict_chunk(looked, random), explore)
        queue, at = before[0], int(before[1][0])  # all are asked for at the same place of theirs
        rest = np.pad(queue[:, at:], ((0, 0), (0, at), (0, 0)))
        robot = torch.from_numpy((rest.astype(np.float64) + 1) / 2 * (self._high - self._low) + self._low).float()
        assert isinstance(self.policy, ChunkPolicy), "the constructor sees to it"
        chunk = self.policy.predict_chunk(looked, random, GoingOn(robot, queue.shape[1] - at, self._delay))
        return self.scaled(chunk, explore)

    def look(self, obs: Mapping[str, Any], worlds: np.ndarray) -> ChunkObservation:
        """What the policy is told of some worlds."""
        images: Any = obs["images"]
        shown: Any = images(worlds) if callable(images) else {name: each[worlds] for name, each in images.items()}
        spec, count = self.policy.spec, len(worlds)
        blank = {name: torch.zeros(count, channels, 1, 1) for name, channels in spec.cameras.items()}
        return ChunkObservation(
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
