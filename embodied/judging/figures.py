"""The figures of one reward, from what it said of episodes and canaries; `embodied.judging.judgement` defines them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from embodied.datasets.encoding import LaterEpisode
from embodied.judging.quality import SUBOPTIMAL, Grade
from rewards.audit import Reliability, canonical_reward, choose_threshold, detect, platt_scaling, reliability, roc_curve
from rewards.core import Episode, Scorer
from rewards.metrics import (
    auroc,
    average_precision,
    bootstrap_interval,
    epic_distance,
    kendall_tau_a,
    ordinal_error,
    pairwise_accuracy,
    policy_ranking_tau,
    ranking_accuracy,
    somers_d,
    value_order_correlation,
    value_order_pearson,
    wilson_interval,
)

GROUPS = ("success", "near miss", "failure", "random")
QUALITY = {"success": 2, "near miss": 1, "failure": 0, "random": 0}
CANARIES = ("frozen", "reversed", "wrong instruction", "near miss", "random")
ROWS = 200_000  # of all episodes, that figures of rows read at most
SAMPLES = 256  # states that EPIC's canonical shaping averages over
PREFIXES = 15  # moments of an episode that are compared in pairs, as many as TOPReward asks about
STILL = 1e-9  # a difference in mean reward below this is none


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One labelled episode.

    Attributes:
        episode: encoded, T rows; or one whose features are read when they are asked for.
        index: of the episode in its data set.
        kind: what made it: "expert", "noisy", "near_miss", "random"; one of `embodied.datasets.kinds`; or "" where
            nobody says.
        solved: (T,) bool, whether the task is solved in each row; None where only the episode is labelled.
        env_rewards: (T,) the task's own reward that came with each row, NaN in row 0; None where there is none.
        grade: what a column of the data says that the episode is worth; None where no column was named, or it is empty.
    """

    episode: Episode | LaterEpisode
    index: int
    kind: str = ""
    solved: np.ndarray | None = None
    env_rewards: np.ndarray | None = None
    grade: Grade | None = None

    @property
    def group(self) -> str:
        """One of `GROUPS`; what an episode became counts more than what made it."""
        if self.episode.success:
            return "success"
        kind = self.kind.replace("_", " ")
        if kind in ("near miss", "random"):
            return kind
        return "near miss" if self.grade == SUBOPTIMAL else "failure"

    @property
    def quality(self) -> float:
        """Higher is better: the grade that the data give, else one by the group."""
        return float(QUALITY[self.group]) if self.grade is None else self.grade.quality

    @property
    def rows_solved(self) -> np.ndarray:
        """(T,) bool; all False where nobody says."""
        return np.zeros(len(self.episode), bool) if self.solved is None else self.solved

    @property
    def end(self) -> int:
        """The row that the outcome is read from."""
        solved = np.flatnonzero(self.rows_solved)
        return int(solved[-1]) if self.episode.success and len(solved) else len(self.episode) - 1

    @property
    def clip(self) -> int:
        """How many rows lead to success."""
        solved = np.flatnonzero(self.rows_solved)
        return int(solved[0]) + 1 if len(solved) else len(self.episode)


@dataclass(frozen=True)
class Figure:
    """A number and its 95 % interval; NaN where it is undefined."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Canary:
    """What a reward makes of films that must not pay.

    Attributes:
        gain: mean of φ(last) − φ(first), in gains of a success.
        fires: share of films that reach the threshold.
        films: how many there were.
    """

    gain: Figure
    fires: Figure
    films: int


@dataclass(frozen=True)
class Division:
    """Which case serves what; none serves twice.

    Attributes:
        demos: what heads are fitted to.
        fit: what thresholds are chosen on.
        judged: what the figures are of.
        counterfactual: what the outcome margin is of (see `embodied.judging.outcome`), and perhaps successes beside it.
    """

    demos: list[Case] = field(default_factory=list)
    fit: list[Case] = field(default_factory=list)
    judged: list[Case] = field(default_factory=list)
    counterfactual: list[Case] = field(default_factory=list)


class Sheet:
    """What one reward said of everything, and the figures that follow."""

    def __init__(
        self,
        division: Division,
        fitted: list[np.ndarray],
        said: list[np.ndarray],
        films: dict[str, list[np.ndarray]],
        resamples: int,
        seed: int,
    ) -> None:
        self.cases, self.said, self.films, self.resamples, self.seed = division.judged, said, films, resamples, seed
        self.fit, self.fitted = division.fit, fitted
        self.groups = np.array([case.group for case in self.cases])
        self.success = self.groups == "success"
        self.quality = np.array([case.quality for case in self.cases])
        self.ends = np.array([each[case.end] for case, each in zip(self.cases, said, strict=True)])
        gains = [each[case.end] - each[0] for case, each in zip(self.cases, said, strict=True)]
        self.gain = float(np.mean(np.array(gains)[self.success])) if self.success.any() else math.nan
        fit_ends = [each[case.end] for case, each in zip(division.fit, fitted, strict=True)]
        fit_labels = [case.group == "success" for case in division.fit]
        self.threshold = choose_threshold(fit_ends, fit_labels) if fit_ends else math.nan

    def order(self) -> dict[str, Figure]:
        forward = [
            value_order_correlation(each[: case.clip])
            for case, each in zip(self.cases, self.said, strict=True)
            if case.group == "success"
        ]
        backward = [value_order_correlation(each, rewound=True) for each in self.films["rewound"]]
        return {"voc": self._mean(forward), "voc_reversed": self._mean(backward)}

    def published(self) -> dict[str, Figure]:
        """The figures that public benchmarks tell, under their names; undefined ones are left out."""
        clips = [
            each[: case.clip]
            for case, each in zip(self.cases, self.said, strict=True)
            if case.group == "success" and case.clip > 1
        ]
        figures = {
            "voc_spearman": self._mean([value_order_correlation(each) for each in clips]),
            "voc_pearson": self._mean([value_order_pearson(each) for each in clips]),
            "pairwise_acc": self._mean([later_higher(each) for each in clips]),
        }
        if len(np.unique(self.quality)) > 1:
            ends, quality = self.ends, self.quality
            # a level of one episode would be drawn as it is, and with graded shares every level is
            alone = np.unique(quality, return_counts=True)[1].min() == 1
            strata = self.success if alone else quality
            figures["kendall_tau"] = self._episodes(lambda i: policy_ranking_tau(ends[i], quality[i]), strata)
            figures["ranking_acc"] = self._episodes(lambda i: ranking_accuracy(ends[i], quality[i]), strata)
        worst = ~self.success & (self.quality == self.quality.min(initial=math.inf, where=~self.success))
        if self.success.any() and worst.any():
            kinds = np.where(self.success, 2, np.where(worst, 1, 0))

            def gap(i: np.ndarray) -> float:
                return float(self.ends[i][kinds[i] == 2].mean() - self.ends[i][kinds[i] == 1].mean())

            figures["succ_fail_diff"] = self._figure(gap, np.flatnonzero(kinds), kinds[kinds > 0])
        levels = np.array([math.nan if c.grade is None else c.grade.ordinal or math.nan for c in self.cases])
        if len(levels) and not np.isnan(levels).any() and self.ends.min() >= 0 and self.ends.max() <= 1:
            figures["mae_ordinal"] = self._episodes(lambda i: ordinal_error(self.ends[i], levels[i]))
        if self.success.any() and not self.success.all() and all(case.solved is not None for case in self.cases):
            rows = [(each, case.rows_solved) for case, each in zip(self.cases, self.said, strict=True)]
            figures["success_auprc"] = self._rows(rows, average_precision)
        return figures

    def outcome(self) -> dict[str, Figure]:
        quality = self.quality
        figures: dict[str, Figure] = {}
        if self.success.any() and not self.success.all():
            figures = {
                "tau_a": self._episodes(lambda i: kendall_tau_a(self.ends[i], quality[i])),
                "somers_d": self._episodes(lambda i: somers_d(self.ends[i], quality[i])),
                "auroc": self._episodes(lambda i: auroc(self.ends[i], self.success[i])),
                "ap": self._episodes(lambda i: average_precision(self.ends[i], self.success[i])),
                "frame_auroc": self._frame_auroc(),
            }
        if math.isfinite(self.threshold) and len(self.ends):
            found = detect(self.ends, self.success, self.threshold)
            for name in ("precision", "recall"):
                value = getattr(found, name)
                if not math.isnan(value):
                    figures[name] = Figure(value, *getattr(found, f"{name}_interval"))
        return figures

    def roc(self) -> tuple[np.ndarray, np.ndarray] | None:
        return roc_curve(self.ends, self.success) if self.success.any() and not self.success.all() else None

    def _frame_auroc(self) -> Figure:
        if any(case.solved is None for case in self.cases):
            return Figure()
        rows = [(each, case.rows_solved) for case, each in zip(self.cases, self.said, strict=True)]
        return self._rows(rows, auroc)

    def calibration(self) -> tuple[Reliability | None, Figure]:
        """Of every row where rows are labelled, else of the ends."""
        dense = all(case.solved is not None for case in [*self.fit, *self.cases])

        def moments(cases: list[Case], said: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
            if dense:
                return [(each, case.rows_solved) for case, each in zip(cases, said, strict=True)]
            return [(each[[case.end]], np.array([case.group == "success"])) for case, each in zip(cases, said)]  # noqa: B905

        fit, held = moments(self.fit, self.fitted), moments(self.cases, self.said)
        labels = np.concatenate([truth for _, truth in fit]) if fit else np.zeros(0, bool)
        if not held or not labels.any() or labels.all():
            return None, Figure()
        scaled = platt_scaling(np.concatenate([each for each, _ in fit]), labels)
        held = [(scaled(each), truth) for each, truth in held]
        bins = reliability(np.concatenate([each for each, _ in held]), np.concatenate([truth for _, truth in held]))
        return bins, self._rows(held, lambda each, truth: reliability(each, truth).error)

    def epic(self, discount: float) -> Figure:
        """Both rewards are read in the row that a transition leads to."""
        truth = [case.env_rewards for case in self.cases]
        if not truth or any(each is None for each in truth):
            return Figure()
        ours = np.concatenate([each[1:] for each in self.said])
        theirs = np.concatenate([each[1:] for each in truth if each is not None])
        rng = np.random.default_rng(self.seed)
        samples, here = rng.integers(len(ours), size=SAMPLES), np.arange(len(ours))
        canonical = [
            canonical_reward(lambda s, n, paid=paid: paid[n], here, here, samples, discount=discount)
            for paid in (ours, theirs)
        ]
        cuts = np.cumsum([len(each) - 1 for each in self.said])[:-1]
        return self._rows(list(zip(*(np.split(each, cuts) for each in canonical), strict=True)), epic_distance)

    def motionless(self, scorer: Scorer) -> Figure:
        floor = next((g for g in ("random", "failure", "near miss") if (self.groups == g).any()), None)
        still = [_mean_reward(scorer, each) for each in self.films["frozen"]]
        if floor is None or not still:
            return Figure()
        paid = [_mean_reward(scorer, each) for each in self.said]
        parts = [still, [p for p, s in zip(paid, self.success, strict=True) if s]]
        parts.append([p for p, g in zip(paid, self.groups, strict=True) if g == floor])
        values = np.array([(kind, value) for kind, part in enumerate(parts) for value in part])

        def share(rows: np.ndarray) -> float:
            still, success, random = (rows[rows[:, 0] == kind, 1].mean() for kind in range(3))
            return (still - random) / (success - random) if success - random > STILL else math.nan

        return self._figure(share, values, values[:, 0])

    def canaries(self) -> dict[str, Canary]:
        films = {
            name: [(each, np.zeros(len(each), bool)) for each in said]
            for name, said in self.films.items()
            if name in CANARIES
        }
        for name in ("near miss", "random"):
            members = np.flatnonzero(self.groups == name)
            films[name] = [(self.said[i], self.cases[i].rows_solved) for i in members]
        films["reversed"] = [(each, np.arange(len(each)) < len(each) - 1) for each, _ in films["reversed"]]
        return {name: self._canary(films[name]) for name in CANARIES}

    def _canary(self, films: list[tuple[np.ndarray, np.ndarray]]) -> Canary:
        """Of films and the rows that may fire."""
        if not films:
            return Canary(Figure(), Figure(), 0)
        gains = [float(each[-1] - each[0]) / self.gain for each, _ in films] if self.gain > 0 else []
        fires = Figure()
        if math.isfinite(self.threshold):
            count = sum(bool((each[~allowed] >= self.threshold).any()) for each, allowed in films)
            fires = Figure(count / len(films), *wilson_interval(count, len(films)))
        return Canary(self._mean(gains), fires, len(films))

    def _mean(self, values: Sequence[float]) -> Figure:
        return self._figure(lambda rows: float(np.mean(rows)), np.array(values)) if len(values) else Figure()

    def _episodes(self, statistic: Callable[[np.ndarray], float], strata: np.ndarray | None = None) -> Figure:
        """Of a statistic of episodes; draws keep the size of each stratum: successes and the rest, unless given."""
        return self._figure(statistic, np.arange(len(self.cases)), self.success if strata is None else strata)

    def _rows(
        self, rows: Sequence[tuple[np.ndarray, ...]], statistic: Callable[[np.ndarray, np.ndarray], float]
    ) -> Figure:
        """Of a statistic of rows; episodes are drawn, not rows."""

        rows = self._thinned(rows)

        def of(chosen: np.ndarray) -> float:
            return statistic(*(np.concatenate([rows[i][k] for i in chosen]) for k in range(2)))

        return self._figure(of, np.arange(len(rows)), self.success)

    def _thinned(self, rows: Sequence[tuple[np.ndarray, ...]]) -> Sequence[tuple[np.ndarray, ...]]:
        """The same rows, or about `ROWS` of them where there are more, at random: the bootstrap reads them often."""
        total = sum(len(each) for each, *_ in rows)
        if total <= ROWS:
            return rows
        rng = np.random.default_rng(self.seed)
        kept = (rng.random(len(each)) < ROWS / total for each, *_ in rows)
        return [tuple(part[mask] for part in each) for each, mask in zip(rows, kept, strict=True)]

    def _figure(
        self, statistic: Callable[[np.ndarray], float], rows: np.ndarray, strata: np.ndarray | None = None
    ) -> Figure:
        value = statistic(rows)
        if math.isnan(value) or len(rows) < 2:
            return Figure(value)
        return Figure(
            value, *bootstrap_interval(rows, statistic, resamples=self.resamples, seed=self.seed, strata=strata)
        )


def later_higher(said: np.ndarray) -> float:
    """Of all pairs of `PREFIXES` moments of a success, the share of which the later one scores higher."""
    rows = np.unique(np.linspace(0, len(said) - 1, PREFIXES).round().astype(int))
    before, after = np.triu_indices(len(rows), 1)
    return pairwise_accuracy(said[rows[before]], said[rows[after]], np.ones(len(before)))


def _mean_reward(scorer: Scorer, said: np.ndarray) -> float:
    """Of an episode's steps, none of which ends the task."""
    values = torch.from_numpy(said)
    return float(scorer.shaping(values[:-1], values[1:], torch.zeros(len(said) - 1, dtype=torch.bool)).mean())
