"""How good a reward is, without training on it; and intervals for what training gives.

All in float64 NumPy. Undefined rank correlations and AUROCs (a constant input, one class) are NaN unless said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """The chance that a random positive scores above a random negative, ties counting half; in [0, 1].

    Args:
        scores: (N,) any order-preserving numbers.
        labels: (N,) bool.
    """
    scores, labels = paired(scores, labels, "auroc", "scores", "labels")
    positive = labels.astype(bool)
    count = positive.sum()
    if count in (0, len(labels)):
        return math.nan
    rank_sum = _ranks(scores)[positive].sum()
    return float((rank_sum - count * (count + 1) / 2) / (count * (len(labels) - count)))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Σ (Rₙ − Rₙ₋₁) Pₙ over thresholds from high to low, tied scores being one threshold; in [0, 1].

    Args:
        scores: (N,) any order-preserving numbers.
        labels: (N,) bool; without a positive the result is NaN. A constant score gives their share.
    """
    scores, labels = paired(scores, labels, "average_precision", "scores", "labels")
    positive = labels.astype(bool)
    if not positive.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of each run of tied scores
    hits = np.cumsum(positive[order])[last]
    fired = np.arange(1, len(scores) + 1)[last]
    return float((np.diff(hits, prepend=0) * hits / fired).sum() / positive.sum())


def epic_distance(first: ArrayLike, second: ArrayLike) -> float:
    """EPIC's Pearson distance √((1−ρ)/2) of two rewards of the same transitions; 0 equivalent, 1 opposite.

    NaN if one is constant. Rewards of a state alone need nothing else (VLM-RM, arXiv 2310.12921 §4.4): canonical
    shaping only shifts them. Others go through `rewards.audit.canonical_reward` first.

    Args:
        first, second: (N,) rewards of the same transitions.

    Source: Gleave et al., arXiv 2006.13900, Definition 4.5.
    """
    first, second = paired(first, second, "epic_distance", "first", "second")
    correlation = _pearson(first, second)
    return math.sqrt((1 - correlation) / 2)


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Pearson's correlation of the ranks, ties sharing their mean rank; in [-1, 1].

    Args:
        first, second: (N,).
    """
    first, second = paired(first, second, "spearman", "first", "second")
    return _pearson(_ranks(first), _ranks(second))


def value_order_correlation(scores: ArrayLike, *, rewound: bool = False) -> float:
    """GVL's VOC: Spearman's correlation of an episode's scores with time; 0 if the scores are constant.

        forward   ρ(φ(o₁ … o_T), 1 … T)          reversed  −ρ(φ(o_T … o₁), 1 … T)

    The forward figure alone is a trap: whatever only counts time has 1, without looking. Reversed, the scorer is
    shown the frames last to first *as an episode of its own*. A score of what is seen falls, and has +1 again; one
    that counts time rises, and has −1; one that can only ever rise stays constant, and has 0. Report both.

    Args:
        scores: (T,) in the order in which the frames were shown.
        rewound: whether they were shown last to first.
    Source: arXiv 2411.04549; constant scores give 0 as in budzianowski/opengvl. It measures order, not calibration.
    """
    scores = np.asarray(scores, np.float64)
    correlation = spearman(scores, np.arange(len(scores)))
    return 0.0 if math.isnan(correlation) else -correlation if rewound else correlation


def value_order_pearson(scores: ArrayLike) -> float:
    """Pearson's correlation of a success's scores with time; 0 if the scores are constant; in [-1, 1].

    Published as "VOC r" or "reward alignment": there the target is a success's progress, which is linear in time.

    Args:
        scores: (T,) in the order of time.
    Source: Robometer, arXiv 2603.02115; constant scores give 0 as in its code.
    """
    scores, time = paired(scores, np.arange(len(np.asarray(scores))), "value_order_pearson", "scores", "time")
    correlation = _pearson(scores, time)
    return 0.0 if math.isnan(correlation) else correlation


def kendall_tau(first: ArrayLike, second: ArrayLike) -> float:
    """Kendall's τ-b: concordant less discordant pairs over the geometric mean of untied pairs; in [-1, 1].

    Compares all pairs, N² of them: for some thousands of values.

    Args:
        first, second: (N,).
    """
    first, second = paired(first, second, "kendall_tau", "first", "second")
    signs = [np.sign(np.subtract.outer(values, values)) for values in (first, second)]
    untied = math.sqrt(np.abs(signs[0]).sum() * np.abs(signs[1]).sum())
    return float((signs[0] * signs[1]).sum() / untied) if untied else math.nan


def kendall_tau_a(scores: ArrayLike, quality: ArrayLike) -> float:
    """Kendall's τ_a: (concordant − discordant) / (N (N − 1) / 2), ties of either kind below the line only; in [-1, 1].

    The figure that is published for ranking episodes (Robometer, arXiv 2603.02115: per task, then the mean of tasks).
    Where qualities are tied it stays below 1 even for a perfect order; `somers_d` does not.

    Args:
        scores: (N,) one per episode.
        quality: (N,) higher is better; NaN with fewer than two.
    """
    scores, quality = paired(scores, quality, "kendall_tau_a", "scores", "quality")
    agreement, count = _agreement(scores, quality), len(scores)
    return agreement / (count * (count - 1)) if count > 1 else math.nan


def somers_d(scores: ArrayLike, quality: ArrayLike) -> float:
    """Somers' D of scores given quality: (concordant − discordant) / pairs of unequal quality; in [-1, 1].

    A pair that the scores tie counts below the line only, so a constant score has 0. Pairs of equal quality have no
    order to find and do not count; where no two are equal this is τ_a.

    Args:
        scores: (N,) one per episode.
        quality: (N,) higher is better; NaN if all are equal.
    """
    scores, quality = paired(scores, quality, "somers_d", "scores", "quality")
    counts = np.unique(quality, return_counts=True)[1].astype(float)
    pairs = len(quality) ** 2 - float((counts**2).sum())
    return _agreement(scores, quality) / pairs if pairs else math.nan


def policy_ranking_tau(scores: ArrayLike, quality: ArrayLike) -> float:
    """The mean Kendall's τ_a over all ways to take one episode of each quality; in [-1, 1].

    Published as "kendall": one failure, one suboptimal and one success at a time, so that every choice has a perfect
    order with τ = 1, and levels with many episodes weigh no more than others. A mean over choices is a mean over pairs
    of levels, of the share of concordant less that of discordant pairs between them, which is what is computed.

    Args:
        scores: (N,) one per episode, its last score in the published protocol.
        quality: (N,) higher is better; NaN where all are equal.
    Source: Robometer, arXiv 2603.02115, `robometer/evals/compile_results.py`.
    """
    scores, quality = paired(scores, quality, "policy_ranking_tau", "scores", "quality")
    levels = [scores[quality == level] for level in np.unique(quality)]
    sizes = np.array([len(level) for level in levels])
    shares = []
    for k, (lower, higher) in enumerate(_rising(levels), 1):
        lead = len(higher) - np.searchsorted(higher, lower, "left") - np.searchsorted(higher, lower, "right")
        starts = np.cumsum(sizes[:k]) - sizes[:k]
        shares.append(np.add.reduceat(lead, starts) / (sizes[:k] * sizes[k]))
    return float(np.mean(np.concatenate(shares))) if shares else math.nan


def ranking_accuracy(scores: ArrayLike, quality: ArrayLike) -> float:
    """The share of pairs of different quality of which the better one has the higher score; in [0, 1].

    A pair that the scores tie is wrong. (The published code counts it by the order in which the two are stored.)

    Args:
        scores: (N,) one per episode.
        quality: (N,) higher is better; NaN where all are equal.
    Source: `ranking_acc` of Robometer, arXiv 2603.02115, `robometer/evals/compile_results.py`.
    """
    scores, quality = paired(scores, quality, "ranking_accuracy", "scores", "quality")
    right = total = 0
    for lower, higher in _rising([scores[quality == level] for level in np.unique(quality)]):
        total += len(lower) * len(higher)
        right += len(lower) * len(higher) - int(np.searchsorted(higher, lower, "right").sum())
    return right / total if total else math.nan


def pairwise_accuracy(before: ArrayLike, after: ArrayLike, truth: ArrayLike, *, tie: float = 0.0) -> float:
    """The share of pairs of states whose difference in score has the sign of the truth; in [0, 1].

    Args:
        before, after: (N,) scores of the two states.
        truth: (N,) above 0 where the second is further, below 0 where the first is.
        tie: what a pair of equal scores counts; 0: it is wrong.

    Raises:
        ValueError: arrays of different shapes, numbers that are not finite, or a truth of 0.

    Source: RoboPulse, arXiv 2603.21669.
    """
    before, after = paired(before, after, "pairwise_accuracy", "before", "after")
    after, truth = paired(after, truth, "pairwise_accuracy", "after", "truth")
    if not truth.all():
        raise ValueError("pairwise_accuracy: truth must be above or below 0 for every pair; got 0.")
    change = np.sign(after - before)
    return float(np.mean(np.where(change == 0, tie, change == np.sign(truth))))


def ordinal(progress: ArrayLike, levels: int = 5) -> np.ndarray:
    """Progress, (N,) in [0, 1], as whole levels from 1: the nearest of evenly spaced ones, a half to the even one.

    Args:
        progress: (N,) in [0, 1].
        levels: number of levels.
    """
    values = np.clip(np.asarray(progress, np.float64), 0, 1)
    return (np.round(values * (levels - 1)) + 1).astype(np.int64)


def ordinal_error(progress: ArrayLike, truth: ArrayLike, levels: int = 5) -> float:
    """The mean distance, in levels, of progress as levels 1 to 5 from the level that a person gave.

    Args:
        progress: (N,) in [0, 1], at the end of each episode; what lies outside is clipped.
        truth: (N,) whole numbers from 1 to `levels`.
        levels: how many there are.

    Raises:
        ValueError: arrays of different shapes, or levels that are not whole numbers from 1 to `levels`.

    Source: RoboReward, arXiv 2601.00675; progress becomes a level as in Robometer's evaluation of it.
    """
    progress, truth = paired(progress, truth, "ordinal_error", "progress", "truth")
    if not np.isin(truth, np.arange(1, levels + 1)).all():
        raise ValueError(f"ordinal_error: truth must be whole numbers from 1 to {levels}; got {truth.tolist()[:8]}.")
    return float(np.abs(ordinal(progress, levels) - truth).mean())


def confusion_margin(scores: ArrayLike) -> float:
    """The mean of the diagonal less that of the rest: what the right instruction earns above a wrong one.

    Args:
        scores: (K, K) mean last score of each task's episodes (columns) under each task's instruction (rows), in one
            order; NaN with fewer than two tasks.

    Raises:
        ValueError: not finite, or not of a shape (K, K).

    Source: `normalized_trace_minus_offdiag` of Robometer, arXiv 2603.02115.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not np.isfinite(scores).all():
        raise ValueError(f"confusion_margin: scores must be finite and of a shape (K, K); got {scores.shape}.")
    count, right = len(scores), float(np.trace(scores))
    return right / count - (float(scores.sum()) - right) / (count * (count - 1)) if count > 1 else math.nan


def _agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Concordant less discordant pairs, each counted twice."""
    from scipy.stats import kendalltau  # half a second to import

    untied = [len(each) ** 2 - int((np.unique(each, return_counts=True)[1] ** 2).sum()) for each in (first, second)]
    if not min(untied):
        return 0.0
    tau: Any = kendalltau(first, second)[0]  # τ_b: of the pairs that neither ties
    return float(round(tau * math.sqrt(untied[0]) * math.sqrt(untied[1])))


def _rising(levels: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each level but the first, sorted, after all scores of the levels below it, in their order.

    A step a level and not a pair of levels: where every quality is another number, pairs are as many as N².
    """
    scores = np.concatenate(levels)
    below = 0
    for lower, higher in pairwise(levels):
        below += len(lower)
        yield scores[:below], np.sort(higher)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate, within [0, 1]; (0, 1) without trials.

    Args:
        successes: 0 to `trials`.
        trials: how many there were.
        confidence: in (0, 1).

    Raises:
        ValueError: successes outside of that.

    Source: Wilson 1927, without a correction for continuity.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"wilson_interval: successes must be in 0 to {trials}, the trials; got {successes}.")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate, spread = successes / trials, z * z / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., float] = np.mean,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    strata: ArrayLike | None = None,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic.

    It is too narrow for few rows, and has no width where every draw gives the same (an AUROC of 1, say). Where each
    stratum is one row every draw is the rows themselves, which tell nothing of chance: both ends are NaN.

    Args:
        values: (N, …) one row per independent thing: an episode, a seed.
        statistic: rows -> number.
        confidence: in (0, 1).
        resamples: how many times rows are drawn with replacement.
        seed: of the drawing; the same gives the same interval.
        strata: (N,) groups that keep their size in every draw, such as successes and failures; None: one group.

    Raises:
        ValueError: no rows, or strata that are not one a row.
    """
    rows = np.asarray(values)
    if rows.ndim == 0 or len(rows) == 0:
        raise ValueError(f"bootstrap_interval: values must hold at least one row; got shape {rows.shape}.")
    labels = np.zeros(len(rows)) if strata is None else np.asarray(strata)
    if labels.shape != (len(rows),):
        raise ValueError(f"bootstrap_interval: strata must be ({len(rows)},), one per row; got shape {labels.shape}.")
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == group) for group in np.unique(labels)]
    if len(groups) == len(rows):
        return math.nan, math.nan
    draws = [
        statistic(rows[np.concatenate([group[rng.integers(len(group), size=len(group))] for group in groups])])
        for _ in range(resamples)
    ]
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, tied values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:  # less its mean a constant need not be 0: 0.1 is rounded
        return math.nan
    first, second = first - first.mean(), second - second.mean()
    scale = math.sqrt((first @ first) * (second @ second))
    return float(np.clip(first @ second / scale, -1, 1)) if scale > 0 else math.nan


def paired(first: ArrayLike, second: ArrayLike, where: str, *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Two finite (N,) float64 arrays, N ≥ 1; ValueError where they are not, which names `where` and what they are.

    Args:
        first, second: what came.

    Raises:
        ValueError: not of one shape (N,), N ≥ 1, or not finite.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) == 0:
        raise ValueError(
            f"{where}: {' and '.join(names)} must be of one shape (N,); got {first.shape}, {second.shape}."
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError(f"{where}: {' and '.join(names)} must be finite; got NaN or infinity.")
    return first, second


def mcnemar(better: int, worse: int) -> float:
    """The exact two-sided p-value that of pairs which differ, as many go one way as the other.

    Args:
        better, worse: pairs that differ one way and the other; the pairs that agree say nothing.

    Returns:
        2·P(X ≤ min) of a fair coin thrown better + worse times, at most 1.

    Raises:
        ValueError: a count below 0.

    Source: McNemar 1947, in its exact form.
    """
    if better < 0 or worse < 0:
        raise ValueError(f"mcnemar: better and worse must be 0 or more; got {better} and {worse}.")
    count = better + worse
    tail = sum(math.comb(count, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**count)
