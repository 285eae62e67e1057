"""Ctrl-C and SIGTERM as a wish, heard between two rollouts, so that a checkpoint can be written first."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any


class Stopping:
    """While entered, the first Ctrl-C or SIGTERM is remembered; a second one ends at once.

    Attributes:
        asked: whether one has come.
    """

    def __init__(self) -> None:
        self.asked = False
        self._signal: int = signal.SIGINT
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # elsewhere nothing may be installed
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *error: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked, self._signal = True, number
        print("\nStopping after this rollout; once more stops at once and loses it.", file=sys.stderr)

    def end(self, message: str) -> None:
        """End the run as the signal would have: its exit status tells it.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            SystemExit: SIGTERM, with status 143.
        """
        print(message, file=sys.stderr)
        if self._signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt
