"""Cameras that send video, over HTTP and RTSP: how old a picture truly is, and which are not to be believed."""

import contextlib
import socket
import threading
import time
from fractions import Fraction

import av
import numpy as np
import pytest

from embodied.cameras import CameraError, open_source
from tests.cameras import fresh, kinds
from tests.mjpeg_server import number_of, picture
from tests.rtsp_server import RtspServer
from tests.waiting import until

DEADLINE_S = 30.0


@pytest.fixture
def rtsp():
    with RtspServer(fps=40) as server:
        yield server


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
        late = np.diff(list(rtsp.sent_at.copy().values())).max() - 1 / rtsp.fps  # of a busy machine
        assert -0.005 <= np.median(ages) < 0.02 + late  # though FFmpeg holds each picture back until the next
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
            now = time.monotonic()
            frame = source.next(0.1)["main"]
            age = now - rtsp.sent_at[number_of(frame.image)]
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
