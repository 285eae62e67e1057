"""Unsupervised Perceptual Rewards: the steps of a few demonstrations, found without labels, and how far a frame is.

Shape letters: B batch, T time, D feature width, K steps, N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from rewards.compose import as_scorer
from rewards.core import Encoder, Episode, Features, Scorer
from rewards.outcome import held_to_outcome
from rewards.segmentation import FLOOR, choose_num_steps, row_steps, segment, segment_jointly, select_features
from rewards.storage import load_fitted, save_fitted
from rewards.views import mean_over_views, shared_views

FORMS = ("onward", "gaussian", "literal", "logistic")
RIDGE = 1.0  # of a classifier's weights: strong, so that it grades a few correlated frames rather than splits them
KEPT = 32  # features of a Gaussian step, the paper's n


@dataclass(frozen=True)
class StepModel:
    """R_k(s) = sigmoid(Σ_d curve_kd (z_d − centre_kd)² + slope_kd z_d + offset_k) with z = (s − mean) / scale.

    Every form is of this kind. Shapes: mean, scale (D,); curve, centre, slope (K, D); offset (K,). All float64.
    """

    mean: Tensor
    scale: Tensor
    curve: Tensor
    centre: Tensor
    slope: Tensor
    offset: Tensor

    def rewards(self, state: Float[Tensor, "B T D"]) -> Float[Tensor, "B T K"]:
        """R_k of each frame, in (0, 1)."""
        z = (state.double() - self.mean) / self.scale
        bent = (z**2) @ self.curve.T - 2 * z @ (self.curve * self.centre).T + (self.curve * self.centre**2).sum(-1)
        return torch.sigmoid(bent + z @ self.slope.T + self.offset)


class Demonstration:
    """How far along the steps of the demonstrations a frame is, in [0, 1].

    Steps are found by `segment_jointly`, or per demonstration by `segment`; marks (`Episode.steps`) are not read. Then
    for each step k a reward R_k in (0, 1), per view:

        gaussian   R_k = σ(a ℓ + b),  ℓ = −(1/2n) Σ_i [(s_i − μ_i)² / σ_i² + log σ_i²] over the n selected features
        literal    the same with ℓ = −(1/n) Σ_i (s_i − μ_i)² / σ_i, as the paper prints it
        logistic   a linear classifier of step k against the other steps, on all features
        onward     a linear classifier of "step k or a later one" against the earlier ones

    a and b are fitted to the training frames by logistic regression, a step and its rest weighing the same. Then

        gaussian, literal, logistic   φ = Σ_{k=2..K} 2^(k−1) R_k / Σ_{k=2..K} 2^(k−1)
        onward                        φ = Σ_{k=2..K} R_k / (K − 1), the expected share of steps entered
        sequenced                     R_k becomes R_k · min_{1<j<k} max_{u≤t} R_j(u)

    A later step that looks like an earlier scene counts at any time; `sequenced` lets it count only once the steps
    before it have been seen, which makes φ depend on the episode so far. Step 1 is where everything starts: nothing
    waits for it, and without it φ of a start is near 0.

    Args:
        models: view -> its steps.
        form: "onward", "gaussian", "literal" or "logistic".
        sequenced: whether a later step needs the earlier ones.

    Raises:
        ValueError: `form` is unknown.

    Source: arXiv 1612.06699 §3. Departs: frozen features of one encoder instead of Inception's maps (on the embedded
        encoder's last map the steps found agree less with the known ones); steps found jointly; the squashing, which
        the paper leaves open; φ is divided by its largest value. The weights 2^(k−1) (appendix A.1) and the logistic
        form (the RSS version) are from memory, unverified. "onward" is ours: a step, once done, stays done, so no part
        of φ falls when a step ends, which ranks frames and outcomes better (benchmarks/results/perceptual.json).
    """

    name, advances = "demonstration", True

    def __init__(self, models: Mapping[str, StepModel], *, form: str = "onward", sequenced: bool = False) -> None:
        if form not in FORMS:
            raise ValueError(f"Demonstration: form must be one of {', '.join(FORMS)}; got {form!r}.")
        self.models, self.form, self.sequenced = dict(models), form, sequenced

    @classmethod
    def fit(
        cls,
        demos: Sequence[Episode],
        *,
        form: str = "onward",
        num_steps: int | None = None,
        joint: bool = True,
        sequenced: bool = False,
    ) -> Demonstration:
        """Find the steps of successful demonstrations, of the robot or of something else, and what tells them apart.

        Args:
            demos: one or more that end with the task done; the rest after that is cut off (`rewards.views.trimmed`).
            form: see the class.
            num_steps: K ≥ 2; None: `choose_num_steps`.
            joint: whether steps must look alike in all demonstrations; False is the paper's way.
            sequenced: see the class.

        Raises:
            ValueError: no demonstration, a failed one, one too short for two steps (6 rows), or fewer than 2 steps.
        """
        where = "Demonstration.fit"
        views = shared_views(where, demos)
        named = {name: [each[name].numpy() for each in views] for name in views[0]}
        spread = {name: _spread(rows) for name, rows in named.items()}
        normal = {name: [(each - spread[name][0]) / spread[name][1] for each in rows] for name, rows in named.items()}
        together = [np.concatenate(parts, 1) for parts in zip(*normal.values(), strict=True)]
        count = choose_num_steps(together) if num_steps is None else num_steps
        if count < 2:
            raise ValueError(
                f"{where}: demos must have at least two steps; got {count}, the shortest being "
                f"{min(map(len, together))} rows. Give longer demonstrations, or num_steps ≥ 2."
            )
        steps = segment_jointly(together, count)[0] if joint else [segment(each, count) for each in together]
        labels = np.concatenate([row_steps(each) for each in steps])
        models = {name: _step_model(np.concatenate(rows), labels, form, *spread[name]) for name, rows in normal.items()}
        return cls(models, form=form, sequenced=sequenced)

    def steps(self, features: Features) -> dict[str, Float[Tensor, "B T K"]]:
        """R_k of each frame by view, in (0, 1), for the views that were fitted."""
        return {name: model.rewards(features.views[name]) for name, model in self.models.items()}

    @property
    def cameras(self) -> tuple[str, ...]:
        """The views that it was fitted on."""
        return tuple(self.models)

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """φ of each frame, in [0, 1]; a view that is missing gives 0."""
        return self.advance(features)[0]

    @property
    def pointwise(self) -> bool:
        return not self.sequenced

    def advance(
        self, features: Features, memory: Mapping[str, Tensor] | None = None
    ) -> tuple[Float[Tensor, "B T"], dict[str, Tensor]]:
        """φ of the frames that follow (see `rewards.core.Head`)."""
        best: dict[str, Tensor] = {}  # view -> (B, K), the highest reward of each step so far

        def potential(named: tuple[str, StepModel], state: Tensor) -> Tensor:
            view, model = named
            later = model.rewards(state)[..., 1:]
            if self.sequenced:
                later, best[view] = in_sequence(later, None if memory is None else memory[view])
            return self._weighted(later)

        named = {view: (view, model) for view, model in self.models.items()}
        return mean_over_views("Demonstration", features, named, potential), best

    def _weighted(self, later: Float[Tensor, "B T K"]) -> Float[Tensor, "B T"]:
        weights = torch.ones(later.shape[-1]) if self.form == "onward" else 2.0 ** torch.arange(1, later.shape[-1] + 1)
        weights = weights.to(later)
        return later @ weights / weights.sum()

    def save(self, folder: Path, encoder: Encoder) -> None:
        """Write it to a folder; see `rewards.storage`."""
        tensors = {f"{view}/{key}": value for view, model in self.models.items() for key, value in vars(model).items()}
        config = {"form": self.form, "sequenced": self.sequenced, "views": list(self.models)}
        save_fitted(folder, kind=self.name, encoder=encoder, config=config, tensors=tensors)

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder) -> Demonstration:
        """What `save` wrote; raises as `load_fitted`."""
        config, tensors = load_fitted(folder, kind=cls.name, encoder=encoder)
        names = list(StepModel.__dataclass_fields__)
        models = {view: StepModel(*(tensors[f"{view}/{key}"] for key in names)) for view in config.pop("views")}
        return cls(models, **config)


def in_sequence(
    rewards: Float[Tensor, "B T K"], best: Float[Tensor, "B K"] | None = None
) -> tuple[Float[Tensor, "B T K"], Float[Tensor, "B K"]]:
    """Each step's reward times the least of the highest rewards so far of the steps before it.

    Args:
        rewards: R_k of the rows that follow.
        best: the highest before them; None at the reset.

    Returns:
        The products, and the highest now.
    """
    highest = (rewards if best is None else torch.cat([best[:, None], rewards], 1)).cummax(1).values
    so_far = highest[:, -rewards.shape[1] :].cummin(-1).values
    return torch.cat([rewards[..., :1], rewards[..., 1:] * so_far[..., :-1]], -1), highest[:, -1]


def demonstration_scorer(
    *,
    encoder: Encoder,
    model: str | None = None,
    demos: Sequence[Episode] = (),
    form: str = "onward",
    num_steps: int | None = None,
    joint: bool = True,
    sequenced: bool = False,
    outcome: Mapping[str, Any] | None = None,
    shaping: Mapping[str, Any] | None = None,
) -> Scorer:
    """`Demonstration`, loaded from a folder or fitted to demonstrations at once, as a scorer.

    Args:
        encoder: embeds frames.
        model: folder of a fitted head; else it is fitted.
        demos: see `Demonstration.fit`.
        form: see `Demonstration`.
        num_steps: see `Demonstration.fit`.
        joint: see `Demonstration.fit`.
        sequenced: see `Demonstration`.
        outcome: see `rewards.outcome.held_to_outcome`.
        shaping: arguments of `PotentialShaping`.
    """
    if model is not None:
        head = Demonstration.load(model, encoder)
    else:
        head = Demonstration.fit(demos, form=form, num_steps=num_steps, joint=joint, sequenced=sequenced)
    head = held_to_outcome(head, outcome, encoder=encoder, demos=demos, model=model)
    return as_scorer(encoder, {head.name: head}, shaping)


def _spread(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of every feature over all training frames; a constant feature keeps its scale."""
    values = np.concatenate(rows)
    deviation = values.std(0)
    return values.mean(0), np.where(deviation > 1e-6, deviation, 1.0)


def _step_model(z: np.ndarray, labels: np.ndarray, form: str, mean: np.ndarray, scale: np.ndarray) -> StepModel:
    """Fit R_k to normalised rows (N, D) and their steps (N,)."""
    num_steps, width = labels.max() + 1, z.shape[1]
    curve, centre, slope = np.zeros((3, num_steps, width))
    offset = np.zeros(num_steps)
    for k in range(num_steps):
        positive = labels >= k if form == "onward" else labels == k
        if form in ("onward", "logistic"):
            if positive.all():
                offset[k] = 20.0  # every frame is in the first step or later
            else:
                slope[k], offset[k] = classifier(z, positive, ridge=RIDGE)
            continue
        chosen, _ = select_features(z[positive], z[~positive], count=KEPT)
        mu, sigma = z[positive][:, chosen].mean(0), np.maximum(z[positive][:, chosen].std(0), FLOOR)
        if form == "gaussian":
            factor, constant = -0.5 / (len(chosen) * sigma**2), -np.log(sigma).mean()
        else:
            factor, constant = -1 / (len(chosen) * sigma), 0.0
        likelihood = ((z[:, chosen] - mu) ** 2) @ factor + constant
        stretch, shift = calibration(likelihood, positive)
        curve[k, chosen], centre[k, chosen] = stretch * factor, mu
        offset[k] = stretch * constant + shift
    parts = (mean, scale, curve, centre, slope, offset)
    return StepModel(*(torch.from_numpy(np.ascontiguousarray(part, np.float64)) for part in parts))


def classifier(rows: np.ndarray, positive: np.ndarray, *, ridge: float) -> tuple[np.ndarray, float]:
    """Logistic regression with balanced classes: minimise mean⁺ + mean⁻ of the log loss, halved, + ridge/2 ‖w‖².

    Args:
        rows: (N, D).
        positive: (N,) bool, of both kinds.
        ridge: ≥ 0; the intercept is free.

    Returns:
        Weights (D,) and intercept.
    """
    sign = np.where(positive, 1.0, -1.0)
    weight = np.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum())

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (rows @ values[:-1] + values[-1])
        pull = -weight * sign * np.exp(-np.logaddexp(0, margin))
        value = weight @ np.logaddexp(0, -margin) + ridge / 2 * values[:-1] @ values[:-1]
        return float(value), np.append(rows.T @ pull + ridge * values[:-1], pull.sum())

    found = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return found[:-1], float(found[-1])


def calibration(likelihood: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """a and b of σ(a ℓ + b), fitted with balanced classes on ℓ scaled to deviation 1 and a slight ridge, that a
    perfect split stays finite.

    Args:
        likelihood: ℓ, (N,).
        positive: (N,) bool.
    """
    mean, scale = likelihood.mean(), max(float(likelihood.std()), 1e-9)
    stretch, shift = classifier(((likelihood - mean) / scale)[:, None], positive, ridge=0.01)
    return float(stretch[0]) / scale, shift - float(stretch[0]) * mean / scale
