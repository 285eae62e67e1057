"""Labelled episodes whose truth is their feature, and rewards that are functions of it."""

from __future__ import annotations

import numpy as np
import torch

from embodied.judging.figures import Case
from rewards.combine import WeightedSum
from rewards.core import Episode, Features, Scorer
from rewards.shaping import PotentialShaping
from tests.fakes import FakeEncoder

T = 24
ENDS = {"expert": 1.0, "near_miss": 0.7, "random": 0.1}


def case(index: int, kind: str, *, rng: np.random.Generator, labelled: bool = True) -> Case:
    """The truth (progress of the task) is the feature; noise beside it. Experts solve it at row 18 and rest."""
    way = np.clip(np.arange(T) / 18, 0, 1)
    progress = ENDS[kind] * way + (0 if kind == "expert" else 0.02 * rng.normal(size=T))
    view = torch.tensor(np.stack([progress, rng.normal(size=T)], 1), dtype=torch.float32)[None]
    solved = progress >= 1
    return Case(
        episode=Episode(features=Features(views={"main": view}), success=kind == "expert"),
        index=index,
        kind=kind,
        solved=solved if labelled else None,
        env_rewards=progress,
    )


def cases(each: int = 12, **values) -> list[Case]:
    rng = np.random.default_rng(0)
    kinds = [kind for kind in ENDS for _ in range(each)]
    return [case(i, kind, rng=rng, **values) for i, kind in enumerate(kinds)]


class Says:
    """A head that is a function of the truth (T,) and the noise (T,)."""

    name = "says"

    def __init__(self, function) -> None:
        self.function = function

    def score(self, features):
        return self.function(features.main[..., 0], features.main[..., 1])


def scorer(function, **shaping) -> Scorer:
    return Scorer(FakeEncoder(), {"says": Says(function)}, WeightedSum(), PotentialShaping(**shaping))
