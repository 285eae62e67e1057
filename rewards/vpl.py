"""Whose preferences? VPL learns a latent user from comparisons, and a reward given that user.

One reward fitted to people who want different things averages them out; here a set encoder reads a few comparisons of
the present user and the reward follows them.

Shape letters: U users, A comparisons of one context, L rows of a segment, S state width, Z latent, J reference rows.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rewards.chat.asking import ChatModel
from rewards.comparisons import Comparisons
from rewards.compose import as_scorer
from rewards.core import Encoder, Episode, Features, Scorer
from rewards.members import Members, check_episodes, descend, fitted_views, flat
from rewards.preference import fixed_set, judged
from rewards.storage import group_of, joined, load_fitted, save_fitted

KIND = "vpl"
Gaussian = tuple[Float[Tensor, "*B Z"], Float[Tensor, "*B Z"]]  # mean, log-variance


def gaussian_kl(q: Gaussian, p: tuple[Float[Tensor, "*P Z"], Float[Tensor, "*P Z"]]) -> Float[Tensor, "*B"]:
    """KL(q ‖ p) of diagonal Gaussians given as mean and log-variance.

        ½ Σ_Z [log σ_p² − log σ_q² + (σ_q² + (μ_q − μ_p)²)/σ_p² − 1]

    Source: closed form. WEIRDLabUW/vpl lacks the ½, which doubles its β.
    """
    (mean_q, log_q), (mean_p, log_p) = q, p
    return 0.5 * (log_p - log_q + (log_q.exp() + (mean_q - mean_p) ** 2) / log_p.exp() - 1).sum(-1)


def annealed(step: int, steps: int, cycles: int) -> float:
    """The share of β at a step: 1 without cycles; else each rises from 0 to 1 by a half-cosine, then stays as long.

    Args:
        steps: in all.
    """
    if cycles == 0:
        return 1.0
    within = step * cycles / steps % 1
    return 0.5 * (1 - math.cos(math.pi * min(1.0, 2 * within)))


class LatentUser(nn.Module):
    """The networks: a set encoder q(z | comparisons), a decoder r(s, z), a learnable Gaussian prior p(z).

        q:  mean over the A comparisons of MLP([s̄_a; s̄_b; ±1]), then MLP -> μ, log σ²     (s̄: mean over the segment)
        P(b ≻ a | z) = σ( Σ_L r(b, z) − Σ_L r(a, z) )

    The mean over comparisons makes q blind to their order, and lets A be any number.

    Args:
        reference: camera -> (N, D), whose mean and scale the inputs are standardised by.
        latent: Z.
        hidden: width.
        seed: of the initial weights.
    """

    def __init__(self, reference: Mapping[str, Float[Tensor, "N D"]], *, latent: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.cameras = list(reference)
        self.decoder = Members(reference, count=1, extra=latent, hidden=hidden, seed=seed)
        width = sum(rows.shape[1] for rows in reference.values())
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.each = nn.Sequential(
                nn.Linear(2 * width + 1, hidden), nn.LeakyReLU(), nn.Linear(hidden, hidden), nn.LeakyReLU()
            )
            self.all = nn.Sequential(nn.Linear(hidden, hidden), nn.LeakyReLU(), nn.Linear(hidden, 2 * latent))
        self.prior_mean = nn.Parameter(torch.zeros(latent))
        self.prior_log_variance = nn.Parameter(torch.zeros(latent))

    def posterior(
        self,
        first: Mapping[str, Float[Tensor, "U A L D"]],
        second: Mapping[str, Float[Tensor, "U A L D"]],
        labels: Float[Tensor, "U A"],
    ) -> Gaussian:
        """q(z | C) of each user's context: mean and log-variance, (U, Z) each."""
        sides = [torch.cat([self._standard(i, side[c]) for i, c in enumerate(self.cameras)], -1)
                 for side in (first, second)]  # fmt: skip
        pooled = self.each(torch.cat([*sides, 2 * labels[..., None] - 1], -1)).mean(1)
        mean, log_variance = self.all(pooled).chunk(2, -1)
        return mean, log_variance.clamp(-8, 4)

    def _standard(self, i: int, view: Float[Tensor, "U A L D"]) -> Float[Tensor, "U A D"]:
        return (view.mean(2) - getattr(self.decoder, f"middle{i}")) / getattr(self.decoder, f"scale{i}")

    def prior(self) -> Gaussian:
        """p(z)."""
        return self.prior_mean, self.prior_log_variance

    def ahead(
        self,
        first: Mapping[str, Float[Tensor, "U A L D"]],
        second: Mapping[str, Float[Tensor, "U A L D"]],
        z: Float[Tensor, "U Z"],
    ) -> Float[Tensor, "U A"]:
        """Log-odds of each second segment being better."""
        users, count, length = next(iter(first.values())).shape[:3]
        latent = z.repeat_interleave(count * length, 0)
        sums = [
            self.decoder({camera: view.flatten(0, 2) for camera, view in side.items()}, latent)[0]
            .view(users, count, length)
            .sum(2)
            for side in (first, second)
        ]
        return sums[1] - sums[0]

    def evidence(
        self, mean_logits: Float[Tensor, "U A"], labels: Float[Tensor, "U A"], q: Gaussian, beta: float
    ) -> Float[Tensor, ""]:
        """Summed BCE + β·KL(q ‖ p), the mean over users: with β = 1 the negative evidence lower bound."""
        entropy = nn.functional.binary_cross_entropy_with_logits(mean_logits, labels, reduction="none").sum(1)
        return (entropy + beta * gaussian_kl(q, self.prior())).mean()


class VPLReward:
    """The reward of one user, scaled by SPO so that users compare and no scale is left open.

        r̃(s, z) = mean_j σ( f(s, s_j, z) ),   f(s, s', z) = r(s, z) − r(s', z),   s_j the fixed rows

    It is the share of the fixed rows that this user would give up for s, within [0, 1]. z is the mean of
    q(z | the user's comparisons), of the prior without any; with `resample`, drawn from q for every episode, seeded
    by the signs of the episode's first row: the same episode has the same z at every door.

    Args:
        networks: fitted (`fit_vpl`).
        reference: camera -> (J, D), the s_j.
        context: the present user's comparisons, or None.
        resample: whether z is drawn anew for each episode.

    Attributes:
        user: the present user's name; "": nobody in particular; None: one that an older file does not name.

    Source: VPL, arXiv 2408.10075, and WEIRDLabUW/vpl. Departs: the context is a set (theirs, flattened, depends on
        order and fixes A); exact KL; f is a difference of rewards, hence transitive and good for segments (theirs is
        a free classifier); its active queries and radial-flow prior are left out; no exp(r/temperature) on relabelling.
    """

    name, advances = KIND, True

    def __init__(
        self,
        networks: LatentUser,
        reference: Mapping[str, Float[Tensor, "J D"]],
        context: Comparisons | None = None,
        *,
        resample: bool = False,
    ) -> None:
        self.networks, self.resample = networks, resample
        self.reference = {camera: rows.float().cpu() for camera, rows in reference.items()}
        self.adapt(context)

    @torch.no_grad()
    def adapt(self, context: Comparisons | None) -> None:
        """Follow the user whose comparisons these are, or with None nobody in particular."""
        self.q = tuple(part.detach().clone() for part in self.networks.prior())
        self.user: str | None = "" if context is None else ", ".join(context.names)
        if context is not None:
            mean, log_variance = self.networks.posterior(*_batched(context))
            self.q = (mean[0], log_variance[0])

    @torch.no_grad()
    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """r̃ of each frame, in [0, 1]; a missing view counts as its least over the fixed rows."""
        return self.advance(features)[0]

    @property
    def pointwise(self) -> bool:
        return not self.resample

    @torch.no_grad()
    def advance(
        self, features: Features, latents: Float[Tensor, "B Z"] | None = None
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B Z"]]:
        """r̃ of the frames that follow; each episode keeps its z (see `rewards.core.Head`)."""
        views = fitted_views(features, list(self.reference), KIND)
        if latents is None:
            drawn = [self._latent({c: v[b, 0] for c, v in views.items()}) for b in range(len(features.main))]
            latents = torch.stack(drawn)
        if not self.resample:
            scaled = self._scaled(flat(views, self.networks), latents[0]).unflatten(0, features.main.shape[:2])
            return scaled.to(features.main), latents
        rows = [self._scaled({c: v[b].to(z) for c, v in views.items()}, z) for b, z in enumerate(latents)]
        return torch.stack(rows).to(features.main), latents

    def _latent(self, first_row: Mapping[str, Float[Tensor, " D"]]) -> Float[Tensor, " Z"]:
        mean, log_variance = self.q
        if not self.resample:
            return mean
        signs = b"".join((row > 0).cpu().numpy().tobytes() for row in first_row.values())
        rng = torch.Generator().manual_seed(zlib.crc32(signs))
        return mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=rng).to(mean)

    def _scaled(self, views: Mapping[str, Float[Tensor, "N D"]], z: Float[Tensor, " Z"]) -> Float[Tensor, " N"]:
        decoder = self.networks.decoder
        count = len(next(iter(views.values())))
        here, there = [], []
        for i, (camera, rows) in enumerate(self.reference.items()):
            fixed = decoder.view(i, rows, z.expand(len(rows), -1))[0]
            floor = fixed.min()
            there.append(fixed)
            known = camera in views
            here.append(
                decoder.view(i, views[camera], z.expand(count, -1))[0].maximum(floor) if known else floor.expand(count)
            )
        ahead = torch.stack(here).mean(0)[:, None] - torch.stack(there).mean(0)
        return ahead.sigmoid().mean(1)

    def save(self, folder: Path, encoder: Encoder) -> None:
        """Write a folder that `load` reads; the present user's posterior goes with it."""
        config = {
            "cameras": list(self.reference), "resample": self.resample, "latent": len(self.networks.prior_mean),
            "hidden": self.networks.all[0].in_features, "user": self.user,
        }  # fmt: skip
        tensors = joined({"networks": self.networks.state_dict(), "reference": self.reference})
        tensors |= {"mean": self.q[0], "log_variance": self.q[1]}
        save_fitted(folder, kind=KIND, encoder=encoder, config=config, tensors=tensors)

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder) -> VPLReward:
        """The reward that `save` wrote."""
        config, tensors = load_fitted(folder, kind=KIND, encoder=encoder)
        reference = {camera: tensors[f"reference/{camera}"] for camera in config["cameras"]}
        networks = LatentUser(reference, latent=config["latent"], hidden=config["hidden"], seed=0)
        networks.load_state_dict(group_of(tensors, "networks"))
        head = cls(networks, reference, resample=config["resample"])
        head.q, head.user = (tensors["mean"], tensors["log_variance"]), config.get("user")
        return head


def fit_vpl(
    comparisons: Comparisons,
    reference: Mapping[str, Float[Tensor, "N D"]],
    *,
    latent: int = 4,
    hidden: int = 64,
    context: int = 16,
    beta: float = 1.0,
    cycles: int = 0,
    steps: int = 1500,
    seed: int = 0,
) -> LatentUser:
    """Networks from the comparisons of several users.

    Each step draws up to 16 users and `context` comparisons of each (with replacement where there are fewer), infers z
    from them and explains their labels. Deterministic with the seed.

    Args:
        comparisons: of all users.
        reference: see `LatentUser`.
        latent: Z; the source uses 32.
        hidden: width of all networks; the source uses 256.
        context: A.
        beta: of the KL, ≥ 0.
        cycles: of cyclical annealing (`annealed`); 0: none.
        steps: of AdamW.
        seed: of weights and draws.

    Raises:
        ValueError: a value out of range.
    """
    if min(latent, hidden, context, steps) < 1 or beta < 0 or cycles < 0:
        raise ValueError(
            f"{KIND}: latent, hidden, context and steps must be ≥ 1, beta and cycles ≥ 0; "
            f"got {latent}, {hidden}, {context}, {steps}, {beta}, {cycles}."
        )
    networks = LatentUser(reference, latent=latent, hidden=hidden, seed=seed)
    by_user = [torch.nonzero(comparisons.users == u)[:, 0] for u in range(len(comparisons.names))]
    rng = torch.Generator().manual_seed(seed)
    taken = 0

    def loss(users: Tensor) -> Tensor:
        nonlocal taken
        chosen = []
        for user in users.tolist():
            mine = by_user[user]
            order = torch.randperm(len(mine), generator=rng) if len(mine) >= context else torch.randint(
                len(mine), (context,), generator=rng)  # fmt: skip
            chosen.append(mine[order[:context]])
        rows = torch.stack(chosen)  # (U, A)
        first, second = ({c: v[rows] for c, v in side.items()} for side in (comparisons.first, comparisons.second))
        labels = comparisons.labels[rows]
        q = networks.posterior(first, second, labels)
        z = q[0] + (q[1] / 2).exp() * torch.randn(q[0].shape, generator=rng)
        weight = beta * annealed(taken, steps, cycles)
        taken += 1
        return networks.evidence(networks.ahead(first, second, z), labels, q, weight)

    descend(networks, loss, len(by_user), steps=steps, batch=16, learning_rate=1e-3, seed=seed)
    return networks


def vpl_scorer(
    *,
    encoder: Encoder,
    goal: str | None = None,
    model: str | None = None,
    demos: Sequence[Episode] = (),
    labels: str | None = None,
    user: str | None = None,
    vlm: Mapping[str, Any] | ChatModel | None = None,
    latent_user: Mapping[str, Any] | None = None,
    resample: bool = False,
    shaping: Mapping[str, Any] | None = None,
    fits: MutableMapping[Any, VPLReward] | None = None,
) -> Scorer:
    """`VPLReward` as a scorer.

    Args:
        encoder: embeds frames and texts.
        goal: without `labels`, what the one user there is wants: a model compares by it.
        model: folder of a fitted reward with its user, instead of demos.
        demos: the episodes compared.
        labels: comparisons of several people, JSON lines with `user` (`rewards.comparisons.read_labels`).
        user: whom to follow; None: nobody in particular where there are several, or whom a fitted reward follows.
        vlm: see `preference_scorer`.
        latent_user: arguments of `fit_vpl`.
        resample: see `VPLReward`.
        shaping: arguments of `PotentialShaping`.
        fits: see `preference_scorer`.

    Raises:
        ValueError, TypeError, FileNotFoundError: nothing to fit on, an unknown user, or as the parts say.
    """
    if model is not None:
        head = VPLReward.load(model, encoder)
        head.resample = resample
        if user is not None and head.user not in (None, user):
            follows = repr(head.user) if head.user else "nobody in particular"
            raise ValueError(
                f"{KIND}: user must be whom {model} follows, {follows}; got {user!r}. Leave it out, or fit it again."
            )
    elif fits and labels in fits:
        head = fits[labels]
    else:
        check_episodes(demos, KIND)
        told = judged(
            demos, encoder=encoder, goal=goal, labels=labels, vlm=vlm, pairs=500, length=1, margin=0.02, seed=0
        )
        reference = fixed_set(demos, 1000)
        context = told.of(user) if user is not None else told if len(told.names) == 1 else None
        head = VPLReward(fit_vpl(told, reference, **dict(latent_user or {})), reference, context, resample=resample)
        if labels is not None and fits is not None:
            fits[labels] = head
    return as_scorer(encoder, {KIND: head}, shaping)


def _batched(context: Comparisons) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """One user's comparisons as a batch of one context."""
    first, second = ({c: v[None] for c, v in side.items()} for side in (context.first, context.second))
    return first, second, context.labels[None]
