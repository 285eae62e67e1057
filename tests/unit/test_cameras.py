"""Cameras without a network: settings, clocks, the reader's thread, records, adapters; and what bad images do."""

import io
import struct
import sys
import threading
import time
import types
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from embodied.cameras import (
    BrokenImage,
    Camera,
    CameraError,
    CameraTimeout,
    LiveCamera,
    RecordedCamera,
    Source,
    live,
    open_source,
    streams,
)
from embodied.cameras.camera import checked, decoded
from embodied.cameras.decoding import without_password
from embodied.cameras.live import Grab, SenderClock
from embodied.cameras.recorded import Shot, folder_images, resampled
from embodied.cameras.transforms import Transform
from embodied.errors import UserError
from tests.camera_events import events, kinds
from tests.mjpeg_server import damaged, jpeg, number_of, picture

DEADLINE_S = 20.0


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


class Script:
    """A driver that does what it is told: images, exceptions to raise, or "wait" for a poll that brings nothing."""

    def __init__(self, *steps, opens=(), clock=time.monotonic):
        self.name, self.fps = "script", 30.0
        self.steps, self.opens, self.clock = list(steps), list(opens), clock
        self.opened = self.closed = 0
        self.more = threading.Event()

    def open(self):
        self.opened += 1
        if self.opens and (error := self.opens.pop(0)) is not None:
            raise error

    def grab(self):
        while not self.steps:
            self.more.wait(0.01)
            raise CameraTimeout("script: nothing")
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, Grab) else Grab(step, self.clock())

    def close(self):
        self.closed += 1


def image(number=0, height=32, width=64):
    return picture(number, height, width)


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


# The reader ---------------------------------------------------------------------------------------------


def test_ours_and_lerobot_s_have_the_protocol():
    assert isinstance(LiveCamera(Script()), Camera)
    assert isinstance(RecordedCamera(lambda: iter(()), label="x"), Camera)


def test_a_live_camera_reads_the_newest_and_tells_age():
    now = [100.0]
    camera = LiveCamera(Script(image(1), clock=lambda: now[0]), clock=lambda: now[0])
    with pytest.raises(CameraTimeout):
        camera.read_latest()
    camera.connect()
    try:
        assert number_of(camera.async_read()) == 1
        assert (camera.height, camera.width, camera.fps) == (32, 64, 30.0)
        with pytest.raises(TimeoutError, match="no new picture"):
            camera.async_read(timeout_ms=20.0)
        assert number_of(camera.read_latest()) == 1
        now[0] += 0.6
        with pytest.raises(CameraTimeout, match="at most 500 ms old; got 600"):
            camera.read_latest(max_age_ms=500.0)
        assert number_of(camera.read_latest(max_age_ms=1000.0)) == 1
    finally:
        camera.disconnect()
    assert camera._driver.closed == camera._driver.opened == 1


def test_a_camera_gone_at_the_start_fails_at_once():
    began = time.monotonic()
    with pytest.raises(CameraError, match="unplugged"):
        Source({"main": LiveCamera(Script(opens=[CameraError("script: unplugged")]))})
    with pytest.raises(CameraError, match="RuntimeError: no bus"):
        Source({"main": LiveCamera(Script(opens=[RuntimeError("no bus")]))})
    assert time.monotonic() - began < DEADLINE_S / 2


def test_a_camera_that_gives_only_rubbish_at_the_start_says_so(monkeypatch):
    monkeypatch.setattr(live, "CONNECT_S", 0.3)
    with pytest.raises(CameraError, match=r"no picture within 0.3 s but . broken ones .*too blurred"):
        LiveCamera(Script(*[BrokenImage("too blurred")] * 3)).connect()


def test_a_rig_closes_the_others_when_one_is_gone():
    good = LiveCamera(Script(image()))
    with pytest.raises(CameraError):
        Source({"a": good, "b": LiveCamera(Script(opens=[CameraError("gone")]))})
    assert good._driver.closed == 1


def test_a_loss_is_told_once_and_survived(monkeypatch):
    monkeypatch.setattr(live, "BACKOFF_S", 0.001)
    monkeypatch.setattr(live, "BACKOFF_MAX_S", 0.002)
    gone = CameraError("script: cable pulled")
    script = Script(image(1), gone, image(2), opens=[None, gone, RuntimeError("odd"), gone, None])
    with Source({"main": LiveCamera(script, keep=2)}) as source:
        until(lambda: source.next(0.1)["main"].index == 1)
        assert kinds(source) == ["lost", "back"]
        assert "cable pulled" in events(source)[0].text
        assert script.opened == 5


def test_a_driver_that_cannot_be_closed_does_not_end_the_camera(monkeypatch):
    monkeypatch.setattr(live, "BACKOFF_S", 0.001)
    script = Script(image(1), OSError("gone"), image(2))
    script.close = lambda: (_ for _ in ()).throw(OSError("already gone"))
    with Source({"main": LiveCamera(script)}) as source:
        until(lambda: source.next(0.1)["main"].index == 1)


def test_broken_zero_size_and_huge_frames_are_skipped_and_counted():
    bad = [BrokenImage("half a picture"), np.zeros((0, 0, 3), np.uint8), np.broadcast_to(np.uint8(0), (9000, 9000, 3))]
    with Source({"main": LiveCamera(Script(image(1), *bad, image(2)))}) as source:
        until(lambda: source.broken == 3 and number_of(source.next(0.1)["main"].image) == 2)
        assert "broken" in kinds(source)
        assert "lost" not in kinds(source)
        assert len(events(source)) == 1  # a storm of them is told once a second


def test_another_size_is_brought_to_the_first_and_told():
    script = Script(image(1))
    with Source({"main": LiveCamera(script, transform=Transform(crop=(0, 0, 64, 16)))}) as source:
        assert source.next()["main"].image.shape == (16, 64, 3)
        script.steps += [image(2, 64, 128), image(3, 64, 128)]
        until(lambda: (f := source.next(0.1)["main"]).index == 2 and f.image.shape == (16, 64, 3))
        assert kinds(source).count("resized") == 1


def test_nothing_new_is_stale_and_a_stall_is_told():
    script = Script(image(1))
    with Source({"main": LiveCamera(script, max_age_s=0.05)}) as source:
        first = source.next(1.0)["main"]
        again = source.next(0.1)["main"]
        assert not first.stale
        assert again.stale
        assert again.index == first.index
        assert kinds(source) == ["stalled"]
        script.steps.append(image(2))
        until(lambda: not source.next(0.02)["main"].stale)
        assert kinds(source)[:2] == ["stalled", "back"]


def test_an_old_frame_that_arrives_now_is_not_passed_off_as_fresh():
    late = Grab(image(1), time.monotonic() - 5.0)
    with Source({"main": LiveCamera(Script(image(0), late))}) as source:
        until(lambda: source._live["main"].frames[-1].index == 1)
        assert source.next(0.01)["main"].stale


def test_a_frame_from_the_future_is_as_new_as_its_arrival():
    with Source({"main": LiveCamera(Script(Grab(image(1), time.monotonic() + 3600)), max_age_s=0.05)}) as source:
        assert source.next()["main"].captured_s <= time.monotonic()


def test_a_slow_consumer_gets_the_newest_and_the_count_of_the_rest():
    with Source({"main": LiveCamera(Script(*map(image, range(40))))}) as source:
        until(lambda: source._live["main"].frames[-1].index == 39)
        assert number_of(source.next()["main"].image) == 39
        assert source.dropped == 39
        assert len(source._live["main"].frames) == 1


def test_fps_is_at_most_what_was_asked_for():
    grabs = [Grab(image(i), time.monotonic() - 2 + i / 30) for i in range(60)]
    camera = LiveCamera(Script(*grabs), fps=10.0, keep=100)
    camera.connect()
    until(lambda: not camera._driver.steps)
    camera.disconnect()
    assert [number_of(frame.image) for frame in camera.frames] == list(range(0, 60, 3))
    assert camera.fps == 10


def test_a_rig_matches_moments_by_capture_time():
    changed, base = threading.Condition(), time.monotonic() - 0.3
    fast = Script(*(Grab(image(i), base + i * 0.03) for i in range(8)))  # 0 … 0.21
    slow = Script(*(Grab(image(i), base + i * 0.1) for i in range(2)))  # 0, 0.1
    cameras = {
        name: LiveCamera(script, name=name, keep=6, changed=changed, max_age_s=5.0)
        for name, script in (("fast", fast), ("slow", slow))
    }
    with Source(cameras, changed=changed) as source:
        until(lambda: not fast.steps and not slow.steps)
        moment = source.next()
        assert (number_of(moment["fast"].image), number_of(moment["slow"].image)) == (3, 1)
        assert source.next(0.05)["fast"].stale  # no news of the slow one: no new moment


def test_a_stale_view_does_not_hold_up_the_others_and_is_marked():
    changed = threading.Condition()
    good, gone = Script(image(0)), Script(image(0))
    cameras = {
        name: LiveCamera(script, name=name, keep=4, changed=changed, max_age_s=0.3)
        for name, script in (("good", good), ("gone", gone))
    }
    with Source(cameras, changed=changed) as source:
        assert not any(frame.stale for frame in source.next().values())
        until(lambda: cameras["gone"].age_s(time.monotonic()) > 0.3)
        good.steps.append(image(7))
        moment = source.next(5.0)
        assert (moment["good"].stale, moment["gone"].stale) == (False, True)
        assert number_of(moment["good"].image) == 7


def test_connecting_without_warm_up_waits_for_the_connection_only():
    script = Script()
    camera = LiveCamera(script)
    camera.connect(warmup=False)
    script.steps.append(image(3))
    assert number_of(camera.read()) == 3
    camera.disconnect()


def test_whatever_ends_the_reading_of_packets_ends_the_waiting_for_them():
    def packets():
        yield from ()
        raise RuntimeError("surprise")

    newest = streams._NewestPacket(packets())
    with pytest.raises(RuntimeError, match="surprise"):
        next(newest)
    newest.close()


# Records ------------------------------------------------------------------------------------------------


def write_film(path: Path, count=20, fps=10, size=(64, 96), codec="libx264"):
    """H.264 has a key frame every five pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "5", "bf": "0"})
        stream.gop_size = 5
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p" if codec == "libx264" else "yuvj420p"
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def everything(source):
    frames = []
    with source:
        while True:
            try:
                frames.append(source.next()["main"])
            except EOFError:
                return frames


def test_a_film_is_read_every_frame_the_same_each_time(tmp_path):
    film = write_film(tmp_path / "film.mp4")
    one, two = everything(open_source(str(film))), everything(open_source(film))
    assert [number_of(frame.image) for frame in one] == list(range(20))
    assert [frame.captured_s for frame in one] == pytest.approx([i / 10 for i in range(20)])
    assert [frame.index for frame in one] == list(range(20))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one, two, strict=True))
    assert not any(frame.stale for frame in one)
    with open_source(film) as source:
        assert (source.live, source.names, source.fps, source.dropped) == (False, ("main",), 10.0, 0)
    source.close()


@pytest.mark.parametrize(("fps", "numbers"), [(5, list(range(0, 20, 2))), (20, [i // 2 for i in range(40)][:39])])
def test_a_film_is_sampled_at_another_rate(tmp_path, fps, numbers):
    frames = everything(open_source(write_film(tmp_path / "film.mp4"), fps=fps))
    assert [number_of(frame.image) for frame in frames] == numbers
    assert [frame.captured_s for frame in frames] == pytest.approx([i / fps for i in range(len(numbers))])


def test_sampling_holds_over_a_gap():
    shots = [Shot(image(i), t) for i, t in enumerate((0.0, 0.1, 0.5))]
    assert [number_of(shot.image) for shot in resampled(iter(shots), 10.0)] == [0, 1, 1, 1, 1, 2]


def test_a_record_gives_its_images_as_a_camera_too(tmp_path):
    with open_source(write_film(tmp_path / "film.mp4", count=2)) as source:
        camera = source._recorded["main"]
        with pytest.raises(CameraTimeout):
            camera.read_latest()
        assert number_of(camera.read()) == 0
        assert number_of(camera.read_latest()) == 0
        assert number_of(camera.async_read()) == 1
        assert (camera.height, camera.width) == (64, 96)
        with pytest.raises(EOFError):
            camera.read()


def test_a_film_cut_short_is_told(tmp_path):
    film = write_film(tmp_path / "film.mkv", codec="mjpeg")
    data = film.read_bytes()
    film.write_bytes(data[: len(data) * 2 // 3])
    source = open_source(film)
    frames = everything(source)
    assert 5 < len(frames) < 20
    assert source.broken >= 1 or len(frames) < 20
    cut = write_film(tmp_path / "film.mp4").read_bytes()
    (tmp_path / "film.mp4").write_bytes(cut[: len(cut) // 2])  # its index is at the end
    with pytest.raises(CameraError, match="cannot be opened"):
        open_source(tmp_path / "film.mp4")


def test_a_damaged_picture_in_a_film_is_skipped_and_told(tmp_path):
    film = write_film(tmp_path / "film.mkv", codec="mjpeg")
    data = bytearray(film.read_bytes())
    starts = [i for i in range(len(data)) if data[i : i + 3] == b"\xff\xd8\xff"]
    data[starts[4] + 2 : starts[4] + 300] = bytes(298)
    film.write_bytes(data)
    source = open_source(film)
    numbers = [number_of(frame.image) for frame in everything(source)]
    assert numbers == [i for i in range(20) if i != 4]
    assert source.broken == 1
    assert kinds(source) == ["broken"]


def test_pictures_after_a_damaged_one_are_not_believed_before_the_next_key_frame(tmp_path):
    film = write_film(tmp_path / "film.mkv")
    whole = everything(open_source(film))
    with av.open(str(film)) as container:
        packet = [bytes(each) for each in container.demux(video=0)][7]
    film.write_bytes(film.read_bytes().replace(packet, packet[:5] + b"\xff" * (len(packet) - 5)))
    source = open_source(film)
    frames = everything(source)
    assert [frame.index for frame in frames] == [*range(7), *range(10, 20)]
    assert all(np.array_equal(frame.image, whole[frame.index].image) for frame in frames)
    assert source.broken == 3


def test_a_wrong_codec_says_so(tmp_path):
    text = tmp_path / "film.mp4"
    text.write_text("this is no film")
    with pytest.raises(CameraError, match="cannot be opened"):
        open_source(text)
    film = write_film(tmp_path / "film.avi", codec="mjpeg")
    film.write_bytes(film.read_bytes().replace(b"MJPG", b"XQ9Z"))
    with pytest.raises(CameraError, match="codec is not known"):
        open_source(film)
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(CameraError, match="holds no video"):
        open_source(sound)


def test_a_folder_is_read_in_the_order_a_person_counts(tmp_path):
    for i in (10, 2, 1):
        Image.fromarray(image(i)).save(tmp_path / f"shot{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    assert [path.name for path in folder_images(tmp_path)] == ["shot1.png", "shot2.png", "shot10.png"]
    frames = everything(open_source(tmp_path, fps=10))
    assert [number_of(frame.image) for frame in frames] == [1, 2, 10]
    assert [frame.captured_s for frame in frames] == pytest.approx([0, 0.1, 0.2])
    assert np.array_equal(frames[0].image, image(1))


def test_a_folder_s_bad_images_are_left_out_and_told(tmp_path):
    good = jpeg(image(1))
    (tmp_path / "0.jpg").write_bytes(good)
    for i, kind in enumerate(("truncated", "garbage", "empty", "huge"), start=1):
        (tmp_path / f"{i}.jpg").write_bytes(damaged(kind, good))
    (tmp_path / "5.jpg").write_bytes(jpeg(image(5, 64, 128)))
    source = open_source(tmp_path)
    frames = everything(source)
    assert [frame.index for frame in frames] == [0, 5]
    assert frames[1].image.shape == frames[0].image.shape
    assert source.broken == 4
    assert kinds(source) == ["broken"] * 4 + ["resized"]
    assert "1.jpg" in events(source)[0].text


def test_an_empty_folder_and_a_dataset_s_folder_say_what_to_do(tmp_path):
    with pytest.raises(CameraError, match="holds no images"):
        open_source(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    with pytest.raises(UserError, match="Write dataset:"):
        open_source(tmp_path)


def test_a_recorded_rig_joins_by_number_and_ends_with_the_shortest(tmp_path):
    film = write_film(tmp_path / "film.mp4", count=6)
    (tmp_path / "side").mkdir()
    for i in range(4):
        (tmp_path / "side" / f"{i}.jpg").write_bytes(b"" if i == 1 else jpeg(image(i)))
    with open_source([f"front={film}", {"spec": str(tmp_path / "side"), "flip": "h"}]) as source:
        assert source.names == ("front", "camera1")
        moments = [source.next() for _ in range(3)]
        with pytest.raises(EOFError):
            source.next()
    assert [[frame.index for frame in moment.values()] for moment in moments] == [[0, 0], [2, 2], [3, 3]]
    assert number_of(moments[2]["camera1"].image[:, ::-1]) == 3


# Other people's cameras ---------------------------------------------------------------------------------


class LeRobotShaped:
    """As LeRobot's: async_read raises TimeoutError, others when it is not connected."""

    def __init__(self, fail_at=None):
        self.fps, self.width, self.height = 30, 64, 32
        self.is_connected, self.connections, self.count = False, 0, 0
        self.fail_at, self.latest_timestamp = fail_at, None

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
        assert 0.2 < time.monotonic() - frame.captured_s < 0.5  # its own time, not that of reading
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
