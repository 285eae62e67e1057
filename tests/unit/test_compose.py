"""Several scorers as one."""

import pytest
import torch
from torch.testing import assert_close

from rewards.clip_goal import clip_scorer, contrast_scorer
from rewards.combine import Product
from rewards.compose import composed_scorer
from rewards.core import Features
from tests.fakes import FakeEncoder
from tests.probe_rewards import ImageHead


def made(encoder):
    return {
        "clip": clip_scorer(encoder=encoder, goals=["up", "high"], shaping={"scale": 100.0}),
        "contrast": contrast_scorer(encoder=encoder, goal="up", negative="down"),
    }


def test_parts_keep_their_own_combination_and_the_whole_is_shaped_once():
    encoder = FakeEncoder()
    parts = made(encoder)
    features = Features(views={"front": torch.nn.functional.normalize(torch.randn(2, 5, 16), dim=-1)})
    terminated = torch.zeros(2, 4, dtype=torch.bool)
    phi = {name: part.combined(part.potentials(features), features) for name, part in parts.items()}
    mean = composed_scorer(encoder=encoder, parts=parts, shaping={"kind": "difference", "discount": 0.5})
    assert list(mean.potentials(features)) == ["clip", "contrast"]
    both = (phi["clip"] + phi["contrast"]) / 2
    assert_close(mean.rewards(features, terminated), 0.5 * both[:, 1:] - both[:, :-1])
    product = composed_scorer(encoder=encoder, parts=parts, combine=Product())
    assert_close(product.rewards(features, terminated), (phi["clip"] * phi["contrast"])[:, 1:])


def test_images_are_read_if_any_part_reads_them():
    encoder = FakeEncoder()
    parts = made(encoder)
    assert composed_scorer(encoder=encoder, parts=parts).frames_read == "none"
    parts["clip"].heads["image"] = ImageHead("first")
    assert composed_scorer(encoder=encoder, parts=parts).frames_read == "first"


def test_no_parts_or_another_encoder_are_refused():
    with pytest.raises(ValueError, match="parts must hold at least one scorer"):
        composed_scorer(encoder=FakeEncoder(), parts={})
    with pytest.raises(ValueError, match="clip was made with fake"):
        composed_scorer(encoder=FakeEncoder(), parts=made(FakeEncoder()))
