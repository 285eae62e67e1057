"""Cameras that send MJPEG over a real socket, with every fault a network can have."""

import socket
import threading
import time

import numpy as np
import pytest

from embodied.cameras import CameraError, open_source, streams
from embodied.cameras.streams import StreamDriver
from tests.cameras import events, fresh, kinds
from tests.mjpeg_server import MjpegServer, number_of
from tests.waiting import until


@pytest.fixture
def camera():
    with MjpegServer(fps=40) as server:
        yield server


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
        late = np.diff(list(camera.sent_at.copy().values())).max()  # longer than a period on a busy machine
        assert np.median(ages) < 0.1 + late
        red, blue = frame.image[45, 60], frame.image[45, 20]  # mirrored
        assert red[0] > 150 > red[2]
        assert blue[2] > 150 > blue[0]


def test_a_slow_consumer_never_gets_a_backlog(camera):
    with open_source(camera.url) as source:
        before = number_of(fresh(source).image)
        until(lambda: camera.sent >= before + 40)
        asked = camera.sent
        until(lambda: number_of(fresh(source).image) >= asked - 3)  # without having had those between
        assert source.dropped >= 10


def test_a_machine_too_busy_to_decode_gets_no_backlog(camera):
    driver = StreamDriver(camera.url)
    driver.open()
    try:
        first = number_of(driver.grab().image)
        until(lambda: camera.sent >= first + 60)  # decodes nothing
        grab = driver.grab()
        assert grab.missed >= 15
        assert number_of(grab.image) >= first + grab.missed
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

        def told():  # one alone may make room for the next picture before anybody decodes it
            camera.send(kind, kind, kind)
            return fresh(source) and source.broken >= 2

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
