"""The rows of a dataset's episodes: columns as arrays of the declared kind, with nothing missing, and whose they are.

T: frames of an episode.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embodied.datasets import layout
from embodied.datasets.places import Span
from embodied.errors import UserError, nearest

FILES_KEPT = 8  # data files whose counters are kept: v3 has few of them, v2 one an episode
COUNTED = ("timestamp", "task_index")


class Rows:
    """Reads the data files.

    Args:
        root: of the dataset, for texts.
        features: as info.json declares them.
    """

    def __init__(self, root: Path, features: Mapping[str, Mapping[str, Any]]) -> None:
        self._root, self._features = root, features
        self._kept: OrderedDict[Path, pa.Table] = OrderedDict()

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
        if set(wanted) <= {*COUNTED, "frame_index"}:
            counters = self._counters(span, about)
            table = counters.filter(pc.field("episode_index") == span.index)
        else:
            table = layout.read_parquet(span.data, about, columns=wanted, filters=[("episode_index", "=", span.index)])
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

    def _counters(self, span: Span, about: str) -> pa.Table:
        """The small columns of a whole data file, read once."""
        if span.data in self._kept:
            self._kept.move_to_end(span.data)
            return self._kept[span.data]
        names = ["episode_index", "frame_index", *(name for name in COUNTED if name in self._features)]
        table = layout.read_parquet(span.data, about, columns=names)
        if missing := [name for name in names[:2] if name not in table.column_names]:
            raise UserError(f"{span.data} ({about}): column {missing[0]} is missing, which info.json declares.")
        self._kept[span.data] = table
        while len(self._kept) > FILES_KEPT:
            self._kept.popitem(last=False)
        return table

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
