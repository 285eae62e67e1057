"""What a camera is: one image after another, and how old each is. LeRobot's cameras fit by shape.

H, W: height and width of an image, pixels. Ages and capture times are of `time.monotonic()`, seconds.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

from embodied.errors import UserError
from rewards.pictures import lack_of_colours, rgb

MAX_PIXELS = 64_000_000  # of one image; a larger one is rubbish or a decompression bomb
EVENTS_KEPT = 1000  # of each camera, until somebody asks
# What pillow raises on what is no image.
_RUBBISH = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One image of one camera, and when it was.

    Attributes:
        image: (H, W, 3) uint8 RGB, C-contiguous; not to be written to.
        captured_s: live: `time.monotonic()` when its driver had it. Recorded: its place in the record, seconds from 0.
        index: within its source, from 0; a gap is frames that were dropped before this one.
        stale: not news: older than the source's `max_age_s`, or handed out again because nothing newer came in time.
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


class CameraError(UserError):
    """A camera cannot be opened, is lost or gave rubbish; the text says which camera and what."""


class BrokenImage(CameraError):  # noqa: N818  one bad image, not the end of the camera
    """One image that cannot be used; the camera goes on."""


class CameraTimeout(CameraError, TimeoutError):  # noqa: N818  LeRobot's cameras raise TimeoutError too
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


def checked(image: Any, camera: str) -> np.ndarray:
    """The image, C-contiguous, where it is one.

    Raises:
        BrokenImage: not (H, W, 3) uint8, empty, or of more than `MAX_PIXELS`.
    """
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise BrokenImage(f"{camera}: an image must be (H, W, 3) uint8; got {got}.")
    check_size(image.shape[1], image.shape[0], camera)
    return np.ascontiguousarray(image)


def check_size(width: int, height: int, camera: str) -> None:
    """BrokenImage where an image of this size would be empty or of more than `MAX_PIXELS`."""
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise BrokenImage(f"{camera}: an image must have from 1 to {MAX_PIXELS:,} pixels; got {width} x {height}.")


def decoded(data: bytes, camera: str) -> np.ndarray:
    """A JPEG or PNG file's bytes as (H, W, 3) uint8 RGB, turned as its EXIF says; the size is checked before decoding.

    Raises:
        BrokenImage: empty, damaged, cut short, not an image, without colours (depth in 16 bits or floats), or of more
            than `MAX_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_size(*image.size, camera)
            if lack := lack_of_colours(image):
                raise BrokenImage(f"{camera}: {lack}. It is no camera's.")
            return rgb(ImageOps.exif_transpose(image))
    except BrokenImage:
        raise
    except _RUBBISH as error:
        raise BrokenImage(f"{camera}: an image of {len(data)} bytes cannot be decoded ({error}).") from error
