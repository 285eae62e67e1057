"""Sessions with a reward server: episodes, goals, and servers that go and come back."""

from __future__ import annotations

import contextlib
import threading
import time

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from embodied.datasets.encoding import fingerprint
from embodied.scoring import Layout
from embodied.scoring.streaming import EpisodeStream
from embodied.serving import peer, protocol
from embodied.serving.client import RemoteStream
from embodied.serving.limits import RequestLimits
from embodied.serving.peer import ServerLostError, ServerRefusedError
from embodied.serving.remote import RemoteEncoder
from rewards.clip_goal import clip_scorer
from tests.fakes import FakeEncoder
from tests.reward_server import Running, http, listening, read_request, serving
from tests.unit.test_remote import QUICK, Momentum, clip, frames, one, to_goal
from tests.waiting import until


@pytest.fixture(scope="module")
def server():
    with serving(clip(), goal_scorer=to_goal) as running:
        yield running


# Sessions -----------------------------------------------------------------------------------------------


def readings(stream, pictures, **options):
    return [stream.push({"main": each.numpy()}, **options) for each in pictures]


def assert_alike(ours, theirs):
    assert [(each.episode, each.row) for each in ours] == [(each.episode, each.row) for each in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.potentials == pytest.approx(b.potentials, abs=1e-5)
        assert a.combined == pytest.approx(b.combined, abs=1e-5)
        assert (a.reward is None) == (b.reward is None)
        assert a.reward is None or a.reward == pytest.approx(b.reward, abs=1e-5)


def here(scorer, pictures):
    stream = EpisodeStream(scorer)
    return [stream.push(stream.encode(each[None].numpy())) for each in pictures]


@pytest.mark.parametrize("form", ["raw", "png"])
def test_a_stream_elsewhere_reads_as_one_here(server, form):
    with contextlib.closing(RemoteStream(server.url, form=form)) as stream:
        ours = readings(stream, frames(4), captured_s=1.0)
        assert_alike(ours, here(clip(), frames(4)))
        assert stream.latency_ms > 0
        stream.restart()
        (after,) = readings(stream, frames(1))
        assert (after.episode, after.row, after.reward) == (1, 0, None)
        past = stream.set_goal("shut")
        other = clip_scorer(encoder=FakeEncoder(), goal="shut")
        np.testing.assert_allclose(past["clip"], other.score(frames(1)).numpy(), atol=1e-6)
        assert readings(stream, frames(1))[0].combined == pytest.approx(float(other.score(frames(1))), abs=1e-6)
        assert stream.lost == 0


def test_views_and_signals_of_a_stream():
    with serving(one(Momentum())) as running:
        views, pictures = ("front", "side"), frames(6).numpy()
        stream = RemoteStream(running.url, views=views, signals=["speed"])
        local = EpisodeStream(one(Momentum()), Layout(views, ("speed",)))
        for k in range(3):
            moment = {"front": pictures[2 * k], "side": pictures[2 * k + 1]}
            theirs = stream.push(moment, {"speed": float(k), "unused": 1.0})
            row = local.encode(np.stack(list(moment.values())), {"speed": float(k)})
            assert_alike([theirs], [local.push(row)])
        with pytest.raises(ServerRefusedError, match="front, side"):
            stream.push({"front": pictures[0]})
        assert stream.lost == 0
        stream.close()
        stream.close()


def wait_for(call, *, seconds=20.0):
    """What `call` gives once the server is back, and how often it was away."""
    ends, away = time.monotonic() + seconds, 0
    while True:
        try:
            return call(), away
        except ServerLostError:
            away += 1
            assert time.monotonic() < ends
            time.sleep(0.01)


def test_a_stream_comes_back_with_a_new_episode_and_its_goal():
    goals = {"goal_scorer": to_goal}
    first = Running(clip(), **goals)
    stream = RemoteStream(first.url)
    stream.set_goal("shut")
    assert [(each.episode, each.row) for each in readings(stream, frames(2))] == [(0, 0), (0, 1)]
    first.stop()
    start = time.monotonic()
    with pytest.raises(ServerLostError):
        readings(stream, frames(1))
    with pytest.raises(ServerLostError, match="the next attempt is in"):
        [stream.push({"main": frames(1)[0].numpy()}) for _ in range(3)]
    assert time.monotonic() - start < 5
    stream.restart()  # is away, and needs nothing
    with serving(clip(), port=first.port, **goals):
        (again, *_), _ = wait_for(lambda: readings(stream, frames(1)))
        expected = clip_scorer(encoder=FakeEncoder(), goal="shut").score(frames(1))
        assert (again.episode, again.row, again.reward, stream.lost) == (1, 0, None, 1)
        assert again.combined == pytest.approx(float(expected), abs=1e-6)
        assert readings(stream, frames(1))[0].row == 1
        stream.close()


def test_a_session_that_ended_meanwhile_is_opened_again_within_the_call():
    with serving(clip(), limits=RequestLimits(session_idle_s=0.2)) as running:
        stream = RemoteStream(running.url)
        readings(stream, frames(2))
        until(lambda: not running.server.server_state.connections)
        (after,) = readings(stream, frames(1))
        assert (after.episode, after.row, stream.lost) == (1, 0, 1)
        stream.close()


def test_no_room_is_no_answer_for_now():
    with serving(clip(), limits=RequestLimits(sessions=1)) as running:
        one_stream = RemoteStream(running.url)
        with pytest.raises(ServerLostError, match="No room for another session"):
            RemoteStream(running.url)
        one_stream.close()
        other, _ = wait_for(lambda: RemoteStream(running.url))
        other.close()


@contextlib.contextmanager
def sessions(behave):
    """A WebSocket server whose sessions open well; `behave` gets each, with its number."""
    opened = protocol.pack({"type": "opened", "version": peer.own_version(), "model_id": "m"})
    count = [0]

    def handle(session):
        session.recv()
        session.send(opened)
        count[0] += 1
        behave(session, count[0])

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.socket.getsockname()[1]}"
        finally:
            running.shutdown()
            thread.join()


READING = {"type": "reading", "episode": 0, "row": 0, "potentials": {"a": 1.0}, "combined": 1.0, "reward": None,
           "latency_ms": 1.0, "model_id": "m"}  # fmt: skip


def test_a_restart_that_is_refused_for_now_is_a_new_session():
    def busy(session, count):
        with contextlib.suppress(ConnectionClosed):
            while True:
                asked = protocol.unpack(session.recv())["type"]
                refused = {"type": "error", "code": "rate", "error": "Too many.", "model_id": "m"}
                session.send(protocol.pack(refused if asked == "restart" else READING))

    with sessions(busy) as url:
        stream = RemoteStream(url)
        assert readings(stream, frames(1))[0].episode == 0
        stream.restart()
        assert readings(stream, frames(1))[0].episode == 1
        stream.close()


def test_a_slow_server_is_given_up_in_time_and_its_late_answer_never_read():
    released = threading.Event()

    def slow(session, count):
        if count == 1:
            session.recv()
            released.wait(10)
            with contextlib.suppress(Exception):
                session.send(protocol.pack(READING | {"combined": 99.0}))
        else:
            for _ in range(2):
                session.recv()
                session.send(protocol.pack(READING))

    with sessions(slow) as url:
        stream = RemoteStream(url, timeout_s=0.4)
        start = time.monotonic()
        with pytest.raises(ServerLostError, match=r"no answer in 0\.4 s"):
            readings(stream, frames(1))
        assert time.monotonic() - start < 5
        released.set()
        ((reading,), _) = wait_for(lambda: readings(stream, frames(1)))
        assert (reading.combined, stream.lost) == (1.0, 1)
        stream.close()


def test_a_session_may_be_quiet_for_longer_than_an_answer_may_take(server):
    stream = RemoteStream(server.url, timeout_s=1.0)
    readings(stream, frames(1))
    time.sleep(1.2)
    assert (readings(stream, frames(1))[0].row, stream.lost) == (1, 0)
    stream.close()


def test_a_server_that_stops_reading_does_not_hold_the_caller():
    released = threading.Event()

    def deaf(session, count):
        with session.protocol_mutex:  # its receiving thread stops too
            released.wait(20)

    with sessions(deaf) as url:
        stream = RemoteStream(url, timeout_s=0.4)
        large = np.zeros((4000, 4000, 3), np.uint8)  # 48 MB: more than the buffers between
        start = time.monotonic()
        with pytest.raises(ServerLostError, match=r"it read nothing for 0\.4 s"):
            stream.push({"main": large})
        assert time.monotonic() - start < 10
        released.set()
        stream.close()


@pytest.mark.parametrize("data", [b"\xc1garbage", msgpack.packb({"type": "restarted", "episode": 1}), "text"])
def test_an_answer_that_is_none_ends_the_session(data):
    def odd(session, count):
        session.recv()
        session.send(data if count == 1 else protocol.pack(READING))
        with contextlib.suppress(Exception):
            session.recv()

    with sessions(odd) as url:
        stream = RemoteStream(url, timeout_s=5.0)
        with pytest.raises(ServerLostError):
            readings(stream, frames(1))
        (again,) = readings(stream, frames(1))
        assert (again.combined, stream.lost) == (1.0, 1)
        stream.close()


def test_half_an_answer_and_a_broken_line():
    """The connection ends in the middle of a message."""

    def cut(session, count):
        session.recv()
        if count == 1:
            whole = protocol.pack(READING)
            session.socket.sendall(bytes([0x82, len(whole)]) + whole[: len(whole) // 2])
            session.socket.shutdown(2)
        else:
            session.send(protocol.pack(READING))
            with contextlib.suppress(Exception):
                session.recv()

    with sessions(cut) as url:
        stream = RemoteStream(url, timeout_s=5.0)
        (reading,) = readings(stream, frames(1))  # by a second session, within the call
        assert (reading.combined, stream.lost) == (1.0, 1)
        stream.close()


def test_no_server_at_the_start_is_one_line():
    with listening(lambda connection, count: None) as url:
        pass
    with pytest.raises(ServerLostError, match=r"gave no session: .*refused.*Is it running"):
        RemoteStream(url, timeout_s=1.0)


def test_something_else_gives_no_session():
    def page(connection, count):
        read_request(connection)
        connection.sendall(http(b"hello"))

    with listening(page) as url, pytest.raises(ServerRefusedError, match=f"{url} must be a reward server"):
        RemoteStream(url, timeout_s=1.0)


def test_features_are_kept_by_the_model_that_made_them(server):
    with serving(clip(), model_id="another") as running:
        marks = [fingerprint(RemoteEncoder(url, **QUICK)) for url in (server.url, server.url, running.url)]
    assert marks[0] == marks[1] != marks[2]
