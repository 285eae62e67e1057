"""Several tasks judged one by one, and the mean over them: an instruction is compared with its own episodes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from embodied.judging.figures import CANARIES, Canary, Case, Division, Figure
from embodied.judging.judgement import FIGURES, FLAT, Judged
from rewards.metrics import bootstrap_interval


def by_instruction(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """The cases of each task text, in the order in which the texts come first."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.episode.instruction, []).append(case)
    return found


def together(divisions: Sequence[Division]) -> Division:
    """All cases of several divisions, each in the role it has."""
    return Division(
        demos=[case for each in divisions for case in each.demos],
        fit=[case for each in divisions for case in each.fit],
        judged=[case for each in divisions for case in each.judged],
        counterfactual=[case for each in divisions for case in each.counterfactual],
    )


def over_tasks(tasks: Mapping[str, Judged]) -> Judged:
    """One reward's result over several tasks: the mean of each figure over the tasks in which it is defined.

    The tasks' episodes are different ones, so the errors of their figures are independent: the distance from a mean to
    the end of its interval is the root of the sum of the tasks' squared distances, over their number. Where a task's
    own figure has no interval, as with one success and one failure, the tasks are drawn with replacement instead.

    Args:
        tasks: instruction -> the reward's result on its episodes; one alone is given back.
    """
    if len(tasks) == 1:
        return next(iter(tasks.values()))
    each = list(tasks.values())
    said = np.concatenate([values for one in each for values in one.potentials.values()] or [np.zeros(1)])
    spread = max(one.spread for one in each)
    gains = [one.gain for one in each if not math.isnan(one.gain)]
    return replace(
        each[0],
        figures={name: _mean([one.figures[name] for one in each]) for name in FIGURES},
        canaries={name: _canaries([one.canaries[name] for one in each]) for name in CANARIES},
        gain=float(np.mean(gains)) if gains else math.nan,
        spread=0.0 if spread <= FLAT * max(1.0, float(np.abs(said).max())) else spread,
        threshold=math.nan,
        head_ms=float(np.nanmedian([one.head_ms for one in each])),
        potentials={i: values for one in each for i, values in one.potentials.items()},
        roc=None,
        calibration=None,
        credit={
            kind: _mean([one.credit[kind] for one in each if kind in one.credit])
            for kind in dict.fromkeys(kind for one in each for kind in one.credit)
        },
        successes=sum(one.successes for one in each),
        others=sum(one.others for one in each),
        tasks={task: replace(one, potentials={}) for task, one in tasks.items()},
    )


def _mean(figures: Sequence[Figure]) -> Figure:
    known = [figure for figure in figures if not math.isnan(figure.value)]
    if not known:
        return Figure()
    value = float(np.mean([figure.value for figure in known]))
    if any(math.isnan(figure.low) for figure in known):
        return Figure(value, *bootstrap_interval([figure.value for figure in known]))
    below, above = (
        math.sqrt(sum((figure.value - end(figure)) ** 2 for figure in known)) / len(known)
        for end in (lambda figure: figure.low, lambda figure: figure.high)
    )
    return Figure(value, value - below, value + above)


def _canaries(canaries: Sequence[Canary]) -> Canary:
    return Canary(
        _mean([each.gain for each in canaries]),
        _mean([each.fires for each in canaries]),
        sum(each.films for each in canaries),
    )
