"""A robot's environment over drivers of the test's own, and LeRobot's robots by look-alikes."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from embodied.envs.wrappers import ScoredEnv
from embodied.errors import UserError
from embodied.robots.driver import DriverError
from embodied.robots.env import RobotEnv
from embodied.robots.judge import Success, Task
from embodied.robots.lerobot import LeRobotDriver
from embodied.robots.resets import by_hand, by_policy
from embodied.robots.watchdog import MaxAge
from tests.arms import LIMITS, Arm
from tests.unit.test_robot_safety import moves
from tests.unit.test_robot_senses import make_scorer
from tests.waiting import until

# The environment ----------------------------------------------------------------------------------------


@pytest.fixture
def arm():
    return Arm()


@pytest.fixture
def make_env(arm):
    made = []

    def make(**options):
        ages = MaxAge(camera_s=5.0, observation_s=5.0, policy_s=5.0, operator_s=60.0, frozen_s=None)
        options = {"ctrl_hz": 100.0, "absolute": ("grip",), "max_age": ages} | options
        made.append(RobotEnv(arm, LIMITS, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_commands_keep_limits_and_rate_whatever_the_policy_says(arm, make_env):
    env, rng, ends = make_env(), np.random.default_rng(0), []
    env.reset()
    for k in range(60):
        arm.clock.advance(0.013 if k % 7 == 6 else 0.002)  # the policy thinks; now and then it comes late
        *_, info = env.step(rng.uniform(-3, 3, 2))
        ends.append(info["jitter_s"])
        assert info["stopped"] is None
    at_s, path = (np.array(each) for each in zip(*arm.commands, strict=True))
    assert np.diff(at_s).min() >= 0.01 - 1e-9  # never sooner than a period after the last
    np.testing.assert_allclose(ends[1:], np.diff(at_s) - 0.01, atol=1e-9)
    assert max(ends[1:]) == pytest.approx(0.008)
    speeds, accelerations = moves(np.concatenate([np.zeros((1, 2)), path]), 0.01)
    assert (np.abs(path[:, 0]) <= 1).all()
    assert (np.abs(speeds) <= np.array([2, 8]) * (1 + 1e-9)).all()
    late = np.diff(at_s, prepend=at_s[0]) > 0.0145  # the targets were at rest in between
    assert (np.abs(accelerations[:, 0])[~late] <= 10 * (1 + 1e-6)).all()


def test_an_action_that_is_no_number_stops_the_robot_and_is_not_sent(arm, make_env):
    env = make_env()
    env.reset()
    env.step(np.zeros(2))
    sent = len(arm.commands)
    *_, terminated, truncated, info = env.step(np.array([np.nan, 0]))
    assert (terminated, truncated, arm.held, len(arm.commands)) == (True, False, True, sent)
    assert info["stopped"].startswith("action: ")
    with pytest.raises(ValueError, match="an episode must be running"):
        env.step(np.zeros(2))
    env.reset()
    assert env.step(np.zeros(2))[2] is False


def test_a_measurement_outside_its_limits_stops_the_robot(arm, make_env):
    env = make_env()
    env.reset()
    arm.force = 80.0
    *_, terminated, _, info = env.step(np.zeros(2))
    assert terminated
    assert info["stopped"] == "limit: force is 80, outside 0 to 50"
    assert arm.held
    with pytest.raises(DriverError, match="stands outside its limits: force is 80"):
        env.reset()


def test_a_robot_that_refuses_or_is_gone_ends_the_episode_and_is_reached_again(arm, make_env):
    env = make_env()
    env.reset()
    env.step(np.zeros(2))
    arm.own = "its emergency stop is pressed"
    *_, terminated, _, info = env.step(np.zeros(2))
    assert terminated
    assert info["stopped"] == "robot: its emergency stop is pressed"
    arm.own = None
    env.reset()
    env.step(np.zeros(2))
    arm.gone = "cable"
    *_, terminated, _, info = env.step(np.zeros(2))
    assert terminated
    assert info["stopped"] == "robot: cable"
    env.reset()
    assert arm.connects == 2
    assert env.step(np.zeros(2))[2] is False


def test_a_stop_that_was_not_told_does_not_come_late(arm, make_env):
    env = make_env()
    env.reset()
    env.step(np.zeros(2))
    arm.gone = "cable"
    assert env.step(np.zeros(2))[2] is True
    heard = len(arm.heard)
    env.reset()  # the watchdog could not stop it so far, and tries on
    assert env.step(np.zeros(2))[4]["stopped"] is None
    assert arm.heard[heard:].count("act") == 1
    assert "stop" not in arm.heard[len(arm.heard) - arm.heard[::-1].index("release") :]
    assert arm.held is False


def test_a_slow_policy_is_stopped_while_it_thinks(arm, make_env):
    env = make_env(max_age=MaxAge(camera_s=9.0, observation_s=9.0, policy_s=0.15, frozen_s=None))
    env.reset()
    arm.clock.advance(0.2)  # before the first command nothing moves, so it may take its time
    env.step(np.zeros(2))
    arm.clock.advance(0.2)
    until(lambda: arm.held)  # the watchdog's own thread
    *_, terminated, _, info = env.step(np.zeros(2))
    assert terminated
    assert info["stopped"].startswith("policy: ")


def test_pausing_is_not_being_slow(arm, make_env):
    env = make_env(max_age=MaxAge(camera_s=9.0, observation_s=9.0, policy_s=0.15, frozen_s=None))
    env.reset()
    env.step(np.zeros(2))
    env.pause()
    assert arm.held
    arm.clock.advance(0.2)
    *_, terminated, _, info = env.step(np.zeros(2))
    assert not terminated
    assert info["stopped"] is None


def test_a_camera_that_repeats_itself_is_stale_and_then_stops_the_robot(arm, make_env):
    env = make_env(max_age=MaxAge(camera_s=9.0, observation_s=9.0, policy_s=9.0, frozen_s=0.1))
    env.reset()
    assert env.step(np.zeros(2))[4]["stale"] is False
    arm.still = True
    env.step(np.zeros(2))
    stopped = None
    for _ in range(100):
        *_, terminated, _, info = env.step(np.zeros(2))
        assert info["stale"] is True
        stopped = info["stopped"]
        if terminated:
            break
    assert stopped is not None
    assert stopped.startswith("camera front picture: ")


def test_the_operator_stops_it_and_it_stays_stopped(arm, make_env, tmp_path):
    file = tmp_path / "stop"
    env = make_env(operator=file)
    env.reset()
    env.step(np.zeros(2))
    file.touch()
    until(lambda: arm.held)
    *_, terminated, _, info = env.step(np.zeros(2))
    assert terminated
    assert info["stopped"] == "operator: asked to stop"
    with pytest.raises(UserError, match=f"Remove {file}"):
        env.reset()
    file.unlink()
    env.reset()


def test_reward_and_success_come_from_the_model(arm, make_env):
    scorer = make_scorer()
    env = make_env(task=Task(scorer=scorer, success=Success(threshold=-9.0, hold=3)), max_steps=50)
    _, info = env.reset()
    assert info["success"] is False
    phi = info["reward/combined"]
    _, reward, terminated, _, info = env.step(np.zeros(2))
    assert reward == pytest.approx(0.9 * info["reward/bright"] - phi, abs=1e-5)
    assert not terminated
    phi = info["reward/combined"]
    _, reward, terminated, truncated, info = env.step(np.zeros(2))
    assert (terminated, truncated, info["success"], info["stopped"]) == (True, False, True, None)
    assert reward == pytest.approx(-phi, abs=1e-5)  # nothing comes after termination
    assert arm.held
    env.set_task(None)
    env.reset()
    with pytest.raises(ValueError, match="between episodes"):
        env.set_task(None)


def test_time_runs_out_without_termination(arm, make_env):
    env = make_env(max_steps=2)
    env.reset()
    assert env.step(np.zeros(2))[2:4] == (False, False)
    assert env.step(np.zeros(2))[2:4] == (False, True)
    assert arm.held


def test_observations_take_the_form_that_is_asked_for(make_env):
    for obs, env in [(form, make_env(obs=form)) for form in ("state", "pixels", "mixed")]:
        seen, _ = env.reset()
        assert env.observation_space.contains(seen), obs
    assert env.signals() == {"x": 0.0, "grip": 0.0, "force": 0.0}
    assert env.frame(image_size=5).shape == (5, 5, 3)
    assert env.frame(camera="front").shape == env.render().shape == (8, 8, 3)


def test_the_reward_wrappers_take_a_robot_as_any_world(make_env):
    env = ScoredEnv(make_env(), make_scorer())
    env.reset()
    _, reward, _, _, info = env.step(np.zeros(2))
    assert np.isfinite(reward)
    assert "reward/bright" in info


def test_the_scene_is_reset_by_hand_or_by_a_policy(arm, make_env):
    asked = []
    env = make_env(reset=by_hand(lambda text: asked.append((text, arm.held))))
    env.reset()
    assert asked == [("Put the scene back, then press Enter: ", True)]
    arm.commands.clear()
    env = make_env(reset=by_policy(lambda obs: np.array([1.0, 0.0]), 5))
    env.reset()
    assert len(arm.commands) == 5
    assert arm.at[0] > 0


def test_a_reset_policy_is_watched_too(arm, make_env):
    env = make_env()
    assert env.drive(lambda obs: np.array([np.nan, 0.0]), 5).startswith("action: ")
    assert arm.held
    assert arm.commands == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ctrl_hz": 0.0}, "ctrl_hz must be above 0"),
        ({"ctrl_hz": np.inf}, "ctrl_hz must be above 0 and at most 1000; got inf"),
        ({"ctrl_hz": np.nan}, "ctrl_hz must be above 0"),
        ({"ctrl_hz": 0.1}, "policy_s must be longer than a control period, 10 s"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1"),
        ({"obs": "smell"}, "obs must be one of"),
        ({"absolute": ("wrist",)}, "absolute must name actions"),
        ({"task": "wrong view"}, "must be cameras of the robot"),
    ],
)
def test_a_wrong_environment_is_refused(make_env, options, why):
    if "task" in options:
        options = {"task": Task(scorer=make_scorer(), views=("rear",))}
    with pytest.raises(ValueError, match=why):
        make_env(**options)


# LeRobot ------------------------------------------------------------------------------------------------


class TestLeRobot:
    """As LeRobot's robots are: flat dicts, names with `.pos`, clipping of its own."""

    __test__ = False
    observation_features = {"pan.pos": float, "lift.pos": float, "front": (8, 8, 3)}  # noqa: RUF012
    action_features = {"pan.pos": float, "lift.pos": float}  # noqa: RUF012

    def __init__(self):
        self.is_connected, self.sent, self.image, self.wait = False, [], np.zeros((8, 8, 3), np.uint8), None

    def connect(self):
        self.is_connected = True

    def get_observation(self):
        if self.wait is not None:
            self.wait.wait(10)
        return {"pan.pos": 1.0, "lift.pos": 2.0, "front": self.image}

    def send_action(self, action):
        self.sent.append(action)
        return action | {"pan.pos": min(action["pan.pos"], 5.0)}

    def disconnect(self):
        self.is_connected = False


def test_a_lerobot_robot_fits_by_shape():
    robot = TestLeRobot()
    driver = LeRobotDriver(robot)
    driver.connect()
    assert (driver.action_names, driver.observation_names) == (("pan.pos", "lift.pos"), ("pan.pos", "lift.pos"))
    assert driver.cameras == ("front",)
    seen = driver.observe()
    np.testing.assert_allclose(seen.proprio, [1, 2])
    assert seen.stopped is not None
    with pytest.raises(DriverError, match="is stopped"):
        driver.act(np.array([0.0, 0.0]))
    driver.release()
    np.testing.assert_allclose(driver.act(np.array([9.0, 3.0])), [5.0, 3.0])  # what was really sent
    driver.observe()
    driver.stop()
    assert robot.sent[-1] == {"pan.pos": 1.0, "lift.pos": 2.0}  # where it was
    driver.stop()
    assert len(robot.sent) == 2
    robot.image = np.zeros((0, 8, 3), np.uint8)
    with pytest.raises(DriverError, match=r"camera front must give \(H, W, 3\) uint8"):
        driver.observe()
    driver.disconnect()
    assert not robot.is_connected


def test_depth_and_what_is_no_number_of_a_lerobot_robot_are_left_out():
    robot = TestLeRobot()
    more = {"depth": (8, 8, 1), "far": (8, 8), "task": str, "pose": (6,)}
    robot.observation_features = {**robot.observation_features, **more}
    driver = LeRobotDriver(robot)
    driver.connect()
    assert driver.cameras == ("front",)
    assert driver.left_out == tuple(more)
    assert set(driver.observe().images) == {"front"}
    driver.disconnect()


def test_a_lerobot_robot_is_commanded_by_one_process(tmp_path):
    class Config:
        id, port, notes = "left", str(tmp_path / "ttyACM0"), 5

        def __init__(self):
            self.port = Config.port

    (tmp_path / "by-id").symlink_to(Config.port)
    robots = [TestLeRobot() for _ in range(3)]
    for robot in robots:
        robot.config = Config()
    robots[1].config.port = str(tmp_path / "by-id")  # the same, by another name
    robots[2].config.port = str(tmp_path / "ttyACM1")
    first, second, other = map(LeRobotDriver, robots)
    first.connect()
    first.connect()
    other.connect()
    with pytest.raises(DriverError, match=r"another process \(or driver\) commands this robot; the lock is "):
        second.connect()
    assert not robots[1].is_connected
    first.disconnect()
    second.connect()
    (file,) = second._lock_files
    take = f"import fcntl; fcntl.flock(open({str(file)!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    assert b"BlockingIOError" in subprocess.run([sys.executable, "-c", take], stderr=subprocess.PIPE).stderr
    second.disconnect()
    assert subprocess.run([sys.executable, "-c", take]).returncode == 0
    other.disconnect()
    robots[1].connect = lambda: 1 / 0
    with pytest.raises(DriverError, match="connect: ZeroDivisionError"):
        second.connect()
    first.connect()  # what could not be reached is not kept from others
    first.disconnect()
    file.unlink()
    for file in other._lock_files:
        file.unlink()


def test_a_lerobot_robot_is_told_where_to_stay_whatever_it_answers():
    robot = TestLeRobot()
    driver = LeRobotDriver(robot)
    driver.connect()
    driver.release()
    send = robot.send_action
    robot.send_action = lambda action: send(action) | {"lift.pos": np.nan}
    assert np.isnan(driver.act(np.array([0.5, 0.25]))[1])
    robot.get_observation = lambda: {"pan.pos": np.nan, "lift.pos": 2.0, "front": robot.image}
    driver.observe()
    driver.stop()
    assert robot.sent[-1] == {"pan.pos": 0.5, "lift.pos": 2.0}  # nothing that is no number

    def heard_and_failed(action):
        send(action)
        raise OSError("no answer")

    driver.release()
    robot.send_action = heard_and_failed
    with pytest.raises(DriverError, match="no answer"):
        driver.act(np.array([0.6, 0.25]))
    robot.send_action = send
    driver.stop()
    assert robot.sent[-1]["pan.pos"] == 0.6  # the arm may be on its way there
    robot.send_action = heard_and_failed
    driver.release()
    with pytest.raises(DriverError, match="no answer"):
        driver.act(np.array([0.6, 0.25]))
    driver.disconnect()
    assert not robot.is_connected  # let go, though it could not be told


def test_a_lerobot_robot_stops_while_its_bus_hangs():
    robot = TestLeRobot()
    driver = LeRobotDriver(robot)
    driver.connect()
    driver.release()
    driver.act(np.zeros(2))
    robot.wait = threading.Event()
    reading = threading.Thread(target=driver.observe)
    reading.start()
    with pytest.raises(DriverError, match="bus is busy"):
        driver.stop()
    robot.wait.set()
    reading.join()
    with pytest.raises(DriverError, match="is stopped"):  # refused from the moment of the stop
        driver.act(np.zeros(2))
    driver.stop()
    assert len(robot.sent) == 2
