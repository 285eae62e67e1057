"""Perceptual rewards, XIRL and RAPL against their equations, re-derived in float64 NumPy."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from rewards.core import Episode, Features
from rewards.demonstration import Demonstration, calibration, classifier, in_sequence
from rewards.rapl import band_mask, cosine_cost, preference_loss, sinkhorn, transport_rewards
from rewards.segmentation import FLOOR, row_steps, segment_jointly, select_features
from rewards.xirl import cycle_loss, goal_reward, soft_time
from tests.fakes import FakeEncoder

ENCODER = FakeEncoder(dim=40)


def episodes(count: int = 3, seed: int = 0) -> list[Episode]:
    """Three places in turn, with noise."""
    rng = np.random.default_rng(seed)
    places = rng.normal(size=(3, 40))
    found = []
    for _ in range(count):
        rows = np.concatenate([p + 0.4 * rng.normal(size=(rng.integers(5, 9), 40)) for p in places])
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        found.append(Episode(features=Features(views={"main": torch.from_numpy(rows)[None]}), success=True))
    return found


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("form", ["gaussian", "literal"])
def test_step_rewards_are_the_papers(form):
    demos = episodes()
    rows = [demo.features.main[0].numpy() for demo in demos]
    both = np.concatenate(rows)
    normal = [(each - both.mean(0)) / both.std(0) for each in rows]
    steps, _ = segment_jointly(normal, 3)
    z, labels = np.concatenate(normal), np.concatenate([row_steps(each) for each in steps])
    probe = np.random.default_rng(5).normal(size=(1, 4, 40)) * both.std(0) + both.mean(0)
    probe_z = (probe[0] - both.mean(0)) / both.std(0)
    expected = []
    for k in range(3):
        chosen, _ = select_features(z[labels == k], z[labels != k], count=32)
        mu, sigma = z[labels == k][:, chosen].mean(0), np.maximum(z[labels == k][:, chosen].std(0), FLOOR)

        def ell(rows, chosen=chosen, mu=mu, sigma=sigma):
            square = (rows[:, chosen] - mu) ** 2
            if form == "literal":
                return -(square / sigma).mean(1)
            return -0.5 * (square / sigma**2 + np.log(sigma**2)).mean(1)

        a, b = calibration(ell(z), labels == k)
        assert a > 0
        expected.append(sigmoid(a * ell(probe_z) + b))
    head = Demonstration.fit(demos, form=form, num_steps=3)
    features = Features(views={"main": torch.from_numpy(probe)})
    assert_allclose(head.steps(features)["main"][0].numpy(), np.stack(expected, 1), atol=1e-7)
    combined = (2 * expected[1] + 4 * expected[2]) / 6  # Σ_{i≥2} R_i 2^(i−1), over its largest value
    assert_allclose(head.score(features)[0].numpy(), combined, atol=1e-7)


def test_onward_is_the_mean_of_classifiers_of_having_entered_each_step():
    demos = episodes()
    rows = [demo.features.main[0].numpy() for demo in demos]
    both = np.concatenate(rows)
    normal = [(each - both.mean(0)) / both.std(0) for each in rows]
    labels = np.concatenate([row_steps(each) for each in segment_jointly(normal, 3)[0]])
    expected = []
    for k in (1, 2):
        weights, intercept = classifier(np.concatenate(normal), labels >= k, ridge=1.0)
        expected.append(sigmoid(normal[0] @ weights + intercept))
    head = Demonstration.fit(demos, num_steps=3)
    assert_allclose(head.score(demos[0].features)[0].numpy(), np.mean(expected, 0), atol=1e-7)


def test_the_classifier_is_at_the_minimum_of_the_balanced_loss():
    rng = np.random.default_rng(0)
    rows, positive = rng.normal(size=(30, 4)), np.arange(30) < 8
    weights, intercept = classifier(rows, positive, ridge=0.3)

    def loss(w: np.ndarray, b: float) -> float:
        chance = sigmoid(rows @ w + b)
        return -0.5 * np.log(chance[positive]).mean() - 0.5 * np.log(1 - chance[~positive]).mean() + 0.15 * w @ w

    least = loss(weights, intercept)
    for k in range(5):
        for step in (-1e-2, 1e-2):
            moved = np.append(weights, intercept)
            moved[k] += step
            assert loss(moved[:-1], moved[-1]) > least


def test_in_sequence_a_step_waits_for_the_ones_before_it():
    rewards = np.random.default_rng(0).random((1, 6, 3))
    expected = rewards.copy()
    for t in range(6):
        for k in range(1, 3):
            expected[0, t, k] *= min(rewards[0, : t + 1, j].max() for j in range(k))
    assert_allclose(in_sequence(torch.from_numpy(rewards))[0].numpy(), expected, rtol=1e-12)


# XIRL -------------------------------------------------------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("loss", ["classification", "regression"])
def test_cycle_consistency_is_xirls(loss):
    rng = np.random.default_rng(0)
    first, second, times = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 7, 4)), np.sort(rng.random((2, 5)), 1)
    expected = []
    for e1, e2, t in zip(first, second, times, strict=True):
        s12 = -((e1[:, None] - e2[None]) ** 2).sum(-1) / (4 * 0.1)
        soft = softmax(s12) @ e2
        beta = softmax(-((soft[:, None] - e1[None]) ** 2).sum(-1) / (4 * 0.1))
        for i in range(5):
            if loss == "classification":
                label = np.full(5, 0.1 / 5) + 0.9 * (np.arange(5) == i)
                expected.append(-(label * np.log(beta[i])).sum())
            else:
                mean = beta[i] @ t
                v = np.log(max(beta[i] @ (t - mean) ** 2, 1e-3))
                expected.append(np.exp(-v) * (t[i] - mean) ** 2 + 0.001 * v)
    tensors = [torch.from_numpy(each) for each in (first, second, times)]
    assert_allclose(cycle_loss(*tensors, loss=loss).item(), np.mean(expected), rtol=1e-9)


def test_goal_reward_and_soft_time():
    rng = np.random.default_rng(1)
    embedded, goal = rng.normal(size=(6, 3)), rng.normal(size=3)
    path, times = rng.normal(size=(5, 3)), np.array([0, 0.5, 1, 0, 1])
    expected = -np.linalg.norm(embedded - goal, axis=-1) / 2.5
    assert_allclose(goal_reward(torch.from_numpy(embedded), torch.from_numpy(goal), 2.5).numpy(), expected, rtol=1e-12)
    near = -((embedded[:, None] - path) ** 2).sum(-1) / (3 * 0.1)
    expected = (softmax(near[:, :3]) @ times[:3] + softmax(near[:, 3:]) @ times[3:]) / 2
    found = soft_time(torch.from_numpy(embedded), torch.from_numpy(path), torch.from_numpy(times), [3, 2])
    assert_allclose(found.numpy(), expected, rtol=1e-9)


# RAPL -------------------------------------------------------------------------------------------------------


def sinkhorn_plain(cost: np.ndarray, epsilon: float, rows: np.ndarray, columns: np.ndarray, mask: np.ndarray):
    kernel = np.exp(-cost / epsilon) * mask
    v = np.ones(cost.shape[1])
    for _ in range(5000):
        u = rows / (kernel @ v)
        v = columns / (kernel.T @ u)
    return u[:, None] * kernel * v


def test_sinkhorn_meets_its_marginals_and_the_plan_of_the_plain_iteration():
    rng = np.random.default_rng(0)
    cost, rows, columns = rng.random((6, 5)), rng.random(6), rng.random(5)
    rows, columns = rows / rows.sum(), columns / columns.sum()
    mask = np.abs(np.linspace(0, 1, 6)[:, None] - np.linspace(0, 1, 5)) <= 0.8
    tensors = [torch.from_numpy(each) for each in (cost, rows, columns, mask)]
    plan = sinkhorn(tensors[0], epsilon=0.1, iterations=500, rows=tensors[1], columns=tensors[2], allowed=tensors[3])
    plan = plan.numpy()
    assert_allclose(plan.sum(0), columns, atol=1e-12)
    assert_allclose(plan.sum(1), rows, atol=1e-6)
    assert plan[~mask].max() == 0
    assert_allclose(plan, sinkhorn_plain(cost, 0.1, rows, columns, mask), atol=1e-6)


def test_columns_and_rows_of_no_mass_are_not_there():
    rng = np.random.default_rng(5)
    cost = rng.random((6, 5)).astype(np.float32)
    columns, rows = np.array([0.5, 0.3, 0.2, 0, 0]), np.array([0.4, 0, 0.2, 0.2, 0.1, 0.1])
    mask = np.abs(np.linspace(0, 1, 6)[:, None] - np.linspace(0, 5 / 3, 5)) <= 0.6
    keep = rows > 0
    expected = np.zeros((6, 5))
    expected[np.ix_(keep, columns > 0)] = sinkhorn_plain(
        cost[keep, :3].astype(float), 0.05, rows[keep], columns[:3], mask[keep, :3]
    )
    tensors = [torch.from_numpy(each) for each in (cost, rows, columns, mask)]
    plan = sinkhorn(tensors[0], iterations=300, rows=tensors[1], columns=tensors[2], allowed=tensors[3])
    assert_allclose(plan.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.05, 1e-5])
def test_what_is_not_allowed_gets_nothing_however_cheap(epsilon):
    cost = torch.tensor([[0.9, 0.0], [0.0, 0.9]], dtype=torch.float64)
    plan = sinkhorn(cost, epsilon=epsilon, allowed=torch.eye(2, dtype=torch.bool))
    assert_allclose(plan.numpy(), np.eye(2) / 2, atol=1e-6)


def test_a_sharp_plan_is_the_best_assignment():
    rng = np.random.default_rng(3)
    cost = rng.random((4, 4))
    from scipy.optimize import linear_sum_assignment

    row, column = linear_sum_assignment(cost)
    plan = sinkhorn(torch.from_numpy(cost), epsilon=0.003, iterations=3000).numpy()
    assert_allclose((plan * cost).sum(), cost[row, column].mean(), atol=1e-3)
    assert np.isfinite(sinkhorn(torch.from_numpy(cost), epsilon=1e-5).numpy()).all()  # logarithms do not overflow


def test_transport_rewards_are_the_plans_costs():
    rng = np.random.default_rng(4)
    rollout, demo = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    unit = [each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (rollout, demo)]
    cost = 1 - unit[0] @ unit[1].T
    mask = np.abs(np.arange(7)[:, None] / 6 - np.arange(5) / 4) <= 0.25
    plan = sinkhorn_plain(cost, 0.2, np.full(7, 1 / 7), np.full(5, 1 / 5), mask)
    tensors = [torch.from_numpy(rollout), torch.from_numpy(demo)]
    assert_allclose(cosine_cost(*tensors).numpy(), cost, rtol=1e-12)
    assert (band_mask(7, 5, 0.25).numpy() == mask).all()
    found = transport_rewards(*tensors, epsilon=0.2, band=0.25).numpy()
    assert_allclose(found, -(cost * plan).sum(1), atol=1e-4)


def test_only_the_band_tells_a_rollout_from_the_same_one_backwards():
    demo = torch.eye(6, dtype=torch.float64)
    for band, gap in ((1.0, 0.0), (0.2, 0.5)):
        forward, backward = (transport_rewards(each, demo, band=band).sum() for each in (demo, demo.flip(0)))
        assert forward - backward >= gap - 1e-9
        if band == 1.0:
            assert_allclose(forward, backward, atol=1e-9)


def test_preference_loss_is_bradley_terrys():
    near, far = np.array([0.2, 0.9]), np.array([0.5, 0.1])
    expected = -np.log(np.exp(-near) / (np.exp(-near) + np.exp(-far))).mean()
    assert_allclose(preference_loss(torch.from_numpy(near), torch.from_numpy(far)).item(), expected, rtol=1e-12)
