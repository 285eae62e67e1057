"""A server and clients that are slow, send half a request, or too much."""

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus

from embodied.serving import protocol
from embodied.serving.connections import BAD_BURST
from embodied.serving.limits import RequestLimits
from tests.fakes import FakeEncoder
from tests.serving_client import (
    DEADLINE_S,
    FRAMES,
    PICTURE,
    ask,
    close_code,
    fine,
    frames,
    scorer,
    serving,
    session,
    total_scorer,
)
from tests.waiting import until

# Slow, half and too much --------------------------------------------------------------------------------


def raw(server, data, *, wait=True):
    """Everything the server answers to raw bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as wire:
        wire.sendall(data)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while wait and (part := wire.recv(65536)):
                got += part
        return got


HEADER = b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/msgpack\r\n"


def test_half_sent_requests_are_cut_off_in_time():
    with serving(limits=RequestLimits(header_s=0.3, body_s=0.3)) as server:
        started = time.monotonic()
        assert raw(server, b"") == b""  # opened and silent
        assert raw(server, HEADER) == b""  # half a header
        answer = raw(server, HEADER + b"Content-Length: 1000\r\n\r\nhalf")
        assert answer.startswith(b"HTTP/1.1 408")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "timeout"
        one = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        assert raw(server, one + HEADER).count(b"HTTP/1.1 200") == 1  # half a second request
        assert time.monotonic() - started < DEADLINE_S
        raw(server, HEADER + b"Content-Length: 1000\r\n\r\nhalf", wait=False)  # gone in the middle of it
        assert raw(server, b"\x16\x03\x01 this is not HTTP\r\n\r\n").startswith(b"HTTP/1.1 400")
        assert raw(server, HEADER + b"X: " + b"x" * 100_000).startswith(b"HTTP/1.1 400")  # no end of it
        assert fine(server)
        until(lambda: not server.server.server_state.connections)
        assert not server.service.guard.silent


def test_a_session_outlives_the_patience_for_headers():
    with serving(limits=RequestLimits(header_s=0.2)) as server, session(server) as say:
        until(lambda: all(each.idle_s() > 0.3 for each in server.service.sessions))
        assert say(frames(FRAMES[0]))["type"] == "reading"


def test_silent_connections_make_room_for_those_that_ask():
    with serving(limits=RequestLimits(connections=8, header_s=30.0)) as server, contextlib.ExitStack() as stack:
        say = stack.enter_context(session(server))
        for _ in range(30):
            wire = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            wire.sendall(b"GET /he")
        assert fine(server)
        assert say(frames(FRAMES[0]))["type"] == "reading"
        assert len(server.server.server_state.connections) <= 8


def test_nobody_is_crowded_out_by_another_host():
    with serving(limits=RequestLimits(connections=4, header_s=30.0)) as server, contextlib.ExitStack() as stack:
        mine = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S))
        until(lambda: server.service.guard.silent)
        others = []
        for _ in range(10):
            wire = socket.create_connection(("127.0.0.1", server.port), DEADLINE_S, source_address=("127.0.0.2", 0))
            others.append(stack.enter_context(wire))
            wire.sendall(b"GET /he")
        with contextlib.suppress(ConnectionResetError):
            assert others[5].recv(1) == b""  # made room for the last
        mine.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert mine.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_host_of_too_many_slow_bodies_waits():
    with serving(limits=RequestLimits(bodies_per_host=1, body_s=60.0)) as server, contextlib.ExitStack() as stack:
        guard = server.service.guard
        assert not guard.pause("127.0.0.2")
        for _ in range(BAD_BURST + 20):
            wire = socket.create_connection(("127.0.0.1", server.port), source_address=("127.0.0.2", 0))
            stack.enter_context(wire).sendall(HEADER + b"Content-Length: 1000\r\n\r\nhalf")
        until(lambda: guard.pause("127.0.0.2"))
        assert not guard.pause("127.0.0.1")
        assert fine(server)


def test_bodies_have_a_size():
    with serving(limits=RequestLimits(body_bytes=10_000, json_bytes=2_000)) as server:
        for media, size in ((protocol.MSGPACK, 15_000), (protocol.JSON, 2_500)):
            status, _, answer = ask(server, protocol.SCORE, body=bytes(size), media=media)
            assert (status, answer["code"], answer["got"]) == (413, "too_large", str(size))
        huge = HEADER + b"Content-Length: 99999999999\r\n\r\n"
        assert raw(server, huge).startswith(b"HTTP/1.1 413")
        parts = b"Transfer-Encoding: chunked\r\n\r\n" + b"1388\r\n" + bytes(5000) + b"\r\n"
        assert b"HTTP/1.1 413" in raw(server, HEADER + parts + (b"1388\r\n" + bytes(5000) + b"\r\n") * 2)
        with session(server) as say:
            say.socket.send(bytes(10_001))
            assert close_code(say) == 1009
        assert ask(server, protocol.SCORE, PICTURE)[0] == 200


def test_an_answer_nobody_reads_does_not_hold_the_server():
    wide = FakeEncoder(dim=4096)
    with serving(scorer(wide), limits=RequestLimits(answer_s=1.0)) as server:
        body = protocol.pack({"images": protocol.encode_images(np.zeros((1000, 8, 8, 3), np.uint8))})
        with socket.socket() as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.connect(("127.0.0.1", server.port))
            header = HEADER.replace(b"score", b"encode") + b"Content-Length: %d\r\n\r\n" % len(body)
            wire.sendall(header + body)
            until(lambda: server.server.server_state.connections)
            until(lambda: not server.server.server_state.connections)
        assert fine(server)


def test_rates_are_held():
    with serving(limits=RequestLimits(requests_per_s=0.5, burst=3)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as wire:
            got = b""
            wire.sendall(b"GET /v1/model HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 6)
            while got.count(b"HTTP/1.1 ") < 6 and (part := wire.recv(65536)):
                got += part
        assert got.count(b"HTTP/1.1 200") in (3, 4)
        assert got.count(b"HTTP/1.1 429") in (2, 3)
        assert b"retry-after: " in got
        assert ask(server, protocol.MODEL)[0] == 200


def test_a_session_that_only_sends_rubbish_is_closed():
    with serving(limits=RequestLimits(requests_per_s=5.0, burst=10)) as server:
        with session(server) as bad, session(server) as good:
            assert bad(b"rubbish")["type"] == "error"
            assert close_code(bad) == protocol.POLICY
            assert good(frames(FRAMES[0]))["type"] == "reading"
        assert fine(server)


def test_sessions_are_counted_and_idle_ones_go():
    with serving(limits=RequestLimits(sessions=2, spare_s=600.0)) as server, session(server), session(server):
        with pytest.raises(InvalidStatus) as refused, session(server):
            pass
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["retry-after"]
    with serving(limits=RequestLimits(sessions=2, header_s=0.3, session_idle_s=0.5)) as server:
        with session(server) as one, session(server) as two:
            assert {close_code(one), close_code(two)} == {protocol.IDLE}
        with session(server, opening=False) as never:
            assert close_code(never) == protocol.POLICY
        assert fine(server)


def test_the_session_idle_longest_makes_room():
    with serving(limits=RequestLimits(sessions=2, spare_s=0.05)) as server, session(server) as idle:
        until(lambda: all(each.idle_s() > 0.05 for each in server.service.sessions))
        with session(server) as busy:
            busy(frames(FRAMES[0]))
            with session(server) as third:
                assert third(frames(FRAMES[0]))["type"] == "reading"
                assert close_code(idle) == protocol.IDLE


def test_an_episode_that_keeps_images_is_bounded():
    limits = RequestLimits(episode_pixels=200)
    opening = {"views": ["side"], "signals": ["force"]}
    with serving(total_scorer(), limits=limits) as server, session(server, opening=opening) as say:
        message = frames(FRAMES[0], view="side", signals={"force": 1.0})
        assert [say(message)["type"] for _ in range(4)] == ["reading"] * 3 + ["error"]
        say({"type": "restart"})
        assert say(message)["type"] == "reading"


def test_abusers_do_not_slow_the_others():
    """Rubbish, oversize and half-sent requests from many connections, while a session is read."""
    stop = threading.Event()

    def abuse(server):
        while not stop.is_set():
            with contextlib.suppress(OSError):
                raw(server, b"rubbish\r\n\r\n")
                raw(server, HEADER + b"Content-Length: 99999999999\r\n\r\n", wait=False)
                raw(server, HEADER, wait=False)

    with serving() as server, session(server) as say, ThreadPoolExecutor(3) as pool:
        abusers = [pool.submit(abuse, server) for _ in range(3)]
        try:
            for _ in range(100):
                assert say(frames(FRAMES[0]))["type"] == "reading"
        finally:
            stop.set()
        for each in abusers:
            each.result(DEADLINE_S)
