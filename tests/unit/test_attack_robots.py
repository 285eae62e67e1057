"""Robots, operators and cameras that do what they should not: the arm is stopped, no limit is passed, nobody hangs."""

import threading

import numpy as np
import pytest

from embodied.cameras.camera import Frame
from embodied.robots import control, watchdog
from embodied.robots.driver import Clock, DriverError, Observation
from embodied.robots.limits import Bound, Limits, allowed
from embodied.robots.targets import Targets
from embodied.robots.watchdog import MaxAge, Watchdog
from tests.arms import LIMITS, NAMES, Arm, StepClock
from tests.hostile_arm import HZ, MOVE, Tally, attack
from tests.made_arms import FORWARD, STILL, maker, steps


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """What is waited for is waited for shortly."""
    monkeypatch.setattr(control, "READY_S", 0.1)
    monkeypatch.setattr(control, "DISCONNECT_S", 0.3)
    monkeypatch.setattr(watchdog, "TELL_S", 0.3)


@pytest.fixture
def make():
    with maker() as make:
        yield make


# Stamps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0.01, 1e6, np.inf, np.nan])
@pytest.mark.parametrize("what", ["observation", "camera front", "camera front picture"])
def test_stamps_of_the_future_do_not_keep_stale_things_fresh(make, what, ahead):
    arm = Arm()
    ages = {"observation": "observation_s", "camera front": "camera_s", "camera front picture": "frozen_s"}
    env = make(arm, ages={ages[what]: 0.05})
    env.reset()
    env.step(FORWARD)
    observe, frozen = arm.observe, arm.observe()

    def lying():
        real, later = observe(), arm.clock.now() + ahead
        if what == "observation":
            return Observation(proprio=frozen.proprio, images=real.images, measured_s=later)
        image = frozen.images["front"].image
        frame = Frame(image=image, captured_s=later, index=real.images["front"].index)
        return Observation(proprio=real.proprio, images={"front": frame}, measured_s=real.measured_s)

    arm.observe = lying
    info = steps(env, most=12)
    assert info["stopped"].partition(":")[0] in (what, what.removesuffix(" picture"))
    assert info["stale"] is (what != "observation")
    assert min(info["ages"].values()) >= 0
    if what != "camera front picture":
        with pytest.raises(DriverError, match="its time is"):
            env.reset()


@pytest.mark.parametrize("back", [0.0, 5.0])
def test_stamps_that_stand_still_or_go_back_are_old(make, back):
    arm = Arm()
    env = make(arm, ages={"observation_s": 0.05})
    env.reset()
    env.step(FORWARD)
    observe, at_s = arm.observe, arm.clock.now()
    arm.observe = lambda: Observation(proprio=np.zeros(3, np.float32), images=observe().images, measured_s=at_s - back)
    assert steps(env, most=12)["stopped"].startswith("observation: ")


def test_the_watchdog_takes_no_news_from_the_future_nor_of_strangers():
    clock, stopped = StepClock(), threading.Event()
    dog = Watchdog(stopped.set, {"policy": 0.5}, clock=clock, poll_s=0.001)
    dog.watch()
    dog.seen("policy", clock.now())
    dog.seen("a camera that nobody named", clock.now())
    for stamp in (clock.now() + 1e9, np.inf, np.nan):
        dog.seen("policy", float(stamp))
    assert dog.look() is None
    clock.advance(0.6)
    assert stopped.wait(30)
    assert dog.look().reason.startswith("policy: 0.6")
    dog.close()


# Where the arm is, and where it says it was sent ---------------------------------------------------------


def test_an_arm_that_was_pushed_out_of_its_limits_in_a_pause_is_not_moved(make):
    arm = Arm()
    env = make(arm)
    env.reset()
    env.step(FORWARD)
    env.pause()
    arm.at, sent = np.array([1.75, 0.0]), len(arm.commands)
    *_, terminated, _, info = env.step(STILL)
    assert terminated
    assert info["stopped"] == "limit: x is 1.75, outside -1.2 to 1.2"
    assert len(arm.commands) == sent
    assert arm.heard[-1] == "stop"


def test_an_arm_outside_its_commands_range_is_led_back_without_a_jump(make):
    arm = Arm()
    env = make(arm, Limits(command=LIMITS.command))
    env.reset()
    env.step(FORWARD)
    env.pause()
    arm.at, sent = np.array([1.75, 0.0]), len(arm.commands)
    for _ in range(80):
        assert env.step(FORWARD)[4]["stopped"] is None
    path = np.array([1.75, *(command[0] for _, command in arm.commands[sent:])])
    assert (np.diff(path) <= 1e-9).all()  # never further out
    assert np.abs(np.diff(path)).max() <= MOVE[0] * (1 + 1e-9)
    assert np.abs(np.diff(path, 2)).max() <= 10 / HZ**2 * (1 + 1e-6)  # its acceleration
    assert path[-1] == pytest.approx(1.0)  # the end of the range, where it is asked to go
    env.step(-FORWARD)
    assert arm.commands[-1][1][0] < 1.0  # and from there it obeys


@pytest.mark.parametrize("place", [3.1, -1e30])
def test_nothing_begins_from_where_no_arm_can_be(make, place):
    arm = Arm()
    env = make(arm, Limits(command=LIMITS.command))
    env.reset()
    arm.at = np.array([place, 0.0])
    assert env.step(STILL)[4]["stopped"] == f"limit: x is {place:.4g}, far out of its range"
    assert arm.commands == []
    with pytest.raises(DriverError, match="stands outside its limits"):
        env.reset()


@pytest.mark.parametrize("claim", [1.0, -1.0, 1e300, np.nan, np.inf])
def test_a_wrong_word_of_what_was_sent_stops_the_arm(make, claim):
    arm = Arm()
    env = make(arm)
    env.reset()
    env.step(FORWARD)
    arm.act = lambda command: np.array([claim, arm.go(command)[1]])
    *_, terminated, _, info = env.step(FORWARD)
    assert terminated
    assert info["stopped"].startswith("robot: it says that it was sent ")
    assert arm.heard[-1] == "stop"
    assert np.abs(info["command"]).max() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_small_lies_of_what_was_sent_make_no_command_jump(seed):
    rng, targets, path = np.random.default_rng(seed), Targets(LIMITS, NAMES, ("grip",), 1 / HZ), [np.array([0.5, 0.5])]
    targets.start({"x": 0.5, "grip": 0.5})
    for _ in range(300):
        command, _ = targets.next(rng.uniform(-1, 1, 2))
        path.append(command)
        really = command + rng.uniform(-1, 1, 2) * MOVE
        assert targets.believable(really)
        targets.taken(really)
    low, high, _, _ = LIMITS.arrays(NAMES)
    assert (np.array(path) >= low).all()
    assert (np.array(path) <= high).all()
    assert (np.abs(np.diff(path, axis=0)) <= MOVE * (1 + 1e-9)).all()


def test_a_robots_own_clipping_is_believed(make):
    arm = Arm()
    env = make(arm)
    env.reset()
    arm.act = lambda command: arm.go(np.minimum(command, [0.1, 1.0]))
    for _ in range(40):
        *_, terminated, _, info = env.step(FORWARD)
        assert not terminated
    assert info["command"][0] == pytest.approx(0.1)
    assert info["intervene_action"][0] == pytest.approx(0.0)


# Numbers and names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -1.0, 1e12])
def test_rates_and_ages_that_are_no_numbers_are_refused(make, bad):
    for wrong in (
        lambda: make(Arm(), ctrl_hz=bad),
        lambda: Clock(bad),
        lambda: MaxAge(camera_s=bad),
        lambda: MaxAge(frozen_s=bad),
        lambda: MaxAge(operator_s=bad),
        lambda: Bound(0.0, 1.0, speed=bad),
        lambda: Bound(0.0, bad if bad not in (0.0, -1.0) else -2.0, speed=1.0),
        lambda: Bound(0.0, 1.0, speed=1.0, acceleration=bad if bad != np.inf else 0.0),
    ):
        with pytest.raises(ValueError, match="must be"):
            wrong()


def test_any_acceleration_that_is_allowed_moves():
    for sharpest in (1e-9, 1e-3, 1.0, 1e6, 1e9, np.inf):
        bounds = Limits(command={"x": Bound(-1.0, 1.0, speed=2.0, acceleration=sharpest)}).arrays("x")
        moved = allowed(bounds, np.ones(1), np.zeros(1), np.zeros(1), 0.01)[0]
        assert moved == pytest.approx(min(sharpest * 0.01**2, 0.02), rel=1e-6)


def test_a_driver_must_measure_what_it_commands_and_name_each_thing_once(make):
    blind, double = Arm(), Arm()
    blind.observation_names = ("x", "force")
    with pytest.raises(ValueError, match=r"every action must be measured.* grip is not in"):
        make(blind)
    double.cameras = ("front", "front")
    with pytest.raises(ValueError, match=r"driver\.cameras must be names, each once"):
        make(double)


# Cameras ------------------------------------------------------------------------------------------------


class Deep(Arm):
    """Has a depth camera too, and one that nobody named."""

    cameras = ("depth", "front")

    def observe(self):
        seen = super().observe()
        depth = Frame(image=np.full((8, 8, 1), 700, np.uint16), captured_s=self.clock.now(), index=self.index)
        return Observation(
            proprio=seen.proprio,
            images={**seen.images, "depth": depth, "ghost": depth},
            measured_s=seen.measured_s,
            stopped=seen.stopped,
        )


def test_a_depth_camera_is_left_out_of_the_colours(make):
    env = make(Deep(), ages={"frozen_s": 0.5})
    obs, _ = env.reset()
    assert env.cameras == ("front",)
    assert obs["pixels"].shape == (8, 8, 3)
    for _ in range(100):  # a second, in which depth never changed
        *_, terminated, _, info = env.step(STILL)
        assert not terminated, info["stopped"]
    assert set(info["ages"]) == {"observation", "camera front"}


def test_a_camera_whose_pictures_go_wrong_grows_old_and_stops_the_arm(make):
    arm = Arm()
    env = make(arm, ages={"camera_s": 0.05})
    env.reset()
    env.step(FORWARD)
    arm.picture = lambda: np.zeros((8, 8, 1), np.uint16)
    info = steps(env, most=12)
    assert info["stopped"].startswith("camera front: ")
    with pytest.raises(DriverError, match=r"its picture must be \(H, W, 3\) uint8; it is uint16 \(8, 8, 1\)"):
        env.reset()


# A person's hand ----------------------------------------------------------------------------------------


def test_a_person_takes_over_and_what_was_sent_is_told(make):
    arm, hand = Arm(), [None]
    env = make(arm, takeover=lambda: hand[0])
    _, info = env.reset()
    assert info["is_intervention"] is False
    np.testing.assert_allclose(info["intervene_action"], [0.0, -1.0])  # what stays
    *_, info = env.step(np.array([0.01, -1.0]))
    assert info["is_intervention"] is False
    np.testing.assert_allclose(info["intervene_action"], [0.01, -1.0], atol=1e-6)
    hand[0] = np.array([-0.02, -1.0])
    *_, info = env.step(FORWARD)
    assert info["is_intervention"] is True
    np.testing.assert_allclose(info["intervene_action"], [-0.02, -1.0], atol=1e-6)
    assert info["intervene_action"].dtype == np.float32
    assert arm.commands[-1][1][0] == pytest.approx(0.01 * MOVE[0] - 0.02 * MOVE[0])
    hand[0] = [-9.0, 1.0]  # a person is held to the limits too
    before = arm.commands[-1][1][0]
    *_, info = env.step(FORWARD)
    assert info["clamped"]
    assert info["intervene_action"][0] * MOVE[0] == pytest.approx(arm.commands[-1][1][0] - before, abs=1e-6)
    assert env.action_space.contains(info["intervene_action"])


@pytest.mark.parametrize("given", [np.array([np.nan, 0.0]), np.zeros(3), "left", RuntimeError("unplugged")])
def test_a_hand_that_cannot_be_read_stops_the_arm(make, given):
    arm = Arm()

    def takeover():
        if isinstance(given, Exception):
            raise given
        return given

    env = make(arm, takeover=takeover)
    env.reset()
    *_, terminated, _, info = env.step(FORWARD)
    assert terminated
    assert info["stopped"].startswith("operator: takeover")
    assert arm.commands == []


# Everything at once -------------------------------------------------------------------------------------


def test_a_hostile_robot_gets_no_command_past_a_limit_and_its_last_is_stop(capsys):
    total = Tally()
    for seed in range(80):
        tally = attack(seed)
        assert tally.violations == 0, (seed, tally)
        total += tally
    capsys.readouterr()  # what close told
    assert total.inputs > 500
    assert total.stops > 100
    assert total.commands > 500
