"""Several rewards into one: weighted sum, product, and VLM-RL's synthesis with the robot's own readings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.core import Features


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
    """Π φᵢ, over all heads."""

    def __call__(self, potentials: Mapping[str, Float[Tensor, "B T"]], features: Features) -> Float[Tensor, "B T"]:
        return torch.stack(list(potentials.values())).prod(0)


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
        def signal(name: str) -> Tensor:
            if name not in features.signals:
                raise KeyError(
                    f"Synthesis: signal {name!r} must be among the features' signals; "
                    f"got {', '.join(sorted(features.signals)) or 'none'}."
                )
            return features.signals[name]

        reward = torch.stack(list(potentials.values())).mean(0)
        if self.speed is not None:
            reward = 1 - (signal(self.speed) - reward * self.speed_max).abs() / self.speed_max
        for name, limit in self.limits.items():
            reward = reward * (1 - signal(name).abs() / limit).clamp(min=0)
        if self.penalty is not None:
            penalty = signal(self.penalty)
            reward = torch.where(penalty < 0, penalty.to(reward), reward)
        return reward
