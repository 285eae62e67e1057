"""What a scorer is, for whoever keeps its numbers."""

import numpy as np
import pytest
import torch

from embodied.scoring.identity import scorer_identity
from rewards.clip_goal import ClipGoal
from rewards.combine import WeightedSum
from rewards.core import Scorer
from rewards.shaping import PotentialShaping
from rewards.vpl import LatentUser
from tests.fakes import FakeEncoder


def identity(setting):
    """Of a scorer, one of whose heads holds this."""
    head = ClipGoal("the cup is upright", encoder=FakeEncoder())
    vars(head)["setting"] = setting
    return scorer_identity(Scorer(FakeEncoder(), {"clip": head}, WeightedSum(), PotentialShaping()))


def user(*cameras):
    """The same weights, whatever the cameras are called and in which order they are read."""
    return LatentUser({name: torch.ones(4, 2) for name in cameras}, latent=2, hidden=3, seed=0)


@pytest.mark.parametrize(("one", "other"), [
    (user("front", "side"), user("side", "front")),
    (torch.nn.Sequential(user("front", "side")), torch.nn.Sequential(user("side", "front"))),
    (np.float32(0.5), np.float32(0.7)),
    ({"front"}, {"side"}),
    (0.5, 0.7),
])  # fmt: skip
def test_what_is_no_weight_counts_too(one, other):
    """Labels that were kept were taken for those of another setting of the same weights."""
    assert identity(one) == identity(one)
    assert identity(one) != identity(other)
