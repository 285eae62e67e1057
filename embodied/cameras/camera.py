"""What a camera is: one image after another, and how old each is. LeRobot's cameras fit by shape.

H, W: height and width of an image, pixels. Ages and capture times are of `time.monotonic()`, seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

MAX_PIXELS = 64_000_000  # of one image; a larger one is rubbish or a decompression bomb


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One image of one camera, and when it was.

    Attributes:
        image: (H, W, 3) uint8 RGB, C-contiguous; not to be written to.
        captured_s: live: `time.monotonic()` when its driver had it. Recorded: its place in the record, seconds from 0.
        index: within its source, from 0; a gap is frames that were dropped before this one.
        stale: nothing newer came for longer than the source's `max_age_s`, or the camera is lost.
    """

    image: np.ndarray
    captured_s: float
    index: int
    stale: bool = False


@dataclass(frozen=True, kw_only=True)
class CameraEvent:
    """Something that happened to a camera and that a reader of its numbers should know.

    Attributes:
        at_s: `time.monotonic()` when it was noticed.
        camera: its name, the view's.
        kind: "lost" (cannot be read; being tried again), "back", "stalled" (connected, nothing new), "resized"
            (another size than the first; brought back to the first), "broken" (an image that could not be used).
        text: for a person, one line.
    """

    at_s: float
    camera: str
    kind: str
    text: str


class CameraError(Exception):
    """A camera cannot be opened, is lost or gave rubbish; the text says which camera and what."""


class CameraTimeout(CameraError, TimeoutError):  # noqa: N818  LeRobot's cameras raise TimeoutError here
    """No new image came in time, or the newest is too old."""


@runtime_checkable
class Camera(Protocol):
    """A camera. Live ones hold only the newest image; recorded ones give every image in turn.

    Attributes:
        fps: images a second, as the device or file says; None where it does not.
        width: of an image, pixels; None until known.
        height: of an image, pixels; None until known.
    """

    fps: float | None
    width: int | None
    height: int | None

    def connect(self, warmup: bool = True) -> None:
        """Open it; with `warmup`, wait for the first image. CameraError where that fails."""
        ...

    def read(self) -> np.ndarray:
        """The next image, (H, W, 3) uint8 RGB; waits for it. EOFError at the end of a record."""
        ...

    def async_read(self, timeout_ms: float = 200) -> np.ndarray:
        """The newest image not read yet; waits at most `timeout_ms`, then raises CameraTimeout."""
        ...

    def read_latest(self, max_age_ms: float = 500) -> np.ndarray:
        """The newest image, read or not, without waiting; CameraTimeout where it is older than `max_age_ms`."""
        ...

    def disconnect(self) -> None:
        """Close it and whatever reads it."""
        ...
