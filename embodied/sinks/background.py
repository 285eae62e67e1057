"""A sink on a thread of its own, so that encoding a video does not slow the camera."""

from __future__ import annotations

import queue
import threading

from embodied.watching.watched import Sink, Watched

WAIT_S = 0.2  # between looks at whether a sink that is waited for has failed


class Background:
    """Another sink, written to from a thread.

    Args:
        sink: written to and closed by that thread alone.
        live: a moment for which there is no room is left out and counted; else its writer waits.
        room: moments that may wait. They hold their images.
    """

    def __init__(self, sink: Sink, *, live: bool, room: int) -> None:
        self.name, self.skipped = sink.name, 0
        self._sink, self._live = sink, live
        self._waiting: queue.Queue[Watched | None] = queue.Queue(room)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Moments that the sink has not taken yet."""
        return self._waiting.qsize()

    def write(self, watched: Watched) -> None:
        self._raise()
        if self._live:
            try:
                self._waiting.put_nowait(watched)
            except queue.Full:
                self.skipped += 1
        else:
            self._put(watched)

    def close(self) -> None:
        """Waits for what is still in the queue, however long that takes."""
        self._put(None)
        self._thread.join()
        self._raise()

    def _put(self, item: Watched | None) -> None:
        while self._thread.is_alive():
            try:
                return self._waiting.put(item, timeout=WAIT_S)
            except queue.Full:
                continue
        self._raise()

    def _raise(self) -> None:
        """What the thread met, once."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        """Until `close`, or the first error; the sink is closed either way."""
        try:
            while (watched := self._waiting.get()) is not None:
                self._sink.write(watched)
        except BaseException as error:  # handed to whoever writes next
            self._error = error
        try:
            self._sink.close()
        except BaseException as error:
            self._error = self._error or error
