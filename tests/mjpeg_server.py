"""A real camera on the network: HTTP, multipart/x-mixed-replace, JPEG by JPEG, with faults on demand.

    with MjpegServer(fps=30, size=(120, 160)) as server:
        source = open_source(server.url)
        server.stall()      # connected, nothing comes
        server.go_on()
        server.drop()       # every connection is cut; new ones are welcome
        server.leave()      # cut, and nobody listens
        server.come_back()  # on the same port
        server.resize(240, 320)
        server.send("truncated", "garbage", "empty", "huge", "text")  # one bad part each, next

Every picture carries its number, which `number_of(image)` reads back even after JPEG, resizing and changed colours.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

import numpy as np
from PIL import Image

BITS = 16
HUGE = 65_500  # pixels a side that a "huge" JPEG's header claims
Picture = Callable[[int, int, int], np.ndarray]  # number, H, W -> (H, W, 3) uint8


def picture(number: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: red on the left, blue on the right, and the number in black and white along the top."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 200
    image[:, width // 2 :, 2] = 200
    edges = np.linspace(0, width, BITS + 1).astype(int)
    for bit in range(BITS):
        image[: height // 4, edges[bit] : edges[bit + 1]] = 255 if number >> bit & 1 else 0
    return image


def number_of(image: np.ndarray) -> int:
    """The number that `picture` drew, modulo 2**16."""
    height, width = image.shape[:2]
    edges = np.linspace(0, width, BITS + 1).astype(int)
    middles = (edges[:-1] + edges[1:]) // 2
    bits = image[height // 8, middles].mean(axis=-1) > 127
    return int(sum(1 << i for i, bit in enumerate(bits) if bit))


def jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    """(H, W, 3) uint8 -> a JPEG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def damaged(kind: str, data: bytes) -> bytes:
    """A bad part in place of a good JPEG."""
    if kind == "truncated":
        return data[: len(data) // 2]
    if kind == "garbage":
        return bytes(np.random.default_rng(0).integers(0, 256, 3000, np.uint8))
    if kind == "empty":
        return b""
    if kind == "text":
        return b"<html><body>camera is busy</body></html>"
    if kind == "huge":  # a small file whose header claims 65,500 x 65,500 pixels
        at = data.index(b"\xff\xc0") + 5
        return data[:at] + HUGE.to_bytes(2, "big") * 2 + data[at + 4 :]
    raise ValueError(f"damaged: kind must be truncated, garbage, empty, text or huge; got {kind!r}.")


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # `server_close` waits for the connections' threads
    allow_reuse_address = True
    owner: MjpegServer

    def handle_error(self, request: object, client_address: object) -> None:
        """Cut connections are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        owner = self.server.owner
        if self.path.startswith("/text"):
            body = b"<html><body>not a camera</body></html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        if self.path.startswith("/one"):
            if owner.refuse is not None and self.headers.get("Authorization") != owner.refuse:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = jpeg(owner._picture(owner.sent, *owner._size))
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        owner._serve(self)


class MjpegServer:
    """The server, on loopback, from `with` to its end.

    Args:
        fps: pictures a second.
        size: H, W.
        port: 0: any free one.
        picture: what it shows; `picture` of this module by default.

    Attributes:
        sent: pictures that were due so far: the number of the next one.
        sent_at: number -> `time.monotonic()` when it was taken, of the last 1,000.
        connections: how many clients ever connected.
        head: of each part.
        refuse: what `/one.jpg`, a single picture, asks for in the header Authorization; None: nothing.
    """

    def __init__(
        self, *, fps: float = 30, size: tuple[int, int] = (120, 160), port: int = 0, picture: Picture = picture
    ) -> None:
        self.fps, self._size, self._picture = fps, size, picture
        self.sent, self.connections = 0, 0
        self.head = "Content-Type: image/jpeg\r\nContent-Length: {length}\r\n"
        self.refuse: str | None = None
        self.sent_at: dict[int, float] = {}
        self._bad: deque[str] = deque()
        self._lock = threading.Condition()
        self._part = b""
        self._stalled, self._closing = False, False
        self._sockets: set[socket.socket] = set()
        self._server: _Server | None = None
        self._threads: list[threading.Thread] = []
        self.port = port
        self.come_back()
        self._camera = threading.Thread(target=self._take, name="mjpeg-camera")
        self._camera.start()

    @property
    def url(self) -> str:
        """Of the stream."""
        return f"http://127.0.0.1:{self.port}/stream.mjpg"

    def __enter__(self) -> MjpegServer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # Faults ---------------------------------------------------------------------------------------------

    def stall(self) -> None:
        """Connections stay, nothing is sent."""
        self._stalled = True

    def go_on(self) -> None:
        """After `stall`."""
        self._stalled = False

    def drop(self) -> None:
        """Cut every connection; new ones are welcome."""
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):  # cut already
                    each.shutdown(socket.SHUT_RDWR)

    def leave(self) -> None:
        """Cut every connection and listen no more."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            self._threads.pop().join()
            self.drop()
            server.server_close()

    def come_back(self) -> None:
        """Listen, on the same port as before."""
        if self._server is None:
            self._server = _Server(("127.0.0.1", self.port), _Handler)
            self._server.owner = self
            self.port = self._server.server_address[1]
            thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="mjpeg-server")
            self._threads.append(thread)
            thread.start()

    def resize(self, height: int, width: int) -> None:
        """Another size from the next picture on."""
        self._size = (height, width)

    def send(self, *kinds: str) -> None:
        """One bad part each in place of the next pictures: truncated, garbage, empty, text or huge."""
        self._bad.extend(kinds)

    def close(self) -> None:
        """End every thread and connection."""
        self._closing = True
        self.leave()
        self._camera.join()
        with self._lock:
            self._lock.notify_all()

    # Inside ---------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """The camera: one picture each period, whoever looks."""
        due = time.monotonic()
        while not self._closing:
            due += 1 / self.fps
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due, time.monotonic() - 1)  # a machine that slept does not catch up
            if self._stalled:
                continue
            taken = time.monotonic()
            data = jpeg(self._picture(self.sent, *self._size))
            with self._lock:
                if self._bad:
                    data = damaged(self._bad.popleft(), data)
                head = f"--frame\r\n{self.head.format(length=len(data))}\r\n".encode()
                self._part = head + data + b"\r\n"
                self.sent_at[self.sent] = taken
                self.sent_at.pop(self.sent - 1000, None)
                self.sent += 1
                self._lock.notify_all()

    def _serve(self, handler: _Handler) -> None:
        """Every picture from now on, to one client."""
        client, last = handler.connection, self.sent
        with self._lock:
            self._sockets.add(client)
            self.connections += 1
        try:
            while self._server is not None and not self._closing:
                with self._lock:
                    if self.sent == last:
                        self._lock.wait(0.1)
                    if self.sent == last:
                        continue
                    part, last = self._part, self.sent
                handler.wfile.write(part)
                handler.wfile.flush()
        except OSError:
            pass  # the client went, or was cut
        finally:
            with self._lock:
                self._sockets.discard(client)
