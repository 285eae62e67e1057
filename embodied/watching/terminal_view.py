"""What is watched, as text: a block redrawn in place in a terminal, else a line now and then."""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from embodied.cameras.camera import Frame
from embodied.watching.control import LEGEND
from embodied.watching.watched import Watched

REDRAW_S = 0.1  # at most ten times a second
LINE_S = 2.0  # between lines where nothing is redrawn
HISTORY = 240  # moments of a curve
SAID = 4  # messages shown
PICTURE_WIDTH = 44  # cells; each is one pixel wide and two high
SPARKS = "▁▂▃▄▅▆▇█"
CUT, WRAP = "\x1b[?7l", "\x1b[?7h"  # what is too wide goes, wide characters counted, instead of into a line of its own
RED, GREEN, DIM, BOLD, PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[2m", "\x1b[1m", "\x1b[0m"


@runtime_checkable
class Writable(Protocol):
    """A terminal or a file, such as standard error."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...

    def isatty(self) -> bool: ...

    def fileno(self) -> int: ...


class TerminalView:
    """A sink that a person reads.

    Args:
        out: a terminal, redrawn in place, or a file, to which a line is added every `LINE_S` and at each event.
        picture: whether to show the frames too, as coloured blocks; None: where the terminal says it has the colours.
        typed: what is being typed as a new goal; None while nothing is.
        clock: monotonic seconds.
    """

    name = "terminal"

    def __init__(
        self,
        out: Writable,
        *,
        picture: bool | None = None,
        typed: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out, self._typed, self._clock = out, typed, clock
        self._redraws = out.isatty()
        self._picture = os.environ.get("COLORTERM") in ("truecolor", "24bit") if picture is None else picture
        self._history: dict[str, deque[float | None]] = {}
        self._said: deque[str] = deque(maxlen=SAID)
        self._height, self._last_s, self._last_typed = 0, -np.inf, None
        self._watched: Watched | None = None
        self._goal: str | None = None

    def tell(self, text: str) -> None:
        """Show a message; it stays until newer ones push it away."""
        self._said.append(f"{time.strftime('%H:%M:%S')} {printable(text)}")
        if not self._redraws:
            with suppress(OSError):  # a log on a full disk: no word is worth the run, and `write` gives the log up
                self._line(self._said[-1])

    def write(self, watched: Watched) -> None:
        if watched.reading is not None and watched.goal != self._goal:  # its curves would mean something else
            self._history.clear()
            self._goal = watched.goal
        for name, value in watched.normalised.items():
            self._history.setdefault(name, deque(maxlen=HISTORY)).append(value)
        if watched.reading is None:
            for curve in self._history.values():
                curve.append(None)
        self._watched, now, typed = watched, self._clock(), self._typed()
        due = REDRAW_S if self._redraws else LINE_S
        if now - self._last_s < due and typed == self._last_typed:
            return
        self._last_s, self._last_typed = now, typed
        if self._redraws:
            self._draw(watched)
        else:
            self._line(one_line(watched))

    def close(self) -> None:
        """Leave the last state on the screen."""
        watched, self._watched = self._watched, None
        if watched is not None and self._redraws:
            self._draw(watched)

    def _line(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()

    def _draw(self, watched: Watched) -> None:
        """The block over the one drawn last, in one write."""
        columns, rows = _size(self._out)
        lines = self._lines(watched, columns)
        if self._picture and watched.frames:
            lines = [*pictures(watched.frames, columns, rows - len(lines) - 2), *lines]
        lines = lines[: max(rows - 1, 1)]
        up = f"\x1b[{self._height}A" if self._height else ""
        self._out.write(f"{up}\r{CUT}" + "".join(f"{line}\x1b[K\n" for line in lines) + f"\x1b[J{WRAP}")
        self._out.flush()
        self._height = len(lines)

    def _lines(self, watched: Watched, columns: int) -> list[str]:
        """About `columns` cells each at most, colours not counted."""
        reading = watched.reading
        where = f"episode {reading.episode}, row {reading.row}" if reading else "no reading"
        state = f"{RED}STALE for {watched.age_s:.1f} s{PLAIN}  " if watched.stale else ""
        frames = " ".join(f"{n} {f.image.shape[1]}x{f.image.shape[0]}" for n, f in watched.frames.items())
        lines = [f"{state}{BOLD}{_cut(where, 40)}{PLAIN}  {DIM}{_cut(frames, columns - 50)}{PLAIN}"]
        if watched.goal:
            lines.append(_cut(f"goal: {printable(watched.goal)}", columns))
        width = max(columns - 58, 8)
        for name, curve in self._history.items():
            now = watched.normalised.get(name)
            raw = f"{reading.potentials[name]:9.4f}" if reading and name in reading.potentials else "        -"
            bar = "█" * round(20 * (now or 0.0))
            lines.append(f"{_cut(printable(name), 24):24} {raw} {bar:20} {_spark(curve, width)}")
        if reading is not None:
            reward = "-" if reading.reward is None else f"{reading.reward:.4f}"
            success = {True: f"{GREEN}YES{PLAIN}", False: "no", None: "-"}[watched.success]
            smoothed = "" if watched.smoothed is None else f" ({watched.smoothed:.4f})"
            lines.append(f"combined {reading.combined:.4f}  reward {reward}  success {success}{smoothed}")
        lines.append(_cut(_rates(watched), columns))
        lines += [f"{DIM}{_cut(text, columns)}{PLAIN}" for text in self._said]
        typed = self._typed()
        prompt = LEGEND if typed is None else f"new goal: {typed}▏"
        lines.append(_cut(prompt, columns) if typed is None else prompt[-columns:])
        return lines


def _size(out: Writable) -> tuple[int, int]:
    """Columns and rows of the terminal that is drawn on; standard output may be a file or a pipe."""
    try:
        size = os.get_terminal_size(out.fileno())
    except OSError:
        size = shutil.get_terminal_size()
    return size.columns or 80, size.lines or 24


def one_line(watched: Watched) -> str:
    """A moment in one line."""
    reading = watched.reading
    if reading is None:
        told = "STALE" if watched.stale else "no reading"
    else:
        scores = " ".join(f"{printable(name)[:40]}={value:.4f}" for name, value in reading.potentials.items())
        success = {True: " success", False: "", None: ""}[watched.success]
        told = f"episode {reading.episode} row {reading.row} {scores} combined={reading.combined:.4f}{success}"
    return f"{told} | {_rates(watched)}"


def pictures(frames: Mapping[str, Frame], columns: int, rows: int) -> list[str]:
    """The frames side by side as coloured half blocks, at most `rows` lines; none where there is no room."""
    width = min(PICTURE_WIDTH, columns // max(len(frames), 1) - 1)
    if width < 8 or rows < 4:
        return []
    made = []
    for frame in frames.values():
        height = min(round(width * frame.image.shape[0] / frame.image.shape[1]), 2 * rows) // 2 * 2
        across = min(width, round(height * frame.image.shape[1] / frame.image.shape[0]))
        small = np.asarray(Image.fromarray(frame.image).resize((max(across, 1), max(height, 2)), reducing_gap=2.0))
        made.append(
            [
                "".join(_cell(top, low) for top, low in zip(*pair, strict=True))
                for pair in zip(small[::2], small[1::2], strict=True)
            ]
        )
    height = max(map(len, made))
    padded = [lines + [" " * width] * (height - len(lines)) for lines in made]
    return [" ".join(f"{line}{PLAIN}" for line in row) for row in zip(*padded, strict=True)]


def printable(text: str) -> str:
    """Without what could steer a terminal."""
    return "".join(char if char.isprintable() else "·" for char in text)


def _cell(top: np.ndarray, low: np.ndarray) -> str:
    (r, g, b), (x, y, z) = top.tolist(), low.tolist()
    return f"\x1b[38;2;{r};{g};{b};48;2;{x};{y};{z}m▀"


def _rates(watched: Watched) -> str:
    figures = {name: watched.latencies_s[name] for name in ("p50", "p95", "p99") if name in watched.latencies_s}
    latency = " ".join(f"{name} {seconds * 1000:.0f}" for name, seconds in figures.items())
    parts = [f"{watched.model_hz:.1f} Hz", f"latency ms {latency}" if latency else ""]
    parts += [f"age {watched.age_s * 1000:.0f} ms" if watched.age_s else "", f"dropped {watched.dropped}"]
    return "  ".join(part for part in parts if part)


def _spark(curve: deque[float | None], width: int) -> str:
    shown = list(curve)[-width:]
    return "".join(" " if value is None else SPARKS[min(int(value * len(SPARKS)), len(SPARKS) - 1)] for value in shown)


def _cut(text: str, width: int) -> str:
    width = max(width, 1)
    return text if len(text) <= width else text[: width - 1] + "…"
