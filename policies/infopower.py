"""InfoPower: a latent that knows what is seen, and of that first what the agent can change.

    max  E log p(r_t | z_t) − KL(q ‖ p) + w E log q_ψ(a_{t−1} | z_{t−1}, z_t)    subject to    I_NCE(o_t; z_t) ≥ c

Bharadhwaj et al., "Information prioritization through empowerment in visual model-based RL", arXiv 2204.08585. The
contrastive bound takes the place of a reconstruction; the empowerment term decides what it is spent on; the actor is
paid the same term in what it imagines: log q_ψ(a | z, z') − log π(a | z), a lower bound on I(A; Z' | Z).

No official code was found. The terms are the paper's; their exact forms here are ours:

- The inverse head reads the stochastic part, drawn as if the last action had been none. The deterministic part holds
  that action by construction, so any head that reads it is right without anyone looking.
- Scores are inner products of a projection each, negatives all other moments of the batch, of other windows and times.
- The multiplier of the bound begins at 1 and follows it (`policies.dual.Dual`).
- The actor's bonus is clipped and fades, because −log π pays for chance without bound.

Shape letters: T moments, B windows, N rows, A action, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.dreaming import Dreaming, DreamingSettings, Seen
from policies.dual import Dual
from policies.inverse import ActionNet
from policies.networks import Linear, Sample
from policies.rssm import SIZES, Sizes, State, kl
from policies.settings import check, maker

LOG_STD = (-3.0, 1.0)  # of the inverse head, so that its bound stays one


@dataclass(frozen=True, kw_only=True)
class InfoPowerSettings(DreamingSettings):
    """What can be set, beside `DreamingSettings`.

    Attributes:
        nce_bound: c, nats; below log of the moments in a batch.
        nce_rate: of its multiplier's ascent, for each update.
        empowerment: w; 0: without that term, the control.
        bonus: weight of the actor's, at first.
        bonus_limit: either way, nats.
        bonus_updates: over which it fades to 0.
        reward_weight: of log p(r | z): one over the variance of what the head may miss.
        balance: share of the KL's gradient that teaches the guess.
    """

    nce_bound: float = 3.0
    nce_rate: float = 0.02
    empowerment: float = 0.1
    bonus: float = 0.01
    bonus_limit: float = 3.0
    bonus_updates: int = 10_000
    reward_weight: float = 100.0
    balance: float = 5 / 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self,
            least_zero=("nce_rate", "empowerment", "bonus", "bonus_limit"),
            counts=["bonus_updates"],
            positive=["reward_weight"],
            shares=["balance"],
        )
        most = math.log(self.batch_size * self.length)
        if not 0 < self.nce_bound < most:
            raise ValueError(
                f"infopower: nce_bound must be > 0 and below log(batch_size · length), {most:.2f}; "
                f"got {self.nce_bound}."
            )


class Heads(nn.Module):
    """Projections of latent and embedding for the bound; which action led from one s to the next, and how surely.

    Args:
        sizes: of the networks.
        features: width of a latent state.
        actions: A.
        generator: of the weights.
    """

    def __init__(self, sizes: Sizes, features: int, actions: int, generator: torch.Generator) -> None:
        super().__init__()
        self.latent = Linear(features, sizes.hidden, generator=generator)
        self.seen = Linear(sizes.embedding, sizes.hidden, generator=generator)
        self.inverse = ActionNet(sizes.stochastic, actions, [sizes.hidden], generator=generator)
        self.log_std = nn.Parameter(torch.zeros(actions))


class InfoPower(Dreaming):
    """The learner; see the module. Arguments are `Dreaming`'s."""

    name = "infopower"
    settings: InfoPowerSettings

    def _make_beside(self, generator: torch.Generator) -> Sequence[nn.Module]:
        sizes = SIZES[self.settings.size]
        self.heads = Heads(sizes, self.world.features, self.num_actions, generator).to(self.device)
        self.multiplier = Dual(1.0, self.settings.nce_rate, self.device)
        return [self.heads]

    def _objective(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        s, (states, q, p) = self.settings, seen.inside
        cost = seen.mean(s.balance * kl(q.detach(), p) + (1 - s.balance) * kl(q, p.detach()))
        latent = self.heads.latent(states.rows(seen.there).features)
        bound = info_nce(latent, self.heads.seen(seen.embedding[seen.there]))
        weight = self.multiplier.value
        self.multiplier.step(1 - bound.detach() / s.nce_bound)
        loss = s.reward_weight * seen.error + seen.ends + cost - weight * bound
        told = {"kl": cost.detach(), "nce": bound.detach(), "nce_weight": weight}
        if s.empowerment:
            known = self._known(seen)
            loss, told = loss - s.empowerment * known, told | {"action_log_prob": known.detach()}
        return loss, told

    def _known(self, seen: Seen) -> Tensor:
        """Mean log q_ψ of the actions that were done, from what the eyes alone tell of them."""
        states, batch = seen.inside.states, seen.batch
        before = State(states.h[:-1], states.s[:-1]).rows(batch.valid)
        still = self.world.rssm.advance(before, torch.zeros_like(batch.action[batch.valid]))
        q = self.world.rssm.posterior(still, seen.embedding[1:][batch.valid])
        after = q.mean + q.std * self._noise(*q.mean.shape)
        self.heads.inverse.add(before.s.detach(), after.detach())
        return self._log_prob(before.s, after, batch.action[batch.valid]).mean()

    def _log_prob(self, before: Tensor, after: Tensor, action: Tensor) -> Float[Tensor, " N"]:
        """log q_ψ(a | z, z')."""
        log_std = self.heads.log_std.clamp(*LOG_STD)
        away = (action - self.heads.inverse(before, after)) * (-log_std).exp()
        return (-0.5 * away.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def _bonus(self, before: State, drawn: Sample, after: State) -> Tensor | None:
        """What the agent is paid for effects that tell its actions."""
        s = self.settings
        fade = max(1 - self.updates / s.bonus_updates, 0.0)
        if not s.empowerment or not s.bonus * fade:
            return None
        power = self._log_prob(before.s, after.s, drawn.action) - drawn.log_prob
        return s.bonus * fade * power.clamp(-s.bonus_limit, s.bonus_limit)

    @property
    def _parts(self) -> dict[str, Any]:
        return super()._parts | {"heads": self.heads, "multiplier": self.multiplier.log}


def info_nce(latent: Float[Tensor, "N D"], seen: Float[Tensor, "N D"]) -> Tensor:
    """A lower bound on I(O; Z), nats, at most log N: log N + mean_i log softmax_j(z_i · o_j / √D) at j = i.

    Args:
        latent: z, projected.
        seen: o, projected; row i belongs to row i of `latent`.

    Source: van den Oord et al., arXiv 1807.03748, §2.3 and eq. 6.
    """
    scores = latent @ seen.T / math.sqrt(latent.shape[-1])
    return math.log(len(scores)) + torch.log_softmax(scores, -1).diagonal().mean()


infopower = maker(InfoPower, InfoPowerSettings)
