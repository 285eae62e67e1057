"""Episodes that a `Writer` has staged: what is kept of them in memory, and how they go into shared files and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embodied.datasets import layout
from embodied.datasets.places import AT_ONCE

ABOUT = "episode.json"
GROUP_ROWS = 512  # of a row group at least, but for a file's last


def kept(about: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What is kept in memory of a staged episode; its statistics are large, and read again when it is packed."""
    return {key: about[key] for key in ("length", "instruction", "own")} | {"folder": folder}


def told(
    staged: Sequence[Mapping[str, Any]], rows: Sequence[dict[str, Any]], places: Sequence[dict[str, Any]]
) -> tuple[pa.Table, dict[str, Any]]:
    """Rows of meta/episodes with the staged episodes' statistics, and our own notes, by their numbers as text."""
    tables, notes, schema = [], {}, None
    for start in range(0, len(staged), AT_ONCE):
        whole = []
        for k in range(start, min(start + AT_ONCE, len(staged))):
            about = layout.read_json(staged[k]["folder"] / ABOUT)
            stats = {f"stats/{name}/{s}": v for name, each in about["stats"].items() for s, v in each.items()}
            whole.append(rows[k] | stats | places[k])
            notes[str(rows[k]["episode_index"])] = staged[k]["own"]
        schema = schema or _episodes_schema(whole)
        tables.append(pa.Table.from_pylist(whole, schema))
    return pa.concat_tables(tables), notes


def groups(sizes: Sequence[int], limit: float) -> list[list[int]]:
    """Neighbours together, as many as stay within the limit; at least one."""
    found: list[list[int]] = []
    total = 0.0
    for k, size in enumerate(sizes):
        if not found or total + size > limit:
            found.append([])
            total = 0.0
        found[-1].append(k)
        total += size
    return found


def join_tables(parts: list[Path], path: Path, group: list[int]) -> None:
    """Row groups of whole episodes: a long one, or short ones until they have `GROUP_ROWS`.

    Readers hold the description of every row group, about 5 kB each: with one of each short episode, that would be
    more than the rows.
    """
    held: list[pa.Table] = []
    schema = pq.read_schema(parts[0])
    with pq.ParquetWriter(path, schema, compression="snappy") as writer:
        for k, part in enumerate(parts):
            held.append(layout.read_parquet(part))
            count = sum(map(len, held))
            if count >= GROUP_ROWS or k == len(parts) - 1:
                writer.write_table(pa.concat_tables(held).combine_chunks(), row_group_size=count)
                held.clear()


def _episodes_schema(rows: list[dict[str, Any]]) -> pa.Schema:
    """Types by value, so that a statistic of whole numbers is a float like any other."""

    def kind(name: str, value: Any) -> pa.DataType:
        if isinstance(value, list):
            return pa.list_(kind(name, value[0]))
        if isinstance(value, str):
            return pa.string()
        whole = not name.startswith("stats/") or name.endswith("/count")
        return pa.int64() if whole and isinstance(value, int) else pa.float64()

    return pa.schema([(name, kind(name, value)) for name, value in rows[0].items()])
