"""Cameras of LeRobot's image server over ZeroMQ: PUB/SUB, JSON with a JPEG in base64 for each camera.

    {"timestamps": {"head": 1712345678.9}, "images": {"head": "<base64 of a JPEG>"}}

Its server hands RGB to OpenCV's encoder, which takes it for BGR, and its client decodes the same way round, so red and
blue are exchanged in the JPEGs themselves. We exchange them back unless `swapped` is false.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from typing import Any

import numpy as np

from embodied.cameras.camera import BrokenImage, CameraError, CameraTimeout, decoded
from embodied.cameras.live import Grab, SenderClock
from embodied.errors import UserError, nearest

POLL_S = 0.2
MAX_BYTES = 64 * 2**20  # of one message


class ZmqDriver:
    """One camera of a publisher. ZeroMQ itself connects again; a silent publisher is a stall, not a loss.

    Args:
        address: host:port.
        camera: its name in the messages; None: the only one, or the first.
        swapped: whether the JPEGs have red and blue exchanged, as LeRobot's server writes them.
        trust_stamps: whether `timestamps` say how old an image is; otherwise it is new when it arrives.
    """

    def __init__(
        self, address: str, *, camera: str | None = None, swapped: bool = True, trust_stamps: bool = True
    ) -> None:
        self.name = f"zmq://{address}" + (f"/{camera}" if camera else "")
        self.fps: float | None = None
        self._address, self._camera, self._swapped, self._trust = address, camera, swapped, trust_stamps
        self._context: Any = None
        self._socket: Any = None
        self._clock = SenderClock()

    def open(self) -> None:
        """Subscribe."""
        try:
            import zmq
        except ModuleNotFoundError as error:
            raise UserError(f'{self.name}: needs pyzmq. Run: pip install "embodied-rewards[zmq]"') from error
        self.close()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        for option, value in (
            (zmq.LINGER, 0), (zmq.CONFLATE, 1), (zmq.MAXMSGSIZE, MAX_BYTES), (zmq.RCVTIMEO, int(POLL_S * 1e3))
        ):  # fmt: skip
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        try:
            self._socket.connect(f"tcp://{self._address}")
        except zmq.ZMQError as error:
            raise CameraError(f"{self.name}: must be zmq://HOST:PORT[/CAMERA] ({error}).") from error

    def grab(self) -> Grab:
        """The newest message's image."""
        import zmq

        try:
            message = self._socket.recv()
        except zmq.Again as error:
            raise CameraTimeout(f"{self.name}: nothing came within {POLL_S} s.") from error
        except zmq.ZMQError as error:
            raise CameraError(f"{self.name}: lost ({error}).") from error
        arrived = time.monotonic()
        image, stamp = self._parsed(message)
        return Grab(image, self._clock.captured(stamp, arrived) if self._trust and stamp is not None else arrived)

    def close(self) -> None:
        """Unsubscribe."""
        if self._socket is not None:
            self._socket.close()
            self._context.term()
            self._socket = self._context = None

    def _parsed(self, message: bytes) -> tuple[np.ndarray, float | None]:
        try:
            told = json.loads(message)
            images, stamps = told["images"], told.get("timestamps") or {}
            camera = self._camera if self._camera is not None else next(iter(images))
            if camera not in images:
                raise BrokenImage(f"{self.name}: no camera {camera!r} in its messages. {nearest(camera, images)}")
            data = base64.b64decode(images[camera], validate=True)
            stamp = stamps.get(camera)
            stamp = float(stamp) if stamp is not None and np.isfinite(float(stamp)) else None
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration, binascii.Error) as error:
            shown = message[:40]
            raise BrokenImage(f"{self.name}: a message must be LeRobot's JSON of images; got {shown!r}…") from error
        image = decoded(data, self.name)
        return (np.ascontiguousarray(image[:, :, ::-1]) if self._swapped else image), stamp
