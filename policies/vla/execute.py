"""From chunks to the action of a moment: averages of overlapping chunks, and chunks that go on from the one under way.

Shape letters: B batch, E worlds, H actions of a chunk, A action.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GUIDANCE = 10.0  # β, at most


@dataclass(frozen=True)
class Ensemble:
    """Temporal ensembling: the action of a moment is the mean of what all chunks so far say of it.

        a_t = Σ_i w_i a_t^(i) / Σ_i w_i,   w_i = exp(−m·i),   i = 0 the oldest chunk

    Attributes:
        total: (E, H, A), Σ_i w_i a^(i) of the moments from now on.
        count: (E, H), how many chunks spoke of each.
        rate: m; 0: all alike, larger: the oldest decide.

    Source: ACT (arXiv 2304.13705 §4.1), as LeRobot has it.
    """

    total: Float[np.ndarray, "E H A"]
    count: Int[np.ndarray, "E H"]
    rate: float

    @classmethod
    def begun(cls, worlds: int, horizon: int, actions: int, rate: float) -> Ensemble:
        """Of worlds that no chunk spoke of yet."""
        return cls(np.zeros((worlds, horizon, actions)), np.zeros((worlds, horizon), int), rate)

    def add(
        self, chunks: Float[np.ndarray, "E H A"], first: Bool[np.ndarray, " E"]
    ) -> tuple[Float[np.ndarray, "E A"], Ensemble]:
        """What to do now, and what is known a moment later.

        Args:
            chunks: from now on, one for each world.
            first: worlds that begin an episode: what was said there is forgotten.
        """
        weights = np.exp(-self.rate * np.arange(self.total.shape[1]))
        count = np.where(first[:, None], 0, self.count)
        total = np.where(first[:, None, None], 0.0, self.total) + weights[count][..., None] * chunks
        now = total[:, 0] / np.cumsum(weights)[count[:, 0]][:, None]
        later = np.pad(total[:, 1:], ((0, 0), (0, 1), (0, 0))), np.pad(count[:, 1:] + 1, ((0, 0), (0, 1)))
        return now, Ensemble(*later, self.rate)


@dataclass(frozen=True)
class GoingOn:
    """A chunk under way, from which the next one goes on (real-time chunking).

    Attributes:
        chunk: (B, H, A) from the moment that is looked at on; what it does not say is of any value.
        known: how many of its actions are known.
        delay: d, actions that will be done before the next chunk is there.

    Raises:
        ValueError: not 0 ≤ delay ≤ known ≤ H.
    """

    chunk: Float[Tensor, "B H A"]
    known: int
    delay: int

    def __post_init__(self) -> None:
        horizon = self.chunk.shape[1]
        if not 0 <= self.delay <= self.known <= horizon:
            raise ValueError(
                f"GoingOn: delay and known must be 0 ≤ delay ≤ known ≤ {horizon}; got {self.delay} and {self.known}."
            )

    def weights(self, horizon: int) -> Float[Tensor, " H"]:
        """How firmly each action is held: 1 for those that will be done, then falling to 0 where nothing is known.

            W_i = 1, i < d;   c_i (e^{c_i} − 1)/(e − 1), d ≤ i < known, c_i = (known − i)/(known − d + 1);   0 after

        Source: real-time chunking (arXiv 2506.07339, eq. 5), known = H − s there.
        """
        i = torch.arange(horizon)
        c = (self.known - i).clamp_min(0) / (self.known - self.delay + 1)
        soft = c * torch.expm1(c) / (math.e - 1)
        return torch.where(i < self.delay, torch.ones(horizon), torch.where(i < self.known, soft, torch.zeros(horizon)))


def guided(
    velocity: Callable[[Tensor], Tensor],
    noisy: Float[Tensor, "B H A"],
    time: float,
    before: Float[Tensor, "B H A"],
    weights: Float[Tensor, " H"],
) -> Float[Tensor, "B H A"]:
    """The velocity of a flow from noise (time 1) to a chunk (time 0), bent so that it ends at what is known.

        v ← v − min(β, ((1−τ)/τ)·((1−τ)² + τ²)/(1−τ)²) · Jᵀ[W (y − x̂)],   x̂ = x − t·v(x),   J = ∂x̂/∂x,   τ = 1 − t

    J is of the whole estimate x̂, through the network: its part −t·∂v/∂x is what carries the known actions over to the
    unknown ones.

    Args:
        velocity: v = ε − a of a noisy chunk at this time.
        noisy: x.
        time: t in (0, 1].
        before: y.
        weights: W.

    Source: real-time chunking (arXiv 2506.07339, eq. 2 to 4), its sign turned for our direction of time. Departs from
        LeRobot's, which takes the identity for J.
    """
    tau = 1 - time
    push = GUIDANCE if tau <= 0 else min(GUIDANCE, (1 - tau) / tau * ((1 - tau) ** 2 + tau**2) / (1 - tau) ** 2)
    with torch.enable_grad():
        x = noisy.detach().requires_grad_()
        v = velocity(x)
        clean = x - time * v
        wanted = (weights[:, None] * (before - clean)).detach()
        (pull,) = torch.autograd.grad(clean, x, wanted)
    return v.detach() - push * pull
