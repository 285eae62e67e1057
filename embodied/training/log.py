"""progress.csv and TensorBoard events of a run, under the names that stable-baselines3 and LeRobot gave them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from embodied.files import write_text
from embodied.runs import parsed

STEPS = "time/total_timesteps"


class RunLog:
    """Figures by name; a row each time it is told to write one.

    Args:
        folder: the run's.
        steps: of the checkpoint that a resumed run goes on from: later rows, and later lines of evaluations.jsonl, are
            dropped; None for a new run.
    """

    def __init__(self, folder: Path, *, steps: int | None = None) -> None:
        self._file = folder / "progress.csv"
        self._rows: list[dict[str, Any]] = []
        if steps is not None and self._file.is_file():
            with self._file.open(newline="", encoding="utf-8") as stream:
                self._rows = [row for row in csv.DictReader(stream) if _until(row.get(STEPS), steps)]
        evaluations = folder / "evaluations.jsonl"
        if steps is not None and evaluations.is_file():
            lines = evaluations.read_text("utf-8").splitlines()
            kept = [line for line in lines if _until((parsed(line) or {}).get("steps"), steps)]
            write_text(evaluations, "".join(f"{line}\n" for line in kept))
        self._keys = list(dict.fromkeys(key for row in self._rows for key in row))
        if self._rows:
            self._write_all()
        self._events = SummaryWriter(str(folder))
        self._last: dict[str, float] = {}
        self._means: dict[str, list[float]] = {}  # sum and count

    def record(self, figures: Mapping[str, float]) -> None:
        """Set figures of the next row."""
        self._last |= {name: float(value) for name, value in figures.items()}

    def record_mean(self, name: str, value: float) -> None:
        """Add to a figure that is the mean of all values since the last row."""
        total, count = self._means.get(name, (0.0, 0.0))
        self._means[name] = [total + float(value), count + 1]

    def write(self, steps: int) -> None:
        """Write the next row."""
        row: dict[str, Any] = self._last | {name: total / count for name, (total, count) in self._means.items()}
        row[STEPS] = steps
        self._last, self._means = {}, {}
        self._rows.append(row)
        for name, value in row.items():
            self._events.add_scalar(name, value, steps)
        self._events.flush()
        new = [name for name in sorted(row) if name not in self._keys]
        if new or len(self._rows) == 1:  # another header: the whole file again
            self._keys += new
            self._write_all()
        else:
            with self._file.open("a", encoding="utf-8", newline="") as stream:
                stream.write(self._text([row]))

    def _write_all(self) -> None:
        write_text(self._file, self._text([dict(zip(self._keys, self._keys, strict=True)), *self._rows]))

    def _text(self, rows: list[dict[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._keys, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue()

    def state(self) -> dict[str, Any]:
        """What the next row has so far, as JSON."""
        return {"last": self._last, "means": self._means}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        self._last, self._means = state["last"], state["means"]

    def close(self) -> None:
        """End the events; the rows are written."""
        self._events.close()


def _until(value: Any, steps: int) -> bool:
    """Whether a row's steps are there, and not beyond."""
    try:
        return float(value) <= steps
    except (TypeError, ValueError):  # half a row, of a kill or a full disk
        return False
