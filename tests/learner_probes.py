"""Worlds whose values are known, as steps of random actions in a replay: what learns from them is right or wrong.

Shape letters: T steps, E worlds; observations and actions have one entry.
"""

import json

import numpy as np
import torch
from gymnasium import spaces

from policies.core import Actor, Learner, Rollout
from policies.replay import Mix, Replay

OBS = spaces.Box(-np.inf, np.inf, (1,), np.float32)
ACTION = spaces.Box(-1, 1, (1,), np.float32)
GAMMA = 0.5
STATES = np.array([[-1.0], [1.0]], np.float32)
SMALL = {  # settings of a soft actor-critic that learns a probe in a second
    "critic": (32,), "actor": (32,), "learning_rate": 1e-2, "batch_size": 64, "gamma": GAMMA, "tau": 0.1,
    "temperature": 1e-3, "learning_starts": 0,
}  # fmt: skip


def made(factory, seed=0, **settings):
    """A learner for the probes."""
    return factory(OBS, ACTION, num_worlds=2, total_steps=1000, seed=seed, device="cpu", **settings)


def one_step(reward, *, terminated=True, steps=400, seed=0):
    """Episodes of one step from a state of -1 or 1; `reward` is a function of (obs, action)."""
    rng = np.random.default_rng(seed)
    obs = rng.choice([-1.0, 1.0], (steps, 2, 1)).astype(np.float32)
    action = rng.uniform(-1, 1, (steps, 2, 1)).astype(np.float32)
    ended = np.ones((steps, 2), bool)
    values = np.broadcast_to(reward(obs, action), obs.shape)[..., 0].astype(np.float32)
    return Rollout(obs, action, obs, values, ended & terminated, ended & (not terminated), ended)


def two_steps(steps=400, seed=0):
    """From state -1 to state 1, from there to the end; a reward of 1 for the second step alone."""
    rng = np.random.default_rng(seed)
    second = np.zeros((steps, 2), bool)
    second[1::2] = True
    obs = np.where(second, 1, -1)[..., None].astype(np.float32)
    action = rng.uniform(-1, 1, (steps, 2, 1)).astype(np.float32)
    after = np.ones_like(obs)
    return Rollout(obs, action, after, second.astype(np.float32), second, np.zeros_like(second), ~second)


# kind -> (steps, what the value of the states -1 and 1 is under the best action)
VALUES = {
    "constant": (one_step(lambda obs, action: np.ones(1)), (1, 1)),
    "observation": (one_step(lambda obs, action: obs), (-1, 1)),
    "discount": (two_steps(), (GAMMA, 1)),
    "action": (one_step(lambda obs, action: 1 - (action - 0.5) ** 2), (1, 1)),
    "both": (one_step(lambda obs, action: 1 - (action - 0.5 * obs) ** 2), (1, 1)),
    "truncated": (one_step(lambda obs, action: np.ones(1), terminated=False), (2, 2)),
}
# kind -> the best actions there
ACTIONS = {"action": (0.5, 0.5), "both": (-0.5, 0.5)}


def memory(rollout, *, imitate=None, seed=0, **kwargs):
    """A replay of these steps."""
    replay = Replay(OBS, ACTION, capacity=rollout.first.size, num_worlds=2, seed=seed, **kwargs)
    replay.add(rollout, rollout.env_reward, imitate)
    return replay


def taught(learner, kind, updates):
    """The learner, after so many updates on a probe."""
    return taught_on(VALUES[kind][0], learner, updates)


def taught_on(rollout, learner, updates):
    """The learner, after so many updates on these steps."""
    learner.observe(rollout, rollout.env_reward)
    learner.update(Mix(memory(rollout)).batches(learner.sampling), updates)
    return learner


def finds(learner, kind, *, values=0.06, actions=0.12):
    """Whether the learner, taught on a probe, knows what it is worth and what is best there, within these errors."""
    assert isinstance(learner, Learner)
    assert isinstance(learner, Actor)
    taught(learner, kind, 200)
    np.testing.assert_allclose(learner.value(STATES, best_actions(learner)[:, None]), VALUES[kind][1], atol=values)
    if kind in ACTIONS:
        np.testing.assert_allclose(best_actions(learner), ACTIONS[kind], atol=actions)


def demonstrated(rollout, **kwargs):
    """Its steps in a memory, all to be imitated."""
    return memory(rollout, imitate=np.ones(rollout.first.shape, bool), **kwargs)


def shown(gain=0.5, episodes=20, seed=0):
    """Demonstrations of an action of `gain` times the state, one step an episode; each earns 1."""
    rng = np.random.default_rng(seed)
    obs = rng.choice([-1.0, 1.0], (episodes, 2, 1)).astype(np.float32)
    ended = np.ones((episodes, 2), bool)
    earned = np.ones((episodes, 2), np.float32)
    return Rollout(obs, gain * obs, obs, earned, ended, ~ended, ended)


def best_actions(learner):
    """(2,) what it does in the states -1 and 1 when it counts."""
    action, _ = learner.act(STATES, learner.begin(2), np.ones(2, bool), explore=False)
    return action[:, 0]


def resumes(make, rollout, demos=None, updates=6):
    """Whether a learner made anew from another's state goes on bit for bit, and one of another seed does not; and
    whether the one that acts with the weights of now does what the learner would, whatever is learned meanwhile."""
    straight, resumed, other = make(0), make(5), make(1)
    mix = Mix(memory(rollout), None if demos is None else demonstrated(demos))
    source = mix.batches(straight.sampling)
    batches = [next(source) for _ in range(4 * updates)]

    def step(learner, turn):
        action, _ = learner.act(STATES, learner.begin(2), np.ones(2, bool), explore=True)
        learner.observe(rollout, rollout.env_reward)
        return action, learner.update(iter(batches[turn * updates :]), updates)

    for learner in (straight, other):
        if demos is not None:
            learner.update(iter(batches), updates)
        step(learner, 1)
        step(learner, 2)
    tensors, values = straight.state()
    resumed.load_state(tensors, json.loads(json.dumps(values)))
    acts = resumed.acting()
    before = best_actions(resumed)
    (action, told), (again, also) = (step(learner, 3) for learner in (straight, resumed))
    assert 0 <= told["dormant_actor"] < 1  # every learner tells it
    np.testing.assert_array_equal(action, again)
    assert told == also
    np.testing.assert_array_equal(best_actions(acts), before)
    (tensors, values), (same, also), (others, _) = (each.state() for each in (straight, resumed, other))
    assert json.loads(json.dumps(values)) == also
    assert set(tensors) == set(same)
    assert all(torch.equal(tensors[key], same[key]) for key in tensors)
    assert any(not torch.equal(tensors[key], others[key]) for key in tensors if key in others)


def chain(*, terminated=True, steps=3, episodes=120, seed=0):
    """Episodes of so many steps along a line: step k begins at k, and its best action is ½ or -½ in turn, worth 1."""
    rng = np.random.default_rng(seed)
    at = np.tile(np.arange(steps), episodes)[:, None, None].repeat(2, 1).astype(np.float32)
    action = rng.uniform(-1, 1, at.shape).astype(np.float32)
    best = np.where(at % 2 == 0, 0.5, -0.5)
    ended = at[..., 0] == steps - 1
    reward = (1 - (action - best) ** 2)[..., 0].astype(np.float32)
    return Rollout(at, action, at + 1, reward, ended & terminated, ended & (not terminated), at[..., 0] == 0)


def draws_nothing_global(make, kind="both", updates=5):
    """Whether global generators change nothing of what a learner learns and does, and are left as they were."""

    def run(noise):
        torch.manual_seed(noise)
        np.random.seed(noise)
        learner = taught(make(), kind, updates)
        acted = learner.act(STATES, learner.begin(2), np.ones(2, bool), explore=True)[0]
        assert torch.initial_seed() == noise
        return learner.state()[0], acted

    (one, acted), (other, again) = run(1), run(2)
    np.testing.assert_array_equal(acted, again)
    assert all(torch.equal(one[key], other[key]) for key in one)
