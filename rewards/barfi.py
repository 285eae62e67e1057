"""BARFI: a learned blend of a task's own reward with a hint, such that what a policy learns from it serves the task.

    r_φ(s, a) = b₁(s) + b₂(s)·r_p(s, a) + b₃(s)·r_aux(s, a),   b linear in features of s;  discount γ_φ learned too
    inner: θ*(φ) = argmax J_φ(θ) + c·entropy          outer: max over φ of J_p(θ*) − l_r·‖φ‖² − l_g·γ_φ

The outer gradient goes through the inner optimum by the implicit function theorem, with −H⁻¹ as a Neumann series:

    dJ_p/dφ = vᵀ (−H)⁻¹ ∂²J_φ/∂θ∂φ,   v = ∇_θ J_p,   H = ∇²_θ J_φ,   (−H)⁻¹ ≈ a·Σ_{j=0..n} (I + a·H)ʲ

It holds where J_φ is locally concave in θ and a·|H| < 1; the entropy term helps with the first. A hint that misleads is
un-learned, one that helps is kept.

Source: Gupta et al., arXiv 2310.19007; Dhawgupta/gupta2023behavior. Shape letters: B episodes, T steps, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Episodes as the blend and the policy read them.

    Attributes:
        observations: (B, T, …), what the policy reads; only `Evaluate` looks inside.
        actions: (B, T, …), what it did.
        features: of each state, for b₁, b₂ and b₃.
        primary: r_p of each step, the reward that counts (sparse success, say).
        auxiliary: r_aux of each step, the hint.
        valid: False on padding after an episode's end.
        behaviour: log-probability of each action when it was taken; only importance weights read it.
    """

    observations: Tensor
    actions: Tensor
    features: Float[Tensor, "B T F"]
    primary: Float[Tensor, "B T"]
    auxiliary: Float[Tensor, "B T"]
    valid: Bool[Tensor, "B T"]
    behaviour: Float[Tensor, "B T"] | None = None


Evaluate = Callable[[Rollouts], tuple[Tensor, Tensor]]  # of the present policy: log-probabilities, entropies (B, T)


class BarfiBlend(nn.Module):
    """A learned blend of two rewards, for an inner learner that climbs ∇ log π · return (REINFORCE and its kin).

        blend = BarfiBlend(width)
        for each round:
            rollouts = …                                            # on-policy, kept in a buffer too
            for a few steps: ascend blend.objective(evaluate, batch of the buffer)       # inner: the policy
            blend.improve(evaluate, policy.parameters(), buffered=…, recent=…)           # outer: the blend

    `tests/integration/test_barfi_run.py` is a whole run: a chain whose hint points the wrong way.

    Args:
        width: F of the features.
        entropy: c, of the inner objective.
        importance: weight buffered actions by π(a|s)/β(a|s), which makes H and the mixed derivative those of the
            present policy (exactly so for one-step episodes). The source has none.
        discount: γ_φ at the start, in (0, 1).
        primary_discount: γ of J_p, in (0, 1].
        step: a of the Neumann series, > 0; the source uses 1e-4 to 1e-3 for its networks.
        loops: n of the series, ≥ 0.
        rate: of RMSprop on φ.
        weight_decay, discount_decay: l_r and l_g, ≥ 0.

    Raises:
        ValueError: a number out of range.
    Source: see the module. Departs: it starts as r_p + r_aux exactly, each b having a constant beside its features.
    """

    def __init__(
        self,
        width: int,
        *,
        entropy: float = 0.25,
        importance: bool = False,
        discount: float = 0.99,
        primary_discount: float = 0.99,
        step: float = 1e-3,
        loops: int = 5,
        rate: float = 1e-3,
        weight_decay: float = 0.0,
        discount_decay: float = 0.0,
    ) -> None:
        super().__init__()
        if not (width >= 0 and loops >= 0 and 0 < discount < 1 and 0 < primary_discount <= 1):
            raise ValueError(
                "BarfiBlend: width and loops must be ≥ 0, discount in (0, 1), primary_discount in (0, 1]; "
                f"got {width}, {loops}, {discount}, {primary_discount}."
            )
        if not (step > 0 and rate > 0 and min(entropy, weight_decay, discount_decay) >= 0):
            raise ValueError(
                "BarfiBlend: step and rate must be > 0, entropy and decays ≥ 0; "
                f"got {step}, {rate}, {entropy}, {weight_decay}, {discount_decay}."
            )
        self.entropy, self.importance, self.primary_discount = entropy, importance, primary_discount
        self.step, self.loops = step, loops
        self.weight_decay, self.discount_decay = weight_decay, discount_decay
        self.weights = nn.Parameter(torch.zeros(3, width))
        self.constants = nn.Parameter(torch.tensor([0.0, 1.0, 1.0]))
        self.discount_logit = nn.Parameter(torch.tensor(discount).logit())
        self._optimizer = torch.optim.RMSprop(self.parameters(), lr=rate)

    @property
    def discount(self) -> Float[Tensor, ""]:
        """γ_φ, in (0, 1)."""
        return self.discount_logit.sigmoid()

    def forward(
        self, features: Float[Tensor, "*S F"], primary: Float[Tensor, "*S"], auxiliary: Float[Tensor, "*S"]
    ) -> Float[Tensor, "*S"]:
        """r_φ of each step."""
        b1, b2, b3 = (features @ self.weights.T + self.constants).unbind(-1)
        return b1 + b2 * primary + b3 * auxiliary

    def objective(self, evaluate: Evaluate, rollouts: Rollouts) -> Float[Tensor, ""]:
        """A scalar whose gradient in θ is the inner learner's, to be maximised: E Σ_t log π(a_t|s_t)·G_t + c·entropy.

        G_t is the return to go of r_φ under γ_φ. With importance weights log π becomes π/β, whose gradient is
        (π/β)·∇ log π and whose second derivative is that of the policy's own expectation.
        """
        rewards = self(rollouts.features, rollouts.primary, rollouts.auxiliary)
        returns = returns_to_go(rewards * rollouts.valid, self.discount)
        logp, entropy = evaluate(rollouts)
        if self.importance:
            if rollouts.behaviour is None:
                raise ValueError("BarfiBlend.objective: behaviour must be given for importance weights; got none.")
            logp = (logp - rollouts.behaviour).exp()
        return ((logp * returns + self.entropy * entropy) * rollouts.valid).sum(1).mean()

    def primary_objective(self, evaluate: Evaluate, rollouts: Rollouts) -> Float[Tensor, ""]:
        """A scalar whose gradient in θ is v, that of J_p, for on-policy episodes."""
        returns = returns_to_go(rollouts.primary * rollouts.valid, torch.tensor(self.primary_discount))
        fading = self.primary_discount ** torch.arange(returns.shape[1]).to(returns)  # J_p counts from the start
        return (evaluate(rollouts)[0] * fading * returns * rollouts.valid).sum(1).mean()

    def improve(
        self, evaluate: Evaluate, policy: Sequence[Tensor], *, buffered: Rollouts, recent: Rollouts
    ) -> dict[str, float]:
        """One outer step: φ and γ_φ along dJ_p/dφ, less the decays.

        Args:
            evaluate: log-probabilities and entropies under the present policy, differentiable twice in `policy`.
            policy: θ, near its inner optimum.
            buffered: for H and the mixed derivative.
            recent: on-policy, for v.
        Returns:
            For the log: J_p of the recent episodes, γ_φ, the mean b₁, b₂, b₃, and the length of the gradient.

        Raises:
            FloatingPointError: the series diverged; φ has not moved.
        """
        policy = list(policy)
        outward = torch.autograd.grad(self.primary_objective(evaluate, recent), policy)
        parameters = list(self.parameters())
        gradient = hypergradient(
            self.objective(evaluate, buffered), policy, parameters, outward, step=self.step, loops=self.loops
        )
        if not all(torch.isfinite(each).all() for each in gradient):
            raise FloatingPointError(
                f"BarfiBlend.improve: the hypergradient must be finite; got NaN or infinity. Lower step ({self.step}): "
                "the series needs step·|H| < 1."
            )
        penalty = self.weight_decay * (self.weights.square().sum() + self.constants.square().sum())
        penalty = penalty + self.discount_decay * self.discount
        decay = torch.autograd.grad(penalty, parameters, allow_unused=True)
        for parameter, rise, fall in zip(parameters, gradient, decay, strict=True):
            parameter.grad = -rise if fall is None else fall - rise
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            blend = (recent.features @ self.weights.T + self.constants)[recent.valid].mean(0)
            start = returns_to_go(recent.primary * recent.valid, torch.tensor(self.primary_discount))[:, 0].mean()
            length = torch.stack([each.norm() for each in gradient]).norm()
        return {
            "primary_return": float(start),
            "discount": self.discount.item(),
            **{f"b{k + 1}": float(each) for k, each in enumerate(blend)},
            "gradient": float(length),
        }


def hypergradient(
    inner: Float[Tensor, ""],
    policy: Sequence[Tensor],
    blend: Sequence[Tensor],
    outward: Sequence[Tensor],
    *,
    step: float,
    loops: int,
) -> list[Tensor]:
    """vᵀ (−H)⁻¹ ∂²J/∂θ∂φ, by products of H with vectors only.

    Args:
        inner: J(θ, φ), a scalar to be maximised over θ, differentiable twice; at its maximum.
        policy: θ.
        blend: φ.
        outward: v, shaped like θ.
        step: a; a·|H| < 1.
        loops: n: the series has n + 1 terms and comes to (−H)⁻¹ as n grows.
    Returns:
        Shaped like φ; zeros where J does not depend on it.
    """
    slope = torch.autograd.grad(inner, policy, create_graph=True)
    term = [each.clone() for each in outward]
    total = [each.clone() for each in outward]
    for _ in range(loops):
        curved = torch.autograd.grad(
            slope, policy, grad_outputs=term, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        term = [each + step * bent for each, bent in zip(term, curved, strict=True)]
        total = [sum_ + each for sum_, each in zip(total, term, strict=True)]
    mixed = torch.autograd.grad(
        slope, blend, grad_outputs=[step * each for each in total], allow_unused=True, materialize_grads=True
    )
    return list(mixed)


def returns_to_go(rewards: Float[Tensor, "B T"], discount: Float[Tensor, ""]) -> Float[Tensor, "B T"]:
    """G_t = r_t + γ·G_{t+1}, differentiable in both.

    Args:
        rewards: r, of whole episodes.
        discount: γ, a tensor of one number in [0, 1].
    """
    following, columns = torch.zeros_like(rewards[:, 0]), []
    for reward in reversed(rewards.unbind(1)):
        following = reward + discount * following
        columns.append(following)
    return torch.stack(columns[::-1], 1)
