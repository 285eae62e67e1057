"""Frames that look unlike what an encoder was taught: told by the verbs in one line, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from embodied import cli
from embodied.building import far_worlds
from embodied.building.far_texts import TAUGHT
from embodied.config import compose
from embodied.pretraining import knowing
from rewards.encoders import OpenCLIPEncoder, embedded_encoder
from rewards.known import BLOCK, DIRECTIONS, FILE, LEAST, Known, strangeness
from tests.conftest import save_open_clip
from tests.fakes import FakeEncoder
from tests.unit.test_grounding import TINY_RESNET

UNLIKE = "look unlike all that"
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def embedded():
    return embedded_encoder(precision="fp32", device="cpu")


@pytest.fixture
def tiny(tmp_path):
    return OpenCLIPEncoder(save_open_clip(tmp_path / "resnet", TINY_RESNET), precision="fp32", device="cpu")


def folder(encoder):
    return Path(encoder.name.partition(":")[2])


def patches(count, high, seed=0):
    """(count, 32, 32, 3) uint8: soft noise up to a brightness."""
    low = np.random.default_rng(seed).integers(0, high, (count, 4, 4, 3), np.uint8)
    return low.repeat(8, 1).repeat(8, 2)


def test_the_distance_is_that_of_probabilistic_pca():
    """Derived again in float64 NumPy, on looks of two scenes."""
    rng = np.random.default_rng(3)
    scenes = [torch.from_numpy(rng.normal(k, np.linspace(0.5, 3, 80), (400, 80)).astype(np.float32)) for k in range(2)]
    made, asked, expected = Known.fit(scenes), rng.normal(0, 2, (5, 80)), []
    for looks in scenes:
        turn = np.arange(400) // BLOCK % 2 == 0
        one, two = looks.numpy()[turn].astype(np.float64), looks.numpy()[~turn].astype(np.float64)
        mean = one.mean(0)
        axes = np.linalg.eigh((one - mean).T @ (one - mean))[1][:, -DIRECTIONS:]
        gaps = [part - mean for part in (one, two, asked)]
        along = [gap @ axes for gap in gaps]
        rest = [(gap**2).sum(1) - (part**2).sum(1) for gap, part in zip(gaps, along, strict=True)]
        variance = np.maximum((along[0] ** 2).mean(0), (along[1] ** 2).mean(0))
        far = [
            np.sqrt((part**2 / variance).mean(1) + left / np.median(rest[1]))
            for part, left in zip(along, rest, strict=True)
        ]
        expected.append(far[2] / np.quantile(far[1], 0.99))
    got = made(torch.from_numpy(asked.astype(np.float32))).numpy()
    np.testing.assert_allclose(got, np.min(expected, 0), rtol=2e-2)  # kept in half precision; the median is torch's


def test_scenes_may_have_several_numbers_of_frames():
    for _ in range(8):  # the runtime check of hints looks at one of a list, drawn by chance
        made = Known.fit([torch.rand(LEAST, 4), torch.rand(LEAST + 50, 4)])
    assert len(made.limit) == 2


def test_too_few_frames_say_nothing(tiny):
    with pytest.raises(ValueError, match=f"at least {LEAST} frames; got 3"):
        Known.fit([torch.zeros(3, 4)])
    (folder(tiny) / FILE).write_bytes(b"of weights before these")
    assert not knowing.keep(tiny, folder(tiny), {"mine": patches(LEAST - 1, 255)})
    assert not (folder(tiny) / FILE).exists()
    assert strangeness(tiny, [torch.zeros(32, 32, 3, dtype=torch.uint8)]) is None
    assert strangeness(FakeEncoder(), [torch.zeros(8, 8, 3, dtype=torch.uint8)]) is None


def test_what_an_encoder_knows_lies_beside_its_weights(tiny, capsys):
    assert knowing.keep(tiny, folder(tiny), {"dark": patches(LEAST, 60)})
    own, other = patches(8, 60, seed=1), patches(8, 255, seed=1)
    assert far_worlds.unlike(tiny, list(own)) <= 0.25
    assert far_worlds.unlike(tiny, list(other)) == 1
    for _ in range(8):  # of several sizes: the runtime check of hints looks at one of a list, drawn by chance
        assert far_worlds.unlike(tiny, [other[0], other[1][:20]]) == 1
    tensors = (folder(tiny) / FILE).read_bytes()
    torch.manual_seed(5)
    again = OpenCLIPEncoder(save_open_clip(folder(tiny), TINY_RESNET), precision="fp32", device="cpu")
    (folder(again) / FILE).write_bytes(tensors)
    if strangeness(again, [torch.from_numpy(own[0])]) is None:  # other weights
        assert "trained for other weights" in capsys.readouterr().err
    (folder(again) / FILE).write_bytes(tensors[:-40])
    assert strangeness(again, [torch.from_numpy(own[0])]) is None
    assert "python -m embodied.pretraining.knowing encoder=" in capsys.readouterr().err


def test_the_shipped_encoder_tells_its_own_worlds_from_others(embedded):
    assert len(Known.load(Path("sim_assets/encoder"), embedded).limit) == len(TAUGHT["desk"])
    seen = [knowing.shown([world], 8, seed=(99, 1), image_size=96) for world in ("desk-drawer", "cartpole")]
    for frames in seen:
        assert far_worlds.unlike(embedded, list(frames)) <= 0.25
    noise = RNG.integers(0, 256, (4, 96, 96, 3), np.uint8)
    assert far_worlds.unlike(embedded, list(noise)) == 1


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        (["reward=clip", "goal=the drawer is open"], True),
        (["reward=true"], False),
        (["reward=xirl"], False),
        (["reward=gvl_chat", "goal=a cat", "reward.vlm={url: http://x, model: m}"], False),
    ],
)
def test_only_rewards_that_follow_a_text_are_warned_of(embedded, reward, told):
    lines = []
    noise = list(RNG.integers(0, 256, (4, 64, 64, 3), np.uint8))
    config = compose("preview", ["env=desk-drawer", *reward])
    far_worlds.warn(config, embedded, {"front": noise, "side": []}, "my world", lines.append)
    assert [UNLIKE in line and "of my world by front look" in line for line in lines] == [True] * told


PREVIEW = ["reward=clip", "goal=the pole is upright", "columns=2", "max_steps=3"]


@pytest.mark.parametrize(
    ("env", "told"), [(["env=cartpole"], False), (["env=gym", "env.id=InvertedPendulum-v5"], True)]
)
def test_preview_tells_of_a_world_unlike_all(tmp_path, monkeypatch, capsys, env, told):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["preview", *env, *PREVIEW]) == 0
    assert (UNLIKE in capsys.readouterr().err) == told


def test_train_tells_of_a_world_unlike_all(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["env=gym", "env.id=InvertedPendulum-v5", "env.max_episode_steps=10", "steps=16", "num_worlds=1"]
    words += ["workers=0", "final_episodes=1", "videos=0", "eval_every=0", "policy.learning_starts=8", "run=out"]
    assert cli.main(["train", *words, "reward=clip", "goal=the pole is upright"]) == 0
    assert capsys.readouterr().err.count(UNLIKE) == 1
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("count", [2, 7])
def test_watch_tells_of_pictures_unlike_all(tmp_path, capsys, count):
    for k, frame in enumerate(RNG.integers(0, 256, (count, 64, 64, 3), np.uint8)):
        Image.fromarray(frame).save(tmp_path / f"{k}.png")
    words = [f"source={tmp_path}", "view=none", "json=false", "reward=clip", "goal=the drawer is open"]
    assert cli.main(["watch", *words]) == 0
    told = capsys.readouterr().err
    assert told.count(UNLIKE) == 1
    assert "frames of the source look unlike all that embedded was taught" in told
