"""ROS 2 image topics, raw or compressed; `rclpy` comes with a ROS installation and is imported when one is opened."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from embodied.cameras.camera import BrokenImage, CameraTimeout, check_size, decoded
from embodied.cameras.live import Grab, SenderClock
from embodied.errors import UserError

WAIT_S = 0.2
ENCODINGS = {"rgb8": (3, (0, 1, 2)), "bgr8": (3, (2, 1, 0)), "rgba8": (4, (0, 1, 2)), "bgra8": (4, (2, 1, 0)),
             "mono8": (1, (0, 0, 0)), "8UC1": (1, (0, 0, 0)), "8UC3": (3, (2, 1, 0))}  # fmt: skip


class Ros2Driver:
    """A topic of sensor_msgs/Image, or of sensor_msgs/CompressedImage where its name ends in /compressed.

    Only the newest message is kept (queue of one, best effort). Its context is its own, so that a program's own nodes
    are left alone. A topic that nobody publishes is a stall, not a loss.

    Args:
        topic: such as /camera/image_raw.
    """

    def __init__(self, topic: str) -> None:
        self.name, self.fps = f"ros2:{topic}", None
        self._topic = topic
        self._context: Any = None
        self._node: Any = None
        self._executor: Any = None
        self._message: Any = None
        self._clock = SenderClock()

    def open(self) -> None:
        """Subscribe."""
        try:
            import rclpy  # pyright: ignore[reportMissingImports]
            from rclpy.executors import SingleThreadedExecutor  # pyright: ignore[reportMissingImports]
            from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy  # pyright: ignore[reportMissingImports]
            from sensor_msgs.msg import CompressedImage, Image  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise UserError(
                f"{self.name}: needs rclpy and sensor_msgs. Install ROS 2 (https://docs.ros.org) or RoboStack, and "
                "source its setup."
            ) from error
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node("embodied_camera", context=self._context)
        newest = QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT)
        kind = CompressedImage if self._topic.endswith("/compressed") else Image
        self._node.create_subscription(kind, self._topic, self._came, newest)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._clock = SenderClock()

    def grab(self) -> Grab:
        """The newest message's image."""
        self._message = None
        self._executor.spin_once(timeout_sec=WAIT_S)
        message = self._message
        if message is None:
            raise CameraTimeout(f"{self.name}: nothing came within {WAIT_S} s.")
        arrived = time.monotonic()
        stamp = message.header.stamp.sec + message.header.stamp.nanosec / 1e9
        image = self._image(message)
        return Grab(image, self._clock.captured(stamp, arrived) if stamp else arrived)

    def close(self) -> None:
        """Unsubscribe."""
        if self._context is not None:
            if self._executor is not None:
                self._executor.shutdown()
            if self._node is not None:
                self._node.destroy_node()
            self._context.shutdown()
        self._context = self._node = self._executor = None

    def _came(self, message: Any) -> None:
        self._message = message

    def _image(self, message: Any) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        if self._topic.endswith("/compressed"):
            return decoded(bytes(message.data), self.name)
        if message.encoding not in ENCODINGS:
            raise BrokenImage(f"{self.name}: encoding must be {', '.join(ENCODINGS)}; got {message.encoding!r}.")
        channels, order = ENCODINGS[message.encoding]
        check_size(message.width, message.height, self.name)
        data, used = np.frombuffer(bytes(message.data), np.uint8), message.width * channels
        if message.step < used or data.size < message.step * message.height:
            raise BrokenImage(f"{self.name}: {data.size} bytes are too few for {message.width} x {message.height}.")
        rows = data[: message.step * message.height].reshape(message.height, message.step)[:, :used]
        return np.ascontiguousarray(rows.reshape(message.height, message.width, channels)[:, :, list(order)])
