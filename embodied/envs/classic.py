"""Gymnasium's classic control as VLM-RM used it: fixed-length episodes without an early end.

An early end would tell the learner what the reward should (Rocamonde et al., arXiv 2310.12921, section 4.2).
Departures from the authors' code are named in each class.
"""

from __future__ import annotations

import math
import os
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv, Continuous_MountainCarEnv

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory and needs no screen


class FixedCartPole(CartPoleEnv):
    """CartPole that goes on after a fall: position held at the rail's ends, angle in [-pi, pi].

    The reward is 1 while cart and pole are within Gymnasium's bounds, and `is_success` says whether they never left
    them in this episode. Against the rail's end the cart also stops; in the authors' code its speed goes on growing.

    Args:
        kwargs: as of Gymnasium's `CartPoleEnv`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        high = np.array([self.x_threshold, np.inf, math.pi, np.inf], np.float32)
        self.observation_space = spaces.Box(-high, high)
        self.left_bounds = False

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        obs, _ = super().reset(seed=seed, options=options)
        self.left_bounds = False
        return obs, {"is_success": True}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, Literal[False], dict]:
        _, _, out, _, _ = super().step(action)
        self.steps_beyond_terminated = None
        self.left_bounds = self.left_bounds or out
        assert self.state is not None
        x, speed, angle, spin = self.state
        if abs(x) >= self.x_threshold:
            x, speed = math.copysign(self.x_threshold, x), 0.0
        self.state = np.array([x, speed, math.remainder(angle, 2 * math.pi), spin])
        return self.state.astype(np.float32), float(not out), False, False, {"is_success": not self.left_bounds}


class FixedMountainCar(Continuous_MountainCarEnv):
    """Continuous mountain car whose goal holds the car: once x >= 0.45 it stays, and `is_success` with it.

    The reward is Gymnasium's until then (100 on arrival, less the force), then 0. In the authors' code the car can
    roll back from the goal, and one success marks every later episode.

    Args:
        kwargs: as of Gymnasium's `Continuous_MountainCarEnv`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arrived = False

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        obs, _ = super().reset(seed=seed, options=options)
        self.arrived = False
        return obs, {"is_success": False}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, Literal[False], dict]:
        reward = 0.0
        if not self.arrived:
            _, reward, self.arrived, _, _ = super().step(action)
            if self.arrived:
                self.state[1] = 0.0
        return np.array(self.state, np.float32), float(reward), False, False, {"is_success": self.arrived}
