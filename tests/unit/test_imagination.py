"""What a model imagines, against what happened: errors of models whose faults are known."""

import json

import numpy as np
import pytest
import torch

from embodied.errors import UserError
from embodied.reports.page import write_report
from embodied.training.imagination import WholeEpisodes, compare
from policies.core import ImaginedEpisode, Rollout


class Drifting:
    """Its state is the observation, which moves by the action, off by `bias` each step; it pays `gain` · action."""

    def __init__(self, bias=0.0, gain=1.0):
        self.bias, self.gain = bias, gain

    def imagine(self, obs, action, horizon):
        seen, taken = torch.tensor(obs, dtype=torch.float32), torch.tensor(action, dtype=torch.float32)
        count = len(taken) - horizon + 1
        moves = torch.stack([taken[k : k + count] + self.bias for k in range(horizon)], 1)
        ahead = seen[:count, None] + moves.cumsum(1)
        paid = self.gain * torch.stack([taken[k : k + count, 0] for k in range(horizon)], 1)
        return ImaginedEpisode(seen, ahead, paid)


def episodes(count=6, steps=30, seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        action = rng.normal(size=(steps, 2))
        obs = rng.normal(size=(1, 2)) + np.concatenate([np.zeros((1, 2)), action.cumsum(0)])
        out.append((obs.astype(np.float32), action.astype(np.float32), action[:, 0]))
    return out


def test_a_true_model_has_no_error_and_standing_still_has_the_steps_own():
    played = episodes()
    found = compare(Drifting(), played, 4)
    assert (found["horizon"], found["episodes"], found["moments"]) == (4, 3, 3 * 27)
    np.testing.assert_allclose(found["observation_error"], 0, atol=1e-3)
    np.testing.assert_allclose(found["reward_error"], 0, atol=1e-5)
    variance = np.concatenate([obs for obs, _, _ in played[::2]]).var(0)
    expected = [np.mean([(obs[h : h + 27] - obs[:27]) ** 2 / variance for obs, _, _ in played[1::2]]) for h in range(5)]
    np.testing.assert_allclose(found["still_error"], expected, rtol=1e-4)
    np.testing.assert_allclose(found["reward_spread"], 1, atol=0.2)


class OfImages(Drifting):
    """The same of pictures that show nothing; it knows its actions."""

    def imagine(self, obs, action, horizon):
        return super().imagine(np.zeros((len(obs), 2), np.float32), action, horizon)


def test_of_images_alone_rewards_are_compared(tmp_path):
    played = [(np.zeros((len(obs), 8, 8, 3), np.uint8), action, reward) for obs, action, reward in episodes()]
    found = compare(OfImages(), played, 4)
    assert (found["observation_error"], found["still_error"], found["example"]["observation"]) == ([], [], {})
    np.testing.assert_allclose(found["reward_error"], 0, atol=1e-5)
    (tmp_path / "imagination.json").write_text(json.dumps(found))
    page = write_report(tmp_path).read_text()
    assert "Imagined rewards" in page
    assert "Imagined observations" not in page


def test_a_bias_grows_with_the_steps_ahead_and_a_wrong_reward_shows():
    played = episodes()
    found = compare(Drifting(bias=0.3, gain=0.0), played, 4)
    variance = np.concatenate([obs for obs, _, _ in played[::2]]).var(0)
    expected = [np.mean((0.3 * h) ** 2 / variance) for h in range(5)]
    np.testing.assert_allclose(found["observation_error"], expected, rtol=0.05, atol=1e-3)
    np.testing.assert_allclose(found["reward_error"], found["reward_spread"], rtol=0.2)


def test_an_example_lies_beside_what_happened():
    played = episodes()
    example = compare(Drifting(), played, 4, ["the cube: u", "the cube: v"])["example"]
    assert set(example["observation"]) == {"the cube: u", "the cube: v"}
    for values in (example["reward"], *example["observation"].values()):
        assert len(values["true"]) == len(values["imagined"]) == 27
        np.testing.assert_allclose(values["imagined"], values["true"], atol=0.05)
    np.testing.assert_allclose(example["reward"]["true"], played[1][2][3:])


def test_episodes_are_taken_whole_out_of_rollouts():
    """Two worlds; the second one's first episode began before anyone looked."""
    first = np.array([[True, False], [False, False], [True, True], [False, False]])
    ended = np.array([[False, False], [True, True], [False, False], [False, True]])
    obs = np.arange(8, dtype=np.float32).reshape(4, 2, 1)
    rollout = Rollout(obs, 10 * obs, obs + 0.5, 0 * first, ended & False, ended, first)
    seen = WholeEpisodes()
    for t in range(4):
        seen.add(Rollout(*(part[t : t + 1] for part in rollout)), obs[t : t + 1, :, 0])
    found = [(o[:, 0].tolist(), a[:, 0].tolist(), r.tolist()) for o, a, r in seen.whole]
    assert found == [([0, 2, 2.5], [0, 20], [0, 2]), ([5, 7, 7.5], [50, 70], [5, 7])]


def test_too_few_long_episodes_are_refused():
    with pytest.raises(UserError, match="at most the length of two episodes or more; got 31, and 6 of up to 30 steps"):
        compare(Drifting(), episodes(), 31)


def test_the_report_draws_it(tmp_path):
    (tmp_path / "imagination.json").write_text(json.dumps(compare(Drifting(), episodes(), 4)))
    page = write_report(tmp_path).read_text()
    assert "Imagined observations" in page
    assert page.count("<svg") >= 5
