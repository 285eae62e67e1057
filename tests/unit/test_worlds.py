import math
import subprocess
import sys

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from embodied.cameras.worlds import _step_s
from embodied.envs import WORLDS, world_id
from embodied.envs.humanoid import AZIMUTH, DISTANCE, ELEVATION, LOOK_AT, Humanoid
from embodied.envs.reacher import _joints
from embodied.envs.rendering import free_camera
from embodied.envs.world import LOOKS, World, graded
from embodied.envs.wrappers import SparseReward
from embodied.errors import UserError

LIMITS = {
    "desk-reach": 50, "desk-push": 80, "desk-press": 50, "desk-drawer": 50, "desk-close": 50, "desk-lift": 80,
    "desk-place": 120, "desk-stack": 150, "cartpole": 100, "reacher-red": 50, "reacher-green": 50, "reacher-blue": 50,
    "reacher-yellow": 50, "humanoid-stand": 100, "humanoid-kneel": 100, "humanoid-arms": 100, "humanoid-sit": 100,
    "humanoid-lie": 100, "humanoid-leg": 100, "drive-town": 400,
}  # fmt: skip
OURS = ("cartpole", "reacher-red", "humanoid-stand")


@pytest.fixture
def make():
    made = []

    def _make(name, **kwargs) -> World:
        made.append(gymnasium.make(world_id(name), disable_env_checker=True, **kwargs))
        return made[-1].unwrapped

    yield _make
    for env in made:
        env.close()


def test_every_world_is_registered_with_its_time_limit():
    assert {name: gymnasium.spec(world_id(name)).max_episode_steps for name in WORLDS} == LIMITS


@pytest.mark.parametrize("name", WORLDS)
def test_an_action_lasts_as_long_as_it_says(make, name):
    world = make(name)
    world.reset(seed=0)
    before = world.data.time
    world.step(np.zeros(world.action_space.shape, np.float32))
    assert world.data.time - before == pytest.approx(world.action_s)
    assert world.action_s == world.ctrl_dt


def test_importing_the_worlds_does_not_load_mujoco():
    code = "import sys, embodied.envs; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.filterwarnings("ignore:.*infinity. This is probably too")
@pytest.mark.parametrize(
    ("name", "obs"),
    [
        *((name, "state") for name in WORLDS),
        *((s, o) for s in (*OURS, "desk-drawer", "drive-town") for o in ("pixels", "mixed")),
    ],
)
def test_check_env(make, name, obs):
    check_env(make(name, obs=obs, image_size=24), skip_render_check=True)


@pytest.mark.parametrize("name", OURS)
def test_episodes_have_a_fixed_length_and_tell_success_at_every_step(name):
    env = gymnasium.make(world_id(name))
    env.action_space.seed(0)
    _, info = env.reset(seed=0)
    for step in range(LIMITS[name]):
        assert isinstance(info["is_success"], bool)
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert not terminated
        assert truncated == (step == LIMITS[name] - 1)
        assert 0 <= reward <= 1
    env.close()


@pytest.mark.parametrize("name", OURS)
def test_degrees_are_one_exactly_when_a_fact_holds_and_every_fact_is_shown_both_ways(make, name):
    world = make(name)
    world.reset(seed=0)
    rng = np.random.default_rng(0)
    truth = []
    for _ in range(150):
        world.sample_state(rng)
        degrees = world.degrees()
        assert tuple(degrees) == world.facts
        assert all(value == 1.0 or 0 <= value < 0.9 for value in degrees.values())
        assert world.success() == (world.env_reward() == 1.0)
        truth.append([value == 1.0 for value in degrees.values()])
    shown = np.mean(truth, axis=0)
    assert (shown > 0.03).all(), dict(zip(world.facts, shown, strict=True))
    assert (shown < 0.7).all(), dict(zip(world.facts, shown, strict=True))


@pytest.mark.parametrize("name", OURS)
def test_degrees_do_not_read_what_a_frame_cannot_show(make, name):
    world = make(name)
    world.reset(seed=0)
    world.sample_state(np.random.default_rng(1))
    before, frame = world.degrees(), world.frame()
    world.data.qvel[:] += 3.0
    world._refresh()
    assert world.degrees() == before
    np.testing.assert_array_equal(world.frame(), frame)


@pytest.mark.parametrize("name", OURS)
def test_frames_have_the_asked_size_and_change_with_the_camera(make, name):
    world = make(name, image_size=40)
    world.reset(seed=0)
    frame = world.frame()
    assert frame.shape == (40, 40, 3)
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    assert world.frame(image_size=96).shape == (96, 96, 3)
    assert (world.frame(world.cameras[1]) != frame).mean() > 0.05
    assert world.render().shape == (480, 480, 3)
    assert 40 < frame.mean() < 220  # lit, not glaring


@pytest.mark.parametrize("name", OURS)
def test_a_new_look_changes_the_frame_not_the_truth_and_can_be_undone(make, name):
    world = make(name)
    world.reset(seed=0)
    degrees, frame = world.degrees(), world.frame()
    rng = np.random.default_rng(0)
    looks = []
    for _ in range(3):
        world.randomize_look(rng)
        assert world.degrees() == degrees
        looks.append(world.frame())
        assert (looks[-1] != frame).mean() > 0.3
    assert (looks[0] != looks[1]).any()
    world.restore_look()
    world._refresh()
    np.testing.assert_array_equal(world.frame(), frame)


def test_looks_vary_by_episode_are_told_and_come_back_by_their_number(make):
    world = make("cartpole", obs="pixels", image_size=24, looks=[7, 3, 100])
    shown, start = {}, {}
    for k in range(8):
        obs, info = world.reset(seed=0 if not k else None)
        shown.setdefault(info["look"], []).append(world.model.mat_rgba.copy())
        assert world.step(np.zeros(1))[4]["look"] == info["look"]
        start[info["look"]] = obs
    assert set(shown) == {0, 1, 2}
    for colours in shown.values():
        assert all((each == colours[0]).all() for each in colours)
    assert (shown[0][0] != shown[1][0]).any()
    other = make("cartpole", looks=[100])
    assert other.reset(seed=5)[1]["look"] == 0
    np.testing.assert_array_equal(other.model.mat_rgba, shown[2][0])  # number 100, whoever shows it
    saved = world.get_state()
    again = make("cartpole", obs="pixels", image_size=24, looks=[7, 3, 100])
    again.reset(seed=9)
    again.set_state(saved)
    np.testing.assert_array_equal(again.frame(), world.frame())
    assert "look" not in make("cartpole").reset(seed=0)[1]


@pytest.mark.parametrize("name", [*OURS, "desk-drawer", "drive-town"])
def test_a_look_does_not_depend_on_those_before_it(make, name):
    def shown(world, look):
        world.randomize_look(np.random.default_rng([LOOKS, look]))
        return world.frame()

    world = make(name)
    world.reset(seed=0)
    for look in (3, 2, 1, 0):
        fresh = make(name)
        fresh.reset(seed=0)
        np.testing.assert_array_equal(shown(world, look), shown(fresh, look))


@pytest.mark.parametrize(("looks", "error"), [
    (-1, "CartPole: looks must be a number of looks, or a list of their numbers; got -1"),
    ([2, 2], r"CartPole: looks must be different numbers from 0; got \[2, 2\]"),
])  # fmt: skip
def test_looks_that_cannot_be_are_refused(make, looks, error):
    with pytest.raises(ValueError, match=error):
        make("cartpole", looks=looks)


@pytest.mark.parametrize("name", OURS)
def test_a_saved_state_goes_on_exactly(make, name):
    world = make(name)
    world.reset(seed=3)
    actions = [world.np_random.uniform(-1, 1, world.action_space.shape) for _ in range(8)]
    world.step(actions[0])
    saved = world.get_state()
    first = [world.step(a)[:2] for a in actions]
    last = world.frame()
    world.reset(seed=4)
    world.set_state(saved)
    for (obs, reward), action in zip(first, actions, strict=True):
        again, reward_again, *_ = world.step(action)
        np.testing.assert_array_equal(obs, again)
        assert reward == reward_again
    np.testing.assert_array_equal(world.frame(), last)


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("cartpole", {"camera": "back"}, "camera must be one of front, angle; got 'back'"),
        ("cartpole", {"obs": "image"}, "obs must be one of state, pixels, mixed; got 'image'"),
        ("reacher-red", {"task": "pink"}, "task must be one of red, green, blue, yellow; got 'pink'"),
        ("humanoid-stand", {"task": "fly"}, "task must be one of stand, kneel, arms, sit, lie, leg; got 'fly'"),
        ("humanoid-stand", {"control": "speed"}, "control must be one of torque, position; got 'speed'"),
        ("humanoid-stand", {"action_repeat": 0}, "action_repeat must be a whole number, at least 1; got 0"),
    ],
)
def test_bad_arguments_are_named(make, name, kwargs, words):
    with pytest.raises(ValueError, match=words):
        make(name, **kwargs)


def test_every_world_says_what_to_do(make):
    told = {name: make(name).instruction for name in WORLDS}
    assert told["cartpole"] == "balance the pole upright"
    assert (told["reacher-blue"], told["humanoid-kneel"]) == ("touch the blue ball", "kneel down")
    assert len(set(told.values())) == len(WORLDS)


def test_a_world_must_be_whole():
    class Half(World):
        def success(self):
            return True

    with pytest.raises(TypeError, match="abstract methods"):
        Half()


@pytest.mark.parametrize("name", ["desk-lift", "reacher-red"])
def test_a_calibration_projects_the_tip_onto_its_pixel(make, name):
    """The tip's mark is recoloured; the pixels that change are where the calibration says."""
    world = make(name)
    world.reset(seed=0)
    tip = world.model.site("tip").id
    world.model.site_group[tip], world.model.site_size[tip] = 0, 0.03
    for camera in world.cameras:
        given = world.calibration(camera, 96)
        assert given["size"] == [96, 96]
        intrinsics, extrinsics = np.array(given["intrinsics"]), np.array(given["extrinsics"])
        np.testing.assert_allclose(extrinsics[:3, :3] @ extrinsics[:3, :3].T, np.eye(3), atol=1e-9)
        assert np.linalg.det(extrinsics[:3, :3]) == pytest.approx(1)
        frames = []
        for colour in ([1, 0, 1, 1], [0, 1, 0, 1]):
            world.model.site_rgba[tip] = colour
            frames.append(world.frame(camera, 96).astype(int))
        seen = np.argwhere(np.abs(frames[0] - frames[1]).sum(-1) > 30)[:, ::-1].mean(0)
        u, v, z = intrinsics @ (extrinsics @ [*world.data.site_xpos[tip], 1])[:3]
        np.testing.assert_allclose([u / z, v / z], seen, atol=1.5)


def test_depth_is_metres_along_the_optical_axis(make):
    world = make("desk-lift")
    world.reset(seed=0)
    found = 0
    for camera in ("front", "side"):
        given, depth = world.calibration(camera, 96), world.depth(camera, 96)
        assert (depth.shape, depth.dtype) == ((96, 96), np.float32)
        for cube in ("red", "green", "blue"):
            top = np.array([*world.cube(cube), 1])
            top[2] += 0.02
            u, v, z = np.array(given["intrinsics"]) @ (np.array(given["extrinsics"]) @ top)[:3]
            found += abs(depth[round(v / z), round(u / z)] - z) < 0.01
    assert found >= 5  # the gripper may hide one
    assert world.frame("front", 96).dtype == np.uint8  # pictures again


def test_a_camera_on_the_robot_is_told_apart(make):
    world = make("desk-lift")
    assert [world.moves(camera) for camera in world.cameras] == [False, False, True]


def test_graded_falls_smoothly_below_the_threshold():
    values = [graded(d, 0.1, 0.5) for d in np.linspace(0, 3, 100)]
    assert values[0] == graded(0.1, 0.1, 0.5) == 1.0
    assert graded(0.1001, 0.1, 0.5) == pytest.approx(0.88, abs=1e-3)
    assert np.all(np.diff(values) <= 0)


def test_cartpole_by_hand(make):
    world = make("cartpole")
    world.reset(seed=0)
    for x, angle, facts in [
        (0.0, 0.1, {"pole_up", "cart_centre"}),
        (-0.5, math.pi, {"pole_down", "cart_left"}),
        (0.5, 2 * math.pi, {"pole_up", "cart_right"}),
        (0.2, math.pi / 2, set()),
    ]:
        world.data.qpos[:] = x, angle
        assert {fact for fact, value in world.degrees().items() if value == 1.0} == facts
        assert world.success() == ("pole_up" in facts)


@pytest.mark.parametrize("angle", [-0.5, 0.5])
def test_cartpole_is_balanced_by_simple_feedback(make, angle):
    world = make("cartpole")
    world.reset(seed=0)
    world.data.qpos[:], world.data.qvel[:] = (0, angle), 0
    held = 0
    for _ in range(100):
        x, cos, sin, speed, spin = world._state()
        world.step([4 * math.atan2(sin, cos) + 0.4 * spin + 0.3 * x + 0.3 * speed])
        held += world.success()
    assert held > 90


def test_reacher_joints_put_the_tip_where_asked(make):
    world = make("reacher-blue")
    world.reset(seed=0)
    for sign in (-1.0, 1.0):
        spot = world._ball("blue").copy()
        world.data.qpos[:2] = _joints(spot, sign)
        world._refresh()
        np.testing.assert_allclose(world._tip(), spot, atol=1e-6)
        assert world.success()
        assert world.degrees()["tip_blue"] == 1.0
        assert max(world.degrees()[f"tip_{c}"] for c in ("red", "green", "yellow")) < 0.9


def test_reacher_turns_as_told(make):
    world = make("reacher-red")
    world.reset(seed=0)
    start = world.data.qpos[0]
    for _ in range(10):
        world.step([0.5, 0.0])
    assert world.data.qpos[0] - start == pytest.approx(0.5 * 4.0 * 10 * world.ctrl_dt, rel=0.2)


def test_humanoid_moves_as_gymnasiums(make):
    ours = make("humanoid-stand")
    theirs = gymnasium.make("Humanoid-v5", disable_env_checker=True).unwrapped
    ours.reset(seed=0)
    theirs.reset(seed=0)
    theirs.set_state(ours.data.qpos.copy(), ours.data.qvel.copy())
    rng = np.random.default_rng(0)
    for _ in range(25):
        action = rng.uniform(-1, 1, 17)
        ours.step(action)
        theirs.step(0.4 * action)
    np.testing.assert_allclose(ours.data.qpos, theirs.data.qpos, atol=1e-6)
    theirs.close()


def test_humanoid_is_seen_as_in_vlm_rm(make):
    world = make("humanoid-stand")
    world.reset(seed=0)
    model = world.model
    free = free_camera(model, distance=DISTANCE, lookat=LOOK_AT, elevation=ELEVATION, azimuth=AZIMUTH)
    assert (free.distance, free.elevation, free.azimuth) == (3.5, -10, 180)
    difference = world.frame().astype(int) - world._frames().frame(world.data, free, 96, 96)
    assert (np.abs(difference) > 30).mean() < 0.01


@pytest.mark.parametrize("posture", ["standing", "kneeling", "sitting", "lying", "upside_down", "one_leg"])
def test_humanoid_postures_are_what_they_are_called(make, posture):
    world = make("humanoid-stand")
    assert isinstance(world, Humanoid)
    world.reset(seed=0)
    rng = np.random.default_rng(0)
    held = []
    for _ in range(25):
        mujoco.mj_resetData(world.model, world.data)
        world._pose(posture, rng)
        world._refresh()
        degrees = world.degrees()
        held.append(degrees["one_leg_up" if posture == "one_leg" else posture] == 1.0)
        others = {"standing", "kneeling", "sitting", "lying", "upside_down", "one_leg_up"}
        others -= {"standing", "one_leg_up"} if posture == "one_leg" else {posture}
        assert all(degrees[other] < 1.0 for other in others) or not held[-1]
        mujoco.mj_collision(world.model, world.data)
        assert any(world.model.geom("floor").id in pair for pair in world.data.contact.geom)  # it rests on the floor
    assert np.mean(held) > 0.75


@pytest.mark.parametrize(
    ("kind", "posture"),
    [("stand", "standing"), ("kneel", "kneeling"), ("sit", "sitting"), ("lie", "lying"), ("leg", "one_leg")],
)
def test_humanoid_tasks_are_solved_by_their_posture_and_say_how_long_it_was_held(make, kind, posture):
    world = make(f"humanoid-{kind}")
    assert isinstance(world, Humanoid)
    world.reset(seed=0)
    rng = np.random.default_rng(1)
    for _ in range(50):
        world._pose(posture, rng)
        world._refresh()
        if world.success():
            break
    start, right = world.data.qpos.copy(), world.success()
    assert right
    world.reset(seed=0)
    told = []
    for step in range(80):  # held by hand in the first half, then let go upside down
        if step < 40:
            world.data.qpos[:], world.data.qvel[:] = start, 0
        elif step == 40:
            world._pose("upside_down", rng)
        info = world.step(np.zeros(17, np.float32))[4]
        told.append(info["is_success"])
        assert info["judge/held"] == pytest.approx(np.mean(told[-67:]))  # of one second
    assert sum(told[:40]) > 30
    assert not told[40]
    saved = world.get_state()
    held = world.step(np.zeros(17))[4]["judge/held"]
    world.reset(seed=1)
    assert world.step(np.zeros(17))[4]["judge/held"] in (0.0, 1.0)  # nothing is left of the last episode
    world.set_state(saved)
    assert world.step(np.zeros(17))[4]["judge/held"] == held


def test_a_held_action_is_one_that_is_given_again(make):
    held, again = make("humanoid-kneel", action_repeat=3), make("humanoid-kneel")
    for world in (held, again):
        world.reset(seed=0)
    assert (held.action_s, again.action_s) == pytest.approx((0.045, 0.015))
    assert _step_s(held) == held.action_s
    rng, right = np.random.default_rng(0), []
    for _ in range(30):
        action = 0.5 * rng.uniform(-1, 1, 17)
        state, *_, info = held.step(action)
        right.append(info["is_success"])
        for _ in range(3):
            twin = again.step(action)[0]
        np.testing.assert_allclose(state, twin, atol=1e-4)
        assert info["judge/held"] == pytest.approx(np.mean(right[-22:]))  # of one second


def test_joints_go_where_they_are_told_with_no_more_torque_than_gymnasium_allows(make):
    world, plain = make("humanoid-sit", control="position"), make("humanoid-sit")
    limit = 0.4 * plain.model.actuator_gear[:, 0]
    joints = world.model.actuator_trnid[:, 0]
    elbow = [world.model.actuator(i).name for i in range(17)].index("right_elbow")
    where = int(world.model.jnt_qposadr[joints[elbow]])
    assert plain.data.ctrl.shape == world.data.ctrl.shape == world.action_space.shape
    ends = {-1.0: world.model.jnt_range[joints[elbow], 0], 0.0: 0.0, 1.0: world.model.jnt_range[joints[elbow], 1]}
    for told, angle in ends.items():
        world.reset(seed=0)
        action = np.zeros(17)
        action[elbow] = told
        for _ in range(60):
            world.step(action)
            assert (np.abs(world.data.actuator_force) <= limit + 1e-6).all()
        assert world.data.qpos[where] == pytest.approx(angle, abs=0.15)


def test_one_leg_up_wants_the_other_foot_down(make):
    world = make("humanoid-leg")
    assert isinstance(world, Humanoid)
    world.reset(seed=0)
    rng = np.random.default_rng(0)
    while not world.success():
        world._pose("one_leg", rng)
        world._refresh()
    world.data.qpos[2] += 0.3  # a jump
    world._refresh()
    assert world.degrees()["standing"] == 1
    assert world.degrees()["one_leg_up"] < 0.9
    world._pose("standing", rng)
    world._refresh()
    assert world.degrees()["one_leg_up"] < 0.9


def test_sparse_reward_is_success():
    world = SparseReward(gymnasium.make("embodied/cartpole-v0"))
    world.reset(seed=0)
    seen = set()
    for _ in range(60):
        *_, reward, _, _, info = world.step(np.array([1.0], np.float32))
        assert reward == float(info["is_success"])
        seen.add(reward)
    assert seen == {0.0, 1.0}
    with pytest.raises(UserError, match="CartPole-v1 must tell is_success at every step"):
        SparseReward(gymnasium.make("CartPole-v1"))
