"""A reward factory that takes everything the upper floor fills in, and shows it."""

from collections.abc import Sequence

import torch

from rewards.combine import WeightedSum
from rewards.core import Episode, Scorer
from rewards.shaping import PotentialShaping


class Given:
    """Scores 0 and remembers what its factory was given."""

    name = "given"

    def __init__(self, **given):
        self.given = given

    def score(self, features):
        return torch.zeros(features.main.shape[:2])


def given_scorer(
    *, encoder, goal=None, model=None, demos: Sequence[Episode] = (), calibration=None, shaping=None
) -> Scorer:
    head = Given(goal=goal, model=model, demos=demos, calibration=calibration)
    return Scorer(encoder, {"given": head}, WeightedSum(), PotentialShaping(**(shaping or {})))
