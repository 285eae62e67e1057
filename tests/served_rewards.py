"""Rewards as a server of a test has them, and what is asked of them."""

from __future__ import annotations

import numpy as np
import torch

from rewards.clip_goal import clip_scorer
from rewards.core import Scorer
from tests.fakes import FakeEncoder

SHAPING = {"kind": "difference", "discount": 0.9, "scale": 2.0, "clip": [0.1, 1.9]}
QUICK = {"timeout_s": 5.0, "patience_s": 20.0}
ENCODER = FakeEncoder()


def to_goal(text: str) -> Scorer:
    return clip_scorer(encoder=ENCODER, goal=text)


def clip(**options) -> Scorer:
    return clip_scorer(encoder=ENCODER, goal="open", **({"shaping": SHAPING} | options))


def frames(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 8, 8, 3) uint8 of noise."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8))
