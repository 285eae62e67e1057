"""Live pictures through PyAV: RTSP, MJPEG and video over HTTP, and V4L2 devices, with nothing buffered on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from embodied.cameras.camera import BrokenImage, CameraError
from embodied.cameras.decoding import STRICT, Believed, check_stream, reason, without_password
from embodied.cameras.live import Grab, SenderClock
from embodied.cameras.snapshots import FORMATS, Snapshots, no_proxy_reaches
from embodied.pixels import to_rgb

OPEN_S, SILENT_S = 5.0, 2.0  # a connection that says nothing for longer is given up and made again
LOW_DELAY = {
    "fflags": "nobuffer+discardcorrupt",
    "probesize": "100000",  # bytes and microseconds that are looked at before the first picture, at most
    "analyzeduration": "500000",
}
STILLS = ("mjpeg", "png", "rawvideo")  # codecs each of whose pictures stands alone
RTSP = {"rtsp_transport": "tcp", "max_delay": "0"}  # UDP loses packets, and with them pictures


class StreamDriver:
    """A network stream or a device, by PyAV.

    Args:
        url: what to open.
        format: FFmpeg's name of the input format; None: found out.
        options: of FFmpeg, beyond those for low delay.
        trust_stamps: whether the stream's times say how old a picture is (RTSP, devices, video over HTTP); otherwise
            it is new when it arrives, for cameras whose clocks run wrong.

    Attributes:
        name: the URL without its password.
        fps: as the stream says; None where it does not.
    """

    def __init__(
        self,
        url: str,
        *,
        format: str | None = None,
        options: dict[str, str] | None = None,
        trust_stamps: bool = True,
    ) -> None:
        self.name, self.fps = without_password(url), None
        direct = {"http_proxy": ""} if no_proxy_reaches(url) else {}  # FFmpeg's own variable knows no exception
        self._options = {**LOW_DELAY, **(RTSP if url.startswith("rtsp") else {}), **direct, **(options or {})}
        self._url, self._format = url, format
        self._container: Any = None
        self._pictures: _Pictures | None = None
        self._clock = SenderClock()
        self._trust, self._stamped, self._begun = trust_stamps, False, False
        self._snapshots: Snapshots | None = None
        self._believed = Believed(self.name)

    def open(self) -> None:
        """Connect and find the video in it."""
        if "://" not in self._url and not Path(self._url).exists():
            raise CameraError(f"{self.name}: no such device. {devices_here()}")
        try:
            self._container = av.open(self._url, format=self._format, options=self._options, timeout=(OPEN_S, SILENT_S))
        except (av.error.FFmpegError, OSError) as error:
            raise CameraError(f"{self.name}: cannot be opened ({reason(error)}).") from error
        if self._url.startswith("http") and self._container.format.name in FORMATS:
            self.close()
            self._snapshots = Snapshots(self._url, self.name, OPEN_S)
            return
        check_stream(self._container, self.name)
        stream = self._container.streams.video[0]
        stream.thread_type = "SLICE"  # frame threads would hold pictures back
        stream.codec_context.options = STRICT
        self.fps = float(stream.average_rate) if stream.average_rate else None
        self._clock = SenderClock()
        self._stamped = self._trust and "jpeg" not in self._container.format.name  # those have no time of their own
        self._believed = Believed(self.name)
        self._pictures = _Pictures(self._container, stream, self.name, self._believed)

    def grab(self) -> Grab:
        """The next picture; CameraError where the stream ended or said nothing for `SILENT_S`."""
        if self._snapshots is not None:
            return self._snapshots.grab()
        came = self._following()
        if came is None:
            raise CameraError(f"{self.name}: the stream ended.")
        picture, arrived, missed = came
        stamp = picture.time if self._stamped else None
        captured = arrived if stamp is None else self._clock.captured(stamp, arrived)
        self._begun = True
        self._believed.check(picture, arrived)
        try:
            image = to_rgb(picture, accurate=False)
        except ValueError as error:
            raise BrokenImage(f"{self.name}: {error}.") from error
        return Grab(np.ascontiguousarray(np.rot90(image, round(picture.rotation / 90))), captured, missed)

    def _following(self) -> tuple[av.VideoFrame, float, int] | None:
        """The next picture; None at the end.

        FFmpeg reads multipart pictures by their headers, and gives up where a part has no type, as some cameras send
        them. Then the pictures are found by their own beginnings, whatever lies between them.
        """
        try:
            return None if self._pictures is None else next(self._pictures, None)
        except CameraError as error:
            headless = isinstance(error.__cause__, av.error.InvalidDataError) and not isinstance(error, BrokenImage)
            if self._begun or not headless or self._container.format.name != "mpjpeg":
                raise
            self.close()
            self._format = "mjpeg"
            self.open()
            return None if self._pictures is None else next(self._pictures, None)

    def close(self) -> None:
        """Disconnect."""
        self._snapshots = None
        if self._pictures is not None:
            self._pictures.close()
            self._pictures = None
        if self._container is not None:
            self._container.close()
            self._container = None


class _Packets:
    """Compressed pictures and when they came, each in turn: what is not read yet waits with the sender."""

    def __init__(self, packets: Iterator[av.Packet]) -> None:
        self._packets = packets

    def __next__(self) -> tuple[av.Packet, float, int]:
        return next(self._packets), time.monotonic(), 0

    def close(self) -> None:
        pass


class _NewestPacket:
    """The newest compressed picture, when it came, and how many it took the place of.

    A thread reads them as they come. Without it a machine too busy to decode every picture would find old ones in the
    network's buffers, seconds of them, and nothing in MJPEG would tell their age.

    Args:
        packets: of the stream.
        late: whether each comes out when the next one begins, so that it came when the one before it came out.
    """

    def __init__(self, packets: Iterator[av.Packet], *, late: bool = False) -> None:
        self._packets, self._changed, self._late = packets, threading.Condition(), late
        self._newest: tuple[av.Packet, float] | None = None
        self._missed, self._stopped = 0, False
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="camera-packets", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        end: BaseException = StopIteration()
        before: float | None = None
        try:
            for packet in self._packets:
                now = time.monotonic()
                came, before = before if self._late and before is not None else now, now
                with self._changed:
                    if self._stopped:
                        return
                    self._missed += self._newest is not None
                    self._newest = (packet, came)
                    self._changed.notify()
        except (
            Exception
        ) as error:  # raised where the pictures are asked for; whoever waits there must not wait for ever
            end = error
        with self._changed:
            self._end = end
            self._changed.notify()

    def __next__(self) -> tuple[av.Packet, float, int]:
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._end)  # the stream's own timeout ends it
            if self._newest is None:
                assert self._end is not None
                raise self._end
            (packet, came), missed = self._newest, self._missed
            self._newest, self._missed = None, 0
        return packet, came, missed

    def close(self) -> None:
        """Wait for the thread: nobody may read a container that is closed."""
        with self._changed:
            self._stopped = True
        self._thread.join()


class _Pictures:
    """Pictures one by one, when each came and how many before it were let go; a damaged one raises BrokenImage and the
    next call goes on.

    FFmpeg's parser gives an H.264 or H.265 picture out when the next one begins. So what comes out now came when the
    one before it came out: one period ago, or before a stall.
    """

    def __init__(self, container: Any, stream: Any, name: str, believed: Believed) -> None:
        alone = stream.codec_context.name in STILLS
        packets = container.demux(stream)
        self._packets = _NewestPacket(packets, late=container.format.name == "mjpeg") if alone else _Packets(packets)
        self._name = name
        self._believed = believed
        self._held = stream.codec_context.name in ("h264", "hevc") and container.format.name in ("rtsp", "mpegts")
        self._before_s: float | None = None  # when the last packet came out
        self._ready: list[tuple[av.VideoFrame, float]] = []
        self._missed = 0

    def __iter__(self) -> _Pictures:
        return self

    def close(self) -> None:
        self._packets.close()

    def __next__(self) -> tuple[av.VideoFrame, float, int]:
        while not self._ready:
            try:
                packet, now, missed = next(self._packets)
            except StopIteration:
                raise
            except (av.error.FFmpegError, OSError) as error:
                raise CameraError(f"{self._name}: lost ({reason(error)}).") from error
            self._missed += missed
            came = self._before_s if self._held and self._before_s is not None else now
            self._before_s = now
            try:
                self._ready = [(picture, came) for picture in packet.decode()]
            except av.error.FFmpegError as error:
                raise self._believed.damaged(came, reason(error)) from error
        missed, self._missed = self._missed, 0
        return *self._ready.pop(0), missed


def devices_here() -> str:
    """The cameras that this machine has, as the end of an error text."""
    found = sorted(str(path) for path in Path("/dev").glob("video*"))
    return f"Cameras here: {', '.join(found)}." if found else "This machine has no /dev/video* at all."
