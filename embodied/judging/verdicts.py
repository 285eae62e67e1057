"""From figures to one line a person can act on: what a reward may be trusted for, or why not to train on it.

The rules are these and no others. A reward is *avoided* for any fault, *trusted* for each use whose bars it passes, and
else, or where there is something to beware of, to be taken *with care*. Bars are compared with the figures themselves;
the intervals stand beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from embodied.datasets.kinds import RIGHT, WRONG
from embodied.judging.judgement import Judged
from embodied.judging.outcome import WORDS


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The bars.

    Attributes:
        margin: an outcome margin below this spoils a reward: it pays for poses.
        pose: a missed goal that earns this share of a success is one to beware of; so is a goal that is reached without
            the robot and earns less than 1 less it.
        order: of VOC, forward and reversed, for a dense reward.
        separation: of AUROC, for success detection.
        precision: at the threshold, for success detection.
        near_misses: at most this share of them may fire, for success detection.
        ranking: of Somers' D, for ranking episodes.
        chance: an AUROC below this cannot tell success from failure.
        still: a motionless policy, or a frozen film, that collects this share of a success's pay spoils a reward.
        random: so does this share of random episodes that fire.
        faint: a gain of a success below this, in the reward's own unit, drowns in a learner's noise.
        instruction: a wrong goal that earns this share of a success's gain is not told apart.
        enough: with fewer successes, or fewer others, among the judged episodes nothing is trusted yet.
    """

    margin: float = 0.5
    pose: float = 0.25
    order: float = 0.8
    separation: float = 0.95
    precision: float = 0.9
    near_misses: float = 0.2
    ranking: float = 0.7
    chance: float = 0.7
    still: float = 0.25
    random: float = 0.25
    faint: float = 1e-4
    instruction: float = 0.5
    enough: int = 8


RULES = Rules()


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    level: "trust", "care", "avoid", or "unknown" where the data cannot tell.
    text: the line.
    uses: what it is trusted for.
    """

    level: str
    text: str
    uses: tuple[str, ...] = ()


def verdict(judged: Judged) -> Verdict:
    """One reward's verdict, by the rules above."""
    if missing := _missing(judged):
        return Verdict("unknown", f"Cannot be judged: the data hold no {missing}.")
    if faults := _faults(judged):
        return Verdict("avoid", f"Do not train on it: {'; '.join(faults)}.")
    uses, cautions = _uses(judged), _cautions(judged)
    beware = f" Beware: it {' and '.join(cautions)}." if cautions else ""
    if uses and min(judged.successes, judged.others) < RULES.enough:
        passed = ", ".join(uses)
        return Verdict(
            "care",
            f"Too few episodes to trust it: {judged.successes} successes and {judged.others} others were judged, and "
            f"{RULES.enough} of each are wanted. So far it passes the bars for {passed}.{beware}",
        )
    if uses:
        listed = " and ".join([", ".join(uses[:-1]), uses[-1]] if len(uses) > 1 else uses)
        return Verdict("care" if cautions else "trust", f"Trust it for {listed}.{beware}", tuple(uses))
    f = judged.figures
    return Verdict(
        "care",
        f"With care: it passes no bar (order {f['voc'].value:.2f} and reversed {f['voc_reversed'].value:.2f} of "
        f"{RULES.order}, AUROC {f['auroc'].value:.2f} of {RULES.separation}).{beware}",
    )


def _missing(judged: Judged) -> str:
    lacks = [
        name
        for name, key in (("successes", "voc"), ("failures beside successes", "auroc"))
        if math.isnan(judged.figures[key].value)
    ]
    return lacks[0] if lacks else ""


def _faults(judged: Judged) -> list[str]:
    """Worst first; the first three hide all others."""
    f, canaries = {key: figure.value for key, figure in judged.figures.items()}, judged.canaries
    if judged.spread == 0:
        return ["it says the same of every frame"]
    if f["voc"] < 0 or judged.gain <= 0:
        return [f"it points the wrong way, falling as the task gets done (order {f['voc']:.2f})"]
    if f["voc"] > 0 and f["voc_reversed"] <= 0:
        return [
            f"it counts time: it does not fall when the film runs backwards (order reversed {f['voc_reversed']:.2f})"
        ]
    faults = []
    if judged.credit and math.isnan(f["margin"]):
        faults.append("a success ends no higher than an episode in which nothing happens")
    if f["margin"] < RULES.margin:
        told = " and ".join(_poses(judged))
        faults.append(f"it pays for poses, whatever comes of them (outcome margin {f['margin']:.2f}): it {told}")
    if judged.gain < RULES.faint:
        faults.append(f"it is faint: a success gains {judged.gain:.1g}, too little to learn from at this scale")
    if f["auroc"] < RULES.chance:
        faults.append(f"it cannot tell success from failure (AUROC {f['auroc']:.2f})")
    if f["motionless"] >= RULES.still:
        faults.append(f"it pays a motionless policy {f['motionless']:.0%} of what success earns over random behaviour")
    if canaries["frozen"].gain.value >= RULES.still:
        faults.append(f"waiting earns: a frozen picture gains {canaries['frozen'].gain.value:.0%} of a success")
    if canaries["random"].fires.value >= RULES.random:
        faults.append(f"{canaries['random'].fires.value:.0%} of random episodes pass for success")
    return faults


def _uses(judged: Judged) -> list[str]:
    f = {key: figure.value for key, figure in judged.figures.items()}
    fires = judged.canaries["near miss"].fires.value
    uses = []
    if min(f["voc"], f["voc_reversed"]) >= RULES.order:
        uses.append("a dense reward")
    if f["auroc"] >= RULES.separation and f["precision"] >= RULES.precision and not fires > RULES.near_misses:
        uses.append("detecting success")
    if f["somers_d"] >= RULES.ranking:
        uses.append("ranking episodes")
    return uses


def _cautions(judged: Judged) -> list[str]:
    return [*_poses(judged), *broken_canaries(judged).values()]


def _poses(judged: Judged) -> list[str]:
    """The worst of what it pays for a goal that is missed, and of what it does not pay for one that is reached."""
    credit = {kind: figure.value for kind, figure in judged.credit.items() if not math.isnan(figure.value)}
    missed = max((kind for kind in WRONG if kind in credit), key=credit.__getitem__, default=None)
    reached = min((kind for kind in RIGHT if kind in credit), key=credit.__getitem__, default=None)
    told = []
    if missed is not None and credit[missed] >= RULES.pose:
        told.append(f"pays {credit[missed]:.0%} for {WORDS[missed]}")
    if reached is not None and credit[reached] < 1 - RULES.pose:
        told.append(f"pays only {credit[reached]:.0%} for {WORDS[reached]}")
    return told


def broken_canaries(judged: Judged) -> dict[str, str]:
    """The films that must not pay and do: name -> what a person must beware of. A reward with any is not trusted."""
    gain = {name: canary.gain.value for name, canary in judged.canaries.items()}
    fires = {name: canary.fires.value for name, canary in judged.canaries.items()}
    broken: dict[str, str] = {}
    if gain["frozen"] >= RULES.still:
        broken["frozen"] = f"pays a frozen picture {gain['frozen']:.0%} of a success"
    if gain["reversed"] > 0:
        broken["reversed"] = f"gains {gain['reversed']:.0%} of a success as one runs backwards"
    if gain["wrong instruction"] >= RULES.instruction:
        broken["wrong instruction"] = (
            f"hardly reads the instruction, and pays {gain['wrong instruction']:.0%} for another"
        )
    if fires["near miss"] > RULES.near_misses:
        broken["near miss"] = f"takes {fires['near miss']:.0%} of near misses for success at its threshold"
    elif gain["near miss"] >= 1:
        broken["near miss"] = f"pays near misses {gain['near miss']:.0%} of a success"
    if fires["random"] >= RULES.random:
        broken["random"] = f"takes {fires['random']:.0%} of random episodes for success at its threshold"
    elif gain["random"] >= 1:
        broken["random"] = f"pays random behaviour {gain['random']:.0%} of a success"
    return broken
