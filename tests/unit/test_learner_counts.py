"""Counts that stable-baselines3's learners and our networks cannot have are refused by name."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from policies import sb3
from policies.imitation import ImitationSettings
from policies.networks import Linear
from policies.vla.chunked import ChunkedRLSettings

READINGS, MOVES = spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("name", "setting", "match"),
    [
        ("ppo", {"batch_size": 0}, "ppo: batch_size must be at least 2; got 0"),
        ("ppo", {"batch_size": 1}, "ppo: batch_size must be at least 2; got 1"),
        ("ppo", {"rollout_steps": 0}, "ppo: rollout_steps must be at least 1; got 0"),
        ("ppo", {"n_epochs": 0}, "ppo: n_epochs must be at least 1; got 0"),
        ("ppo", {"network": [8, 0]}, "ppo: network must be at least 1; got 0"),
        ("sac", {"network": [0]}, "sac: network must be at least 1; got 0"),
        ("td3", {"policy_delay": 0}, "td3: policy_delay must be at least 1; got 0"),
        ("dqn", {"target_update_interval": 0}, "dqn: target_update_interval must be at least 1; got 0"),
    ],
)
def test_counts_are_refused(name, setting, match):
    actions = spaces.Discrete(2) if name == "dqn" else MOVES
    with pytest.raises(ValueError, match=match):
        getattr(sb3, name)(READINGS, actions, num_worlds=1, total_steps=10, seed=0, device="cpu", **setting)


@pytest.mark.parametrize("name", ["batch_size", "rollout_steps"])
def test_counts_of_imitation_are_refused(name):
    with pytest.raises(ValueError, match=f"imitation: {name} must be at least 1; got 0"):
        ImitationSettings(**{name: 0})


@pytest.mark.parametrize("name", ["heads", "width", "layers"])
def test_counts_of_chunked_rl_are_refused(name):
    with pytest.raises(ValueError, match=f"ChunkedRLSettings: {name} must be at least 1; got 0"):
        ChunkedRLSettings(**{name: 0})


def test_a_layer_of_no_width_is_refused():
    with pytest.raises(ValueError, match="widths must be at least 1; got 0 and 4"):
        Linear(0, 4, generator=torch.Generator())
