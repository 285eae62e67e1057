"""Behaviour cloning, with chunks and without; and the model that reads actions off observations."""

import numpy as np
import pytest
from gymnasium import spaces

from policies.core import Learner, Sampling
from policies.imitation import imitation
from policies.inverse import inverse, r_squared
from policies.replay import Mix, Replay
from tests.learner_probes import ACTION, OBS, VALUES, best_actions, demonstrated, memory, resumes, shown

SMALL = {"network": (32,), "learning_rate": 1e-2, "batch_size": 64}
COUNT = spaces.Box(-np.inf, np.inf, (1,), np.float32)


def make(seed=0, space=OBS, **settings):
    return imitation(space, ACTION, num_worlds=2, total_steps=1, seed=seed, device="cpu", **(SMALL | settings))


def test_it_does_what_is_shown_and_nothing_else():
    learner = make()
    assert isinstance(learner, Learner)
    right, wrong = shown(0.5), shown(-0.5, seed=1)
    demos = demonstrated(right, grows=True)
    demos.add(wrong, wrong.env_reward)  # not to be imitated
    metrics = learner.update(Mix(memory(VALUES["both"][0]), demos).batches(learner.sampling), 150)
    assert metrics["imitation_error"] < 0.1
    np.testing.assert_allclose(best_actions(learner), [-0.5, 0.5], atol=0.03)


def test_without_demonstrations_it_says_so():
    learner = make()
    with pytest.raises(ValueError, match="imitation: demonstrations must be given"):
        learner.update(Mix(memory(VALUES["both"][0])).batches(learner.sampling), 2)


def counting(steps=8, episodes=6):
    """Demonstrations in which the k-th action is k / 10, whatever the observation: the number of the episode's step."""
    demos = Replay(COUNT, ACTION, capacity=64, num_worlds=1, seed=0, grows=True)
    for _ in range(episodes):
        obs = np.arange(steps + 1, dtype=np.float32)[:, None]
        demos.add_episode(obs, obs[:-1] / 10, np.ones(steps, np.float32), terminated=False)
    return demos


def test_a_chunk_is_played_in_its_order_and_ends_with_the_episode():
    learner = make(space=COUNT, chunk=3, execute=3)
    learner.update(Mix(counting()).batches(learner.sampling), 300)
    seen, remembered = [], learner.begin(2)
    asked = np.zeros((2, 1), np.float32)
    for step in range(5):
        first = np.array([step == 0, step in (0, 4)])
        asked = np.where(first[:, None], 0, [[step], [step]]).astype(np.float32)
        before = {name: value.copy() for name, value in remembered.items()}
        action, after = learner.act(asked, remembered, first, explore=False)
        assert all(np.array_equal(before[name], remembered[name]) for name in before)  # not changed
        remembered = after
        seen.append(action[:, 0])
    np.testing.assert_allclose(np.stack(seen)[:, 0], [0, 0.1, 0.2, 0.3, 0.4], atol=0.04)
    np.testing.assert_allclose(np.stack(seen)[:, 1], [0, 0.1, 0.2, 0.3, 0.0], atol=0.04)  # began anew


def test_what_lies_behind_an_episodes_end_is_not_learned():
    """The last chunks are padded with zeros; learned, they would pull the actions down."""
    learner = make(space=COUNT, chunk=3, execute=1)
    learner.update(Mix(counting(steps=2)).batches(learner.sampling), 300)
    action, remembered = learner.act(np.ones((2, 1), np.float32), learner.begin(2), np.ones(2, bool), explore=False)
    np.testing.assert_allclose(action[:, 0], 0.1, atol=0.02)
    chunk = remembered["chunk"][0, :, 0]
    assert abs(chunk[0] - 0.1) < 0.02
    with pytest.raises(ValueError, match=r"execute must be from 1 to chunk \(2\); got 3"):
        make(chunk=2, execute=3)


def test_imitation_resumes_bit_for_bit():
    rollout = VALUES["both"][0]
    resumes(lambda seed: make(seed, noise=0.1), rollout, shown())


def drifting(seed, shuffled=False, steps=40, episodes=8):
    """Episodes in which an action moves a point by 2 cm, in metres and in pixels; with the actions of each."""
    rng = np.random.default_rng(seed)
    space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    memory_ = Replay(space, ACTION, capacity=64, num_worlds=1, seed=seed, grows=True)
    out = []
    for _ in range(episodes):
        action = rng.uniform(-1, 1, (steps, 1)).astype(np.float32)
        place = np.concatenate([rng.normal(size=(1, 1)), 0.02 * action]).cumsum(0).astype(np.float32)
        obs = np.concatenate([place, 100 - 300 * place], 1)
        memory_.add_episode(
            obs, rng.permutation(action) if shuffled else action, np.zeros(steps, np.float32), terminated=False
        )
        out.append((obs, action))
    return space, memory_, out


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_inverse_model_reads_actions_off_what_moved(shuffled):
    space, seen, _ = drifting(0, shuffled)
    model = inverse(space, ACTION, seed=0, device="cpu", network=[64], learning_rate=3e-3)
    model.update(Mix(seen).batches(model.sampling), 300)
    said, done = zip(*((model.label(obs), action) for obs, action in drifting(1)[2]), strict=True)
    assert said[0].shape == done[0].shape == (40, 1)
    explained = r_squared(np.concatenate(said), np.concatenate(done))
    assert explained < 0.1 if shuffled else explained > 0.97
    again = inverse(space, ACTION, seed=5, device="cpu", network=[64])
    again.load_state(*model.state())
    np.testing.assert_array_equal(again.label(drifting(1)[2][0][0]), said[0])


def test_r_squared_is_its_definition():
    done = np.array([[0.0, 1.0], [2.0, 3.0]])
    assert r_squared(done, done) == 1.0
    assert r_squared(np.broadcast_to(done.mean(0), (2, 2)), done) == 0.0
    assert r_squared(done + 1.0, done) == 0.0  # 4 of 4


def test_a_window_of_a_chunk_wants_its_length():
    assert make(chunk=4, execute=2).sampling == Sampling(length=4, batch_size=64, demo_share=1.0)
