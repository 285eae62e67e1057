"""Cal-QL, on worlds whose values are known, and its regulariser against its definition."""

import numpy as np
import pytest
import torch

from policies.calql import calql, conservative
from policies.replay import Mix
from tests.learner_probes import SMALL, STATES, VALUES, finds, made, memory, resumes, taught


def make(seed=0, **settings):
    return made(calql, seed, **(SMALL | settings))


@pytest.mark.parametrize("kind", VALUES)
def test_with_little_conservatism_it_finds_known_values(kind):
    finds(make(conservatism=1e-3), kind)


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
    resumes(make, rollout, rollout)
