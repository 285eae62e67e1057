"""From potential to reward: the only file that converts one into the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

KINDS = ("potential", "difference")


@dataclass(frozen=True, kw_only=True)
class PotentialShaping:
    """A reward from the potentials before and after a step.

        p(s) = clip(scale · φ(s) + offset)
        potential:   r = p(s')
        difference:  r = γ p(s') − p(s), with p(s') = 0 where the task terminated

    Scale, offset and clip act on the potential, not on the reward, so differences still telescope. A terminal
    state has no future, hence p = 0 there and optimal policies are unchanged; a truncated episode would have
    gone on, and its last potential is kept.

    Args:
        kind: "potential" (VLM-RM: the reward is the similarity itself) or "difference".
        discount: γ of the learner, in [0, 1]; only differences use it.
        scale: factor on the potential.
        offset: added after scaling.
        clip: (low, high) bounds of p, or None.

    Raises:
        ValueError: an unknown kind, a discount outside [0, 1], or bounds out of order.
    Source: Ng, Harada, Russell 1999, Theorem 1 (difference); arXiv 2310.12921 §3 (potential).
    """

    kind: str = "potential"
    discount: float = 0.99
    scale: float = 1.0
    offset: float = 0.0
    clip: Sequence[float] | None = None

    def __post_init__(self) -> None:
        where = type(self).__name__
        if self.kind not in KINDS:
            raise ValueError(f"{where}: kind must be one of {', '.join(KINDS)}; got {self.kind!r}.")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"{where}: discount must be in [0, 1]; got {self.discount}.")
        if self.clip is not None and not (len(self.clip) == 2 and self.clip[0] < self.clip[1]):
            raise ValueError(f"{where}: clip must be [low, high] with low < high; got {list(self.clip)}.")

    def __call__(
        self,
        potential: Float[Tensor, "*S"],
        next_potential: Float[Tensor, "*S"],
        terminated: Bool[Tensor, "*S"],
    ) -> Float[Tensor, "*S"]:
        """The reward of each step, shaped like its arguments."""
        after = self._affine(next_potential)
        if self.kind == "potential":
            return after
        return self.discount * after.masked_fill(terminated, 0.0) - self._affine(potential)

    def _affine(self, potential: Tensor) -> Tensor:
        scaled = self.scale * potential + self.offset
        return scaled if self.clip is None else scaled.clamp(self.clip[0], self.clip[1])
