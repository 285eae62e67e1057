"""A correction on a frozen policy, on worlds whose values are known."""

import numpy as np
import pytest
import torch

from policies.core import Learner
from policies.replay import Mix
from policies.residual import residual
from tests.learner_probes import (
    ACTION,
    ACTIONS,
    GAMMA,
    OBS,
    STATES,
    VALUES,
    best_actions,
    memory,
    resumes,
    shown,
    taught,
)

SMALL = {
    "critic": (32,), "actor": (32,), "learning_rate": 1e-2, "batch_size": 64, "gamma": GAMMA, "tau": 0.1,
    "temperature": 1e-3, "learning_starts": 0, "warmup": 0, "handover": False, "scale": 0.8,
}  # fmt: skip


class Fixed:
    """A policy that does 0.1 wherever it is, and counts the steps of each episode."""

    def begin(self, count):
        return {"steps": np.zeros(count, np.int64)}

    def act(self, obs, memory, first, *, explore):
        assert not explore  # frozen, and without its noise
        return np.full((len(first), 1), 0.1, np.float32), {"steps": np.where(first, 1, memory["steps"] + 1)}


def make(seed=0, base=Fixed, **settings):
    return residual(
        OBS, ACTION, num_worlds=2, total_steps=1000, seed=seed, device="cpu", base=base and base(), **(SMALL | settings)
    )


@pytest.mark.parametrize("kind", VALUES)
def test_it_finds_known_values_and_actions(kind):
    learner = taught(make(), kind, 200)
    assert isinstance(learner, Learner)
    np.testing.assert_allclose(learner.value(STATES, best_actions(learner)[:, None]), VALUES[kind][1], atol=0.06)
    if kind in ACTIONS:
        np.testing.assert_allclose(best_actions(learner), ACTIONS[kind], atol=0.15)


def test_the_correction_is_bounded():
    learner = taught(make(scale=0.2), "both", 200)
    np.testing.assert_allclose(best_actions(learner), [-0.1, 0.3], atol=0.03)  # wanted: -0.5 and 0.5


def test_it_begins_at_its_base_and_stays_there_until_the_critics_are_warm():
    learner = make(warmup=50)
    np.testing.assert_allclose(best_actions(learner), 0.1, atol=1e-6)
    taught(learner, "both", 50)
    np.testing.assert_allclose(
        best_actions(learner), 0.1, atol=0.03
    )  # the mean is not learned; what x is, moves it not
    taught(learner, "both", 50)
    assert abs(best_actions(learner) - 0.1).max() > 0.05


def test_the_base_remembers_its_own():
    learner = make()
    _, remembered = learner.act(STATES, learner.begin(2), np.ones(2, bool), explore=True)
    _, remembered = learner.act(STATES, remembered, np.array([False, True]), explore=True)
    assert remembered["base/steps"].tolist() == [2, 1]


def test_without_a_base_it_imitates_first():
    learner, demos = make(base=None, warmup=1000), shown()
    source = Mix(memory(demos, imitate=np.ones(demos.first.shape, bool))).batches(learner.sampling)
    assert learner.pace.pretraining > 0
    assert make().pace.pretraining == 0
    learner.update(source, 300)
    np.testing.assert_allclose(best_actions(learner), [-0.5, 0.5], atol=0.1)


@pytest.mark.parametrize("base", [Fixed, None])
def test_it_resumes_bit_for_bit(base):
    demos = shown() if base is None else None
    straight, resumed, other, (one, two) = resumes(lambda seed: make(seed, base=base), VALUES["both"][0], demos)
    np.testing.assert_array_equal(one[0], two[0])
    assert one[1] == two[1]
    tensors = straight.state()[0]
    assert all(torch.equal(tensors[key], value) for key, value in resumed.state()[0].items())
    assert any(not torch.equal(tensors[key], value) for key, value in other.state()[0].items())
