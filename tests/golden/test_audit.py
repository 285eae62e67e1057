"""The judge's figures, derived again from their definitions."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from rewards.audit import canonical_reward, choose_threshold, detect, platt_scaling, reliability, roc_curve
from rewards.metrics import auroc, average_precision, epic_distance, kendall_tau_a, somers_d, value_order_correlation

RNG = np.random.default_rng(0)


def tied_scores(count=60):
    return RNG.integers(0, 9, count).astype(float), RNG.random(count) < 0.4


def test_average_precision_is_the_mean_precision_at_each_positive():
    """Without ties; precision among everything that scores at least as high."""
    scores, labels = RNG.permutation(50).astype(float), RNG.random(50) < 0.3
    precisions = [labels[scores >= s].mean() for s in scores[labels]]
    assert_allclose(average_precision(scores, labels), np.mean(precisions), atol=1e-14)


def test_average_precision_with_ties_is_the_sum_over_thresholds():
    scores, labels = tied_scores()
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        fired = scores >= threshold
        total += (labels[fired].sum() / labels.sum() - recall) * labels[fired].mean()
        recall = labels[fired].sum() / labels.sum()
    assert_allclose(average_precision(scores, labels), total, atol=1e-14)
    assert_allclose(average_precision(np.ones(60), labels), labels.mean())
    assert math.isnan(average_precision([1, 2], [0, 0]))


def test_tau_a_counts_all_pairs_and_somers_d_those_of_unequal_quality():
    scores, quality = RNG.integers(0, 6, 30).astype(float), RNG.integers(0, 3, 30)
    agree = differ = unequal = 0
    for i in range(30):
        for j in range(i):
            sign = np.sign(scores[i] - scores[j]) * np.sign(quality[i] - quality[j])
            agree, differ, unequal = agree + (sign > 0), differ + (sign < 0), unequal + (quality[i] != quality[j])
    assert_allclose(kendall_tau_a(scores, quality), (agree - differ) / (30 * 29 / 2), atol=1e-14)
    assert_allclose(somers_d(scores, quality), (agree - differ) / unequal, atol=1e-14)
    assert_allclose(somers_d(scores, quality), stats.somersd(quality, scores).statistic, atol=1e-14)
    assert kendall_tau_a(np.ones(30), quality) == somers_d(np.ones(30), quality) == 0  # tau-b would be undefined
    assert kendall_tau_a(scores, np.ones(30)) == 0
    assert math.isnan(somers_d(scores, np.ones(30)))
    assert math.isnan(kendall_tau_a([1.0], [1.0]))


def test_a_perfect_order_of_tied_qualities():
    """The published figure stays below 1."""
    quality, scores = [3, 3, 2, 2, 1, 1], [0.9, 0.8, 0.6, 0.5, 0.2, 0.1]
    assert_allclose(kendall_tau_a(scores, quality), 0.8)
    assert somers_d(scores, quality) == 1


def test_two_grades_make_somers_d_a_scaled_auroc():
    scores, labels = tied_scores()
    assert_allclose(somers_d(scores, labels), 2 * auroc(scores, labels) - 1, atol=1e-14)


def test_the_clock_is_right_forward_and_wrong_reversed():
    """Shown an episode either way, a clock gives 0, 1, 2 …; a constant has no order in either."""
    clock, truth = np.arange(20.0), np.linspace(0, 1, 20) ** 2
    assert value_order_correlation(clock) == pytest.approx(1)
    assert value_order_correlation(clock, rewound=True) == pytest.approx(-1)
    assert value_order_correlation(truth) == value_order_correlation(truth[::-1], rewound=True) == pytest.approx(1)
    assert value_order_correlation(np.ones(20)) == value_order_correlation(np.ones(20), rewound=True) == 0


def test_epic_ignores_shaping_and_scale():
    """On a chain of 12 states, the definition summed by hand; then its two invariances."""
    count, discount = 12, 0.9
    table, potential = RNG.normal(size=(count, count)), RNG.normal(size=count)
    states, following = RNG.integers(count, size=(2, 200))
    samples = RNG.integers(count, size=7)

    def canonical(matrix):
        return canonical_reward(lambda s, n: matrix[s, n], states, following, samples, discount=discount)

    by_hand = [
        table[s, n]
        + np.mean([discount * table[n, x] - table[s, x] for x in samples])
        - discount * np.mean([table[x, y] for x in samples for y in samples])
        for s, n in zip(states, following, strict=True)
    ]
    assert_allclose(canonical(table), by_hand, atol=1e-13)
    shaped = 3 * table + discount * potential[None] - potential[:, None] + 5
    assert_allclose(epic_distance(canonical(table), canonical(shaped)), 0, atol=1e-6)
    assert_allclose(epic_distance(canonical(table), canonical(-table)), 1)
    assert epic_distance(table[states, following], shaped[states, following]) > 0.1  # what shaping hides from Pearson
    pure = discount * potential[None] - potential[:, None]
    assert_allclose(canonical(pure), 0, atol=1e-13)


def test_a_constant_reward_has_no_distance():
    assert math.isnan(epic_distance(np.ones(10), np.arange(10)))


def test_detection_counts_and_intervals():
    found = detect([0.9, 0.8, 0.7, 0.2, 0.5], [1, 1, 0, 0, 1], 0.6)
    assert found == (2, 1, 1)
    assert (found.precision, found.recall) == (2 / 3, 2 / 3)
    assert found.precision_interval[0] < 2 / 3 < found.precision_interval[1]
    nothing = detect([0.1, 0.2], [0, 0], 0.6)
    assert math.isnan(nothing.precision)
    assert math.isnan(nothing.recall)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_threshold_has_the_best_f(beta):
    scores, labels = tied_scores()

    def quality(threshold):
        fired = scores >= threshold
        precision, recall = labels[fired].mean(), fired[labels].mean()
        both = beta**2 * precision + recall
        return (1 + beta**2) * precision * recall / both if both else 0.0

    chosen = choose_threshold(scores, labels, beta=beta)
    assert chosen not in scores
    assert_allclose(quality(chosen), max(quality(t) for t in np.unique(scores)[1:]), atol=1e-14)


def test_a_threshold_lies_midway_between_the_classes():
    assert choose_threshold([0.0, 0.2, 0.6, 0.9], [0, 0, 1, 1]) == pytest.approx(0.4)
    assert math.isnan(choose_threshold([0.0, 0.2], [1, 1]))
    assert math.isnan(choose_threshold([0.2, 0.2], [0, 1]))


def test_the_area_under_the_roc_curve_is_the_auroc():
    scores, labels = tied_scores()
    false, true = roc_curve(scores, labels)
    assert_allclose(np.trapezoid(true, false), auroc(scores, labels), atol=1e-14)


def test_platt_scaling_finds_the_logistic_that_made_the_labels():
    scores = RNG.normal(3, 2, 40_000)
    truth = 1 / (1 + np.exp(-(1.5 * scores - 4)))
    scaled = platt_scaling(scores, RNG.random(40_000) < truth)
    assert_allclose(scaled(scores), truth, atol=0.02)


def test_platt_scaling_of_what_separates_stays_finite_and_of_a_constant_is_the_base_rate():
    scaled = platt_scaling([0, 1, 2, 3], [0, 0, 1, 1])([0, 1, 2, 3])
    # the fixed point of Platt's targets 3/4 and 1/4: the two classes' errors cancel
    assert_allclose(scaled + scaled[::-1], 1, atol=1e-4)
    assert 0.05 < scaled[0] < scaled[1] < 0.5 < scaled[2] < scaled[3] < 0.95
    assert_allclose(platt_scaling([2, 2, 2, 2], [0, 0, 0, 1])([2.0, 7.0]), (2 / 3 + 3 * 1 / 5) / 4, atol=1e-5)


def test_the_calibration_error_by_its_definition():
    probabilities = RNG.random(500)
    labels = RNG.random(500) < probabilities**2
    error = 0.0
    for low in np.arange(10) / 10:
        inside = (probabilities >= low) & (probabilities < low + 0.1)
        error += inside.mean() * abs(labels[inside].mean() - probabilities[inside].mean())
    found = reliability(probabilities, labels)
    assert_allclose(found.error, error, atol=1e-12)
    assert found.counts.sum() == 500
    assert reliability([0.0, 1.0], [0, 1]).error == 0
    assert reliability([1.0, 0.0], [0, 1]).error == 1
    with pytest.raises(ValueError, match=r"probabilities must be in \[0, 1\]; got -1 to 2"):
        reliability([-1, 2], [0, 1])
