"""Servers that go, come back, and answer what they should not: nothing wrong is taken for a reward."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from embodied.serving import http_client, peer, protocol, tokens
from embodied.serving.client import RemoteStream
from embodied.serving.http_client import Client
from embodied.serving.peer import ServerLostError, ServerRefusedError
from embodied.serving.remote import RemoteEncoder, remote_scorer
from tests.reward_server import Running, http, listening, read_request, serving
from tests.served_rewards import QUICK, clip, frames, to_goal


@pytest.fixture(scope="module")
def server():
    with serving(clip(), goal_scorer=to_goal) as running:
        yield running


# Servers that go and come -------------------------------------------------------------------------------


def test_a_server_killed_and_started_again_is_waited_for(capsys, monkeypatch):
    first = Running(clip())
    remote = remote_scorer(url=first.url, **QUICK)
    before = remote.encode(frames(3))
    first.stop()
    again: list[Running] = []

    def pause(seconds):
        """The client waits: by then it has said so."""
        if seconds > 0 and not again:
            again.append(Running(clip(), port=first.port))

    monkeypatch.setattr(http_client, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pause))
    try:
        torch.testing.assert_close(remote.encode(frames(3)), before)
    finally:
        for each in again:
            each.stop()
    assert "Waiting for" in capsys.readouterr().err
    remote.encoder.client.close()


def test_a_server_started_again_has_another_token_and_its_user_finds_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv(protocol.TOKEN_VARIABLE, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tokens.made(tokens.SERVE, port) as (first, _), serving(clip(), port=port, token=first) as running:
        remote, stream = remote_scorer(url=running.url, **QUICK), RemoteStream(running.url)
        before = remote.encode(frames(2))
        stream.push({"main": frames(1)[0].numpy()})
    with tokens.made(tokens.SERVE, port) as (second, _), serving(clip(), port=port, token=second):
        assert second != first
        torch.testing.assert_close(remote.encode(frames(2)), before)
        assert (stream.push({"main": frames(1)[0].numpy()}).episode, stream.lost) == (1, 1)
        stream.close()
        remote.encoder.client.close()
        with tokens.made(tokens.SERVE, port), pytest.raises(ServerRefusedError, match="refused the token"):
            Client(running.url, patience_s=1.0).about()  # what lies there is not its own


def test_a_server_that_stays_away_ends_in_one_line():
    running = Running(clip())
    client = Client(running.url, timeout_s=1.0, patience_s=0.3)
    client.about()
    running.stop()
    with pytest.raises(ServerLostError, match=r"no answer in 0\.3 s: .*refused.*Start it again, or raise patience_s"):
        client.about()
    client.close()


def test_another_model_in_its_place_is_refused():
    first = Running(clip(), model_id="one")
    remote = remote_scorer(url=first.url, **QUICK)
    stream = RemoteStream(first.url)
    first.stop()
    with serving(clip(), port=first.port, model_id="two"):
        with pytest.raises(ServerRefusedError, match="must serve the model it served before, one; got two"):
            remote.encode(frames(1))
        with pytest.raises(ServerRefusedError, match="must serve the model it served before, one; got two"):
            stream.push({"main": frames(1)[0].numpy()})
        stream.close()
        remote.encoder.client.close()


ANSWER = protocol.pack({"version": peer.own_version(), "model_id": "m", "padding": "x" * 1000})


def drop(connection, count):
    read_request(connection)
    if count < 2:
        connection.close()
    else:
        connection.sendall(http(ANSWER))


def half(connection, count):
    read_request(connection)
    if count < 2:
        connection.sendall(http(ANSWER)[:-500])
        connection.close()
    else:
        connection.sendall(http(ANSWER))


def garbled(connection, count):
    read_request(connection)
    connection.sendall(http(ANSWER[:-3] if count < 2 else ANSWER))


def busy(connection, count):
    read_request(connection)
    told = b'{"error": "Full.", "code": "busy"}'
    connection.sendall(http(told, status="503 X", kind="application/json") if count < 2 else http(ANSWER))
    connection.close()


def silent(connection, count):
    read_request(connection)
    if count >= 2:
        connection.sendall(http(ANSWER))


def dripping(connection, count):
    read_request(connection)
    data = http(ANSWER)
    if count < 2:
        connection.sendall(data[:-100])
        ends = time.monotonic() + 4
        for byte in data[-100:]:
            if time.monotonic() > ends:
                return
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
    else:
        connection.sendall(data)


@pytest.mark.parametrize(("fault", "told"), [
    (drop, "it hung up"),
    (half, "it hung up in the middle of its answer"),
    (garbled, "its answer cannot be read"),
    (busy, "Full"),
    (silent, "its answer took more than 0.4 s"),
    (dripping, "its answer took more than 0.4 s"),
])  # fmt: skip
def test_an_answer_that_does_not_come_whole_is_asked_for_again(fault, told):
    with listening(fault) as url:
        client = Client(url, timeout_s=0.4, patience_s=30.0)
        assert client.about()["padding"] == "x" * 1000
        client.close()
    start = time.monotonic()
    with listening(fault) as url, pytest.raises(ServerLostError, match=f"gave no answer in 0 s: {told}"):
        Client(url, timeout_s=0.4, patience_s=0.0).about()
    assert time.monotonic() - start < 3


def test_the_wait_a_server_asks_for_is_waited(monkeypatch):
    slept = []
    monkeypatch.setattr(http_client.time, "sleep", lambda s: slept.append(s))

    def limited(connection, count):
        read_request(connection)
        told = b"HTTP/1.1 429 X\r\nRetry-After: 3\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
        connection.sendall(told if count == 0 else http(ANSWER))
        connection.close()

    with listening(limited) as url:
        Client(url, patience_s=60.0).about()
    assert [1.5 <= s <= 3 for s in slept if s >= 1] == [True]


@pytest.mark.parametrize("answer", [b"<html>", b""])
def test_something_else_that_answers_is_not_taken_for_a_server(answer):
    def page(connection, count):
        read_request(connection)
        connection.sendall(http(answer, kind="text/html"))

    with listening(page) as url, pytest.raises(ServerRefusedError, match="must be a reward server"):
        Client(url, timeout_s=2.0, patience_s=0.0).about()


def test_an_answer_of_another_shape_is_not_taken(server, monkeypatch):
    remote = RemoteEncoder(server.url, **QUICK)
    wrong = {"features": protocol.encode_array(np.zeros((1, 16), np.float32))}
    monkeypatch.setattr(Client, "ask", lambda *_: wrong)
    with pytest.raises(ServerRefusedError, match=r"features must be \(2, 16\); got \(1, 16\)"):
        remote.encode_images(frames(2))
    remote.client.close()
