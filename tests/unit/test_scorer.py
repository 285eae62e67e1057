from pathlib import Path

import pytest
import torch
import yaml
from torch.testing import assert_close

from rewards import clip_goal
from rewards.clip_goal import ClipGoal, clip_scorer, softmax_scorer
from rewards.combine import WeightedSum
from rewards.core import Features, Scorer
from rewards.shaping import PotentialShaping
from tests.fakes import FakeEncoder

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def some_frames(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 8, 8, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


class Broken:
    """A head that gives NaN at one step."""

    name = "broken"

    def score(self, features: Features) -> torch.Tensor:
        scores = features.main.sum(-1)
        scores[0, 1] = torch.nan
        return scores


def test_ten_goals_cost_one_encoding():
    encoder = FakeEncoder()
    scorer = clip_scorer(encoder=encoder, goals=[f"goal {i}" for i in range(10)])
    features = Features(views={"front": scorer.encode(some_frames(6))[None]})
    potentials = scorer.potentials(features)
    assert encoder.encoded == 6
    assert list(potentials) == [f"goal {i}" for i in range(10)]
    for text, score in potentials.items():
        assert_close(score, ClipGoal(text, encoder=encoder).score(features))
    assert_close(scorer.combined(potentials, features), torch.stack(list(potentials.values())).mean(0))


def test_rewards_are_the_shaped_potentials_of_consecutive_frames():
    scorer = clip_scorer(encoder=FakeEncoder(), goal="up", shaping={"kind": "difference", "discount": 0.9})
    features = Features(views={"front": scorer.encode(some_frames(8)).view(2, 4, 16)})
    terminated = torch.tensor([[False, False, True], [False, False, False]])
    phi = scorer.potentials(features)["clip"]
    expected = 0.9 * phi[:, 1:] * ~terminated - phi[:, :-1]
    assert_close(scorer.rewards(features, terminated), expected)


def test_score_reads_one_episode():
    scorer = clip_scorer(encoder=FakeEncoder(), goal="up", baseline="down")
    frames = some_frames(5)
    features = Features(views={"any": scorer.encode(frames)[None]})
    assert_close(scorer.score(frames), scorer.potentials(features)["clip"][0])


def test_nan_names_the_head():
    encoder = FakeEncoder()
    heads = {"fine": ClipGoal("up", encoder=encoder), "tipped over": Broken()}
    scorer = Scorer(encoder, heads, WeightedSum(), PotentialShaping())
    with pytest.raises(FloatingPointError, match=r"head 'tipped over' .* got nan at .* \(0, 1\), 1 of 4"):
        scorer.score(some_frames(4))


def test_infinity_in_the_combination_names_it():
    scorer = clip_scorer(encoder=FakeEncoder(), goal="up")
    broken = Scorer(scorer.encoder, scorer.heads, WeightedSum({"clip": float("inf")}), scorer.shaping)
    with pytest.raises(FloatingPointError, match="combination WeightedSum"):
        broken.score(some_frames(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of goal and goals must be given; got neither"),
        ({"goal": "a", "goals": ["b"]}, "one of goal and goals must be given; got both"),
        ({"goals": []}, "goals must hold at least one text"),
        ({"goal": " "}, "ClipGoal: goal must be a text, or several; got ' '"),
        ({"goal": []}, "ClipGoal: goal must be a text"),
        ({"goal": "a", "alpha": 0.5}, "alpha must be 0 without a baseline; got 0.5"),
        ({"goal": "a", "baseline": "b", "alpha": 1.2}, r"alpha must be in \[0, 1\]; got 1.2"),
        ({"goal": "a", "baseline": "a"}, "baseline must differ from the goal; got 'a' and 'a', which embed alike"),
        ({"goal": "a", "shaping": {"kind": "none"}}, "PotentialShaping: kind must be one of"),
    ],
)
def test_bad_goals(arguments, message):
    with pytest.raises(ValueError, match=message):
        clip_scorer(encoder=FakeEncoder(), **arguments)


@pytest.mark.parametrize(
    ("head", "arguments", "message"),
    [
        ("ContrastingGoals", {"negative": "b", "form": "book"}, "form must be 'paper' or 'code'; got 'book'"),
        ("ContrastingGoals", {"negative": ""}, "ContrastingGoals: negative must be a text"),
        ("ContrastingGoals", {"negative": "b", "beta": -1.0}, "alpha and beta must be ≥ 0"),
        ("ContrastingGoals", {"negative": "b", "margin": 0.0}, "margin must be > 0; got 0.0"),
        ("SoftmaxGoal", {"negatives": []}, r"SoftmaxGoal: negatives must be a text, or several; got \[\]"),
        ("SoftmaxGoal", {"negatives": "b", "temperature": 0.0}, "temperature must be > 0"),
        ("SoftmaxGoal", {"negatives": "b", "threshold": 1.0}, r"threshold must be in \(0, 1\), or null; got 1.0"),
        ("CalibratedThreshold", {}, "threshold must be in .*conformal_threshold"),
        ("CalibratedThreshold", {"threshold": 0.2, "penalty": -1.0}, "penalty must be ≥ 0"),
        ("CalibratedThreshold", {"threshold": 0.2, "firing_rate": 2.0}, "firing_rate must be in"),
    ],
)
def test_bad_values_of_other_heads(head, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(clip_goal, head)("a", encoder=FakeEncoder(), **arguments)


def test_several_negatives_may_be_one_text():
    one, listed = (softmax_scorer(encoder=FakeEncoder(), goal="a", negatives=texts) for texts in ("b", ["b"]))
    assert_close(one.score(some_frames(3)), listed.score(some_frames(3)))


MANDATORY = {"goal": "up", "negative": "down", "negatives": ["down"], "threshold": 0.2}


TEXT_GOALS = [path for path in sorted((CONFIGS / "reward").glob("*.yaml")) if "rewards.clip_goal." in path.read_text()]


@pytest.mark.parametrize("path", TEXT_GOALS, ids=lambda path: path.stem)
def test_every_text_goals_config_makes_a_scorer(path):
    config = yaml.safe_load(path.read_text())
    target = config.pop("_target_")
    config |= {key: MANDATORY[key] for key, value in config.items() if value == "???"}
    config["goal"] = "up"  # which verbs fill in
    module, _, name = target.rpartition(".")
    assert module == "rewards.clip_goal"
    scorer = getattr(clip_goal, name)(encoder=FakeEncoder(), **config)
    assert scorer.score(some_frames(3)).shape == (3,)
