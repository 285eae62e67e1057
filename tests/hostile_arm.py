"""A robot that does everything at random that a robot should not, and what came of it."""

import threading
import time
from dataclasses import asdict, dataclass

import numpy as np

from embodied.cameras.camera import Frame
from embodied.errors import UserError
from embodied.robots.driver import DriverError, Observation
from embodied.robots.env import RobotEnv
from embodied.robots.limits import Limits
from embodied.robots.watchdog import MaxAge
from tests.arms import LIMITS, NAMES, Arm
from tests.waiting import until

HZ = 100.0
MOVE = np.array([LIMITS.command[name].speed for name in NAMES]) / HZ  # the most in a period
ERRORS = (DriverError("gone"), RuntimeError("usb"), ValueError("nan"), OSError(5, "io"), KeyError("x"), TypeError())
ARRAYS = (None, "left", np.zeros(0), np.zeros(7), np.full(2, np.nan), np.array([np.inf, 0.0]), [[0.0]], 1e308, {})
ROUNDING = 1e-4  # of a period's move: measurements are float32
CLOSE_S = 10.0  # far more than what close promises, for a busy machine


class Hostile(Arm):
    """Misbehaves at random from the moment `angry` is set; `broken` counts how often."""

    def __init__(self, seed):
        super().__init__()
        self.whims, self.angry, self.broken = np.random.default_rng([7, seed]), 0.0, 0
        self.jumps = []  # how far a command was from where the arm stood or was sent before, in moves
        self.outside, self.fresh, self.hangs = 0, True, None

    def whim(self):
        found = self.whims.random() < self.angry
        self.broken += found
        return found

    def one(self, choices):
        return choices[int(self.whims.integers(len(choices)))]

    def fail(self):
        if self.whim():
            raise self.one(ERRORS)

    def stamp(self):
        now = self.clock.now()
        return self.one((now + 1e-3, now + 1e9, now - 1.0, now - 0.02, -1e9, np.nan, np.inf, -np.inf, 0.0))

    def observe(self):
        self.fail()
        if self.whim():
            self.at = self.at + self.whims.normal(0, 0.5, 2)  # pushed
        seen = super().observe()
        proprio, images, measured_s, stopped = seen.proprio, dict(seen.images), seen.measured_s, seen.stopped
        if self.whim():
            return self.one((None, 5, "observation", {}, [proprio]))
        if self.whim():
            # Only what can be told from the truth: a plausible lie about where the arm stands is past finding out.
            proprio = np.full(self.one((0, 2, 3, 4)), self.one((np.nan, np.inf, 1e4, -1e30)), np.float32)
        if self.whim():
            measured_s = self.stamp()
        if self.whim():
            shape = self.one(((8, 8, 1), (8, 8), (0, 8, 3), (8, 8, 4), (9, 7, 3)))
            image = np.zeros(shape, self.one((np.uint8, np.uint16, np.float32)))
            images["front"] = Frame(image=image, captured_s=self.one((measured_s, self.stamp())), index=0)
        if self.whim():
            images = self.one(({}, {"ghost": seen.images["front"]}))
        if self.whim():
            stopped = "its own reasons"
        return Observation(proprio=proprio, images=images, measured_s=measured_s, stopped=stopped)

    def act(self, command):
        self.fail()
        if self.whim():
            self.clock.advance(self.one((0.004, 0.05, 1.0)))
        before = self.commands[-1][1] if self.commands and not self.fresh else self.at
        self.jumps.append((np.abs(command - before) / MOVE).max())
        low, high, _, _ = LIMITS.arrays(NAMES)
        slack = ROUNDING * MOVE
        back = (command >= np.minimum(low, before) - slack) & (command <= np.maximum(high, before) + slack)
        self.outside += not back.all()  # further out than where it came from
        self.fresh = False
        really = self.go(command.copy())
        if self.whim():
            command[:] = np.nan  # writes over what it was lent
        self.fail()  # after it was heard
        if self.whim():
            return self.one(ARRAYS)
        if self.whim():
            return really + self.whims.normal(size=2) * self.one((1e-9, 0.5 * MOVE[0], 1.0, 1e9))
        return really

    def stop(self):
        if self.hangs is not None:
            self.hangs.wait()
        self.fail()
        if self.whim():
            time.sleep(0.002)  # late
        super().stop()

    def release(self):
        self.fresh = True
        self.fail()
        super().release()

    def connect(self):
        self.fail()
        super().connect()

    def disconnect(self):
        if self.hangs is not None:
            self.hangs.wait()
        self.fail()

    def operator(self):
        self.fail()
        return self.whim()

    def takeover(self):
        return self.one((*ARRAYS, self.whims.normal(size=2))) if self.whim() else None


@dataclass
class Tally:
    """What an attack came to; everything from `not_finite` on must be 0."""

    inputs: int = 0  # that were wrong
    stops: int = 0  # of episodes, by what was wrong
    commands: int = 0
    not_finite: int = 0  # commands
    jumps: int = 0  # commands more than a period's move from the last one, or from where the arm stood
    outside: int = 0  # commands out of range, and not on the way back from where the arm had been pushed
    moved_on: int = 0  # episodes after which the last that the robot heard was a command
    slow_closes: int = 0
    silent_ends: int = 0  # episodes that ended without a reason

    def __add__(self, other):
        return Tally(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    @property
    def violations(self):
        return self.not_finite + self.jumps + self.outside + self.moved_on + self.slow_closes + self.silent_ends


def attack(seed: int, episodes: int = 3, steps: int = 25) -> Tally:
    """Episodes of wild actions on a hostile robot, with a hostile operator and hand now and then."""
    arm, rng, tally = Hostile(seed), np.random.default_rng(seed), Tally()
    try:
        env = RobotEnv(
            arm,
            LIMITS if seed % 2 else Limits(command=LIMITS.command),
            ctrl_hz=HZ,
            absolute=("grip",),
            max_age=MaxAge(camera_s=0.1, observation_s=0.1, policy_s=0.1, operator_s=60.0, frozen_s=None),
            operator=arm.operator if seed % 5 == 0 else None,
            takeover=arm.takeover if seed % 3 == 0 else None,
        )
    except DriverError:  # on a busy machine it may show nothing in time: then nothing moves
        return Tally(arm.broken, stops=1, commands=len(arm.commands), moved_on=len(arm.commands))
    arm.angry = float(rng.choice([0.01, 0.03, 0.1]))
    for _ in range(episodes):
        try:
            env.reset()
            for k in range(steps):
                action = rng.normal(size=2) * 10.0 ** rng.integers(-1, 12)
                *_, terminated, _, info = env.step(action)
                assert env.action_space.contains(info["intervene_action"])
                if terminated:
                    tally.stops += 1
                    tally.silent_ends += info["stopped"] is None
                    break
                if k % 9 == 8:
                    env.pause()
            else:
                env.pause()
        except (DriverError, UserError):
            tally.stops += 1
        try:
            until(lambda: not arm.heard or arm.heard[-1] != "act", CLOSE_S)  # a stop that failed is tried again
        except AssertionError:
            tally.moved_on += 1
    if seed % 10 == 0:
        arm.hangs = threading.Event()
    before = time.monotonic()
    env.close()
    tally.slow_closes = int(time.monotonic() - before > CLOSE_S)
    if arm.hangs is not None:
        arm.hangs.set()
    tally.inputs, tally.commands = arm.broken, len(arm.commands)
    tally.not_finite = int(sum(not np.isfinite(command).all() for _, command in arm.commands))
    tally.jumps = int(sum(not jump <= 1 + ROUNDING for jump in arm.jumps))
    tally.outside = arm.outside
    return tally
