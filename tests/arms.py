"""Robots in this process, by a clock that only the test and its sleepers move: nothing waits for a busy machine."""

import numpy as np

from embodied.cameras.camera import Frame
from embodied.robots.driver import Clock, DriverError, Observation
from embodied.robots.limits import Bound, Limits

LIMITS = Limits(
    command={"x": Bound(-1.0, 1.0, speed=2.0, acceleration=10.0), "grip": Bound(0.0, 1.0, speed=8.0)},
    state={"x": (-1.2, 1.2), "force": (0.0, 50.0)},
)
NAMES = ("x", "grip")


class StepClock(Clock):
    """Time passes where somebody sleeps by it or `advance` is called."""

    at_s: list[float]

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "at_s", [1000.0])

    def now(self):
        return self.at_s[0]

    def sleep(self, seconds):
        self.advance(max(seconds, 0.0))

    def advance(self, seconds):
        self.at_s[0] += seconds


class Arm:
    """Goes where it is sent, at once; its camera shows noise. `heard` is what it was told, in order."""

    action_names, observation_names, cameras = NAMES, ("x", "grip", "force"), ("front",)

    def __init__(self, clock=None):
        self.clock, self.rng = clock or StepClock(), np.random.default_rng(0)
        self.commands, self.heard = [], []
        self.at, self.force, self.gone, self.own, self.connects = np.zeros(2), 0.0, None, None, 0
        self.held, self.last, self.index, self.still = True, None, 0, False

    def connect(self):
        self.connects, self.gone = self.connects + 1, None

    def picture(self):
        return self.rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)

    def observe(self):
        if self.gone:
            raise DriverError(self.gone)
        if self.last is None or not self.still:
            self.index += 1
            self.last = Frame(image=self.picture(), captured_s=self.clock.now(), index=self.index)
        stopped = self.own or ("held" if self.held else None)
        proprio = np.array([*self.at, self.force], np.float32)
        return Observation(proprio=proprio, images={"front": self.last}, measured_s=self.clock.now(), stopped=stopped)

    def act(self, command):
        if self.gone or self.held:
            raise DriverError(self.gone or "held")
        return self.go(command)

    def go(self, command):
        """Obey, whatever else is going on."""
        self.heard.append("act")
        self.commands.append((self.clock.now(), command))
        self.at = command
        return command

    def stop(self):
        self.held = True
        if self.gone:
            raise DriverError(self.gone)
        self.heard.append("stop")

    def release(self):
        if self.gone:
            raise DriverError(self.gone)
        self.held = False
        self.heard.append("release")

    def disconnect(self):
        self.held = True
