"""Files that stay readable when a disk fills up or a process is killed."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_all(file: io.RawIOBase, data: bytes | memoryview) -> None:
    """All of the data, where one call may write less of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; one that a kill left unfinished, or a power cut as zeros, ends them."""
    with path.open("rb") as file:
        for each in file:
            try:
                found = json.loads(each)
            except ValueError:
                return
            if not each.endswith(b"\n") or not isinstance(found, dict):
                return
            yield found


class Appended:
    """A file that only grows, by whole pieces: a piece is in the file, or none of it is.

    Nothing is held back in memory, so a killed process loses no piece that was written.

    Args:
        path: made anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb", buffering=0)
        self.size = 0

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Append a piece.

        Raises:
            OSError: it does not fit (a full disk, a quota); the file ends where it did before.
        """
        view = memoryview(piece).cast("B")
        try:
            write_all(self._file, view)
        except OSError:
            with contextlib.suppress(OSError):  # a device has no end; the first error is the one to tell
                self._file.truncate(self.size)
                self._file.seek(self.size)
            raise
        self.size += len(view)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Appended:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
