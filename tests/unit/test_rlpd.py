"""The default learner, on worlds whose values are known."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from policies.core import Rollout
from policies.replay import Mix, Replay
from policies.rlpd import rlpd
from tests.learner_probes import (
    ACTION,
    ACTIONS,
    GAMMA,
    OBS,
    SMALL,
    STATES,
    VALUES,
    best_actions,
    chain,
    demonstrated,
    draws_nothing_global,
    finds,
    made,
    memory,
    resumes,
    shown,
    taught,
    taught_on,
)


def make(seed=0, **settings):
    return made(rlpd, seed, **(SMALL | settings))


@pytest.mark.parametrize(("kind", "n_steps"), [*((kind, 1) for kind in VALUES), ("discount", 3), ("truncated", 3)])
def test_it_finds_known_values_and_actions(kind, n_steps):
    finds(make(n_steps=n_steps), kind, values=0.05)


def test_nothing_is_drawn_from_global_generators():
    draws_nothing_global(make)


@pytest.mark.parametrize(("demos", "chunk"), [(None, 1), (shown(), 1), (shown(), 2)])
def test_it_resumes_bit_for_bit(demos, chunk):
    resumes(lambda seed: make(seed, warmup=4, chunk=chunk), VALUES["both"][0], demos)


def test_another_learners_state_is_refused():
    tensors, values = make().state()
    with pytest.raises(ValueError, match=r"mlp.layers.0.weight must be \(2, 2, 16\); got \(2, 2, 32\)"):
        make(critic=[16]).load_state(tensors, values)


def test_demonstrations_are_imitated_first_and_acting_begins_there():
    learner, demos = make(pretraining=150), shown(0.5)
    learner.update(Mix(demonstrated(demos)).batches(learner.sampling), 150)
    np.testing.assert_allclose(best_actions(learner), [-0.5, 0.5], atol=0.03)
    noisy = [learner.act(STATES, learner.begin(2), np.ones(2, bool), explore=True)[0][:, 0] for _ in range(100)]
    np.testing.assert_allclose(np.mean(noisy, 0), [-0.5, 0.5], atol=0.04)  # near imitation, not random
    np.testing.assert_allclose(np.std(noisy, 0), 0.1, atol=0.03)


def test_an_actor_that_began_as_imitation_explores_by_its_best_action_and_the_set_noise():
    """It drew from its own distribution, whose width is right on average alone: grasps failed that would not have."""
    learner, demos = make(pretraining=150, handover=False, noise=0.05), shown(0.5)
    learner.update(Mix(demonstrated(demos)).batches(learner.sampling), 150)
    learner.observe(*one_step())
    noisy = [learner.act(STATES, learner.begin(2), np.ones(2, bool), explore=True)[0][:, 0] for _ in range(200)]
    np.testing.assert_allclose(np.mean(noisy, 0), best_actions(learner), atol=0.02)
    np.testing.assert_allclose(np.std(noisy, 0), 0.05, atol=0.01)


def one_step():
    """Something to observe: one step of two worlds."""
    nothing = np.zeros((1, 2), np.float32)
    return Rollout(
        STATES[None], nothing[..., None], STATES[None], nothing, nothing > 0, nothing > 0, nothing > 0
    ), nothing


@pytest.mark.parametrize("handover", [True, False])
def test_what_is_learned_plays_when_it_counts_only_once_it_was_seen_to_earn_more(handover):
    """Imitation does the opposite of what pays; the actor finds out, and is not trusted before it has shown it."""
    learner, demos = make(pretraining=100, warmup=0, imitation_weight=0.0, handover=handover), shown(-0.5)
    learner.update(Mix(demonstrated(demos)).batches(learner.sampling), 100)
    taught(learner, "both", 150)
    expected = [0.5, -0.5] if handover else [-0.5, 0.5]
    np.testing.assert_allclose(best_actions(learner), expected, atol=0.12)
    if not handover:
        return
    ended, remembered = np.ones((1, 2), bool), learner.begin(2)
    for _ in range(40):
        action, remembered = learner.act(STATES, remembered, ended[0], explore=True)
        reward = 1 - (action - 0.5 * STATES).T ** 2
        rollout = Rollout(STATES[None], action[None], STATES[None], 0 * reward, ended, ~ended, ended)
        learner.observe(rollout, reward)
    np.testing.assert_allclose(best_actions(learner), [-0.5, 0.5], atol=0.12)


def test_actions_that_are_not_to_be_imitated_are_not():
    """Half of what is shown is wrong and says so."""
    right, wrong = shown(0.5), shown(-0.5, seed=1)
    learner = make(pretraining=150)
    replay = demonstrated(right, grows=True)
    replay.add(wrong, wrong.env_reward)
    learner.update(Mix(replay).batches(learner.sampling), 150)
    np.testing.assert_allclose(best_actions(learner), [-0.5, 0.5], atol=0.05)


def test_observations_of_any_scale_and_form():
    """A dictionary of vectors in metres and in pixels: standardised, both tell."""
    rollout = VALUES["both"][0]
    space = spaces.Dict({"metres": OBS, "pixels": spaces.Box(0, 500, (2,), np.float32)})

    def scaled(obs):
        return {"metres": 0.02 * obs, "pixels": np.concatenate([200 + 0 * obs, 240 + 0 * obs], -1)}

    learner = rlpd(space, ACTION, num_worlds=2, total_steps=1, seed=0, device="cpu", **SMALL)
    replay = Replay(space, ACTION, capacity=rollout.first.size, num_worlds=2, seed=0)
    rollout = rollout._replace(obs=scaled(rollout.obs), next_obs=scaled(rollout.next_obs))
    replay.add(rollout, rollout.env_reward)
    learner.observe(rollout, rollout.env_reward)
    learner.update(Mix(replay).batches(learner.sampling), 200)
    action, _ = learner.act(scaled(STATES), learner.begin(2), np.ones(2, bool), explore=False)
    np.testing.assert_allclose(action[:, 0], ACTIONS["both"], atol=0.12)


def test_chunks_are_decided_together_and_worth_what_all_of_their_steps_earn():
    """Three steps, two in a chunk: the last state's value is known only because the task ended there."""
    rollout = chain()
    learner = taught_on(rollout, make(chunk=2, critic=(64,), actor=(64,)), 400)
    states = np.arange(3, dtype=np.float32)[:, None]
    best = np.array([[0.5, -0.5], [-0.5, 0.5], [0.5, 0.0]], np.float32)
    np.testing.assert_allclose(learner.value(states, best), [1 + GAMMA + GAMMA**2, 1 + GAMMA, 1], atol=0.12)
    _, memory_ = learner.act(states, learner.begin(3), np.ones(3, bool), explore=False)
    np.testing.assert_allclose(memory_["chunk"][:2, :, 0], best[:2], atol=0.15)


@pytest.mark.parametrize("terminated", [True, False])
def test_a_chunk_that_was_cut_tells_nothing(terminated):
    """Half of the windows begin at an episode's last step. What that earned counts if the task ended there."""
    rollout, learned = chain(terminated=terminated, steps=2), []
    batch = memory(rollout).sample(make(chunk=2).sampling)
    for bonus in (0.0, 100.0):
        learner = make(chunk=2)
        learner.observe(rollout, rollout.env_reward)
        more = bonus * (batch.valid & ~batch.valid.all(0))
        learner.update(iter([batch._replace(reward=batch.reward + more)]), 1)
        learned.append(learner.state()[0])
    one, other = learned
    assert all(torch.equal(one[key], other[key]) for key in one) != terminated


def test_a_chunk_is_played_to_its_end_unless_the_episode_ends():
    learner = make(chunk=3)
    asked, planned = np.zeros((2, 1), np.float32), learner.begin(2)
    played, plans = [], []
    for first in ([True, True], [False, True], [False, False], [False, False]):
        action, planned = learner.act(asked, planned, np.array(first), explore=True)
        played.append(action[:, 0])
        plans.append(planned["chunk"][..., 0].copy())
    played = np.stack(played, 1)
    np.testing.assert_array_equal(played[0], [*plans[0][0], plans[3][0, 0]])
    np.testing.assert_array_equal(played[1], [plans[0][1, 0], *plans[1][1]])
    assert not np.array_equal(plans[0][1], plans[1][1])
    assert planned["left"].tolist() == [2, 0]


def test_chunks_are_imitated_without_what_lies_behind_an_episodes_end():
    rollout = chain(steps=2)
    right = np.where(rollout.obs == 0, 0.5, -0.5).astype(np.float32)
    learner = make(chunk=2)
    learner.update(Mix(demonstrated(rollout._replace(action=right))).batches(learner.sampling), 200)
    states = np.array([[0.0], [1.0]], np.float32)
    _, memory_ = learner.act(states, learner.begin(2), np.ones(2, bool), explore=False)
    np.testing.assert_allclose(memory_["chunk"][0, :, 0], [0.5, -0.5], atol=0.05)
    np.testing.assert_allclose(memory_["chunk"][1, 0, 0], -0.5, atol=0.05)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"gamma": 1.5}, r"rlpd: gamma must be in \[0, 1\]; got 1.5"),
        ({"n_steps": 0}, "rlpd: n_steps must be at least 1; got 0"),
        ({"chunk": 0}, "rlpd: chunk must be at least 1; got 0"),
        (
            {"chunk": 2, "n_steps": 3},
            "rlpd: n_steps must be 1 where chunk is more, whose rewards are summed anyway; got 3",
        ),
        ({"temperature": 0.0}, "rlpd: temperature must be > 0; got 0.0"),
        ({"updates_per_step": 0.0}, "rlpd: updates_per_step must be > 0; got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(change, error):
    with pytest.raises(ValueError, match=error):
        make(**change)


def test_unknown_settings_and_spaces_are_refused():
    with pytest.raises(TypeError, match="gama"):
        make(gama=0.9)
    with pytest.raises(ValueError, match="actions must be a Box"):
        rlpd(OBS, spaces.Discrete(3), num_worlds=1, total_steps=1, seed=0)
    with pytest.raises(ValueError, match="observations must be a vector"):
        rlpd(spaces.Box(0, 255, (8, 8, 3), np.uint8), ACTION, num_worlds=1, total_steps=1, seed=0)


def test_of_failures_alone_there_is_no_imitation():
    learner = make(pretraining=3)
    with pytest.warns(UserWarning, match="rlpd: demonstrations that succeed must be given for imitation; got failures"):
        learner.update(Mix(memory(shown())).batches(learner.sampling), 3)
    assert not learner.imitates
    assert learner.state()[1]["imitates"] is False
