"""Combinations against their papers, in float64 NumPy."""

import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from rewards.combine import (
    LagrangianConstraints,
    LogSigmoidConjunction,
    PreferenceAsReward,
    Product,
    WeightedSum,
    quantiles,
)
from rewards.core import Features

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 5)), RNG.normal(size=(2, 5))
HEADS = {"a": torch.from_numpy(A), "b": torch.from_numpy(B)}
NONE = Features(views={"front": torch.zeros(2, 5, 4)})


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_conjunction_is_the_log_probability_of_all():
    combine = LogSigmoidConjunction(references={"a": 0.3, "b": -1.0})
    assert_allclose(combine(HEADS, NONE), np.log(sigmoid(A - 0.3) * sigmoid(B + 1)), atol=1e-12)
    assert_allclose(LogSigmoidConjunction()(HEADS, NONE), np.log(sigmoid(A) * sigmoid(B)), atol=1e-12)


def test_conjunction_rewards_the_laggard():
    """One head far above its reference adds next to nothing more; a mean would be farmed by it."""
    heads = {"a": torch.tensor([[4.0, 8.0, 4.0]]), "b": torch.tensor([[-1.0, -1.0, 0.0]])}
    here = Features(views={"front": torch.zeros(1, 3, 4)})
    base, farmed, helped = LogSigmoidConjunction()(heads, here)[0].tolist()
    assert 0 < farmed - base < 0.02
    assert helped - base > 0.5
    base, farmed, helped = WeightedSum()(heads, here)[0].tolist()
    assert farmed > helped  # the control
    extreme = {"a": torch.tensor([[-500.0, 500.0, 0.0]])}
    assert torch.isfinite(LogSigmoidConjunction()(extreme, here)).all()


def test_progress_goes_through_the_logit():
    p = np.array([[0.0, 0.2, 0.9, 1.0]])
    heads = {"p": torch.from_numpy(p)}
    here = Features(views={"front": torch.zeros(1, 4, 4)})
    clipped = p.clip(1e-3, 1 - 1e-3)
    assert_allclose(LogSigmoidConjunction(logit=True)(heads, here), np.log(clipped), atol=1e-12)  # log σ(logit p)
    half = PreferenceAsReward(references={"p": 0.0}, logit=True)(heads, here)
    assert_allclose(half, clipped, atol=1e-12)


def test_preference_is_the_mean_chance_against_the_reference():
    combine = PreferenceAsReward(references={"a": 0.3, "b": -1.0})
    assert_allclose(combine(HEADS, NONE), (sigmoid(A - 0.3) + sigmoid(B + 1)) / 2, atol=1e-12)


@pytest.mark.parametrize("kind", [LogSigmoidConjunction, PreferenceAsReward])
def test_references_are_quantiles_of_a_base_policy(kind):
    scores = {"a": RNG.random(200), "b": RNG.random(50)}
    fitted = kind.fit({name: values.tolist() for name, values in scores.items()}, quantile=0.9)
    assert fitted.references == pytest.approx({name: np.quantile(each, 0.9) for name, each in scores.items()})
    fitted = kind.fit({"a": scores["a"].tolist()}, quantile=0.5, logit=True)
    clipped = scores["a"].clip(1e-3, 1 - 1e-3)
    assert fitted.references == pytest.approx({"a": np.quantile(np.log(clipped / (1 - clipped)), 0.5)})
    with pytest.raises(ValueError, match="references must name exactly the heads a, b; got a"):
        fitted(HEADS, NONE)


def test_product_of_any():
    assert_allclose(Product(names=["b"])(HEADS, NONE), B)
    assert_allclose(Product()(HEADS, NONE), A * B)
    with pytest.raises(ValueError, match="names must be among the heads a, b; got c"):
        Product(names=["c"])(HEADS, NONE)


# Constraints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sense", "low", "high"), [("reach", -2, 2), ("at_least", 0, 2), ("at_most", -2, 0)])
def test_multipliers_follow_the_constraint(sense, low, high):
    combine = LagrangianConstraints({"a": 3.0}, sense=sense, rate=0.3, bound=2.0)
    mu = 0.0
    for value in [1.0, 1.0, -4.0, 9.0, 3.0, 5.0, 20.0, 3.5]:
        mu = np.clip(mu - 0.3 * (value - 3.0), low, high)
        assert combine.update({"a": value, "b": 99.0}) == pytest.approx({"a": mu})
        assert_allclose(combine(HEADS, NONE), mu * A + B, atol=1e-12)  # b is free


def test_a_constrained_learner_stops_where_the_reward_still_means_something():
    """A learner x with J = x: at full weight it runs far past θ, under the constraint it settles there."""
    x, combine = 0.0, LagrangianConstraints({"proxy": 2.0}, rate=0.05, bound=1.0)
    for _ in range(4000):
        mu = combine.update({"proxy": x})["proxy"]
        x += 0.1 * (mu - 0.3 * (x - 1.0))  # pulled back to where it began, as a KL term would
    assert x == pytest.approx(2.0, abs=1e-3)
    assert combine.multipliers["proxy"] == pytest.approx(0.3, abs=1e-3)  # the price of the constraint
    free = 0.0
    for _ in range(4000):
        free += 0.1 * (1.0 - 0.3 * (free - 1.0))
    assert free > 4  # over-optimised


def test_multipliers_are_saved_and_restored():
    first = LagrangianConstraints({"a": 1.0, "b": 0.0}, rate=0.1)
    first.update({"a": 0.2, "b": 3.0})
    second = LagrangianConstraints({"a": 1.0, "b": 0.0}, rate=0.1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.update({"a": 0.0, "b": 1.0}) == first.update({"a": 0.0, "b": 1.0})
    for state in ({"a": 0.0}, {"a": 0.0, "b": 5.0}, {"a": float("nan"), "b": 0.0}):
        with pytest.raises(ValueError, match="state must hold multipliers of a, b in"):
            second.load_state_dict(state)


@pytest.mark.parametrize("returns", [{"a": 1.0}, {"a": 1.0, "b": float("nan")}])
def test_a_bad_return_moves_nothing(returns):
    combine = LagrangianConstraints({"a": 3.0, "b": 0.0})
    with pytest.raises(ValueError, match="returns must hold a finite one of b"):
        combine.update(returns)
    assert combine.multipliers == {"a": 0.0, "b": 0.0}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LagrangianConstraints({}), "thresholds must name at least one head"),
        (lambda: LagrangianConstraints({"a": 1.0}, sense="equal"), "sense must be one of reach, at_least, at_most"),
        (lambda: LagrangianConstraints({"a": 1.0}, rate=0.0), "rate and bound must be > 0"),
        (lambda: LagrangianConstraints({"c": 1.0})(HEADS, NONE), "thresholds must be among the heads a, b; got c"),
        (lambda: quantiles({"a": []}, 0.5), "got none of a"),
        (lambda: quantiles({"a": [1.0]}, 1.5), r"quantile must be in \[0, 1\]; got 1.5"),
    ],
)
def test_bad_values(make, match):
    with pytest.raises(ValueError, match=match):
        make()
