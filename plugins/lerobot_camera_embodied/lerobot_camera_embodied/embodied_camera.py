"""A camera of ours with LeRobot's methods. H, W: height and width of a picture, pixels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lerobot.cameras.camera import Camera
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from lerobot_camera_embodied.config_embodied import EmbodiedCameraConfig

if TYPE_CHECKING:
    from embodied.cameras import LiveCamera, RecordedCamera

logger = logging.getLogger(__name__)


class EmbodiedCamera(Camera):
    """See `EmbodiedCameraConfig`. What happens to the stream while it is read (lost, back, stalled) is logged.

    Args:
        config: which camera, and what is done to its pictures.
    """

    def __init__(self, config: EmbodiedCameraConfig) -> None:
        super().__init__(config)
        self.config = config
        self._camera: LiveCamera | RecordedCamera | None = None

    def __str__(self) -> str:
        from embodied.cameras.decoding import without_password

        return f"EmbodiedCamera({without_password(self.config.source)})"

    @property
    def is_connected(self) -> bool:
        """Between `connect` and `disconnect`; a stream that is lost meanwhile is opened again."""
        return getattr(self, "_camera", None) is not None

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        """The devices of this machine; nobody can list the cameras of a network."""
        devices = sorted(str(path) for path in Path("/dev").glob("video*"))
        return [{"name": f"EmbodiedCamera @ {device}", "type": "embodied", "id": device} for device in devices]

    def connect(self, warmup: bool = True) -> None:
        """Open it; with `warmup`, wait for the first picture.

        Raises:
            DeviceAlreadyConnectedError: it is connected.
            ConnectionError: it cannot be opened, gives no picture in time, or a setting is wrong; says which and why.
        """
        if self._camera is not None:
            raise DeviceAlreadyConnectedError(f"{self} is already connected.")
        from embodied.cameras import open_camera  # PyAV, for those who want a picture
        from embodied.errors import UserError

        config = self.config
        size = None if config.width is None or config.height is None else [config.height, config.width]
        settings: dict[str, Any] = {"crop": config.crop, "flip": config.flip, "rotate": config.rotate, "resize": size}
        settings |= {"fps": config.fps} | ({} if config.trust_stamps else {"trust_stamps": False})
        try:
            camera = open_camera(config.source, **settings)
            camera.connect(warmup)
        except UserError as error:
            raise ConnectionError(str(error)) from error
        self._camera = camera
        self.fps = config.fps or (None if camera.fps is None else round(camera.fps))
        self.width, self.height = config.width or camera.width, config.height or camera.height

    def read(self) -> np.ndarray:
        """The next picture, (H, W, 3) uint8 RGB; waits for it.

        Raises:
            DeviceNotConnectedError: it is not connected.
            TimeoutError: none came in ten seconds.
            EOFError: a record has ended.
        """
        camera = self._connected()
        image = camera.read()
        self._tell(camera)
        return image

    def async_read(self, timeout_ms: float = 200) -> np.ndarray:
        """The newest picture not read yet, (H, W, 3) uint8 RGB; waits `timeout_ms` at most. Errors as of `read`."""
        camera = self._connected()
        self._tell(camera)
        return camera.async_read(float(timeout_ms))

    def read_latest(self, max_age_ms: float = 500) -> np.ndarray:
        """The newest picture, read or not, (H, W, 3) uint8 RGB; TimeoutError where it is older than `max_age_ms`."""
        camera = self._connected()
        self._tell(camera)
        return camera.read_latest(float(max_age_ms))

    def disconnect(self) -> None:
        """Close it.

        Raises:
            DeviceNotConnectedError: it is not connected.
        """
        self._connected().disconnect()
        self._camera = None

    def _connected(self) -> LiveCamera | RecordedCamera:
        if self._camera is None:
            raise DeviceNotConnectedError(f"{self} is not connected.")
        return self._camera

    def _tell(self, camera: LiveCamera | RecordedCamera) -> None:
        """Log what happened to it since the last call."""
        while camera.events:
            event = camera.events.popleft()
            logger.warning("%s: %s: %s", self, event.kind, event.text)
