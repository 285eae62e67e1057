"""What success heads are fitted and calibrated by: rows labelled from episodes, logistic regression, thresholds.

In float64 NumPy. Shape letters: T rows of an episode, N rows of all, F inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from rewards.calibration import (
    NO,
    UNSURE,
    YES,
    Decision,
    Quality,
    conformal_rejection,
    fit_platt,
    fit_temperature,
    precision_threshold,
    quality,
)
from rewards.core import Encoder, Episode

KIND = "success"
FOLDS, TAIL = 5, 3
ROUNDING = 1e-6  # of p, in float64 where thresholds are set, in float32 where they are used
SURE = 2 / 3  # the least p of a yes, and of a no, however well the calibration episodes separate


def fit_logistic(
    x: Float[np.ndarray, "N F"], y: Float[np.ndarray, " N"], penalty: Float[np.ndarray, " F"]
) -> tuple[Float[np.ndarray, " F"], float]:
    """The minimum of Σ weight·log(1 + e^(−(2y−1)·z)) + ½·Σ penalty·w², z = x·w + b; convex, so it is the only one.

    Weights give successes and failures half each: left to their numbers, the rare successes would lose their onsets
    to the failures, turn by turn. The log-odds are therefore those at a base rate of one half.

    Args:
        x: inputs.
        y: targets in [0, 1].
        penalty: of each weight.

    Raises:
        ValueError: one class alone.
    """
    if y.min() == y.max():
        raise ValueError(f"{KIND}: labels must hold successes and failures; got only {y.min():.0f}s.")
    sign = 2 * y - 1
    weight = np.where(y == 1, 0.5 / y.sum(), 0.5 / (1 - y).sum())

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        w, margin = theta[:-1], sign * (x @ theta[:-1] + theta[-1])
        slope = -sign * weight / (1 + np.exp(np.clip(margin, -500, 500)))
        value = weight @ np.logaddexp(0, -margin) + penalty @ (w * w) / 2
        return float(value), np.append(x.T @ slope + penalty * w, slope.sum())

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return found.x[:-1], float(found.x[-1])


def first_labels(episodes: Sequence[Episode]) -> list[Float[np.ndarray, " _"]]:
    """What an episode's label surely says of its rows: 1, 0, or NaN where it says nothing. See `fit_success`.

    Args:
        episodes: encoded, of known success.
    """
    labels = []
    for episode in episodes:
        y = np.zeros(len(episode))
        if episode.success:
            y[len(y) // 4 :] = np.nan
            y[-TAIL:] = 1
        labels.append(y)
    return labels


def onset_labels(logits: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Rows of a success, 1 from the onset that the logits find most likely, and at the last row anyway.

    log Π_{t<τ}(1−p_t)·Π_{t≥τ} p_t  =  Σ_{t≥τ} logit_t + what does not depend on τ
    """
    after = np.cumsum(logits[::-1])[::-1]
    onset = len(logits) - 1 - int(np.argmax(after[::-1]))  # of equals the last
    return (np.arange(len(logits)) >= onset).astype(np.float64)


def calibrated(
    logits: Sequence[Float[np.ndarray, " _"]],
    labels: Sequence[Float[np.ndarray, " _"]],
    *,
    precision: float = 0.95,
    base_rate: float | None = None,
    false_alarm: float | None = None,
    hold: int = 1,
    leaning: bool = False,
) -> tuple[Decision, Quality]:
    """Temperature and thresholds from episodes that the logits were not fitted to, and how good they are there.

    Args:
        logits: of each episode.
        labels: of each, 0, 1, or NaN for rows that do not count.
        precision: wanted of yes, and of no (`precision_threshold`).
        base_rate: share of successful frames where it will be used; None: as here.
        false_alarm: if given, yes is also above `conformal_rejection`'s threshold on the failed episodes.
        hold: passed on.
        leaning: whether the log-odds may lean to one side, so that an offset is fitted too (`fit_platt`).

    Returns:
        The decision, and its quality on the same episodes: a little flattering, since they chose the thresholds.
    """
    episodes = np.repeat(np.arange(len(labels)), [len(y) for y in labels])
    z, y = np.concatenate(logits), np.concatenate(labels)
    known = ~np.isnan(y)
    z, y, episodes = z[known], y[known] > 0.5, episodes[known]
    trials = len(labels)
    temperature, offset = fit_platt(z, y, trials=trials) if leaning else (fit_temperature(z, y, trials=trials), 0.0)
    p = 1 / (1 + np.exp(-np.clip((z - offset) / temperature, -500, 500)))
    yes = max(SURE, precision_threshold(p, y, precision, base_rate=base_rate, least=SURE) - ROUNDING)
    opposite = None if base_rate is None else 1 - base_rate
    no = max(SURE, precision_threshold(1 - p, ~y, precision, base_rate=opposite, least=SURE) - ROUNDING)
    if false_alarm is not None:
        failed = [
            each[~np.isnan(mark)].max() for each, mark in zip(logits, labels, strict=True) if not (mark > 0).any()
        ]
        bound = (conformal_rejection(failed, false_alarm) - offset) / temperature
        yes = max(yes, float(np.nextafter(1 / (1 + math.exp(-min(max(bound, -500), 500))), 1)))
    decision = Decision(temperature=temperature, offset=offset, yes=min(yes, 1 - 1e-9), no=1 - no, hold=hold)
    verdicts = np.where(p >= decision.yes, YES, np.where(p <= decision.no, NO, UNSURE))
    return decision, quality(verdicts, y, episodes)


def with_ones(rows: np.ndarray) -> np.ndarray:
    """(N, F) -> (N, F+1), a last column of ones.

    Args:
        rows: (N, F).
    """
    return np.concatenate([rows, np.ones((len(rows), 1))], 1)


def whitening(rows: np.ndarray, goal: str | None, encoder: Encoder, cameras: int) -> np.ndarray:
    """(F+1, F'+1): from [s; 1] to the regression's inputs, centred and scaled, the text's similarity last, and 1.

    Args:
        rows: (N, F).
        goal: text whose similarity is an input; None: none is.
        encoder: embeds it.
        cameras: number of them.
    """
    middle = rows.mean(0)
    scale = max(float(np.sqrt(((rows - middle) ** 2).mean())), 1e-8)
    width = rows.shape[1]
    columns = [np.eye(width + 1, width) / scale]
    columns[0][-1] = -middle / scale
    if goal is not None:
        text = np.tile(encoder.encode_texts([goal])[0].double().cpu().numpy(), cameras)
        along = rows @ text
        spread = max(float(along.std()), 1e-8)
        columns.append(np.append(text, -along.mean())[:, None] / spread)
    columns.append(np.append(np.zeros(width), 1.0)[:, None])
    return np.concatenate(columns, 1)


def assign_folds(outcomes: Sequence[bool], seed: int) -> np.ndarray:
    """(episodes,) fold of each, successes and failures spread evenly; every member keeps a success.

    Args:
        outcomes: success of each episode.
        seed: of the order.
    """
    rng = np.random.default_rng(seed)
    good = np.array(outcomes)
    folds = np.empty(len(good), int)
    count = min(FOLDS, int(good.sum()))
    for kind in (True, False):
        members = rng.permutation(np.flatnonzero(good == kind))
        folds[members] = np.arange(len(members)) % count
    return folds
