"""RoboPulse, `yuheng2000/RoboPulse` (arXiv 2603.21669): `RoboPulse.json` beside `images/`, pairs of moments of a task.

Which fields its entries have is told by settings (`fields`), by default as Robo-Dopamine's code writes such pairs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from embodied.datasets import layout
from embodied.errors import UserError
from embodied.judging.benchmark_films import PLACES, BenchmarkFilm, Pair, inside, text
from rewards.chat.numbers import parse_score
from rewards.pictures import rgb


def robopulse(root: Path, fields: Mapping[str, Any]) -> Iterator[BenchmarkFilm]:
    """Its pairs; the frames of each are start, BEFORE and AFTER, by the outside camera.

    Args:
        root: the dataset's folder.
        fields: what the file calls `task`, `pictures`, `answer`, `bin` and `source`; the `order` of the pictures, and
            the `words` of the answer, or None.

    Raises:
        UserError: the folder has no such file, or an entry lacks a field, a picture or an answer.
    """
    file, order, words = root / "RoboPulse.json", fields["order"], fields["words"]
    if not file.is_file():
        raise UserError(
            f"{root}: must hold RoboPulse.json beside images/, as yuheng2000/RoboPulse has them; it has none."
        )
    if sorted(map(str, order)) != sorted(PLACES):
        raise UserError(f"fields.order must name each of {', '.join(PLACES)} once; got {', '.join(map(str, order))}.")
    if words is not None and len(set(words)) != 2:
        raise UserError(f"fields.words must be two words, AFTER's and BEFORE's; got {words!r:.60}.")
    entries = layout.read_json(file)
    if not isinstance(entries, list):
        raise UserError(f"{file}: must be a list of entries; got {type(entries).__name__}.")
    for number, entry in enumerate(entries):
        where = f"{file}: entry {number}"
        row = _named(where, entry, fields)
        listed = row["pictures"]
        if not isinstance(listed, list) or len(listed) != len(PLACES):
            got = f"{len(listed)}" if isinstance(listed, list) else f"{listed!r:.40}"
            raise UserError(f"{where}: {fields['pictures']} must list {len(PLACES)} pictures; got {got}.")
        if not all(isinstance(name, str) for name in listed):
            raise UserError(f"{where}: {fields['pictures']} must list paths; got {listed!r:.60}.")
        files = {place: _picture(where, root, name) for place, name in zip(order, listed, strict=True)}
        yield BenchmarkFilm(
            task=text(where, "task", row), source=_word(row.get("source", root.name)), frames=_three(files),
            pair=Pair(
                truth=_direction(where, fields["answer"], row["answer"], words), bin=_word(row.get("bin", "")),
                pictures=lambda files=files: {place: _read(path) for place, path in files.items()},
            ),
        )  # fmt: skip


def _named(where: str, entry: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry holds under the names that the settings give; a name with dots leads into lists and objects."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: must be a JSON object; got {type(entry).__name__}.")
    found, missing = {}, []
    for key in ("task", "pictures", "answer", "bin", "source"):
        name = fields[key]
        if name is None and key in ("bin", "source"):
            continue
        value: Any = entry
        parts: list[Any] = [name] if name in entry else str(name).split(".")
        try:
            for part in parts:
                value = value[int(part)] if isinstance(value, list) else value[part]
        except (LookupError, ValueError, TypeError):
            missing.append(key)
        else:
            found[key] = value
    if missing:
        lacking = ", ".join(f"{fields[key]}" for key in missing)
        override = " ".join(f"fields.{key}=NAME" for key in missing)
        unknown = "; bin and source may be null, where the file has none" if {"bin", "source"} & {*missing} else ""
        raise UserError(
            f"{where}: must have {lacking}; it has {', '.join(entry)}. Say which fields hold them: {override}{unknown}."
        )
    return found


def _direction(where: str, name: str, answer: Any, words: Sequence[str] | None) -> float:
    """Above 0 where the answer says that AFTER is further."""
    if words is not None:
        if answer not in words:
            raise UserError(
                f"{where}: {name} must be {' or '.join(map(repr, words))} (fields.words); got {answer!r:.40}."
            )
        return 1.0 if answer == words[0] else -1.0
    try:
        value = parse_score(answer)[0] if isinstance(answer, str) else answer
    except ValueError:
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value or not math.isfinite(value):
        raise UserError(
            f"{where}: {name} must be a number or a text with a score, above 0 where AFTER is further and below 0 "
            f"where BEFORE is; got {answer!r:.40}. If it is a word: fields.words=[AFTER'S,BEFORE'S]."
        )
    return float(value)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _picture(where: str, root: Path, name: str) -> Path:
    """Of a path from the root or from its `images/`."""
    paths = [inside(where, base, name) for base in (root, root / "images")]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise UserError(f"{where}: {paths[0]} must be a picture; it is not there, nor in images/.")
    return found


def _read(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return rgb(image)
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}).") from error


def _three(files: Mapping[str, Path]) -> Callable[[], np.ndarray]:
    """Start, BEFORE and AFTER of the outside camera, all of BEFORE's size: a start may be of another episode."""

    def read() -> np.ndarray:
        shown = [_read(files[place]) for place in ("start", "before", "after")]
        height, width = shown[1].shape[:2]
        return np.stack([
            each if each.shape[:2] == (height, width) else np.asarray(Image.fromarray(each).resize((width, height)))
            for each in shown
        ])  # fmt: skip

    return read
