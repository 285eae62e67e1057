"""Robots without a robot: limits, watchdog, judge, wire, and the environment over drivers of the test's own."""

import threading
import time

import numpy as np
import pytest
import torch

from embodied import scoring
from embodied.cameras.camera import Frame
from embodied.envs.wrappers import ScoredEnv
from embodied.errors import UserError
from embodied.robots.driver import Clock, DriverError, Observation
from embodied.robots.env import RobotEnv
from embodied.robots.eyes import Eyes
from embodied.robots.judge import Judge, Success, Task
from embodied.robots.lerobot import LeRobotDriver
from embodied.robots.limits import Bound, Limits, allowed, toward, violations
from embodied.robots.resets import by_hand, by_policy
from embodied.robots.targets import Targets
from embodied.robots.watchdog import MaxAge, Watchdog, overdue
from embodied.robots.wire import MAX_BYTES, Faults, Messages, WireError, packed
from embodied.scoring import Layout, Track
from rewards.core import Scorer
from tests.fakes import FakeEncoder

LIMITS = Limits(
    command={"x": Bound(-1.0, 1.0, speed=2.0, acceleration=10.0), "grip": Bound(0.0, 1.0, speed=8.0)},
    state={"x": (-1.2, 1.2), "force": (0.0, 50.0)},
)
NAMES = ("x", "grip")


def moves(path: np.ndarray, period_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Speeds and accelerations of a path that begins at rest."""
    speed = np.diff(path, axis=0, prepend=path[:1]) / period_s
    return speed, np.diff(speed, axis=0) / period_s


# Limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_no_sequence_of_wishes_leaves_the_limits(seed):
    rng = np.random.default_rng(seed)
    period_s = float(rng.uniform(0.01, 0.2))
    limits = Limits(
        command={
            name: Bound(-rng.uniform(0.01, 2), rng.uniform(0.01, 2), rng.uniform(0.5, 5), rng.uniform(1, 50))
            for name in "abc"
        }
    )
    low, high, fastest, sharpest = bounds = limits.arrays("abc")
    sent, speed, path = np.zeros(3), np.zeros(3), [np.zeros(3)]
    for k in range(1500):
        wish = rng.uniform(-1e3, 1e3, 3) if k % 3 else sent + rng.normal(size=3) * fastest * period_s
        if 500 < k < 700:
            wish = np.full(3, 1e9)  # full speed against the end of the range
        command = allowed(bounds, wish, sent, speed, period_s)
        speed, sent = (command - sent) / period_s, command
        path.append(command)
    path = np.array(path)
    assert (path >= low).all()
    assert (path <= high).all()
    speeds, accelerations = moves(path, period_s)
    assert (np.abs(speeds) <= fastest * (1 + 1e-9)).all()
    assert (np.abs(accelerations) <= sharpest * (1 + 1e-6) + 1e-6).all()
    assert (np.abs(path[650:700] - high) < 1e-3 * (high - low)).all()  # and it does get there


def test_a_wish_inside_the_limits_is_granted():
    bounds = LIMITS.arrays(NAMES)
    command = allowed(bounds, np.array([0.02, 0.3]), np.zeros(2), np.zeros(2), 0.05)
    np.testing.assert_allclose(command, [0.02, 0.3])


def test_targets_on_the_way_to_a_goal_end_there_without_passing_it():
    bounds, sent, speed, path = LIMITS.arrays(("x",)), np.array([-0.9]), np.zeros(1), []
    for _ in range(60):
        wish = toward(bounds, np.array([0.5]), sent, 0.05)
        command = allowed(bounds, wish, sent, speed, 0.05)
        speed, sent = (command - sent) / 0.05, command
        path.append(sent[0])
    assert max(path) <= 0.5 + 1e-9
    assert path[-1] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_that_is_not_finite_becomes_a_command(bad):
    with pytest.raises(ValueError, match="must be finite"):
        allowed(LIMITS.arrays(NAMES), np.array([bad, 0]), np.zeros(2), np.zeros(2), 0.05)


def test_violations_are_told_in_words():
    names = ("x", "grip", "force")
    assert violations(LIMITS, names, np.array([0, 0, 1])) == ()
    assert violations(LIMITS, names, np.array([1.3, 0, 60])) == (
        "x is 1.3, outside -1.2 to 1.2",
        "force is 60, outside 0 to 50",
    )
    assert violations(LIMITS, names, np.array([0, np.nan, 0])) == ("grip is nan",)


def test_limits_must_be_for_this_robot():
    with pytest.raises(ValueError, match="bound every action; z missing"):
        LIMITS.check_names(("x", "z"), ("x", "force"))
    with pytest.raises(ValueError, match="must name what the robot measures; got force"):
        LIMITS.check_names(NAMES, ("x", "grip"))
    with pytest.raises(ValueError, match="low must be finite and below high"):
        Bound(1.0, 0.0, speed=1.0)
    with pytest.raises(ValueError, match="speed must be finite"):
        Bound(0.0, 1.0, speed=0.0)
    with pytest.raises(ValueError, match="must be a range"):
        Limits(command={}, state={"x": (1.0, 1.0)})


def test_targets_move_by_actions_and_go_to_absolute_places():
    targets = Targets(LIMITS, NAMES, ("grip",), 0.05)
    targets.start({"x": 5.0, "grip": 0.5})  # measured outside the range: sent to its end
    np.testing.assert_allclose(targets.sent, [1.0, 0.5])
    command, clamped = targets.next(np.array([-1.0, 1.0]))
    np.testing.assert_allclose(command, [1.0 - 10 * 0.05**2, 0.9])  # the acceleration allows less than the speed
    assert clamped
    targets.taken(command)
    assert targets.next(np.array([-0.2, 1.0]))[1] is False
    assert targets.next(np.array([-1.5, 1.0]))[1] is True  # an action beyond its range


# Watchdog -----------------------------------------------------------------------------------------------


def test_what_was_due_first_is_overdue():
    limits = {"a": 1.0, "b": 0.1}
    assert overdue({"a": 0.0, "b": 0.0}, limits, 0.05) is None
    assert overdue({"a": 0.0, "b": 0.0}, limits, 2.0) == ("b", 0.1)
    assert overdue({}, limits, 2.0) is None


class Recorder:
    """A driver's `stop` that fails a few times, and when it was called."""

    def __init__(self, failures=0):
        self.failures, self.calls, self.called = failures, 0, threading.Event()

    def __call__(self):
        self.calls += 1
        self.called.set()
        if self.calls <= self.failures:
            raise DriverError("cut off")


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.002)


@pytest.fixture
def watchdog():
    made = []

    def make(stop, **options):
        made.append(Watchdog(stop, {"policy": 0.05}, clock=Clock(), poll_s=0.005, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_the_watchdog_stops_from_its_own_thread_and_remembers_why(watchdog):
    stop = Recorder()
    dog = watchdog(stop)
    dog.watch()
    dog.seen("policy", time.monotonic())
    seen_s = time.monotonic()
    assert stop.called.wait(10)
    until(lambda: dog.stopped is not None and dog.stopped.sent)
    assert dog.stopped.reason.startswith("policy: ")
    assert dog.stopped.due_s == pytest.approx(seen_s + 0.05, abs=0.01)
    assert dog.stopped.at_s >= dog.stopped.due_s
    dog.trip("limit: later", 0.0)
    assert dog.stopped.reason.startswith("policy: ")  # the first reason is kept
    assert stop.calls == 1
    dog.rest(told=True)
    assert dog.stopped is None


def test_nothing_is_watched_at_rest(watchdog):
    stop = Recorder()
    dog = watchdog(stop)
    dog.watch()
    dog.rest(told=True)
    dog.seen("policy", time.monotonic() - 10)
    assert not stop.called.wait(0.05)
    dog.watch()  # looks before it returns
    assert dog.stopped is not None


def test_a_stop_that_could_not_be_sent_is_sent_again(watchdog):
    stop = Recorder(failures=3)
    dog = watchdog(stop)
    assert dog.trip("camera front: gone", 0.0).sent is False
    until(lambda: stop.calls == 4)
    time.sleep(0.03)
    assert stop.calls == 4


def test_the_operator_is_asked_while_it_moves(watchdog):
    wanted, stop = threading.Event(), Recorder()
    dog = watchdog(stop, operator=wanted.is_set)
    dog.watch()
    wanted.set()
    assert stop.called.wait(10)
    until(lambda: dog.stopped is not None)
    assert dog.stopped.reason == "operator: asked to stop"


def test_ages_must_be_positive():
    with pytest.raises(ValueError, match="camera_s must be above 0"):
        MaxAge(camera_s=0.0)
    assert "camera a picture" not in MaxAge(frozen_s=None).limits(["a"])


# Eyes ---------------------------------------------------------------------------------------------------


def frame(value, at_s, index=0):
    return Frame(image=np.full((4, 4, 3), value, np.uint8), captured_s=at_s, index=index)


def test_a_repeated_picture_is_not_new_however_its_stamp():
    eyes = Eyes(compare=True)
    assert eyes.take({"a": frame(1, 1.0)}, 9.0) == {"camera a": 1.0, "camera a picture": 1.0}
    assert eyes.take({"a": frame(1, 2.0)}, 9.0) == {"camera a": 2.0, "camera a picture": 1.0}
    assert eyes.new_s(["a"]) == [1.0]
    assert eyes.missing(["a", "b"], 1.5)[0].startswith("camera a repeats")
    eyes.take({"a": frame(2, 3.0)}, 9.0)
    assert eyes.new_s(["a"]) == [3.0]
    still = Eyes(compare=False)
    still.take({"a": frame(1, 1.0)}, 9.0)
    still.take({"a": frame(1, 2.0)}, 9.0)
    assert still.new_s(["a"]) == [2.0]


def test_a_stamp_of_the_future_is_of_now():
    assert Eyes(compare=False).take({"a": frame(1, 1e9)}, 5.0) == {"camera a": 5.0}


def test_views_of_several_sizes_are_scored_at_the_first_ones():
    eyes = Eyes(compare=True)
    large = Frame(image=np.zeros((8, 6, 3), np.uint8), captured_s=0.0, index=0)
    eyes.take({"a": frame(1, 0.0), "b": large}, 1.0)
    assert eyes.pictures(["a", "b"]).shape == (2, 4, 4, 3)
    with pytest.raises(ValueError, match="must be one of a, b"):
        eyes.image("c")


# Judge --------------------------------------------------------------------------------------------------


class Brightness:
    """A head whose potential is the projection on one feature; NaN on request."""

    name, pointwise, broken = "bright", True, False

    def score(self, features):
        values = features.main[..., 0]
        return values * torch.nan if self.broken else values


class Difference:
    """γφ' − φ with γ = 0.9 and nothing after termination."""

    def __call__(self, potential, next_potential, terminated):
        return 0.9 * next_potential * ~terminated - potential


def first(potentials, features):
    return next(iter(potentials.values()))


def make_scorer(head=None):
    head = head or Brightness()
    return Scorer(FakeEncoder(), {head.name: head}, first, Difference())


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, 8, 8, 3)).astype(np.uint8)


def test_the_judge_gives_the_rewards_that_labelling_gives():
    scorer, frames = make_scorer(), pictures(5)
    judge = Judge(Task(scorer=scorer), ("main",), ())
    rewards = [judge.look(each, {}, stopped=k == 4).reward for k, each in enumerate(frames)]
    rows = list(scoring.encode(scorer, frames[:, 0]))
    (labels,) = scoring.label(scorer, [Track(rows, [False, False, False, True])], Layout())
    np.testing.assert_allclose(rewards[1:], labels.rewards, atol=1e-6)
    assert rewards[0] == 0


def test_a_moment_that_cannot_be_scored_keeps_its_potential():
    head = Brightness()
    judge = Judge(Task(scorer=make_scorer(head), success=Success(threshold=-9.0)), ("main",), ())
    before = judge.look(pictures(1)[0], {}, stopped=False)
    stale = judge.look(None, {}, stopped=False)
    assert stale.unscored == "no fresh frame"
    assert stale.potentials == before.potentials
    assert stale.reward == pytest.approx(-0.1 * before.potentials["combined"], abs=1e-6)
    assert stale.success is False  # nothing was seen
    head.broken = True
    nan = judge.look(pictures(1, 1)[0], {}, stopped=False)
    assert "must give finite numbers" in nan.unscored
    assert nan.potentials == before.potentials
    head.broken = False
    assert judge.look(pictures(1, 2)[0], {}, stopped=False).success is True


def test_success_must_hold():
    scorer = make_scorer()
    potentials = [float(scoring.encode(scorer, each)[0, 0]) for each in pictures(12)]
    threshold = float(np.median(potentials))
    judge = Judge(Task(scorer=scorer, success=Success(head="bright", threshold=threshold, hold=2)), ("main",), ())
    told = [judge.look(each, {}, stopped=False).success for each in pictures(12)]
    above = np.array(potentials) >= threshold
    assert told == [False, *(above[1:] & above[:-1]).tolist()]
    with pytest.raises(ValueError, match="must be one of bright"):
        Task(scorer=scorer, success=Success(head="dark", threshold=0.0))


# Wire ---------------------------------------------------------------------------------------------------


def test_messages_come_whole_out_of_any_pieces():
    data = packed({"type": "a", "n": 1}) + packed({"type": "b", "data": b"x" * 1000})
    messages, found = Messages(), []
    for at in range(0, len(data), 7):
        found += messages.feed(data[at : at + 7])
    assert [each["type"] for each in found] == ["a", "b"]
    assert found[1]["data"] == b"x" * 1000


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "at most"),
        ((MAX_BYTES + 1).to_bytes(4, "big"), "at most"),
        (b"\x00\x00\x00\x02\xc1\xc1", "msgpack"),
        (b"\x00\x00\x00\x01\x05", "a map with a type"),
        (b"\x00\x00\x00\x00", "msgpack"),
    ],
)
def test_rubbish_on_the_wire_is_refused(data, why):
    with pytest.raises(WireError, match=why):
        Messages().feed(data)


def test_faults_travel():
    faults = Faults(delay_s=0.1, lost=("front",))
    (message,) = Messages().feed(packed(faults.message()))
    assert Faults.of(message) == faults
    with pytest.raises(WireError):
        Faults.of({"type": "faults", "unheard": 1})


# The environment ----------------------------------------------------------------------------------------


class TestArm:
    """A driver in this process that goes where it is sent; its camera shows noise."""

    __test__ = False
    action_names, observation_names, cameras = NAMES, ("x", "grip", "force"), ("front",)

    def __init__(self):
        self.clock, self.commands, self.rng = Clock(), [], np.random.default_rng(0)
        self.at, self.force, self.gone, self.own, self.stops, self.connects = np.zeros(2), 0.0, None, None, 0, 0
        self.held, self.last, self.index, self.still, self.slow = True, None, 0, False, 0.0

    def connect(self):
        self.connects, self.gone = self.connects + 1, None

    def observe(self):
        if self.gone:
            raise DriverError(self.gone)
        if self.last is None or not self.still:
            self.index += 1
            image = self.rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            self.last = Frame(image=image, captured_s=self.clock.now(), index=self.index)
        stopped = self.own or ("held" if self.held else None)
        proprio = np.array([*self.at, self.force], np.float32)
        return Observation(proprio=proprio, images={"front": self.last}, measured_s=self.clock.now(), stopped=stopped)

    def act(self, command):
        if self.gone or self.held:
            raise DriverError(self.gone or "held")
        self.commands.append((self.clock.now(), command))
        self.at = command
        return command

    def stop(self):
        self.held, self.stops = True, self.stops + 1
        if self.gone:
            raise DriverError(self.gone)

    def release(self):
        if self.gone:
            raise DriverError(self.gone)
        self.held = False
        time.sleep(self.slow)

    def disconnect(self):
        self.held = True


@pytest.fixture
def arm():
    return TestArm()


@pytest.fixture
def make_env(arm):
    made = []

    def make(**options):
        ages = MaxAge(camera_s=5.0, observation_s=5.0, policy_s=5.0, frozen_s=None)
        options = {"ctrl_hz": 100.0, "absolute": ("grip",), "max_age": ages} | options
        made.append(RobotEnv(arm, LIMITS, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_commands_keep_limits_and_rate_whatever_the_policy_says(arm, make_env):
    env, rng, ends = make_env(), np.random.default_rng(0), []
    env.reset()
    for _ in range(60):
        *_, info = env.step(rng.uniform(-3, 3, 2))
        ends.append(info["jitter_s"])
        assert info["stopped"] is None
    at_s, path = (np.array(each) for each in zip(*arm.commands, strict=True))
    assert np.diff(at_s).min() >= 0.01  # never sooner than a period after the last
    assert np.median(np.abs(np.array(ends[1:]) - (np.diff(at_s) - 0.01))) < 2e-3
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
    arm.slow = 0.05  # several polls of the watchdog, which could not stop it so far
    env.reset()
    assert arm.held is False
    assert env.step(np.zeros(2))[4]["stopped"] is None


def test_a_slow_policy_is_stopped_while_it_thinks(arm, make_env):
    env = make_env(max_age=MaxAge(camera_s=9.0, observation_s=9.0, policy_s=0.15, frozen_s=None))
    env.reset()
    time.sleep(0.2)  # before the first command nothing moves, so it may take its time
    env.step(np.zeros(2))
    until(lambda: arm.held)
    *_, terminated, _, info = env.step(np.zeros(2))
    assert terminated
    assert info["stopped"].startswith("policy: ")


def test_pausing_is_not_being_slow(arm, make_env):
    env = make_env(max_age=MaxAge(camera_s=9.0, observation_s=9.0, policy_s=0.15, frozen_s=None))
    env.reset()
    env.step(np.zeros(2))
    env.pause()
    assert arm.held
    time.sleep(0.2)
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
