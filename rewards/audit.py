"""What a judge of rewards needs beside `rewards.metrics`: a threshold, a calibration, EPIC's canonical shaping.

All in float64 NumPy; undefined figures are NaN.

Shape letters: N values, M sampled states, K bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit

from rewards.metrics import paired, wilson_interval

RewardOfStates = Callable[[np.ndarray, np.ndarray], np.ndarray]  # indices of s and s', broadcast -> R(s, s')


class Detection(NamedTuple):
    """What a threshold finds: true and false positives, and the positives it misses.

    Attributes:
        hits: true positives.
        false_alarms: false positives.
        misses: false negatives.
    """

    hits: int
    false_alarms: int
    misses: int

    @property
    def precision(self) -> float:
        """The share of what fires that is right; NaN if nothing fires."""
        fired = self.hits + self.false_alarms
        return self.hits / fired if fired else math.nan

    @property
    def recall(self) -> float:
        """The share of positives that fire; NaN without positives."""
        positives = self.hits + self.misses
        return self.hits / positives if positives else math.nan

    @property
    def precision_interval(self) -> tuple[float, float]:
        """Wilson's, at 95 %."""
        return wilson_interval(self.hits, self.hits + self.false_alarms)

    @property
    def recall_interval(self) -> tuple[float, float]:
        """Wilson's, at 95 %."""
        return wilson_interval(self.hits, self.hits + self.misses)


class Reliability(NamedTuple):
    """Predicted against observed, over K non-empty bins.

    Attributes:
        confidence: (K,) mean predicted probability.
        frequency: (K,) share of positives.
        counts: (K,) how many predictions.
        error: Σ counts·|frequency − confidence| / N, the expected calibration error.
    """

    confidence: np.ndarray
    frequency: np.ndarray
    counts: np.ndarray
    error: float


def detect(scores: ArrayLike, labels: ArrayLike, threshold: float) -> Detection:
    """Count what fires at or above a threshold.

    Args:
        scores: (N,).
        labels: (N,) bool.
        threshold: in the unit of the scores.
    """
    scores, labels = paired(scores, labels, "detect", "scores", "labels")
    fired, positive = scores >= threshold, labels.astype(bool)
    return Detection(int((fired & positive).sum()), int((fired & ~positive).sum()), int((~fired & positive).sum()))


def choose_threshold(scores: ArrayLike, labels: ArrayLike, *, beta: float = 0.5) -> float:
    """The threshold of the highest F_β, midway between two neighbouring scores; of equal ones the highest.

        F_β = (1 + β²) · precision · recall / (β² · precision + recall)

    β = 0.5 weighs precision twice: a reward that fires falsely hurts a learner more than one that misses (BiMI,
    arXiv 2409.15922). Choose on some episodes, report on others.

    Args:
        scores: (N,).
        labels: (N,) bool.
        beta: > 0; below 1 favours precision.

    Returns:
        NaN where there are no positives or no negatives to choose by, or where the scores are constant.

    Raises:
        ValueError: shapes that differ, numbers that are not finite, or another beta.
    """
    scores, labels = paired(scores, labels, "choose_threshold", "scores", "labels")
    if not beta > 0:
        raise ValueError(f"choose_threshold: beta must be > 0; got {beta}.")
    values = np.unique(scores)
    positive = labels.astype(bool)
    if len(np.unique(positive)) < 2 or len(values) < 2:
        return math.nan
    thresholds = (values[:-1] + values[1:]) / 2
    misses, silent = (np.searchsorted(np.sort(part), thresholds) for part in (scores[positive], scores[~positive]))
    weighed = (1 + beta**2) * (positive.sum() - misses)
    quality = weighed / (weighed + beta**2 * misses + (~positive).sum() - silent)
    return float(thresholds[np.flatnonzero(quality == quality.max())[-1]])


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """False against true positive rate as the threshold falls, from (0, 0) to (1, 1); one point a distinct score.

    Args:
        scores: (N,).
        labels: (N,) bool, both kinds.

    Returns:
        Two (K + 1,) float64, of K distinct scores.

    Raises:
        ValueError: shapes that differ, numbers that are not finite, or labels of one kind.
    """
    scores, labels = paired(scores, labels, "roc_curve", "scores", "labels")
    positive = labels.astype(bool)
    if positive.all() or not positive.any():
        raise ValueError("roc_curve: labels must hold positives and negatives; got one kind.")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    hits, alarms = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    return np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])


def platt_scaling(scores: ArrayLike, labels: ArrayLike) -> Callable[[ArrayLike], np.ndarray]:
    """A map from scores to probabilities, p = σ(a·score + b), of maximum likelihood.

    The targets are Platt's, (N₊+1)/(N₊+2) and 1/(N₋+2) instead of 1 and 0, so that separable scores have a finite
    slope. Constant scores give the base rate.

    Args:
        scores: (N,).
        labels: (N,) bool.

    Source: Platt 1999, §2.2, in the stable form of Lin, Lin, Weng 2007.
    """
    scores, labels = paired(scores, labels, "platt_scaling", "scores", "labels")
    positive = labels.astype(bool)
    count = positive.sum()
    target = np.where(positive, (count + 1) / (count + 2), 1 / (len(scores) - count + 2))
    mean, scale = scores.mean(), scores.std()
    if scale <= 1e-12 * max(1.0, abs(mean)):
        scale = math.inf  # every standardised score is 0

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        inputs = (scores - mean) / scale
        logit = parameters[0] * inputs + parameters[1]
        error = expit(logit) - target
        return float((np.logaddexp(0, logit) - target * logit).sum()), np.array([(error * inputs).sum(), error.sum()])

    slope, shift = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B").x
    return lambda values: expit(slope * (np.asarray(values, np.float64) - mean) / scale + shift)


def reliability(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 10) -> Reliability:
    """Predicted against observed frequency, in bins of equal width over [0, 1].

    Args:
        probabilities: (N,) in [0, 1].
        labels: (N,) bool.
        bins: how many, ≥ 1; empty ones are left out.

    Raises:
        ValueError: shapes that differ, or numbers outside of [0, 1].
    """
    probabilities, labels = paired(probabilities, labels, "reliability", "probabilities", "labels")
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError(
            f"reliability: probabilities must be in [0, 1]; got {probabilities.min():.4g} to "
            f"{probabilities.max():.4g}. Pass them through platt_scaling first."
        )
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    used = count > 0
    confidence = np.bincount(index, probabilities, bins)[used] / count[used]
    frequency = np.bincount(index, labels.astype(bool), bins)[used] / count[used]
    error = float((count[used] * np.abs(frequency - confidence)).sum() / len(probabilities))
    return Reliability(confidence, frequency, count[used], error)


def canonical_reward(
    reward: RewardOfStates,
    states: ArrayLike,
    next_states: ArrayLike,
    samples: ArrayLike,
    *,
    discount: float,
) -> np.ndarray:
    """EPIC's canonically shaped reward of transitions: the same for all rewards that differ by shaping alone.

        C(R)(s, s') = R(s, s') + E[γ R(s', S') − R(s, S') − γ R(S, S')],   S, S' drawn independently

    `epic_distance` of two of these is EPIC's. A reward that is *nothing but* potential-based shaping becomes zero,
    and its distance to anything is undefined: judge its potential instead.

    Args:
        reward: R(s, s') of arrays of state indices, which it broadcasts.
        states: (N,) index of each transition's s.
        next_states: (N,) index of its s'.
        samples: (M,) indices that S and S' are drawn from, all pairs of them.
        discount: γ in [0, 1].

    Returns:
        (N,) float64.
    Source: Gleave et al., arXiv 2006.13900, Definition 4.1. Departs: rewards are of states, without an action, as
        every head's is.
    """
    states, next_states, samples = (np.asarray(each, np.int64) for each in (states, next_states, samples))
    drawn = samples[None]
    mean = reward(samples[:, None], drawn).mean()
    ahead = reward(next_states[:, None], drawn).mean(1)
    here = reward(states[:, None], drawn).mean(1)
    return reward(states, next_states) + discount * ahead - here - discount * mean
