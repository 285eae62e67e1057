"""The simulated robot in its own process, over a real socket, with everything that can go wrong going wrong."""

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import fields

import numpy as np
import pytest

from embodied.robots.desk_robot import Options
from embodied.robots.driver import DriverError
from embodied.robots.env import RobotEnv
from embodied.robots.simulated import ABSOLUTE, LIMITS, SimulatedRobot, end, main, start
from embodied.robots.watchdog import MaxAge
from embodied.robots.wire import Faults, packed
from tests.waiting import until

AGES = MaxAge(camera_s=0.7, frozen_s=0.7, observation_s=0.6, policy_s=0.5)  # patient: this machine may be busy
FORWARD = np.array([0.4, 0.0, 0.3, 0.5])
AT_REST = 0.04  # m/s


class Bench:
    """One robot's process, which many tests connect to, and its log."""

    def __init__(self, folder):
        self.address, self.log = str(folder / "robot.sock"), folder / "log.jsonl"
        self.read, self.lines = 0, []
        self.process = start(address=self.address, log=str(self.log), deadman_s=1.2, size=32)

    def notes(self, kind=None, since=0.0):
        with self.log.open("rb") as file:
            file.seek(self.read)
            whole = file.read().rpartition(b"\n")[0]  # the last line may still be written
        if whole:
            self.read += len(whole) + 1
            self.lines += [json.loads(line) for line in whole.splitlines()]
        return [line for line in self.lines if line["t"] >= since and kind in (None, line["kind"])]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("robot"))
    yield bench
    end(bench.process)


@pytest.fixture
def robot(bench):
    driver = SimulatedRobot(bench.address)
    yield driver
    driver.disconnect()


@pytest.fixture
def env(robot):
    env = RobotEnv(robot, LIMITS, absolute=ABSOLUTE, max_age=AGES, reset=lambda env: robot.arrange(1))
    yield env
    env.close()


def run(env, steps=400, action=FORWARD):
    """Step to and fro until the episode ends; the last step."""
    for k in range(steps):
        step = env.step(action * [1 - 2 * (k // 8 % 2), 1, 1 - 2 * (k // 8 % 2), 1])
        if step[2] or step[3]:
            return step
    raise AssertionError("the episode did not end")


def begin(env, steps=3):
    """Reset and move; again where a busy machine is itself what stops the arm."""
    for _ in range(4):
        env.reset()
        told = [env.step(FORWARD) for _ in range(steps) if env.last_stop is None]
        if not any(step[2] for step in told):
            return
    raise AssertionError(env.last_stop)


def assert_still(bench, since):
    """The arm has come to rest soon after `since`, and stays so."""
    until(lambda: len(bench.notes("tick", since + 0.1)) >= 5)
    assert max(tick["speed"] for tick in bench.notes("tick", since + 0.1)) < AT_REST


def test_it_goes_where_it_is_sent(env, robot):
    env.reset(seed=0)
    before = env.signals()["gripper_x"]
    for _ in range(12):
        obs, reward, terminated, _, info = env.step(np.array([0.5, 0, 0.3, -1.0]))
        assert not terminated, info["stopped"]
    sent = info["command"][0]
    assert 0.05 < sent - before < 0.12 + 1e-6  # 12 periods at half of 0.4 m/s
    for _ in range(60):
        env.step(np.array([0, 0, 0, -1.0]))
        if abs(env.signals()["gripper_x"] - sent) < 0.02:
            break
    assert env.signals()["gripper_x"] == pytest.approx(sent, abs=0.02)
    assert env.observation_space.contains(obs)
    assert obs["pixels"].shape == (32, 32, 3)
    assert reward == 0
    assert robot.deadman_s == 1.2  # as it says itself
    assert set(robot.truth()) >= {"success", "degrees"}


def test_every_command_is_inside_the_limits_as_the_robot_saw_it(env, bench):
    env.reset()
    since, rng = time.monotonic(), np.random.default_rng(0)
    for _ in range(30):
        *_, terminated, _, _ = env.step(rng.uniform(-2, 2, 4))
        if terminated:
            break
    commands = np.array([note["command"] for note in bench.notes("act", since)])
    low, high, fastest, _ = LIMITS.arrays(env.driver.action_names)
    assert len(commands) >= 20
    assert (commands >= low).all()
    assert (commands <= high).all()
    assert (np.abs(np.diff(commands, axis=0)) <= fastest * env.period_s * (1 + 1e-9)).all()


@pytest.mark.parametrize("faults", [Faults(delay_s=0.08, jitter_s=0.05), Faults(drop=0.4)], ids=["delay", "drop"])
def test_what_can_be_lived_with_is_told_and_lived_with(env, robot, faults):
    begin(env)
    asked = time.monotonic()
    robot.inject(faults)
    until(lambda: robot.observe().measured_s > asked)  # what was on its way before has come
    infos = [env.step(np.array([0.05, 0, 0, 0]))[4] for _ in range(15)]
    assert [info["stopped"] for info in infos] == [None] * 15
    if faults.delay_s:
        assert min(info["ages"]["observation"] for info in infos[3:]) >= 0.08
    else:
        assert any(info["stale"] for info in infos)


@pytest.mark.parametrize(
    ("faults", "cause"),
    [
        (Faults(delay_s=2.0), "observation: |camera front"),
        (Faults(lost=("front",)), "camera front: "),
        (Faults(frozen=("front",)), "camera front picture: "),
        (Faults(drop=1.0), "camera front: "),
        (Faults(mute=True), "observation: "),
    ],
    ids=["late", "camera", "frozen", "dropped", "mute"],
)
def test_what_is_lost_stops_the_arm(env, robot, bench, faults, cause):
    begin(env)
    robot.inject(faults)
    injected = time.monotonic()
    *_, terminated, truncated, info = run(env)
    assert (terminated, truncated) == (True, False)
    assert any(info["stopped"].startswith(each) for each in cause.split("|")), info["stopped"]
    until(lambda: bench.notes("halt", injected))
    halt = bench.notes("halt", injected)[0]
    assert halt["reason"] == "told to stop"
    assert_still(bench, halt["t"])
    robot.inject(Faults())
    begin(env)  # it comes back


def test_a_cable_pulled_in_an_episode(env, robot, bench):
    begin(env)
    robot.inject(Faults(cable_s=2.5))
    pulled = time.monotonic()
    *_, terminated, _, info = run(env)
    assert terminated
    assert info["stopped"].startswith(("observation: ", "camera front"))
    until(lambda: bench.notes("halt", pulled))
    assert bench.notes("halt", pulled)[0]["reason"].startswith("dead-man: ")  # nobody could tell it
    assert_still(bench, bench.notes("halt", pulled)[0]["t"])
    until(lambda: time.monotonic() > pulled + 2.5)
    begin(env)
    late = [note for note in bench.notes("act", pulled + 2.5) if note["sent_s"] < pulled + 2.4]
    assert all(note["refused"] for note in late)  # what waited in the cable moved nothing


def test_a_slow_policy_is_stopped_while_it_thinks(env, bench):
    begin(env)
    thinking = time.monotonic()
    until(lambda: bench.notes("stop", thinking))  # the watchdog's: nothing else runs here
    assert_still(bench, bench.notes("stop", thinking)[0]["t"])
    *_, terminated, _, info = env.step(FORWARD)
    assert terminated
    assert info["stopped"].startswith("policy: ")


def test_an_action_that_is_no_number_stops_the_arm(env, bench):
    begin(env)
    since = time.monotonic()
    *_, terminated, _, info = env.step(np.array([np.nan, 0, 0, 0]))
    assert terminated
    assert info["stopped"].startswith("action: ")
    until(lambda: bench.notes("halt", since))
    assert [note for note in bench.notes("act", since) if note["sent_s"] > since] == []


def test_the_robot_refuses_what_is_no_number_even_from_its_driver(robot, bench):
    robot.connect()
    robot.release()
    until(lambda: robot.observe().stopped is None)
    since = time.monotonic()
    robot.act(np.array([math.nan, 0.0, 0.1, 0.0]))
    until(lambda: bench.notes("act", since) and robot.observe().stopped)
    assert robot.observe().stopped.startswith("a command must be 4 finite numbers")


def test_the_operator_stops_the_arm(robot, bench, tmp_path):
    file = tmp_path / "stop"
    env = RobotEnv(robot, LIMITS, absolute=ABSOLUTE, max_age=AGES, operator=file)
    begin(env)
    file.touch()
    asked = time.monotonic()
    until(lambda: bench.notes("halt", asked))
    *_, terminated, _, info = env.step(FORWARD)
    assert terminated
    assert info["stopped"].startswith("operator: ")
    env.close()


def test_a_stopped_arm_takes_no_command_until_it_is_released(robot, bench):
    robot.connect()
    robot.release()
    until(lambda: robot.observe().stopped is None)
    robot.stop()
    robot.stop()
    with pytest.raises(DriverError, match="is stopped"):
        robot.act(np.array([0.2, 0.2, 0.3, 0.0]))
    robot._hold = False  # a driver that forgets: the robot itself refuses
    since = time.monotonic()
    robot.act(np.array([0.2, 0.2, 0.3, 0.0]))
    until(lambda: bench.notes("act", since))
    assert bench.notes("act", since)[0]["refused"] == "told to stop"


def test_rubbish_from_the_robot_ends_the_episode_and_a_new_connection_helps(env, robot):
    begin(env)
    robot.inject(Faults(garbage=4096))
    *_, terminated, _, info = run(env)
    assert terminated
    assert info["stopped"].startswith("robot: ")
    assert "rubbish" in info["stopped"]
    begin(env)


MALFORMED = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xff" * 9,
    packed({"type": "dance"}),
    packed({"type": "scene"}),
    packed({"type": "scene", "seed": -1, "id": 1}),
    packed({"type": "scene", "seed": "drawer", "id": 1}),
    packed({"type": "scene", "seed": 2**63, "id": 1}),
    packed({"type": "scene", "seed": 1}),
    packed({"type": "truth"}),
    packed({"type": "truth", "id": {"a": [1]}}),
    *(
        packed({"type": "faults", **wrong})
        for wrong in (
            {"x": 1}, {"frozen": 5}, {"lost": [[]]}, {"drop": "x"}, {"drop": 2.0}, {"delay_s": "x"},
            {"delay_s": math.nan}, {"delay_s": math.inf}, {"jitter_s": -1.0}, {"cable_s": "x"},
            {"cable_s": math.nan}, {"garbage": -1},
            {"garbage": 2**40}, {"garbage": 0.5}, {"mute": "x"},
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("one", range(0, len(MALFORMED), 5))
def test_rubbish_to_the_robot_stops_the_arm_and_nothing_else(bench, robot, one):
    for rubbish in MALFORMED[one : one + 5]:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(bench.address)
            since = time.monotonic()
            link.sendall(rubbish)
            link.settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                while link.recv(65536):
                    pass
        until(lambda since=since: bench.notes("hang up", since))
    assert bench.process.poll() is None
    robot.connect()
    assert robot.observe().stopped is not None


def test_commands_that_are_none_are_refused_by_the_robot_itself(bench, robot):
    robot.connect()
    now, place = time.monotonic(), [0.0, 0.0, 0.2, 0.5]
    wrong = [
        {}, {"command": place}, {"command": place, "sent_s": "now"}, {"command": place, "sent_s": math.nan},
        {"command": place, "sent_s": now + 1e6}, {"command": b"\x00", "sent_s": now},
        {"command": place[:3], "sent_s": now},
        {"command": ["0", 0.0, 0.2, 0.5], "sent_s": now}, {"command": [math.inf, 0.0, 0.2, 0.5], "sent_s": now},
        {"command": {b"x": 1}, "sent_s": now}, {"command": [[0.0]] * 4, "sent_s": [now]},
    ]  # fmt: skip
    for message in wrong:
        robot.release()
        until(lambda: robot.observe().stopped is None)
        with robot._sending:  # as a driver with a mistake would
            robot._send({"type": "act", **message})
        until(lambda: robot.observe().stopped is not None)
        assert robot.observe().stopped.startswith("a command ")
    assert bench.process.poll() is None


def test_only_one_can_hold_the_arm(bench, robot):
    robot.connect()
    second = SimulatedRobot(bench.address)
    with pytest.raises(DriverError, match="somebody else is connected"):
        second.connect()
    robot.observe()


def test_the_next_one_can_have_the_arm_at_once(bench):
    for _ in range(15):
        driver = SimulatedRobot(bench.address)
        driver.connect()
        driver.release()
        for _ in range(50):
            driver.act(np.array([0.0, 0.0, 0.2, 0.5]))
        driver.disconnect()


def test_a_robot_of_another_speed_or_none_is_refused(bench, tmp_path):
    with pytest.raises(DriverError, match="its speed is"):
        SimulatedRobot(bench.address, speed=3.0).connect()
    with pytest.raises(DriverError, match="Is its process running"):
        SimulatedRobot(str(tmp_path / "none.sock")).connect()
    with pytest.raises(DriverError, match="did not start"):
        SimulatedRobot(task="dance").connect()
    with pytest.raises(DriverError, match="deadman_s must be above 0"):
        SimulatedRobot(deadman_s=math.nan).connect()


CLIENT = """
import sys, time
import numpy as np
from embodied.robots.simulated import SimulatedRobot
robot = SimulatedRobot(sys.argv[1])
robot.connect()
robot.release()
for k in range(10**6):
    robot.act(np.array([0.1 * np.sin(k / 6), 0.0, 0.2, 0.5]))
    time.sleep(0.05)
    if k == 10:
        print("moving", flush=True)
"""


@pytest.mark.parametrize(
    ("sent", "why"), [(signal.SIGKILL, "connection: "), (signal.SIGSTOP, "dead-man: ")], ids=["killed", "frozen"]
)
def test_the_arm_stops_when_its_commander_dies_or_freezes(bench, sent, why):
    client = subprocess.Popen([sys.executable, "-c", CLIENT, bench.address], stdout=subprocess.PIPE)
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == b"moving\n"
        since = time.monotonic()
        client.send_signal(sent)
        until(lambda: bench.notes("halt", since))
        halt = bench.notes("halt", since)[0]
        assert halt["reason"].startswith(why)
        assert_still(bench, halt["t"])
    finally:
        client.kill()
        client.communicate()
    until(lambda: bench.notes("hang up", since))


def test_a_killed_robot_ends_the_episode_and_reset_starts_it_again():
    robot = SimulatedRobot(size=32)
    env = RobotEnv(robot, LIMITS, absolute=ABSOLUTE, max_age=AGES)
    begin(env)
    first = robot.pid
    os.kill(first, signal.SIGKILL)
    *_, terminated, _, info = run(env)
    assert terminated
    assert info["stopped"].startswith(("robot: ", "observation: "))  # whichever is seen first
    begin(env)
    assert robot.pid != first
    env.close()
    with pytest.raises(ProcessLookupError):
        os.kill(robot.pid, 0)


def test_its_help_says_what_each_option_is(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for each in fields(Options):
        assert re.search(rf"--{each.name}( [A-Z_]+)? [a-z]", told.partition("options:")[2]), each.name
    assert "--cameras CAMERAS cameras of the desk that are filmed, such as front,side. (front)" in told


def test_it_starts_where_python_drops_docstrings():
    command = [sys.executable, "-OO", "-m", "embodied.robots.simulated", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "--address" in done.stdout) == (0, True), done.stderr


def test_a_folder_for_temporary_files_may_be_deep(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    robot = SimulatedRobot(cameras=(), size=32)
    try:
        robot.connect()
        assert robot.pid
    finally:
        robot.disconnect()


def test_what_lies_in_the_working_folder_is_not_taken_for_a_module(tmp_path, monkeypatch):
    (tmp_path / "mujoco.py").write_text("raise SystemExit('somebody else')")
    monkeypatch.chdir(tmp_path)
    process = start(address=str(tmp_path / "robot.sock"), cameras=(), size=32)
    assert process.poll() is None
    end(process)
