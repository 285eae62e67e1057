"""Robots for tests of what should not happen: made with patience, closed in the end."""

from __future__ import annotations

import contextlib

import numpy as np

from embodied.robots.env import RobotEnv
from embodied.robots.watchdog import MaxAge
from tests.arms import LIMITS
from tests.hostile_arm import HZ

STILL, FORWARD = np.zeros(2), np.array([1.0, 0.0])
PATIENT = {"camera_s": 5.0, "observation_s": 5.0, "policy_s": 5.0, "operator_s": 60.0, "frozen_s": None}


@contextlib.contextmanager
def maker():
    """Makes robots of arms, with the ages of `PATIENT`; closes them all at the end."""
    made = []

    def make(arm, limits=LIMITS, **options):
        ages = PATIENT | options.pop("ages", {})
        options = {"ctrl_hz": HZ, "absolute": ("grip",), "max_age": MaxAge(**ages)} | options
        made.append(RobotEnv(arm, limits, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def steps(env, action=FORWARD, most=200):
    """Steps until the episode ends; the last one's info."""
    for _ in range(most):
        *_, terminated, _, info = env.step(action)
        if terminated:
            return info
    raise AssertionError("the episode did not end")
