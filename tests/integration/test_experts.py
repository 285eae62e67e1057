"""The scripted experts solve the desk's tasks with friction alone, and resting solves none."""

import numpy as np
import pytest

from embodied.envs.desk import Desk
from embodied.envs.experts import expert
from embodied.envs.tasks import DESK

TASKS = [(task, None, 4) for task in DESK] + [("place", "blue", 4), ("stack", "blue", 7), ("drawer", None, 7)]


def run(world, act, steps):
    done = False
    for _ in range(steps):
        done = world.step(act(world))[4]["is_success"]
    return done


@pytest.mark.parametrize(("task", "target", "action_dim"), TASKS)
def test_expert_solves(task, target, action_dim):
    world = Desk(task=task, target=target, action_dim=action_dim)
    solved = 0
    for seed in range(1000, 1010):
        world.reset(seed=seed)
        solved += run(world, expert(world), DESK[task].steps)
    assert solved == 10


@pytest.mark.parametrize("task", DESK)
def test_rest_solves_nothing(task):
    world = Desk(task=task)
    for seed in range(3):
        world.reset(seed=seed)
        assert not run(world, lambda w: np.zeros(w.action_dim), DESK[task].steps)


def test_noise_is_survived_and_repeatable():
    world = Desk(task="place")
    ends, solved = [], 0
    for seed in (0, 0, 1, 2, 3):
        world.reset(seed=seed)
        solved += run(world, expert(world, noise=0.3, rng=np.random.default_rng(seed)), DESK["place"].steps)
        ends.append(world.data.qpos.copy())
    assert solved >= 4
    np.testing.assert_array_equal(ends[0], ends[1])


def test_an_opened_gripper_drops_the_cube():
    world = Desk(task="lift")
    world.reset(seed=0)
    assert run(world, expert(world), 40)
    assert not run(world, lambda w: np.array([0, 0, 0, 1.0]), 15)
    assert world.cube("red")[2] < 0.025


def test_noise_needs_a_generator():
    world = Desk(task="reach")
    with pytest.raises(ValueError, match="rng must be given"):
        expert(world, noise=0.1)


def test_an_expert_serves_one_world():
    one, other = Desk(task="reach"), Desk(task="reach")
    one.reset(seed=0)
    act = expert(one)
    with pytest.raises(ValueError, match="Make one for each world"):
        act(other)
