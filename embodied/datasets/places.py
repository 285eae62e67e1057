"""Where a dataset's episodes lie, as its meta data say; everything in them is checked before anybody relies on it.

What is read here was written by others: a number may be missing, huge or no number, a path may lead out of the folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, overload

import numpy as np

from embodied.datasets import layout
from embodied.errors import UserError

MAX_ROWS = 10**9  # of an episode: a year at 30 a second
MAX_S = 1e8  # of a film
MAX_FPS = 1e5
AT_ONCE = 1024  # rows of meta/episodes that are Python's objects at a time
MAX_WIDTH = 10**8  # numbers in a row of one feature


class Clip(NamedTuple):
    """An episode's part of a film.

    Attributes:
        file: of the film.
        start_s: second at which the episode begins in it.
        end_s: and ends; None where the dataset does not say.
    """

    file: Path
    start_s: float
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """Where an episode lies.

    Attributes:
        index: its number in the files (`episode_index`).
        length: T.
        tasks: its texts, in no order that means anything.
        data: the parquet file.
        videos: image key -> its film; a camera that it has no film of is left out.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    videos: Mapping[str, Clip] = field(default_factory=dict)


class Spans(Sequence[Span]):
    """Spans, kept as columns: as Python's objects, those of many episodes take ten times the room.

    Args:
        spans: in any order; they are kept by their numbers.
        films: image keys of their films.
    """

    def __init__(self, spans: Iterable[Span], films: Sequence[str]) -> None:
        self._films = films
        self._tasks: dict[tuple[str, ...], int] = {}  # episodes share texts and files
        self._files: dict[Path, int] = {}
        kind = [("index", "i8"), ("length", "i8"), ("tasks", "i4"), ("data", "i4")]
        kind += [(f"{part}{k}", code) for k in range(len(films)) for part, code in (("file", "i4"), ("s", "2f8"))]
        rows = np.fromiter(map(self._row, spans), np.dtype(kind))
        self._rows = rows[np.argsort(rows["index"], kind="stable")]
        self._named = list(self._tasks), list(self._files)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, i: int) -> Span: ...

    @overload
    def __getitem__(self, i: slice) -> list[Span]: ...

    def __getitem__(self, i: int | slice) -> Span | list[Span]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        index, length, task, data, *clips = self._rows[i].item()
        tasks, files = self._named
        videos = {
            key: Clip(files[file], float(start), None if math.isnan(end) else float(end))
            for key, file, (start, end) in zip(self._films, clips[::2], clips[1::2], strict=True)
            if file >= 0
        }
        return Span(index, length, tasks[task], files[data], videos)

    @property
    def indices(self) -> np.ndarray:
        """(N,) their numbers, ascending."""
        return self._rows["index"]

    def with_rows(self) -> Spans:
        """Those of at least one row."""
        found = copy(self)
        found._rows = self._rows[self._rows["length"] > 0]
        return found

    def _row(self, span: Span) -> tuple[Any, ...]:
        clips = []
        for key in self._films:
            clip = span.videos.get(key)
            end = math.nan if clip is None or clip.end_s is None else clip.end_s
            clips += [-1 if clip is None else self._number(clip.file), (0.0 if clip is None else clip.start_s, end)]
        task = self._tasks.setdefault(span.tasks, len(self._tasks))
        return (span.index, span.length, task, self._number(span.data), *clips)

    def _number(self, file: Path) -> int:
        return self._files.setdefault(file, len(self._files))


# info.json ----------------------------------------------------------------------------------------------


def check_info(file: Path, info: Any) -> dict[str, Any]:
    """info.json, where it can be relied on.

    Raises:
        UserError: no object, another version, or an entry that is missing or cannot be.
    """
    version = str(info.get("codebase_version", "")) if isinstance(info, dict) else ""
    if not version.startswith(("v3.", "v2.")):
        raise UserError(f"{file}: codebase_version must be v2.x or v3.x; got {version[:20] or 'none'!r}.")
    if missing := [key for key in ("fps", "features", "data_path") if key not in info]:
        raise UserError(f"{file}: {', '.join(missing)} must be there. The file is not LeRobot's, or damaged.")
    fps = info["fps"]
    if not _is_number(fps) or not 0 < fps <= MAX_FPS:
        raise UserError(f"{file}: fps must be a number above 0; got {fps!r}. The file is damaged.")
    features = info["features"]
    if not isinstance(features, dict) or not features:
        raise UserError(f"{file}: features must be an object, name -> feature; got {_shown(features)}.")
    for name, feature in features.items():
        _check_feature(f"{file}: features.{name[:80]}", feature)
    chunk = info.get("chunks_size", layout.CHUNK)
    if not _is_whole(chunk) or not 1 <= chunk <= MAX_ROWS:
        raise UserError(f"{file}: chunks_size must be a whole number from 1; got {chunk!r}.")
    return info


def _check_feature(where: str, feature: Any) -> None:
    if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
        raise UserError(f"{where} must be an object with a dtype and a shape; got {_shown(feature)}.")
    shape: Any = feature.get("shape")
    whole = isinstance(shape, list) and all(_is_whole(size) and 0 <= size <= MAX_WIDTH for size in shape)
    if not whole or len(shape) > 8 or math.prod(shape) > MAX_WIDTH:
        raise UserError(f"{where}.shape must be a list of sizes, {MAX_WIDTH} in all at most; got {_shown(shape)}.")
    if feature["dtype"] in layout.IMAGES and (len(shape) not in (2, 3) or not math.prod(shape)):
        raise UserError(f"{where}.shape must be that of an image, [H, W, channels]; got {shape}.")
    if not isinstance(feature.get("names"), list | dict | None):
        raise UserError(f"{where}.names must be a list, an object or null; got {_shown(feature['names'])}.")
    for about in ("info", "video_info"):
        if not isinstance(feature.get(about), dict | None):
            raise UserError(f"{where}.{about} must be an object or null; got {_shown(feature[about])}.")


def check_own(file: Path, own: Any, spans: Iterable[Span]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`embodied.json`: the world's config, and what is noted of each episode, by its number as text."""
    env, episodes = (own.get("env") or {}, own.get("episodes") or {}) if isinstance(own, dict) else (None, None)
    if not isinstance(env, dict) or not isinstance(episodes, dict) or not isinstance(env.get("id"), str | None):
        raise UserError(f"{file}: must be an object with env and episodes; got {_shown(own)}. The file is damaged.")
    made = own.get(layout.MADE) or {}
    if not isinstance(made, dict) or not all(
        isinstance(value, str) if key == "policy" else _is_number(value) for key, value in made.items()
    ):
        raise UserError(
            f"{file}: {layout.MADE} must be an object of numbers and a policy; got {_shown(made)}. The file is damaged."
        )
    for span in spans if episodes else ():
        note = episodes.get(str(span.index), {})
        steps = note.get("steps", []) if isinstance(note, dict) else None
        if not isinstance(steps, list) or not all(_is_whole(row) and 0 <= row < span.length for row in steps):
            raise UserError(
                f"{file}: episodes.{span.index} must be an object whose steps are rows; got {_shown(note)}."
            )
    return env, episodes


# Episodes -----------------------------------------------------------------------------------------------


class EpisodePlaces:
    """The episodes that the meta data name, in the order of their numbers.

    Args:
        root: the dataset's folder.
        info: its info.json, checked.
    """

    def __init__(self, root: Path, info: Mapping[str, Any]) -> None:
        self.root, self._info = root, info
        self._paths: dict[str, Path] = {}  # episodes share files
        self._films = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]

    def spans(self) -> Spans:
        """Every episode. Some may be missing where someone took them out; none is there twice.

        Raises:
            UserError: a file that is missing or damaged, by the episode.
        """
        new = self._info["codebase_version"].startswith("v3")
        file = self.root / "meta" / (layout.EPISODES if new else "episodes.jsonl")
        rows, read = (self._rows_v3(file), self._span_v3) if new else (self._rows_v2(file), self._span_v2)
        spans = Spans((read(where, row) for where, row in rows), self._films)
        numbers, told = spans.indices, self._info.get("total_episodes")
        if len(twice := numbers[1:][np.diff(numbers) == 0]):
            raise UserError(f"{file}: episode_index must be another for each episode; got {twice[0]} twice.")
        if new and len(spans) and numbers[-1] >= len(spans) and (not _is_whole(told) or told != len(spans)):
            raise UserError(f"{file}: must hold episodes 0 to {numbers[-1]}; some are missing.")
        return spans

    def below(self, path: str) -> Path:
        """A path of the dataset's own; it must not lead out of the folder."""
        pure = PurePosixPath(path)
        bad = pure.is_absolute() or ".." in pure.parts or "\0" in path or any(len(part) > 200 for part in pure.parts)
        if bad:
            raise UserError(f"{self.root}: paths must stay inside the dataset; got {path[:200]!r}.")
        return self.root / pure

    # Inside ---------------------------------------------------------------------------------------------

    def _path(self, template: str, **values: Any) -> Path:
        text = self._info.get(template)
        where = f"{self.root}/meta/info.json: {template}"
        if not isinstance(text, str):
            raise UserError(f"{where} must be a path template; got {_shown(text)}.")

        def value(found: re.Match[str]) -> str:
            name, width = found[1], int(found[2] or 0)
            if name not in values:
                raise UserError(f"{where} must be a path template of {', '.join(values)}; got {text[:200]!r}.")
            return str(values[name]).zfill(width) if found[2] else str(values[name])

        filled = re.sub(r"\{(\w+)(?::0?(\d{1,2})d)?\}", value, text)
        if "{" in filled.replace(str(values.get("video_key", "")), ""):
            raise UserError(f"{where} must be a path template of {', '.join(values)}; got {text[:200]!r}.")
        if filled not in self._paths:
            self._paths[filled] = self.below(filled)
        return self._paths[filled]

    def _rows_v3(self, folder: Path) -> Iterable[tuple[str, dict[str, Any]]]:
        files = sorted(folder.glob("*/*.parquet"))
        if not files:
            raise UserError(f"{folder}: must hold the episodes' parquet files; there are none.")
        for file in files:
            table, number = layout.read_parquet(file, "episodes", without="stats/"), 0
            for start in range(0, len(table), AT_ONCE):
                for row in layout.python(table.slice(start, AT_ONCE), file):
                    yield f"{file} (row {number})", row
                    number += 1

    def _rows_v2(self, file: Path) -> Iterable[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(layout.read_lines(file)):
            yield f"{file}: line {number + 1} (episode {number})", row

    def _span_v3(self, where: str, row: Mapping[str, Any]) -> Span:
        index, length, tasks = _episode(where, row)
        videos = {}
        for key in self._films:
            prefix = f"videos/{key}"
            place = [row.get(f"{prefix}/{name}") for name in ("chunk_index", "file_index", "from_timestamp")]
            if None in place:
                if f"{prefix}/file_index" not in row:
                    raise UserError(f"{where}: column {prefix}/file_index is missing.")
                continue  # this camera saw nothing of it
            chunk, number = (_number(where, f"{prefix}/{n}", row) for n in ("chunk_index", "file_index"))
            start = _seconds(where, f"{prefix}/from_timestamp", row)
            end = _seconds(where, f"{prefix}/to_timestamp", row, start) if row.get(f"{prefix}/to_timestamp") else None
            videos[key] = Clip(
                self._path("video_path", video_key=key, chunk_index=chunk, file_index=number), start, end
            )
        chunk, number = (_number(where, f"data/{name}", row) for name in ("chunk_index", "file_index"))
        return Span(index, length, tasks, self._path("data_path", chunk_index=chunk, file_index=number), videos)

    def _span_v2(self, where: str, row: Mapping[str, Any]) -> Span:
        index, length, tasks = _episode(where, row)
        place = {"episode_chunk": index // self._info.get("chunks_size", layout.CHUNK), "episode_index": index}
        videos = {key: Clip(self._path("video_path", video_key=key, **place), 0.0) for key in self._films}
        return Span(index, length, tasks, self._path("data_path", **place), videos)


def _episode(where: str, row: Mapping[str, Any]) -> tuple[int, int, tuple[str, ...]]:
    """Its number, its length and its texts."""
    index, length = _number(where, "episode_index", row), _number(where, "length", row)
    tasks = row.get("tasks")
    tasks = [] if tasks is None else [tasks] if isinstance(tasks, str) else tasks
    if not isinstance(tasks, list) or not all(isinstance(text, str | None) for text in tasks):
        raise UserError(f"{where}: tasks must be a list of texts; got {_shown(tasks)}.")
    return index, length, tuple(text for text in tasks if text)


def _number(where: str, name: str, row: Mapping[str, Any]) -> int:
    if name not in row:
        raise UserError(f"{where}: column {name} is missing.")
    value = row[name]
    if isinstance(value, float) and value.is_integer():  # what pandas makes of whole numbers beside a null
        value = int(value)
    if not _is_whole(value) or not 0 <= value <= MAX_ROWS:
        raise UserError(f"{where}: {name} must be a whole number from 0 to {MAX_ROWS}; got {_shown(value)}.")
    return int(value)


def _seconds(where: str, name: str, row: Mapping[str, Any], least: float = 0.0) -> float:
    value: Any = row.get(name)
    if not _is_number(value) or not least - 1e-3 <= value <= MAX_S:
        raise UserError(f"{where}: {name} must be seconds from {least:g} to {MAX_S:g}; got {_shown(value)}.")
    return max(float(value), 0.0)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} of many levels"
    return text if len(text) <= 80 else f"{text[:80]}…"
