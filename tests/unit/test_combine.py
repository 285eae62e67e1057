import pytest
import torch
from torch.testing import assert_close

from rewards.combine import Product, Synthesis, WeightedSum
from rewards.core import Features

A, B = torch.tensor([[0.5, 0.2]]), torch.tensor([[1.0, -1.0]])


def features(**signals: list[float]) -> Features:
    return Features(
        views={"front": torch.zeros(1, 2, 4)}, signals={name: torch.tensor([v]) for name, v in signals.items()}
    )


def test_weighted_sum():
    assert_close(WeightedSum({"a": 2.0, "b": 0.5})({"a": A, "b": B}, features()), 2 * A + 0.5 * B)
    assert_close(WeightedSum()({"a": A, "b": B}, features()), (A + B) / 2)
    with pytest.raises(ValueError, match="weights must name exactly the heads a, b; got a, c"):
        WeightedSum({"a": 1.0, "c": 1.0})({"a": A, "b": B}, features())


def test_product():
    assert_close(Product()({"a": A, "b": B}, features()), A * B)


def test_synthesis_is_vlm_rl_s():
    """By hand, from carla_env/rewards.py: v_max 25 km/h, 3 m, 90°, 0.4 m."""
    vlm_rl = Synthesis(speed="speed", speed_max=25.0, limits={"center": 3.0, "angle": 90.0, "std": 0.4})
    read = features(speed=[10.0, 20.0], center=[0.6, -1.5], angle=[9.0, -45.0], std=[0.1, 0.5])
    first = (1 - abs(10 - 0.5 * 25) / 25) * (1 - 0.6 / 3) * (1 - 9 / 90) * (1 - 0.1 / 0.4)
    assert_close(vlm_rl({"contrast": A}, read), torch.tensor([[first, 0.0]]))  # std beyond its limit: 0


def test_a_speed_far_from_the_target_makes_a_negative_reward():
    assert_close(
        Synthesis(speed="speed", speed_max=10.0, limits={})({"a": A}, features(speed=[5.0, 22.0])),
        torch.tensor([[1.0, -1.0]]),
    )


def test_a_negative_penalty_replaces_the_reward_and_others_do_not():
    synthesis = Synthesis(limits={}, penalty="contact")
    assert_close(synthesis({"a": A}, features(contact=[-10.0, 3.0])), torch.tensor([[-10.0, 0.2]]))


def test_synthesis_tells_what_it_is_made_of():
    vlm_rl = Synthesis(speed="speed", speed_max=25.0, limits={"center": 3.0, "angle": 90.0}, penalty="penalty")
    read = features(speed=[10.0, 20.0], center=[0.6, -4.0], angle=[9.0, -45.0], penalty=[0.0, -10.0])
    parts = vlm_rl.parts({"contrast": A}, read)
    assert {name: part[0].tolist() for name, part in parts.items()} == {
        "speed": pytest.approx([1 - 2.5 / 25, 1 - 15 / 25]),
        "center": pytest.approx([0.8, 0.0]),
        "angle": pytest.approx([0.9, 0.5]),
        "penalty": pytest.approx([0.0, -10.0]),
    }
    product = parts["speed"] * parts["center"] * parts["angle"]
    assert_close(vlm_rl({"contrast": A}, read), torch.tensor([[product[0, 0], -10.0]]))


def test_the_speed_may_have_a_limit_too():
    both = Synthesis(speed="speed", speed_max=10.0, limits={"speed": 20.0})
    read = features(speed=[5.0, 8.0])
    goal, limit = torch.tensor([[1.0, 0.4]]), torch.tensor([[0.75, 0.6]])  # of A = 0.5, 0.2: 1 − |v − 10 A| / 10
    assert_close(both({"a": A}, read), goal * limit)
    assert_close(both.parts({"a": A}, read), {"speed": goal, "speed_limit": limit})


def test_missing_signals_and_bad_limits_are_named():
    with pytest.raises(KeyError, match="signal 'speed' must be among the features' signals; got angle"):
        Synthesis(speed="speed", limits={})({"a": A}, features(angle=[0.0, 0.0]))
    with pytest.raises(ValueError, match="limit of center must be > 0; got 0"):
        Synthesis(limits={"center": 0.0})
