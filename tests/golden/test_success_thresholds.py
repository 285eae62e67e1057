"""Temperature, thresholds, logistic regression, onsets and the ensemble's reward, each derived again in NumPy."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from rewards.calibration import conformal_rejection, fit_platt, fit_temperature, precision_threshold
from rewards.goal_image import ensemble_reward
from rewards.success_fit import fit_logistic, onset_labels


def test_temperature_is_where_the_slope_vanishes():
    rng = np.random.default_rng(0)
    logits = 6 * rng.normal(size=400)
    labels = rng.random(400) < 1 / (1 + np.exp(-logits / 3))  # truly T = 3
    temperature = fit_temperature(logits, labels)
    target = np.where(labels, 401 / 402, 1 / 402)
    slope = ((1 / (1 + np.exp(-logits / temperature)) - target) * logits).mean()  # of the loss, in 1/T
    assert abs(slope) < 1e-4
    assert 2 < temperature < 4.5


def test_a_few_separable_episodes_do_not_make_it_sure():
    logits, labels = np.array([-10.0] * 50 + [10.0] * 50), np.arange(100) >= 50
    for trials in (4, 40):
        p = 1 / (1 + np.exp(-10 / fit_temperature(logits, labels, trials=trials)))
        assert_allclose(p, (trials + 1) / (trials + 2), atol=1e-3)


def test_platt_s_offset_and_slope():
    rng = np.random.default_rng(6)
    logits = 4 + 3 * rng.normal(size=3000)
    labels = rng.random(3000) < 1 / (1 + np.exp(-(logits - 5) / 2))  # truly T = 2, offset 5
    temperature, offset = fit_platt(logits, labels)
    assert_allclose([temperature, offset], [2, 5], atol=0.3)
    p = 1 / (1 + np.exp(-(logits - offset) / temperature))
    target = np.where(labels, 3001 / 3002, 1 / 3002)
    assert_allclose([(p - target).mean(), ((p - target) * logits).mean()], 0, atol=2e-4)


@pytest.mark.parametrize("least", [0.5, 0.65])
@pytest.mark.parametrize("base_rate", [None, 0.02])
def test_precision_threshold_by_trying_them_all(base_rate, least):
    rng = np.random.default_rng(1)
    labels = rng.random(300) < 0.3
    scores = np.round(np.clip(0.3 + 0.4 * labels + 0.15 * rng.normal(size=300), 0, 1), 2)  # with ties
    rate = labels.mean() if base_rate is None else base_rate
    good = []
    for each in [least, *np.unique(scores[scores >= least])]:
        fired = scores >= each
        right, wrong = rate * fired[labels].mean(), (1 - rate) * fired[~labels].mean()
        if right / (right + wrong) >= 0.9:
            good.append(each)
    assert precision_threshold(scores, labels, 0.9, base_rate=base_rate, least=least) == min(good)


def test_a_precision_that_only_a_lower_threshold_reaches_is_refused():
    scores, labels = [0.9] + [0.4] * 19 + [0.1] * 9, [False] + [True] * 19 + [False] * 9
    with pytest.raises(ValueError, match=r"wanted 0\.95, the best from 0\.50 on is 0\.00"):
        precision_threshold(scores, labels, 0.95)
    with pytest.raises(ValueError, match=r"none is 0\.95"):
        precision_threshold(scores, labels, 0.95, least=0.95)


def test_conformal_rejection_keeps_its_promise():
    """Over many draws a new failed episode fires in at most the promised share, and not in far fewer."""
    rng = np.random.default_rng(2)
    fired = [rng.normal() > conformal_rejection(rng.normal(size=19), 0.1) for _ in range(4000)]
    assert 0.08 < np.mean(fired) < 0.115  # exactly 2/20
    maxima = rng.normal(size=19)
    assert conformal_rejection(maxima, 0.1) == np.sort(maxima)[17]


def test_logistic_regression_is_newton_s():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(60, 4)), (rng.random(60) < 0.25).astype(float)
    penalty = np.array([0.1, 0.1, 0.1, 0.001])
    w, b = fit_logistic(x, y, penalty)
    design, theta = np.c_[x, np.ones(60)], np.zeros(5)
    weight, full = np.where(y == 1, 0.5 / y.sum(), 0.5 / (60 - y.sum())), np.append(penalty, 0)
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ theta))
        slope = design.T @ (weight * (p - y)) + full * theta
        curve = design.T @ (design * (weight * p * (1 - p))[:, None]) + np.diag(full)
        theta -= np.linalg.solve(curve, slope)
    assert_allclose(np.append(w, b), theta, atol=2e-4)


def test_onset_is_the_most_likely_one():
    rng = np.random.default_rng(4)
    for _ in range(20):
        z = rng.normal(size=12)
        p = 1 / (1 + np.exp(-z))
        likely = [np.log(1 - p[:t]).sum() + np.log(p[t:]).sum() for t in range(12)]
        assert_allclose(onset_labels(z), np.arange(12) >= int(np.argmax(likely)))


def test_ensemble_reward():
    logits = np.random.default_rng(5).normal(size=(5, 2, 3))
    chance = 1 / (1 + np.exp(-logits))
    given = torch.from_numpy(logits)
    assert_allclose(ensemble_reward(given, "mean", 0.0), chance.mean(0))
    log_ratio = np.log(chance) - np.log(1 - chance)
    expected = log_ratio.mean(0) - 0.5 * log_ratio.std(0)
    assert_allclose(ensemble_reward(given, "log_ratio", 0.5), expected, atol=1e-12)
    assert math.isclose(float(ensemble_reward(given[:1], "mean", 9.0)[0, 0]), chance[0, 0, 0])  # one never disagrees
