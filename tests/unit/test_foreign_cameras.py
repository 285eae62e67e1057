"""Cameras of LeRobot, RealSense and ROS 2, by look-alikes."""

import io
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image

from embodied.cameras import (
    Camera,
    CameraError,
    open_source,
)
from tests.cameras import events, image, kinds
from tests.waiting import until

DEADLINE_S = 20.0


# Other people's cameras ---------------------------------------------------------------------------------


class LeRobotShaped:
    """As LeRobot's: async_read raises TimeoutError, others when it is not connected."""

    def __init__(self, fail_at=None):
        self.fps, self.width, self.height = 30, 64, 32
        self.is_connected, self.connections, self.count = False, 0, 0
        self.fail_at, self.latest_timestamp, self.stamps = fail_at, None, []

    def __str__(self):
        return "LeRobotShaped(7)"

    def connect(self, warmup=True):
        self.is_connected = True
        self.connections += 1

    def read(self):
        return self.async_read()

    def async_read(self, timeout_ms=200):
        if not self.is_connected:
            raise ConnectionError("not connected")
        time.sleep(0.005)
        self.count += 1
        if self.count % 5 == 0:
            raise TimeoutError("no frame within 200 ms")
        if self.count == self.fail_at:
            raise RuntimeError("read thread is not running")
        self.latest_timestamp = time.perf_counter() - 0.25
        self.stamps.append(self.latest_timestamp)
        return image(self.count)

    def read_latest(self, max_age_ms=500):
        return image(self.count)

    def disconnect(self):
        self.is_connected = False


def test_a_lerobot_camera_is_a_source_and_comes_back():
    camera = LeRobotShaped(fail_at=7)
    assert isinstance(camera, Camera)
    with open_source({"wrist": camera}, flip="h") as source:
        frame = source.next()["wrist"]
        assert frame.image.shape == (32, 64, 3)
        assert frame.captured_s in camera.stamps  # its own time, not that of reading
        until(lambda: source.next(0.1) and camera.connections == 2)
        until(lambda: kinds(source)[:2] == ["lost", "back"])
        assert "LeRobotShaped(7)" not in events(source)[0].text or events(source)[0].camera == "wrist"
    assert not camera.is_connected


def test_a_camera_that_was_connected_stays_connected():
    camera = LeRobotShaped()
    camera.connect()
    with open_source(camera) as source:
        assert source.next() is not None
    assert camera.is_connected


def realsense_module(log):
    """pyrealsense2, as far as we use it."""

    class Pipeline:
        def __init__(self):
            self.count = 0

        def start(self, wanted):
            log.append(("start", wanted.serial, wanted.stream))
            if wanted.serial == "none":
                raise RuntimeError("No device connected")
            return types.SimpleNamespace(get_stream=lambda _: types.SimpleNamespace(fps=lambda: 15))

        def try_wait_for_frames(self, timeout_ms):
            time.sleep(0.005)
            self.count += 1
            if self.count % 3 == 0:
                return False, None
            color = types.SimpleNamespace(get_data=lambda: image(self.count), get_timestamp=lambda: self.count * 5.0)
            return True, types.SimpleNamespace(get_color_frame=lambda: color)

        def stop(self):
            log.append("stop")

    class Config:
        serial = ""

        def enable_device(self, serial):
            self.serial = serial

        def enable_stream(self, *stream):
            self.stream = stream

    module = types.ModuleType("pyrealsense2")
    module.pipeline, module.config = Pipeline, Config
    module.stream, module.format = types.SimpleNamespace(color="color"), types.SimpleNamespace(rgb8="rgb8")
    return module


def test_realsense_by_its_library_s_calls(monkeypatch):
    log = []
    monkeypatch.setitem(sys.modules, "pyrealsense2", realsense_module(log))
    with open_source("realsense:0815", size=[32, 64]) as source:
        assert source.next()["main"].image.shape == (32, 64, 3)
        assert source.fps == 15
    assert log == [("start", "0815", ("color", 64, 32, "rgb8", 0)), "stop"]
    with pytest.raises(CameraError, match="No device connected"):
        open_source("realsense:none")


def ros_modules(messages):
    """rclpy and sensor_msgs, as far as we use them."""
    rclpy, executors, qos = (types.ModuleType(name) for name in ("rclpy", "rclpy.executors", "rclpy.qos"))
    sensor_msgs, msg = types.ModuleType("sensor_msgs"), types.ModuleType("sensor_msgs.msg")
    calls = []

    class Context:
        def shutdown(self):
            calls.append("shutdown")

    class Node:
        def create_subscription(self, kind, topic, callback, profile):
            calls.append((kind, topic))
            self.callback = callback

        def destroy_node(self):
            calls.append("destroyed")

    class Executor:
        def __init__(self, context):
            self.node = None

        def add_node(self, node):
            self.node = node

        def spin_once(self, timeout_sec):
            time.sleep(0.005)
            if messages:
                self.node.callback(messages.pop(0))

        def shutdown(self):
            pass

    rclpy.Context, rclpy.init = Context, lambda context: None
    rclpy.create_node = lambda name, context: Node()
    executors.SingleThreadedExecutor = Executor
    qos.QoSProfile = lambda **settings: settings
    qos.HistoryPolicy = types.SimpleNamespace(KEEP_LAST=1)
    qos.ReliabilityPolicy = types.SimpleNamespace(BEST_EFFORT=1)
    msg.Image, msg.CompressedImage = "Image", "CompressedImage"
    modules = {"rclpy": rclpy, "rclpy.executors": executors, "rclpy.qos": qos, "sensor_msgs": sensor_msgs}
    return {**modules, "sensor_msgs.msg": msg}, calls


def ros_image(pixels, encoding, pad=0):
    height, width = pixels.shape[:2]
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, pad)))
    stamp = types.SimpleNamespace(sec=0, nanosec=0)
    return types.SimpleNamespace(
        header=types.SimpleNamespace(stamp=stamp), height=height, width=width, encoding=encoding,
        step=rows.shape[1], data=rows.tobytes(),
    )  # fmt: skip


@pytest.mark.parametrize(("encoding", "pad"), [("rgb8", 0), ("bgr8", 5), ("bgra8", 0), ("mono8", 3)])
def test_ros_2_images_of_any_layout(monkeypatch, encoding, pad):
    rgb = image(9)
    wire = {"rgb8": rgb, "bgr8": rgb[:, :, ::-1], "bgra8": np.dstack([rgb[:, :, ::-1], rgb[:, :, :1]]),
            "mono8": rgb[:, :, 0]}[encoding]  # fmt: skip
    strange = ros_image(rgb, "bayer_rggb16")
    short = ros_image(rgb, "rgb8")
    short.data = short.data[:10]
    modules, calls = ros_modules([strange, short, ros_image(np.ascontiguousarray(wire), encoding, pad)])
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with open_source("ros2:/camera/image_raw") as source:
        expected = np.dstack([rgb[:, :, 0]] * 3) if encoding == "mono8" else rgb
        assert np.array_equal(source.next()["main"].image, expected)
        assert source.broken == 2
    assert calls == [("Image", "/camera/image_raw"), "destroyed", "shutdown"]


def test_ros_2_compressed(monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(image(9)).save(buffer, "PNG")
    stamp = types.SimpleNamespace(sec=0, nanosec=0)
    message = types.SimpleNamespace(header=types.SimpleNamespace(stamp=stamp), data=buffer.getvalue())
    modules, calls = ros_modules([message])
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with open_source("ros2:/camera/compressed") as source:
        assert np.array_equal(source.next()["main"].image, image(9))
    assert calls[0] == ("CompressedImage", "/camera/compressed")
