"""A real server on a loopback port: the same numbers as at home, its command, and its end."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from embodied.config import compose
from embodied.errors import UserError
from embodied.scoring.streaming import EpisodeStream
from embodied.serving import protocol, tokens
from embodied.serving.client import RemoteStream
from rewards.clip_goal import clip_scorer
from tests.fakes import FakeEncoder
from tests.serving_client import (
    DEADLINE_S,
    FRAMES,
    RNG,
    ask,
    close_code,
    frames,
    scorer,
    serving,
    session,
    shared_server,
    total_scorer,
)
from tests.waiting import until

shared = shared_server()


# The same numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "png"])
def test_score_is_the_local_score(shared, form):
    message = {"images": {"main": protocol.encode_images(FRAMES, form)}}
    status, _, answer = ask(shared, protocol.SCORE, message)
    local = shared.scorer.score(torch.from_numpy(FRAMES)).numpy()
    assert status == 200
    np.testing.assert_allclose(answer["combined"], local, atol=1e-5)
    np.testing.assert_allclose(answer["potentials"]["clip"], local, atol=1e-5)
    np.testing.assert_allclose(answer["rewards"], 0.99 * local[1:] - local[:-1], atol=1e-5)
    assert (answer["model_id"], answer["version"]) == ("model-1", "0.1.0")
    body = protocol.to_json(message)
    assert ask(shared, protocol.SCORE, body=body, media=protocol.JSON)[2] == answer


def test_a_picture_is_a_request(shared):
    picture = protocol.encode_image(FRAMES[0], "png")["png"]
    status, headers, answer = ask(shared, protocol.SCORE, body=picture, media="image/png")
    assert (status, headers["content-type"]) == (200, protocol.JSON)
    assert answer["combined"] == pytest.approx(shared.scorer.score(torch.from_numpy(FRAMES[:1])).tolist(), abs=1e-5)


def test_encode_and_potentials_are_the_local_ones(shared):
    features = shared.scorer.encode(torch.from_numpy(FRAMES))
    answer = ask(shared, protocol.ENCODE, {"images": protocol.encode_images(FRAMES)})[2]
    np.testing.assert_allclose(protocol.decode_array(answer["features"], ndim=2), features, atol=1e-6)
    texts = ask(shared, protocol.ENCODE, {"texts": ["a", "b"]})[2]["features"]
    local = shared.scorer.encoder.encode_texts(["a", "b"])
    np.testing.assert_allclose(protocol.decode_array(texts), local, atol=1e-6)
    views = {"main": protocol.encode_array(features.reshape(2, 3, 16).numpy())}
    answer = ask(shared, protocol.POTENTIALS, {"views": views})[2]
    np.testing.assert_allclose(
        protocol.decode_array(answer["combined"], ndim=2).ravel(),
        shared.scorer.score(torch.from_numpy(FRAMES)),
        atol=1e-5,
    )
    other = ask(shared, protocol.POTENTIALS, {"views": views, "goal": "c"})[2]["potentials"]["clip"]
    goal = clip_scorer(encoder=shared.scorer.encoder, goal="c", baseline="b").score(torch.from_numpy(FRAMES))
    np.testing.assert_allclose(protocol.decode_array(other).ravel(), goal, atol=1e-5)


def test_a_session_reads_as_a_local_stream(shared):
    local = EpisodeStream(shared.scorer)
    with session(shared) as say:
        for k, frame in enumerate(FRAMES[:3]):
            answer = say(frames(frame, captured_s=0.5 + k, id=k))
            expected = local.push(local.encode(frame[None]))
            assert answer["type"] == "reading"
            assert (answer["episode"], answer["row"]) == (0, k)
            assert (answer["captured_s"], answer["id"]) == (0.5 + k, k)
            assert answer["combined"] == pytest.approx(expected.combined, abs=1e-5)
            assert answer["reward"] == (None if k == 0 else pytest.approx(expected.reward, abs=1e-5))
            assert answer["latency_ms"] > 0
            assert (answer["model_id"], answer["version"]) == ("model-1", "0.1.0")
        several = say(frames(*FRAMES[3:], form="png"))
        assert several["type"] == "readings"
        for frame, answer in zip(FRAMES[3:], several["readings"], strict=True):
            expected = local.push(local.encode(frame[None]))
            assert answer == {**expected._asdict(), "combined": pytest.approx(expected.combined, abs=1e-5),
                              "reward": pytest.approx(expected.reward, abs=1e-5),
                              "potentials": pytest.approx(expected.potentials, abs=1e-5)}  # fmt: skip
        assert say({"type": "restart"})["episode"] == 1
        again = say(frames(FRAMES[0]))
        assert (again["episode"], again["row"], again["reward"]) == (1, 0, None)


def test_a_goal_changes_and_the_past_is_scored_again(shared):
    with session(shared, opening={"goal": "a"}) as say:
        say(frames(*FRAMES))
        answer = say({"type": "goal", "text": "c"})
        local = clip_scorer(encoder=shared.scorer.encoder, goal="c", baseline="b").score(torch.from_numpy(FRAMES))
        np.testing.assert_allclose(protocol.decode_array(answer["past"]["clip"]), local, atol=1e-5)
        assert say(frames(FRAMES[0]))["combined"] == pytest.approx(float(local[0]), abs=1e-5)
        for text in ("x" * 10_000, "", 3):
            assert say({"type": "goal", "text": text})["code"] == "bad_text"
        assert say(frames(FRAMES[0]))["type"] == "reading"


def test_views_signals_and_images_reach_the_heads():
    model = total_scorer()
    both = {"front": protocol.encode_images(FRAMES), "side": protocol.encode_images(FRAMES[::-1].copy(), "png")}
    force = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    with serving(model, goal_scorer=None) as server:
        status, _, answer = ask(server, protocol.SCORE, {"images": {"front": both["front"]}})
        assert (status, answer["code"], answer["error"]) == (422, "unscorable", "missing: 'side'")
        status, _, answer = ask(server, protocol.SCORE, {"images": both, "signals": {"force": force}})
        assert status == 200
        side = torch.from_numpy(FRAMES[::-1].copy())
        seen = model.encode(side)[:, 0] + torch.tensor(force) + side.float().mean(dim=(1, 2, 3)) / 255
        np.testing.assert_allclose(answer["combined"], torch.cumsum(seen, 0), rtol=1e-5)
        with session(server, opening={"views": ["front", "side"], "signals": ["force"]}) as say:
            readings = say({"type": "frames", "images": both, "signals": {"force": force}})["readings"]
            np.testing.assert_allclose([each["combined"] for each in readings], answer["combined"], rtol=1e-5)
            one = {name: protocol.encode_image(FRAMES[0]) for name in both}
            assert say({"type": "frames", "images": one, "signals": {"force": 1}})["row"] == 6
            assert say({"type": "frames", "images": one})["code"] == "bad_message"
            assert say({"type": "frames", "images": one, "signals": {"force": float("nan")}})["code"] == "bad_message"
            assert say({"type": "frames", "images": {"front": one["front"]}})["code"] == "bad_message"
            sizes = {"front": one["front"], "side": protocol.encode_image(np.zeros((4, 4, 3), np.uint8))}
            assert say({"type": "frames", "images": sizes, "signals": {"force": 1}})["code"] == "bad_image"
            assert say({"type": "goal", "text": "b"})["code"] == "bad_text"
            assert say({"type": "frames", "images": one, "signals": {"force": 1}})["row"] == 7


def test_many_clients_share_batches_and_get_their_own_numbers():
    encoder = FakeEncoder()
    sizes, inner, waiting = [], encoder.encode_images, []

    def slow(images):
        """The first waits until four of the others do, unless it is of four; the rest are as quick as they come."""
        if not sizes and len(images) < 4:
            until(lambda: waiting[0].queued >= 4)
        sizes.append(len(images))
        return inner(images)

    encoder.encode_images = slow
    with serving(scorer(encoder)) as server:
        waiting.append(server.service.batcher)
        local = clip_scorer(encoder=FakeEncoder(), goal="a", baseline="b").score(torch.from_numpy(FRAMES))

        def client(k):
            with session(server) as say:
                return [
                    say(frames(FRAMES[(k + t) % 6], form="jpeg" if k == 0 else "raw"))["combined"] for t in range(12)
                ]

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(client, range(8)))
        for k in range(1, 8):
            np.testing.assert_allclose(answers[k], [local[(k + t) % 6] for t in range(12)], atol=1e-5)
        assert max(sizes) >= 4
        text = urllib.request.urlopen(server.url + protocol.METRICS).read().decode()
        assert f"embodied_frames_encoded_total {8 * 12}.0" in text
        assert f'embodied_request_seconds_count{{path="/v1/stream"}} {8 * 13}.0' in text


def test_health_and_model_say_what_is_served(shared):
    assert ask(shared, protocol.HEALTH)[2] == {"status": "ok", "model_id": "model-1", "version": "0.1.0"}
    told = ask(shared, protocol.MODEL)[2]
    assert told["heads"] == ["clip"]
    assert told["encoder"] == {"name": "fake", "dim": 16, "image_size": [8, 8]}
    assert told["pointwise"] is told["goals"] is True
    assert told["shaping"]["kind"] == "difference"
    assert told["limits"]["text_chars"] == 1000


# The end ------------------------------------------------------------------------------------------------


def test_what_is_in_hand_is_finished_before_the_end():
    encoder = FakeEncoder()
    inner, entered, leave = encoder.encode_images, threading.Event(), threading.Event()

    def held(images):
        entered.set()
        assert leave.wait(DEADLINE_S)
        return inner(images)

    encoder.encode_images = held
    with serving(scorer(encoder)) as server, session(server) as busy, session(server) as idle:
        busy.socket.send(protocol.pack(frames(FRAMES[0])))
        assert entered.wait(DEADLINE_S)
        server.server.should_exit = True
        assert close_code(idle) == protocol.GOING_AWAY
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port))
        leave.set()
        assert protocol.unpack(busy.socket.recv(timeout=DEADLINE_S))["type"] == "reading"
        assert close_code(busy) == protocol.GOING_AWAY
        server.thread.join(DEADLINE_S)
        assert not server.thread.is_alive()


# The command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["host=0.0.0.0", "token=false", "reward.goal=x"], "needs a token"),
        (["token=false", "token_file={token}"], "Drop either"),
        (["proxies=[nginx]"], "proxies must be addresses"),
        (["proxies=[10.0.0.2]", "replicas=2"], "Drop proxies"),
        (["reward=true"], "serves nothing"),
        (["token_file=/nowhere"], "token_file"),
        (["max_batch=0"], "max_batch"),
        (["port=70000"], "port"),
        (["limits.sessions=0"], "limits.sessions"),
        (["host=192.0.2.1", "token_file={token}"], "cannot listen"),
    ],
)
def test_settings_that_cannot_be_served_are_refused(words, told, tmp_path, monkeypatch):
    from embodied.commands import serve

    monkeypatch.delenv(protocol.TOKEN_VARIABLE, raising=False)
    (tmp_path / "token").write_text("secret\n")
    words = [word.format(token=tmp_path / "token") for word in words]
    with pytest.raises(UserError, match=told):
        serve.run(compose("serve", words))


def test_a_port_that_is_taken_is_said(shared):
    from embodied.commands import serve

    with pytest.raises(UserError, match=f"port {shared.port}"):
        serve.run(compose("serve", ["reward.goal=x", f"port={shared.port}"]))


def test_a_server_leaves_the_log_of_its_process_alone():
    closed = []

    class Handler(logging.Handler):
        def close(self):
            closed.append(self)
            super().close()

    handler = Handler()
    logging.getLogger().addHandler(handler)
    try:
        with serving():
            assert not closed
    finally:
        logging.getLogger().removeHandler(handler)


def test_the_token_is_that_of_the_file_else_of_the_variable_else_made(tmp_path, monkeypatch):
    from embodied.commands.serve import _check

    monkeypatch.setenv(protocol.TOKEN_VARIABLE, "variable")
    (tmp_path / "token").write_text("secret\n")
    for words, token in (([f"token_file={tmp_path / 'token'}"], "secret"), ([], "variable"), (["token=false"], None)):
        assert _check(compose("serve", ["reward.goal=x", *words])) == token
    monkeypatch.delenv(protocol.TOKEN_VARIABLE)
    config = compose("serve", ["reward.goal=x", "host=0.0.0.0"])
    assert (_check(config), config.token) == (None, True)


def test_serve_as_its_user_would(tmp_path, tiny_clip, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv(protocol.TOKEN_VARIABLE, raising=False)
    words = ["reward.goal=a red cube", "port=0", "encoder=open_clip", f"encoder.model={tiny_clip}"]
    command = [sys.executable, "-m", "embodied.cli", "serve", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        first = process.stdout.readline()
        assert first.startswith("Serving clip at http://127.0.0.1:"), process.stderr.read()
        # All of it: communicate() skips what readline has buffered.
        told = first + "".join(process.stdout.readline() for _ in range(3))
        url = first.split()[3]
        secret = tokens.found(tokens.SERVE, int(url.rpartition(":")[2]))
        assert secret
        assert ask(SimpleNamespace(url=url, token=None), protocol.MODEL)[0] == 401
        stream = RemoteStream(url)  # this user's other programs find it by themselves
        assert stream.push({"main": RNG.integers(0, 255, (40, 50, 3)).astype(np.uint8)}).row == 0
        stream.close()
        server = SimpleNamespace(url=url, token=secret)
        picture = protocol.encode_image(RNG.integers(0, 255, (40, 50, 3)).astype(np.uint8), "jpeg")["jpeg"]
        status, _, answer = ask(server, protocol.SCORE, body=picture, media="image/jpeg")
        assert status == 200
        assert len(answer["combined"]) == 1
        assert answer["model_id"].startswith("clip-")
        with session(server, opening={"goal": "a blue cube"}) as say:
            assert say(frames(RNG.integers(0, 255, (40, 50, 3)).astype(np.uint8)))["row"] == 0
            process.send_signal(signal.SIGTERM)
            assert close_code(say) == protocol.GOING_AWAY
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "Stopped." in out
        assert "curl" in told
        assert secret not in told + out + err
        assert str(tokens.path(tokens.SERVE, int(url.rpartition(":")[2]))) in told
        assert tokens.found(tokens.SERVE, int(url.rpartition(":")[2])) is None
        assert "Traceback" not in err
    finally:
        process.kill()
        process.communicate()
