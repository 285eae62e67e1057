"""A reward server on a thread, and a client that says what it gets, for tests of the server."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from embodied.serving import protocol
from embodied.serving.app import make_app
from embodied.serving.connections import Server
from embodied.serving.limits import RequestLimits
from rewards.clip_goal import clip_scorer
from rewards.core import Features, Scorer
from rewards.shaping import PotentialShaping
from tests.fakes import FakeEncoder
from tests.waiting import until

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 255, (6, 8, 8, 3)).astype(np.uint8)
DEADLINE_S = 20.0
WORK_S = 2.0  # of this process, for any one attack; the worst took 20 to 60
MANY = RequestLimits(requests_per_s=1e6, burst=1_000_000)
PICTURE = {"images": {"main": protocol.encode_image(FRAMES[0])}}


def scorer(encoder=None):
    return clip_scorer(encoder=encoder or FakeEncoder(), goal="a", baseline="b", shaping={"kind": "difference"})


@contextlib.contextmanager
def serving(model=None, *, limits=None, token=None, proxies=(), **options):
    model = model or scorer()
    options.setdefault("goal_scorer", lambda goal: clip_scorer(encoder=model.encoder, goal=goal, baseline="b"))
    app = make_app(model, model_id="model-1", limits=limits, token=token, **options)
    server = Server(app, port=0, proxies=proxies)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        yield SimpleNamespace(
            server=server, port=server.port, url=f"http://127.0.0.1:{server.port}", scorer=model, token=token,
            service=app.state.service, thread=thread,
        )  # fmt: skip
    finally:
        server.should_exit = True
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def shared_server(**options):
    """A fixture: one server for all tests of a module."""

    @pytest.fixture(scope="module")
    def shared():
        with serving(**options) as server:
            yield server

    return shared


@contextlib.contextmanager
def cheap():
    """What happens inside is little work of this process, by its own seconds, not by the clock."""
    started = time.process_time()
    yield
    assert time.process_time() - started < WORK_S


def ask(server, path, message=None, *, body=None, media=protocol.MSGPACK, headers=None, method=None):
    """Status, headers and decoded answer."""
    data = protocol.pack(message) if message is not None else body
    sent = {"Content-Type": media} if data is not None else {}
    sent |= {"Authorization": f"Bearer {server.token}"} if server.token else {}
    request = urllib.request.Request(server.url + path, data, sent | (headers or {}), method=method)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            status, got, body = answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            status, got, body = error.code, error.headers, error.read()
    read = protocol.unpack if got["content-type"] == protocol.MSGPACK else json.loads
    return status, got, read(body)


@contextlib.contextmanager
def session(server, *, opening=None, headers=None):
    """`say(message) -> answer` of an open session; `opening` False: not opened."""
    sent = headers or ({"Authorization": f"Bearer {server.token}"} if server.token else {})
    url = server.url.replace("http", "ws") + protocol.STREAM
    with connect(url, compression=None, additional_headers=sent, close_timeout=1) as socket:

        def say(message):
            socket.send(protocol.pack(message) if isinstance(message, dict) else message)
            return protocol.unpack(socket.recv(timeout=DEADLINE_S))

        say.socket = socket
        if opening is not False:
            assert say({"type": "open", **(opening or {})})["type"] == "opened"
        yield say


def frames(*images, form="raw", view="main", **more):
    value = protocol.encode_images(np.stack(images), form) if len(images) > 1 else protocol.encode_image(*images, form)
    return {"type": "frames", "images": {view: value}, **more}


def close_code(say):
    """Of the session, whatever it says before."""
    while True:
        try:
            say.socket.recv(timeout=DEADLINE_S)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else None


def fine(server):
    """Others are served as before."""
    status, _, answer = ask(server, protocol.SCORE, {"images": {"main": protocol.encode_images(FRAMES)}})
    local = server.scorer.score(torch.from_numpy(FRAMES))
    return status == 200 and np.allclose(answer["combined"], local, atol=1e-5)


class Total:
    """Needs the past, a second view, a signal and every image: what a pointwise head does not."""

    name, frames_read = "total", "all"

    def score(self, features: Features):
        seen = features.frames["side"].float().mean(dim=(2, 3, 4)) / 255
        return torch.cumsum(features.views["side"][..., 0] + features.signals["force"] + seen, 1)


def total_scorer():
    return Scorer(FakeEncoder(), {"total": Total()}, lambda each, features: each["total"], PotentialShaping())
