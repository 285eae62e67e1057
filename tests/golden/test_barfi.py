"""BARFI's hypergradient against closed forms and finite differences."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from rewards.barfi import BarfiBlend, Rollouts, hypergradient, returns_to_go

RNG = np.random.default_rng(0)


def test_returns_to_go():
    rewards = RNG.normal(size=(2, 5))
    by_hand = [[sum(0.9**k * row[t + k] for k in range(5 - t)) for t in range(5)] for row in rewards]
    assert_allclose(returns_to_go(torch.from_numpy(rewards), torch.tensor(0.9)), by_hand, atol=1e-6)


def test_on_a_quadratic_it_is_exact():
    """J = −½θᵀAθ + θᵀBφ: θ* = A⁻¹Bφ, and of J_p = −½‖θ − c‖² the gradient is Bᵀ A⁻¹ (c − θ*)."""
    root, B, c, phi0 = RNG.normal(size=(4, 4)), RNG.normal(size=(4, 3)), RNG.normal(size=4), RNG.normal(size=3)
    A = root @ root.T / 4 + np.eye(4)
    best = np.linalg.solve(A, B @ phi0)
    theta = torch.tensor(best, requires_grad=True)
    phi = torch.tensor(phi0, requires_grad=True)
    v = torch.from_numpy(c - best)

    def found(loops: int, step: float = 0.2) -> np.ndarray:
        inner = -theta @ torch.from_numpy(A) @ theta / 2 + theta @ torch.from_numpy(B) @ phi
        return hypergradient(inner, [theta], [phi], [v], step=step, loops=loops)[0].numpy()

    def outer(phi: np.ndarray) -> float:
        return -0.5 * np.sum((np.linalg.solve(A, B @ phi) - c) ** 2)

    differences = [(outer(phi0 + 1e-6 * e) - outer(phi0 - 1e-6 * e)) / 2e-6 for e in np.eye(3)]
    assert_allclose(B.T @ np.linalg.solve(A, c - best), differences, rtol=1e-6)
    assert_allclose(found(2000), differences, rtol=1e-6)
    for loops in (0, 5):  # the truncated series itself
        series = 0.2 * sum(np.linalg.matrix_power(np.eye(4) - 0.2 * A, j) for j in range(loops + 1))
        assert_allclose(found(loops), B.T @ series @ (c - best), atol=1e-12)
    assert np.abs(found(200, step=2.0)).max() > 1e6  # a·|H| > 1 diverges


# A bandit in three contexts with four arms: one-step episodes, all enumerated, so expectations are exact ------------

S, ARMS, ENTROPY = 3, 4, 0.5
PRIMARY, AUXILIARY, X = (RNG.normal(size=(S, ARMS)), RNG.normal(size=(S, ARMS)), RNG.normal(size=(S, 2)))


def bandit(theta: torch.Tensor) -> tuple[Rollouts, object]:
    """Every context and arm once; β is uniform, so that the mean of π/β-weighted terms is an expectation."""
    state, arm = (t.flatten()[:, None] for t in torch.meshgrid(torch.arange(S), torch.arange(ARMS), indexing="ij"))
    rollouts = Rollouts(
        observations=state,
        actions=arm,
        features=torch.from_numpy(X)[state],
        primary=torch.from_numpy(PRIMARY)[state, arm],
        auxiliary=torch.from_numpy(AUXILIARY)[state, arm],
        valid=torch.ones_like(state, dtype=torch.bool),
        behaviour=torch.full(state.shape, -np.log(ARMS), dtype=torch.float64),
    )

    def evaluate(of: Rollouts):
        logp = theta[of.observations].log_softmax(-1)
        return logp.gather(-1, of.actions[..., None])[..., 0], -(logp.exp() * logp).sum(-1)

    return rollouts, evaluate


def best_policy(w: np.ndarray) -> np.ndarray:
    """The inner optimum in closed form: softmax(r_φ / c) maximises E r_φ + c·entropy."""
    b = np.concatenate([X, np.ones((S, 1))], 1) @ w.T  # (S, 3)
    logits = (b[:, :1] + b[:, 1:2] * PRIMARY + b[:, 2:] * AUXILIARY) / ENTROPY
    return logits - logits.mean(1, keepdims=True)


def primary_value(w: np.ndarray) -> float:
    logits = best_policy(w)
    p = np.exp(logits - logits.max(1, keepdims=True))
    return float((p / p.sum(1, keepdims=True) * PRIMARY).sum(1).mean())


def test_on_a_softmax_bandit_it_is_the_derivative_of_what_the_best_policy_earns():
    w = np.concatenate([0.3 * RNG.normal(size=(3, 2)), [[0.0], [1.0], [1.0]]], 1)
    blend = BarfiBlend(2, entropy=ENTROPY, importance=True, step=1.0).double()
    with torch.no_grad():
        blend.weights.copy_(torch.from_numpy(w[:, :2]))
        blend.constants.copy_(torch.from_numpy(w[:, 2]))
    theta = torch.tensor(best_policy(w), requires_grad=True)
    rollouts, evaluate = bandit(theta)
    (slope,) = torch.autograd.grad(blend.objective(evaluate, rollouts), [theta])
    assert slope.abs().max() < 1e-9  # θ is the optimum of the very objective
    p = theta.softmax(-1)
    (v,) = torch.autograd.grad((p * torch.from_numpy(PRIMARY)).sum(1).mean(), [theta])
    inner = blend.objective(evaluate, rollouts)
    found = hypergradient(inner, [theta], [blend.weights, blend.constants], [v], step=10.0, loops=2000)
    step = 1e-5
    differences = np.zeros((3, 3))
    for i in np.ndindex(3, 3):
        e = np.zeros((3, 3))
        e[i] = step
        differences[i] = (primary_value(w + e) - primary_value(w - e)) / (2 * step)
    assert_allclose(found[0], differences[:, :2], atol=1e-6)
    assert_allclose(found[1], differences[:, 2], atol=1e-6)
    assert_allclose(differences[0], 0, atol=1e-9)  # b₁(s) moves no softmax over arms
    assert np.abs(differences).max() > 1e-2


def test_without_importance_weights_the_hessian_lacks_a_term():
    """The source's: E[∇² log π · G] instead of E[(∇² log π + ∇ log π ∇ log πᵀ)·G]."""
    theta = torch.tensor(RNG.normal(size=(S, ARMS)), requires_grad=True)
    rollouts, _ = bandit(theta)
    for importance in (False, True):
        blend = BarfiBlend(2, entropy=0.0, importance=importance).double()
        hessian = torch.autograd.functional.hessian(
            lambda t, blend=blend: blend.objective(bandit(t)[1], rollouts), theta
        ).numpy()[0, :, 0]
        p = theta[0].softmax(-1).detach().numpy()
        r, spread = (PRIMARY + AUXILIARY)[0], np.diag(p) - np.outer(p, p)
        scores = np.eye(ARMS) - p  # ∇ log π of each arm
        if importance:
            by_hand = sum(p[k] * r[k] * (np.outer(scores[k], scores[k]) - spread) for k in range(ARMS)) / S
        else:
            by_hand = -spread * r.sum() / (S * ARMS)
        assert_allclose(hessian, by_hand, atol=1e-9)


def test_the_mixed_derivative_in_the_discount():
    """d/dγ of the inner slope, through returns of three steps."""
    blend = BarfiBlend(1, entropy=0.0, discount=0.8).double()
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    steps = torch.arange(3)[None]
    r = RNG.normal(size=3)
    rollouts = Rollouts(
        observations=steps,
        actions=torch.tensor([[0, 1, 0]]),
        features=torch.zeros(1, 3, 1, dtype=torch.float64),
        primary=torch.from_numpy(r)[None],
        auxiliary=torch.zeros(1, 3, dtype=torch.float64),
        valid=torch.ones(1, 3, dtype=torch.bool),
    )

    def evaluate(of):
        logp = theta.log_softmax(-1)[of.actions]
        return logp, torch.zeros_like(logp)

    v = torch.tensor([1.0, -0.5], dtype=torch.float64)
    found = hypergradient(blend.objective(evaluate, rollouts), [theta], [blend.discount_logit], [v], step=1.0, loops=0)[
        0
    ]
    scores = np.array([[0.5, -0.5], [-0.5, 0.5], [0.5, -0.5]]) @ v.numpy()  # v·∇ log π
    slopes = np.array([r[1] + 2 * 0.8 * r[2], r[2], 0.0])  # dG_t/dγ
    assert float(found) == pytest.approx(0.8 * 0.2 * scores @ slopes, abs=1e-6)


def test_it_starts_as_the_plain_sum_and_decays_pull():
    blend = BarfiBlend(2, weight_decay=0.5, discount_decay=0.1)
    r_p, r_aux = torch.randn(4), torch.randn(4)
    assert_allclose(blend(torch.randn(4, 2), r_p, r_aux).detach(), r_p + r_aux, atol=1e-6)
    assert float(blend.discount.detach()) == pytest.approx(0.99)
    theta = torch.zeros(S, ARMS, dtype=torch.float64, requires_grad=True)
    rollouts, evaluate = bandit(theta)
    before = blend.double().constants.detach().clone()
    quiet = Rollouts(**{**vars(rollouts), "primary": torch.zeros_like(rollouts.primary)})  # v = 0: decays alone
    log = blend.improve(evaluate, [theta], buffered=rollouts, recent=quiet)
    assert log["gradient"] == 0
    assert (blend.constants[1:] < before[1:]).all()
    assert log["discount"] < 0.99


@pytest.mark.parametrize(
    "change",
    [{"discount": 1.0}, {"loops": -1}, {"step": 0.0}, {"rate": 0.0}, {"entropy": -1.0}, {"weight_decay": -1.0}],
)
def test_bad_values(change):
    with pytest.raises(ValueError, match="BarfiBlend: "):
        BarfiBlend(2, **change)


def test_importance_needs_behaviour():
    rollouts, evaluate = bandit(torch.zeros(S, ARMS, dtype=torch.float64, requires_grad=True))
    with pytest.raises(ValueError, match="behaviour must be given"):
        BarfiBlend(2, importance=True).double().objective(evaluate, Rollouts(**{**vars(rollouts), "behaviour": None}))
