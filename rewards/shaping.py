"""From potential to reward: the only file that converts one into the other.

What goes wrong in practice, and where it is answered (Ng, Harada, Russell 1999; Robo-Dopamine, arXiv 2512.23703):

- **The naive difference** φ(s') − φ(s) without γ pays for dwelling. Discounted over T steps it sums to
  −φ₀ + (1−γ)·Σ γ^(t−1)·φ_t + γ^(T−1)·φ_T, more for every step spent at high progress; with γ it is γ^T·φ_T − φ₀,
  whatever happens between. So `discount` must be the learner's own.
- **Terminated, not truncated**: a terminal state has potential 0, else a failure at 0.9 beats one at 0.1. A time limit
  that is no part of the task keeps its last potential (`PotentialShaping`). One that is part of it, known to the
  learner and not bootstrapped over, ends the task: `finite_horizon`.
- **Chunks** of n actions between two decisions: γⁿ·φ(t+n) − φ(t), the discounted sum of the steps between
  (`PotentialShaping`, `steps`; `chunked` for any reward).
- **Potentials of the history** (fused progress, prefix models) telescope along each episode only if a transition's two
  potentials come from one model: keep both with the transition, score neither again with a newer one,
  and give φ_t to the critic, to which it is otherwise noise.
- Clipping or normalising the *reward* undoes all of it; scale, offset and clip here act on the potential. Methods that
  learn from whole returns (REINFORCE, GRPO) see of it only an end bonus γ^T·φ_T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

KINDS = ("potential", "difference")


@dataclass(frozen=True, kw_only=True)
class PotentialShaping:
    """A reward from the potentials before and after a step.

        p(s) = clip(scale · φ(s) + offset)
        potential:   r = p(s')
        difference:  r = γ p(s') − p(s), with p(s') = 0 where the task terminated
        either:      + success_bonus where p(s') ≥ 1 − success_margin, terminated or not

    Scale, offset and clip act on the potential, not on the reward, so differences still telescope. A terminal
    state has no future, hence p = 0 there and optimal policies are unchanged; a truncated episode would have
    gone on, and its last potential is kept.

    Args:
        kind: "potential" (VLM-RM: the reward is the similarity itself) or "difference".
        discount: γ of the learner, in [0, 1]; only differences use it.
        scale: factor on the potential.
        offset: added after scaling.
        clip: (low, high) bounds of p, or None.
        success_bonus: r_gold, the model's own sparse reward, paid at each step that ends in success as it sees it; 0
            pays none. Policies are then as good as r_gold is: a false 0.95 is paid in full.
        success_margin: δ, how far below 1 is success, in [0, 1).

    Raises:
        ValueError: an unknown kind, a discount outside [0, 1], bounds out of order, or a bonus out of range.
    Source: Ng, Harada, Russell 1999, Theorem 1 (difference); arXiv 2310.12921 §3 (potential); arXiv 2512.23703 §3.2
        (bonus 1, margin 0.05).
    """

    kind: str = "potential"
    discount: float = 0.99
    scale: float = 1.0
    offset: float = 0.0
    clip: Sequence[float] | None = None
    success_bonus: float = 0.0
    success_margin: float = 0.05

    def __post_init__(self) -> None:
        where = type(self).__name__
        if self.kind not in KINDS:
            raise ValueError(f"{where}: kind must be one of {', '.join(KINDS)}; got {self.kind!r}.")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"{where}: discount must be in [0, 1]; got {self.discount}.")
        if self.clip is not None and not (len(self.clip) == 2 and self.clip[0] < self.clip[1]):
            raise ValueError(f"{where}: clip must be [low, high] with low < high; got {list(self.clip)}.")
        if not self.success_bonus >= 0 or not 0 <= self.success_margin < 1:
            raise ValueError(
                f"{where}: success_bonus must be ≥ 0 and success_margin in [0, 1); "
                f"got {self.success_bonus} and {self.success_margin}."
            )

    def __call__(
        self,
        potential: Float[Tensor, "*S"],
        next_potential: Float[Tensor, "*S"],
        terminated: Bool[Tensor, "*S"],
        steps: int | Int[Tensor, "*S"] = 1,
    ) -> Float[Tensor, "*S"]:
        """The reward of each step, or chunk of steps, shaped like its arguments.

        Args:
            potential: φ before it.
            next_potential: φ after it.
            terminated: whether the task ended in it.
            steps: actions between the two, fewer in a chunk that the episode's end cut short. More than 1 asks for
                differences: the levels within a chunk are not known from its ends (see `chunked`).

        Raises:
            ValueError: steps other than 1 with kind "potential".
        """
        after = self._affine(next_potential)
        bonus = self.success_bonus * (after >= 1 - self.success_margin).to(after)
        if self.kind == "potential":
            if not (isinstance(steps, int) and steps == 1):
                raise ValueError(
                    "PotentialShaping: steps must be 1 with kind 'potential'. Use rewards.shaping.chunked."
                )
            return after + bonus
        fading = self.discount ** (steps if isinstance(steps, int) else steps.to(after))
        return fading * after.masked_fill(terminated, 0.0) - self._affine(potential) + bonus

    def _affine(self, potential: Tensor) -> Tensor:
        scaled = self.scale * potential + self.offset
        return scaled if self.clip is None else scaled.clamp(self.clip[0], self.clip[1])


def chunked(rewards: Float[Tensor, "B T"], length: int, discount: float) -> Float[Tensor, "B N"]:
    """Rewards of steps as rewards of chunks: Σₖ γᵏ·r_(t+k) over each; the last may be shorter.

    Of differences it is γⁿ·p_(t+n) − p_t, what `PotentialShaping` gives with `steps` n.

    Args:
        rewards: (B, T) of one episode each, from its start.
        length: actions of a chunk, ≥ 1.
        discount: γ of a step; between chunks the learner's is γ^length.
    """
    batch, steps = rewards.shape
    padded = torch.nn.functional.pad(rewards, (0, -steps % length)).view(batch, -1, length)
    return padded @ discount ** torch.arange(length, dtype=rewards.dtype, device=rewards.device)


def finite_horizon(
    shaping: PotentialShaping, potential: Float[Tensor, "B T1"], terminated: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Rewards of whole episodes whose time limit is part of the task: the last row ends it, and has potential 0.

    With γ = 1 the last step gets −φ(s_(T−1)), the others φ' − φ, and every episode sums to −φ(s_0), so no ranking of
    episodes changes. Only right where the learner knows the time and does not bootstrap over the limit.

    Args:
        shaping: makes the rewards.
        potential: φ of T + 1 rows.
        terminated: of T transitions.
    """
    ended = terminated.clone()
    ended[:, -1] = True
    return shaping(potential[:, :-1], potential[:, 1:], ended)
