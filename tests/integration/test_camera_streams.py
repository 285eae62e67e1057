"""Cameras over real sockets, worlds and datasets as cameras; every fault a network can have."""

import base64
import contextlib
import json
import socket
import threading
import time
from fractions import Fraction

import av
import numpy as np
import pytest
import zmq

from embodied.cameras import CameraError, Source, live, open_source, streams
from embodied.cameras.streams import StreamDriver
from embodied.datasets import Writer
from embodied.errors import UserError
from tests.cameras import events, kinds
from tests.mjpeg_server import MjpegServer, damaged, jpeg, number_of, picture
from tests.rtsp_server import RtspServer
from tests.waiting import until

DEADLINE_S = 30.0


def fresh(source: Source, view="main"):
    """The next frame that is not stale."""
    return until(lambda: (m := source.next(0.2)) and not m[view].stale and m[view])


@pytest.fixture
def quick(monkeypatch):
    """Losses are noticed and mended sooner."""
    monkeypatch.setattr(streams, "SILENT_S", 0.6)
    monkeypatch.setattr(live, "BACKOFF_MAX_S", 0.2)


@pytest.fixture
def camera():
    with MjpegServer(fps=40) as server:
        yield server


@pytest.fixture
def rtsp():
    with RtspServer(fps=40) as server:
        yield server


# MJPEG over HTTP ----------------------------------------------------------------------------------------


def test_mjpeg_gives_the_newest_picture_and_its_age(camera):
    with open_source(camera.url, flip="h", resize=[60, 80]) as source:
        assert source.live
        ages = []
        for _ in range(20):
            frame = fresh(source)
            taken = camera.sent_at[number_of(frame.image[:, ::-1])]
            assert taken <= frame.captured_s
            ages.append(frame.captured_s - taken)
            assert frame.image.shape == (60, 80, 3)
            assert frame.image.flags.c_contiguous
        assert np.median(ages) < 0.1
        red, blue = frame.image[45, 60], frame.image[45, 20]  # mirrored
        assert red[0] > 150 > red[2]
        assert blue[2] > 150 > blue[0]


def test_a_slow_consumer_never_gets_a_backlog(camera):
    with open_source(camera.url) as source:
        fresh(source)
        time.sleep(0.5)
        behind = camera.sent - number_of(fresh(source).image)
        assert behind <= 3
        assert source.dropped >= 10


def test_a_machine_too_busy_to_decode_gets_no_backlog(camera):
    driver = StreamDriver(camera.url)
    driver.open()
    try:
        driver.grab()
        time.sleep(1.0)  # decodes nothing
        grab = driver.grab()
        assert camera.sent - number_of(grab.image) <= 3
        assert grab.missed >= 15
    finally:
        driver.close()


def test_a_camera_gone_at_the_start_says_so_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(CameraError, match=f"127.0.0.1:{port}/x.*Connection refused"):
        open_source(f"http://127.0.0.1:{port}/x")
    with pytest.raises(CameraError, match="Connection refused"):
        open_source(f"rtsp://127.0.0.1:{port}/x")
    assert time.monotonic() - began < 5


def test_what_is_no_camera_says_so(camera):
    with pytest.raises(CameraError, match="cannot be opened"):
        open_source(camera.url.replace("/stream", "/text"))
    with pytest.raises(CameraError, match="404"):
        open_source(camera.url.replace("/stream", "/missing"))


def test_a_server_that_accepts_and_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(streams, "OPEN_S", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"//127.0.0.1:{server.getsockname()[1]}/x"
        for scheme in ("http:", "rtsp:"):
            with pytest.raises(CameraError, match="cannot be opened"):
                open_source(scheme + url)


def test_a_camera_gone_in_mid_run_is_stale_then_comes_back(camera, quick):
    with open_source(camera.url, max_age_s=0.3) as source:
        fresh(source)
        camera.leave()
        last = until(lambda: (f := source.next(0.1)["main"]).stale and f)
        assert source.next(0.1)["main"].stale
        until(lambda: "lost" in kinds(source))
        camera.come_back()
        assert fresh(source).index > last.index
        assert kinds(source)[-1] == "back"


def test_a_cut_connection_is_made_again(camera, quick):
    with open_source(camera.url) as source:
        fresh(source)
        before = camera.connections
        camera.drop()
        until(lambda: source.next(0.1) and camera.connections > before)
        fresh(source)
        assert "lost" in kinds(source)
        assert kinds(source)[-1] == "back"


def test_a_stall_is_stale_and_told_and_over_when_it_is_over(camera):
    with open_source(camera.url, max_age_s=0.2) as source:
        fresh(source)
        camera.stall()
        until(lambda: source.next(0.1)["main"].stale)
        until(lambda: source.next(0.1) and "stalled" in kinds(source))
        camera.go_on()
        fresh(source)
        assert kinds(source)[:2] == ["stalled", "back"]


def test_a_stall_that_does_not_end_is_a_loss(camera, quick):
    with open_source(camera.url, max_age_s=0.2) as source:
        fresh(source)
        camera.stall()
        until(lambda: source.next(0.1)["main"].stale and "lost" in kinds(source))
        camera.go_on()
        fresh(source)


@pytest.mark.parametrize("kind", ["truncated", "garbage", "empty", "huge", "text"])
def test_a_bad_picture_is_skipped_and_told(camera, kind):
    with open_source(camera.url) as source:
        first = fresh(source)

        def told():  # one may make room for the next picture before anybody decodes it
            camera.send(kind)
            return source.next(0.1) and source.broken >= 2

        until(told)
        for _ in range(5):
            frame = fresh(source)
            assert frame.image.shape == first.image.shape
            assert frame.image[90, 40, 0] > 150  # red on the left, as ever: no half-grey picture came through
            number_of(frame.image)
        assert "broken" in kinds(source)
        assert "lost" not in kinds(source)


def test_another_size_is_brought_to_the_first(camera):
    with open_source(camera.url) as source:
        fresh(source)
        camera.resize(240, 320)
        until(lambda: source.next(0.1) and "resized" in kinds(source))
        frame = fresh(source)
        assert frame.image.shape == (120, 160, 3)
        assert camera.sent - number_of(frame.image) < 40


def test_the_wall_clock_may_jump(camera, monkeypatch):
    """An NTP step or a wrong time zone: nothing of ours reads the wall clock."""
    wall = time.time
    with open_source(camera.url, max_age_s=2) as source:
        fresh(source)
        for jump in (-3600, 3600):
            monkeypatch.setattr(time, "time", lambda jump=jump: wall() + jump)
            for _ in range(5):
                frame = source.next(5.0)["main"]
                assert not frame.stale
                assert 0 <= time.monotonic() - frame.captured_s < 2


def test_a_rig_of_two(camera, quick):
    with MjpegServer(fps=15, size=(48, 64)) as other:
        spec = {"front": camera.url, "side": {"spec": other.url, "rotate": 90}}
        with open_source(spec, max_age_s=0.4) as source:
            assert source.names == ("front", "side")
            seen = []
            for _ in range(8):
                moment = until(lambda: (m := source.next(1.0)) and not any(f.stale for f in m.values()) and m)
                assert moment["side"].image.shape == (64, 48, 3)
                seen.append(moment["front"].captured_s - moment["side"].captured_s)
            assert np.median(np.abs(seen)) < 0.07  # nearest in time: half a period of the fast one, and some noise
            other.leave()
            moment = until(lambda: (m := source.next(1.0))["side"].stale and not m["front"].stale and m)
            assert {event.camera for event in events(source) if event.kind == "lost"} <= {"side"}
            other.come_back()
            until(lambda: (m := source.next(1.0)) and not any(f.stale for f in m.values()))


def test_closing_leaves_no_thread_and_no_connection(camera):
    source = open_source(camera.url)
    fresh(source)
    source.close()
    source.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("camera-")]
    until(lambda: not camera._sockets)


# Video over HTTP ----------------------------------------------------------------------------------------


class HttpVideo:
    """PyAV serving one client: live H.264 in MPEG-TS, or sound alone."""

    def __init__(self, *, sound=False):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}/live"
        self.sound, self.sent_at = sound, {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        client, _ = self.server.accept()
        with client, client.makefile("rwb", buffering=0) as file, contextlib.suppress(OSError):
            while file.readline().strip():
                pass
            file.write(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nConnection: close\r\n\r\n")
            self.film(file)

    def film(self, file):
        with av.open(file, "w", format="mpegts", options={"flush_packets": "1"}) as container:
            if self.sound:
                stream = container.add_stream("mp2", rate=48000, layout="mono", format="s16")
            else:
                options = {"preset": "ultrafast", "tune": "zerolatency"}
                stream = container.add_stream("libx264", rate=40, options=options)
                stream.width, stream.height, stream.pix_fmt, stream.gop_size = 160, 120, "yuv420p", 5
                stream.codec_context.thread_count = 1
                stream.codec_context.time_base = Fraction(1, 1000)
            number, began = 0, time.monotonic()
            while not self.ended.wait(1 / 40):
                if self.sound:
                    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
                    frame.sample_rate, frame.pts = 48000, number * 1152
                else:
                    self.sent_at[number] = now = time.monotonic()  # its clock keeps time however busy the machine is
                    frame = av.VideoFrame.from_ndarray(picture(number, 120, 160), format="rgb24")
                    frame.pts, frame.time_base = round(1000 * (now - began)), Fraction(1, 1000)
                container.mux(stream.encode(frame))
                number += 1

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()
        self.server.close()


def test_live_video_over_http_with_its_true_age():
    with HttpVideo() as server, open_source(server.url) as source:
        assert source.live
        ages = []
        for _ in range(20):
            frame = fresh(source)
            ages.append(frame.captured_s - server.sent_at[number_of(frame.image)])
        period = np.diff(list(server.sent_at.copy().values())).max()  # longer on a busy machine
        assert -period <= np.median(ages) < 0.06 + period  # at worst it is said to be a picture older


def test_a_stream_without_video_says_so():
    with HttpVideo(sound=True) as server, pytest.raises(CameraError, match="holds no video"):
        open_source(server.url)


# RTSP ---------------------------------------------------------------------------------------------------


def test_rtsp_gives_pictures_with_their_true_age(rtsp):
    with open_source(rtsp.url) as source:
        ages = []
        for _ in range(20):
            frame = fresh(source)
            ages.append(frame.captured_s - rtsp.sent_at[number_of(frame.image)])
        assert -0.005 <= np.median(ages) < 0.02  # though FFmpeg holds each picture back until the next
        red = frame.image[90, 40]
        assert red[0] > 150 > red[2]


def test_rtsp_pictures_that_queued_up_are_old(rtsp):
    with open_source(rtsp.url, max_age_s=0.3) as source:
        for _ in range(10):
            fresh(source)
        rtsp.hold()
        time.sleep(1.2)
        rtsp.release()
        count, ends = 0, time.monotonic() + 30  # a busy machine may need a while until it is up to date again
        while count < 30 and time.monotonic() < ends:
            frame = source.next(0.1)["main"]
            age = time.monotonic() - rtsp.sent_at[number_of(frame.image)]
            assert frame.stale or age < 0.3 + 0.1
            count += not frame.stale
        assert count == 30


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_the_camera_s_clock_may_jump(rtsp, jump):
    with open_source(rtsp.url, max_age_s=2) as source:
        for _ in range(5):
            fresh(source)
        rtsp.jump(jump)
        for _ in range(20):
            frame = source.next(5.0)["main"]
            assert not frame.stale
            assert abs(frame.captured_s - rtsp.sent_at[number_of(frame.image)]) < 1


def test_rtsp_pictures_after_a_damaged_one_are_not_believed(rtsp):
    with open_source(rtsp.url) as source:
        fresh(source)
        rtsp.damage()
        seen = 0
        end = time.monotonic() + DEADLINE_S
        while (source.broken < 2 or seen < 10) and time.monotonic() < end:
            moment = source.next(0.2)
            if not moment["main"].stale:
                expected = picture(number_of(moment["main"].image), 120, 160).astype(int)
                assert np.abs(moment["main"].image - expected).mean() < 15
                seen += source.broken > 0
        assert source.broken >= 2  # the damaged one and what was coded on it


def test_rtsp_cut_is_made_again(rtsp, quick):
    with open_source(rtsp.url) as source:
        fresh(source)
        rtsp.drop()
        until(lambda: source.next(0.1) and "lost" in kinds(source))
        fresh(source)
        assert kinds(source)[-1] == "back"


# ZeroMQ, as LeRobot's image server sends --------------------------------------------------------------------


class ImageServer:
    """LeRobot's: every camera's picture in each message, red and blue exchanged in the JPEG."""

    def __init__(self, fps=40.0):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.fps, self.number, self.silent, self.offset_s = fps, 0, False, 0.0
        self.instead: list[bytes] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def message(self):
        pictures = {"head": picture(self.number, 64, 96), "wrist": picture(self.number, 32, 48)}
        images = {name: base64.b64encode(jpeg(each[:, :, ::-1])).decode() for name, each in pictures.items()}
        return {"timestamps": dict.fromkeys(images, time.time() + self.offset_s), "images": images}

    def run(self):
        while not self.ended.wait(1 / self.fps):
            if not self.silent:
                self.number += 1
                self.socket.send(self.instead.pop() if self.instead else json.dumps(self.message()).encode())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()
        self.socket.close()
        self.context.term()


def test_lerobot_s_zeromq_cameras_in_their_true_colours():
    with ImageServer() as server, open_source(f"zmq://127.0.0.1:{server.port}/wrist") as source:
        frame = fresh(source)
        assert frame.image.shape == (32, 48, 3)
        assert frame.image[24, 12, 0] > 150 > frame.image[24, 12, 2]
        assert server.number - number_of(frame.image) < 10
        with open_source(f"zmq://127.0.0.1:{server.port}", swapped=False) as raw:
            frame = fresh(raw)
            assert frame.image.shape == (64, 96, 3)
            assert frame.image[48, 24, 2] > 150 > frame.image[48, 24, 0]


def test_zeromq_messages_that_are_rubbish_are_skipped_and_silence_is_stale():
    with ImageServer() as server, open_source(f"zmq://127.0.0.1:{server.port}", max_age_s=0.3) as source:
        fresh(source)
        good = base64.b64encode(damaged("truncated", jpeg(picture(1, 64, 96)))).decode()
        bad = [b"", b"\xff\xfe", b"[]", b"{}", b'{"images": {}}', b'{"images": {"head": "?"}}',
               b'{"images": {"head": 3}}',
               json.dumps({"images": {"head": good}, "timestamps": {"head": "late"}}).encode()]  # fmt: skip
        for each in bad:
            before = source.broken
            server.instead.append(each)
            until(lambda before=before: source.next(0.1) and source.broken > before)
        fresh(source)
        server.silent = True
        until(lambda: source.next(0.1)["main"].stale and "stalled" in kinds(source))
        server.silent = False
        fresh(source)
        for jump in (-3600, 7200):  # of the sender's wall clock
            server.offset_s += jump
            for _ in range(10):
                assert abs(fresh(source).captured_s - time.monotonic()) < 0.3


def test_a_zeromq_camera_that_is_not_there_or_has_no_such_camera(monkeypatch):
    monkeypatch.setattr(live, "CONNECT_S", 0.6)
    with pytest.raises(CameraError, match="gave no picture"):
        open_source("zmq://127.0.0.1:9")
    with ImageServer() as server, pytest.raises(CameraError, match=r"no camera 'hed'.*did you mean head"):
        open_source(f"zmq://127.0.0.1:{server.port}/hed")


# Worlds and datasets ------------------------------------------------------------------------------------


def test_a_world_is_a_record_the_same_each_time():
    def images():
        with open_source("env:desk-drawer/side", image_size=48, seed=3, policy="random") as source:
            assert (source.live, source.fps) == (False, 20.0)
            return [source.next()["main"] for _ in range(6)]

    one, two = images(), images()
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[0].image, one[-1].image)
    assert [frame.captured_s for frame in one] == pytest.approx([i / 20 for i in range(6)])


def test_a_world_s_episode_ends():
    with open_source("env:cartpole", image_size=32) as source:
        count = 0
        with pytest.raises(EOFError):  # noqa: PT012
            while True:
                source.next()
                count += 1
    assert 5 < count <= 501


def test_a_world_goes_on_at_its_own_pace():
    with open_source("env:desk-drawer", live=True, image_size=32) as source:
        fresh(source)
        began, first = time.monotonic(), fresh(source).index
        last = until(lambda: (f := source.next(1.0)["main"]).index >= first + 10 and f)
        assert (last.index - first) / (time.monotonic() - began) < 25
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("camera-")]


def test_a_wrong_world_camera_or_policy_says_what_there_is():
    for spec, settings, text in (
        ("env:desk-drawre", {}, "Did you mean desk-drawer"),
        ("env:desk-drawer/frnt", {}, "no camera 'frnt'"),
        ("env:cartpole", {"policy": "expert"}, "no scripted expert"),
        ("env:cartpole", {"policy": "best"}, "policy must be one of"),
        ("env:cartpole", {"episodes": 0}, "episodes must be at least 1"),
        ("env:desk-drawer/frnt", {"live": True}, "no camera 'frnt'"),
    ):
        with pytest.raises(UserError, match=text):
            open_source(spec, **settings)


def test_a_dataset_s_episode(tmp_path):
    frames = {"front": np.stack([picture(i, 64, 96) for i in range(6)])}
    features = {"action": {"dtype": "float32", "shape": [2], "names": None}}
    root = tmp_path / "data"
    with Writer(root, fps=10, features=features, cameras={"front": (64, 96)}, env={}) as writer:
        for _ in range(2):
            writer.add({"action": np.zeros((6, 2), np.float32)}, frames, instruction="", kind="", steps=(), seed=0)
    with open_source(f"dataset:{root}#1/front") as source:
        assert source.fps == 10
        seen = [source.next()["main"] for _ in range(6)]
        with pytest.raises(EOFError):
            source.next()
    assert [number_of(frame.image) for frame in seen] == list(range(6))
    with open_source(f"dataset:{root}", fps=5) as source:
        assert [number_of(source.next()["main"].image) for _ in range(3)] == [0, 2, 4]
    for place, text in (
        ("#2", "episode must be from 0 to 1"),
        ("#0/back", "no camera 'back'"),
        ("#x", "must be dataset"),
    ):
        with pytest.raises(UserError, match=text):
            open_source(f"dataset:{root}{place}")
