"""Settings of cameras, images and clocks, without a network."""

import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from embodied.cameras import (
    BrokenImage,
    CameraError,
    open_source,
)
from embodied.cameras.camera import checked, decoded
from embodied.cameras.decoding import without_password
from embodied.cameras.live import SenderClock
from embodied.cameras.transforms import Transform
from embodied.errors import UserError
from tests.cameras import image
from tests.mjpeg_server import damaged, jpeg

DEADLINE_S = 20.0


# Settings -----------------------------------------------------------------------------------------------


def test_transform_crops_flips_turns_and_resizes_in_this_order():
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    cropped = pixels[1:3, 2:5]
    assert np.array_equal(Transform(crop=(2, 1, 3, 2))(pixels), cropped)
    assert np.array_equal(Transform(flip="h")(pixels), pixels[:, ::-1])
    assert np.array_equal(Transform(flip="v")(pixels), pixels[::-1])
    clockwise = Transform(rotate=90)(pixels)
    assert clockwise.shape == (6, 4, 3)
    assert np.array_equal(clockwise[0, -1], pixels[0, 0])  # the left upper corner is now the right upper one
    both = Transform(crop=(2, 1, 3, 2), flip="hv", rotate=270)(pixels)
    assert np.array_equal(both, np.rot90(cropped[::-1, ::-1], 1))
    assert both.flags.c_contiguous
    assert Transform(resize=(8, 5))(pixels).shape == (8, 5, 3)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"crop": [0, 0, 999, 10]}, "crop must lie within"),
        ({"crop": [0, 0, 0, 10]}, "crop must be"),
        ({"crop": "left"}, "crop must be"),
        ({"flip": "x"}, "flip must be"),
        ({"size": [1, 2]}, "unknown setting 'size'"),
        ({"rotate": 45}, "rotate must be"),
        ({"resize": [10]}, "resize must be"),
        ({"fps": 0}, "fps must be"),
        ({"croop": [1]}, "did you mean crop"),
        ({"seed": 3}, "unknown setting 'seed'"),
    ],
)
def test_wrong_settings_say_what_is_right(tmp_path, settings, text):
    Image.fromarray(image()).save(tmp_path / "0.png")
    with pytest.raises(UserError, match=text), open_source(str(tmp_path), **settings) as source:
        source.next()


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("", "source must be"),
        (None, "source must be"),
        (3.5, "source must be"),
        (True, "source must be"),
        ([], "all live or all recorded"),
        ("nothing-here.mp4", "no such file"),
        ("rtps://host/x", "did you mean rtsp"),
        ("zmq://host", "zmq://HOST:PORT"),
        ("dataset:#x", "dataset:FOLDER_OR_NAME"),
        ("/dev/video987", "no such device"),
        (987, "no such device"),
        (["a=x.mp4", "a=y.mp4"], "twice"),
        ([{"crop": [0, 0, 1, 1]}], "key spec"),
    ],
)
def test_a_source_that_is_none_says_what_there_is(spec, text):
    with pytest.raises(UserError, match=text):
        open_source(spec)


def test_a_password_is_never_told():
    assert without_password("rtsp://me:secret@host:554/a?b") == "rtsp://me:***@host:554/a?b"
    with pytest.raises(CameraError) as caught:
        open_source("rtsp://me:secret@127.0.0.1:9/x")
    assert "secret" not in str(caught.value)
    with pytest.raises(CameraError) as caught:
        open_source("http://me:secret@127.0.0.1:9/film.mp4")
    assert "secret" not in str(caught.value)


def test_missing_extras_are_named(monkeypatch):
    for module, spec, text in (
        ("zmq", "zmq://127.0.0.1:5555", r"embodied-rewards\[zmq\]"),
        ("pyrealsense2", "realsense:123", r"embodied-rewards\[realsense\]"),
        ("rclpy", "ros2:/camera", "ROS 2"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=text):
            open_source(spec)


# Images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["truncated", "garbage", "empty", "text", "huge"])
def test_a_bad_jpeg_is_a_broken_image(kind):
    with pytest.raises(BrokenImage):
        decoded(damaged(kind, jpeg(image())), "camera")


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    with pytest.raises(BrokenImage, match="bomb"):
        decoded(bomb, "camera")


@pytest.mark.parametrize(
    "bad",
    [np.zeros((0, 10, 3), np.uint8), np.zeros((10, 10), np.uint8), np.zeros((10, 10, 3), np.float32), None,
     np.broadcast_to(np.uint8(0), (9000, 9000, 3))],
)  # fmt: skip
def test_what_is_no_image_is_refused(bad):
    with pytest.raises(BrokenImage):
        checked(bad, "camera")


def test_a_phone_s_picture_is_turned_upright(tmp_path):
    picture_ = Image.fromarray(image(5))
    exif = picture_.getexif()
    exif[0x0112] = 6  # shown turned a quarter to the right
    picture_.save(tmp_path / "0.png", exif=exif)
    with open_source(str(tmp_path)) as source:
        assert np.array_equal(source.next()["main"].image, np.rot90(image(5), -1))


# Clocks -------------------------------------------------------------------------------------------------


def test_a_backlog_is_as_old_as_its_stamps_say():
    clock = SenderClock()
    for i in range(30):
        assert clock.captured(1000 + i / 30, 5 + i / 30) == pytest.approx(5 + i / 30)
    for i in range(30, 90):  # held for two seconds, then all at once
        assert clock.captured(1000 + i / 30, 8.0) == pytest.approx(5 + i / 30)


@pytest.mark.parametrize("jump", [-3600.0, 3600.0, -0.5])
def test_a_sender_s_clock_that_jumps_makes_nothing_stale_and_nothing_future(jump):
    clock = SenderClock()
    for i in range(200):
        stamp = 1000 + i / 30 + (jump if i >= 100 else 0)
        assert i / 30 - 0.02 <= clock.captured(stamp, i / 30) <= i / 30


def test_a_sender_s_slow_clock_does_not_age_a_stream_for_ever():
    clock = SenderClock()
    for i in range(0, 30 * 3600, 10):
        now = i / 30
        assert now - clock.captured(now * (1 - 2e-4), now) < 0.02
