"""RAPL: optimal transport from a rollout to preferred demonstrations, in a representation aligned with preferences.

Shape letters: B batch, T time, D feature width, E projected width, N rows and M columns of a plan, K demonstrations.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rewards.compose import as_scorer
from rewards.core import Encoder, Episode, Features, Scorer
from rewards.outcome import held_to_outcome
from rewards.progress import tqdm
from rewards.storage import group_of, joined, load_fitted, save_fitted
from rewards.views import mean_over_views, shared_views

READOUTS = ("causal", "episode")
ROWS = 12  # of an episode in a plan, evenly in time: bounds its cost
LONE_SPREAD = 0.2  # distance that two demonstrations are taken to have where there is one, 1 − cos
WIDTH = 16  # of the representation
EPSILON = 0.05  # of the plans, in units of 1 − cos
BAND = 0.2  # how far apart, in shares of their sequences, two rows may be matched


# Optimal transport -------------------------------------------------------------------------------------------


def sinkhorn(
    cost: Float[Tensor, "*S N M"],
    *,
    epsilon: float = EPSILON,
    iterations: int = 100,
    rows: Float[Tensor, "*R N"] | None = None,
    columns: Float[Tensor, "*C M"] | None = None,
    allowed: Bool[Tensor, "*P N M"] | None = None,
) -> Float[Tensor, "*S N M"]:
    """The entropic optimal transport plan, by Sinkhorn's iterations on logarithms.

        μ* = argmin_μ Σ_ij C_ij μ_ij + ε Σ_ij μ_ij log μ_ij,   μ 1 = rows,  μᵀ 1 = columns

    Args:
        cost: C.
        epsilon: ε > 0, in the unit of C; the smaller, the sharper and the more iterations.
        iterations: columns are met exactly, rows as nearly as these allow.
        rows: marginal, sums to 1; 0 leaves a row out. None: uniform.
        columns: marginal, sums to 1; 0 leaves a column out. None: uniform.
        allowed: where mass may go, None: anywhere. It must leave room for both marginals.

    Raises:
        ValueError: epsilon or iterations that are not positive.
    Source: Cuturi 2013, in the log domain; arXiv 2310.07932 uses it with uniform marginals.
    """
    if not epsilon > 0 or iterations < 1:
        raise ValueError(f"sinkhorn: epsilon and iterations must be > 0; got {epsilon} and {iterations}.")
    kernel = -cost / epsilon
    if allowed is not None:
        # Far below all that is allowed, whatever ε; finite, so that no NaN comes, and near enough that nothing cancels.
        kernel = kernel.where(allowed, kernel.detach().amin((-2, -1), keepdim=True) - 1e4)
    size = cost.shape[-2:]
    log_rows = _log_marginal(rows, size[0], cost)
    log_columns = _log_marginal(columns, size[1], cost)
    left, right = torch.zeros_like(log_rows), log_columns.where(log_columns.isinf(), 0.0)
    for _ in range(iterations):
        left = log_rows - (kernel + right[..., None, :]).logsumexp(-1)
        right = log_columns - (kernel + left[..., None]).logsumexp(-2)
    return (kernel + left[..., None] + right[..., None, :]).exp()


def _log_marginal(marginal: Tensor | None, size: int, like: Tensor) -> Tensor:
    if marginal is None:
        return like.new_full((*like.shape[:-2], size), -math.log(size))
    return marginal.to(like).log()


def band_mask(num_rows: int, num_columns: int, band: float) -> Bool[Tensor, "N M"]:
    """Which pairs are at about the same share of their sequences: |i/(N−1) − j/(M−1)| ≤ band; 1 allows all.

    The band is widened to one step of the shorter sequence, so that every row and column has room.

    Args:
        num_rows: N.
        num_columns: M.
    """
    row, column = (torch.linspace(0, 1, size) if size > 1 else torch.zeros(1) for size in (num_rows, num_columns))
    widest = max(band, 1 / max(min(num_rows, num_columns) - 1, 1))
    return (row[:, None] - column).abs() <= widest + 1e-6


def transport_rewards(
    rollout: Float[Tensor, "T E"], demo: Float[Tensor, "M E"], *, epsilon: float = EPSILON, band: float = BAND
) -> Float[Tensor, " T"]:
    """RAPL's reward of every step of a finished rollout.

        C_tj = 1 − cos(f(o_t), f(o⁺_j)),   r_t = −Σ_j C_tj μ*_tj,   |t/T − j/M| ≤ band where μ* > 0

    The plan needs the whole rollout: for labelling recorded episodes, not for acting. Σ_t r_t is minus the distance.

    Args:
        demo: M embedded rows.
        epsilon: weight of the entropy.

    Source: arXiv 2310.07932 with its equations from memory, unverified; the band is ours, since plain transport
        ignores the order of time.
    """
    cost = cosine_cost(rollout, demo)
    plan = sinkhorn(cost, epsilon=epsilon, allowed=band_mask(cost.shape[0], cost.shape[1], band).to(cost.device))
    return -(cost * plan).sum(-1)


def cosine_cost(first: Float[Tensor, "*S N E"], second: Float[Tensor, "*R M E"]) -> Float[Tensor, "*Q N M"]:
    """1 − cos, in [0, 2].

    Args:
        first, second: embedded rows.
    """
    unit = nn.functional.normalize
    return 1 - unit(first, dim=-1) @ unit(second, dim=-1).transpose(-1, -2)


def preference_loss(preferred: Float[Tensor, " N"], other: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """−log( e^(−d(A,P)) / (e^(−d(A,P)) + e^(−d(A,N))) ), mean over triplets, from the two distances to anchors.

    Args:
        preferred: d(A, P) of N triplets.
        other: d(A, N).
    """
    return nn.functional.softplus(preferred - other).mean()


# The head -----------------------------------------------------------------------------------------------------


class SoFar(NamedTuple):
    """The costs of an episode's rows so far, in a buffer that those to come share: none is copied for every new one.

    Attributes:
        buffer: (B, room, K, M).
        length: how many of its rows are these.
        written: how many of them anybody wrote, one number.
    """

    buffer: Tensor
    length: int
    written: list[int]

    @property
    def rows(self) -> Float[Tensor, "B R K M"]:
        return self.buffer[:, : self.length]

    def then(self, more: Float[Tensor, "B T K M"]) -> SoFar:
        """These and more; these stay as they are, whoever goes on from them."""
        length = self.length + more.shape[1]
        buffer, written = self.buffer, self.written
        if written[0] != self.length or length > buffer.shape[1]:
            buffer, written = more.new_empty(more.shape[0], 2 * length, *more.shape[2:]), [length]
            buffer[:, : self.length] = self.rows
        buffer[:, self.length : length] = more
        written[0] = length
        return SoFar(buffer, length, written)


class Aligned(nn.Module):
    """f: features (…, D) -> (…, E), centred then linear; and the demonstrations in it, (K, M, E), M = `ROWS`.

    Args:
        dim: D.
        num_demos: K.
    """

    mean: Tensor
    demos: Tensor
    spread: Tensor

    def __init__(self, dim: int, num_demos: int) -> None:
        super().__init__()
        self.layer = nn.Linear(dim, WIDTH, bias=False)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("demos", torch.zeros(num_demos, ROWS, WIDTH))
        self.register_buffer("spread", torch.ones(()))  # mean distance of the demonstrations to each other

    def forward(self, state: Tensor) -> Tensor:
        return self.layer(state.float() - self.mean)


class RAPL:
    """How far along the preferred demonstrations the episode is, and how nearly it went their way.

        episode   r_t of `transport_rewards`, times T, mean over demonstrations: at most 0, mean −distance
        causal    φ_t = mean over demonstrations of τ_t · min(1, d₀ / d(o_0…o_t, o⁺ up to τ_t))
                  τ_t = Σ_j softmax_j(−C_tj / ε) j / (M − 1)

    "causal" is a potential in [0, 1] that reads nothing after t: the soft place τ of the current frame in the
    demonstration, lowered where the way there cost more transport d than demonstrations cost each other, d₀ (both by
    banded Sinkhorn plans on `ROWS` rows). It depends on the episode so far, not on the frame alone.
    "episode" is the published reward. It reads the whole episode, so it can label recorded ones and must not be used
    to act; `advances` says which it is.

    Args:
        models: view -> its f, with the demonstrations.
        readout: "causal" or "episode".

    Raises:
        ValueError: `readout` is unknown.

    Source: arXiv 2310.07932; equations from memory, unverified. Departs: f is a linear map on centred frozen features;
        the band for the order of time; "causal" is ours.
    """

    name = "rapl"

    def __init__(self, models: Mapping[str, Aligned], *, readout: str = "causal") -> None:
        if readout not in READOUTS:
            raise ValueError(f"RAPL: readout must be one of {', '.join(READOUTS)}; got {readout!r}.")
        self.models = {name: copy.deepcopy(each).eval().requires_grad_(False) for name, each in models.items()}
        self.readout = readout

    @classmethod
    def fit(cls, demos: Sequence[Episode], *, readout: str = "causal", updates: int = 20, seed: int = 0) -> RAPL:
        """Align f with preferences between episodes: an anchor is nearer to another success than to a failure.

        Episodes whose `success` is False are the ones not preferred. Without any there is nothing to align to, and f
        stays what training starts from, the successes' principal components.

        Args:
            demos: successes, at least one; and failures, if there are any. The rest at their end is cut off
                (`rewards.views.trimmed`).
            readout: see the class.
            updates: of Adam, 1e-3, 8 triplets each.
            seed: of the triplets.

        Raises:
            ValueError: no success, or an episode of fewer than 2 rows.
        """
        preferred = [demo for demo in demos if demo.success is not False]
        if not preferred:
            raise ValueError(f"RAPL.fit: demos must hold at least one success; got {len(demos)} failures.")
        if (shortest := min(map(len, demos))) < 2:
            raise ValueError(f"RAPL.fit: demos must have at least 2 rows; got {shortest}.")
        views = shared_views("RAPL.fit", [*preferred, *(demo for demo in demos if demo.success is False)], False)
        models = {}
        for name in views[0]:
            rows = [resample(each[name].float(), ROWS) for each in views]
            models[name] = _align(rows[: len(preferred)], rows[len(preferred) :], updates, seed, f"RAPL, {name}")
        return cls(models, readout=readout)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The views that it was fitted on."""
        return tuple(self.models)

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """φ in [0, 1]; or, by "episode", r_t ≤ 0. A view that is missing gives 0 (causal), or is left out (episode)."""
        if self.readout == "episode":
            seen = {name: model for name, model in self.models.items() if name in features.views}
            return mean_over_views("RAPL", features, seen or self.models, _episode_rewards)
        return self.advance(features)[0]

    @property
    def advances(self) -> bool:
        return self.readout == "causal"

    def advance(
        self, features: Features, memory: Mapping[str, SoFar] | None = None
    ) -> tuple[Float[Tensor, "B T"], dict[str, SoFar]]:
        """The causal φ of the rows that follow (see `rewards.core.Head`)."""
        costs: dict[str, SoFar] = {}

        def potential(named: tuple[str, Aligned], state: Tensor) -> Tensor:
            view, model = named
            cost = cosine_cost(model(state)[:, None], model.demos).movedim(1, 2)
            costs[view] = SoFar(cost, cost.shape[1], [cost.shape[1]]) if memory is None else memory[view].then(cost)
            return _causal_potential(costs[view].rows, state.shape[1], model.spread)

        named = {view: (view, model) for view, model in self.models.items()}
        return mean_over_views("RAPL", features, named, potential), costs

    def save(self, folder: Path, encoder: Encoder) -> None:
        """Write it to a folder; see `rewards.storage`."""
        config = {
            "views": list(self.models),
            "num_demos": len(next(iter(self.models.values())).demos),
            "readout": self.readout,
        }
        tensors = joined({view: each.state_dict() for view, each in self.models.items()})
        save_fitted(folder, kind=self.name, encoder=encoder, config=config, tensors=tensors)

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder) -> RAPL:
        """What `save` wrote; raises as `load_fitted`."""
        config, tensors = load_fitted(folder, kind=cls.name, encoder=encoder)
        models = {}
        for view in config["views"]:
            models[view] = Aligned(encoder.dim, config["num_demos"])
            models[view].load_state_dict(group_of(tensors, view))
        return cls(models, readout=config["readout"])


def rapl_scorer(
    *,
    encoder: Encoder,
    model: str | None = None,
    demos: Sequence[Episode] = (),
    readout: str = "causal",
    updates: int = 20,
    seed: int = 0,
    outcome: Mapping[str, Any] | None = None,
    shaping: Mapping[str, Any] | None = None,
) -> Scorer:
    """`RAPL`, loaded from a folder or fitted at once, as a scorer.

    Args:
        encoder: embeds frames.
        model: folder of a fitted head; else it is fitted.
        demos: see `RAPL.fit`.
        readout: see `RAPL`; a fitted head keeps its own.
        updates: see `RAPL.fit`.
        seed: see `RAPL.fit`.
        outcome: see `rewards.outcome.held_to_outcome`.
        shaping: arguments of `PotentialShaping`.
    """
    if model is not None:
        head = RAPL.load(model, encoder)
    else:
        head = RAPL.fit(demos, readout=readout, updates=updates, seed=seed)
    if head.readout == "causal":  # the other is no potential
        head = held_to_outcome(head, outcome, encoder=encoder, demos=demos, model=model)
    return as_scorer(encoder, {head.name: head}, shaping)


def resample(rows: Float[Tensor, "T D"], count: int) -> Float[Tensor, "N D"]:
    """`count` rows evenly in time, the first and the last among them; rows repeat where there are fewer."""
    return rows[torch.linspace(0, len(rows) - 1, count).round().long()]


def transport_distance(
    first: Float[Tensor, "*S N E"], second: Float[Tensor, "*S N E"], iterations: int = 50
) -> Float[Tensor, "*S"]:
    """d = Σ C μ* of two sequences of one length, banded. Its gradient holds μ* still (the envelope theorem).

    Args:
        first, second: embedded rows.
        iterations: of Sinkhorn's algorithm.
    """
    cost = cosine_cost(first, second)
    with torch.no_grad():
        plan = sinkhorn(cost, iterations=iterations, allowed=band_mask(cost.shape[-2], cost.shape[-1], BAND))
    return (cost * plan).sum((-2, -1))


def _episode_rewards(model: Aligned, state: Float[Tensor, "B T D"]) -> Float[Tensor, "B T"]:
    embedded = model(state)[:, None]  # (B, 1, T, E) against (K, M, E)
    cost = cosine_cost(embedded, model.demos)
    plan = sinkhorn(cost, allowed=band_mask(cost.shape[-2], cost.shape[-1], BAND))
    return -(cost * plan).sum(-1).mean(1) * state.shape[1]


def _causal_potential(cost: Float[Tensor, "B R K M"], num_rows: int, spread: Tensor) -> Float[Tensor, "B T"]:
    """φ of the last T of the R rows so far, from all rows' costs against K demonstrations of M rows."""
    share = torch.linspace(0, 1, ROWS)
    place = (-cost[:, -num_rows:] / EPSILON).softmax(-1) @ share  # τ, (B, T, K)
    so_far = torch.arange(cost.shape[1] - num_rows, cost.shape[1])
    taken = (so_far[:, None] * share).round().long()  # (T, N): rows of each prefix
    prefix = cost[:, taken].movedim(3, 2)  # (B, T, K, N, M)
    last = place[..., None].clamp(min=1 / (ROWS - 1))
    columns = (share <= last + 1e-6).to(cost)  # of the demonstration up to τ, two at least
    columns = columns / columns.sum(-1, keepdim=True)
    band = (1 / (last * (ROWS - 1))).clamp(min=BAND)[..., None]  # no narrower than a step, as in `band_mask`
    allowed = (share[:, None] - share / last[..., None]).abs() <= band + 1e-6
    plan = sinkhorn(prefix, iterations=5, columns=columns, allowed=allowed)
    distance = (prefix * plan).sum((-2, -1))
    return (place * (spread / distance.clamp(min=1e-9)).clamp(max=1)).mean(-1)


def _align(successes: Sequence[Tensor], failures: Sequence[Tensor], updates: int, seed: int, title: str) -> Aligned:
    """One view's f, from (ROWS, D) float32 episodes."""
    demos = torch.stack(list(successes))
    model = Aligned(demos.shape[-1], len(demos))
    model.mean = demos.flatten(0, 1).mean(0)
    _, _, basis = torch.linalg.svd(demos.flatten(0, 1) - model.mean, full_matrices=False)
    model.layer.weight.data.zero_()
    model.layer.weight.data[: len(basis)] = basis[:WIDTH]
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.layer.parameters(), 1e-3)
    with torch.inference_mode(False), torch.enable_grad():
        for _ in tqdm(range(updates if failures else 0), title, delay=5.0, leave=False):
            anchor = torch.randint(len(demos), (8,), generator=generator)
            step = torch.randint(1, max(len(demos), 2), (8,), generator=generator)  # another demonstration, if any
            preferred = (anchor + step) % len(demos)
            other = torch.randint(len(failures), (8,), generator=generator)
            near, far = model(demos[preferred]), model(torch.stack([failures[k] for k in other.tolist()]))
            anchors = model(demos[anchor])
            loss = preference_loss(transport_distance(anchors, near, 20), transport_distance(anchors, far, 20))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        model.demos = model(demos)
        one, other = torch.combinations(torch.arange(len(demos))).T
        between = transport_distance(model.demos[one], model.demos[other])
        model.spread = between.mean() if len(between) else torch.tensor(LONE_SPREAD)
    return model
