"""The thread that reads a live camera: the newest frame, its age, losses, and cameras that come back."""

import threading
import time

import numpy as np
import pytest

from embodied.cameras import (
    BrokenImage,
    Camera,
    CameraError,
    CameraTimeout,
    LiveCamera,
    RecordedCamera,
    Source,
    live,
    streams,
)
from embodied.cameras.live import Grab
from embodied.cameras.transforms import Transform
from tests.cameras import Script, events, image, kinds
from tests.mjpeg_server import number_of
from tests.waiting import until

DEADLINE_S = 20.0


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
