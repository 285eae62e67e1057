"""A lock has one holder, on every system that has one of the two ways to take it."""

from __future__ import annotations

import ast
import subprocess
import sys
import types
from pathlib import Path

import pytest

from embodied import locks

ROOT = Path(__file__).resolve().parents[2]


def test_one_holder_at_a_time(tmp_path):
    file = tmp_path / "lock"
    with file.open("w") as first, file.open("w") as second:
        locks.hold(first)
        with pytest.raises(BlockingIOError):
            locks.hold(second)
        other = f"from embodied import locks; locks.hold(open({str(file)!r}))"
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, cwd=ROOT)
        assert "BlockingIOError" in done.stderr
        first.close()
        locks.hold(second.fileno())


def test_where_there_is_no_flock_a_byte_is_locked(tmp_path, monkeypatch):
    taken: set[int] = set()

    def locking(number: int, mode: int, count: int) -> None:
        if (mode, count) != (2, 1) or taken:
            raise PermissionError(13, "Permission denied")  # as Windows says it
        taken.add(number)

    monkeypatch.setattr(locks, "_fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    with (tmp_path / "lock").open("w") as file:
        locks.hold(file)
        assert taken == {file.fileno()}
        with pytest.raises(BlockingIOError, match="another holds the lock"):
            locks.hold(file)


def test_nobody_else_asks_the_system_itself():
    """An import of fcntl would keep Windows from whatever imports that module."""
    asking = set()
    for file in (file for room in ("embodied", "rewards", "policies") for file in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            if {"fcntl", "msvcrt"} & set(names):
                asking.add(str(file.relative_to(ROOT)))
    assert asking == set()
