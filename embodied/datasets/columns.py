"""A copy of a dataset with more columns, or with others in place of some: rows and meta data again, films as they are.

T: rows of an episode.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embodied.datasets import copying, layout
from embodied.datasets.reader import Dataset

Values = Callable[[int], Mapping[str, np.ndarray]]
OLD_STATS = "episodes_stats.jsonl"  # of each episode, in v2.1


def with_columns(
    dataset: Dataset, part: Path, features: Mapping[str, Mapping[str, Any]], values: Values, notes: Mapping[str, Any]
) -> None:
    """Write the copy; whoever calls it moves it to its place.

    Args:
        dataset: v3 or v2; it stays as it is.
        part: the new folder; where there is one already, it is removed.
        features: name -> entry of `info.json`, float32; one that is there already is written anew.
        values: position of an episode -> its columns, (T, *shape), (T,) for shape [1].
        notes: more entries of `embodied.json`; of an entry that is a mapping here and there, both are kept.

    Raises:
        UserError: it cannot be copied; `part` is gone then.
    """
    shutil.rmtree(part, ignore_errors=True)
    place = {span.index: i for i, span in enumerate(dataset.spans)}
    copying.copy(dataset.root, part, lambda source, target: _rows(source, target, features, values, place))
    try:
        meta = part / "meta"
        info = layout.read_json(meta / layout.INFO)
        info["features"] |= {name: dict(feature) for name, feature in features.items()}
        _write(meta / layout.INFO, info)
        own = meta / layout.OWN
        told: dict[str, Any] = layout.read_json(own) if own.is_file() else {}
        for key, value in notes.items():
            both = isinstance(value, Mapping) and isinstance(told.get(key), Mapping)
            told[key] = {**told[key], **value} if both else value
        _write(own, told)
        _statistics(dataset, part, features, values)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _statistics(dataset: Dataset, part: Path, features: Mapping[str, Any], values: Values) -> None:
    """Those of the new columns: of each episode where each has its own, and of all."""
    place = {span.index: i for i, span in enumerate(dataset.spans)}
    held: dict[str, dict[str, np.ndarray]] = {}  # (N, *shape) each, for as Python's objects they take much more room
    for i in range(len(dataset)):
        found = values(i)
        for name in features:
            for statistic, value in layout.statistics(found[name]).items():
                numbers = np.asarray(value)
                of = held.setdefault(name, {})
                if statistic not in of:
                    of[statistic] = np.empty((len(dataset), *numbers.shape), numbers.dtype)
                of[statistic][i] = numbers
    meta = part / "meta"
    if (meta / layout.STATS).is_file():
        pooled = {name: layout.pool(of) for name, of in held.items()}
        _write(meta / layout.STATS, layout.read_json(meta / layout.STATS) | pooled)
    if (meta / OLD_STATS).is_file():
        lines = layout.read_lines(meta / OLD_STATS)
        for line in lines:
            i = place.get(line.get("episode_index", -1))
            new = {} if i is None else {name: {s: of[i].tolist() for s, of in held[name].items()} for name in held}
            line["stats"] = {**(line.get("stats") or {}), **new}
        (meta / OLD_STATS).write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    for file in sorted((meta / layout.EPISODES).glob("*/*.parquet")):
        _episode_statistics(file, held, place)


def _episode_statistics(file: Path, held: Mapping[str, Mapping[str, np.ndarray]], place: Mapping[int, int]) -> None:
    """A file of v3's episodes with the columns `stats/…` of the new features, where it has such of others."""
    table = layout.read_parquet(file, "episodes")
    if not any(name.startswith("stats/") for name in table.column_names):
        return
    indices = layout.python(table["episode_index"], file)
    for feature, stats in held.items():
        for statistic, numbers in stats.items():
            name = f"stats/{feature}/{statistic}"
            found = [numbers[place[index]].tolist() if index in place else None for index in indices]
            kind = pa.list_(pa.int64() if statistic == "count" else pa.float64())
            for _ in range(numbers.ndim - 2):
                kind = pa.list_(kind)
            table = _put(table, name, pa.array(found, kind))
    pq.write_table(table, file, compression="snappy")


def _put(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def _rows(
    source: Path, target: Path, features: Mapping[str, Mapping[str, Any]], values: Values, place: Mapping[int, int]
) -> None:
    """A data file again, row group by row group, its new columns looked up by episode and frame.

    Rows of an episode that the meta data do not name have no value: NaN.
    """
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        # The Hugging Face notes name every column; without them they are read off the file itself.
        notes = {key: value for key, value in (schema.metadata or {}).items() if key != b"huggingface"}
        new = [pa.field(name, layout.arrow_type(feature)) for name, feature in features.items()]
        schema = pa.schema([*(field for field in schema if field.name not in features), *new], metadata=notes)
        with pq.ParquetWriter(target, schema, compression="snappy") as writer:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                found = _looked_up(table, features, values, place)
                kept = [table[name] for name in table.column_names if name not in features]
                made = [pa.chunked_array([layout.arrow_column(found[name], features[name])]) for name in features]
                table = pa.Table.from_arrays([*kept, *made], schema=schema)
                writer.write_table(table, row_group_size=max(len(table), 1))


def _looked_up(
    table: pa.Table, features: Mapping[str, Mapping[str, Any]], values: Values, place: Mapping[int, int]
) -> dict[str, np.ndarray]:
    counters = (pc.cast(table[name], pa.int64()) for name in ("episode_index", "frame_index"))
    episodes, frames = (pc.fill_null(column, -1).to_numpy() for column in counters)
    found = {name: np.full((len(table), *_shape(feature)), np.nan, np.float32) for name, feature in features.items()}
    for index in np.unique(episodes).tolist():
        if index in place:
            rows = np.flatnonzero(episodes == index)
            each = values(place[index])
            for name, column in found.items():
                column[rows] = each[name][frames[rows]]
    return found


def _shape(feature: Mapping[str, Any]) -> Sequence[int]:
    return () if list(feature["shape"]) == [1] else tuple(feature["shape"])


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
