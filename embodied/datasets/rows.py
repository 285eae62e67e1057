"""The rows of a dataset's episodes: columns as arrays of the declared kind, with nothing missing, and whose they are.

T: frames of an episode.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embodied.datasets import layout
from embodied.datasets.places import Span
from embodied.errors import UserError, nearest

FILES_KEPT = 8  # data files of which is kept where their episodes lie: v3 has few of them, v2 one an episode
HEADS_KEPT = 2  # of them, whose heads are kept too: with a row group an episode they are large
COUNTED = ("timestamp", "task_index")


@dataclass(frozen=True)
class _Contents:
    """What is kept of a data file.

    Attributes:
        counters: its small columns, whole.
        places: (3, N), of episodes whose rows lie together: its number, ascending, its first row and how many.
        groups: (G + 1,) first row of each row group, and the number of all rows.
    """

    counters: pa.Table
    places: np.ndarray
    groups: np.ndarray

    def place(self, index: int) -> tuple[int, int] | None:
        """An episode's first row and their number; None where they do not lie together."""
        k = int(np.searchsorted(self.places[0], index))
        there = k < self.places.shape[1] and self.places[0, k] == index
        return (int(self.places[1, k]), int(self.places[2, k])) if there else None


class Rows:
    """Reads the data files.

    Args:
        root: of the dataset, for texts.
        features: as info.json declares them.
    """

    def __init__(self, root: Path, features: Mapping[str, Mapping[str, Any]]) -> None:
        self._root, self._features = root, features
        self._kept: OrderedDict[tuple[Path, int, int], _Contents] = OrderedDict()
        self._heads: OrderedDict[tuple[Path, int, int], pq.FileMetaData] = OrderedDict()

    def table(self, span: Span, names: Sequence[str]) -> pa.Table:
        """Columns of one episode, in the order of its frames.

        Raises:
            UserError: no such feature; a file without it, or without exactly the frames of the episode.
        """
        for name in names:
            if name not in self._features:
                raise UserError(f"{self._root}: no feature {name!r}. {nearest(name, self._features)}")
        wanted = list(dict.fromkeys([*names, "frame_index"]))
        about = f"episode {span.index}"
        contents = self._contents(span, about)
        place = contents.place(span.index)
        if set(wanted) <= {*COUNTED, "frame_index"}:
            counters = contents.counters
            table = (
                counters.filter(pc.field("episode_index") == span.index) if place is None else counters.slice(*place)
            )
        elif place is None:
            table = layout.read_parquet(span.data, about, columns=wanted, filters=[("episode_index", "=", span.index)])
        else:
            table = self._slice(span, about, wanted, contents, *place)
        if missing := [name for name in wanted if name not in table.column_names]:
            raise UserError(f"{span.data} ({about}): column {missing[0]} is missing, which info.json declares.")
        if len(table) != span.length:
            raise UserError(f"{span.data} ({about}): must hold frames 0 to {span.length - 1}; got {len(table)} rows.")
        frames = self._array(span, "frame_index", table["frame_index"], np.dtype(np.int64), ())
        order = np.argsort(frames, kind="stable")
        if not np.array_equal(frames[order], np.arange(span.length)):
            raise UserError(f"{span.data} ({about}): must hold frames 0 to {span.length - 1}; some are there twice.")
        if not np.array_equal(order, np.arange(span.length)):
            table = table.take(order)
        return table.select(list(names))

    def columns(self, span: Span, names: Sequence[str], *, nulls: bool = False) -> dict[str, np.ndarray]:
        """Features of one episode: name -> (T, *shape), (T,) for shape [1].

        Args:
            span: of the episode.
            names: of features, numbers or texts.
            nulls: give a column with missing values as floats, NaN where one is missing.

        Raises:
            UserError: as `table`; values of another kind or shape than declared, or missing.
        """
        table = self.table(span, list(dict.fromkeys(names)))
        found: dict[str, np.ndarray] = {}
        for name in table.column_names:
            feature = self._features[name]
            shape = () if list(feature["shape"]) == [1] else tuple(feature["shape"])
            if feature["dtype"] == "string":
                texts = layout.python(table[name], span.data)
                found[name] = np.array(texts, dtype=object if table[name].null_count else None)
                continue
            kind = self._kind(name, str(feature["dtype"]))
            if nulls and table[name].null_count:
                kind = np.dtype(np.float64)
            found[name] = self._array(span, name, table[name], kind, shape, nulls=nulls)
        return found

    def task_indices(self, span: Span) -> np.ndarray | None:
        """(T,) whole numbers, which text each frame has; None where the dataset does not say."""
        if "task_index" not in self._features:
            return None
        return self.columns(span, ["task_index"])["task_index"].reshape(-1)

    # Inside ---------------------------------------------------------------------------------------------

    def _contents(self, span: Span, about: str) -> _Contents:
        """What is kept of a data file, read once as long as it stays as it is."""
        mark = _mark(span.data)
        if mark in self._kept:
            self._kept.move_to_end(mark)
            return self._kept[mark]
        names = ["episode_index", "frame_index", *(name for name in COUNTED if name in self._features)]
        head = self._head(span, about)
        # pyarrow's read_table reads the description again, and with thousands of row groups takes twice its memory more
        with layout.reading(span.data, about), pq.ParquetFile(span.data, metadata=head) as file:
            have = file.schema_arrow.names
            if len(set(have)) != len(have):
                raise ValueError("two columns have one name")
            table = file.read([name for name in names if name in have])
        if missing := [name for name in names[:2] if name not in table.column_names]:
            raise UserError(f"{span.data} ({about}): column {missing[0]} is missing, which info.json declares.")
        sizes = [head.row_group(group).num_rows for group in range(head.num_row_groups)]
        contents = _Contents(table, _places(table["episode_index"]), np.concatenate([[0], np.cumsum(sizes)]))
        self._kept[mark] = contents
        while len(self._kept) > FILES_KEPT:
            self._kept.popitem(last=False)
        return contents

    def _head(self, span: Span, about: str) -> pq.FileMetaData:
        """A data file's own description: with thousands of row groups, reading it takes longer than reading rows."""
        mark = _mark(span.data)
        if mark not in self._heads:
            with layout.reading(span.data, about):
                self._heads[mark] = pq.read_metadata(span.data)
            while len(self._heads) > HEADS_KEPT:
                self._heads.popitem(last=False)
        self._heads.move_to_end(mark)
        return self._heads[mark]

    def _slice(
        self, span: Span, about: str, wanted: list[str], contents: _Contents, first: int, count: int
    ) -> pa.Table:
        """Columns of `count` rows of a data file, from the row groups that they lie in."""
        begin = int(np.searchsorted(contents.groups, first, "right")) - 1
        end = int(np.searchsorted(contents.groups, first + count, "left"))
        with layout.reading(span.data, about), pq.ParquetFile(span.data, metadata=self._head(span, about)) as file:
            table = file.read_row_groups(list(range(begin, end)), columns=wanted)
        return table.slice(first - int(contents.groups[begin]), count)

    def _kind(self, name: str, dtype: str) -> np.dtype:
        try:
            kind = np.dtype(dtype)
        except (TypeError, ValueError):
            kind = np.dtype(object)
        if kind.kind not in "biuf":
            raise UserError(f"{self._root}: {name} must be numbers to be read; info.json says dtype {dtype[:40]!r}.")
        return kind

    def _array(
        self,
        span: Span,
        name: str,
        column: pa.ChunkedArray,
        kind: np.dtype,
        shape: tuple[int, ...],
        *,
        nulls: bool = False,
    ) -> np.ndarray:
        """(T, *shape) of a kind."""
        where = f"{span.data} (episode {span.index}): {name}"
        values, levels = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type), 0
        while pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or _is_fixed(values.type):
            if values.null_count:
                raise UserError(f"{where} must have a value in every frame; {values.null_count} are missing.")
            values, levels = values.flatten(), levels + 1
        if values.null_count and not nulls:
            raise UserError(f"{where} must have a value in every frame; {values.null_count} are missing.")
        try:
            numbers = values.to_numpy(zero_copy_only=False)
            if numbers.dtype == object:  # booleans beside nulls
                numbers = np.array([np.nan if each is None else float(each) for each in values.to_pylist()])
            if numbers.dtype.kind not in "biuf":
                raise TypeError(f"they are {numbers.dtype}")
            numbers = _cast(numbers, kind).reshape(len(column), *shape)
        except (TypeError, ValueError, FloatingPointError, pa.ArrowException) as error:
            expected = f"{kind} of shape {(len(column), *shape)}"
            raise UserError(f"{where} must be {expected}, as info.json says; {error}.") from error
        return numbers


def _mark(file: Path) -> tuple[Path, int, int]:
    """A file as it is now; zeros where it is missing."""
    try:
        state = file.stat()
    except OSError:
        return file, 0, 0
    return file, state.st_size, state.st_mtime_ns


def _places(column: pa.ChunkedArray) -> np.ndarray:
    """What `_Contents` keeps; without episodes whose rows are not together, or where none is told."""
    if not pa.types.is_integer(column.type) or column.null_count or not len(column):
        return np.zeros((3, 0), np.int64)
    episodes = column.to_numpy()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(episodes)) + 1, [len(episodes)]])
    numbers, which, times = np.unique(episodes[starts[:-1]], return_index=True, return_counts=True)
    once = which[times == 1]
    return np.stack([numbers[times == 1], starts[once], np.diff(starts)[once]])


def _cast(numbers: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Numbers as another kind, where that can hold them."""
    if kind.kind in "biu" and numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        raise ValueError("some are no finite numbers")
    with np.errstate(over="raise", invalid="raise"):
        cast = numbers.astype(kind)
    if kind.kind in "iu" and not np.array_equal(cast, numbers):
        raise ValueError("some are no whole numbers of that size")
    return cast


def _is_fixed(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind)
