"""A correction on a frozen policy, on worlds whose values are known."""

import numpy as np
import pytest

from policies.replay import Mix
from policies.residual import Residual, ResidualSettings, residual
from tests.learner_probes import (
    ACTION,
    OBS,
    SMALL,
    STATES,
    VALUES,
    best_actions,
    demonstrated,
    finds,
    made,
    resumes,
    shown,
    taught,
)

OWN = {"warmup": 0, "handover": False, "scale": 0.8}


class Fixed:
    """A policy that does 0.1 wherever it is, and counts the steps of each episode."""

    def begin(self, count):
        return {"steps": np.zeros(count, np.int64)}

    def act(self, obs, memory, first, *, explore):
        assert not explore  # frozen, and without its noise
        return np.full((len(first), 1), 0.1, np.float32), {"steps": np.where(first, 1, memory["steps"] + 1)}


def make(seed=0, base=Fixed, **settings):
    chosen = ResidualSettings(**(SMALL | OWN | settings))
    return Residual(OBS, ACTION, seed=seed, device="cpu", settings=chosen, base=base and base())


@pytest.mark.parametrize("kind", VALUES)
def test_it_finds_known_values_and_actions(kind):
    finds(make(), kind, actions=0.15)


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
    learner = made(residual, **(SMALL | OWN | {"warmup": 1000}))
    source = Mix(demonstrated(shown())).batches(learner.sampling)
    assert learner.pace.pretraining > 0
    assert make().pace.pretraining == 0
    learner.update(source, 300)
    np.testing.assert_allclose(best_actions(learner), [-0.5, 0.5], atol=0.1)


@pytest.mark.parametrize("base", [Fixed, None])
def test_it_resumes_bit_for_bit(base):
    demos = shown() if base is None else None
    resumes(lambda seed: make(seed, base=base), VALUES["both"][0], demos)


def test_a_correction_is_explored_by_its_best_and_the_set_noise():
    """It was drawn from its own width, while the base was played with the set noise: the hand-over compared the two."""
    learner = make(handover=False, warmup=0, noise=0.05)
    noisy = [learner.act(STATES, learner.begin(2), np.ones(2, bool), explore=True)[0][:, 0] for _ in range(200)]
    np.testing.assert_allclose(np.mean(noisy, 0), best_actions(learner), atol=0.02)
    np.testing.assert_allclose(np.std(noisy, 0), 0.05, atol=0.01)


def test_without_a_base_and_without_demonstrations_there_is_nothing_to_correct():
    learner = made(residual, **(SMALL | OWN))
    with pytest.raises(ValueError, match="residual: demonstrations must be given, as they make its base; got none"):
        taught(learner, "both", 1)
