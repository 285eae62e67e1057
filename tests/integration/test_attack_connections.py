"""A server under attack by bodies and sockets that never end, and the others served as ever."""

import contextlib
import socket

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from embodied.serving import bodies, protocol
from embodied.serving.limits import RequestLimits
from tests.serving_client import (
    DEADLINE_S,
    FRAMES,
    MANY,
    PICTURE,
    ask,
    cheap,
    close_code,
    fine,
    frames,
    serving,
    session,
    shared_server,
)
from tests.waiting import until

shared = shared_server(limits=MANY)


# Slow bodies --------------------------------------------------------------------------------------------

HEADER = (
    b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/msgpack\r\nContent-Length: 1000\r\n\r\n"
)


def unfinished(server):
    return sum(map(len, server.service.bodies._coming.values()))


def test_unfinished_bodies_leave_room_for_those_that_ask():
    limits = RequestLimits(connections=16, bodies_per_host=64, body_s=600.0, header_s=600.0)
    with serving(limits=limits) as server, contextlib.ExitStack() as stack:
        for k in range(60):
            wire = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            wire.sendall(HEADER + b"x" * (k % 3))
            if k == 16:
                until(lambda: unfinished(server) >= 10)
        assert fine(server)
        with session(server) as say:
            assert say(frames(FRAMES[0]))["type"] == "reading"


def test_one_host_has_so_many_unfinished_bodies_and_the_slowest_goes():
    with serving(limits=RequestLimits(bodies_per_host=4, body_s=600.0)) as server, contextlib.ExitStack() as stack:
        body = protocol.pack(PICTURE)
        steady = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S))
        steady.sendall(HEADER.replace(b"1000", str(len(body)).encode()) + body[:-1])
        until(lambda: unfinished(server) == 1)
        wires = []
        for k in range(6):
            wires.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S)))
            wires[-1].sendall(HEADER + b"x")
            until(lambda k=k: unfinished(server) == min(k + 2, 4))
        answer = b""
        while part := wires[0].recv(65536):
            answer += part
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"at most 4 unfinished bodies of one host" in answer
        steady.sendall(body[-1:])
        assert steady.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_body_that_drips_is_cut_off_and_one_that_pauses_is_not(monkeypatch):
    monkeypatch.setattr(bodies, "BODY_GRACE_S", 0.2)
    body = protocol.pack(PICTURE)
    with serving(limits=RequestLimits(body_s=600.0, body_bytes_per_s=5.0)) as server:
        head = HEADER.replace(b"1000", str(len(body)).encode())
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as drip,
            socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as pausing,
        ):
            pausing.sendall(head + body[:-1])
            drip.sendall(head + b"x")
            assert drip.recv(65536).startswith(b"HTTP/1.1 408")  # a second of one byte, and it has had its time
            pausing.sendall(body[-1:])
            assert pausing.recv(65536).startswith(b"HTTP/1.1 200")


def test_bodies_count_until_they_are_answered_and_small_ones_always_pass():
    with serving(limits=RequestLimits(body_total_bytes=3_000_000)) as server, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(3)]
        for wire in wires:
            wire.sendall(HEADER.replace(b"1000", b"2000000") + bytes(1_000_000))
        until(lambda: server.service.bodies.held >= 3_000_000)
        large = {**PICTURE, "more": bytes(1_500_000)}
        assert ask(server, protocol.SCORE, large)[0] == 503
        assert ask(server, protocol.SCORE, PICTURE)[0] == 200
        with session(server) as say, session(server) as other:
            say.socket.send(protocol.pack({"type": "frames", **large}))
            assert close_code(say) == 1013  # try again later
            assert other(frames(FRAMES[0]))["row"] == 0
        for wire in wires:
            wire.close()
        until(lambda: server.service.bodies.held == 0)
        assert ask(server, protocol.SCORE, large)[0] == 200


def test_a_body_in_crumbs_is_cut_off_and_one_in_chunks_is_read(shared):
    body = protocol.pack({**PICTURE, "more": bytes(100_000)})
    head = HEADER.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked")

    def sent(size):
        """In chunks of a size; what is answered."""
        parts = [body[k : k + size] for k in range(0, len(body), size)]
        data = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        wire = socket.create_connection(("127.0.0.1", shared.port), timeout=DEADLINE_S)
        with wire, contextlib.suppress(OSError):
            wire.sendall(head + data)
            return wire.recv(65536)
        return b""

    assert sent(1000).startswith(b"HTTP/1.1 200")
    with cheap():
        assert [sent(1) for _ in range(5)] == [b""] * 5
    assert fine(shared)


# Sockets ------------------------------------------------------------------------------------------------


def flood(say, pieces):
    """Send frames by themselves; the close code that comes."""
    wire = say.socket.socket
    with contextlib.suppress(OSError, ConnectionClosed):
        for each in pieces:
            wire.sendall(each)
    return close_code(say)


def piece(opcode, data=b"", fin=True):
    return Frame(opcode, data, fin).serialize(mask=True)


def test_a_message_in_countless_fragments_ends_its_session_alone(shared):
    rest = piece(Opcode.CONT, b"x", fin=False) * 100
    with session(shared) as bad, session(shared) as good:
        assert flood(bad, [piece(Opcode.BINARY, b"x", fin=False), *[rest] * 100]) == protocol.POLICY
        assert good(frames(FRAMES[0]))["type"] == "reading"
    with session(shared) as say:  # in a few it is read
        data = protocol.pack(frames(FRAMES[0]))
        parts = [data[k : k + 40] for k in range(0, len(data), 40)]
        for k, part in enumerate(parts):
            kind = Opcode.CONT if k else Opcode.BINARY
            say.socket.socket.sendall(piece(kind, part, fin=k == len(parts) - 1))
        assert protocol.unpack(say.socket.recv(timeout=DEADLINE_S))["row"] == 0
    until(lambda: shared.service.bodies.held == 0)


def test_pings_without_end_end_their_session_alone(shared):
    with session(shared) as bad, session(shared) as good:
        assert flood(bad, [piece(Opcode.PING, b"x" * 100) * 100] * 100) == protocol.POLICY
        assert good(frames(FRAMES[0]))["type"] == "reading"


def test_one_host_does_not_keep_all_sessions_from_another():
    limits = RequestLimits(sessions=4, spare_s=600.0)

    def of(stack, host):
        return stack.enter_context(session(server, headers={"X-Forwarded-For": host}))

    with serving(limits=limits, proxies=["127.0.0.1"]) as server, contextlib.ExitStack() as stack:
        greedy = [of(stack, "192.0.2.7") for _ in range(4)]
        with pytest.raises(InvalidStatus):
            of(stack, "192.0.2.7")
        others = [of(stack, "192.0.2.8") for _ in range(2)]
        assert {close_code(say) for say in greedy[:2]} == {protocol.IDLE}
        with pytest.raises(InvalidStatus):  # they have as many now
            of(stack, "192.0.2.8")
        for say in (*greedy[2:], *others):
            assert say(frames(FRAMES[0]))["type"] == "reading"
