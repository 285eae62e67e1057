"""A real RTSP camera on loopback: H.264 in RTP, interleaved in the RTSP connection, with faults on demand.

with RtspServer(fps=30) as server:
    source = open_source(server.url)
    server.hold()        # pictures are taken and queue up, as behind a congested network
    server.release()     # and come all at once
    server.damage()      # one picture on the way
    server.jump(-3600)   # the camera's clock, seconds
    server.drop()        # cut every connection
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
import time
from fractions import Fraction
from types import TracebackType

import av

from tests.mjpeg_server import picture

RATE, MTU = 90_000, 1400
SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
    "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track0\r\n"
)


class RtspServer:
    """The server, from `with` to its end; it shows `mjpeg_server.picture`, each with its number.

    Attributes:
        sent_at: number -> `time.monotonic()` when the picture was taken.
    """

    def __init__(self, *, fps: float = 30, size: tuple[int, int] = (120, 160)) -> None:
        self.fps, self.size = fps, size
        self.sent_at: dict[int, float] = {}
        self._offset_s, self._held, self._closing, self._damage = 0.0, False, False, False
        self._queue: list[list[bytes]] = []
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()

        class Handler(socketserver.StreamRequestHandler):
            def handle(inner) -> None:  # noqa: N805
                with contextlib.suppress(OSError):
                    self._talk(inner)
                with self._lock:
                    self._clients.discard(inner.connection)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"rtsp://127.0.0.1:{self._server.server_address[1]}/camera"
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.02,), name="rtsp-server"),
            threading.Thread(target=self._take, name="rtsp-camera"),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> RtspServer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing = True
        self._server.shutdown()
        for thread in self._threads:
            thread.join()
        self.drop()
        self._server.server_close()

    def hold(self) -> None:
        """Pictures wait on the way."""
        self._held = True

    def release(self) -> None:
        """After `hold`: all that waited, then as usual."""
        self._held = False

    def jump(self, seconds: float) -> None:
        """Set the camera's clock forth or back."""
        self._offset_s += seconds

    def damage(self) -> None:
        """Lose half of the next picture that is no key frame."""
        self._damage = True

    def drop(self) -> None:
        """Cut every connection."""
        with self._lock:
            for client in self._clients:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    # Inside ---------------------------------------------------------------------------------------------

    def _talk(self, handler: socketserver.StreamRequestHandler) -> None:
        """Requests of one client, one after another."""
        handler.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while line := handler.rfile.readline(4096):
            if line.startswith(b"$"):  # RTCP of the client: its length is in bytes 2 and 3
                head = (line + handler.rfile.read(max(0, 4 - len(line))))[:4]
                handler.rfile.read(max(0, 4 + struct.unpack(">H", head[2:4])[0] - max(len(line), 4)))
                continue
            method, headers = line.split(b" ")[0].decode(), {}
            while (line := handler.rfile.readline(4096)).strip():
                name, _, value = line.decode().partition(":")
                headers[name.strip().lower()] = value.strip()
            extra, body = "", ""
            if method == "DESCRIBE":
                extra, body = f"Content-Type: application/sdp\r\nContent-Base: {self.url}/\r\n", SDP
            elif method == "SETUP":
                extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            elif method == "OPTIONS":
                extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            answer = f"RTSP/1.0 200 OK\r\nCSeq: {headers.get('cseq', '0')}\r\nSession: 1\r\n{extra}"
            with self._lock:
                handler.connection.sendall(f"{answer}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                if method == "PLAY":
                    self._clients.add(handler.connection)
            if method == "TEARDOWN":
                return

    def _take(self) -> None:
        encoder = av.codec.CodecContext.create("libx264", "w")
        encoder.height, encoder.width, encoder.pix_fmt = *self.size, "yuv420p"
        encoder.time_base, encoder.framerate = Fraction(1, RATE), Fraction(round(self.fps))
        encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "5", "threads": "1"}
        number, sequence, due = 0, 0, time.monotonic()
        while not self._closing:
            due += 1 / self.fps
            time.sleep(max(0.0, due - time.monotonic()))
            taken = time.monotonic()
            self.sent_at[number] = taken
            frame = av.VideoFrame.from_ndarray(picture(number, *self.size), format="rgb24")
            frame.pts, frame.time_base = round(number * RATE / self.fps), Fraction(1, RATE)
            stamp = int((taken + self._offset_s) * RATE) % 2**32
            number += 1
            for packet in encoder.encode(frame):
                payloads = _payloads(bytes(packet))
                if self._damage and not packet.is_keyframe:
                    payloads = [each[: len(each) // 2] for each in payloads]
                    self._damage = False
                packets = []
                for i, payload in enumerate(payloads):
                    marker = 0x80 if i == len(payloads) - 1 else 0
                    rtp = struct.pack(">BBHII", 0x80, marker | 96, sequence % 2**16, stamp, 1) + payload
                    packets.append(b"$\0" + struct.pack(">H", len(rtp)) + rtp)
                    sequence += 1
                self._queue.append(packets)
            while self._queue and not self._held:
                data = b"".join(self._queue.pop(0))
                with self._lock:
                    for client in list(self._clients):
                        try:
                            client.sendall(data)
                        except OSError:
                            self._clients.discard(client)


def _payloads(data: bytes) -> list[bytes]:
    """The RTP payloads (RFC 6184) of one picture in Annex B."""
    units = [unit.rstrip(b"\0") for unit in data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit]
    payloads = []
    for unit in units:
        if len(unit) <= MTU:
            payloads.append(unit)
            continue
        head, rest = unit[0], unit[1:]
        pieces = [rest[i : i + MTU - 2] for i in range(0, len(rest), MTU - 2)]
        for i, piece in enumerate(pieces):
            flags = (0x80 if i == 0 else 0) | (0x40 if i == len(pieces) - 1 else 0)
            payloads.append(bytes([head & 0xE0 | 28, flags | head & 0x1F]) + piece)
    return payloads
