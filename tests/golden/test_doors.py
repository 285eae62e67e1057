"""The doors that take recorded frames agree with the rewards the worlds' doors give: label, a stream, watch, serve.

`test_labelling` holds the wrapper and the labeller to `Scorer.rewards` on the frames a world rendered; here the same
kind of episode comes back from a file without loss, and through a server.
"""

import socket
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from embodied.cameras import open_source
from embodied.scoring import labelling
from embodied.scoring.streaming import EpisodeStream
from embodied.serving import protocol
from embodied.serving.app import make_app
from embodied.serving.client import RemoteStream
from embodied.serving.connections import Server
from embodied.serving.http_client import Client
from embodied.serving.remote import remote_scorer
from embodied.watching.live_scoring import LocalScoring, RemoteScoring
from embodied.watching.pipeline import Pipeline
from rewards.core import Episode, Features
from tests.conftest import TINY_CLIP, save_open_clip
from tests.golden.test_labelling import SIZE, STEPS, scorers

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}  # where batches of another size may round another way


class Kept:
    """A sink that keeps the readings."""

    name = "kept"

    def __init__(self):
        self.readings = []

    def write(self, watched):
        self.readings.append(watched.reading)

    def close(self):
        pass


@contextmanager
def serving(scorer):
    """A server of the scorer on a free port; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(make_app(scorer, model_id="test"), host="127.0.0.1", port=listener.getsockname()[1])
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture
def frames():
    """(T, H, W, 3) of the encoders' size: worlds render at it."""
    return np.random.default_rng(5).integers(0, 256, (STEPS, SIZE, SIZE, 3), dtype=np.uint8)


def watched(folder, scoring_of):
    kept = Kept()
    source = open_source(str(folder))
    Pipeline(source, scoring_of(source.names), [kept]).run()
    return kept.readings


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("remembering", "fp32"), ("difference", "fp32"), ("clip", "fp32"), ("clip difference", "fp32"),
        ("clip", "bf16"), ("clip difference", "bf16"),
    ],
)  # fmt: skip
def test_recorded_frames_get_one_number_at_every_door(tiny_clip, name, precision, frames, tmp_path):
    scorer = scorers(tiny_clip, precision)[name]
    tolerance = {"rtol": 0, "atol": TOLERANCE[precision]}
    with torch.inference_mode():
        features = Features(views={"main": scorer.encode(torch.from_numpy(frames))[None]})
        potential = scorer.combined(scorer.potentials(features), features)[0].numpy()
        rewards = scorer.rewards(features, torch.zeros(1, STEPS - 1, dtype=torch.bool))[0].numpy()

    (labels,) = labelling.score(scorer, [Episode(features=features)], [np.zeros(STEPS, bool)])
    np.testing.assert_allclose(labels["potential"], potential, **tolerance)
    np.testing.assert_allclose(labels["reward"][:-1], rewards, **tolerance)

    stream = EpisodeStream(scorer)
    readings = {"stream": [stream.push(stream.encode(frame[None])) for frame in frames]}
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{t}.png")
    readings["watch"] = watched(tmp_path, lambda names: LocalScoring(scorer, names))
    with serving(scorer) as url:
        remote = RemoteStream(url, token_env=None)
        readings["serve"] = [remote.push({"main": frame}) for frame in frames]
        remote.close()
        readings["watch through serve"] = watched(
            tmp_path, lambda names: RemoteScoring(RemoteStream(url, views=names, token_env=None))
        )
    for door, each in readings.items():
        np.testing.assert_allclose([r.combined for r in each], potential, **tolerance, err_msg=door)
        np.testing.assert_allclose([r.reward for r in each[1:]], rewards, **tolerance, err_msg=door)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(48, 80), (80, 48), (20, 400)], ids=str)
def test_frames_that_are_not_square_get_one_number_at_every_door(tmp_path, mode, size):
    """What the encoder makes of them is its own affair, and the same wherever they come in."""
    config = TINY_CLIP | {"preprocess_cfg": TINY_CLIP["preprocess_cfg"] | {"resize_mode": mode}}
    scorer = scorers(save_open_clip(tmp_path / "clip", config), "fp32")["clip"]
    frames = np.random.default_rng(6).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    potential = scorer.score(torch.from_numpy(frames)).numpy()
    stream, told = EpisodeStream(scorer), {}
    told["stream"] = [stream.push(stream.encode(frame[None])).combined for frame in frames]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(pictures / f"{t}.png")
    told["watch"] = [each.combined for each in watched(pictures, lambda names: LocalScoring(scorer, names))]
    with serving(scorer) as url:
        for form in ("raw", "png"):
            remote = RemoteStream(url, token_env=None, form=form)
            told[f"session, {form}"] = [remote.push({"main": frame}).combined for frame in frames]
            remote.close()
            client, message = Client(url, token_env=None), {"images": {"main": protocol.encode_images(frames, form)}}
            told[f"score, {form}"] = client.ask("POST", protocol.SCORE, message)["combined"]
            client.close()
        away = remote_scorer(url=url, token_env=None)
        told["remote"] = away.score(torch.from_numpy(frames)).numpy()
        away.encoder.client.close()
    for door, each in told.items():
        np.testing.assert_allclose(each, potential, rtol=0, atol=1e-5, err_msg=door)


def test_another_way_to_make_a_frame_square_would_be_noticed(tmp_path):
    """Negative control of the test above."""
    frames = torch.from_numpy(np.random.default_rng(6).integers(0, 256, (3, 48, 80, 3), dtype=np.uint8))
    made = []
    for mode in ("shortest", "squash"):
        config = TINY_CLIP | {"preprocess_cfg": TINY_CLIP["preprocess_cfg"] | {"resize_mode": mode}}
        made.append(scorers(save_open_clip(tmp_path / mode, config), "fp32")["clip"].score(frames))
    assert (made[0] - made[1]).abs().max() > 1e-3


def test_a_frame_that_is_left_out_would_be_noticed(tiny_clip, frames):
    """Negative control: heads that remember, and differences, tell a stream with a gap from one without."""
    scorer = scorers(tiny_clip)["difference"]
    whole, gap = EpisodeStream(scorer), EpisodeStream(scorer)
    rows = [whole.encode(frame[None]) for frame in frames]
    assert abs([whole.push(row) for row in rows][-1].combined - [gap.push(row) for row in rows[1:]][-1].combined) > 1e-3
