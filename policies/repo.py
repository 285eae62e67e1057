"""RePo: a latent that knows what rewards need and little else, so that what moves behind the scene does not matter.

    max Σ E log p(r_t | s_t)   subject to   E KL(q(s_t | h_t, o_t) ‖ p(s_t | h_t)) ≤ ε

Zhu et al., "RePo: Resilient model-based reinforcement learning by regularizing posterior predictability",
arXiv 2309.00082. Nothing is reconstructed: what looking adds to the guess is capped, so it is spent on rewards.

Departures. The multiplier β really follows its constraint (`policies.dual.Dual`). What teaches the prior never weighs
less than `dynamics_weight`: where the reward is soon known from what is seen, β becomes so small that nothing but the
reward of now would shape what is remembered. The world's end is learned beside the reward. There is no decoder for
show. After a shift, embeddings are matched without a discriminator (see `align`).

Shape letters: T moments, B windows, N rows, D embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.behaviour import step
from policies.core import Batch
from policies.dreaming import Dreaming, DreamingSettings, Seen
from policies.dual import Dual
from policies.networks import adam
from policies.rssm import kl
from policies.settings import check, maker


@dataclass(frozen=True, kw_only=True)
class RePoSettings(DreamingSettings):
    """What can be set, beside `DreamingSettings`.

    Attributes:
        kl_cap: ε, nats a moment; None: β stays as it begins, and what looking adds is not capped. With
            `reconstruct`, the nats that cost nothing, as in Dreamer, and β is 1.
        beta: with which the multiplier begins, > 0.
        beta_rate: of its ascent, for each update.
        balance: share of the KL's gradient that teaches the guess; the rest holds back what is looked up.
        dynamics_weight: of what teaches the guess, at least; 0: as published.
        align_rate: Adam's, where the encoder is aligned.
        align_consistency: weight of the model's own surprise there, in units of nats.
    """

    kl_cap: float | None = 3.0
    beta: float = 1e-5
    beta_rate: float = 0.02
    balance: float = 5 / 6
    dynamics_weight: float = 0.1
    align_rate: float = 3e-4
    align_consistency: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self,
            positive=("beta", "align_rate"),
            least_zero=("beta_rate", "align_consistency", "dynamics_weight"),
            shares=["balance"],
        )
        if self.kl_cap is not None:
            check(self, positive=["kl_cap"])
        if self.reconstruct and self.kl_cap is None:
            raise ValueError("repo: kl_cap must be a number where reconstruct is true; got None.")


class RePo(Dreaming):
    """The learner; see the module. Arguments are `Dreaming`'s."""

    name = "repo"
    settings: RePoSettings

    def _make_beside(self, generator: torch.Generator) -> Sequence[nn.Module]:
        s = self.settings
        rises = s.kl_cap is not None and not s.reconstruct
        self.beta = Dual(1.0 if s.reconstruct else s.beta, s.beta_rate if rises else 0.0, self.device)
        return ()

    def _objective(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """−log p(r | s) + max(b β, w) KL(sg q ‖ p) + (1 − b) β KL(q ‖ sg p), where b is the balance and w the dynamics'
        weight; or Dreamer's −log p(r | s) + max(KL, ε) beside the reconstruction."""
        s, (_, q, p) = self.settings, seen.inside
        taught, held = seen.mean(kl(q.detach(), p)), seen.mean(kl(q, p.detach()))
        beta = self.beta.value
        if s.reconstruct:
            cost = (s.balance * taught + (1 - s.balance) * held).clamp(min=s.kl_cap)
        else:
            cost = (s.balance * beta).clamp(min=s.dynamics_weight) * taught + (1 - s.balance) * beta * held
        if s.kl_cap is not None:
            self.beta.step(held.detach() / s.kl_cap - 1)
        return seen.error + seen.ends + cost, {"kl": held.detach(), "beta": beta}

    @property
    def _parts(self) -> dict[str, Any]:
        return super()._parts | {"beta": self.beta.log}

    def align(self, source: Iterator[Batch], target: Iterator[Batch], updates: int) -> dict[str, float]:
        """Learn to see as before, without rewards, where the camera, the light or the background have changed.

            min over a copy e' of the encoder:  D(e(o_source), e'(o_target)) + w · KL(q(s | h, e'(o_target)) ‖ p(s | h))

        All else stays. D, the energy distance, is 0 only where both embeddings are distributed alike, which they are
        where both come from the same behaviour (random actions from the same starts); the second term asks that what is
        seen be what the actions lead to.

        Args:
            source: windows from before the change; rewards are not read.
            target: windows of the same behaviour from after it.
            updates: steps of the encoder.

        Returns:
            The first and last value of both terms: "distance", "surprise", each with "_before" and "_after".

        Source: RePo §4.3. Departs: an energy distance in place of a discriminator, and the model's KL in place of an
        ensemble or an inverse model; no paired observations.
        """
        s, encoder = self.settings, copy.deepcopy(self.world.encoder)
        optimiser = adam(encoder, s.align_rate)
        told: list[tuple[float, float]] = []
        for _ in range(updates):
            with torch.no_grad():
                batch = next(source).to(self.device)
                there = torch.cat([torch.ones_like(batch.valid[:1]), batch.valid])  # padding repeats an episode's end
                before = self.world.encoder(batch.obs)[there]
            seen = self.see(next(target).to(self.device), encoder)
            distance = energy_distance(before, seen.embedding[seen.there])
            surprise = seen.mean(kl(seen.inside.posterior, seen.inside.prior))
            step(optimiser, distance + s.align_consistency * surprise, (encoder,))
            told.append((float(distance.detach()), float(surprise.detach())))
        self.world.encoder = encoder
        (distance, surprise), (closer, calmer) = told[0], told[-1]
        return {
            "distance_before": distance, "distance_after": closer, "surprise_before": surprise,
            "surprise_after": calmer,
        }  # fmt: skip


def energy_distance(one: Float[Tensor, "N D"], other: Float[Tensor, "M D"]) -> Tensor:
    """2 E|X − Y| − E|X − X'| − E|Y − Y'|, each mean over all pairs: 0 for the same rows, else > 0.

    Args:
        one, other: rows.

    Source: Székely and Rizzo, "Energy statistics", J. Stat. Plan. Inference 143 (2013), eq. 5 (the V-statistic).
    """
    between, within, beside = (_distances(a, b).mean() for a, b in ((one, other), (one, one), (other, other)))
    return 2 * between - within - beside


def _distances(one: Tensor, other: Tensor) -> Tensor:
    """(N, M) Euclidean, exact where they are small."""
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")


repo = maker(RePo, RePoSettings)
