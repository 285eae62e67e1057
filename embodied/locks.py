"""One holder of a file at a time: flock where the system has it, a locked byte on Windows."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from embodied.errors import BusyError

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


@contextmanager
def alone(place: Path, setting: str) -> Iterator[None]:
    """Be the one process that writes a file or folder: a lock lies beside it as long as the block lasts.

    Args:
        place: need not be there, nor its folder, which is made.
        setting: what errors call it.

    Raises:
        BusyError: another process is at work on it.
    """
    file = place.with_name(f".{place.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    with only(file, f"{setting}: another process is at work on {place}. Wait for it, or choose another."):
        yield


@contextmanager
def only(file: Path, busy: str) -> Iterator[None]:
    """Hold the lock of a file that is made for it and gone afterwards.

    Args:
        file: in a folder that is there.
        busy: the error where another process holds it.

    Raises:
        BusyError: so.
    """
    with file.open("a") as lock:
        try:
            hold(lock)
            if not file.exists() or not os.path.samestat(file.stat(), os.fstat(lock.fileno())):
                raise BlockingIOError  # its last holder has just removed it
        except BlockingIOError as error:
            raise BusyError(busy) from error
        except OSError:  # a file system without locks: as if there were no other
            print(f"{file.parent} lies where files cannot be locked: let no other process work there.", file=sys.stderr)
        try:
            yield
        finally:
            with suppress(PermissionError):  # Windows removes no open file
                file.unlink(missing_ok=True)
