"""KAGI's rule: dense progress along keypoints beside a sparse success model, and the reward that is made of both.

Shape letters: B batch, T time, S any shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from rewards.core import Features
from rewards.outcome import bound
from rewards.shaping import KINDS


@dataclass(frozen=True)
class KeypointRule:
    """1 where the success model fires; where it does not the dense progress, at most `dense`.

        p = q + (1 − q) · dense · Φ,   q = success in [0, 1]

    Args:
        dense: κ in (0, 1): below 1, so that no progress is worth a success.

    Source: KAGI's composition (arXiv 2407.10341): the dense reward where the classifier says 0, else the sparse one.
        Departs: q may lie between 0 and 1.
    """

    dense: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.dense < 1:
            raise ValueError(f"KeypointRule: dense must be in (0, 1); got {self.dense}.")

    def __call__(self, potentials: Mapping[str, Float[Tensor, "B T"]], features: Features) -> Float[Tensor, "B T"]:
        if "success" not in potentials:
            return self.dense * potentials["keypoint"]
        return bound(potentials["keypoint"], potentials["success"], self.dense)


@dataclass(frozen=True, kw_only=True)
class KeypointShaping:
    """A reward from p of `KeypointRule`, before and after a step.

        potential:   r = scale · p(s')                                              KAGI's rule, literally
        difference:  r = scale · (1[p(s') = 1] + γ q(s') − q(s)),  q = min(p, κ)    sparse, and shaped by potentials

    With "potential" a robot that waits beside its target earns κ a step; with "difference" the best policies are those
    of the sparse reward alone. q(s') = 0 where the task terminated.

    Args:
        kind: "potential" or "difference".
        discount: γ of the learner, in [0, 1]; only differences use it.
        scale: factor on the reward.
        dense: κ, the rule's.

    Raises:
        ValueError: an unknown kind or a discount outside [0, 1].
    Source: "potential": KAGI (arXiv 2407.10341); "difference": ours. Departs from our stand-in's "1 on success, else
        the difference": the sum of both keeps Ng's theorem (1999) true.
    """

    kind: str = "potential"
    discount: float = 0.99
    scale: float = 1.0
    dense: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"KeypointShaping: kind must be one of {', '.join(KINDS)}; got {self.kind!r}.")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"KeypointShaping: discount must be in [0, 1]; got {self.discount}.")

    def __call__(
        self,
        potential: Float[Tensor, "*S"],
        next_potential: Float[Tensor, "*S"],
        terminated: Bool[Tensor, "*S"],
    ) -> Float[Tensor, "*S"]:
        """The reward of each step."""
        if self.kind == "potential":
            return self.scale * next_potential
        success = (next_potential >= 1).to(next_potential)
        after = next_potential.clamp(max=self.dense).masked_fill(terminated, 0.0)
        return self.scale * (success + self.discount * after - potential.clamp(max=self.dense))
