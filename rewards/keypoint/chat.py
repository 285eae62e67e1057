"""A VLM plans a gripper's way from a first frame: MOKA's marks, tile grid and selection, asked for as JSON.

Shape letters: N points; H, W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field, create_model
from torch import Tensor

from rewards.chat.asking import ChatModel, Message, VLMError, ask_json
from rewards.chat.messages import filled
from rewards.keypoint.plan import HOVER, Finder, PathStop, pixel

COLUMNS, ROWS = "abcde", "12345"  # MOKA's grid: columns left to right, rows bottom to top
MARKS = 6  # candidates per object, MOKA's K
Form = TypeVar("Form", bound=BaseModel)


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
    """`Selection` that takes only the marks P1…, Q1… and tiles a1…e5 that are in the picture.

    Args:
        held: number of marks on the object that is held.
        free: number of the other marks.
    """
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
    """(u, v) px of a tile's middle; a random point of it, as in MOKA, would make the reward random.

    Args:
        tile: "a1" to "e5".
        height, width: of the picture, px.
    """
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

    def stops(self, frames: UInt8[Tensor, "B H W 3"]) -> list[list[PathStop]]:
        return [self._stops(frame) for frame in frames]

    def _stops(self, frame: UInt8[Tensor, "H W 3"]) -> list[PathStop]:
        image = frame.numpy()
        objects = self._ask(filled(OBJECTS, goal=self._goal), image, Objects)
        marks = {
            "P": self._candidates(frame, objects.object_grasped),
            "Q": self._candidates(frame, objects.object_unattached),
        }
        schema = selection_schema(len(marks["P"]), len(marks["Q"]))
        held, free = objects.object_grasped or "nothing", objects.object_unattached or "nothing"
        text = filled(SELECT, goal=self._goal, held=held, free=free)
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
        ((region,),) = self._grounder.find(frame[None], [phrase])
        return [pixel(each) for each in farthest_points(region.points, MARKS)]


def selected_stops(
    chosen: Selection, marks: Mapping[str, Sequence[tuple[float, float]]], height: int, width: int
) -> list[PathStop]:
    """The way that a selection describes: grasp, before the contact, the contact, after it.

    Args:
        chosen: the model's answer.
        marks: object -> (u, v) px of its marks.
        height, width: of the picture, px.
    """

    def mark(name: str) -> tuple[float, float]:
        return marks[name[0]][int(name[1:]) - 1]

    stops: list[PathStop] = []
    if chosen.grasp_keypoint:
        at = mark(chosen.grasp_keypoint)
        stops += [PathStop(at=at, up=HOVER), PathStop(at=at, gate="grasp")]
    if chosen.pre_contact_tile:
        up = HOVER if chosen.pre_contact_height == "above" else 0.0
        stops.append(PathStop(at=tile_centre(chosen.pre_contact_tile, height, width), up=up))
    contact = mark(chosen.target_keypoint) if chosen.target_keypoint else None
    if contact is None and chosen.target_tile:
        contact = tile_centre(chosen.target_tile, height, width)
    if contact is None and chosen.function_keypoint and not chosen.grasp_keypoint:
        contact = mark(chosen.function_keypoint)  # touched where nothing is held
    if contact is not None:
        stops.append(PathStop(at=contact, gate="reach" if chosen.post_contact_tile else ""))
    if chosen.post_contact_tile:
        up = HOVER if chosen.post_contact_height == "above" else 0.0
        stops.append(PathStop(at=tile_centre(chosen.post_contact_tile, height, width), up=up))
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
