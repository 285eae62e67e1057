"""Figures under the names of published benchmarks, derived again by brute force on 1,000 random sets of episodes."""

import itertools
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from rewards.metrics import (
    average_precision,
    confusion_margin,
    kendall_tau_a,
    ordinal,
    ordinal_error,
    pairwise_accuracy,
    policy_ranking_tau,
    ranking_accuracy,
    somers_d,
    value_order_correlation,
    value_order_pearson,
)

CASES = 1000


def sets(seed: int, *, ties: bool = False):
    """Scores and qualities of 2 to 12 episodes; qualities are of 1 to 3 levels."""
    rng = np.random.default_rng(seed)
    for _ in range(CASES):
        count = rng.integers(2, 13)
        scores = rng.integers(0, 5, count).astype(float) if ties else rng.normal(size=count)
        yield scores, rng.integers(1, rng.integers(2, 5), count)


def tau_over_all_pairs(truth, scores):
    """Concordant less discordant pairs over n (n - 1) / 2; tied pairs are neither."""
    signs = [
        np.sign(truth[i] - truth[j]) * np.sign(scores[i] - scores[j])
        for i, j in itertools.combinations(range(len(truth)), 2)
    ]
    return sum(signs) / (len(truth) * (len(truth) - 1) / 2)


@pytest.mark.parametrize("ties", [False, True])
def test_kendall_over_every_choice_of_one_episode_a_level(ties):
    for scores, quality in sets(1, ties=ties):
        levels = np.unique(quality)
        if len(levels) < 2:
            assert math.isnan(policy_ranking_tau(scores, quality))
            continue
        choices = itertools.product(*(scores[quality == level] for level in levels))
        expected = np.mean([tau_over_all_pairs(levels, choice) for choice in choices])
        assert_allclose(policy_ranking_tau(scores, quality), expected, atol=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_tau_over_all_episodes(ties):
    for scores, quality in sets(2, ties=ties):
        assert_allclose(kendall_tau_a(scores, quality), tau_over_all_pairs(quality, scores), atol=1e-12)


@pytest.mark.parametrize("levels", [2, 60])
def test_counting_level_by_level_is_counting_pairs(levels):
    """60 levels are more than are counted level by level."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        scores, quality = rng.integers(0, 20, 80).astype(float), rng.integers(0, levels, 80)
        assert_allclose(kendall_tau_a(scores, quality), tau_over_all_pairs(quality, scores), atol=1e-12)
        assert_allclose(somers_d(scores, quality), stats.somersd(quality, scores).statistic, atol=1e-12)


def test_many_episodes_need_no_matrix_of_pairs():
    """50,000 episodes have 2.5 thousand million pairs."""
    rng = np.random.default_rng(4)
    scores, quality = rng.random(50_000), rng.integers(0, 3, 50_000)
    assert abs(kendall_tau_a(scores, quality)) < 0.01
    assert abs(somers_d(scores, quality)) < 0.01


@pytest.mark.parametrize("levels", [3, 400])
def test_rankings_of_many_levels_take_a_step_a_level(monkeypatch, levels):
    """With graded shares every episode is a level of its own: a step a pair of levels would be N² / 2 of them."""
    rng, steps, search = np.random.default_rng(6), [], np.searchsorted
    scores, quality = rng.integers(0, 50, 400).astype(float), rng.permutation(400) % levels
    monkeypatch.setattr(np, "searchsorted", lambda *given: steps.append(1) or search(*given))
    found = policy_ranking_tau(scores, quality), ranking_accuracy(scores, quality)
    assert len(steps) < 4 * levels
    lead = np.sign(np.subtract.outer(scores, scores))[np.subtract.outer(quality, quality) > 0]
    size = np.bincount(quality)[quality]
    weight = 1 / np.multiply.outer(size, size)[np.subtract.outer(quality, quality) > 0]
    assert_allclose(found, ((lead * weight).sum() / weight.sum(), (lead > 0).mean()), atol=1e-12)


def test_ranking_accuracy_is_the_share_of_pairs_in_order():
    for scores, quality in sets(5):
        right = [
            (scores[i] > scores[j]) == (quality[i] > quality[j])
            for i, j in itertools.combinations(range(len(scores)), 2)
            if quality[i] != quality[j]
        ]
        if right:
            assert_allclose(ranking_accuracy(scores, quality), np.mean(right), atol=1e-12)
        else:
            assert math.isnan(ranking_accuracy(scores, quality))
    assert ranking_accuracy([1, 1], [1, 2]) == ranking_accuracy([1, 1], [2, 1]) == 0  # in any order


def test_pairwise_accuracy_is_the_share_of_right_signs():
    rng = np.random.default_rng(6)
    for _ in range(CASES):
        before, after = rng.integers(0, 4, (2, 9)).astype(float)
        truth = rng.choice([-1, 1], 9)
        right = [(a > b and t > 0) or (a < b and t < 0) for b, a, t in zip(before, after, truth, strict=True)]
        assert_allclose(pairwise_accuracy(before, after, truth), np.mean(right), atol=1e-12)
        half = np.mean(right) + (before == after).mean() / 2
        assert_allclose(pairwise_accuracy(before, after, truth, tie=0.5), half, atol=1e-12)
    with pytest.raises(ValueError, match="got 0"):
        pairwise_accuracy([0.0], [1.0], [0])


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_the_sum_of_precisions_where_recall_rises(ties):
    """`success_auprc`, as scikit-learn defines it: of tied scores, all fire together."""
    for scores, quality in sets(10, ties=ties):
        labels = quality == quality.max()
        total = 0.0
        for threshold in np.unique(scores):
            new, fired = labels & (scores == threshold), scores >= threshold
            total += new.sum() / labels.sum() * labels[fired].mean()
        assert_allclose(average_precision(scores, labels), total, atol=1e-12)


def test_ordinal_error_is_the_mean_distance_of_levels():
    rng = np.random.default_rng(7)
    for _ in range(CASES):
        progress, truth = rng.uniform(-0.2, 1.2, 9), rng.integers(1, 6, 9)
        levels = [1 + round(min(max(value, 0.0), 1.0) * 4) for value in progress.tolist()]
        expected = np.mean([abs(level - wanted) for level, wanted in zip(levels, truth, strict=True)])
        assert_allclose(ordinal_error(progress, truth), expected, atol=1e-12)
    assert ordinal([0, 0.125, 0.375, 0.5, 1]).tolist() == [1, 1, 3, 3, 5]  # halves go to the even one, as round() does
    with pytest.raises(ValueError, match="whole numbers from 1 to 5"):
        ordinal_error([0.5], [0])


def test_the_confusion_margin_is_the_diagonal_above_the_rest():
    rng = np.random.default_rng(8)
    for _ in range(CASES):
        count = rng.integers(2, 9)
        scores = rng.random((count, count))
        same = np.eye(count, dtype=bool)
        assert_allclose(confusion_margin(scores), scores[same].mean() - scores[~same].mean(), atol=1e-12)
    assert math.isnan(confusion_margin([[0.5]]))
    with pytest.raises(ValueError, match="finite"):
        confusion_margin([[0.5, math.nan], [0.1, 0.2]])


def test_order_along_time_by_ranks_and_by_values():
    rng = np.random.default_rng(9)
    for _ in range(CASES):
        scores = rng.normal(size=rng.integers(3, 16))
        time = np.arange(len(scores))
        assert_allclose(value_order_pearson(scores), stats.pearsonr(time, scores).statistic, atol=1e-9)
        assert_allclose(value_order_correlation(scores), stats.spearmanr(time, scores).statistic, atol=1e-9)
    assert value_order_pearson(np.ones(5)) == value_order_correlation(np.ones(5)) == 0
