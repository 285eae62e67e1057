"""Rerun: the frames and every number, live in a web browser or a window, or as an `.rrd` file.

Timelines and entity paths are LeRobot's (`frame_index`, `timestamp`, `observation.images.<view>`); ours are added:
`reward/<head>` (potentials), `reward/combined`, `reward/step`, `normalised/<head>`, `success`, `smoothed`,
`latency_ms/<stage>`, `age_ms`, `model_hz`, `dropped`, `stale`, `events`, `goal`.

The SDK's own server listens on every interface of the machine. So a live view is served by Rerun's command instead,
in a process of its own and bound to loopback; its memory, too, is then not ours.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

from embodied.errors import UserError
from embodied.sinks.background import Background
from embodied.sinks.files import Appended
from embodied.watched import Watched

APPLICATION, LOOPBACK = "embodied_watch", "127.0.0.1"
SERVER_MEMORY, WINDOW_MEMORY = "256MB", "512MB"  # kept for viewers that come later, or by the window; oldest go first
JPEG_QUALITY = 80
GRPC_PORT, WEB_PORT = 9876, 9090  # where they are free
ROOM = 8  # moments that may wait for the view, with their images
MAGIC, HEADER, MESSAGE = b"RRF2", 12, struct.Struct("<QQ")  # of an .rrd
FLUSH_S, FLUSH_WAIT_S, START_S, END_S = 0.5, 5.0, 60.0, 5.0
# A subshell reads a pipe that only we hold, so that the viewer ends with us, however we end; and the shell with it.
TETHER = 'exec 3<&0; "$@" 3<&- & viewer=$!; (read -r _ <&3; kill $viewer) & wait $viewer'


def sdk() -> Any:
    """The package `rerun`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import rerun
        import rerun.blueprint
    except ImportError as error:
        raise UserError('Rerun is not installed. pip install "embodied-rewards[rerun]".') from error
    return rerun


class Log:
    """Moments into a recording stream of the SDK.

    Args:
        rerun: the package.
        recording: of the SDK.
        live: `timestamp` is then the wall clock of the first moment and what passed since, which never jumps; else
            the position in the source.
    """

    def __init__(self, rerun: Any, recording: Any, *, live: bool) -> None:
        self._rr, self._to, self._live = rerun, recording, live
        self._clock_s: float | None = None
        self._views: tuple[str, ...] | None = None
        self._shown: dict[str, int] = {}
        self._index, self._goal = 0, None

    def add(self, watched: Watched) -> None:
        rr, to = self._rr, self._to
        if self._clock_s is None:
            self._clock_s = watched.time - watched.at_s if self._live else 0.0
        self._index = max((frame.index for frame in watched.frames.values()), default=self._index)
        to.set_time("frame_index", sequence=self._index)
        to.set_time("timestamp", timestamp=watched.at_s + self._clock_s)
        if watched.frames and self._views != tuple(watched.frames):
            self._views = tuple(watched.frames)
            to.send_blueprint(blueprint(rr, self._views))
        for view, frame in watched.frames.items():
            if self._shown.get(view) != frame.index:  # an old frame is not sent again as if it were new
                self._shown[view] = frame.index
                image = rr.Image(frame.image).compress(jpeg_quality=JPEG_QUALITY)
                to.log(f"observation.images.{view}", image)
        for path, value in _scalars(watched).items():
            to.log(path, rr.Scalars(value))
        if watched.event:
            level = rr.TextLogLevel.WARN if watched.stale else rr.TextLogLevel.INFO
            to.log("events", rr.TextLog(watched.event, level=level))
        if watched.goal != self._goal:
            self._goal = watched.goal
            to.log("goal", rr.TextDocument(watched.goal or ""))


class RerunFile:
    """Writes `….rrd`.

    The SDK's own file writer may hang for good after a full disk, so its bytes are taken and written here.

    Raises:
        UserError: the package `rerun` is not installed.
    """

    def __init__(self, path: Path, *, live: bool) -> None:
        self.name = path.name
        rerun = sdk()
        self._file = Appended(path)
        self._recording = rerun.RecordingStream(APPLICATION)
        self._bytes = self._recording.binary_stream()
        self._log = Log(rerun, self._recording, live=live)
        self._flushed_s: float | None = None
        self._closed = False

    def write(self, watched: Watched) -> None:
        self._log.add(watched)
        if self._flushed_s is None or watched.at_s - self._flushed_s >= FLUSH_S:
            self._flushed_s = watched.at_s
            self._flush()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._flush()
        finally:
            self._file.close()
            self._recording.disconnect()

    def _flush(self) -> None:
        """What was logged since, as one piece."""
        try:
            data = self._bytes.read(flush_timeout_sec=FLUSH_WAIT_S) or b""
        except RuntimeError as error:
            raise OSError(f"Rerun does not give what it was given for {self.name}: {error}") from error
        end = _messages_end(data)
        self._file.write(data[:end] if self._file.size == 0 else data[HEADER:end])


def _messages_end(data: bytes) -> int:
    """Where the messages of a stream end: each reading of one closes it with a footer, which a file has but once.

    A stream is a header, messages (a kind and a length, 8 bytes each, then so many bytes), one of kind 0, its footer.

    Raises:
        OSError: it is no such stream.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise OSError(f"Rerun's stream begins with {data[:8]!r}; {MAGIC!r} is what can be written here.")
    at = HEADER
    while at + MESSAGE.size <= len(data):
        kind, length = MESSAGE.unpack_from(data, at)
        if kind == 0:
            break
        at += MESSAGE.size + length
    return at


class LiveView:
    """Rerun's viewer, served to browsers of this machine or in a window of its own.

    A viewer that goes away, or takes too long, is done without: moments are left out and counted in `skipped`.

    Args:
        window: rather than a server for browsers.
        live: as for every sink.
        grpc_port: of the viewer; another where it is taken.
        web_port: of the page; another where it is taken.

    Attributes:
        address: of the page in a browser; None for a window.

    Raises:
        UserError: the package is missing, or the viewer does not start.
    """

    name = "rerun"

    def __init__(self, *, window: bool, live: bool, grpc_port: int = GRPC_PORT, web_port: int = WEB_PORT) -> None:
        rerun = sdk()
        grpc_port, web_port = free_port(grpc_port), free_port(web_port)
        server = f"rerun+http://{LOOPBACK}:{grpc_port}/proxy"
        self.address = None if window else f"http://{LOOPBACK}:{web_port}/?url={server.replace('+', '%2B')}"
        command = [str(viewer_binary()), "--bind", LOOPBACK, "--port", str(grpc_port)]
        if window:
            command += ["--memory-limit", WINDOW_MEMORY, "--expect-data-soon", "--hide-welcome-screen"]
        else:
            command += ["--serve-web", "--web-viewer-port", str(web_port), "--server-memory-limit", SERVER_MEMORY]
        self._process = subprocess.Popen(
            ["sh", "-c", TETHER, "sh", *command],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            for port in (grpc_port, *([] if window else [web_port])):
                _wait_for(port, self._process)
            recording = rerun.RecordingStream(APPLICATION)
            recording.connect_grpc(server)
        except BaseException:
            self._end()
            raise
        self._sink = Background(_Sent(Log(rerun, recording, live=live), recording, self._process), live=live, room=ROOM)
        self._closed = False

    @property
    def skipped(self) -> int:
        """Moments left out so far."""
        return self._sink.skipped

    def write(self, watched: Watched) -> None:
        self._sink.write(watched)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._sink.close()
        finally:
            self._end()

    def _end(self) -> None:
        """Let go of the tether; the shell then ends the viewer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Sent:
    """What the viewer's thread does."""

    name = LiveView.name

    def __init__(self, log: Log, recording: Any, viewer: subprocess.Popen[bytes]) -> None:
        self._log, self._recording, self._viewer = log, recording, viewer
        self._flushed_s = time.monotonic()

    def write(self, watched: Watched) -> None:
        if self._viewer.poll() is not None:  # the SDK would keep everything for it
            raise ConnectionError("Rerun's viewer was closed.")
        self._log.add(watched)
        if time.monotonic() - self._flushed_s >= FLUSH_S:
            self._flush()
            self._flushed_s = time.monotonic()

    def close(self) -> None:
        try:
            if self._viewer.poll() is None:
                self._flush()
        finally:
            self._recording.disconnect()

    def _flush(self) -> None:
        try:
            self._recording.flush(timeout_sec=FLUSH_WAIT_S)
        except RuntimeError as error:
            raise ConnectionError(f"Rerun's viewer does not answer: {error}") from error


def blueprint(rerun: Any, views: tuple[str, ...]) -> Any:
    """The views above, what they are worth below, how old and how fast beside it."""
    rrb = rerun.blueprint
    images = [rrb.Spatial2DView(origin=f"observation.images.{view}", name=view) for view in views]
    recent = rrb.VisibleTimeRange(
        "timestamp",
        start=rrb.TimeRangeBoundary.cursor_relative(seconds=-30),
        end=rrb.TimeRangeBoundary.cursor_relative(),
    )

    def curves(name: str, *paths: str) -> Any:
        return rrb.TimeSeriesView(name=name, origin="/", contents=[f"+ /{path}" for path in paths], time_ranges=recent)

    below = [
        curves("reward", "reward/**"),
        curves("normalised, success", "normalised/**", "smoothed", "success", "stale"),
        rrb.Vertical(curves("latency, ms", "latency_ms/**", "age_ms"), curves("model, Hz", "model_hz")),
        rrb.Vertical(rrb.TextDocumentView(name="goal", origin="goal"), rrb.TextLogView(name="events", origin="events")),
    ]
    return rrb.Blueprint(
        rrb.Vertical(rrb.Horizontal(*images), rrb.Horizontal(*below), row_shares=[3, 2]),
        rrb.TimePanel(timeline="timestamp", state="collapsed"),
        rrb.BlueprintPanel(state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
    )


def _scalars(watched: Watched) -> dict[str, float]:
    """Entity path -> value; what is not known is left out, so that its curve breaks."""
    values: dict[str, float | None] = {
        "smoothed": watched.smoothed,
        "success": watched.success,
        "stale": watched.stale,
        "age_ms": watched.age_s * 1000,
        "model_hz": watched.model_hz,
        "dropped": watched.dropped,
        "latency_ms/total": None if watched.latency_s is None else watched.latency_s * 1000,
        **{f"latency_ms/{name}": seconds * 1000 for name, seconds in watched.latencies_s.items()},
    }
    if watched.reading is not None:
        values |= {f"reward/{name}": value for name, value in watched.reading.potentials.items()}
        values |= {f"normalised/{name}": value for name, value in watched.normalised.items()}
        values |= {"reward/combined": watched.reading.combined, "reward/step": watched.reading.reward}
    return {path: float(value) for path, value in values.items() if value is not None}


def viewer_binary() -> Path:
    """Rerun's program itself; the command of that name is a script that would survive being ended."""
    override = os.environ.get("RERUN_CLI_PATH")
    if override:
        return Path(override)
    import rerun_cli

    assert rerun_cli.__file__ is not None
    return Path(rerun_cli.__file__).with_name("rerun")


def free_port(wanted: int) -> int:
    """The port asked for, of loopback, or any other where that is taken."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return probe.getsockname()[1]
    raise UserError("Rerun: no port of loopback is free.")


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise UserError(
                f"Rerun's viewer ended at its start (status {process.returncode}). A window needs a display."
            )
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
            return
        time.sleep(0.05)
    raise UserError(f"Rerun's viewer did not start within {START_S:.0f} s.")
