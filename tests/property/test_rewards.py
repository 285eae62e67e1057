"""What holds for every text-goal reward and every frame."""

import pytest
import torch
from torch.testing import assert_close

from rewards.clip_goal import calibrated_scorer, clip_scorer, contrast_scorer, softmax_scorer
from rewards.core import Features
from tests.fakes import FakeEncoder

SCORERS = {
    "plain": lambda e: clip_scorer(encoder=e, goal="up"),
    "wordings": lambda e: clip_scorer(encoder=e, goal=["up", "upright"], baseline="a pole", alpha=0.3),
    "goals": lambda e: clip_scorer(encoder=e, goals={"a": "up", "b": "down"}, baseline="a pole"),
    "contrast": lambda e: contrast_scorer(encoder=e, goal="up", negative="down"),
    "contrast code": lambda e: contrast_scorer(encoder=e, goal="up", negative="down", form="code"),
    "softmax": lambda e: softmax_scorer(encoder=e, goal="up", negatives=["down", "left"], temperature=0.1),
    "threshold": lambda e: softmax_scorer(encoder=e, goal="up", negatives=["down"], temperature=0.1, threshold=0.5),
    "calibrated": lambda e: calibrated_scorer(encoder=e, goal="up", threshold=0.0, firing_rate=0.2),
}
RANGES = {"contrast code": (0, 1), "softmax": (0, 1), "threshold": (0, 1), "calibrated": (0, 1)}


@pytest.fixture(params=SCORERS)
def scorer(request):
    return SCORERS[request.param](FakeEncoder())


def windows(scorer, batch: int, steps: int, seed: int = 0) -> Features:
    rng = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (batch * steps, 8, 8, 3), generator=rng).to(torch.uint8)
    return Features(views={"front": scorer.encode(frames).view(batch, steps, -1)})


def scores(scorer, features: Features) -> torch.Tensor:
    return scorer.combined(scorer.potentials(features), features)


def test_batch_equals_one_by_one(scorer):
    features = windows(scorer, 3, 5)
    together = scores(scorer, features)
    for b in range(3):
        for t in range(5):
            alone = Features(views={"front": features.main[b : b + 1, t : t + 1]})
            assert_close(scores(scorer, alone)[0, 0], together[b, t], atol=1e-5, rtol=0)


def test_the_order_of_the_batch_is_irrelevant(scorer):
    features = windows(scorer, 6, 4)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    shuffled = Features(views={"front": features.main[order]})
    assert_close(scores(scorer, shuffled), scores(scorer, features)[order])


def test_the_past_does_not_matter_and_nothing_is_remembered(scorer):
    features = windows(scorer, 2, 5)
    first = scores(scorer, features)
    scores(scorer, windows(scorer, 2, 7, seed=9))
    assert_close(scores(scorer, features), first, atol=0, rtol=0)
    tail = Features(views={"front": features.main[:, 3:]})
    assert_close(scores(scorer, tail), first[:, 3:], atol=1e-5, rtol=0)


def test_half_precision_features_give_nearly_the_same(scorer):
    features = windows(scorer, 4, 5)
    kept = Features(views={"front": features.main.half().float()})
    difference = (scores(scorer, kept) - scores(scorer, features)).abs()
    assert difference.median() < 2e-3  # thresholds may flip a frame that lies on them


@pytest.mark.parametrize("name", SCORERS)
def test_ranges(name):
    scorer = SCORERS[name](FakeEncoder())
    values = scores(scorer, windows(scorer, 8, 8))
    low, high = RANGES.get(name, (-3, 1 + 1e-6))
    assert values.min() >= low
    assert values.max() <= high
    assert values.std() > 1e-3  # a constant would pass everything above


def test_pointwise_rewards_need_one_row_alone(scorer):
    assert scorer.pointwise
    features = windows(scorer, 1, 4)
    alone = [scores(scorer, Features(views={"front": features.main[:, t : t + 1]})) for t in range(4)]
    assert_close(torch.cat(alone, 1), scores(scorer, features))
