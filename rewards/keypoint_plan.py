"""From an instruction and a first frame to the places a gripper must pass: a plan grammar, or a VLM that is asked.

Both give `Stop`s, in pixels of the first frame; `rewards.keypoint` lifts them to metres and measures progress.

Shape letters: N points; H, W image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field, create_model
from torch import Tensor

from rewards.grounding import Region
from rewards.vlm import ChatModel, Message, VLMError, ask_json

HOVER = 0.08  # metres over a place from which it is approached
COLUMNS, ROWS = "abcde", "12345"  # MOKA's grid: columns left to right, rows bottom to top
MARKS = 6  # candidates per object, MOKA's K
GATES = ("", "reach", "grasp", "release")
Form = TypeVar("Form", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A place on the gripper's way.

    Attributes:
        at: (u, v) px of the first frame.
        up: metres above what is seen there.
        by: metres along the level direction from what `tail` shows to what `head` shows (both px); 0: stay.
        gate: "" (a point of the way), "reach" (must be reached before later stops count), "grasp" (reached, and
            closed on something) or "release" (reached, and opened again).
    """

    at: tuple[float, float]
    up: float = 0.0
    by: float = 0.0
    tail: tuple[float, float] | None = None
    head: tuple[float, float] | None = None
    gate: str = ""


@runtime_checkable
class Finder(Protocol):
    """Text to pixels: a `Grounder`."""

    def find(self, frame: UInt8[Tensor, "H W 3"], text: str) -> Region: ...


@runtime_checkable
class Answerer(Protocol):
    """Who says where to go."""

    def stops(self, frame: UInt8[Tensor, "H W 3"]) -> list[Stop]: ...


# The embedded answerer: a grammar and grounding ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Move:
    """A step of a rule, in its own words: where `Stop` has pixels, it has "object" or "place"."""

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
        part: the part of the object that is touched, with `{}` for the object; "{}" is the object itself.
        body: what "outwards" starts from, with `{}` for the object.
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
        part="the handle of {}", body="the cabinet around {}",
    ),
    Rule(
        ("[close|shut|push in|push shut|push closed|slide shut] {object}", "[push|slide] {object} [shut|in|closed]",
         "{object} [is|stands|has been] [closed|shut|pushed in]"),
        (Move(out=0.05, up=HOVER), Move(out=0.05, gate="reach"), Move(out=-0.1)),
        part="the handle of {}", body="the cabinet around {}",
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
        (*_TAKE, Move(up=0.13)),
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
class Task:
    """An instruction, read: its rule, the object and the place ("" where it has none)."""

    rule: Rule
    object: str
    place: str


def read_instruction(text: str, rules: Sequence[Rule] = RULES) -> Task:
    """The rule that an instruction fits, with its object and place.

    Raises:
        ValueError: none fits; lists the forms that are understood.
    """
    plain = re.sub(r"^(please|now|then|robot,?)\s+", "", re.sub(r"\s+", " ", text).strip(" .!").lower())
    for rule in rules:
        fits = [found.groupdict() for form in rule.forms if (found := _pattern(form).fullmatch(plain))]
        if fits:  # the form that explains most words: "push the button down" has no object "the button down"
            parts = min(fits, key=lambda each: len(each["object"]))
            return Task(rule, _article(parts["object"]), _article(parts.get("place") or ""))
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
        task, whole = self.task, self.task.object
        part = task.rule.part
        if part != "{}" and re.search(r"\b(handle|knob|pull)\b", whole):  # the part itself was named
            part, whole = "{}", re.sub(r"\s*\b(handle|knob|pull)\b( of( the)?)?|'s\b", "", whole).strip() or whole
        found = {"object": part.format(task.object), "place": task.place}
        found["body"] = task.rule.body.format(whole) if task.rule.body else ""
        return {name: phrase for name, phrase in found.items() if phrase}

    def stops(self, frame: UInt8[Tensor, "H W 3"]) -> list[Stop]:
        places = {name: _pixel(self._grounder.find(frame, text).centre) for name, text in self.phrases().items()}
        body = places.get("body")
        return [
            Stop(at=places[move.at], up=move.up, by=move.out, tail=body, head=places["object"], gate=move.gate)
            for move in self.task.rule.moves
        ]


def _pixel(point: np.ndarray) -> tuple[float, float]:
    return float(point[0]), float(point[1])


# Asking a VLM: MOKA's marks, grid and schema -------------------------------------------------------------------


class Objects(BaseModel):
    """MOKA's plan of one subtask: what is held and what is acted on; "" where there is none."""

    model_config = ConfigDict(extra="ignore")
    object_grasped: str = Field(description='what the gripper grasps; "" if it grasps nothing')
    object_unattached: str = Field(description='what is acted on or is the destination; "" if none')


class Selection(BaseModel):
    """MOKA's choice of points, tiles and heights; "" where one does not apply."""

    model_config = ConfigDict(extra="ignore")
    grasp_keypoint: str = ""
    function_keypoint: str = ""
    target_keypoint: str = ""
    target_tile: str = ""
    pre_contact_tile: str = ""
    post_contact_tile: str = ""
    pre_contact_height: Literal["same", "above"] = "same"
    post_contact_height: Literal["same", "above"] = "same"
    target_angle: Literal["", "forward", "backward", "upward", "downward", "left", "right"] = ""


@cache
def selection_schema(held: int, free: int) -> type[Selection]:
    """`Selection` that takes only the marks P1…, Q1… and tiles a1…e5 that are in the picture."""
    p, q = ("", *(f"P{i}" for i in range(1, held + 1))), ("", *(f"Q{i}" for i in range(1, free + 1)))
    tile = ("", *(column + row for column in COLUMNS for row in ROWS))
    choices = {
        "grasp_keypoint": p, "function_keypoint": p, "target_keypoint": q,
        "target_tile": tile, "pre_contact_tile": tile, "post_contact_tile": tile,
    }  # fmt: skip
    fields: dict[str, Any] = {key: (Literal[each], "") for key, each in choices.items()}  # pyright: ignore[reportInvalidTypeForm]
    return create_model("Selection", __base__=Selection, **fields)


def farthest_points(points: np.ndarray, count: int) -> np.ndarray:
    """(≤ count, 2): the points' mean, then always the point farthest from those chosen; these sorted downwards.

    Source: MOKA's candidates [dense_rewards §2.3]. Departs: from all cells of a region, not its outline alone, and the
        mean of a hollow region is moved to its nearest cell.
    """
    chosen: list[np.ndarray] = [points[np.linalg.norm(points - points.mean(0), axis=1).argmin()]]
    while len(chosen) < min(count, len(points)):
        gaps = np.linalg.norm(points[:, None] - np.stack(chosen), axis=-1).min(1)
        if gaps.max() <= 0:
            break
        chosen.append(points[gaps.argmax()])
    rest = sorted(chosen[1:], key=lambda each: (float(each[1]), float(each[0])))
    return np.stack([chosen[0], *rest])


def tile_centre(tile: str, height: int, width: int) -> tuple[float, float]:
    """(u, v) px of a tile's middle; a random point of it, as in MOKA, would make the reward random."""
    column, row = COLUMNS.index(tile[0]), ROWS.index(tile[1])
    return (column + 0.5) * width / 5 - 0.5, height - (row + 0.5) * height / 5 - 0.5


def annotate(frame: np.ndarray, marks: Mapping[str, Sequence[tuple[float, float]]], *, side: int = 480) -> np.ndarray:
    """The frame at `side` px of width or more, with the tile grid, and numbered marks: P red, Q blue.

    Args:
        frame: (H, W, 3) uint8.
        marks: "P" and "Q" -> points, px of the frame.
    """
    height, width = frame.shape[:2]
    factor = max(1, round(side / width))
    image = Image.fromarray(frame).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for i in range(1, 5):
        x, y = i * image.width / 5, i * image.height / 5
        draw.line([(x, 0), (x, image.height)], fill=(255, 255, 255), width=1)
        draw.line([(0, y), (image.width, y)], fill=(255, 255, 255), width=1)
    for c, column in enumerate(COLUMNS):
        for r, row in enumerate(ROWS):
            place = (c * image.width / 5 + 3, (4 - r) * image.height / 5 + 2)
            draw.text(place, column + row, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    for letter, colour in (("P", (230, 20, 20)), ("Q", (20, 60, 230))):
        for number, (u, v) in enumerate(marks.get(letter, ()), 1):
            x, y = (u + 0.5) * factor, (v + 0.5) * factor
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour, outline=(255, 255, 255))
            draw.text((x + 5, y - 6), f"{letter}{number}", fill=colour, stroke_width=1, stroke_fill=(255, 255, 255))
    return np.asarray(image)


class ChatAnswerer:
    """MOKA's two questions to a VLM: which objects, then which marks and tiles.

    Args:
        goal: the task, in any words.
        model: who is asked.
        grounder: finds the objects that the model names, for candidates.
        cache: folder of answers already given; None keeps none.
        attempts: how often one question is asked at most.

    Raises:
        VLMError: (`stops`) no fitting answer, a refusal, a mark that is not in the picture, or no place to go to.
        ValueError: (`stops`) a named object that the frame does not show.
    Source: MOKA, arXiv 2403.03174 and its code [dense_rewards §2.3]. Departs: one subtask; candidates from the
        encoder's map, not GroundingDINO and SAM; tile centres; marks out of bounds are refused and asked again;
        `target_angle` is asked for, as there, and not used, since only the gripper's place is rewarded.
    """

    def __init__(
        self, goal: str, model: ChatModel, grounder: Finder, *, cache: Path | None = None, attempts: int = 3
    ) -> None:
        self._goal, self._model, self._grounder = goal, model, grounder
        self._cache, self._attempts = cache, attempts

    def stops(self, frame: UInt8[Tensor, "H W 3"]) -> list[Stop]:
        image = frame.numpy()
        objects = self._ask(OBJECTS.format(goal=self._goal), image, Objects)
        marks = {
            "P": self._candidates(frame, objects.object_grasped),
            "Q": self._candidates(frame, objects.object_unattached),
        }
        schema = selection_schema(len(marks["P"]), len(marks["Q"]))
        text = SELECT.format(
            goal=self._goal, held=objects.object_grasped or "nothing", free=objects.object_unattached or "nothing"
        )
        chosen = self._ask(text, annotate(image, marks), schema)
        stops = selected_stops(chosen, marks, *image.shape[:2])
        if not stops:
            raise VLMError(f"{self._model.name}, asked for keypoints of {self._goal!r},", "a place to go to", "none")
        return stops

    def _ask(self, text: str, image: np.ndarray, schema: type[Form]) -> Form:
        message = Message("user", text, [image])
        return ask_json(self._model, [message], schema, attempts=self._attempts, cache=self._cache)

    def _candidates(self, frame: UInt8[Tensor, "H W 3"], phrase: str) -> list[tuple[float, float]]:
        if not phrase.strip():
            return []
        return [_pixel(each) for each in farthest_points(self._grounder.find(frame, phrase).points, MARKS)]


def selected_stops(
    chosen: Selection, marks: Mapping[str, Sequence[tuple[float, float]]], height: int, width: int
) -> list[Stop]:
    """The way that a selection describes: grasp, before the contact, the contact, after it."""

    def mark(name: str) -> tuple[float, float]:
        return marks[name[0]][int(name[1:]) - 1]

    stops: list[Stop] = []
    if chosen.grasp_keypoint:
        at = mark(chosen.grasp_keypoint)
        stops += [Stop(at=at, up=HOVER), Stop(at=at, gate="grasp")]
    if chosen.pre_contact_tile:
        up = HOVER if chosen.pre_contact_height == "above" else 0.0
        stops.append(Stop(at=tile_centre(chosen.pre_contact_tile, height, width), up=up))
    contact = mark(chosen.target_keypoint) if chosen.target_keypoint else None
    if contact is None and chosen.target_tile:
        contact = tile_centre(chosen.target_tile, height, width)
    if contact is None and chosen.function_keypoint and not chosen.grasp_keypoint:
        contact = mark(chosen.function_keypoint)  # touched where nothing is held
    if contact is not None:
        stops.append(Stop(at=contact, gate="reach" if chosen.post_contact_tile else ""))
    if chosen.post_contact_tile:
        up = HOVER if chosen.post_contact_height == "above" else 0.0
        stops.append(Stop(at=tile_centre(chosen.post_contact_tile, height, width), up=up))
    return stops


OBJECTS = """The image shows a robot's scene before it starts. Its task: {goal}.
Say which object the gripper must grasp (or "" if it only touches or pushes), and which other object, or place, is \
acted on or is the destination (or "" if there is none). Name each by a short phrase with its colour, as one sees it."""

SELECT = """The image shows a robot's scene before it starts. Its task: {goal}.
Red marks P1, P2, … lie on what it grasps ({held}); blue marks Q1, Q2, … on what it acts on or brings it to ({free}). \
White lines make a grid of tiles: columns a to e from left to right, rows 1 to 5 from bottom to top.
Reason first, briefly. Then choose, with "" for whatever does not apply:
grasp_keypoint: the P mark where the gripper grasps. function_keypoint: the P mark that makes contact, if another one.
target_keypoint: the Q mark where the contact is, or target_tile: the tile where it is, if on no mark.
pre_contact_tile, post_contact_tile: tiles that the gripper passes before and after the contact, and their heights: \
"same" as the contact, or "above" it. target_angle: the direction in which it moves at the contact."""
