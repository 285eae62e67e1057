"""One holder of a file at a time: flock where the system has it, a locked byte on Windows."""

from __future__ import annotations

import importlib
from typing import Any

try:
    _fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # Windows
    _fcntl = None


def hold(file: Any) -> None:
    """Take an open file's lock, or say at once that somebody else has it; closing the file, or a kill, lets it go.

    Args:
        file: an open file, or its number.

    Raises:
        BlockingIOError: another process has it, or another opening of the file in this one.
    """
    number = file if isinstance(file, int) else file.fileno()
    if _fcntl is not None:
        _fcntl.flock(number, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        return
    msvcrt = importlib.import_module("msvcrt")
    try:
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        raise BlockingIOError(error.errno, "another holds the lock") from error
