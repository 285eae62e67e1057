"""Worlds in which somebody else acts in the same steps of every episode, by what the world's state tells alone."""

import gymnasium
import numpy as np
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

from embodied.envs.interventions import Intervened
from tests.probes import make_probe

GIVEN = 0.5  # what the person says, always
STEPS = (2, 3)  # actions of an episode, from 0, that are the person's


def make_helped(limit=6, steps=STEPS, given=GIVEN, **kwargs):
    """A probe world with a person."""
    world = make_probe(limit, **kwargs)
    probe = world.unwrapped
    return Intervened(world, lambda: np.array([given], np.float32) if probe.steps in steps else None)


def pendulum():
    """A world of a suite with a person, whose state can be kept."""
    world = InvertedPendulumEnv()
    return Intervened(world, lambda: np.full(1, 3.0 * GIVEN) if round(world.data.time / world.dt) in STEPS else None)


if "HelpedPendulum-v0" not in gymnasium.registry:
    gymnasium.register("HelpedPendulum-v0", entry_point="tests.helped:pendulum")
