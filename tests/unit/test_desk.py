"""The desk: what it tells about itself is true, its arm goes where it is sent, and it can be put back exactly."""

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from embodied.envs.desk import DRAWER_OPEN, Desk
from embodied.envs.desk_scene import CUBES, OPENING
from embodied.envs.tasks import DESK


@pytest.fixture(scope="module")
def desk():
    world = Desk(task="lift")
    yield world
    world.close()


@pytest.mark.parametrize("obs", ["state", "pixels", "mixed"])
@pytest.mark.parametrize("action_dim", [4, 7])
def test_gymnasium_accepts_it(obs, action_dim):
    world = Desk(task="drawer", action_dim=action_dim, obs=obs, image_size=32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*infinity.*")  # our state has no bounds
        check_env(world, skip_render_check=True)
    world.close()


@pytest.mark.parametrize("task", DESK)
def test_no_task_starts_solved(task):
    world = Desk(task=task)
    for seed in range(10):
        obs, info = world.reset(seed=seed)
        assert world.observation_space.contains(obs)
        assert not info["is_success"]
        assert np.abs(obs).max() < 5
        spots = np.stack([world.cube(cube)[:2] for cube in CUBES])
        assert min(np.linalg.norm(spots[i] - spots[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 0.08
        assert world.drawer > 0.09 if task == "close" else world.drawer < 0.001


def test_a_seed_decides_the_start():
    world = Desk(task="stack")
    first, again, other = (world.reset(seed=seed)[0] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_gripper_reads_itself(desk):
    desk.reset(seed=0)
    for tip, opening in ((np.array([-0.05, 0.1, 0.2]), 0.02), (np.array([0.05, -0.1, 0.1]), 0.07)):
        desk.put_arm(tip, opening)
        desk.settle()
        told = desk.signals()
        np.testing.assert_allclose([told[f"gripper_{axis}"] for axis in "xyz"], tip, atol=5e-3)
        assert told["gripper_opening"] == pytest.approx(opening / OPENING, abs=1e-3)
        assert list(told) == ["gripper_x", "gripper_y", "gripper_z", "gripper_opening"]


@pytest.mark.parametrize(("kwargs", "instruction"), [
    ({"task": "reach"}, "touch the red cube"),
    ({"task": "push"}, "push the red cube onto the yellow mark"),
    ({"task": "place", "target": "blue"}, "put the blue cube in the tray"),
    ({"task": "stack"}, "put the red cube on the green cube"),
])  # fmt: skip
def test_an_instruction_names_its_cube(kwargs, instruction):
    world = Desk(**kwargs)
    assert world.instruction == instruction
    world.close()


def test_degrees_are_one_or_well_below_and_every_fact_is_sampled(desk):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(600):
        desk.sample_state(rng)
        told = desk.degrees()
        assert tuple(told) == desk.facts
        rows.append(list(told.values()))
    degrees = np.array(rows)
    assert np.isfinite(degrees).all()
    assert degrees.min() >= 0
    assert ((degrees == 1) | (degrees < 0.9)).all()
    holds = dict(zip(desk.facts, (degrees == 1).mean(0), strict=True))
    assert min(holds.values()) > 0.07, holds
    assert max(holds.values()) < 0.6, holds


def put(world, **places):
    """Cubes at places, the arm out of the way."""
    world.reset(seed=0)
    world.put_arm(np.array([-0.1, 0.2, 0.3]), 0.05)
    for cube, at in places.items():
        world.put_cube(cube, np.array(at))
    world.settle()
    return world.degrees()


def test_facts_of_cubes(desk):
    far = {"red": (-0.1, 0.0, 0.02), "green": (0.0, -0.1, 0.02), "blue": (0.08, -0.02, 0.02)}
    tray, mark = (0.2, -0.17, 0.026), (-0.1, -0.21, 0.02)
    told = put(desk, **far)
    assert not any(told[fact] == 1 for fact in desk.facts if fact.startswith(CUBES))
    assert told["arm_raised"] == 1
    assert put(desk, **far | {"blue": tray})["blue_in_tray"] == 1
    assert put(desk, **far | {"red": mark})["red_on_mark"] == 1
    over_mark = put(desk, **far | {"red": (mark[0], mark[1], 0.1)})
    assert over_mark["red_on_mark"] < 1
    assert over_mark["red_lifted"] == 1
    assert put(desk, **far | {"red": (tray[0], tray[1], 0.08)})["red_in_tray"] < 1
    stacked = put(desk, **far | {"red": (0.0, -0.1, 0.06)})
    assert stacked["red_on_green"] == 1
    assert stacked["red_on_blue"] < 1
    assert stacked["red_lifted"] < 1
    assert put(desk, **far | {"red": (0.03, -0.1, 0.06)})["red_on_green"] < 1


def test_a_stack_still_in_the_hand_is_not_done(desk):
    put(desk, red=(0.0, -0.1, 0.06), green=(0.0, -0.1, 0.02))
    assert desk.degree("red_on_green") == 1
    desk.put_arm(np.array([0.0, -0.1, 0.06]), 0.04)
    desk.data.ctrl[7] = 0.0
    desk.settle()
    assert desk.held("red")
    assert desk.degree("red_on_green") < 1


def test_degrees_rise_on_the_way(desk):
    desk.reset(seed=0)
    address = desk.joint_address("drawer")
    opened = []
    for share in np.linspace(0, 1.1, 12):
        desk.data.qpos[address] = share * DRAWER_OPEN
        desk.settle()
        opened.append(desk.degree("drawer_open"))
    assert (np.diff(opened[:10]) > 0).all()
    assert opened[-1] == 1
    towards = []
    for height in (0.3, 0.2, 0.15, 0.1):
        desk.put_arm(desk.site("button") + np.array([0, 0, height - 0.068]), 0.0)
        desk.settle()
        towards.append(desk.degree("button_pressed"))
    assert (np.diff(towards) > 0).all()


def test_unknown_fact_lists_the_known(desk):
    with pytest.raises(ValueError, match=r"fact must be one of drawer_open.*got 'drawer_ajar'"):
        desk.degree("drawer_ajar")


@pytest.mark.parametrize("action_dim", [4, 7])
def test_the_tip_goes_where_it_is_sent(action_dim):
    world = Desk(task="reach", action_dim=action_dim)
    world.reset(seed=0)
    for direction in (np.array([1.0, 0, 0]), np.array([0, -1.0, 0]), np.array([0, 0, -0.5])):
        before = world.site("tip").copy()
        for moving in (1, 1, 1, 1, 0, 0, 0, 0):
            world.step(np.concatenate([moving * direction, np.zeros(action_dim - 4), [1.0]]))
        np.testing.assert_allclose(world.site("tip") - before, 0.08 * direction, atol=0.003)
        down = world.data.site("tip").xmat.reshape(3, 3)[:, 2]
        assert down[2] < -0.999
    assert world.opening == pytest.approx(OPENING, abs=0.002)


def test_seven_dimensions_turn_the_gripper():
    world = Desk(task="reach", action_dim=7)
    world.reset(seed=0)
    for _ in range(5):
        world.step(np.array([0, 0, 0, 0, 0, 1.0, 0]))
    for _ in range(4):
        world.step(np.zeros(7))
    across = world.data.site("tip").xmat.reshape(3, 3)[:, 1]
    assert np.arctan2(-across[0], across[1]) == pytest.approx(0.5, abs=0.03)
    for _ in range(40):
        world.step(np.array([0, 0, 0, 1.0, 0, 0, 0]))
    assert world.data.site("tip").xmat.reshape(3, 3)[2, 2] < 0.25  # tilt stops short of pointing up


def test_the_tip_stays_in_its_box():
    world = Desk(task="reach")
    rng = np.random.default_rng(0)
    world.reset(seed=0)
    for _ in range(12):
        action = np.sign(rng.uniform(-1, 1, 4))
        for _ in range(15):
            world.step(action)
            assert (np.abs(world.site("tip") - [0.04, 0, 0.166]) < [0.26, 0.32, 0.2]).all()
    assert np.isfinite(world.data.qpos).all()


def test_going_on_from_a_saved_state_is_exact():
    world, other = Desk(task="stack", action_dim=7), Desk(task="stack", action_dim=7)
    rng = np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (40, 7)) + np.array([0, 0, -0.3, 0, 0, 0, 0])
    world.reset(seed=2)
    other.reset(seed=9)
    for action in actions[:20]:
        world.step(action)
    saved, now = world.get_state(), (world._state(), world._proprio())
    first = [world.step(action)[:2] for action in actions[20:]]
    for again in (world, other):
        again.set_state(saved)
        np.testing.assert_array_equal(again._state(), now[0])
        np.testing.assert_array_equal(again._proprio(), now[1])
        for action, (obs, reward) in zip(actions[20:], first, strict=True):
            new_obs, new_reward, *_ = again.step(action)
            np.testing.assert_array_equal(new_obs, obs)
            assert new_reward == reward


def test_a_look_is_drawn_and_undone(desk):
    desk.reset(seed=0)
    plain = desk.frame().astype(int)
    looks = []
    for seed in range(3):
        desk.randomize_look(np.random.default_rng(seed))
        looks.append(desk.frame().astype(int))
        assert np.abs(looks[-1] - plain).mean() > 5
    assert np.abs(looks[0] - looks[1]).mean() > 5
    desk.restore_look()
    np.testing.assert_array_equal(desk.frame(), plain)


@pytest.mark.parametrize(("cube", "channel"), [("red", 0), ("green", 1), ("blue", 2)])
def test_a_cube_keeps_its_colour_in_every_look(desk, cube, channel):
    rng = np.random.default_rng(0)
    for _ in range(8):
        desk.reset(seed=0)
        desk.randomize_look(rng)
        with_cube = desk.frame(image_size=64).astype(int)
        desk.put_cube(cube, np.array([0.0, 0.0, -2.0]))
        desk.settle()
        changed = np.abs(desk.frame(image_size=64) - with_cube).sum(-1) > 60
        desk.restore_look()
        assert changed.sum() >= 4
        mean = with_cube[changed].mean(0)
        assert mean.argmax() == channel


def test_what_a_degree_depends_on_shows_in_the_frame(desk):
    """Drawer, button, gripper and a cube's height each change many pixels of the reward camera."""
    desk.reset(seed=0)
    desk.settle()
    plain = desk.frame().astype(int)
    for name, value in (("drawer", 0.09), ("button", 0.02), ("finger_left", 0.04)):
        address = desk.joint_address(name)
        before = desk.data.qpos[address]
        desk.data.qpos[address] = value if abs(value - before) > 0.015 else 0.0
        desk.settle()
        assert (np.abs(desk.frame() - plain).sum(-1) > 40).sum() >= 6, name
        desk.data.qpos[address] = before
    desk.put_cube("red", desk.cube("red") + np.array([0, 0, 0.05]))
    desk.settle()
    assert (np.abs(desk.frame() - plain).sum(-1) > 40).sum() >= 20


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"task": "drawr"}, r"task must be one of reach, .*got 'drawr'\. Did you mean 'drawer'\?"),
        ({"task": "push", "target": "blue"}, r"target of task 'push' must be one of red; got 'blue'"),
        ({"task": "stack", "target": "red"}, r"target of task 'stack' must be one of green, blue; got 'red'"),
        ({"action_dim": 6}, r"action_dim must be 4 or 7; got 6"),
    ],
)
def test_bad_arguments(kwargs, text):
    with pytest.raises(ValueError, match=text):
        Desk(**kwargs)


def test_limits_that_are_passed_are_counted_and_kept():
    """None at rest; pushing on below the button passes the force limit, and turning back at once the torque's."""
    world = Desk(task="press")
    world.reset(seed=0)
    names = ("force_limit_passed", "torque_limit_passed")
    for _ in range(3):
        told = world.step(np.array([0, 0, 0, 1.0]))[-1]
    assert [told[name] for name in names] == [0, 0]
    world.put_arm(world.site("button") + np.array([0, 0, 0.03]), 0.0)
    world.settle()
    for _ in range(20):
        told = world.step(np.array([0, 0, -1.0, -1.0]))[-1]
    assert told["force_limit_passed"] > 5
    for sign in (1, -1) * 4:
        told = world.step(np.array([sign, -sign, sign, -1.0]))[-1]
    assert told["torque_limit_passed"] > 2
    other = Desk(task="press")
    other.reset(seed=1)
    other.set_state(world.get_state())
    action = np.array([0, 0, 0, -1.0])
    assert other.step(action)[-1] == world.step(action)[-1]
    assert [world.reset(seed=0)[1][name] for name in names] == [0, 0]
