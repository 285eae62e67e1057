"""Rerun live: served to browsers of this machine, or in a window.

The SDK's own server listens on every interface, and waits for good for a viewer that hangs. So Rerun's program is run
instead, bound to loopback, and fed through a pipe; its memory, too, is then not ours.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

from embodied.errors import UserError
from embodied.sinks.background import Background
from embodied.sinks.rerun_view import FLUSH_S, Stream
from embodied.watching.watched import Watched

LOOPBACK = "127.0.0.1"
GRPC_PORT, WEB_PORT = 9876, 9090  # where they are free
SERVER_MEMORY, WINDOW_MEMORY = "256MB", "512MB"  # kept for viewers that come later, or by the window; oldest go first
ROOM = 8  # moments that may wait for the view, with their images
WAIT_MS = 200  # between looks at whether a viewer that takes nothing is still wanted
START_S, END_S = 60.0, 5.0
FEED = '(cat; kill -9 0) | "$@"'  # when the pipe ends, and so when we do however we end, the viewer's group is killed


class LiveView:
    """Rerun's viewer, fed from a thread.

    Moments are left out, and counted in `skipped`, while it is too slow.

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
        stream = Stream(live=live)
        grpc_port, web_port = free_port(grpc_port), free_port(web_port)
        server = f"rerun%2Bhttp://{LOOPBACK}:{grpc_port}/proxy"
        self.address = None if window else f"http://{LOOPBACK}:{web_port}/?url={server}"
        command = [str(viewer_binary()), "--bind", LOOPBACK, "--port", str(grpc_port)]
        if window:
            command += ["--memory-limit", WINDOW_MEMORY, "--hide-welcome-screen", "-"]
        else:
            command += ["--serve-web", "--web-viewer-port", str(web_port), "--server-memory-limit", SERVER_MEMORY, "-"]
        self._process = subprocess.Popen(
            ["sh", "-c", FEED, "sh", *command],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        pipe = self._process.stdin.fileno()
        try:
            os.write(pipe, stream.take())  # it opens its ports when it knows what comes
            for port in (grpc_port, *([] if window else [web_port])):
                _wait_for(port, self._process)
        except BaseException:
            self._end()
            raise
        self._fed = _Fed(stream, pipe)
        self._sink, self._closed = Background(self._fed, live=live, room=ROOM), False

    @property
    def skipped(self) -> int:
        """Moments left out so far."""
        return self._sink.skipped

    def write(self, watched: Watched) -> None:
        self._sink.write(watched)

    def close(self) -> None:
        """End the viewer; one that is slow does not get the rest."""
        if self._closed:
            return
        self._closed = self._fed.closing = True
        try:
            self._sink.close()
        finally:
            self._end()

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class _Fed:
    """What the viewer's thread does."""

    name = LiveView.name

    def __init__(self, stream: Stream, pipe: int) -> None:
        self._stream, self._pipe = stream, pipe
        self._flushed_s = time.monotonic()
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLOUT)
        self.closing = False

    def write(self, watched: Watched) -> None:
        self._stream.add(watched)
        if time.monotonic() - self._flushed_s >= FLUSH_S:
            self._send()
            self._flushed_s = time.monotonic()

    def close(self) -> None:
        self._stream.close()

    def _send(self) -> None:
        """All that was added; a pipe that can be written to takes PIPE_BUF bytes at once."""
        rest = memoryview(self._stream.take())
        while rest and not self.closing:
            if self._poll.poll(WAIT_MS):
                try:
                    rest = rest[os.write(self._pipe, rest[: select.PIPE_BUF]) :]
                except BrokenPipeError as error:
                    raise ConnectionError("Rerun's viewer was closed.") from error


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
