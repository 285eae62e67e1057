"""Other people's camera objects with LeRobot's methods, behind our driver."""

from __future__ import annotations

import time
from typing import Any

from embodied.cameras.camera import CameraError, CameraTimeout
from embodied.cameras.live import Grab

WAIT_MS = 500.0


def is_camera(thing: Any) -> bool:
    """Whether it has the methods of a LeRobot camera."""
    return all(callable(getattr(thing, name, None)) for name in ("connect", "async_read", "disconnect"))


class ForeignDriver:
    """A camera object, read by `async_read`: its own thread holds the newest image.

    One that is connected already is left connected at the end. Its `latest_timestamp` (of `time.perf_counter`, the
    same clock as ours on Linux) says when an image was taken, where it has one.

    Args:
        camera: with connect, async_read and disconnect.
    """

    def __init__(self, camera: Any) -> None:
        self._camera = camera
        self._ours = not getattr(camera, "is_connected", False)
        self.name = str(camera)

    @property
    def fps(self) -> float | None:
        """As it says."""
        told = getattr(self._camera, "fps", None)
        return float(told) if told else None

    def open(self) -> None:
        """Connect it unless it is."""
        if not getattr(self._camera, "is_connected", False):
            try:
                self._camera.connect()
            except Exception as error:
                raise CameraError(f"{self.name}: cannot be opened ({error}).") from error

    def grab(self) -> Grab:
        """Its newest image not read yet."""
        try:
            image = self._camera.async_read(timeout_ms=WAIT_MS)
        except TimeoutError as error:
            raise CameraTimeout(f"{self.name}: {error}") from error
        now = time.monotonic()
        stamp = getattr(self._camera, "latest_timestamp", None)
        fits = isinstance(stamp, float) and 0 <= now - stamp < 3600
        return Grab(image, stamp if fits else now)  # pyright: ignore[reportArgumentType]

    def close(self) -> None:
        """Disconnect it, where it was we who connected it, or where it was lost."""
        if self._ours and getattr(self._camera, "is_connected", True):
            self._camera.disconnect()
