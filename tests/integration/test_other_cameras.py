"""What else is a camera: LeRobot's image server, worlds, and datasets."""

import base64
import json
import threading
import time

import numpy as np
import pytest
import zmq

from embodied.cameras import CameraError, live, open_source
from embodied.datasets import Writer
from embodied.errors import UserError
from tests.cameras import fresh, kinds
from tests.mjpeg_server import damaged, jpeg, number_of, picture
from tests.waiting import until

# ZeroMQ, as LeRobot's image server sends --------------------------------------------------------------------


class ImageServer:
    """LeRobot's: every camera's picture in each message, red and blue exchanged in the JPEG."""

    def __init__(self, fps=40.0):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.fps, self.number, self.silent, self.offset_s = fps, 0, False, 0.0
        self.instead: list[bytes] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def message(self):
        pictures = {"head": picture(self.number, 64, 96), "wrist": picture(self.number, 32, 48)}
        images = {name: base64.b64encode(jpeg(each[:, :, ::-1])).decode() for name, each in pictures.items()}
        return {"timestamps": dict.fromkeys(images, time.time() + self.offset_s), "images": images}

    def run(self):
        while not self.ended.wait(1 / self.fps):
            if not self.silent:
                self.number += 1
                self.socket.send(self.instead.pop() if self.instead else json.dumps(self.message()).encode())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()
        self.socket.close()
        self.context.term()


def test_lerobot_s_zeromq_cameras_in_their_true_colours():
    with ImageServer() as server, open_source(f"zmq://127.0.0.1:{server.port}/wrist") as source:
        frame = fresh(source)
        assert frame.image.shape == (32, 48, 3)
        assert frame.image[24, 12, 0] > 150 > frame.image[24, 12, 2]
        assert server.number - number_of(frame.image) < 10
        with open_source(f"zmq://127.0.0.1:{server.port}", swapped=False) as raw:
            frame = fresh(raw)
            assert frame.image.shape == (64, 96, 3)
            assert frame.image[48, 24, 2] > 150 > frame.image[48, 24, 0]


def test_zeromq_messages_that_are_rubbish_are_skipped_and_silence_is_stale():
    with ImageServer() as server, open_source(f"zmq://127.0.0.1:{server.port}", max_age_s=0.3) as source:
        fresh(source)
        good = base64.b64encode(damaged("truncated", jpeg(picture(1, 64, 96)))).decode()
        bad = [b"", b"\xff\xfe", b"[]", b"{}", b'{"images": {}}', b'{"images": {"head": "?"}}',
               b'{"images": {"head": 3}}',
               json.dumps({"images": {"head": good}, "timestamps": {"head": "late"}}).encode()]  # fmt: skip
        for each in bad:
            before = source.broken

            def told(each=each, before=before):  # one may make room for the next message before anybody reads it
                server.instead.append(each)
                return source.next(0.1) and source.broken > before

            until(told)
            server.instead.clear()
        fresh(source)
        server.silent = True
        until(lambda: source.next(0.1)["main"].stale and "stalled" in kinds(source))
        server.silent = False
        fresh(source)
        for jump in (-3600, 7200):  # of the sender's wall clock
            server.offset_s += jump
            for _ in range(10):
                assert abs(fresh(source).captured_s - time.monotonic()) < 60  # however busy the machine is


def test_a_zeromq_camera_that_is_not_there_or_has_no_such_camera(monkeypatch):
    monkeypatch.setattr(live, "CONNECT_S", 0.6)
    with pytest.raises(CameraError, match="gave no picture"):
        open_source("zmq://127.0.0.1:9")
    with ImageServer() as server, pytest.raises(CameraError, match=r"no camera 'hed'.*did you mean head"):
        open_source(f"zmq://127.0.0.1:{server.port}/hed")


# Worlds and datasets ------------------------------------------------------------------------------------


def test_a_world_is_a_record_the_same_each_time():
    def images():
        with open_source("env:desk-drawer/side", image_size=48, seed=3, policy="random") as source:
            assert (source.live, source.fps) == (False, 20.0)
            return [source.next()["main"] for _ in range(6)]

    one, two = images(), images()
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[0].image, one[-1].image)
    assert [frame.captured_s for frame in one] == pytest.approx([i / 20 for i in range(6)])


def test_a_world_s_episode_ends():
    with open_source("env:cartpole", image_size=32) as source:
        count = 0
        with pytest.raises(EOFError):  # noqa: PT012
            while True:
                source.next()
                count += 1
    assert 5 < count <= 501


def test_a_world_goes_on_at_its_own_pace():
    with open_source("env:desk-drawer", live=True, image_size=32) as source:
        fresh(source)
        began, first = time.monotonic(), fresh(source).index
        last = until(lambda: (f := source.next(1.0)["main"]).index >= first + 10 and f)
        assert (last.index - first) / (time.monotonic() - began) < 25
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("camera-")]


def test_a_wrong_world_camera_or_policy_says_what_there_is():
    for spec, settings, text in (
        ("env:desk-drawre", {}, "Did you mean desk-drawer"),
        ("env:desk-drawer/frnt", {}, "no camera 'frnt'"),
        ("env:cartpole", {"policy": "expert"}, "no scripted expert"),
        ("env:cartpole", {"policy": "best"}, "policy must be one of"),
        ("env:cartpole", {"episodes": 0}, "episodes must be at least 1"),
        ("env:desk-drawer/frnt", {"live": True}, "no camera 'frnt'"),
    ):
        with pytest.raises(UserError, match=text):
            open_source(spec, **settings)


def test_a_dataset_s_episode(tmp_path):
    frames = {"front": np.stack([picture(i, 64, 96) for i in range(6)])}
    features = {"action": {"dtype": "float32", "shape": [2], "names": None}}
    root = tmp_path / "data"
    with Writer(root, fps=10, features=features, cameras={"front": (64, 96)}, env={}) as writer:
        for _ in range(2):
            writer.add({"action": np.zeros((6, 2), np.float32)}, frames, instruction="", kind="", steps=(), seed=0)
    with open_source(f"dataset:{root}#1/front") as source:
        assert source.fps == 10
        seen = [source.next()["main"] for _ in range(6)]
        with pytest.raises(EOFError):
            source.next()
    assert [number_of(frame.image) for frame in seen] == list(range(6))
    with open_source(f"dataset:{root}", fps=5) as source:
        assert [number_of(source.next()["main"].image) for _ in range(3)] == [0, 2, 4]
    for place, text in (
        ("#2", "episode must be from 0 to 1"),
        ("#0/back", "no camera 'back'"),
        ("#x", "must be dataset"),
    ):
        with pytest.raises(UserError, match=text):
            open_source(f"dataset:{root}{place}")
