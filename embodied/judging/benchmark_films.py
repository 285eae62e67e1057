"""What a public benchmark holds: films or pairs of moments, and texts by others that must be of their kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from embodied.errors import UserError

BEFORE, AFTER = (("before", "before_left", "before_right"), ("after", "after_left", "after_right"))
PLACES = ("start", "end", *BEFORE, *AFTER)  # of a pair's pictures: the outside camera, then the wrists'


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two moments of one task, and which of them is further.

    Attributes:
        truth: above 0 where AFTER is, below 0 where BEFORE is.
        bin: how far apart they are, in the benchmark's word; "" where nobody says.
        pictures: reads the pictures of `PLACES`, (H, W, 3) uint8 each.
    """

    truth: float
    bin: str
    pictures: Callable[[], Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class BenchmarkFilm:
    """One episode of a benchmark.

    Attributes:
        task: its instruction.
        source: which of the benchmark's datasets it is of.
        frames: reads its (T, H, W, 3) uint8 frames.
        success: whether it ended well; None where nobody says.
        quality: higher is better; None where nobody says.
        level: 1 to 5, where a person gave one.
        pair: what is asked of its frames, start, BEFORE and AFTER, where it is a pair of moments.
    """

    task: str
    source: str
    frames: Callable[[], np.ndarray]
    success: bool | None = None
    quality: float | None = None
    level: int | None = None
    pair: Pair | None = None


def text(where: str, name: str, row: Mapping[str, Any]) -> str:
    """A text that others wrote.

    Args:
        where: it stands, for errors.
        name: of the field.
        row: what holds it.

    Raises:
        UserError: it is no text, or an empty one.
    """
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {name} must be a text; got {value!r:.40}.")
    return value


def inside(where: str, root: Path, name: str) -> Path:
    """A path that others wrote, below a folder.

    Args:
        where: it stands, for errors.
        root: the folder.
        name: the path.

    Raises:
        UserError: it leads out of the folder.
    """
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\0" in name:
        raise UserError(f"{where}: paths must stay inside the folder; got {name[:200]!r}.")
    return root / pure
