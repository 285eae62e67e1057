"""Connections that nobody can hold open for nothing, and a server that stops in good order.

uvicorn waits for a request's header for ever. Here it is given so long; where connections run out, those that have
sent no whole request yet go first, then those whose bodies crawl; and hosts many of whose connections sent rubbish wait
a moment before their next one is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from embodied.serving.bodies import Bodies
from embodied.serving.limits import Rates, RequestLimits

BAD_PER_S, BAD_BURST = 5.0, 50  # connections of one host that sent rubbish, before its new ones wait
BAD_DEBT_S = 2.0  # after which a host that sends no more is served as ever
LONGEST_PAUSE_S = 1.0
CRUMB_BYTES, CRUMBS_BYTES = 32, 4096  # lines of a body in chunks are longer than that, once so much has come
SLICE = 8192  # bytes of a session that are read at a time
FRAGMENTS, PINGS = 1024, 256  # of a session's message, and before one
KEEP_ALIVE_S = 30  # without a request
NO_ROOM = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Guard:
    """What is known of all connections: which have yet to send a request, whose bodies are unfinished, and which hosts
    sent rubbish.

    Args:
        limits: on every connection.

    Attributes:
        proxies: addresses of proxies whose word on their clients is believed; no client of theirs is one of them.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self.limits, self.bodies = limits, Bodies(limits)
        self.silent: dict[PatientProtocol, None] = {}  # have sent no whole request header, oldest first
        self.proxies: frozenset[str] = frozenset()
        self._bad = Rates(BAD_PER_S, BAD_BURST, most=4096, debt_s=BAD_DEBT_S)

    def bad(self, host: str) -> None:
        """A connection of this host sent rubbish; to be called once for each."""
        now = time.monotonic()
        self._bad.of(host, now).take(now)

    def pause(self, host: str) -> float:
        """Seconds that a new connection of this host waits."""
        if host in self.proxies:
            return 0.0
        now = time.monotonic()
        return min(LONGEST_PAUSE_S, self._bad.of(host, now).wait(now))

    def make_room(self, host: str) -> bool:
        """Where connections run out, end one that is not in use, for a new one of this host; whether there was one.

        It is the oldest silent one of the host that has most of them, so that nobody crowds out others; else a crawling
        body. There is none for a host that has to wait anyway.
        """
        if self.pause(host):
            return False
        if not self.silent:
            return self.bodies.make_room()
        crowd = Counter(each.host for each in self.silent).most_common(1)[0][0]
        next(each for each in self.silent if each.host == crowd).give_up()
        return True


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
        if len(self.connections) > guard.limits.connections and not guard.make_room(self.host):
            transport.write(NO_ROOM)
            transport.close()
            return
        self._wait()
        if pause := guard.pause(self.host):
            self.flow.pause_reading()
            self.loop.call_later(pause, self.flow.resume_reading)

    @property
    def host(self) -> str:
        """Whose connection it is."""
        return self.client[0] if self.client else ""

    def data_received(self, data: bytes) -> None:
        if len(data) > CRUMBS_BYTES and CRUMB_BYTES * data.count(b"\r\n") > len(data) and self._is_chunked(data):
            self._guard.bad(self.host)
            self.give_up()  # reading them takes a thousand times as long as sending them
            return
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
        self._guard.bad(self.host)
        super().send_400_response(msg)

    def give_up(self) -> None:
        """End a connection whose request does not come."""
        self._stop_waiting()
        self.transport.abort()

    def _is_chunked(self, data: bytes) -> bool:
        """Whether what came is, or begins, a body in chunks."""
        of_body = self._in_request() and any(name == b"transfer-encoding" for name, _ in self.headers)
        return of_body or b"\r\ntransfer-encoding:" in data.lower()

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


class PatientSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, whose client can make it hold no more than one message and answer no more than it reads.

    Args:
        guard: shared by all connections.
        arguments: uvicorn's.
    """

    def __init__(self, *arguments: Any, guard: Guard, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bodies = guard.bodies
        self._counted = 0  # bytes of an unfinished message, among those that are held
        self._fragments = self._fragment_bytes = self._pings = 0

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), SLICE):  # crumbs are noticed before thousands of them are read
            super().data_received(data[start : start + SLICE])
            if self.close_sent or self.transport.is_closing():
                break
        self._count(len(self.conn.reader.buffer) + self._fragment_bytes)
        if self._bodies.full(self._counted):
            self._end(1013, "too many messages at once")

    def connection_lost(self, exc: Exception | None) -> None:
        self._count(0)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """A client that does not read its answers, or its pongs, is not read either."""
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()

    def handle_bytes(self, event: Any) -> None:
        self._begin(event)
        super().handle_bytes(event)

    def handle_text(self, event: Any) -> None:
        self._begin(event)
        super().handle_text(event)

    def handle_cont(self, event: Any) -> None:
        self._fragments += 1
        self._fragment_bytes += len(event.data)
        if self._fragments > FRAGMENTS:
            self._end(1008, f"a message must come in at most {FRAGMENTS} fragments")
            return
        super().handle_cont(event)
        if event.fin:
            self._fragments = self._fragment_bytes = 0

    def handle_ping(self) -> None:
        self._pings += 1
        if self._pings > PINGS:
            self._end(1008, f"at most {PINGS} pings between messages")
            return
        super().handle_ping()

    def _begin(self, event: Any) -> None:
        self._pings = self._fragments = 0
        self._fragment_bytes = 0 if event.fin else len(event.data)

    def _count(self, size: int) -> None:
        self._bodies.held += size - self._counted
        self._counted = size

    def _end(self, code: int, why: str) -> None:
        """Close at once."""
        if self.close_sent or self.transport.is_closing():
            return
        self.conn.fail(code, why)
        self.handle_parser_exception()


class Server(uvicorn.Server):
    """uvicorn that finishes what is queued and closes sessions with 1001 before it stops; SIGTERM and SIGINT end well.

    Args:
        app: of `embodied.serving.app.make_app`.
        host, port: to listen on; port 0 takes a free one.
        proxies: addresses of proxies before it, whose X-Forwarded-For tells one client from another; nobody else's
            is believed.
    """

    def __init__(
        self,
        app: Any,
        *,
        host: str = "127.0.0.1",
        port: int = 8765,
        proxies: Sequence[str] = (),
    ) -> None:
        self._service = app.state.service
        limits, guard = self._service.limits, self._service.guard
        guard.proxies = frozenset(proxies)
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            loop="asyncio",  # uvloop, which Ray brings, has transports of its own, on which no limit here was tried
            http=functools.partial(PatientProtocol, guard=guard),  # pyright: ignore[reportArgumentType]
            ws=functools.partial(PatientSocket, guard=guard),  # pyright: ignore[reportArgumentType]
            ws_max_size=limits.body_bytes,
            ws_per_message_deflate=False,
            ws_ping_timeout=max(20.0, limits.answer_s),  # pongs are not read while an answer is made
            h11_max_incomplete_event_size=16 << 10,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(limits.drain_s),
            access_log=False,
            log_config=None,  # uvicorn's own closes every handler of the process it runs in
            log_level="warning",
            proxy_headers=bool(proxies),
            forwarded_allow_ips=list(proxies),
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
