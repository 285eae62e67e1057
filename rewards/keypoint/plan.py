"""From an instruction and a first frame to the places a gripper must pass: a plan grammar over grounded phrases.

It gives `PathStop`s, in pixels of the first frame, as a VLM does that is asked (`rewards.keypoint.chat`);
`rewards.keypoint` lifts them to metres and measures progress. Shape letters: B batch; H, W image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from rewards.grounding import Region

HOVER = 0.08  # metres over a place from which it is approached
GATES = ("", "reach", "grasp", "release")


@dataclass(frozen=True, kw_only=True)
class PathStop:
    """A place on the gripper's way.

    Attributes:
        at: (u, v) px of the first frame.
        up: metres above what is seen there.
        thin: whether a thin thing stands there before a surface, as a handle does, so that depth is read at what is
            nearest there.
        by: metres along the level direction from what `tail` shows to what `head` shows (both px); 0: stay.
        gate: "" (a point of the way), "reach" (must be reached before later stops count), "grasp" (reached, and
            closed on something) or "release" (reached, and opened again).
    """

    at: tuple[float, float]
    up: float = 0.0
    by: float = 0.0
    thin: bool = False
    tail: tuple[float, float] | None = None
    head: tuple[float, float] | None = None
    gate: str = ""


@runtime_checkable
class Finder(Protocol):
    """Text to pixels: a `Grounder`."""

    def find(self, frames: UInt8[Tensor, "B H W 3"], texts: Sequence[str]) -> list[list[Region]]: ...


@runtime_checkable
class Answerer(Protocol):
    """Who says where to go, in each of B scenes."""

    def stops(self, frames: UInt8[Tensor, "B H W 3"]) -> list[list[PathStop]]: ...


# The embedded answerer: a grammar and grounding ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Move:
    """A step of a rule, in its own words: where `PathStop` has pixels, it has "object" or "place".

    Attributes:
        at: "object" or "place".
        up: metres above it.
        out: metres outwards, from the middle of the rule's `body` to the object.
        gate: as of `PathStop`.
    """

    at: str = "object"
    up: float = 0.0
    out: float = 0.0  # metres outwards: from the middle of the rule's `body` to the object
    gate: str = ""


@dataclass(frozen=True)
class Rule:
    """What to do for one kind of instruction.

    Attributes:
        forms: sentences with `{object}` and perhaps `{place}`; `[a|b]` is a choice.
        moves: the way there.
        part: the part of the object that is touched, with `{}` for the object; "{}" is the object itself. A part is
            taken to be thin (see `PathStop`).
        body: what the object is set in, from whose middle "outwards" starts; "" where no move goes outwards.
    """

    forms: tuple[str, ...]
    moves: tuple[Move, ...]
    part: str = "{}"
    body: str = ""


_TAKE = (Move(up=HOVER), Move(gate="grasp"))
RULES: tuple[Rule, ...] = (  # the first that fits
    Rule(
        ("[open|open up|pull out|pull open|slide open|slide out] {object}", "[pull|slide] {object} [open|out]",
         "{object} [is|stands|has been] [open|opened|pulled out|pulled open]"),
        (Move(up=HOVER), Move(gate="grasp"), Move(out=0.12)),
        part="the handle of {}", body="the cabinet",
    ),
    Rule(
        ("[close|shut|push in|push shut|push closed|slide shut] {object}", "[push|slide] {object} [shut|in|closed]",
         "{object} [is|stands|has been] [closed|shut|pushed in]"),
        (Move(out=0.05, up=HOVER), Move(out=0.05, gate="reach"), Move(out=-0.1)),
        part="the handle of {}", body="the cabinet",
    ),
    Rule(
        ("[put|place|drop|move|bring|leave|set|lay] {object} [in|into|inside] {place}",
         "{object} [is|lies|has been put] [in|inside] {place}"),
        (*_TAKE, Move(up=HOVER), Move(at="place", up=HOVER), Move(at="place", up=0.03, gate="release")),
    ),
    Rule(
        ("[put|place|stack|set|lay|drop] {object} [on top of|onto|on] {place}",
         "{object} [is|lies|has been put] on top of {place}", "{object} [is|lies|sits|is stacked] on {place}"),
        (*_TAKE, Move(up=HOVER), Move(at="place", up=HOVER + 0.04), Move(at="place", up=0.04, gate="release")),
    ),
    Rule(
        ("[push|slide|shove|drag|sweep|move|bring] {object} [onto|to|on|over to] {place}",
         "{object} [is|has been] pushed [to|onto] {place}"),
        (*_TAKE, Move(at="place", up=0.02, gate="release")),
    ),
    Rule(
        ("[lift|lift up|pick up|raise|hold up|take|grasp and lift] {object}", "[pick|lift] {object} up",
         "{object} [is|has been] [lifted|raised|picked up|lifted up|held up]"),
        (*_TAKE, Move(up=0.1)),
    ),
    Rule(
        ("[grasp|grab|hold|grip] {object}", "{object} [is|has been] [grasped|held]"), _TAKE,
    ),
    Rule(
        ("[press|push|push down|press down|hit|click|hold down] {object}", "[press|push] {object} down",
         "{object} [is|has been] [pressed|pushed|pressed down|pushed down]"),
        (Move(up=HOVER), Move(), Move(up=-0.03)),
    ),
    Rule(
        ("[touch|reach|reach for|go to|move to|tap|contact|point at] {object}",
         "[the gripper|the robot|the hand|the arm|the tip of the arm] [touches|reaches|is at|is touching] {object}"),
        (Move(up=HOVER), Move()),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class KeypointTask:
    """An instruction, read: its rule, the object and the place ("" where it has none)."""

    rule: Rule
    object: str
    place: str


def read_instruction(text: str, rules: Sequence[Rule] = RULES) -> KeypointTask:
    """The rule that an instruction fits, with its object and place.

    Args:
        text: the instruction.
        rules: tried in order.

    Raises:
        ValueError: none fits; lists the forms that are understood.
    """
    plain = re.sub(r"^(please|now|then|robot,?)\s+", "", re.sub(r"\s+", " ", text).strip(" .!").lower())
    for rule in rules:
        fits = [found.groupdict() for form in rule.forms if (found := _pattern(form).fullmatch(plain))]
        if fits:  # the form that explains most words: "push the button down" has no object "the button down"
            parts = min(fits, key=lambda each: len(each["object"]))
            return KeypointTask(rule, _article(parts["object"]), _article(parts.get("place") or ""))
    forms = "; ".join(rule.forms[0] for rule in rules)
    raise ValueError(
        f"read_instruction: goal must be an instruction that the plan grammar understands; got {text!r}. "
        f"It understands: {forms}. Or let a VLM plan: answerer.url and answerer.model."
    )


@cache
def _pattern(form: str) -> re.Pattern[str]:
    """A form as an expression; choices are tried longest first, so that "on top of" wins over "on"."""

    def choice(found: re.Match[str]) -> str:
        return f"(?:{'|'.join(sorted(found[1].split('|'), key=len, reverse=True))})"

    marked = re.sub(r"\[([^]]*)\]", choice, form)
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>.+?)", marked))


def _article(phrase: str) -> str:
    return f"the {phrase}" if phrase and not re.match(r"(the|a|an|this|that|its)\b", phrase) else phrase


class GrammarAnswerer:
    """The instruction's rule, its objects grounded in the frame.

    Args:
        goal: an instruction; see `RULES`.
        grounder: finds phrases in frames.
        rules: the grammar.

    Raises:
        ValueError: (also `stops`) an instruction of no known form; an object that the frame does not show.
    """

    def __init__(self, goal: str, grounder: Finder, rules: Sequence[Rule] = RULES) -> None:
        self.task, self._grounder = read_instruction(goal, rules), grounder

    def phrases(self) -> dict[str, str]:
        """What is looked for: "object", and "place" and "body" where the rule names them."""
        task, part = self.task, self.task.rule.part
        if re.search(r"\b(handle|knob|pull)\b", task.object):  # the part itself was named
            part = "{}"
        found = {"object": part.format(task.object), "place": task.place, "body": task.rule.body}
        return {name: phrase for name, phrase in found.items() if phrase}

    def stops(self, frames: UInt8[Tensor, "B H W 3"]) -> list[list[PathStop]]:
        phrases = self.phrases()
        found = self._grounder.find(frames, list(phrases.values()))
        return [self._way(dict(zip(phrases, regions, strict=True))) for regions in found]

    def _way(self, regions: Mapping[str, Region]) -> list[PathStop]:
        places = {name: pixel(region.centre) for name, region in regions.items()}
        body = places.get("body")
        thin = self.task.rule.part != "{}"
        return [
            PathStop(at=places[m.at], up=m.up, thin=thin, by=m.out, tail=body, head=places["object"], gate=m.gate)
            for m in self.task.rule.moves
        ]


def pixel(point: np.ndarray) -> tuple[float, float]:
    """(u, v) as plain numbers.

    Args:
        point: (2,).
    """
    return float(point[0]), float(point[1])
