"""Does a reward hear its instruction? Every task's episodes, scored for every task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from embodied.judging.figures import Case, Figure
from embodied.judging.judgement import Judged, potential
from rewards.core import Scorer
from rewards.metrics import bootstrap_interval, confusion_margin

MOST = 40  # tasks that are asked about each other: their number counts twice


def confused(
    judged: Sequence[Judged],
    scorers: Mapping[str, Mapping[str, Scorer]],
    probes: Mapping[str, Sequence[Case]],
    *,
    resamples: int,
    seed: int,
) -> list[Judged]:
    """The same results with their `confusion_margin`, where there are two tasks or more with episodes.

    Args:
        judged: over all tasks.
        scorers: instruction -> the rewards of that task by name; those that are not there get no margin.
        probes: instruction -> some of its judged episodes. Of the first `MOST` tasks, those that have any are asked.
        resamples, seed: of the bootstrap, which draws each task's episodes with replacement.
    """
    tasks = list(islice((task for task in scorers if probes[task]), MOST))
    return [
        each if len(tasks) < 2 or each.name not in scorers[tasks[0]]
        else _with_margin(each, tasks, scorers, probes, resamples, seed)
        for each in judged
    ]  # fmt: skip


def _with_margin(
    judged: Judged,
    tasks: Sequence[str],
    scorers: Mapping[str, Mapping[str, Scorer]],
    probes: Mapping[str, Sequence[Case]],
    resamples: int,
    seed: int,
) -> Judged:
    owner, said = [], []  # of each episode: its task, and where it ends under every instruction
    for number, task in enumerate(tasks):
        for case in probes[task]:
            features = case.episode.features
            said.append([potential(scorers[asked][judged.name], features)[case.end] for asked in tasks])
            owner.append(number)
    figure, matrix = margin_of(np.array(said), np.array(owner), resamples=resamples, seed=seed)
    confusion = {task: dict(zip(tasks, row, strict=True)) for task, row in zip(tasks, matrix, strict=True)}
    return replace(judged, figures={**judged.figures, "confusion_margin": figure}, confusion=confusion)


def margin_of(ends: np.ndarray, owners: np.ndarray, *, resamples: int, seed: int) -> tuple[Figure, np.ndarray]:
    """The confusion margin of N episodes of K tasks, and their means, (K, K): instructions by tasks.

    Args:
        ends: (N, K), where each ends under every instruction.
        owners: (N,), which task each is of, 0 to K - 1; every task has one.
        resamples, seed: of the bootstrap, which draws each task's episodes with replacement.
    """

    def matrix(chosen: np.ndarray) -> np.ndarray:
        return np.stack([ends[chosen[owners[chosen] == k]].mean(0) for k in range(ends.shape[1])], 1)

    def margin(chosen: np.ndarray) -> float:
        return confusion_margin(matrix(chosen))

    everything = np.arange(len(owners))
    low, high = math.nan, math.nan
    if len(owners) > ends.shape[1]:
        low, high = bootstrap_interval(everything, margin, resamples=resamples, seed=seed, strata=owners)
    return Figure(margin(everything), low, high), matrix(everything)
