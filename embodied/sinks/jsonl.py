"""One JSON object a line: to standard output, and to `readings.jsonl` with a parquet table made of it at the end."""

from __future__ import annotations

import json
import os
import select
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embodied.sinks.files import Appended, read_lines
from embodied.watching.watched import Watched, line

BATCH = 10_000  # lines that are turned into one row group
CLOSE_S = 1.0  # to wait at the end for a reader of standard output
GROUPS = {  # a mapping in a line -> prefix of its columns and their type
    "frame_index": ("frame_index/", pa.int64()),
    "captured_s": ("captured_s/", pa.float64()),
    "potentials": ("potential/", pa.float64()),
    "normalised": ("normalised/", pa.float64()),
    "latencies_s": ("latency_s/", pa.float64()),
}
PLAIN = {
    "time": pa.float64(), "at_s": pa.float64(), "episode": pa.int64(), "row": pa.int64(), "combined": pa.float64(),
    "reward": pa.float64(), "success": pa.bool_(), "smoothed": pa.float64(), "stale": pa.bool_(),
    "age_s": pa.float64(), "latency_s": pa.float64(), "dropped": pa.int64(), "model_hz": pa.float64(),
    "goal": pa.string(), "event": pa.string(),
}  # fmt: skip


def text(watched: Watched) -> bytes:
    """The line, its end included."""
    return json.dumps(line(watched), ensure_ascii=False, allow_nan=False).encode() + b"\n"


class LinesOut:
    """Lines to a descriptor, such as standard output.

    Args:
        descriptor: not closed here.
        live: never waits; a line for which a slow reader leaves no room is left out whole, and counted. Else waits.
    """

    name = "standard output"

    def __init__(self, descriptor: int, *, live: bool) -> None:
        self.skipped = 0
        self._descriptor, self._live, self._rest = descriptor, live, b""
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, watched: Watched) -> None:
        wait_ms = 0 if self._live else None
        self._send(wait_ms)
        if self._rest:
            self.skipped += 1
            return
        self._rest = text(watched)
        self._send(wait_ms)

    def close(self) -> None:
        """Finish the line that was begun, if its reader still reads."""
        until = time.monotonic() + CLOSE_S
        while self._rest and (left := until - time.monotonic()) > 0:
            self._send(int(left * 1000) + 1)

    def _send(self, wait_ms: int | None) -> None:
        """As much of the rest as the reader takes: a pipe that can be written to takes PIPE_BUF bytes at once."""
        while self._rest and self._poll.poll(wait_ms):
            sent = os.write(self._descriptor, self._rest[: select.PIPE_BUF])
            self._rest = self._rest[sent:]


class ReadingsFile:
    """Lines to a file, and at the end the same as a parquet table beside it.

    Args:
        path: `….jsonl`, made anew.
        parquet: whether to make `….parquet` on closing.
    """

    def __init__(self, path: Path, *, parquet: bool) -> None:
        self.name = path.name
        self._file, self._parquet, self._closed = Appended(path), parquet, False

    def write(self, watched: Watched) -> None:
        self._file.write(text(watched))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._file.close()
            if self._parquet:
                make_parquet(self._file.path)


def make_parquet(path: Path) -> Path:
    """`….parquet` from `….jsonl`, one row a line: the plain values, and a column for each view, head and stage.

    Raises:
        OSError: it cannot be written; then there is none, and the lines are as they were.
    """
    found: dict[str, set[str]] = {group: set() for group in GROUPS}
    for each in read_lines(path):
        for group, names in found.items():
            names.update(each[group])
    columns = [pa.field(name, kind) for name, kind in PLAIN.items()]
    columns += [
        pa.field(prefix + name, kind) for group, (prefix, kind) in GROUPS.items() for name in sorted(found[group])
    ]
    schema = pa.schema(columns)
    out, part = path.with_suffix(".parquet"), path.with_suffix(".parquet.part")
    try:
        with part.open("wb") as file, pq.ParquetWriter(file, schema, compression="snappy") as writer:
            rows: list[dict[str, Any]] = []
            for each in read_lines(path):
                rows.append(_flat(each))
                if len(rows) == BATCH:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, schema))
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return out


def _flat(each: dict[str, Any]) -> dict[str, Any]:
    nested = {prefix + name: value for group, (prefix, _) in GROUPS.items() for name, value in each[group].items()}
    return {name: each[name] for name in PLAIN} | nested
