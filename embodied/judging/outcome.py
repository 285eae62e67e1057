"""What a reward pays for: the outcome, or the pose that usually comes with it.

Order along time is easy: a robot that goes where it always goes orders well, whatever the world does. So a reward is
also asked about episodes in which robot and outcome part ways (`embodied.datasets.kinds`). With φ the potential at the
end of an episode and means over the episodes of a kind,

    credit of kind k  =  (φ_k − φ_still) / (φ_success − φ_still)
    outcome margin    =  min(1, least credit of the kinds that reach the goal) − greatest credit of those that miss it

A reward of the outcome gives 1 to what reaches the goal and 0 to what misses it, and has a margin of 1; one of the pose
has a margin of 0 or less. Without `still` episodes, films that are frozen at their first frame stand for them.

Intervals draw episodes with replacement, each kind by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from embodied.datasets.kinds import RIGHT, STILL, WRONG
from embodied.judging.figures import Figure
from rewards.metrics import bootstrap_interval

SUCCESS = "success"
WORDS = {  # what an episode of a kind is, after "pays 84 % for …"
    "mimed": "moving as in a success while nothing else moves",
    "reached": "reaching what then stays as it was",
    "wrong_object": "doing it to another object",
    "left": "a goal that is reached once the robot has left",
    "other_way": "a goal that is reached without the robot",
    "solved": "a goal that was reached at the start",
}

SHOWN = {  # kind of counterfactual episode -> what is seen
    "success": "as it should be",
    "still": "nothing happens",
    "mimed": "the robot moves as in the success, nothing else does; the goal is missed",
    "reached": "the robot goes there and no further; the goal is missed",
    "wrong_object": "it is done to another object; the goal is missed",
    "left": "the robot goes home after the success; the goal is reached",
    "other_way": "everything moves as in the success, but the robot; the goal is reached",
    "solved": "all is well from the start; the goal is reached",
}


@dataclass(frozen=True)
class Outcome:
    """Attributes:
    credit: kind -> its credit; empty where there are no counterfactual episodes.
    margin: the outcome margin; NaN without episodes that miss the goal.
    """

    credit: Mapping[str, Figure] = field(default_factory=dict)
    margin: Figure = field(default_factory=Figure)


def outcome(ends: Mapping[str, Sequence[float]], *, resamples: int = 1000, seed: int = 0) -> Outcome:
    """Credits and margin from the last potentials of each kind of episodes.

    Args:
        ends: kind -> potentials; `success` and `still` among them, others as in `embodied.datasets.kinds`.
        resamples, seed: of the bootstrap.

    Returns:
        Nothing where successes or still episodes are missing, or a success gains nothing.
    """
    kinds = [kind for kind in (*WRONG, *RIGHT) if len(ends.get(kind, ()))]
    if not kinds or not len(ends.get(SUCCESS, ())) or not len(ends.get(STILL, ())):
        return Outcome()
    names = [SUCCESS, STILL, *kinds]
    rows = np.array([(names.index(kind), value) for kind in names for value in ends[kind]], np.float64)

    def credits(drawn: np.ndarray) -> dict[str, float]:
        mean = {kind: drawn[drawn[:, 0] == k, 1].mean() for k, kind in enumerate(names)}
        gain = mean[SUCCESS] - mean[STILL]
        return {kind: (mean[kind] - mean[STILL]) / gain if gain > 0 else math.nan for kind in kinds}

    def figure(statistic: Callable[[np.ndarray], float]) -> Figure:
        value = statistic(rows)
        if math.isnan(value):
            return Figure()
        interval = bootstrap_interval(rows, statistic, resamples=resamples, seed=seed, strata=rows[:, 0])
        return Figure(value, *interval)

    credit = {kind: figure(lambda drawn, kind=kind: credits(drawn)[kind]) for kind in kinds}
    return Outcome(credit, figure(lambda drawn: margin(credits(drawn))))


def margin(credit: Mapping[str, float]) -> float:
    """The outcome margin of credits by kind; NaN where no kind misses the goal."""
    missed = [credit[kind] for kind in WRONG if kind in credit]
    if not missed:
        return math.nan
    return min([1.0, *(credit[kind] for kind in RIGHT if kind in credit)]) - max(missed)
