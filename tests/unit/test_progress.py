"""A bar moves for a person, and leaves few lines in a log."""

import ast
import io
from pathlib import Path

import pytest

from rewards import progress
from rewards.progress import tqdm

ROOT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drawn(stream, count=20_000, **how):
    with tqdm(total=count, desc="training", unit="step", file=stream, mininterval=0, **how) as bar:
        for i in range(count // 10):
            bar.update(10)
            bar.set_postfix_str(f"reward {i}")
    return stream.getvalue()


def test_in_a_log_a_bar_is_one_line_at_its_end():
    log = drawn(io.StringIO())
    assert log.count("\n") == 1
    assert "\r" not in log
    assert log.startswith("training: 100%|")
    assert "20000/20000" in log
    assert len(log) < 150
    assert drawn(io.StringIO(), leave=False) == ""
    assert len(drawn(Terminal(), count=200)) > 1000  # where a person looks it moves


def test_in_a_log_a_long_bar_tells_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    log = io.StringIO()
    bar = tqdm(total=100, desc="training", file=log, mininterval=0)
    for _ in range(100):
        now[0] += 3.0  # seconds: 300 in all
        bar.update(1)
    bar.close()
    lines = log.getvalue().splitlines()
    assert [line.split("|")[0].strip() for line in lines] == [
        "training:  20%", "training:  40%", "training:  60%", "training:  80%", "training: 100%", "training: 100%",
    ]  # fmt: skip


def test_an_iterated_bar_that_breaks_off_tells_where():
    log = io.StringIO()

    def break_off():
        for i in tqdm(range(5), file=log, mininterval=0):
            assert i < 3

    with pytest.raises(AssertionError):
        break_off()
    assert log.getvalue().count("\n") == 1
    assert "3/5" in log.getvalue()


def test_no_bar_is_made_elsewhere():
    """One place decides how a bar is shown: whoever takes tqdm itself fills logs again."""
    for room in ("embodied", "rewards", "policies", "benchmarks"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                theirs = [name for name in names if name.split(".")[0] == "tqdm"]
                assert not theirs or path == ROOT / "rewards" / "progress.py", path
