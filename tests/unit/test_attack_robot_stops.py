"""Stops, operators and endings that do not go as they should: the arm is stopped, and nobody hangs."""

import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from embodied.errors import UserError
from embodied.robots import control, watchdog
from embodied.robots.driver import DriverError
from embodied.robots.resets import by_policy, enter_pressed
from tests.arms import Arm
from tests.made_arms import FORWARD, maker, steps
from tests.waiting import until


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


# Stopping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("usb"), OSError(5, "io"), ZeroDivisionError(), SystemExit(1)])
def test_a_stop_that_raises_anything_is_tried_again_for_ever(make, error):
    arm = Arm()
    env = make(arm)
    env.reset()
    env.step(FORWARD)
    stop, failures = arm.stop, iter(range(25))

    def failing():
        if next(failures, None) is not None:
            raise error
        stop()

    arm.stop = failing
    assert steps(env, np.array([np.nan, 0.0]))["stopped"].startswith("action: ")
    until(lambda: arm.heard[-1] == "stop")
    assert arm.held
    env.reset()  # and the watchdog is still there
    env.step(FORWARD)
    arm.clock.advance(10.0)
    until(lambda: arm.held)


def test_a_robot_that_cannot_be_told_to_stop_is_not_released(make):
    arm = Arm()
    env = make(arm)
    arm.stop = lambda: 1 / 0
    released = arm.heard.count("release")
    with pytest.raises(DriverError, match="could not be told to stop: ZeroDivisionError"):
        env.reset()
    assert arm.heard.count("release") == released
    del arm.stop


def test_stops_and_farewells_that_hang_do_not_hold_up_close(make, capsys):
    arm, never = Arm(), threading.Event()
    env = make(arm)
    env.reset()
    env.step(FORWARD)
    arm.stop = arm.disconnect = lambda: never.wait(60)
    before = time.monotonic()
    try:
        env.close()
        assert time.monotonic() - before < 10  # of 60
    finally:
        never.set()
    told = capsys.readouterr().err
    assert "could not be told to stop (stop hangs)" in told
    assert "disconnect did not return within 0.3 s" in told
    env.close()
    with pytest.raises(ValueError, match="it must be open"):
        env.reset()


def test_a_farewell_that_raises_is_told_and_the_rest_is_done(make, capsys):
    arm = Arm()
    env = make(arm)
    arm.disconnect = lambda: 1 / 0
    env.close()
    assert "disconnect: ZeroDivisionError" in capsys.readouterr().err
    assert arm.heard[-1] == "stop"


def test_a_stop_while_a_command_is_on_its_way_has_the_last_word(make):
    arm = Arm()
    env = make(arm)
    env.reset()
    env.step(FORWARD)

    def slow(command):
        arm.clock.advance(10.0)
        until(lambda: arm.held)  # the watchdog stops it while the driver is at it
        return arm.go(command)  # and it goes nevertheless

    arm.act = slow
    assert env.step(FORWARD)[4]["stopped"].startswith("policy: ")
    assert arm.heard[-2:] == ["stop", "stop"]
    del arm.act
    env.reset()
    arm.act = slow
    env.step(FORWARD)
    until(lambda: arm.heard[-1] == "stop")


# The operator -------------------------------------------------------------------------------------------


def test_an_operators_check_that_fails_is_a_stop(make):
    arm, bad = Arm(), threading.Event()
    env = make(arm, operator=lambda: 1 / 0 if bad.is_set() else False)
    for _ in range(2):  # and again: the thread that asks has not ended
        env.reset()
        env.step(FORWARD)
        bad.set()
        until(lambda: arm.held)
        assert env.step(FORWARD)[4]["stopped"] == "operator: the check failed (ZeroDivisionError: division by zero)"
        with pytest.raises(UserError, match="the check failed"):
            env.reset()
        bad.clear()


def test_an_operators_check_that_hangs_is_a_stop(make):
    arm, bad, over = Arm(), threading.Event(), threading.Event()
    env = make(arm, operator=lambda: bad.is_set() and over.wait(60) and False, ages={"operator_s": 0.3})
    env.reset()
    env.step(FORWARD)
    bad.set()
    try:
        until(lambda: arm.clock.advance(0.01) or arm.held)
        assert "operator: the check has not answered" in env.step(FORWARD)[4]["stopped"]
        with pytest.raises(UserError, match="does not answer"):
            env.reset()
    finally:
        bad.clear()
        over.set()
    env.reset()


def test_the_end_of_the_standard_input_is_an_operator_who_is_gone(monkeypatch, tmp_path):
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(EOFError):
            enter_pressed()


def test_an_operators_stop_during_a_reset_policy_stops_the_reset(make):
    arm, wanted = Arm(), threading.Event()

    def policy(obs):
        if arm.commands:  # it moves: somebody watches
            wanted.set()
            until(lambda: arm.held)
            wanted.clear()
        return FORWARD

    env = make(arm, operator=wanted.is_set, reset=by_policy(policy, 5))
    with pytest.raises(UserError, match="while it was being reset"):
        env.reset()
    assert arm.heard[-1] == "stop"


# The program's end --------------------------------------------------------------------------------------

SCRIPT = """
import json, os, signal, sys, time
import numpy as np
from embodied.robots.driver import Clock
from embodied.robots.env import RobotEnv
from embodied.robots.watchdog import MaxAge
from tests.arms import LIMITS, Arm

class Told(Arm):
    def stop(self):
        super().stop()
        print("stop", flush=True)
    def go(self, command):
        print("act", flush=True)
        return super().go(command)
    def disconnect(self):
        print("disconnect", flush=True)

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started with, as nohup ignores it
signal.signal(signal.SIGINT, signal.default_int_handler)

def script(how):
    # Nothing but the end of the program stops it: the watchdog is patient.
    ages = MaxAge(camera_s=900.0, observation_s=900.0, policy_s=900.0, frozen_s=None)
    env = RobotEnv(Told(Clock()), LIMITS, ctrl_hz=100.0, max_age=ages)
    env.reset()
    for k in range(10**6):
        env.step(np.array([0.1, 0.0]))
        if k == 3:
            print("moving", flush=True)
            if how == "error":
                raise RuntimeError("a script's mistake")
            if how == "end":
                sys.exit()
            if how == "thinks":
                time.sleep(600)

for how, number in (("", "SIGINT"), ("", "SIGTERM"), ("thinks", "SIGHUP"), ("error", ""), ("end", "")):
    read, write = os.pipe()
    child = os.fork()  # what is imported takes long
    if not child:
        os.dup2(write, 1)
        script(how)
    os.close(write)
    with os.fdopen(read) as stream:
        words = []
        for line in stream:
            words.append(line.strip())
            if line == "moving\\n" and number:
                os.kill(child, getattr(signal, number))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([how, number, words[-2:], status]), flush=True)
"""


def test_however_a_script_ends_the_robots_last_word_is_stop():
    script = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=280, check=True)
    ends = [json.loads(line) for line in script.stdout.splitlines()]
    words = ["stop", "disconnect"]
    assert ends == [
        ["", "SIGINT", words, -2],
        ["", "SIGTERM", words, 143],
        ["thinks", "SIGHUP", words, 129],
        ["error", "", words, 1],
        ["end", "", words, 0],
    ], script.stderr


def test_a_failure_in_a_with_block_closes_the_robot(make):
    def script(arm):
        with make(arm) as env:
            env.reset()
            env.step(FORWARD)
            raise KeyError

    arm = Arm()
    with pytest.raises(KeyError):
        script(arm)
    assert arm.heard[-1] == "stop"
    before = signal.getsignal(signal.SIGTERM)
    assert before is signal.SIG_DFL  # as it was


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
def test_whatever_is_raised_in_the_middle_of_a_step_stops_the_arm(make, error):
    arm = Arm()
    env = make(arm)

    def failing(*given):
        raise error

    for part in ("act", "observe"):
        env.reset()
        env.step(FORWARD)
        setattr(arm, part, failing)
        if error is MemoryError:
            assert env.step(FORWARD)[4]["stopped"].startswith(f"robot: {part}: MemoryError")
        else:
            with pytest.raises(error):
                env.step(FORWARD)
        assert arm.heard[-1] == "stop"
        delattr(arm, part)
    with pytest.raises(error):
        env.drive(failing, 3)
    assert arm.heard[-1] == "stop"
    env.reset()
    env.step(FORWARD)
    with pytest.raises(ValueError, match="must have shape"):
        env.step(np.zeros(5))
    assert arm.heard[-1] == "stop"
    assert env.step(FORWARD)[4]["stopped"] is None  # a mistake of the script's: it may go on


def test_a_robot_that_stops_by_itself_before_the_next_command_is_refused(make):
    arm = Arm()
    arm.deadman_s = 0.01
    with pytest.raises(ValueError, match=r"ctrl_hz must give commands sooner .* after 0.01 s; got 100"):
        make(arm)
    arm.deadman_s = 0.2
    make(arm)
