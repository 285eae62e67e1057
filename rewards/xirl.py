"""XIRL: embeddings in which demonstrations of one task run through the same places in the same order.

Shape letters: B batch, T time, D feature width, E embedding width, N frames drawn per demonstration, P pairs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rewards.compose import as_scorer
from rewards.core import Encoder, Episode, Features, Scorer
from rewards.outcome import held_to_outcome
from rewards.progress import tqdm
from rewards.storage import group_of, joined, load_fitted, save_fitted
from rewards.views import mean_over_views, shared_views

LOSSES = ("classification", "regression", "regression_mse", "regression_mse_var")
READOUTS = ("time", "distance")
TEMPERATURE, SMOOTHING, VARIANCE_WEIGHT = 0.1, 0.1, 0.001  # of XIRL's code
WIDTH = 8
DRAWN = 20  # frames per demonstration and update


class Embedder(nn.Module):
    """f: features (…, D) -> (…, E), standardised, then linear; a frame's embedding reads that frame alone.

    Keeps what a score needs of the demonstrations: the embeddings of their rows, their times in [0, 1] and whose they
    are (`path`, `times`, `lengths`), the goal and the mean distance of the first embeddings from it.

    Args:
        dim: D.
    """

    mean: Tensor
    scale: Tensor
    path: Tensor
    times: Tensor
    lengths: Tensor
    goal: Tensor
    start_distance: Tensor

    def __init__(self, dim: int, lengths: Sequence[int]) -> None:
        super().__init__()
        self.rows = [int(length) for length in lengths]  # the same as numbers: to read them off a GPU waits for it
        self.layer = nn.Linear(dim, WIDTH)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("path", torch.zeros(sum(lengths), WIDTH))
        self.register_buffer("times", torch.cat([torch.linspace(0, 1, length) for length in lengths]))
        self.register_buffer("lengths", torch.tensor(list(lengths)))
        self.register_buffer("goal", torch.zeros(WIDTH))
        self.register_buffer("start_distance", torch.ones(()))

    def forward(self, state: Tensor) -> Tensor:
        return self.layer((state.float() - self.mean) / self.scale)

    def standardise(self, rows: Float[Tensor, "N D"]) -> None:
        """Take the inputs' means and one common scale from training frames."""
        self.mean = rows.mean(0)
        self.scale = (rows - self.mean).square().mean().sqrt().clamp(min=1e-6)

    @torch.no_grad()
    def remember(self, demos: Sequence[Tensor]) -> None:
        """Embed the demonstrations, (T, D) each, once the layer is trained."""
        self.path = self(torch.cat(list(demos)))
        ends = self.lengths.cumsum(0) - 1
        self.goal = self.path[ends].mean(0)
        first = self.path[ends - self.lengths + 1]
        self.start_distance = torch.linalg.vector_norm(first - self.goal, dim=-1).mean().clamp(min=1e-6)


class XIRL:
    """How far along the demonstrations a frame is, in an embedding trained by temporal cycle consistency.

        distance   r(o) = −c |f(o) − g|,  c = 1 / mean |f(first) − g|,  g = mean embedding of the last frames
                   φ(o) = clip(1 + r(o), 0, 1)
        time       φ(o) = mean over demonstrations of Σ_j β_j t_j,  β = softmax(−|f(o) − e_j|² / (E τ))

    "distance" is XIRL's reward, raised by 1 and clipped, so that a terminal 0 and a lost view mean "as at the start"
    and never pay. "time" reads the same embedding as its training does, by the soft neighbour's time t_j in [0, 1].
    Distances to the goal need not fall along an embedded demonstration, which bends; its time rises by construction.
    Both read one frame: a task that passes one place twice, or ends where it began, they cannot tell.

    Args:
        embedders: view -> its f, with the demonstrations embedded.
        readout: "time" or "distance".

    Raises:
        ValueError: `readout` is unknown.

    Source: google-research/xirl (arXiv 2106.03911). Departs: f is linear on frozen features, 8 wide, one per view,
        whose φ are averaged (with ten demonstrations or fewer a hidden layer or 32 dimensions ranked frames worse by
        "distance" and no better by "time"); the time read-out is ours and the default.
    """

    name, pointwise = "xirl", True

    def __init__(self, embedders: Mapping[str, Embedder], *, readout: str = "time") -> None:
        if readout not in READOUTS:
            raise ValueError(f"XIRL: readout must be one of {', '.join(READOUTS)}; got {readout!r}.")
        self.readout = readout
        self.embedders = {name: copy.deepcopy(each).eval().requires_grad_(False) for name, each in embedders.items()}

    @classmethod
    def fit(
        cls,
        demos: Sequence[Episode],
        *,
        loss: str = "regression",
        readout: str = "time",
        updates: int = 100,
        seed: int = 0,
    ) -> XIRL:
        """Train an embedding per view on successful demonstrations of one task, of the robot or of others.

        Every update draws N frames of each demonstration, in order, and cycles from each through another one. With
        one demonstration two draws of it stand for two: only time within it is learned then, nothing about what varies
        between starts.

        Args:
            demos: one or more that end with the task done; the rest after that is cut off (`rewards.views.trimmed`).
            loss: one of `LOSSES`, see `cycle_loss`.
            readout: see the class.
            updates: of AdamW, 3e-3, weight decay 1.
            seed: of weights and draws.

        Raises:
            ValueError: no demonstration, a failed one, one of fewer than 2 rows, an unknown loss, or no updates.
        """
        where = "XIRL.fit"
        if loss not in LOSSES:
            raise ValueError(f"{where}: loss must be one of {', '.join(LOSSES)}; got {loss!r}.")
        if updates < 1:
            raise ValueError(f"{where}: updates must be ≥ 1; got {updates}.")
        views = shared_views(where, demos)
        if (shortest := min(map(len, demos))) < 2:
            raise ValueError(f"{where}: demos must have at least 2 rows; got {shortest}.")
        embedders = {}
        for name in views[0]:
            rows = [each[name].float() for each in views]
            embedders[name] = _train(rows, loss, updates, seed, f"XIRL, {name}")
        return cls(embedders, readout=readout)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The views that it was fitted on."""
        return tuple(self.embedders)

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """φ of each frame, in [0, 1]; a view that is missing gives 0."""
        return mean_over_views("XIRL", features, self.embedders, self._potential)

    def _potential(self, embedder: Embedder, state: Float[Tensor, "B T D"]) -> Float[Tensor, "B T"]:
        embedded = embedder(state)
        if self.readout == "distance":
            return (1 + goal_reward(embedded, embedder.goal, embedder.start_distance)).clamp(0, 1)
        return soft_time(embedded, embedder.path, embedder.times, embedder.rows)

    def save(self, folder: Path, encoder: Encoder) -> None:
        """Write it to a folder; see `rewards.storage`."""
        lengths = next(iter(self.embedders.values())).rows
        config = {"views": list(self.embedders), "lengths": lengths, "readout": self.readout}
        tensors = joined({view: each.state_dict() for view, each in self.embedders.items()})
        save_fitted(folder, kind=self.name, encoder=encoder, config=config, tensors=tensors)

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder) -> XIRL:
        """What `save` wrote; raises as `load_fitted`."""
        config, tensors = load_fitted(folder, kind=cls.name, encoder=encoder)
        embedders = {}
        for view in config["views"]:
            embedders[view] = Embedder(encoder.dim, config["lengths"])
            embedders[view].load_state_dict(group_of(tensors, view))
        return cls(embedders, readout=config["readout"])


def goal_reward(
    embedded: Float[Tensor, "*S E"], goal: Float[Tensor, " E"], start_distance: Float[Tensor, ""] | float
) -> Float[Tensor, "*S"]:
    """r = −|f(o) − g| / mean |f(first) − g|: 0 at the goal, about −1 at the start.

    Args:
        embedded: f(o).
        start_distance: mean distance of first rows from the goal.
    """
    return -torch.linalg.vector_norm(embedded - goal, dim=-1) / start_distance


def soft_time(
    embedded: Float[Tensor, "*S E"],
    path: Float[Tensor, "R E"],
    times: Float[Tensor, " R"],
    lengths: Sequence[int],
) -> Float[Tensor, "*S"]:
    """The time of the soft nearest neighbour in each demonstration, averaged over demonstrations; in [0, 1].

    Args:
        embedded: frames.
        path: the R embedded rows of all demonstrations.
        times: their times in [0, 1].
        lengths: rows of each demonstration, in the order of `path`.
    """
    score = -_square_distances(embedded, path) / (path.shape[-1] * TEMPERATURE)
    parts = zip(score.split(list(lengths), -1), times.split(list(lengths)), strict=True)
    return torch.stack([part.softmax(-1) @ time for part, time in parts]).mean(0)


def cycle_loss(
    first: Float[Tensor, "P N E"],
    second: Float[Tensor, "P M E"],
    times: Float[Tensor, "P N"],
    *,
    loss: str = "classification",
) -> Float[Tensor, ""]:
    """Temporal cycle consistency: from each frame to its soft neighbour in the other sequence and back again.

        S₁₂ = −|E₁ − E₂|² / (E τ),   Ẽ = softmax(S₁₂) E₂,   S₂₁ = −|Ẽ − E₁|² / (E τ)
        classification: cross-entropy of S₂₁ with the frame's own place, labels smoothed by 0.1
        regression_mse: (t − t̂)²,  t̂ = Σ β t,  β = softmax(S₂₁); the default of XIRL's code
        regression:     e^(−v) (t − t̂)² + 0.001 v,  v = log Σ β (t − t̂)²; regression_mse_var there

    Args:
        first: embeddings of the sequences that are cycled.
        second: of those passed through.
        times: of `first`'s frames, in [0, 1].
        loss: one of `LOSSES`.

    Returns:
        The mean over pairs and frames; τ = 0.1.
    Source: google-research/xirl (arXiv 2106.03911; 1904.07846). The variance is kept above 1e-3, or a sharp cycle
        makes e^(−v) explode.
    """
    width = first.shape[-1]
    there = -_square_distances(first, second) / (width * TEMPERATURE)
    neighbour = there.softmax(-1) @ second
    back = -_square_distances(neighbour, first) / (width * TEMPERATURE)  # (P, N, N)
    if loss == "classification":
        target = torch.arange(first.shape[1], device=first.device).expand(len(first), -1)
        return nn.functional.cross_entropy(back.transpose(1, 2), target, label_smoothing=SMOOTHING)
    beta = back.softmax(-1)
    expected = (beta * times[:, None]).sum(-1)
    if loss == "regression_mse":
        return ((times - expected) ** 2).mean()
    variance = (beta * (times[:, None] - expected[..., None]) ** 2).sum(-1)
    log_variance = variance.clamp(min=1e-3).log()
    return (torch.exp(-log_variance) * (times - expected) ** 2 + VARIANCE_WEIGHT * log_variance).mean()


def xirl_scorer(
    *,
    encoder: Encoder,
    model: str | None = None,
    demos: Sequence[Episode] = (),
    loss: str = "regression",
    readout: str = "time",
    updates: int = 100,
    seed: int = 0,
    outcome: Mapping[str, Any] | None = None,
    shaping: Mapping[str, Any] | None = None,
) -> Scorer:
    """`XIRL`, loaded from a folder or trained on demonstrations at once, as a scorer.

    Args:
        encoder: embeds frames.
        model: folder of a fitted head; else it is trained.
        demos: see `XIRL.fit`.
        loss: see `cycle_loss`.
        readout: see `XIRL`.
        updates: see `XIRL.fit`.
        seed: see `XIRL.fit`.
        outcome: see `rewards.outcome.held_to_outcome`.
        shaping: arguments of `PotentialShaping`.
    """
    if model is not None:
        head = XIRL.load(model, encoder)
    else:
        head = XIRL.fit(demos, loss=loss, readout=readout, updates=updates, seed=seed)
    head = held_to_outcome(head, outcome, encoder=encoder, demos=demos, model=model)
    return as_scorer(encoder, {head.name: head}, shaping)


def _train(demos: Sequence[Tensor], loss: str, updates: int, seed: int, title: str) -> Embedder:
    """One view's embedding of (T, D) float32 demonstrations."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embedder = Embedder(demos[0].shape[1], [len(demo) for demo in demos])
    embedder.standardise(torch.cat(list(demos)))
    optimiser = torch.optim.AdamW(embedder.layer.parameters(), 3e-3, weight_decay=1.0)
    sequences = list(demos) if len(demos) > 1 else [demos[0], demos[0]]
    with torch.inference_mode(False), torch.enable_grad():
        for _ in tqdm(range(updates), title, delay=5.0, leave=False):
            drawn = [_draw(demo, generator) for demo in sequences]
            frames = embedder(torch.stack([rows for rows, _ in drawn]))
            times = torch.stack([time for _, time in drawn])
            shift = int(torch.randint(1, len(sequences), (1,), generator=generator))
            value = cycle_loss(frames, frames.roll(shift, 0), times, loss=loss)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
    embedder.remember(demos)
    return embedder


def _draw(demo: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """N frames in order at random times, between rows by interpolation, always with the last; and their times."""
    time = torch.rand(DRAWN, generator=generator).sort().values
    time[-1] = 1.0
    place = time * (len(demo) - 1)
    before = place.floor().long().clamp(max=len(demo) - 2)
    share = (place - before)[:, None]
    return (1 - share) * demo[before] + share * demo[before + 1], time


def _square_distances(first: Float[Tensor, "*S N E"], second: Float[Tensor, "*R M E"]) -> Float[Tensor, "*Q N M"]:
    squares = first.square().sum(-1)[..., None] + second.square().sum(-1)[..., None, :]
    return (squares - 2 * first @ second.transpose(-1, -2)).clamp(min=0)
