"""From what the slots know to actions: at once with an L1 loss, or from noise by flow matching or diffusion.

All work on normalised chunks, give every slot at once, and take a loss a row so that rows can be weighted.
Shape letters: B batch, H actions of a chunk, A action, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from policies.vla.execute import guided

Slots = Callable[[Tensor | None, Tensor | None], Tensor]  # (noisy chunk, time) -> (B, H, W)
TRAIN_STEPS = 50  # of the diffusion schedule, as in OFT


def mean_rows(errors: Float[Tensor, "B H A"], pad: Bool[Tensor, "B H"]) -> Float[Tensor, " B"]:
    """Each row's mean over the actions that are real; 0 where none is.

    Args:
        errors: of each action.
        pad: which actions are none.
    """
    real = (~pad).float()
    return (errors.mean(-1) * real).sum(-1) / real.sum(-1).clamp_min(1)


class L1Head(nn.Module):
    """mean |a − â|: OFT's MLP of residual blocks, its weights shared by all slots.

    Args:
        width: W.
        actions: A.

    Source: OpenVLA-OFT's `models/action_heads.py`. Departs: slots are read where they stand, not one before.
    """

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU()) for _ in range(2)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, actions))

    def forward(self, slots: Float[Tensor, "B H W"]) -> Float[Tensor, "B H A"]:
        hidden = self.first(slots)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden)

    def loss(
        self, slots: Slots, chunk: Float[Tensor, "B H A"], pad: Bool[Tensor, "B H"], random: torch.Generator
    ) -> Float[Tensor, " B"]:
        """The error of each row."""
        return mean_rows((self(slots(None, None)) - chunk).abs(), pad)

    def sample(self, slots: Slots, noise: Float[Tensor, "B H A"]) -> Float[Tensor, "B H A"]:
        """The chunk; the noise is not needed."""
        return self(slots(None, None))


class FlowHead(L1Head):
    """Flow matching: the velocity from noise to the chunk, along straight lines.

        x_t = t·ε + (1 − t)·a,   v = ε − a,   t ~ 0.999·Beta(1.5, 1) + 0.001;   Euler from t = 1 to 0

    Source: π0 and SmolVLA in LeRobot.
    """

    steps = 10

    def loss(
        self, slots: Slots, chunk: Float[Tensor, "B H A"], pad: Bool[Tensor, "B H"], random: torch.Generator
    ) -> Float[Tensor, " B"]:
        noise = torch.randn(chunk.shape, generator=random).to(chunk)
        uniform = torch.rand(len(chunk), generator=random).to(chunk)
        time = 0.999 * uniform ** (1 / 1.5) + 0.001  # Beta(1.5, 1) by its inverse
        at = time[:, None, None]
        velocity = self(slots(at * noise + (1 - at) * chunk, time))
        return mean_rows((velocity - (noise - chunk)).square(), pad)

    def sample(self, slots: Slots, noise: Float[Tensor, "B H A"]) -> Float[Tensor, "B H A"]:
        for k in range(self.steps):
            time = torch.full((len(noise),), 1 - k / self.steps).to(noise)
            noise = noise - self(slots(noise, time)) / self.steps
        return noise

    def go_on(
        self,
        slots: Slots,
        noise: Float[Tensor, "B H A"],
        before: Float[Tensor, "B H A"],
        weights: Float[Tensor, " H"],
    ) -> Float[Tensor, "B H A"]:
        """A chunk that goes on from one under way; see `policies.vla.execute`.

        Args:
            slots, noise: as of `sample`.
            before: the one under way, normalised.
            weights: how firmly each of its actions is held.
        """
        for k in range(self.steps):
            time = 1 - k / self.steps

            def velocity(noisy: Tensor, time: float = time) -> Tensor:
                return self(slots(noisy, torch.full((len(noisy),), time).to(noisy)))

            noise = noise - guided(velocity, noise, time, before, weights) / self.steps
        return noise


class DiffusionHead(L1Head):
    """Diffusion with a squared-cosine schedule: the noise is predicted, DDIM takes it away.

    Source: OpenVLA-OFT's diffusion head. Departs: 10 DDIM steps, not 50: OFT's success is the same down to 5.
    """

    steps = 10

    def loss(
        self, slots: Slots, chunk: Float[Tensor, "B H A"], pad: Bool[Tensor, "B H"], random: torch.Generator
    ) -> Float[Tensor, " B"]:
        noise = torch.randn(chunk.shape, generator=random).to(chunk)
        step = torch.randint(TRAIN_STEPS, (len(chunk),), generator=random)
        kept = alphas()[step].to(chunk)[:, None, None]
        noisy = kept.sqrt() * chunk + (1 - kept).sqrt() * noise
        return mean_rows((self(slots(noisy, (step / TRAIN_STEPS).to(chunk))) - noise).square(), pad)

    def sample(self, slots: Slots, noise: Float[Tensor, "B H A"]) -> Float[Tensor, "B H A"]:
        schedule = alphas().to(noise)
        steps = torch.linspace(TRAIN_STEPS - 1, 0, self.steps).round().long()
        chunk = noise
        for k, step in enumerate(steps):
            kept = schedule[step]
            before = schedule[steps[k + 1]] if k + 1 < len(steps) else torch.ones_like(kept)
            time = torch.full((len(noise),), float(step) / TRAIN_STEPS).to(noise)
            found = self(slots(chunk, time))
            clean = ((chunk - (1 - kept).sqrt() * found) / kept.sqrt()).clamp(-1.5, 1.5)  # the last steps divide by ~0
            found = (chunk - kept.sqrt() * clean) / (1 - kept).sqrt()
            chunk = before.sqrt() * clean + (1 - before).sqrt() * found
        return chunk


def alphas() -> Float[Tensor, " T"]:
    """ᾱ of each diffusion step: Π (1 − β), β = 1 − ᾱ(t+1)/ᾱ(t) ≤ 0.999, ᾱ(t) = cos²((t + 0.008)/1.008 · π/2)."""

    def bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - bar((t + 1) / TRAIN_STEPS) / bar(t / TRAIN_STEPS), 0.999) for t in range(TRAIN_STEPS)]
    return torch.cumprod(1 - torch.tensor(betas), 0)


HEADS: dict[str, type[L1Head]] = {"l1": L1Head, "flow": FlowHead, "diffusion": DiffusionHead}
