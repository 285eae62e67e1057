"""A world of any spaces that keeps what it got and tells what it is asked to; without torch: workers start fast."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Echo(gymnasium.Env):
    """Keeps the actions it got, and tells what it is asked to; refuses an action that is none of its space."""

    def __init__(self, action_space, observation_space=None, tells=None, reward=0.0, info=None):
        self.action_space = action_space
        self.observation_space = observation_space or spaces.Box(0, 1, (2,), np.float32)
        self.tells, self.reward, self.info, self.got, self.told = tells, reward, info or {}, [], []

    def _obs(self):
        self.told.append(self.observation_space.sample() if self.tells is None else self.tells)
        return self.told[-1]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action), (self.action_space, action)
        self.got.append(action)
        return self._obs(), self.reward, False, False, self.info


gymnasium.register("Echo-v0", entry_point=Echo, max_episode_steps=20)
