"""The colour pictures of an Intel RealSense; `pyrealsense2` is imported when one is opened."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import numpy as np

from embodied.cameras.camera import CameraError, CameraTimeout
from embodied.cameras.live import Grab, SenderClock
from embodied.errors import UserError

WAIT_MS = 500


class RealSenseDriver:
    """A device by its serial number.

    Args:
        serial: of the device; "": the only one.
        size: H, W to ask for; None: the device's own choice.
        fps: to ask for; None: the device's own choice.
    """

    def __init__(self, serial: str, *, size: tuple[int, int] | None = None, fps: float | None = None) -> None:
        self.name, self.fps = f"realsense:{serial}", fps
        self._serial, self._size = serial, size
        self._pipeline: Any = None
        self._clock = SenderClock()

    def open(self) -> None:
        """Start the colour stream."""
        try:
            import pyrealsense2 as rs  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise UserError(
                f'{self.name}: needs pyrealsense2. Run: pip install "embodied-rewards[realsense]"'
            ) from error
        pipeline, wanted = rs.pipeline(), rs.config()
        if self._serial:
            wanted.enable_device(self._serial)
        height, width = self._size or (0, 0)  # 0: any
        wanted.enable_stream(rs.stream.color, width, height, rs.format.rgb8, round(self.fps or 0))
        try:
            profile = pipeline.start(wanted)
        except RuntimeError as error:  # what the library raises for everything
            raise CameraError(f"{self.name}: cannot be opened ({error}).") from error
        self.fps = float(profile.get_stream(rs.stream.color).fps())
        self._pipeline, self._clock = pipeline, SenderClock()

    def grab(self) -> Grab:
        """The next colour image."""
        try:
            came, frames = self._pipeline.try_wait_for_frames(WAIT_MS)
        except RuntimeError as error:
            raise CameraError(f"{self.name}: lost ({error}).") from error
        arrived = time.monotonic()
        color = frames.get_color_frame() if came else None
        if not color:
            raise CameraTimeout(f"{self.name}: nothing came within {WAIT_MS} ms.")
        image = np.array(color.get_data())  # a copy: the library uses its buffer again
        return Grab(image, self._clock.captured(color.get_timestamp() / 1e3, arrived))

    def close(self) -> None:
        """Stop the stream."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            with suppress(RuntimeError):  # unplugged: it has stopped already
                pipeline.stop()
