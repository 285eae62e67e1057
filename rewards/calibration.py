"""From scores to decisions one can act on: temperature, thresholds at a wanted precision, abstention, hysteresis.

False successes hurt a learner more than missed ones (arXiv 2409.15922), so thresholds are set by precision, and an
answer that is neither a sure yes nor a sure no is "unsure". Statistics in float64 NumPy. Letters: B batch, T time, N.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int8
from numpy.typing import ArrayLike
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

YES, NO, UNSURE = 1, 0, -1
NAMES = {YES: "yes", NO: "no", UNSURE: "unsure"}


def fit_temperature(logits: ArrayLike, labels: ArrayLike, *, trials: int | None = None) -> float:
    """The T > 0 at which σ(logit / T) is most likely to give the labels; it changes no order.

    Labels count as (n+1)/(n+2) and 1/(n+2), so that n separable trials make no one surer than n trials can.

    Args:
        logits: (N,) log-odds that were not fitted to these labels.
        labels: (N,) bool.
        trials: n, independent things behind the labels, such as episodes; None: N.

    Returns:
        T, within 0.05 to 50.
    Source: Guo et al., arXiv 1706.04599 §4.2; the targets are Platt's (1999).
    """
    logits, labels = _labelled(logits, labels, "fit_temperature")
    count = len(labels) if trials is None else trials
    target = np.where(labels, (count + 1) / (count + 2), 1 / (count + 2))

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        return float((np.logaddexp(0, scaled) - target * scaled).mean())

    found: Any = minimize_scalar(loss, bounds=(math.log(0.05), math.log(50)), method="bounded")
    return math.exp(found.x)


def fit_platt(logits: ArrayLike, labels: ArrayLike, *, trials: int | None = None) -> tuple[float, float]:
    """T and offset at which σ((logit − offset) / T) is most likely to give the labels, as `fit_temperature`.

    For log-odds that lean to one side, such as those of a chat model that likes to say yes.

    Args:
        logits: (N,).
        labels: (N,) 0 or 1.
        trials: as of `fit_temperature`.

    Source: Platt 1999.
    """
    logits, labels = _labelled(logits, labels, "fit_platt")
    count = len(labels) if trials is None else trials
    target = np.where(labels, (count + 1) / (count + 2), 1 / (count + 2))

    def loss(slope_and_shift: np.ndarray) -> float:
        scaled = slope_and_shift[0] * logits + slope_and_shift[1]
        return float((np.logaddexp(0, scaled) - target * scaled).mean())

    found: Any = minimize(loss, np.array([1.0, 0.0]), bounds=[(1 / 50, 20), (None, None)], method="L-BFGS-B")
    slope, shift = found.x
    return float(1 / slope), float(-shift / slope)


def precision_threshold(
    probabilities: ArrayLike,
    labels: ArrayLike,
    precision: float = 0.95,
    *,
    base_rate: float | None = None,
    least: float = 0.5,
) -> float:
    """The lowest threshold, `least` or more, at which p ≥ threshold is right with the wanted precision.

        precision(τ) = π·TPR(τ) / (π·TPR(τ) + (1−π)·FPR(τ)),   π the base rate

    Args:
        probabilities: (N,) of frames that were not fitted to, in [0, 1].
        labels: (N,) bool.
        precision: wanted, in (0, 1].
        base_rate: π where it will be used; None: that of the labels. Fewer successes, a higher threshold.
        least: even odds by default.

    Raises:
        ValueError: one class alone, or no threshold from `least` on that something passes reaches the precision.
    """
    where = "precision_threshold"
    scores, labels = _labelled(probabilities, labels, where)
    if not 0 < precision <= 1:
        raise ValueError(f"{where}: precision must be in (0, 1]; got {precision}.")
    if base_rate is not None and not 0 < base_rate < 1:
        raise ValueError(f"{where}: base_rate must be in (0, 1), or null; got {base_rate}.")
    if labels.all() or not labels.any():
        raise ValueError(f"{where}: labels must hold successes and failures; got {labels.sum()} of {len(labels)}.")
    rate = labels.mean() if base_rate is None else base_rate
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    last = np.append(scores[1:] != scores[:-1], True)  # a threshold takes all of a tie
    hits, alarms = np.cumsum(labels)[last] / labels.sum(), np.cumsum(~labels)[last] / (~labels).sum()
    reached = rate * hits / (rate * hits + (1 - rate) * alarms)
    passing = scores[last] >= least
    thresholds, reached = scores[last][passing], reached[passing]
    good = np.flatnonzero(reached >= precision)
    if not len(good):
        best = f"the best from {least:.2f} on is {reached.max():.2f}" if len(reached) else f"none is {least:.2f}"
        raise ValueError(
            f"{where}: precision must be within reach of the scores; wanted {precision}, {best}. "
            "Label more episodes, failures that look like successes above all, or want less."
        )
    return least if good[-1] == len(thresholds) - 1 else float(thresholds[good[-1]])


def conformal_rejection(maxima: ArrayLike, false_alarm: float = 0.1) -> float:
    """The score that a new failed episode passes at any of its frames with probability at most `false_alarm`.

        τ = the ⌈(n+1)(1−a)⌉-th smallest of the n highest scores; a frame fires above τ

    Holds whatever the scores mean, for episodes like those it was set on (exchangeable).

    Args:
        maxima: (n,) the highest score of each failed episode.
        false_alarm: a, in (0, 1).

    Raises:
        ValueError: a out of range, or fewer than ⌈1/a⌉ − 1 episodes.
    Source: split conformal prediction (Vovk et al. 2005), on episodes.
    """
    maxima = np.sort(np.asarray(maxima, np.float64))
    if not 0 < false_alarm < 1:
        raise ValueError(f"conformal_rejection: false_alarm must be in (0, 1); got {false_alarm}.")
    rank = math.ceil((len(maxima) + 1) * (1 - false_alarm) - 1e-9)
    if rank > len(maxima):
        raise ValueError(
            f"conformal_rejection: maxima must hold at least {math.ceil(1 / false_alarm) - 1} failed episodes "
            f"for false_alarm {false_alarm}; got {len(maxima)}. Label more failures, or allow more false alarms."
        )
    return float(maxima[rank - 1])


@dataclass(frozen=True)
class Quality:
    """How far a detector's yeses can be trusted; never accuracy, which always saying no can win.

    Attributes:
        precision: share of its yeses that are right; NaN without a yes.
        precision_interval: 95 %, the frames of one episode counting as one, since they are hardly independent.
        recall: share of successful frames it says yes to; NaN without one.
        recall_interval: likewise.
        base_rate: share of successful frames.
        unsure: share of frames it does not answer.
        frames, episodes: how many were judged.
    """

    precision: float
    precision_interval: tuple[float, float]
    recall: float
    recall_interval: tuple[float, float]
    base_rate: float
    unsure: float
    frames: int
    episodes: int

    def __str__(self) -> str:
        low, high = self.precision_interval
        return (
            f"precision {self.precision:.2f} [{low:.2f}, {high:.2f}], recall {self.recall:.2f} "
            f"[{self.recall_interval[0]:.2f}, {self.recall_interval[1]:.2f}], base rate {self.base_rate:.2f}, "
            f"unsure {self.unsure:.2f}, {self.frames} frames of {self.episodes} episodes"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON: undefined shares are null."""
        return {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Quality:
        """The inverse of `as_dict`."""
        given: dict[str, Any] = {key: math.nan if value is None else value for key, value in values.items()}
        intervals = {key: tuple(given[key]) for key in ("precision_interval", "recall_interval")}
        return cls(**{**given, **intervals})


def quality(verdicts: ArrayLike, labels: ArrayLike, episodes: ArrayLike) -> Quality:
    """Judge answers.

    Args:
        verdicts: (N,) 1 yes, 0 no, −1 unsure.
        labels: (N,) bool.
        episodes: (N,) which episode each frame is of.

    Raises:
        ValueError: shapes that differ, or nothing to judge.
    """
    verdicts, groups = np.asarray(verdicts), np.asarray(episodes)
    labels = np.asarray(labels, bool)
    if not (verdicts.ndim == 1 and verdicts.shape == labels.shape == groups.shape and len(labels)):
        raise ValueError(
            "quality: verdicts, labels and episodes must be of one shape (N,), N ≥ 1; "
            f"got {verdicts.shape}, {labels.shape}, {groups.shape}."
        )
    yes = verdicts == YES
    precision, precision_interval = _share(labels, yes, groups)
    recall, recall_interval = _share(yes, labels, groups)
    return Quality(
        precision=precision,
        precision_interval=precision_interval,
        recall=recall,
        recall_interval=recall_interval,
        base_rate=float(labels.mean()),
        unsure=float((verdicts == UNSURE).mean()),
        frames=len(labels),
        episodes=len(np.unique(groups)),
    )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Log-odds to an answer, and an answer to a reward.

        p = σ((logit − offset) / temperature);  yes where p ≥ yes,  no where p ≤ no,  unsure between,
        and wherever the members disagree by more than `spread`

    Args:
        temperature: > 0.
        offset: log-odds at even odds.
        yes: threshold, in (0, 1).
        no: threshold, in [0, yes].
        spread: standard deviation of the members' p from which an answer is unsure, > 0.
        hold: yeses in a row until the reward comes, and noes in a row until it goes, ≥ 1.

    Raises:
        ValueError: a value out of range.
    """

    temperature: float = 1.0
    offset: float = 0.0
    yes: float = 0.5
    no: float = 0.5
    spread: float = 0.25
    hold: int = 1

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.spread > 0):
            raise ValueError(f"Decision: temperature and spread must be > 0; got {self.temperature} and {self.spread}.")
        if not (0 < self.yes < 1 and 0 <= self.no <= self.yes):
            raise ValueError(f"Decision: 0 ≤ no ≤ yes < 1, yes > 0, must hold; got no={self.no}, yes={self.yes}.")
        if self.hold < 1:
            raise ValueError(f"Decision: hold must be ≥ 1 frame; got {self.hold}.")

    def probability(self, logits: Float[Tensor, "K B T"]) -> Float[Tensor, "B T"]:
        """Mean over K members of σ((logit − offset) / T)."""
        return self._each(logits).mean(0)

    def verdicts(self, logits: Float[Tensor, "K B T"]) -> Int8[Tensor, "B T"]:
        """1 yes, 0 no, −1 unsure."""
        each = self._each(logits)
        chance, spread = each.mean(0), each.std(0, correction=0)
        answer = torch.where(chance >= self.yes, YES, torch.where(chance <= self.no, NO, UNSURE))
        return torch.where(spread > self.spread, UNSURE, answer).to(torch.int8)

    def _each(self, logits: Float[Tensor, "K B T"]) -> Float[Tensor, "K B T"]:
        return ((logits - self.offset) / self.temperature).sigmoid()

    def rewards(self, verdicts: Int8[Tensor, "B T"], before: Latch | None = None) -> tuple[Float[Tensor, "B T"], Latch]:
        """1 while success holds (see `Latch`), else 0, never 1 on an unsure frame; and the latch after these.

        Args:
            verdicts: of the frames that follow.
            before: the latch after those before, which stays as it is; None at the reset.
        """
        latch = Latch(self.hold, len(verdicts), verdicts.device) if before is None else copy.deepcopy(before)
        return torch.stack([latch.step(verdicts[:, t]) for t in range(verdicts.shape[1])], 1).float(), latch


class Latch:
    """Hysteresis for loops that act on success (end the episode, ask for the reset task), one frame at a time.

    Comes on at the `hold`-th yes in a row and goes off at the `hold`-th no in a row; an unsure frame breaks both
    rows, changes nothing, and is itself never rewarded. Its answers are on `device`, the CPU unless given.

    Attributes:
        on: (B,) whether success holds.

    Args:
        batch: B, streams side by side.

    Raises:
        ValueError: `hold` is less than 1.
    """

    def __init__(self, hold: int, batch: int = 1, device: torch.device | None = None) -> None:
        if hold < 1:
            raise ValueError(f"Latch: hold must be ≥ 1 frame; got {hold}.")
        self.hold = hold
        self.on = torch.zeros(batch, dtype=torch.bool, device=device)
        self._run = torch.zeros(batch, dtype=torch.long, device=device)
        self._last = torch.full((batch,), UNSURE, dtype=torch.int8, device=device)
        self._counts = torch.zeros(len(NAMES), dtype=torch.long, device=device)

    @property
    def counts(self) -> Counter[str]:
        """How many answers of each kind there were so far, over the whole batch."""
        told = zip(NAMES.values(), self._counts.tolist(), strict=True)
        return Counter({name: count for name, count in told if count})

    def step(self, verdict: Int8[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Whether each world's success holds, now that this answer came."""
        self._run = torch.where(verdict == self._last, self._run + 1, 1)
        self._last = verdict
        turn = self._run >= self.hold
        self.on = torch.where(turn & (verdict == YES), True, torch.where(turn & (verdict == NO), False, self.on))
        self._counts = self._counts + torch.stack([(verdict == answer).sum() for answer in NAMES])
        return self.on & (verdict != UNSURE)

    def merged(self, worlds: Bool[Tensor, " B"], old: Latch) -> Latch:
        """A latch that is this one in some worlds and `old` in the rest."""
        both = copy.copy(self)
        for name in ("on", "_run", "_last"):
            setattr(both, name, torch.where(worlds, getattr(self, name), getattr(old, name)))
        return both


def _share(part: np.ndarray, whole: np.ndarray, groups: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The share of `whole` that is in `part`, and its interval over as many trials as groups have any of `whole`."""
    if not whole.any():
        return math.nan, (0.0, 1.0)
    share, trials = float(part[whole].mean()), len(np.unique(groups[whole]))
    z2 = 1.959964**2  # Wilson's interval, of a share that need not be a whole number of trials
    centre, half = share + z2 / (2 * trials), 1.959964 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return share, (max(0.0, (centre - half) / (1 + z2 / trials)), min(1.0, (centre + half) / (1 + z2 / trials)))


def _labelled(scores: ArrayLike, labels: ArrayLike, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(N,) finite float64 and (N,) bool."""
    values, truth = np.asarray(scores, np.float64), np.asarray(labels, bool)
    if values.ndim != 1 or values.shape != truth.shape or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"{where}: scores and labels must be finite (N,), N ≥ 1; got {values.shape}, {truth.shape}.")
    return values, truth
