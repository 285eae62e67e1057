"""A camera that is there now: one thread reads it, only the newest image is kept, and a loss is survived.

A *driver* is one connection to a device or a stream; `LiveCamera` opens it again when it is lost, and says so.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from embodied.cameras.camera import EVENTS_KEPT, BrokenImage, CameraError, CameraEvent, CameraTimeout, Frame, checked
from embodied.cameras.transforms import Transform, resized
from embodied.errors import UserError

CONNECT_S = 10.0  # until the first image
READ_S = 10.0  # that `read` waits
BACKOFF_S, BACKOFF_MAX_S = 0.1, 2.0  # between attempts to open a lost camera: doubled each time
BROKEN_EVERY_S = 1.0  # broken images are told of at most this often
DRIFT_S = 30.0  # a sender's clock is compared with ours over this long


class Grab(NamedTuple):
    """One image of a driver.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        captured_s: `time.monotonic()` when it was taken, as well as the driver knows.
        missed: images before this one that the driver let go for it.
    """

    image: np.ndarray
    captured_s: float
    missed: int = 0


@runtime_checkable
class CameraDriver(Protocol):
    """One connection at a time to a live camera; only `LiveCamera`'s thread uses it.

    Attributes:
        name: what it is, for texts, without passwords.
    """

    name: str

    @property
    def fps(self) -> float | None:
        """Images a second, as the device says; None where it does not."""
        ...

    def open(self) -> None:
        """Connect. CameraError where that fails."""
        ...

    def grab(self) -> Grab:
        """The next image; waits a few seconds at most.

        Raises:
            CameraTimeout: nothing came, but the connection stands: call again.
            BrokenImage: this image is rubbish, the next may be good: call again.
            CameraError: the camera is lost.
        """
        ...

    def close(self) -> None:
        """Disconnect; may be called at any time, and twice."""
        ...


class SenderClock:
    """When a stamped image was taken, on our clock, so that a backlog is not taken for news.

    The least delay seen in the last half minute counts as none. What is above it is age. A delay can grow no faster
    than time passes, so a stamp that would say otherwise shows that the sender's clock jumped; the delay then stays
    what it was. A slow drift between the clocks vanishes in the half minute.
    """

    def __init__(self) -> None:
        self._least: tuple[float, float] = (np.inf, np.inf)  # arrival - stamp: of this stretch and the one before
        self._stretch_s = -np.inf
        self._before: tuple[float, float] | None = None  # the last stamp and arrival

    def captured(self, stamp_s: float, arrived_s: float) -> float:
        """`stamp_s` of the sender's clock, on the clock of `arrived_s`; never after it."""
        offset = arrived_s - stamp_s
        if self._before is not None:
            stamp, arrived = self._before
            if stamp_s < stamp:  # back in time: as late as the image before, on the new clock
                jump = offset - (arrived - stamp)
                self._least = (self._least[0] + jump, self._least[1] + jump)
        self._before = (stamp_s, arrived_s)
        if arrived_s - self._stretch_s > DRIFT_S:
            self._least, self._stretch_s = (offset, self._least[0]), arrived_s
        self._least = (min(self._least[0], offset), self._least[1])
        return min(arrived_s, stamp_s + min(self._least))


class LiveCamera:
    """A live camera as `Camera` has it. Losing it raises nowhere but in `connect`: the events tell.

    Args:
        driver: the connection.
        name: of the view.
        transform: done to each image.
        fps: at most this many images a second are kept; None: all.
        max_age_s: an image older than this is stale; nothing new for as long is a stall.
        keep: how many of the newest frames are kept, for matching with other cameras.
        changed: notified at every new frame; several cameras can share it.
        clock: of arrival and age, seconds.

    Attributes:
        live: True.
        events: what happened, oldest first.
        broken: images that could not be used.
        frames: the newest `keep`, oldest first; read them under `changed`.
    """

    live = True

    def __init__(
        self,
        driver: CameraDriver,
        *,
        name: str = "main",
        transform: Transform | None = None,
        fps: float | None = None,
        max_age_s: float = 0.5,
        keep: int = 1,
        changed: threading.Condition | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not max_age_s > 0:
            raise UserError(f"max_age_s must be above 0; got {max_age_s}.")
        if fps is not None and not fps > 0:
            raise UserError(f"fps must be above 0, or null; got {fps}.")
        self.name, self.max_age_s = name, max_age_s
        self.width: int | None = None
        self.height: int | None = None
        self.events: deque[CameraEvent] = deque(maxlen=EVENTS_KEPT)
        self.broken = 0
        self.frames: deque[Frame] = deque(maxlen=keep)
        self.changed = changed or threading.Condition()
        self._driver, self._transform, self._limit, self._clock = driver, transform or Transform(), fps, clock
        self._first: tuple[int, int] | None = None  # H, W of the camera's own first image
        self._size: tuple[int, int] | None = None  # of its last one
        self._count, self._seen, self._due_s, self._arrived_s = 0, -1, -np.inf, -np.inf
        self._lost, self._stalled, self._told_broken_s = False, False, -np.inf
        self._failure: Exception | None = None  # of the first connection
        self._opened, self._accepted = False, False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def fps(self) -> float | None:
        """Images a second, as the device says, at most the limit."""
        own = self._driver.fps
        return min(own, self._limit) if own and self._limit else own or self._limit

    # Camera ---------------------------------------------------------------------------------------------

    def connect(self, warmup: bool = True) -> None:
        """Start reading; with `warmup`, wait for the first image, otherwise for the connection.

        Raises:
            CameraError: it cannot be opened, or gives no image within `CONNECT_S`.
        """
        if self._thread is not None:
            return
        self._stop.clear()
        self._failure, self._opened = None, False
        self._thread = threading.Thread(target=self._run, name=f"camera-{self.name}", daemon=True)
        self._thread.start()
        with self.changed:
            self.changed.wait_for(lambda: self._failure or self.frames or (self._opened and not warmup), CONNECT_S)
            failure, ready = self._failure, bool(self.frames) or (self._opened and not warmup)
        if not ready:
            self.disconnect()
            if isinstance(failure, UserError):
                raise failure
            if failure is not None:
                raise CameraError(f"{self._driver.name}: {_told(failure)}") from failure
            broken = f" but {self.broken} broken ones ({self.events[0].text})" if self.broken else ""
            raise CameraError(f"{self._driver.name}: gave no picture within {CONNECT_S:g} s{broken}.")
        self._accepted = True

    def read(self) -> np.ndarray:
        """The next image, (H, W, 3) uint8 RGB; waits up to `READ_S`."""
        with self.changed:
            self._seen = self._count - 1
        return self.async_read(READ_S * 1e3)

    def async_read(self, timeout_ms: float = 200) -> np.ndarray:
        """The newest image not read yet; CameraTimeout where none comes in time."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.frames and self.frames[-1].index > self._seen, timeout_ms / 1e3):
                raise CameraTimeout(f"{self._driver.name}: no new picture within {timeout_ms:g} ms.")
            self._seen = self.frames[-1].index
            return self.frames[-1].image

    def read_latest(self, max_age_ms: float = 500) -> np.ndarray:
        """The newest image, at once; CameraTimeout where it is older than `max_age_ms` or there is none."""
        with self.changed:
            age_ms = (self._clock() - self.frames[-1].captured_s) * 1e3 if self.frames else np.inf
            if age_ms > max_age_ms:
                raise CameraTimeout(
                    f"{self._driver.name}: the newest picture must be at most {max_age_ms:g} ms old; got {age_ms:.0f}."
                )
            return self.frames[-1].image

    def disconnect(self) -> None:
        """Stop reading and close; waits for a read that is under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CONNECT_S)
            self._thread = None

    # For a source ---------------------------------------------------------------------------------------

    def age_s(self, now_s: float) -> float:
        """Of the newest frame; a camera with none is infinitely old."""
        return now_s - self.frames[-1].captured_s if self.frames else np.inf

    def watch(self, now_s: float) -> None:
        """Tell of a stall, once, where nothing came for longer than `max_age_s`; call it under `changed`."""
        silent_s = now_s - self._arrived_s
        if self.frames and silent_s > self.max_age_s and not self._stalled and not self._lost:
            self._stalled = True
            self._tell("stalled", f"nothing new for {silent_s:.2f} s")

    # The thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff_s = BACKOFF_S
        while not self._stop.is_set():
            try:
                self._driver.open()
                with self.changed:
                    self._opened = True
                    self.changed.notify_all()
                while not self._stop.is_set():
                    if self._grab():
                        backoff_s = BACKOFF_S
            except Exception as error:  # whatever a driver raises is a lost camera, which is told and tried again
                if not self._told_lost(error):
                    self._close()
                    return
            self._close()
            self._stop.wait(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    def _close(self) -> None:
        try:
            self._driver.close()
        except Exception as error:  # a lost device may not let itself be closed; that must not end the thread
            with self.changed:
                self._tell("lost", f"could not be closed: {_told(error)}")

    def _grab(self) -> bool:
        """Whether an image came."""
        try:
            grab = self._driver.grab()
            image = checked(grab.image, self._driver.name)
        except CameraTimeout:
            with self.changed:
                self.watch(self._clock())
            return False
        except BrokenImage as error:
            with self.changed:
                self._tell_broken(str(error))
            return False
        self._publish(image, grab.captured_s, grab.missed)
        return True

    def _publish(self, image: np.ndarray, captured_s: float, missed: int) -> None:
        now = self._clock()
        captured_s = min(captured_s, now)
        first = self._first or image.shape[:2]
        size, changed = image.shape[:2], image.shape[:2] != (self._size or image.shape[:2])
        if self._limit is not None and captured_s < self._due_s - 0.1 / self._limit:
            kept = None
        else:
            kept = self._transform(resized(image, first))
        with self.changed:
            self._first, self._size = first, size
            if changed:
                was = "x".join(map(str, first))
                self._tell("resized", f"pictures are {size[0]}x{size[1]} now, brought to the first ones' {was}")
            if self._lost:
                self._tell("back", f"after {now - self._arrived_s:.2f} s")
            else:
                self.watch(now)
                if self._stalled:
                    self._tell("back", f"after {now - self._arrived_s:.2f} s")
            self._lost = self._stalled = False
            self._arrived_s = now
            self._count += missed
            if kept is None:
                return
            if self._limit is not None:
                period = 1 / self._limit
                self._due_s = self._due_s + period if self._due_s + period > captured_s else captured_s + period
            self.height, self.width = kept.shape[:2]
            self.frames.append(Frame(image=kept, captured_s=captured_s, index=self._count))
            self._count += 1
            self.changed.notify_all()

    def _told_lost(self, error: Exception) -> bool:
        """Whether to go on: a camera that never gave an image is not tried again."""
        with self.changed:
            if not self.frames and not self._accepted:
                self._failure = error
                self.changed.notify_all()
                return False
            if not self._lost:
                self._lost, self._stalled = True, False
                self._tell("lost", _told(error))
                self.changed.notify_all()
            return True

    def _tell_broken(self, text: str) -> None:
        self.broken += 1
        if self._clock() - self._told_broken_s > BROKEN_EVERY_S:
            self._told_broken_s = self._clock()
            self._tell("broken", f"{text} ({self.broken} so far)")

    def _tell(self, kind: str, text: str) -> None:
        self.events.append(CameraEvent(at_s=self._clock(), camera=self.name, kind=kind, text=text))


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
