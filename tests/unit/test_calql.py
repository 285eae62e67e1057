"""Cal-QL, on worlds whose values are known, and its regulariser against its definition."""

import numpy as np
import pytest
import torch

from policies.calql import calql, conservative
from policies.core import Learner
from policies.replay import Mix
from tests.learner_probes import ACTION, ACTIONS, GAMMA, OBS, STATES, VALUES, best_actions, memory, resumes, taught

SMALL = {
    "critic": (32,), "actor": (32,), "learning_rate": 1e-2, "batch_size": 64, "gamma": GAMMA, "tau": 0.1,
    "temperature": 1e-3, "learning_starts": 0,
}  # fmt: skip


def make(seed=0, **settings):
    return calql(OBS, ACTION, num_worlds=2, total_steps=1000, seed=seed, device="cpu", **(SMALL | settings))


@pytest.mark.parametrize("kind", VALUES)
def test_with_little_conservatism_it_finds_known_values(kind):
    learner = taught(make(conservatism=1e-3), kind, 200)
    assert isinstance(learner, Learner)
    np.testing.assert_allclose(learner.value(STATES, best_actions(learner)[:, None]), VALUES[kind][1], atol=0.06)
    if kind in ACTIONS:
        np.testing.assert_allclose(best_actions(learner), ACTIONS[kind], atol=0.12)


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_regulariser_is_its_definition(calibrated):
    """In float64 NumPy, from the paper."""
    rng = np.random.default_rng(0)
    values, log_probs, q = rng.normal(size=(2, 5, 3, 4)), rng.normal(size=(5, 3, 4)), rng.normal(size=(2, 5))
    floor = np.where(rng.random(5) < 0.5, rng.normal(size=5), np.nan) if calibrated else np.full(5, np.nan)
    expected = 0.0
    for k in range(2):
        for b in range(5):
            terms = []
            for kind in range(3):
                for n in range(4):
                    value = values[k, b, kind, n]
                    if kind and not np.isnan(floor[b]):
                        value = max(value, floor[b])
                    terms.append(value - log_probs[b, kind, n])
            expected += (np.log(np.sum(np.exp(terms))) - q[k, b]) / 5
    tensors = [torch.tensor(each, dtype=torch.float32) for each in (values, log_probs, floor, q)]
    assert conservative(*tensors).item() == pytest.approx(expected, rel=1e-5)


def test_conservatism_holds_down_what_was_not_seen():
    """Only actions near 0.5 were done."""
    rollout = VALUES["constant"][0]
    near = 0.5 + 0.05 * np.random.default_rng(0).normal(size=rollout.action.shape)
    rollout = rollout._replace(action=near.astype(np.float32))
    learner = make(conservatism=1.0)
    learner.observe(rollout, rollout.env_reward)
    learner.update(Mix(memory(rollout)).batches(learner.sampling), 100)
    near, far = (learner.value(STATES, np.full((2, 1), at, np.float32)).mean() for at in (0.5, -0.9))
    assert far < near - 5


@pytest.mark.parametrize("kind", ["constant", "truncated"])
def test_floors_are_the_returns_of_episodes_that_terminated(kind):
    """What an episode that was cut would have earned is unknown: there Cal-QL is CQL."""
    one, other = (taught(make(calibrated=calibrated), kind, 20).state()[0] for calibrated in (True, False))
    assert all(torch.equal(one[key], other[key]) for key in one) == (kind == "truncated")


def test_offline_updates_come_before_the_first_step_and_then_it_acts_as_learned():
    learner, rollout = make(), VALUES["both"][0]
    learner.update(Mix(memory(rollout)).batches(learner.sampling), 150)
    noisy = [learner.act(STATES, learner.begin(2), np.ones(2, bool), explore=True)[0][:, 0] for _ in range(50)]
    assert np.sign(np.mean(noisy, 0)).tolist() == [-1, 1]


def test_it_resumes_bit_for_bit():
    rollout = VALUES["both"][0]
    straight, resumed, other, (one, two) = resumes(make, rollout, rollout)
    np.testing.assert_array_equal(one[0], two[0])
    assert one[1] == two[1]
    tensors = straight.state()[0]
    assert all(torch.equal(tensors[key], value) for key, value in resumed.state()[0].items())
    assert any(not torch.equal(tensors[key], value) for key, value in other.state()[0].items())
