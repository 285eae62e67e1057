"""Worlds whose values are known, as steps of random actions in a replay: what learns from them is right or wrong.

Shape letters: T steps, E worlds; observations and actions have one entry.
"""

import numpy as np
from gymnasium import spaces

from policies.core import Rollout
from policies.replay import Mix, Replay

OBS = spaces.Box(-np.inf, np.inf, (1,), np.float32)
ACTION = spaces.Box(-1, 1, (1,), np.float32)
GAMMA = 0.5
STATES = np.array([[-1.0], [1.0]], np.float32)


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
    rollout, _ = VALUES[kind]
    learner.observe(rollout, rollout.env_reward)
    learner.update(Mix(memory(rollout)).batches(learner.sampling), updates)
    return learner


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
    """Whether a learner made anew from another's state goes on to the very same state; returns both and a third that
    was made with another seed."""
    straight, resumed, other = make(0), make(5), make(1)
    batches = [iter(list(zip_batches(straight, rollout, demos))) for _ in range(4)]

    def step(learner, source):
        action, _ = learner.act(STATES, learner.begin(2), np.ones(2, bool), explore=True)
        learner.observe(rollout, rollout.env_reward)
        return action, learner.update(source, updates)

    for learner, source in ((straight, batches[0]), (other, batches[1])):
        if demos is not None:
            learner.update(source, updates)
        step(learner, source)
        step(learner, source)
    tensors, values = straight.state()
    resumed.load_state(tensors, values)
    for _ in range(2 * updates + (updates if demos is not None else 0)):
        next(batches[2])
    after = [step(learner, source) for learner, source in ((straight, batches[0]), (resumed, batches[2]))]
    return straight, resumed, other, after


def zip_batches(learner, rollout, demos):
    """Enough batches for `resumes`."""
    mix = Mix(memory(rollout), None if demos is None else memory(demos, imitate=np.ones(demos.first.shape, bool)))
    source = mix.batches(learner.sampling)
    for _ in range(60):
        yield next(source)
