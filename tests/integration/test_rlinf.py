"""RLinf's form of a reward model over our server: a batch of images in, a reward each out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from embodied.errors import UserError
from embodied.serving.rlinf import RemoteReward
from rewards.clip_goal import ClipGoal
from rewards.combine import WeightedSum
from rewards.core import Scorer
from rewards.demonstration import Demonstration
from rewards.shaping import PotentialShaping
from tests.fakes import FakeEncoder
from tests.reward_server import serving
from tests.unit.test_vector_rewards import episodes, film


@pytest.fixture(scope="module")
def served():
    encoder = FakeEncoder()
    scorer = Scorer(encoder, {"clip": ClipGoal("a", encoder=encoder)}, WeightedSum(), PotentialShaping())
    with serving(scorer) as running:
        yield scorer, running.url


def test_a_batch_of_images_is_rewarded_as_here(served):
    scorer, url = served
    model = RemoteReward({"url": url})
    frames = film(6, 0)
    expected = scorer.score(frames)
    assert_close(model.compute_reward({"main_images": frames, "states": torch.zeros(6, 2)}), expected)
    assert_close(model.compute_reward({"main_images": frames.numpy()}), expected)
    assert_close(model.compute_reward({"main_images": frames.permute(0, 3, 1, 2)}), expected)
    assert_close(model.compute_reward({"main_images": frames.float() / 255}), expected)
    level = float(expected.median())
    kept = RemoteReward({"url": url, "reward_threshold": level}).compute_reward({"main_images": frames})
    assert_close(kept, torch.where(expected > level, expected, torch.zeros(())))
    assert list(model.parameters()) == []


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (None, "must hold main_images; got states"),
        (torch.zeros(2, 3, 4), "must be (B, H, W, 3) or (B, 3, H, W); got (2, 3, 4)"),
        (torch.full((2, 8, 8, 3), 200.0), "must be in [0, 1]"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.int64), "must be uint8 or floating point"),
    ],
)
def test_other_observations_are_named(served, images, text):
    model = RemoteReward({"url": served[1]})
    given = {"states": np.zeros(2)} if images is None else {"main_images": images}
    with pytest.raises(UserError) as caught:
        model.compute_reward(given)
    assert text in str(caught.value)


def test_what_cannot_be_asked_so_is_refused(served):
    with pytest.raises(UserError, match="url must be the address"):
        RemoteReward({})
    with pytest.raises(UserError, match="asked, not trained"):
        RemoteReward({"url": served[1]})(torch.zeros(1))
    encoder = FakeEncoder()
    good = [episode for episode in episodes(encoder) if episode.success]
    head = Demonstration.fit(good, sequenced=True)
    past = Scorer(encoder, {"demonstration": head}, WeightedSum(), PotentialShaping())
    with serving(past) as running, pytest.raises(UserError, match="must serve a reward of single frames"):
        RemoteReward({"url": running.url})
