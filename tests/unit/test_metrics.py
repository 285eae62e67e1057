import math
import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose

from rewards.metrics import (
    auroc,
    bootstrap_interval,
    epic_distance,
    kendall_tau,
    kendall_tau_a,
    somers_d,
    spearman,
    value_order_correlation,
    value_order_pearson,
    wilson_interval,
)


def test_auroc_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 40), rng.random(40) < 0.4  # many ties
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    assert_allclose(auroc(scores, labels), np.mean(pairs), atol=1e-15)


def test_auroc_limits():
    assert auroc([1, 2, 3, 4], [0, 0, 1, 1]) == 1
    assert auroc([4, 3, 2, 1], [0, 0, 1, 1]) == 0
    assert auroc([5, 5, 5, 5], [0, 0, 1, 1]) == 0.5
    assert math.isnan(auroc([1, 2], [1, 1]))


def test_epic_distance_is_a_euclidean_distance():
    """√(1−ρ)/√2 is half the distance between the standardised vectors, per √N."""
    rng = np.random.default_rng(1)
    rewards, labels = rng.normal(size=50), rng.random(50) < 0.3
    standard = [(x - np.mean(x)) / np.std(x) for x in (rewards, labels.astype(float))]
    assert_allclose(epic_distance(rewards, labels), np.linalg.norm(standard[0] - standard[1]) / 2 / np.sqrt(50))
    assert_allclose(epic_distance(3 * labels + 7.0, labels), 0, atol=1e-7)
    assert_allclose(epic_distance(-1.0 * labels, labels), 1)
    for level in (0.0, 0.1, 0.7, 1 / 3):  # a constant less its mean is not always 0
        for count in (3, 10, 50):
            assert math.isnan(epic_distance(np.full(count, level), rewards[:count]))
            assert math.isnan(epic_distance(np.full(count, level), np.full(count, level)))
            assert value_order_pearson(np.full(count, level)) == 0


def test_spearman_on_a_hand_worked_example():
    # ranks 1 2.5 2.5 4 and 1 3 2 4: covariance 4.5, variances 4.5 and 5
    assert_allclose(spearman([10, 20, 20, 30], [1, 3, 2, 4]), 4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(spearman([1, 1], [1, 2]))


def test_value_order_correlation_forward_and_rewound():
    rising = np.array([0.1, 0.2, 0.15, 0.9])
    assert_allclose(value_order_correlation(rising), 0.8)
    assert_allclose(value_order_correlation(rising[::-1]), -0.8)
    assert_allclose(value_order_correlation(rising[::-1], rewound=True), 0.8)
    assert value_order_correlation([1, 1, 1]) == 0


def test_kendall_tau_b_by_its_definition():
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 5, 30), rng.integers(0, 5, 30)
    agree = differ = tied_first = tied_second = 0
    for i in range(30):
        for j in range(i):
            sign = np.sign(first[i] - first[j]) * np.sign(second[i] - second[j])
            agree, differ = agree + (sign > 0), differ + (sign < 0)
            tied_first, tied_second = tied_first + (first[i] == first[j]), tied_second + (second[i] == second[j])
    pairs = 30 * 29 / 2
    expected = (agree - differ) / math.sqrt((pairs - tied_first) * (pairs - tied_second))
    assert_allclose(kendall_tau(first, second), expected, atol=1e-15)
    assert kendall_tau([1, 2, 3], [1, 2, 3]) == 1


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(45, 50, 0.78640, 0.95652), (0, 10, 0, 0.27753), (10, 10, 0.72247, 1)],
)
def test_wilson_interval(successes, trials, low, high):
    assert_allclose(wilson_interval(successes, trials), (low, high), atol=5e-5)


def test_wilson_bounds_solve_the_score_equation():
    """At each bound the observed rate lies exactly z standard errors away."""
    low, high = wilson_interval(7, 30)
    for bound in (low, high):
        assert_allclose(abs(7 / 30 - bound), 1.959964 * math.sqrt(bound * (1 - bound) / 30), rtol=1e-6)
    assert wilson_interval(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="successes must be in 0 to 3"):
        wilson_interval(4, 3)


def test_bootstrap_interval_matches_the_normal_one_and_repeats():
    values = np.random.default_rng(3).normal(size=400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert_allclose((low, high), (values.mean() - half, values.mean() + half), atol=0.015)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, np.median, seed=1) != (low, high)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"auroc: scores and labels must be of one shape \(N,\); got \(2,\), \(3,\)"):
        auroc([1, 2], [0, 1, 1])
    with pytest.raises(ValueError, match="spearman: first and second must be finite"):
        spearman([1, math.nan], [0, 1])


def test_where_every_draw_must_be_the_same_there_is_no_interval():
    assert np.isnan(bootstrap_interval([1.0, 2.0, 3.0], strata=[0, 1, 2])).all()
    assert np.isnan(bootstrap_interval([1.0])).all()
    low, high = bootstrap_interval([1.0, 2.0, 3.0], strata=[0, 1, 1])
    assert low < 2 < high


def test_strata_keep_their_size_in_every_draw():
    labels = np.array([0] * 30 + [1] * 2)
    seen = set()
    bootstrap_interval(np.arange(32), lambda rows: seen.add(int(labels[rows].sum())) or 0.0, strata=labels)
    assert seen == {2}
    with pytest.raises(ValueError, match=r"strata must be \(3,\)"):
        bootstrap_interval([1, 2, 3], strata=[0, 1])


def test_agreement_of_many_episodes_takes_no_room():
    """Each of another quality, as a measured return is: a matrix of all pairs would take 20 GB."""
    scores, quality = np.random.default_rng(0).normal(size=(2, 50_000))
    assert kendall_tau_a([1, 2], [1, 2]) == 1  # scipy.stats is imported
    tracemalloc.start()
    assert abs(kendall_tau_a(scores, quality)) < 0.02
    assert kendall_tau_a(quality, quality) == 1
    assert somers_d(-quality, quality) == -1
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()
