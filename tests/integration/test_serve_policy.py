"""A policy over the wire: the same chunks as at home, what is refused, and a client that does nothing too late."""

import contextlib
import queue
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from embodied.serving import policy_client, protocol
from embodied.serving.connections import Server
from embodied.serving.http_client import Client
from embodied.serving.limits import RequestLimits
from embodied.serving.peer import ServerLostError, ServerRefusedError
from embodied.serving.policy_app import PolicyService, make_policy_app
from embodied.serving.policy_client import RemotePolicy
from policies.vla.embedded import ChunkObservation
from policies.vla.execute import GoingOn
from tests.serving_client import ask
from tests.unit.test_vla_policy import CAMERAS, make
from tests.waiting import until

IMAGES = {name: np.full((4, 4, 3), 40 + 50 * k, np.uint8) for k, name in enumerate(CAMERAS)}
STATE = np.array([0.1, -0.2, 0.3], np.float32)


def see(name):
    def look(frames):
        return torch.from_numpy(frames).permute(0, 3, 1, 2).float().mean(1, keepdim=True).expand(
            -1, CAMERAS[name], -1, -1) / 255  # fmt: skip

    return look


def say(texts):
    return torch.stack([torch.full((7,), len(text) / 10) for text in texts])


def at_home(policy, text="push", going_on=None):
    obs = ChunkObservation(
        {name: see(name)(frame[None]) for name, frame in IMAGES.items()},
        {name: torch.ones(1, dtype=torch.bool) for name in CAMERAS}, say([text]), torch.from_numpy(STATE)[None],
    )  # fmt: skip
    return policy.predict_chunk(obs, None, going_on)[0].numpy()


@contextlib.contextmanager
def serving(policy, *, token=None):
    service = PolicyService(policy, {name: see(name) for name in CAMERAS}, say, execute=2, model_id="policy-1",
                            limits=RequestLimits(), token=token)  # fmt: skip
    server = Server(make_policy_app(service), port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        yield SimpleNamespace(port=server.port, url=f"http://127.0.0.1:{server.port}", token=token, service=service)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def flow():
    policy = make("flow").eval()
    with serving(policy, token="secret") as server:
        yield server, policy


def message(**changes):
    images = {name: protocol.encode_image(frame) for name, frame in IMAGES.items()}
    return {"images": images, "state": protocol.encode_array(STATE), "instruction": "push"} | changes


def test_a_chunk_over_the_wire_is_the_chunk_at_home(flow):
    server, policy = flow
    status, _, answer = ask(server, protocol.ACT, message(id=7, captured_s=1.5))
    assert status == 200
    assert (answer["id"], answer["captured_s"], answer["model_id"]) == (7, 1.5, "policy-1")
    actions = protocol.decode_array(answer["actions"], ndim=2)
    assert np.allclose(actions, at_home(policy), atol=1e-6)
    rest = actions[1:] + 0.5
    going = {"actions": protocol.encode_array(rest), "delay": 2}
    status, _, answer = ask(server, protocol.ACT, message(going_on=going))
    padded = torch.from_numpy(np.pad(rest, ((0, 1), (0, 0))))[None]
    expected = at_home(policy, going_on=GoingOn(padded, 3, 2))
    assert np.allclose(protocol.decode_array(answer["actions"], ndim=2), expected, atol=1e-5)
    assert not np.allclose(expected, actions, atol=1e-2)
    status, _, told = ask(server, protocol.MODEL)
    assert (told["states"], told["horizon"], told["execute"]) == (["x", "y", "grip"], 4, 2)
    assert (told["going_on"], told["fps"]) == (True, 20.0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"images": {}}, "images of front, wrist"), ({"state": [1.0, 2.0]}, "3 finite numbers: x, y, grip"),
     ({"state": [1.0, float("nan"), 0.0]}, "3 finite numbers"),
     ({"instruction": None}, "a text"), ({"going_on": {"actions": [[0.0] * 3] * 2, "delay": 3}}, "a delay within them"),
     ({"going_on": {"actions": [[0.0] * 2], "delay": 0}}, "finite actions of 3"),
     ({"going_on": {"actions": [[0.0] * 3] * 9, "delay": 0}}, "1 to 4 finite actions"), ({"going_on": 3}, "a map")],
)  # fmt: skip
def test_a_message_that_a_policy_cannot_read_is_refused(flow, changes, told):
    status, _, answer = ask(flow[0], protocol.ACT, message(**changes))
    assert status == 400
    assert told in answer["expected"]


def test_several_moments_another_token_and_another_path_are_refused(flow):
    server, _ = flow
    several = {name: protocol.encode_images(np.stack([frame] * 2)) for name, frame in IMAGES.items()}
    assert ask(server, protocol.ACT, message(images=several))[2]["expected"] == "one image of each camera"
    other = {"Authorization": "Bearer other"}
    assert ask(server, protocol.ACT, message(), headers=other)[0] == 401
    status, _, answer = ask(server, protocol.SCORE, message())
    assert status == 404
    assert "/v1/act" in answer["expected"]


def test_actions_that_are_not_finite_never_leave():
    policy = make().eval()
    with serving(policy) as server:
        policy.predict_chunk = lambda *_: torch.full((1, 4, 3), float("nan"))
        status, _, answer = ask(server, protocol.ACT, message())
    assert status == 422
    assert "NaN" in answer["error"]


def test_a_remote_policy_acts_in_time_or_not_at_all(tmp_path):
    """A server that falls asleep for longer than a chunk lasts: the robot gets no action, and none that is old."""
    policy, asleep = make(horizon=4).eval(), [0.0]
    predict = policy.predict_chunk

    def slow(*arguments):
        time.sleep(asleep[0])
        return predict(*arguments)

    file = tmp_path / "token"
    file.write_text("secret\n")
    file.chmod(0o600)
    with serving(policy, token="secret") as server:
        policy.predict_chunk = slow
        remote = RemotePolicy(
            server.url, instruction="push", token_env=None, token_file=file, form="raw", patience_s=5.0
        )
        remote.queue.fps = 1.0  # a slow robot on a busy machine
        remote.queue.longest_s = 1.0
        assert remote.act(IMAGES, STATE) is None
        until(lambda: remote.queue.counts["taken"])
        action = remote.act(IMAGES, STATE)
        assert min(np.abs(action - each).max() for each in at_home(policy)[:2]) < 1e-5
        asleep[0] = 1.5
        until(lambda: remote.act(IMAGES, STATE) is None and remote.queue.counts["late"])
        remote.reset()
        remote.close()
        remote.close()
        with pytest.raises(ServerRefusedError, match="token"):
            RemotePolicy(server.url, instruction="push", token_env=None)
        assert Client(server.url, token_env=None, token_file=file).about()["model_id"] == "policy-1"


def test_a_request_that_the_thread_takes_just_as_another_replaces_it_holds_up_nobody(monkeypatch):
    """The control thread waited for ever for what the other one had."""
    going = threading.Event()

    class Away:
        """A server whose first answer is long in coming."""

        def __init__(self, *_, **__):
            self.about = lambda: {"horizon": 4, "fps": 10.0, "actions": ["a"], "going_on": False}
            self.close = lambda: None

        def ask(self, *_):
            assert going.wait(30)
            raise ServerLostError("lost")

    class Switching(queue.Queue):
        """Between asking and taking, the other thread has its turn."""

        def full(self):
            found = super().full()
            going.set()
            until(lambda: not self.qsize())
            return found

        def get_nowait(self):
            going.set()
            until(lambda: not self.qsize())
            return super().get_nowait()

    monkeypatch.setattr(policy_client, "Client", Away)
    remote = RemotePolicy("http://localhost:1", instruction="push", patience_s=0.01)

    def ask_again():
        time.sleep(0.02)  # the last request is given up
        return remote.act({}, np.zeros(0, np.float32))

    ask_again()
    until(lambda: not remote._wanted.qsize())  # the thread waits for its answer
    ask_again()
    remote._wanted.__class__ = Switching
    thread = threading.Thread(target=ask_again, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    remote.close()
