"""What a chunk of actions is worth, after each of its actions: a critic of prefixes, its targets, what holds it down.

The reward is 1 − γ a step while the task is solved, and an episode stays as it ends, so that Q is γ to the number of
steps before it is solved for good: in [0, 1], and 1 where it stays solved.

    y_j = Σ_{i ≤ j} γ^i r_{t+i} + γ^{n_j} v,   n_j the real steps of the prefix a_t … a_{t+j}, v what follows them

v is the least of the target critics at the target policy's chunk, or, at the end of an episode, what its last word
says: 1 solved, 0 not. A prefix that goes on beyond an episode whose end is not known is masked.

Source: CO-RFT (arXiv 2508.02219) publishes the idea, one Q a prefix in one pass of a causal transformer, chunked
temporal differences and Cal-QL; neither equations nor code. The targets are a reconstruction by its open relative
RoMAN-Flow (arXiv 2608.20208). Departs: values are in [0, 1], targets are clamped to that.

Shape letters: B batch, H actions of a chunk, A action, L tokens of an observation, W width, K critics, N chunks drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from policies.calql import conservative
from policies.vla.embedded import Block

Context = tuple[Tensor, Tensor]  # tokens (B, L, W), and which of them exist (B, L)
HELD = ("none", "distance", "calql", "conrft")
FARTHEST = 5.0  # distance beyond which the penalty of a chunk does not grow, in normalised units


class PrefixCritic(nn.Module):
    """K critics of (observation, a_t … a_{t+j}), for every j in one pass.

    Each action is a token that attends to the observation's tokens and to the actions before it and itself.

    Args:
        context: W of the frozen policy's tokens.
        actions: A.
        horizon: H.
        width: of the critics' own tokens.
        layers, heads: of attention.
        critics: K.
    """

    def __init__(
        self, context: int, actions: int, horizon: int, *, width: int = 64, layers: int = 2, heads: int = 4,
        critics: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sizes = {
            "context": context, "actions": actions, "horizon": horizon, "width": width, "layers": layers,
            "heads": heads, "critics": critics,
        }  # fmt: skip
        self.members = nn.ModuleList(_Member(context, actions, horizon, width, layers, heads) for _ in range(critics))

    def forward(self, context: Context, chunk: Float[Tensor, "B H A"]) -> Float[Tensor, "K B H"]:
        """What each prefix is worth.

        Args:
            context: of the frozen policy's `look`.
            chunk: normalised.
        """
        return torch.stack([member(context, chunk) for member in self.members])


class _Member(nn.Module):
    causal: Tensor

    def __init__(self, context: int, actions: int, horizon: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.context = nn.Sequential(nn.LayerNorm(context), nn.Linear(context, width))
        self.action = nn.Linear(actions, width)
        self.position = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
        self.register_buffer("causal", torch.ones(horizon, horizon).tril().bool(), persistent=False)

    def forward(self, context: Context, chunk: Tensor) -> Tensor:
        (tokens, there), horizon = context, chunk.shape[1]
        seen = self.context(tokens)
        actions = self.action(chunk) + self.position
        mask = torch.cat([there[:, None].expand(-1, horizon, -1), self.causal.expand(len(chunk), -1, -1)], -1)
        for block in self.blocks:
            actions = block(actions, seen, mask[:, None])
        return self.out(actions)[..., 0]


# Targets ------------------------------------------------------------------------------------------------


def prefix_targets(
    reward: Float[Tensor, "B H"], after: Float[Tensor, "B H"], steps: Int64[Tensor, "B H"], discount: float
) -> Float[Tensor, "B H"]:
    """y_j = Σ_{i < n_j} γ^i r_i + γ^{n_j} v_j, clamped to [0, 1].

    Args:
        reward: of the actions of each chunk.
        after: v_j.
        steps: n_j, the real steps of each prefix: j + 1, or fewer where the episode ended within it.
        discount: γ.
    """
    place = torch.arange(reward.shape[1], device=reward.device)
    earned = (discount**place * reward).cumsum(1).gather(1, steps - 1)
    return (earned + discount**steps * after).clamp(0, 1)


@dataclass(frozen=True)
class Outcomes:
    """What rows led to, by episodes that lie one after the other.

    Attributes:
        solved: (N,) in [0, 1], whether the task was solved after each row's action.
        last: (N,) the last row of each row's episode.
        end: (N,) what its episode's end is worth: 1 solved, 0 not, NaN unknown.
    """

    solved: Float[Tensor, " N"]
    last: Int64[Tensor, " N"]
    end: Float[Tensor, " N"]

    def prefixes(self, rows: Int64[Tensor, " B"], horizon: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the chunks that begin at some rows, prefix by prefix.

        Returns:
            `inside` (B, H): the rows of their actions, none beyond the episode. `steps` (B, H): real steps. `ended`
            (B, H): whether the episode ended within. `known` (B, H): whether what follows is known; the mask.
        """
        last = self.last[rows][:, None]
        place = rows[:, None] + torch.arange(horizon)
        inside, ended = place.minimum(last), place >= last
        return inside, inside - rows[:, None] + 1, ended, ~ended | ~self.end[rows][:, None].isnan()

    def returns(self, discount: float) -> Float[Tensor, " N"]:
        """G_t: the discounted sum of what was earned, to the end and what that is worth; NaN where it is unknown."""
        found, following = [], math.nan
        rows = zip(self.solved.tolist(), self.last.tolist(), self.end.tolist(), strict=True)
        for n, (solved, last, end) in reversed(list(enumerate(rows))):
            following = (1 - discount) * solved + discount * (end if n == last else following)
            found.append(following)
        return torch.tensor(found[::-1])


# What holds a critic down -------------------------------------------------------------------------------


def gaussian_log_prob(noise: Float[Tensor, "*B H A"], deviation: float) -> Float[Tensor, "*B"]:
    """log N(noise; 0, deviation²) of whole chunks.

    Args:
        noise: chunks.
        deviation: of each number.
    """
    each = -0.5 * (noise / deviation).square() - math.log(deviation) - 0.5 * math.log(2 * math.pi)
    return each.sum((-2, -1))


def held_down(
    kind: str, values: Float[Tensor, "K B 3 N"], log_probs: Float[Tensor, "B 3 N"], floor: Float[Tensor, " B"],
    q: Float[Tensor, "K B"], *, temperature: float = 1.0,
) -> Float[Tensor, ""]:  # fmt: skip
    """The calibrated conservative term of whole chunks, Σ_k mean(T·logsumexp(Q̃/T) − q), in its published variants.

        calql    Cal-QL's: floors on the policy's chunks alone, importance weights, T = 1
        conrft   ConRFT's: floors on all, no importance weights, the data's q is one more term, minus T·log(count)

    Args:
        kind: one of the two.
        values: of uniform chunks, of the policy's here, and of the policy's at the chunk's end.
        log_probs: of the same; of `calql` alone.
        floor: μ, the return that was seen; NaN: none.
        q: of the chunks in the data.
        temperature: T; of `conrft` alone.

    Source: Cal-QL (arXiv 2303.05479), `policies.calql`; ConRFT (arXiv 2502.05450), its released learner. Departs: with
        H·A entries the importance weights of `calql` leave all the weight to uniform chunks; at H = 1 they do not.
    """
    if kind == "calql":
        return conservative(values, log_probs, floor, q)
    drawn = values.flatten(2)
    drawn = torch.cat([drawn.maximum(floor.nan_to_num(nan=-torch.inf)[None, :, None]), q[..., None]], -1)
    spread = temperature * ((drawn / temperature).logsumexp(-1) - math.log(drawn.shape[-1]))
    return (spread - q).mean(1).sum()


def distant(
    values: Float[Tensor, "K B N"], target: Float[Tensor, " B"], drawn: Float[Tensor, "B N H A"],
    chunk: Float[Tensor, "B H A"], penalty: float,
) -> Float[Tensor, ""]:  # fmt: skip
    """The bounded alternative: chunks that were not done are worth the target less a penalty of their distance.

        Σ_k mean Huber(Q_k(o, a') − max(y − β·min(mean |a' − a|, 5), 0))

    Args:
        values: of the chunks drawn.
        target: y of the data's whole chunk.
        drawn: normalised.
        chunk: the data's, normalised.
        penalty: β.

    Source: VGAS's penalty by distance to the demonstrated chunk (0.5, clamped at 5). Departs: mean absolute distance.
    """
    away = (drawn - chunk[:, None]).abs().mean((-2, -1)).clamp_max(FARTHEST)
    wanted = (target[:, None] - penalty * away).clamp_min(0).expand_as(values)
    return nn.functional.huber_loss(values, wanted, reduction="none").mean((1, 2)).sum()


def temporal(q: Float[Tensor, "K B H"], target: Float[Tensor, "B H"], known: Bool[Tensor, "B H"]) -> Float[Tensor, ""]:
    """½ Σ_k of the mean squared error over the prefixes whose target is known.

    Args:
        q: of K critics, for each prefix.
        target: of each prefix.
        known: which of those count.
    """
    error = (q - target).square() * known
    return 0.5 * (error.sum((1, 2)) / known.sum().clamp_min(1)).sum()
