"""Actions in chunks: K of consecutive steps, decided together and played one after the other.

Shape letters: E worlds, N of them, T steps, B windows, K actions of a chunk, A action.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from policies.core import Batch, Memory


def nothing_planned(count: int, chunk: int, num_actions: int) -> Memory:
    """The memory of `play` before the first step: each world's chunk, and how many of it are left.

    Args:
        count: E.
        chunk: K.
        num_actions: A.
    """
    return {"chunk": np.zeros((count, chunk, num_actions), np.float32), "left": np.zeros(count, np.int64)}


def play(
    memory: Memory, first: Bool[np.ndarray, " E"], execute: int, plan: Callable[[np.ndarray], np.ndarray]
) -> tuple[Float32[np.ndarray, "E A"], Memory]:
    """The next action of each world's chunk.

    Args:
        memory: of this function, or `nothing_planned`; not changed.
        first: worlds whose episode begins: what was planned for them counts no more.
        execute: actions of a chunk that are played before there is a new one, from 1 to K.
        plan: from (E,) bool, the N worlds that need a new chunk, to (N, K, A) float32; asked only where N > 0.
    """
    chunk, left = memory["chunk"].copy(), memory["left"].copy()
    new = first | (left == 0)
    if new.any():
        chunk[new], left[new] = plan(new), execute
    return chunk[np.arange(len(left)), execute - left], {"chunk": chunk, "left": left - 1}


def forget_plans(memory: Memory, worlds: Bool[np.ndarray, " E"]) -> Memory:
    """The memory of `play` after someone else acted in some worlds: the rest of their chunks counts no more.

    Args:
        memory: of `play`, and what else there is; not changed.
        worlds: (E,) in which.
    """
    return memory | {"left": np.where(worlds, 0, memory["left"])}


def chunks_of(batch: Batch, chunk: int, generator: torch.Generator) -> tuple[Float[Tensor, "B _"], Bool[Tensor, " B"]]:
    """What was done in the first K steps of each window, (B, K·A), and (B,) whether that says what a chunk is worth.

    It does where all K steps were done, and where the task ended within them: then any others would have earned the
    same, so they are drawn, uniform in [-1, 1]. Where the episode was cut within them, nobody knows.

    Args:
        batch: windows of K steps or more.
        chunk: K.
        generator: of what fills up a chunk that an episode's end cuts.
    """
    valid, action = batch.valid[:chunk], batch.action[:chunk]
    if chunk > 1:
        drawn = torch.rand(action.shape, generator=generator, device=action.device) * 2 - 1
        action = torch.where(valid[..., None], action, drawn)
    return action.transpose(0, 1).flatten(1), valid.all(0) | batch.terminated[:chunk].any(0)


def imitation_error(chunks: Float[Tensor, "B _"], batch: Batch) -> Float[Tensor, ""]:
    """Mean squared error of the actions that are to be imitated, padding left out; 0 where there are none.

    Args:
        chunks: (B, K·A), K at most the windows' length.
        batch: of which the first K steps count.
    """
    chunk = chunks.shape[-1] // batch.action.shape[-1]
    shown = (batch.valid & batch.imitate)[:chunk].float()
    square = (chunks.unflatten(-1, (chunk, -1)).transpose(0, 1) - batch.action[:chunk]).square().mean(-1)
    return (square * shown).sum() / shown.sum().clamp(min=1)
