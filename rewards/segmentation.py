"""Steps of demonstrations: where one ends and the next begins, how many there are, and which features tell them apart.

All in float64 NumPy. Shape letters: T rows of one demonstration, D features, K steps. Steps are told as in
`rewards.core.Episode`: the last row of each, ascending, so that the last entry is T − 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PACES = (0.6, 1.0, 1.6)  # of the starts of a joint segmentation: first steps long, alike, short
FLOOR = 0.05  # least standard deviation of a normalised feature within a step: a demonstration is never that still


class Gaussians(NamedTuple):
    """What each step looks like: means and standard deviations, (K, D).

    Attributes:
        mean, std: (K, D).
    """

    mean: np.ndarray
    std: np.ndarray


def segment(values: np.ndarray, num_steps: int, *, min_length: int = 3) -> tuple[int, ...]:
    """The steps of one demonstration within which its features vary least, by an exact dynamic programme.

        minimise (1/K) Σ_k S(a_k, b_k),   S(a, b) = (1/D) Σ_d std of feature d over rows a … b−1
        E[k, b] = min_a E[k−1, a] + S(a, b)

    S comes from cumulative first and second moments: O(T² D) once, then O(K T²).

    Args:
        values: (T, D) features.
        num_steps: K ≥ 1.
        min_length: of a step, rows, ≥ 1.

    Raises:
        ValueError: fewer than K · min_length rows, or an argument out of range.
    Source: arXiv 1612.06699 §3.1; the paper's recursion over cut points is exponential and finds the same optimum.
    """
    _check_steps("segment", len(values), num_steps, min_length)
    spread = spreads(values)
    return _best([spread] * num_steps, min_length)


def spreads(values: np.ndarray) -> np.ndarray:
    """(T + 1, T + 1): S(a, b) of `segment` at [a, b] for a < b, else infinity.

    Args:
        values: (T, D) rows of one demonstration.
    """
    values = np.asarray(values, np.float64)
    values = values - values.mean(0)  # keeps the difference of moments accurate
    first = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, 0)])
    second = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values**2, 0)])
    result = np.full((len(first), len(first)), math.inf)
    for start in range(len(values)):
        count = np.arange(1, len(values) - start + 1)[:, None]
        mean = (first[start + 1 :] - first[start]) / count
        variance = (second[start + 1 :] - second[start]) / count - mean**2
        result[start, start + 1 :] = np.sqrt(np.maximum(variance, 0)).mean(1)
    return result


def segment_jointly(
    demos: Sequence[np.ndarray], num_steps: int, *, min_length: int = 3, rounds: int = 20
) -> tuple[list[tuple[int, ...]], Gaussians]:
    """Steps that look alike in all demonstrations: the likeliest found from several starts.

    From each start, in turn: one diagonal Gaussian per step, over all demonstrations; then each demonstration's exact
    best cuts under them. No round lowers the likelihood, and rounds end when no cut moves. The starts are those of
    `segment` and cuts at the shares (k/K)^p of every demonstration, p in `PACES`.

    Args:
        demos: (T, D) features each, normalised (standard deviation about 1), of one D.
        num_steps: K ≥ 1.
        min_length: of a step, rows, ≥ 1.
        rounds: at most this many, from each start.

    Returns:
        The steps of each demonstration, and what the steps look like.

    Raises:
        ValueError: a demonstration of fewer than K · min_length rows.
    Source: ours, for arXiv 1612.06699 segments each demonstration alone, and equal positions need not be equal steps
        then; this is Viterbi training of a left-to-right model. `segment` alone is a poor start where a recording runs
        on after the task: the still end is the step that varies least.
    """
    starts = [[segment(values, num_steps, min_length=min_length) for values in demos]]
    starts += [[_at_pace(len(values), num_steps, pace, min_length) for values in demos] for pace in PACES]
    found = []
    for steps in starts:
        for _ in range(rounds):
            model = gaussians(demos, steps)
            moved = [follow(values, model, min_length=min_length)[0] for values in demos]
            if moved == steps:
                break
            steps = moved
        model = gaussians(demos, steps)
        found.append((_total(demos, steps, model), steps, model))
    _, steps, model = max(found, key=lambda each: each[0])
    return steps, model


def gaussians(demos: Sequence[np.ndarray], steps: Sequence[tuple[int, ...]]) -> Gaussians:
    """Mean and standard deviation of each step's rows over all demonstrations; the deviation at least `FLOOR`.

    Args:
        demos: (T, D) rows of each.
        steps: ends of each one's steps.
    """
    values, labels = np.concatenate(demos), np.concatenate([row_steps(each) for each in steps])
    rows = [values[labels == k] for k in range(len(steps[0]))]
    return Gaussians(
        np.stack([each.mean(0) for each in rows]), np.maximum(np.stack([each.std(0) for each in rows]), FLOOR)
    )


def log_likelihood(values: np.ndarray, model: Gaussians) -> np.ndarray:
    """(T, K): log density of each row in each step, mean over features, without the constant −½ log 2π.

    Args:
        values: (T, D).
        model: of K steps.
    """
    offset = (np.asarray(values, np.float64)[:, None] - model.mean) / model.std
    return -(0.5 * offset**2 + np.log(model.std)).mean(-1)


def follow(values: np.ndarray, model: Gaussians, *, min_length: int = 3) -> tuple[tuple[int, ...], float]:
    """The likeliest cuts of one demonstration under given steps, and its log-likelihood per row.

    With c_k the cumulated cost of step k, a segment costs c_k[b] − c_k[a], so that its best start is a running minimum:

        E[k, b] = c_k[b] + min_a (E[k−1, a] − c_k[a])   over a ≤ b − min_length;   O(K T)

    Args:
        values: (T, D).
        model: of K steps.
        min_length: fewest rows of a step.

    Raises:
        ValueError: fewer than K · min_length rows.
    """
    _check_steps("follow", len(values), len(model.mean), min_length)
    density = log_likelihood(values, model)
    cumulated = np.concatenate([np.zeros((1, len(model.mean))), np.cumsum(-density, 0)])
    at = np.arange(len(cumulated))
    best = np.where(at == 0, 0.0, math.inf)
    back = []
    for cost in cumulated.T:
        lead = best - cost
        low = np.minimum.accumulate(lead)
        falls = np.concatenate([[True], lead[1:] < low[:-1]])
        origin, best = np.zeros_like(at), np.full(len(at), math.inf)
        origin[min_length:] = np.maximum.accumulate(np.where(falls, at, 0))[:-min_length]
        best[min_length:] = low[:-min_length] + cost[min_length:]
        back.append(origin)
    ends = _traced(back)
    return ends, float(density[np.arange(len(values)), row_steps(ends)].mean())


def row_steps(ends: Sequence[int]) -> np.ndarray:
    """(T,) int: the step, from 0, that each row belongs to.

    Args:
        ends: of each step, exclusive.
    """
    return np.repeat(np.arange(len(ends)), np.diff([-1, *ends]))


def select_features(
    positive: np.ndarray, negative: np.ndarray, *, count: int = 32, alpha: float = 5.0
) -> tuple[np.ndarray, np.ndarray]:
    """The features that tell a step from the others best.

        z_i = α |μ_i⁺ − μ_i⁻| − (σ_i⁺ + σ_i⁻)

    Args:
        positive: (N, D) rows of the step, over all demonstrations.
        negative: (M, D) all other rows.
        count: how many to keep; all where D is smaller.
        alpha: weight of the means' distance.

    Returns:
        Their indices, best first, and every feature's z, (D,).
    Source: arXiv 1612.06699 §3.2, α = 5, 32 features.
    """
    apart = np.abs(positive.mean(0) - negative.mean(0))
    z = alpha * apart - (positive.std(0) + negative.std(0))
    return np.argsort(-z, kind="stable")[:count], z


def jaccard(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two (T,) bool masks; 1 if both are empty.

    Args:
        found, truth: (T,) bool.
    """
    union = np.logical_or(found, truth).sum()
    return float(np.logical_and(found, truth).sum() / union) if union else 1.0


def ordered_random(length: int, num_steps: int, rng: np.random.Generator, *, min_length: int = 1) -> tuple[int, ...]:
    """The paper's baseline: steps in order, with cuts drawn uniformly.

    Args:
        length: T.
        num_steps: K.
        rng: of the draws.
        min_length: fewest rows of a step.
    """
    _check_steps("ordered_random", length, num_steps, min_length)
    spare = length - num_steps * min_length
    cuts = np.sort(rng.integers(0, spare + 1, num_steps - 1)) + min_length * np.arange(1, num_steps)
    return (*(int(cut) - 1 for cut in cuts), length - 1)


def _at_pace(length: int, num_steps: int, pace: float, min_length: int) -> tuple[int, ...]:
    """Cuts at the shares (k/K)^pace of the rows that steps of `min_length` leave over."""
    count = np.arange(1, num_steps + 1)
    spare = length - num_steps * min_length
    return tuple((min_length * count + np.rint(spare * (count / num_steps) ** pace).astype(int) - 1).tolist())


def _total(demos: Sequence[np.ndarray], steps: Sequence[tuple[int, ...]], model: Gaussians) -> float:
    """Log-likelihood of all rows in their steps."""
    pairs = zip(demos, steps, strict=True)
    return float(sum(log_likelihood(v, model)[np.arange(len(v)), row_steps(ends)].sum() for v, ends in pairs))


def _best(costs: Sequence[np.ndarray], min_length: int) -> tuple[int, ...]:
    """The cuts of least total cost, `costs[k][a, b]` being that of step k over rows a … b−1."""
    size = len(costs[0])
    start, end = np.indices((size, size))
    allowed = end - start >= min_length
    best = np.full(size, math.inf)
    best[0] = 0.0
    back = []
    for cost in costs:
        total = best[:, None] + np.where(allowed, cost, math.inf)
        back.append(total.argmin(0))
        best = total.min(0)
    return _traced(back)


def _traced(back: Sequence[np.ndarray]) -> tuple[int, ...]:
    """The last row of each step, `back[k][b]` being where step k begins if it ends before row b."""
    end, ends = len(back[-1]) - 1, []
    for origin in reversed(back):
        ends.append(int(end) - 1)
        end = origin[end]
    return tuple(reversed(ends))


def _check_steps(where: str, length: int, num_steps: int, min_length: int) -> None:
    if num_steps < 1 or min_length < 1:
        raise ValueError(f"{where}: num_steps and min_length must be ≥ 1; got {num_steps} and {min_length}.")
    if length < num_steps * min_length:
        raise ValueError(
            f"{where}: a demonstration must have at least num_steps · min_length = {num_steps * min_length} rows; "
            f"got {length}. Ask for fewer or shorter steps, or give longer demonstrations."
        )


def choose_num_steps(demos: Sequence[np.ndarray], *, most: int = 8, min_length: int = 3) -> int:
    """How many steps the demonstrations share, by the Bayesian information criterion (a description length).

        maximise N ℓ(K) − K log N

    ℓ is the log-likelihood per row and feature under `segment_jointly`'s steps and N the rows of all demonstrations:
    each feature has a mean and a deviation per step, two parameters at ½ log N each.

    Args:
        demos: (T, D) features each, normalised.
        most: the largest K tried; less where a demonstration is too short for it. The smallest is 2.
        min_length: of a step, rows.

    Returns:
        K; 1 where a demonstration is too short for two steps.
    Source: ours; in arXiv 1612.06699 the number is chosen by hand. The likelihood of a demonstration left out agrees
        where there are five, but is too noisy with two and not defined with one.
    """
    most = min(most, min(len(values) for values in demos) // min_length)
    rows = sum(len(values) for values in demos)
    scores = {}
    for count in range(2, most + 1):
        steps, model = segment_jointly(demos, count, min_length=min_length)
        scores[count] = _total(demos, steps, model) - count * math.log(rows)
    return max(scores, key=scores.__getitem__) if scores else 1
