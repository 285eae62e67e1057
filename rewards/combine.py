"""Several rewards into one: sums, products, soft conjunctions, constraints, and VLM-RL's synthesis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rewards.core import Features

EDGE = 1e-3  # progress is kept this far from 0 and 1 where its logit is taken
SENSES = {"reach": (-1.0, 1.0), "at_least": (0.0, 1.0), "at_most": (-1.0, 0.0)}  # sense -> range of μ / bound


@dataclass(frozen=True)
class WeightedSum:
    """Σ wᵢ φᵢ, over heads by name.

    Args:
        weights: name -> weight; None gives every head 1/n, the mean.
    """

    weights: Mapping[str, float] | None = None

    def __call__(self, potentials: Mapping[str, Float[Tensor, "B T"]], features: Features) -> Float[Tensor, "B T"]:
        weights = self.weights or dict.fromkeys(potentials, 1 / len(potentials))
        if set(weights) != set(potentials):
            raise ValueError(
                f"WeightedSum: weights must name exactly the heads {', '.join(sorted(potentials))}; "
                f"got {', '.join(sorted(weights))}."
            )
        return torch.stack([weights[name] * score for name, score in potentials.items()]).sum(0)


@dataclass(frozen=True)
class Product:
    """Π φᵢ, over all heads, or over chosen ones.

    Args:
        names: the factors; None takes every head.
    """

    names: Sequence[str] | None = None

    def __call__(self, potentials: Mapping[str, Float[Tensor, "B T"]], features: Features) -> Float[Tensor, "B T"]:
        names = list(potentials) if self.names is None else self.names
        _check_names("Product: names", names, potentials)
        return torch.stack([potentials[name] for name in names]).prod(0)


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """Language reward × state terms, VLM-RL's hierarchical synthesis.

        v*      = φ · speed_max                      φ in [0, 1], the mean of the heads
        r_speed = 1 − |v − v*| / speed_max
        R       = r_speed · Π_k max(1 − |x_k| / limit_k, 0)
        R       = penalty, wherever the penalty signal is negative

    VLM-RL's three factors are `center` (distance to the lane's middle, 3 m), `angle` (to the lane, 90°) and `std`
    (of the distance, 0.4 m): three entries of `limits`. Without `speed` the head's φ stands for r_speed.

    Args:
        speed: the signal that reads the speed v, or None.
        speed_max: v_max in that signal's unit, > 0.
        limits: signal name -> value at which its factor reaches zero, > 0.
        penalty: a signal whose negative values replace the reward, or None. VLM-RL reads its simulator's
            collision penalty; a robot would read a contact or safety sensor.

    Raises:
        ValueError: a limit that is not positive.
        KeyError: (call) a signal that the features lack.
    Source: arXiv 2412.15544 and its code (`carla_env/rewards.py`). r_speed is not clipped there, nor here.
    """

    speed: str | None = None
    speed_max: float = 1.0
    limits: Mapping[str, float]
    penalty: str | None = None

    def __post_init__(self) -> None:
        for name, limit in {"speed_max": self.speed_max, **self.limits}.items():
            if not (math.isfinite(limit) and limit > 0):
                raise ValueError(f"Synthesis: the limit of {name} must be > 0; got {limit}.")

    def __call__(self, potentials: Mapping[str, Float[Tensor, "B T"]], features: Features) -> Float[Tensor, "B T"]:
        reward = self._goal(potentials) if self.speed is None else torch.ones(())
        for _, factor in self._factors(potentials, features):
            reward = reward * factor
        if self.penalty is None:
            return reward
        penalty = _signal(features, self.penalty)
        return torch.where(penalty < 0, penalty.to(reward), reward)

    def parts(
        self, potentials: Mapping[str, Float[Tensor, "B T"]], features: Features
    ) -> dict[str, Float[Tensor, "B T"]]:
        """r_speed, each factor and the penalty where it is negative (0 elsewhere), by the names of their signals; the
        factor of a signal that is the speed or the penalty too is called NAME_limit.

        Raises:
            KeyError: a signal that the features lack.
        """
        found: dict[str, Tensor] = {}
        if self.penalty is not None:
            found[self.penalty] = _signal(features, self.penalty).clamp(max=0)
        for name, factor in self._factors(potentials, features):
            found[f"{name}_limit" if name in found else name] = factor
        return found

    def _factors(
        self, potentials: Mapping[str, Float[Tensor, "B T"]], features: Features
    ) -> list[tuple[str, Float[Tensor, "B T"]]]:
        """r_speed, if there is one, then what each limit leaves."""
        factors: list[tuple[str, Tensor]] = []
        if self.speed is not None:
            away = _signal(features, self.speed) - self._goal(potentials) * self.speed_max
            factors.append((self.speed, 1 - away.abs() / self.speed_max))
        for name, limit in self.limits.items():
            factors.append((name, (1 - _signal(features, name).abs() / limit).clamp(min=0)))
        return factors

    def _goal(self, potentials: Mapping[str, Float[Tensor, "B T"]]) -> Float[Tensor, "B T"]:
        return torch.stack(list(potentials.values())).mean(0)


def _signal(features: Features, name: str) -> Float[Tensor, "B T"]:
    if name not in features.signals:
        raise KeyError(
            f"Synthesis: signal {name!r} must be among the features' signals; "
            f"got {', '.join(sorted(features.signals)) or 'none'}."
        )
    return features.signals[name]


C = TypeVar("C", bound="_Centred")


@dataclass(frozen=True, kw_only=True)
class _Centred:
    """Each head's potential, less a reference of its own."""

    references: Mapping[str, float] | None = None
    logit: bool = False

    @classmethod
    def fit(cls: type[C], scores: Mapping[str, Sequence[float]], *, quantile: float = 0.85, logit: bool = False) -> C:
        """With a high quantile of each head's scores under a base policy as its reference. Raises: see `quantiles`."""
        return cls(references=quantiles(scores, quantile, logit=logit), logit=logit)

    def _centred(self, potentials: Mapping[str, Float[Tensor, "B T"]]) -> Float[Tensor, "N B T"]:
        """rᵢ − refᵢ of every head."""
        references = dict.fromkeys(potentials, 0.0) if self.references is None else self.references
        if set(references) != set(potentials):
            raise ValueError(
                f"{type(self).__name__}: references must name exactly the heads {', '.join(sorted(potentials))}; "
                f"got {', '.join(sorted(references))}."
            )
        return torch.stack([_logit(score, self.logit) - references[name] for name, score in potentials.items()])


@dataclass(frozen=True, kw_only=True)
class LogSigmoidConjunction(_Centred):
    """Soft "all of them": the log-probability that every property holds.

        uᵢ = log σ(rᵢ − refᵢ),   R = Σ uᵢ ≤ 0

    The slope of uᵢ fades above the reference, so no one head can be farmed to make up for another.

    Args:
        references: head -> ref, in the unit of r; None: 0 for all. `fit` takes them from a base policy.
        logit: whether heads give probabilities or progress in [0, 1], of which r is the logit: the rule is derived
            for Bradley-Terry scores. They are first clipped to [0.001, 0.999].

    Raises:
        ValueError: (call) references that do not name exactly the heads.
    Source: arXiv 2402.00742 (Wang et al.). Which quantile to refer to is unverified here.
    """

    def __call__(self, potentials: Mapping[str, Float[Tensor, "B T"]], features: Features) -> Float[Tensor, "B T"]:
        return nn.functional.logsigmoid(self._centred(potentials)).sum(0)


@dataclass(frozen=True, kw_only=True)
class PreferenceAsReward(_Centred):
    """Bounded, quick at first and saturating: R = mean of σ(rᵢ − refᵢ), in (0, 1).

    σ(r − ref) is the Bradley-Terry probability of being preferred to the reference.

    Args:
        references, logit: as of `LogSigmoidConjunction`.

    Raises:
        ValueError: (call) references that do not name exactly the heads.
    Source: arXiv 2502.18770 (PAR), which has one score and the mean over several reference answers; here one
        reference, and the mean over heads.
    """

    def __call__(self, potentials: Mapping[str, Float[Tensor, "B T"]], features: Features) -> Float[Tensor, "B T"]:
        return self._centred(potentials).sigmoid().mean(0)


def quantiles(scores: Mapping[str, Sequence[float]], quantile: float, *, logit: bool = False) -> dict[str, float]:
    """One quantile of each head's scores, of their logits with `logit`.

    Raises:
        ValueError: a quantile outside [0, 1], or no scores of a head.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantiles: quantile must be in [0, 1]; got {quantile}.")
    if empty := [name for name, values in scores.items() if len(values) == 0]:
        raise ValueError(f"quantiles: scores must hold some of every head; got none of {', '.join(empty)}.")
    found = {name: torch.as_tensor(values, dtype=torch.float64).flatten() for name, values in scores.items()}
    return {name: float(_logit(each, logit).quantile(quantile)) for name, each in found.items()}


class LagrangianConstraints:
    """Heads held at points beyond which they no longer mean what they measure, by multipliers that learn.

        R = Σ φᵢ (free heads) + Σ μᵢ φᵢ (constrained heads),   μᵢ ← clip(μᵢ − η·(Jᵢ − θᵢ)), after every episode

    L = Σ μᵢ·(Jᵢ − θᵢ) is maximised by the policy and minimised by μ: a head below its point weighs ever more, one
    above it ever less, and with "reach" it is at last held back. θᵢ is where true success stops rising with Jᵢ, as
    labelled episodes tell. Rewards change with μ: use shaping of kind "potential". In training, Jᵢ is the sum of φᵢ
    after each action of an episode.

    Args:
        thresholds: head -> θ, in the unit of the returns that `update` is given; other heads are free, with weight 1.
        sense: "reach" (J = θ, μ of either sign), "at_least" (J ≥ θ, μ ≥ 0) or "at_most" (J ≤ θ, μ ≤ 0).
        rate: η > 0.
        bound: |μ| is at most this, > 0.
        start: μ before the first update.

    Raises:
        ValueError: no thresholds, an unknown sense, or a number out of range.
    Source: arXiv 2310.04373 (Moskovitz et al.), where a squashed μ is shown on dialogue. Departs: clipped instead, as
        the note's secondary source has it; no search over θ.
    """

    def __init__(
        self,
        thresholds: Mapping[str, float],
        *,
        sense: str = "reach",
        rate: float = 0.01,
        bound: float = 1.0,
        start: float = 0.0,
    ) -> None:
        where = "LagrangianConstraints"
        if not thresholds:
            raise ValueError(f"{where}: thresholds must name at least one head; got none.")
        if sense not in SENSES:
            raise ValueError(f"{where}: sense must be one of {', '.join(SENSES)}; got {sense!r}.")
        if not (rate > 0 and 0 < bound < math.inf):
            raise ValueError(f"{where}: rate and bound must be > 0; got {rate} and {bound}.")
        self.thresholds, self.rate = dict(thresholds), rate
        self._low, self._high = (bound * side for side in SENSES[sense])
        self.multipliers = dict.fromkeys(self.thresholds, self._clip(start))

    def __call__(self, potentials: Mapping[str, Float[Tensor, "B T"]], features: Features) -> Float[Tensor, "B T"]:
        _check_names("LagrangianConstraints: thresholds", self.thresholds, potentials)
        return torch.stack([self.multipliers.get(name, 1.0) * score for name, score in potentials.items()]).sum(0)

    def update(self, returns: Mapping[str, float]) -> dict[str, float]:
        """One step of the multipliers, after an episode.

        Args:
            returns: J of each constrained head over that episode (or the mean of several); others are ignored.
        Returns:
            The multipliers, for the log.

        Raises:
            ValueError: the return of a constrained head is missing or not finite; no multiplier has moved then.
        """
        bad = [name for name in self.thresholds if not math.isfinite(returns.get(name, math.nan))]
        if bad:
            raise ValueError(
                f"LagrangianConstraints.update: returns must hold a finite one of {', '.join(bad)}; "
                f"got {[returns.get(name) for name in bad]}."
            )
        for name, point in self.thresholds.items():
            self.multipliers[name] = self._clip(self.multipliers[name] - self.rate * (returns[name] - point))
        return dict(self.multipliers)

    def state_dict(self) -> dict[str, float]:
        """What `load_state_dict` takes: the multipliers, JSON values."""
        return dict(self.multipliers)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from saved multipliers.

        Raises:
            ValueError: those of other heads, or out of bounds.
        """
        if set(state) != set(self.thresholds) or any(self._clip(value) != value for value in state.values()):
            raise ValueError(
                f"LagrangianConstraints: state must hold multipliers of {', '.join(self.thresholds)} in "
                f"[{self._low}, {self._high}]; got {dict(state)}."
            )
        self.multipliers = dict(state)

    def _clip(self, value: float) -> float:
        return min(max(value, self._low), self._high)


def _logit(values: Tensor, wanted: bool) -> Tensor:
    return values.clamp(EDGE, 1 - EDGE).logit() if wanted else values


def _check_names(where: str, names: Sequence[str] | Mapping[str, Any], potentials: Mapping[str, Any]) -> None:
    if not names or set(names) - set(potentials):
        raise ValueError(f"{where} must be among the heads {', '.join(potentials)}; got {', '.join(names) or 'none'}.")
