"""Imitation of chunks, each row with a weight: the one loss that demonstrations, labels and own successes share.

Shape letters: N rows, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from policies.vla.core import ChunkBatch, ChunkPolicy

Rows = Callable[[Int64[np.ndarray, " B"]], ChunkBatch]
Term = Callable[[ChunkBatch, torch.Generator], Tensor]


class ChunkImitation:
    """Gradient steps on weighted rows, with a cosine schedule and a moving average of the weights.

    A row is drawn with a chance that is proportional to its weight, so that every batch is of what counts. Where it
    stands depends on the seed and the number of steps alone: after `load_state` it goes on as if never stopped.

    Args:
        policy: learns in place; `average` holds the moving average, which is what acts.
        weights: (N,) ≥ 0, of the rows.
        rows: gives the batch of some row numbers.
        steps: of the whole schedule.
        batch_size: B.
        learning_rate: its highest, reached after `warmup` steps or a tenth of all; it ends at a hundredth.
        weight_decay: of AdamW.
        decay: of the moving average.
        seed: of batches and noise.
        also: a term that is added to the loss of a batch; None: imitation alone.

    Raises:
        ValueError: no row with a weight, or a weight that is negative or not finite.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        weights: Float[np.ndarray, " N"],
        rows: Rows,
        *,
        steps: int,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-3,
        warmup: int = 100,
        decay: float = 0.995,
        seed: int = 0,
        also: Term | None = None,
    ) -> None:
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("ChunkImitation: weights must be finite and 0 or more.")
        if not weights.sum() > 0:
            raise ValueError("ChunkImitation: weights must leave something to imitate; all of them are 0.")
        self.policy, self._rows, self.steps, self.batch_size = policy, rows, steps, batch_size
        self._chosen = np.flatnonzero(weights)
        self._chances = np.cumsum(weights[self._chosen]) / weights.sum()
        self._rate, self._warmup, self._decay = learning_rate, max(min(warmup, steps // 10), 1), decay
        self._learned = list(policy.learned().values())
        self._optimizer = torch.optim.AdamW(self._learned, lr=learning_rate, weight_decay=weight_decay)
        self._seed, self._also = seed, also
        self.done = 0
        self.average = {name: value.detach().clone() for name, value in policy.learned().items()}

    def step(self) -> float:
        """One update; returns its loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        draw = np.random.default_rng((self._seed, self.done))
        found = np.searchsorted(self._chances, draw.random(self.batch_size), side="right")
        rows = self._chosen[found.clip(max=len(self._chosen) - 1)]
        random = torch.Generator().manual_seed(int(draw.integers(2**62)))
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * scheduled(self.done, self.steps, self._warmup)
        self.policy.train()
        batch = self._rows(rows)
        loss = self.policy.loss(batch, random).mean()
        if self._also is not None:
            loss = loss + self._also(batch, random)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"ChunkImitation: the loss must be finite; got {loss.item()} at step {self.done}.")
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._learned, 1.0)
        self._optimizer.step()
        self.done += 1
        keep = min(self._decay, self.done / (self.done + 10))  # a young average forgets its random start
        with torch.no_grad():
            for name, value in self.policy.learned().items():
                self.average[name].lerp_(value, 1 - keep)
        return float(loss.detach())

    def averaged(self) -> ChunkPolicy:
        """The policy with the averaged weights; what learns goes on with its own."""
        acting = self.policy.twin()
        acting.learn(self.average)
        return acting.eval()

    @torch.no_grad()
    def error(self, rows: Int64[np.ndarray, " N"]) -> float:
        """The mean loss of the averaged policy on some rows, always with the same noise."""
        acting, total = self.averaged(), 0.0
        for start in range(0, len(rows), 256):
            part = rows[start : start + 256]
            total += float(acting.loss(self._rows(part), torch.Generator().manual_seed(start)).sum())
        return total / max(len(rows), 1)

    def get_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values from which `load_state` goes on."""
        optimizer = self._optimizer.state_dict()
        tensors = {f"policy/{name}": value for name, value in self.policy.learned().items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        tensors |= {f"adam/{i}/{name}": v for i, state in optimizer["state"].items() for name, v in state.items()}
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {"done": self.done}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on where `get_state` was called."""

        def below(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}

        self.policy.learn(below("policy/"))
        self.average = {name: value.to(self.policy.device).clone() for name, value in below("average/").items()}
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in below("adam/").items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.done = int(values["done"])


def scheduled(done: int, steps: int, warmup: int) -> float:
    """The share of the learning rate after so many of all steps: it rises in a line, and falls by a cosine to 0.01.

    Args:
        done: updates so far.
        steps: updates in all.
        warmup: updates in which it rises.
    """
    if done < warmup:
        return (done + 1) / warmup
    share = (done - warmup) / max(steps - warmup, 1)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
