import math
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from embodied.envs import bridge, suites
from embodied.errors import UserError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*infinity. This is probably too"),  # what check_env thinks of others' spaces
    pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric and normalized space"),
]

CORE = {"CartPole-v1": 200, "MountainCarContinuous-v0": 999, "HalfCheetah-v5": 1000, "InvertedPendulum-v5": 1000}
SUITES = {  # id -> (package, time limit)
    "FetchReach-v4": ("gymnasium_robotics", 50),
    "metaworld/reach-v3": ("metaworld", 500),
    "dm_control/walker-walk-v0": ("shimmy", 1000),
}
TELL = {"CartPole-v1", "MountainCarContinuous-v0", "FetchReach-v4", "metaworld/reach-v3"}  # success, at every step
RESUMED = {  # those that keep most outside `qpos` and `qvel`, or draw other parts of the model each time
    "FetchPickAndPlace-v4": "gymnasium_robotics",
    "AdroitHandDoor-v1": "gymnasium_robotics",
    "metaworld/drawer-open-v3": "metaworld",
    "metaworld/door-lock-v3": "metaworld",
    "metaworld/sweep-v3": "metaworld",
    "dm_control/reacher-easy-v0": "shimmy",
    "dm_control/point_mass-hard-v0": "shimmy",
    "dm_control/lqr-lqr_2_1-v0": "shimmy",
    "dm_control/swimmer-swimmer6-v0": "shimmy",
    "libero/libero_object/0": "libero",
}


@pytest.fixture
def make():
    made = []

    def _make(id, **kwargs):
        made.append(bridge.make(id, **kwargs))
        return made[-1]

    yield _make
    for env in made:
        env.close()


def _face(make, id, steps):
    """What every bridged environment must do."""
    state = make(id, image_size=32)
    assert isinstance(state.observation_space, spaces.Box)
    assert state.observation_space.dtype == np.float32
    obs, info = state.reset(seed=7)
    again, _ = make(id).reset(seed=7)
    np.testing.assert_array_equal(obs, again)
    state.action_space.seed(0)
    for _ in range(3):
        obs, reward, _, _, info = state.step(state.action_space.sample())
        assert state.observation_space.contains(obs)
        assert isinstance(reward, float)
        assert isinstance(info.get("is_success"), bool) == (id in TELL)  # unknown is not no
    assert state.get_wrapper_attr("_max_episode_steps") == steps
    frame = state.get_wrapper_attr("frame")()
    assert frame.shape == (32, 32, 3)
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    assert frame.std() > 3
    assert state.get_wrapper_attr("frame")(image_size=48).shape == (48, 48, 3)
    assert state.render().ndim == 3
    for form in ("pixels", "mixed"):
        env = make(id, obs=form, image_size=32)
        check_env(env.unwrapped, skip_render_check=True)
        obs, _ = env.reset(seed=0)
        assert (obs if form == "pixels" else obs["pixels"]).shape == (32, 32, 3)


def _resumes(make, id):
    """From a saved state another copy of the environment goes on in the same way."""
    first, second = make(id).unwrapped, make(id).unwrapped
    first.reset(seed=1)
    second.reset(seed=2)
    first.action_space.seed(0)
    actions = [first.action_space.sample() for _ in range(8)]
    for action in actions[:3]:
        first.step(action)
    second.set_state(first.get_state())
    np.testing.assert_array_equal(first.frame(), second.frame())
    for action in actions:
        (obs, reward, *_), (obs_2, reward_2, *_) = first.step(action), second.step(action)
        np.testing.assert_array_equal(obs, obs_2)
        assert reward == reward_2
    np.testing.assert_array_equal(first.frame(), second.frame())


@pytest.mark.parametrize("id", CORE)
def test_gymnasiums_environments_have_our_face(make, id):
    _face(make, id, CORE[id])


@pytest.mark.parametrize("id", [*CORE, "Humanoid-v5"])
def test_gymnasiums_environments_resume(make, id):
    _resumes(make, id)


@pytest.mark.suites
@pytest.mark.parametrize("id", SUITES)
def test_suites_have_our_face(make, id):
    package, steps = SUITES[id]
    _importorskip(package)
    _face(make, id, steps)


@pytest.mark.suites
@pytest.mark.parametrize("id", RESUMED)
def test_suites_resume(make, id):
    _importorskip(RESUMED[id])
    _resumes(make, id)


def test_data_bring_a_suites_world_along_only_where_it_is_installed_and_nobodys_code(monkeypatch):
    there = {"metaworld"}
    monkeypatch.setattr(suites.importlib.util, "find_spec", lambda name: name if name in there else None)
    assert suites.has_suite("metaworld/reach-v3")
    assert not suites.has_suite("libero/libero_object/0")
    assert not suites.has_suite("theirs:metaworld/reach-v3")
    assert not suites.has_suite("CartPole-v1")


@pytest.mark.suites
def test_what_cannot_resume_says_so(make):
    _importorskip("gymnasium_robotics")
    for id in ("FrankaKitchen-v1", "Acrobot-v1"):
        env = make(id)
        env.reset(seed=0)
        with pytest.raises(UserError, match="cannot be resumed"):
            env.unwrapped.get_state()


def _importorskip(package):
    """As pytest's, but without the packages' notes on other versions of themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(package)


@pytest.mark.parametrize("name", ["reacher-red", "embodied/reacher-red-v0"])
def test_our_worlds_by_either_name(make, name):
    env = make(name, camera="side", image_size=40, max_episode_steps=3)
    env.reset(seed=0)
    assert env.unwrapped.camera == "side"
    assert [env.step(env.action_space.sample())[3] for _ in range(3)] == [False, False, True]
    assert env.get_wrapper_attr("frame")().shape == (40, 40, 3)


# Classic control as in VLM-RM ----------------------------------------------------------------------------


def test_cartpole_goes_on_after_a_fall_within_bounds(make):
    env = make("CartPole-v1")
    env.reset(seed=0)
    successes, rewards, seen = [], [], []
    for step in range(200):
        obs, reward, terminated, truncated, info = env.step(1)
        assert not terminated
        assert truncated == (step == 199)
        successes.append(info["is_success"])
        rewards.append(reward)
        seen.append(obs)
    assert successes[0]
    assert not successes[-1]
    assert successes == sorted(successes, reverse=True)  # once lost, lost for the episode
    assert rewards[0] == 1.0
    assert 0.0 in rewards
    angles, places = np.array(seen)[:, 2], np.array(seen)[:, 0]
    assert np.abs(places).max() == pytest.approx(2.4)
    assert np.abs(angles).max() > 1  # it did fall
    assert np.abs(angles).max() <= np.float32(math.pi)
    assert env.reset()[1]["is_success"]


def test_cartpole_counts_bounds_on_the_spot(make):
    env = make("CartPole-v1")
    env.reset(seed=0)
    env.unwrapped.inner.state = np.array([0.0, 0.0, 1.0, 0.0])
    assert env.step(0)[1] == 0.0
    env.unwrapped.inner.state = np.zeros(4)
    _, reward, _, _, info = env.step(0)
    assert reward == 1.0
    assert not info["is_success"]  # it had left them before


def test_mountain_car_stays_at_the_goal_and_forgets_it_on_reset(make):
    env = make("MountainCarContinuous-v0")
    env.reset(seed=0)
    env.unwrapped.inner.state = np.array([0.44, 0.05])
    obs, reward, terminated, _, info = env.step([1.0])
    assert info["is_success"]
    assert not terminated
    assert reward == pytest.approx(99.9)
    for _ in range(50):
        later, reward, terminated, _, info = env.step([-1.0])
        assert info["is_success"]
        assert not terminated
        assert reward == 0.0
        assert later[0] == obs[0] >= 0.45
    assert not env.reset()[1]["is_success"]
    assert not env.step([0.0])[4]["is_success"]


# Gymnasium's and the suites' own --------------------------------------------------------------------------


def test_unhealthy_does_not_end_an_episode_unless_asked(make):
    for kwargs, expected in (({}, False), ({"terminate_when_unhealthy": True}, True)):
        env = make("Humanoid-v5", **kwargs)
        env.reset(seed=0)
        ended = [env.step(np.zeros(17, np.float32))[2] for _ in range(100)]
        assert any(ended) == expected


def test_the_same_numbers_as_the_bare_environment(make):
    ours, theirs = make("HalfCheetah-v5"), gymnasium.make("HalfCheetah-v5")
    a, b = ours.reset(seed=3)[0], theirs.reset(seed=3)[0]
    np.testing.assert_array_equal(a, b.astype(np.float32))
    for _ in range(5):
        action = theirs.action_space.sample()
        (a, reward, *_), (b, reward_2, *_) = ours.step(action), theirs.step(action)
        np.testing.assert_array_equal(a, b.astype(np.float32))
        assert reward == reward_2
    theirs.close()


def test_every_episode_starts_from_the_environments_own_generator(make):
    env = make("Humanoid-v5")
    env.reset(seed=5)
    saved = env.unwrapped.np_random.bit_generator.state
    first = [env.reset()[0] for _ in range(2)]
    env.unwrapped.np_random.bit_generator.state = saved
    np.testing.assert_array_equal(first[0], env.reset()[0])
    assert (first[0] != first[1]).any()


def test_a_free_camera_sees_from_where_it_is_told(make):
    vlm_rm = {"distance": 3.5, "lookat": [0.0, 0.0, 1.0], "elevation": -10.0, "azimuth": 180.0}
    env = make("Humanoid-v5", camera=vlm_rm, image_size=48)
    env.reset(seed=0)
    assert env.unwrapped.camera.azimuth == 180
    frame = env.get_wrapper_attr("frame")()
    assert (frame != env.get_wrapper_attr("frame")(camera="track")).any()
    assert (frame != env.get_wrapper_attr("frame")(camera=vlm_rm | {"azimuth": 90.0})).any()


@pytest.mark.suites
def test_meta_worlds_corner_cameras_are_turned_upright(make):
    _importorskip("metaworld")
    env = make("metaworld/reach-v3", image_size=64)
    env.reset(seed=0)
    world = env.unwrapped
    assert world.camera == "corner2"
    upright = world.frame()
    raw = world._renderer.frame(world.inner.data, "corner2", 64, 64)
    np.testing.assert_array_equal(upright, raw[::-1, ::-1])
    # The robot is red and hangs its hand over the table from above: more red in the upper half.
    red = upright[..., 0].astype(int) - upright[..., 1] > 60
    assert red[:32].sum() > red[32:].sum()
    level = world._renderer.frame(world.inner.data, "behindGripper", 64, 64)
    np.testing.assert_array_equal(world.frame("behindGripper"), level)


@pytest.mark.suites
def test_meta_world_draws_a_new_goal_each_episode(make):
    _importorskip("metaworld")
    env = make("metaworld/reach-v3")
    goals = [env.reset(seed=0)[0][-3:], env.reset()[0][-3:], env.reset(seed=0)[0][-3:]]
    np.testing.assert_array_equal(goals[0], goals[2])
    assert (goals[0] != goals[1]).any()
    assert np.abs(goals[0]).sum() > 0


@pytest.mark.suites
def test_fetch_tells_success_and_its_own_part_of_the_state(make):
    _importorskip("gymnasium_robotics")
    env = make("FetchReach-v4")
    env.reset(seed=0)
    told = set()
    for _ in range(50):
        achieved, desired = (env.unwrapped.inner.unwrapped._get_obs()[k] for k in ("achieved_goal", "desired_goal"))
        info = env.step(np.array([*np.clip(10 * (desired - achieved), -1, 1), 0], np.float32))[4]
        told.add(info["is_success"])
    assert told == {False, True}
    assert make("FetchPush-v4", obs="mixed").observation_space["agent_pos"].shape == (10,)


# Bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "kwargs", "words"),
    [
        ("desk-draw", {}, "no environment 'desk-draw'.*desk-drawer"),
        ("HalfCheeta-v5", {}, "no environment 'HalfCheeta-v5'.*HalfCheetah-v5"),
        ("reacher-red", {"obs": "image"}, "obs must be one of state, pixels, mixed; got 'image'"),
        ("HalfCheetah-v5", {"camera": "trak"}, "no camera 'trak' here. Choose from free, track; did you mean track"),
        ("HalfCheetah-v5", {"camera": {"distanc": 1.0}}, "no 'distanc'.*distance"),
        ("CartPole-v1", {"camera": {"distance": 1.0}}, "a free camera needs a MuJoCo environment"),
        ("HalfCheetah-v5", {"wings": 2}, "HalfCheetah-v5 takes no wings"),
        ("CartPole-v1", {"wings": 2}, "CartPole-v1 takes no wings"),
        ("desk-drawer", {"action_repeat": 2}, "desk-drawer takes no action_repeat"),
    ],
)
def test_bad_input_is_one_clear_line(id, kwargs, words):
    with pytest.raises(UserError, match=words) as caught:
        bridge.make(id, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.suites
def test_unknown_task_of_a_suite_names_the_nearest():
    _importorskip("metaworld")
    with pytest.raises(UserError, match=r"metaworld/drawer-open-v3"):
        bridge.make("metaworld/drawer-opn-v3")


@pytest.mark.parametrize("id", ["metaworld/reach-v3", "dm_control/walker-walk-v0", "FetchReach-v4"])
def test_a_missing_suite_says_what_to_install(monkeypatch, id):
    monkeypatch.setattr(suites.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'embodied-rewards\[suites\]'"):
        bridge.make(id)


class Counting(gymnasium.Env):
    """Each step pays how many there were; the fifth ends the episode."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = spaces.Box(-1, 99, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), float(self.count), self.count == 5, False, {}


gymnasium.register("Counting-v0", entry_point=Counting, max_episode_steps=9)


def test_an_action_is_repeated_and_its_rewards_are_summed(make):
    env = make("Counting-v0", action_repeat=2)
    env.reset(seed=0)
    told = [env.step(np.zeros(1, np.float32))[:3] for _ in range(3)]
    assert [(float(obs[0]), reward, ended) for obs, reward, ended in told] == [
        (2.0, 3.0, False),
        (4.0, 7.0, False),
        (5.0, 5.0, True),
    ]
    assert env.metadata["render_fps"] == 5
    assert env.get_wrapper_attr("_max_episode_steps") == 5
    ours = make("humanoid-kneel", action_repeat=3)  # whose episodes last as many seconds too
    assert ours.get_wrapper_attr("_max_episode_steps") == 34
    with pytest.raises(UserError, match="action_repeat must be a whole number, at least 1; got 0"):
        make("Counting-v0", action_repeat=0)
