"""Batches from several memories, and several steps as one.

Shape letters: T steps, B windows; `…` the shape of one observation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from policies.core import Batch, Sampling, map_leaves


@runtime_checkable
class BatchSource(Protocol):
    """What batches come from; `policies.replay.Replay` is one.

    Attributes:
        total: transitions ever added.
    """

    total: int

    def __len__(self) -> int: ...
    def sample(self, sampling: Sampling) -> Batch: ...


class Mix:
    """Batches of a learner's own steps, of demonstrations and of what an earlier run did.

    Args:
        own: what the learner did.
        demos: what was shown; None or empty: no window comes from there.
        past: what an earlier run did, half of the windows that are not from demonstrations, and all of them where
            there is nothing of its own yet; None: no window comes from there.
    """

    def __init__(self, own: BatchSource, demos: BatchSource | None = None, past: BatchSource | None = None) -> None:
        self.own, self.demos, self.past = own, demos, past

    def share(self, sampling: Sampling) -> float:
        """Of a batch, from demonstrations."""
        if self.demos is None or not len(self.demos):
            return 0.0
        if not len(self.own) and self.past is None:
            return 1.0
        first, last = sampling.demo_share, sampling.demo_share_last
        done = min(self.own.total / max(sampling.demo_share_over, 1), 1.0)
        return first if last is None else first + (last - first) * done

    def batches(self, sampling: Sampling) -> Iterator[Batch]:
        """Without end; within a batch, the learner's own windows come first."""
        while True:
            shown = round(sampling.batch_size * self.share(sampling))
            rest = sampling.batch_size - shown
            earlier = 0 if self.past is None else rest // 2 if len(self.own) else rest
            parts = []
            for replay, count in ((self.own, rest - earlier), (self.past, earlier), (self.demos, shown)):
                if count and replay is not None:
                    parts.append(replay.sample(replace(sampling, batch_size=count)))
            yield reduce(_joined, parts)


class NStep(NamedTuple):
    """A step of up to n rewards.

    Attributes:
        reward: (B,) Σ_{k<m} γ^k r_k, over the m ≤ n steps that the window has.
        discount: (B,) γ^m of what follows; 0 where the task ended there. Truncation keeps it.
        next_obs: (B, …) after those steps.
    """

    reward: Float[Tensor, " B"]
    discount: Float[Tensor, " B"]
    next_obs: Any


def n_step(batch: Batch, gamma: float, n: int) -> NStep:
    """The first up to n steps of each window as one.

    Args:
        batch: windows of n steps or more.
        gamma: γ, in [0, 1].
        n: steps summed before bootstrapping.

    Raises:
        ValueError: the windows are shorter than n.
    """
    if not 1 <= n <= len(batch.reward):
        raise ValueError(f"n_step: n must be from 1 to the windows' length ({len(batch.reward)}); got {n}.")
    powers = gamma ** torch.arange(n + 1, dtype=torch.float32, device=batch.reward.device)
    reward = (powers[:-1, None] * batch.reward[:n]).sum(0)  # padding holds zeros
    count = batch.valid[:n].sum(0)
    discount = powers[count] * ~batch.terminated[:n].any(0)
    return NStep(reward, discount, map_leaves(lambda leaf: leaf[n], batch.obs))  # padding repeats the last


def _joined(one: Batch, other: Batch) -> Batch:
    parts: list[Any] = [
        None if a is None else map_leaves(lambda x, y: torch.cat([x, y], 1), a, b)
        for a, b in zip(one, other, strict=True)
    ]
    return Batch(*parts)
