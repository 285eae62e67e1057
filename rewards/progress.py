"""Progress bars: one that moves where a person looks, and a line now and then where the output is a file."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import std

EVERY_S = 60.0  # between two lines of one bar in a log


class tqdm(std.tqdm):  # noqa: N801 (it stands where the other one would)
    """tqdm's bar, with its arguments; where `file` (standard error) is no terminal, whole lines and few of them.

    A bar that redraws itself fills a log with thousands of states that nobody sees move. There it tells how far it is
    every `EVERY_S`, and once at its end if it is to stay (`leave`).

    Args:
        args, kwargs: as of tqdm.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        stream = kwargs.get("file") or sys.stderr
        self._quiet, self._told_s = not stream.isatty(), time.monotonic()
        super().__init__(*args, **({"ascii": True, "ncols": 100} | kwargs if self._quiet else kwargs))

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Draw the bar; in a log, write a line if the last one is old enough or it ends."""
        if not self._quiet:
            return super().display(msg, pos)
        ends = self.disable  # tqdm switches it off before it draws it for the last time, and ends the line
        if msg is None and (ends or time.monotonic() - self._told_s >= EVERY_S):
            self._told_s = time.monotonic()
            self.fp.write(str(self) if ends else f"{self}\n")
            self.fp.flush()
        return False  # there is nothing to clear

    def clear(self, *args: Any, **kwargs: Any) -> None:
        """Take the bar off the screen; in a log it stays."""
        if not self._quiet:
            super().clear(*args, **kwargs)
