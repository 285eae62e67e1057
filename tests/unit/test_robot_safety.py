"""Limits on what a robot is asked, and the watchdog that stops it."""

import threading
import time

import numpy as np
import pytest

from embodied.robots.driver import Clock, DriverError
from embodied.robots.limits import Bound, Limits, allowed, toward, violations
from embodied.robots.targets import Targets
from embodied.robots.watchdog import MaxAge, Watchdog, overdue
from tests.arms import LIMITS, NAMES
from tests.waiting import until


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
    targets.start({"x": 1.0, "grip": 0.5})
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
    assert dog.hold() is True
    assert dog.stopped is None


def test_nothing_is_watched_at_rest(watchdog):
    stop = Recorder()
    dog = watchdog(stop)
    dog.watch()
    dog.hold()
    dog.seen("policy", time.monotonic() - 10)
    assert dog.look() is None
    dog.watch()  # looks before it returns
    assert dog.stopped is not None


def test_a_stop_that_could_not_be_sent_is_sent_again(watchdog):
    stop = Recorder(failures=3)
    dog = watchdog(stop)
    assert dog.trip("camera front: gone", 0.0).sent is False
    until(lambda: dog.stopped.sent)
    assert stop.calls == 4
    assert dog.tell() is True
    assert stop.calls == 5  # nothing was left to be tried again


def test_the_operator_is_asked_while_it_moves(watchdog):
    wanted, stop = threading.Event(), Recorder()
    dog = watchdog(stop, operator=wanted.is_set)
    dog.watch()
    wanted.set()
    assert stop.called.wait(10)
    until(lambda: dog.stopped is not None)
    assert dog.stopped.reason == "operator: asked to stop"


@pytest.mark.parametrize("next_is_a_reset", [True, False])
def test_a_stop_that_is_answered_as_the_watch_ends_is_heeded(watchdog, next_is_a_reset):
    """One that is told once, as by a key, was taken by asking and lost where a pause fell into the answer."""
    asked, answer = threading.Event(), threading.Event()

    def pressed():
        first = not asked.is_set()
        asked.set()
        return first and answer.wait(10)

    dog = watchdog(Recorder(), operator=pressed)
    dog.watch()
    assert asked.wait(10)
    dog.hold()
    answer.set()
    time.sleep(0.1)  # the answer comes while nobody watches
    if next_is_a_reset:
        assert dog.operator_says() == "asked to stop"
    else:
        dog.watch()
        assert dog.stopped.reason == "operator: asked to stop"
    assert dog.operator_says() is None  # it is told once


def test_ages_must_be_positive():
    with pytest.raises(ValueError, match="camera_s must be above 0"):
        MaxAge(camera_s=0.0)
    assert "camera a picture" not in MaxAge(frozen_s=None).limits(["a"])
