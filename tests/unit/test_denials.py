"""Sentences that may deny something are read by a text tower of their own, all others as ever."""

import mujoco
import numpy as np
import pytest
import torch

from embodied.envs.bridge import make
from embodied.paths import asset
from rewards.encoders import OpenCLIPEncoder, embedded_encoder
from rewards.phrases import denies

SENTENCES = ("the drawer is open", "the button is pressed", "the red cube is in the tray")
DENIALS = ("the drawer hasn't been opened", "nobody is pressing the button", "there is no red cube in the tray")


@pytest.fixture(scope="module")
def encoder():
    return embedded_encoder(device="cpu")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("the drawer is not open", True),
        ("the drawer isn\N{RIGHT SINGLE QUOTATION MARK}t open", True),
        ("Nobody has opened the drawer", True),
        ("open it without touching the handle", True),
        ("the knot is tied", False),
        ("another cube is on the mark", False),
        ("the drawer is open", False),
    ],
)
def test_words_tell_what_may_deny(text, told):
    assert denies(text) is told


def test_what_denies_nothing_is_read_as_ever(encoder):
    plain = OpenCLIPEncoder(f"local-dir:{asset('encoder')}", device="cpu")
    assert torch.equal(encoder.encode_texts(SENTENCES), plain.encode_texts(SENTENCES))
    mixed = encoder.encode_texts([SENTENCES[0], DENIALS[0], SENTENCES[1]])
    torch.testing.assert_close(mixed[[0, 2]], plain.encode_texts(SENTENCES[:2]), rtol=0, atol=1e-6)
    assert float(mixed[1] @ plain.encode_texts([DENIALS[0]])[0]) < 0.5
    assert encoder.reads_denials
    assert not plain.reads_denials


def test_a_denial_falls_where_what_it_denies_rises(encoder):
    env = make("desk-drawer")
    frames = []
    for pulled in (0.0, 0.5, 1.0):
        env.reset(seed=0)
        world = env.unwrapped
        joint = world.model.joint("drawer")
        world.data.qpos[joint.qposadr[0]] = joint.range[0] + pulled * (joint.range[1] - joint.range[0])
        mujoco.mj_forward(world.model, world.data)
        frames.append(world.frame(image_size=96))
    env.close()
    texts = ["the drawer is open", DENIALS[0], "nobody has pulled the drawer open yet"]
    scores = (encoder.encode_images(torch.from_numpy(np.stack(frames))) @ encoder.encode_texts(texts).T).numpy()
    rises = np.diff(scores, axis=0)
    assert (rises[:, 0] * rises[:, 1] < 0).all(), scores
    assert (rises[:, 0] * rises[:, 2] < 0).all(), scores
