"""How good rewards are, before anyone trains on them: each is scored on the same labelled episodes and on canaries.

What a reward *says* is the potential that it would shape. Of each episode it says T numbers; two rows are special:

    the end    the last row that is solved (of a success), else the last row: what the outcome is read from
    the clip   from the reset to the first solved row: the way to success, without the rest after it

The figures (`FIGURES`), each with a 95 % interval, bootstrap over episodes unless said:

    voc, voc_reversed   order along the clips of successes, shown forward and last to first (`value_order_correlation`)
    tau_a               Kendall's τ_a of the ends with quality (success, near miss, the rest), over all pairs
    somers_d            Somers' D of the same: over pairs of different quality, so that a perfect order has 1
    auroc, ap           ends of successes against ends of all others
    precision, recall   of the ends at or above the threshold that the fit split chose; Wilson's interval
    frame_auroc         solved rows against all others, where the data says which rows are solved
    epic                EPIC distance of the potential, paid as it is, to the task's own reward of the same transitions
    ece                 calibration error of Platt's probabilities, fitted on the fit split
    margin              the outcome margin (`embodied.judging.outcome`): whether it pays for what was achieved and not
                        for the pose that comes with it
    motionless          (still − random) / (success − random) in mean reward per step: 0 means that doing nothing pays
                        like random behaviour, 1 like success. It does not change with a reward's scale and offset.

Beside them stand the figures of public benchmarks, under their names (`PUBLISHED`; formulas in `rewards.metrics`):

    voc_spearman        the same as voc
    voc_pearson         Pearson's correlation with time along successes: Robometer's reward alignment
    pairwise_acc        of pairs of 15 moments of a success, the share of which the later one scores higher
    kendall_tau         τ over n(n − 1)/2 of one episode of each quality, over all choices: Robometer's policy ranking
    ranking_acc         pairs of episodes of different quality whose better one ends higher
    succ_fail_diff      mean end of successes less that of the worst quality
    mae_ordinal         mean distance of the end, as a level from 1 to 5, from the level that the data give
    success_auprc       average precision of solved rows
    confusion_margin    what episodes end with under their own instruction less under those of the other tasks

Canaries are films that must not pay. Their gain, φ(last) − φ(first), is in units of the mean gain of a success, from
its reset to its end:

    frozen              the first frame for the length of the episode; ideal 0
    reversed            a success up to its end, last to first; ideal −1
    wrong instruction   the same forward, scored for another goal, where the reward takes one; ideal 0
    near miss, random   recorded ones; ideal below 1, and 0

A film fires where it reaches the threshold: reversed ones in their last row (they start solved), all others in any row
that is not solved.

A head that plans from an episode's first image keeps that image in the canaries: the plan is context, like the goal.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied.datasets.kinds import COUNTERFACTUAL, STILL
from embodied.judging.figures import GROUPS, Canary, Case, Division, Figure, Sheet
from embodied.judging.outcome import SUCCESS, outcome
from rewards.audit import Reliability
from rewards.compose import as_scorer
from rewards.core import Encoder, Features, Scorer

OURS = (
    "voc", "voc_reversed", "margin", "tau_a", "somers_d", "auroc", "ap", "precision", "recall", "frame_auroc", "epic",
    "ece", "motionless",
)  # fmt: skip
PUBLISHED = (
    "voc_spearman", "voc_pearson", "pairwise_acc", "kendall_tau", "ranking_acc", "succ_fail_diff", "mae_ordinal",
    "success_auprc", "confusion_margin",
)  # fmt: skip
FIGURES = (*OURS, *PUBLISHED)
FLAT = 1e-9  # a spread of potentials below this, relative to their size, is none


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One reward's result.

    Attributes:
        name: of the reward.
        control: whether it is one of the two controls that must fail.
        figures: one per name in `FIGURES`.
        canaries: one per name in `CANARIES`; without films where there were none.
        credit: kind of counterfactual episode -> its credit; empty without such episodes.
        gain: mean gain of a success, in the reward's own unit.
        spread: standard deviation of all potentials, in the same unit; 0 for a constant.
        threshold: in the same unit; NaN where it could not be chosen.
        head_ms: per frame, of the heads alone; median over episodes.
        potentials: episode index -> its potentials, of the judged episodes; empty of a control.
        roc: (false, true) positive rates, or None.
        calibration: predicted against observed, or None.
        successes, others: how many episodes of each the figures stand on.
        tasks: instruction -> the same of its episodes alone, where there are several; the figures above are then their
            means, and what belongs to one task (threshold, roc, calibration) is missing.
        confusion: instruction -> task -> where that task's episodes end under it, on the mean; of several tasks.
    """

    name: str
    control: bool
    figures: dict[str, Figure]
    canaries: dict[str, Canary]
    gain: float
    spread: float
    threshold: float
    head_ms: float
    potentials: dict[int, np.ndarray]
    roc: tuple[np.ndarray, np.ndarray] | None = None
    calibration: Reliability | None = None
    credit: Mapping[str, Figure] = field(default_factory=dict)
    successes: int = 0
    others: int = 0
    tasks: Mapping[str, Judged] = field(default_factory=dict)
    confusion: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def divide(cases: Sequence[Case], *, demos: int = 0, share: float = 0.3, seed: int = 0) -> Division:
    """Demonstrations to fit heads to, a split to fit thresholds on, and the rest to judge on.

    Args:
        cases: labelled ones.
        demos: how many successes become demonstrations; half of the successes at most.
        share: of each group that the thresholds are chosen on, in [0, 1); one of each is judged at least.
        seed: of the drawing.

    Cases of a counterfactual kind are apart, and all of them are kept for the outcome margin.
    """
    rng = np.random.default_rng(seed)
    division = Division(counterfactual=[case for case in cases if case.kind in COUNTERFACTUAL])
    cases = [case for case in cases if case.kind not in COUNTERFACTUAL]
    for group in GROUPS:
        members = [case for case in cases if case.group == group]
        members = [members[i] for i in rng.permutation(len(members))]
        taken = min(demos, len(members) // 2) if group == "success" else 0
        rest = members[taken:]
        fit = min(max(round(share * len(rest)), int(share > 0)), max(len(rest) - 1, 0))
        division.demos.extend(members[:taken])
        division.fit.extend(rest[:fit])
        division.judged.extend(rest[fit:])
    return division


def judge(
    name: str,
    scorer: Scorer,
    division: Division,
    *,
    wrong: Sequence[Scorer] = (),
    control: bool = False,
    canary_films: int = 20,
    discount: float = 0.99,
    resamples: int = 1000,
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> Judged:
    """Judge one reward.

    Args:
        name: of the reward.
        scorer: its encoder is not called.
        division: what to choose the threshold on and what to judge on.
        wrong: the same reward with other tasks' goals.
        control: whether it is one of `controls`.
        canary_films: at most so many successes are frozen, reversed and scored for another goal.
        discount: γ of EPIC's canonical shaping.
        resamples: of the bootstrap.
        seed: of the bootstrap and of EPIC's samples.
        tick: called after each scored film, `films` times.

    Raises:
        FloatingPointError: the reward gave NaN or infinity.
    """

    def say(model: Scorer, features: Features) -> np.ndarray:
        said = potential(model, features)
        tick()
        return said

    fitted = [say(scorer, case.episode.features) for case in division.fit]
    said, seconds = [], []
    for case in division.judged:
        features = case.episode.features
        start = time.perf_counter()
        said.append(say(scorer, features))
        seconds.append((time.perf_counter() - start) / len(case.episode))
    successes = [i for i, case in enumerate(division.judged) if case.group == "success"]
    films: dict[str, list[np.ndarray]] = {"rewound": [], "frozen": [], "reversed": [], "wrong instruction": []}
    for i in successes[:canary_films]:
        case = division.judged[i]
        features, whole = case.episode.features, case.end + 1
        films["rewound"].append(say(scorer, reversed_film(features, case.clip)))
        films["frozen"].append(say(scorer, frozen(features)))
        films["reversed"].append(say(scorer, reversed_film(features, whole)))
        films["wrong instruction"] += [say(each, cut(features, whole)) for each in wrong]
    ends: dict[str, list[float]] = {}
    for case in division.counterfactual:
        kind = case.kind if case.kind in COUNTERFACTUAL else case.group
        ends.setdefault(kind, []).append(float(say(scorer, case.episode.features)[case.end]))
    ends.setdefault(SUCCESS, [float(said[i][division.judged[i].end]) for i in successes])
    ends.setdefault(STILL, [float(each[-1]) for each in films["frozen"]])
    paid = outcome(ends, resamples=resamples, seed=seed)
    sheet = Sheet(division, fitted, said, films, resamples, seed)
    every = np.concatenate(said) if said else np.zeros(1)
    spread = float(every.std())
    calibration, ece = sheet.calibration()
    figures = sheet.outcome() | sheet.order() | sheet.published()
    figures |= {"ece": ece, "epic": sheet.epic(discount), "motionless": sheet.motionless(scorer), "margin": paid.margin}
    return Judged(
        name=name,
        control=control,
        figures={key: figures.get(key, Figure()) for key in FIGURES},
        canaries=sheet.canaries(),
        gain=sheet.gain,
        spread=0.0 if spread <= FLAT * max(1.0, float(np.abs(every).max())) else spread,
        threshold=sheet.threshold,
        head_ms=1000 * float(np.median(seconds)) if seconds else math.nan,
        potentials={} if control else {c.index: each for c, each in zip(division.judged, said, strict=True)},
        roc=sheet.roc(),
        calibration=calibration,
        credit=paid.credit,
        successes=len(successes),
        others=len(division.judged) - len(successes),
    )


def films(division: Division, *, wrong: int = 0, canary_films: int = 20) -> int:
    """How many films `judge` scores: what its progress bar counts."""
    successes = sum(case.group == "success" for case in division.judged)
    scored = len(division.fit) + len(division.judged) + len(division.counterfactual)
    return scored + (3 + wrong) * min(successes, canary_films)


@torch.inference_mode()
def potential(scorer: Scorer, features: Features) -> np.ndarray:
    """(T,) float64: the potential that would be shaped, of one episode (B = 1)."""
    said = scorer.combined(scorer.potentials(features), features)[0].double().cpu().numpy()
    return said.copy()  # many are kept, and the tensor behind each takes several times its room


# Canaries -----------------------------------------------------------------------------------------------------


def _film(features: Features, change: Callable[[Tensor], Tensor]) -> Features:
    """The same change of time everywhere; images that only show the start stay."""
    rows = features.main.shape[1]
    return Features(
        views={name: change(view) for name, view in features.views.items()},
        signals={name: change(values) for name, values in features.signals.items()},
        frames={name: change(each) if each.shape[1] == rows else each for name, each in features.frames.items()},
        depth=features.depth,
    )


def cut(features: Features, rows: int) -> Features:
    """The first rows."""
    return _film(features, lambda each: each[:, :rows])


def chosen_rows(features: Features, rows: Sequence[int]) -> Features:
    """Some rows, as a film of their own."""
    return _film(features, lambda each: each[:, list(rows)])


def frozen(features: Features) -> Features:
    """The first row, over and over."""
    return _film(features, lambda each: each[:, :1].expand_as(each))


def reversed_film(features: Features, rows: int) -> Features:
    """The first rows, last to first."""
    return _film(features, lambda each: each[:, :rows].flip(1))


class _Constant:
    name = "constant"

    def score(self, features: Features) -> Tensor:
        return torch.zeros(features.main.shape[:2])


class _Clock:
    name = "clock"

    def score(self, features: Features) -> Tensor:
        return torch.arange(features.main.shape[1], dtype=torch.float32).expand(features.main.shape[:2])


def controls(encoder: Encoder) -> dict[str, Scorer]:
    """A reward that says nothing and one that counts time: an instrument that trusts either is broken."""
    return {head.name: as_scorer(encoder, {head.name: head}) for head in (_Constant(), _Clock())}


def json_parts(value: Any, level: int = 0) -> Iterator[str]:
    """A result as JSON text, part by part: the potentials of many episodes are never one text, nor Python's numbers.

    Args:
        value: dataclasses and mappings become objects, an entry a line; all else what `to_json` makes of it.
        level: of the object, for its indent.
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, Reliability):
        value = value._asdict()
    if not isinstance(value, Mapping) or not value:
        yield json.dumps(to_json(value))
        return
    for number, (key, item) in enumerate(value.items()):
        yield f"{',' if number else '{'}\n{' ' * (level + 1)}{json.dumps(str(key))}: "
        yield from json_parts(item, level + 1)
    yield f"\n{' ' * level}}}"


def to_json(value: Any) -> Any:
    """Dataclasses, tuples and arrays as JSON values; NaN as null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Reliability):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 6) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
