"""One sink on a thread of its own: a slow one misses moments, and nobody else does."""

from __future__ import annotations

import queue
import threading

from embodied.watched import Sink, Watched

DEPTH = 8  # moments that wait for one sink: a bound on memory, and on what a kill can lose
FINISH_S = 120.0  # for a sink to finish its file


class Outlet:
    """Writes to a sink in the order given, and closes it, on one thread.

    Args:
        sink: what is written to; used by that thread alone.
        patient: whether `write` waits for a slow sink (recorded sources: nothing is lost), or drops the oldest moment
            that waits (live ones).
    """

    def __init__(self, sink: Sink, *, patient: bool) -> None:
        self.name = sink.name
        self.missed = 0  # moments that a slow sink never got
        self._sink, self._patient = sink, patient
        self._waiting: queue.Queue[Watched | None] = queue.Queue(DEPTH)
        self._error: OSError | None = None
        self._fault: BaseException | None = None
        self._told = False
        self._thread = threading.Thread(target=self._work, name=f"sink {self.name}", daemon=True)
        self._thread.start()

    def write(self, watched: Watched) -> None:
        """Hand one moment over; does nothing once the sink is given up.

        Raises:
            Exception: the sink had a fault that is no OSError.
        """
        self.raise_fault()
        while self._error is None:
            try:
                self._waiting.put(watched, timeout=0.5 if self._patient else None, block=self._patient)
                return
            except queue.Full:
                if self._patient:
                    self.raise_fault()
                else:
                    self._drop_oldest()

    def new_error(self) -> OSError | None:
        """Why the sink was given up, the first time it is asked for."""
        if self._error is None or self._told:
            return None
        self._told = True
        return self._error

    def trouble(self) -> str:
        """What went wrong with it, in words; empty: nothing."""
        missed = f"missed {self.missed} moments: it is slower than the camera." if self.missed else ""
        if self._thread.is_alive():
            return missed
        if self._error is not None:
            return f"given up: {self._error}"
        return missed

    def finish(self) -> None:
        """Let it write what waits, and close."""
        while self._thread.is_alive():
            try:
                self._waiting.put(None, timeout=0.1)
                return
            except queue.Full:
                if not self._patient:
                    self._drop_oldest()

    def join(self, timeout_s: float = FINISH_S) -> bool:
        """Wait until it is closed; whether it is."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def raise_fault(self) -> None:
        """Raise what the sink raised, if it was no OSError: a fault of ours."""
        if self._fault is not None:
            raise self._fault

    def _drop_oldest(self) -> None:
        try:
            self._waiting.get_nowait()
            self.missed += 1
        except queue.Empty:  # the sink was quicker
            pass

    def _work(self) -> None:
        try:
            try:
                while (watched := self._waiting.get()) is not None:
                    self._sink.write(watched)
            finally:
                self._sink.close()
        except OSError as error:
            self._error = error
        except BaseException as fault:  # raised again in the thread that writes
            self._fault = fault
