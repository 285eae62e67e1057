"""A real reward server on a thread, and one that misbehaves on demand, for tests of what talks to them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from embodied.serving.app import make_app
from embodied.serving.connections import Server
from rewards.core import Scorer


class Running:
    """A server that listens; `stop` and start another on the same port."""

    def __init__(self, scorer: Scorer, *, port: int = 0, model_id: str = "model", **options: Any) -> None:
        self.server = Server(make_app(scorer, model_id=model_id, **options), port=port)
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()
        ends = time.monotonic() + 60
        while not self.server.started:
            assert self._thread.is_alive(), "the server did not start"
            assert time.monotonic() < ends, "the server did not start in time"
            time.sleep(0.005)
        self.port = self.server.port
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join()


@contextlib.contextmanager
def serving(scorer: Scorer, **options: Any) -> Iterator[Running]:
    running = Running(scorer, **options)
    try:
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def listening(handle: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """Its address; `handle` gets every connection and its number, one after another, and need not close it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.02)
        over = threading.Event()

        def run() -> None:
            count = 0
            with contextlib.ExitStack() as kept:
                while not over.is_set():
                    try:
                        connection, _ = listener.accept()
                    except TimeoutError:
                        continue
                    kept.enter_context(connection)
                    connection.settimeout(10)
                    with contextlib.suppress(OSError):
                        handle(connection, count)
                    count += 1

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            thread.join()


def read_request(connection: socket.socket) -> bytes:
    """The head of one HTTP request, its body read too."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return data
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-l")), 0
    )
    while len(rest) < length:
        rest += connection.recv(65536)
    return head


def http(body: bytes, *, status: str = "200 OK", length: int | None = None, kind: str = "application/msgpack") -> bytes:
    """An HTTP answer; `length` may lie."""
    said = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {said}\r\n\r\n".encode() + body
