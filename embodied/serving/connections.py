"""HTTP connections that nobody can hold open for nothing, and a server that stops in good order.

uvicorn waits for a request's header for ever. Here it is given so long; where connections run out, those that have
sent no whole request yet go first; and hosts that send rubbish wait before their next connection is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from embodied.serving.limits import Limits, Rates

BAD_PER_S, BAD_BURST = 5.0, 50  # refused requests of one host, before its new connections wait
LONGEST_PAUSE_S = 1.0
KEEP_ALIVE_S = 30  # without a request
NO_ROOM = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Guard:
    """What is known of all connections: which have yet to send a request, and which hosts sent rubbish."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.silent: dict[PatientProtocol, None] = {}  # have sent no whole request header, oldest first
        self._bad = Rates(BAD_PER_S, BAD_BURST, most=4096)

    def bad(self, host: str) -> None:
        """A request of this host was refused."""
        now = time.monotonic()
        self._bad.of(host, now).take(now)

    def pause(self, host: str) -> float:
        """Seconds that a new connection of this host waits."""
        now = time.monotonic()
        return min(LONGEST_PAUSE_S, self._bad.of(host, now).wait(now))


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with patience for a header of so long and no longer.

    Args:
        guard: shared by all connections.
        arguments: uvicorn's.
    """

    def __init__(self, *arguments: Any, guard: Guard, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._guard = guard
        self._patience: asyncio.TimerHandle | None = None
        self._upgraded = False  # the connection is a WebSocket's now

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        guard = self._guard
        if (option := getattr(socket, "TCP_USER_TIMEOUT", None)) and (sock := transport.get_extra_info("socket")):
            # Of Linux: a client that reads nothing of its answer is cut off, be it HTTP or a WebSocket later.
            sock.setsockopt(socket.IPPROTO_TCP, option, int(1000 * guard.limits.answer_s))
        if len(self.connections) > guard.limits.connections:
            if not guard.silent:  # all are in use
                transport.write(NO_ROOM)
                transport.close()
                return
            next(iter(guard.silent)).give_up()
        self._wait()
        if pause := guard.pause(self.client[0] if self.client else ""):
            self.flow.pause_reading()
            self.loop.call_later(pause, self.flow.resume_reading)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._upgraded or self._in_request() or self.transport.is_closing():
            self._stop_waiting()
        else:
            self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_request() or self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:  # the next request has begun
            self._wait()
        else:
            self._guard.silent[self] = None  # kept alive, but not at the expense of others

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._upgraded = True
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        self._guard.bad(self.client[0] if self.client else "")
        super().send_400_response(msg)

    def give_up(self) -> None:
        """End a connection whose request does not come."""
        self._stop_waiting()
        self.transport.abort()

    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(self._guard.limits.header_s, self.give_up)
            self._guard.silent[self] = None

    def _stop_waiting(self) -> None:
        self._guard.silent.pop(self, None)
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


class Server(uvicorn.Server):
    """uvicorn that finishes what is queued and closes sessions with 1001 before it stops; SIGTERM and SIGINT end well.

    Args:
        app: of `embodied.serving.app.make_app`.
        host, port: to listen on; port 0 takes a free one.
        log_level: uvicorn's.
    """

    def __init__(self, app: Any, *, host: str = "127.0.0.1", port: int = 8765, log_level: str = "warning") -> None:
        self._service = app.state.service
        limits = self._service.limits
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=functools.partial(PatientProtocol, guard=self._service.guard),  # pyright: ignore[reportArgumentType]
            ws=WebSocketsSansIOProtocol,
            ws_max_size=limits.body_bytes,
            ws_per_message_deflate=False,
            ws_ping_timeout=max(20.0, limits.answer_s),  # pongs are not read while an answer is made
            h11_max_incomplete_event_size=16 << 10,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(limits.drain_s),
            access_log=False,
            log_config=None,  # uvicorn's own closes every handler of the process it runs in
            log_level=log_level,
            proxy_headers=False,
            server_header=False,
        )
        super().__init__(config)

    @property
    def port(self) -> int:
        """Where it listens, once it has started."""
        return self.servers[0].sockets[0].getsockname()[1]

    async def shutdown(self, sockets: Any = None) -> None:
        for server in self.servers:
            server.close()
        await self._service.drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that has been obeyed is not raised again; only in the main thread."""
        try:
            before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # another thread
            before = {}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
