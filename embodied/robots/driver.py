"""What a robot must do to stand behind `embodied.robots.env.RobotEnv`: be observed, be told where to go, and stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from embodied.cameras.camera import Frame
from embodied.robots.checks import check_number

FASTEST = 1e4  # clock, times real time


class DriverError(Exception):
    """The robot cannot be reached, is gone, or sent what cannot be understood; the text says which and what to do."""


@dataclass(frozen=True)
class Clock:
    """The robot's time, in seconds: the monotonic clock, `speed` times as fast.

    Real robots have speed 1. A simulated one may be faster than real time; then everything that is measured in
    seconds by this clock (control periods, ages, delays, limits per second, dead-man timers) shrinks alike, while what
    computers do (encoding, a policy's thinking, the scheduler's delays) stays as slow as it is.

    Attributes:
        speed: seconds of the robot in one second of ours, > 0 and at most `FASTEST`.

    Raises:
        ValueError: another speed.
    """

    speed: float = 1.0

    def __post_init__(self) -> None:
        check_number("Clock", "speed", self.speed, above=0.0, most=FASTEST)

    def now(self) -> float:
        return time.monotonic() * self.speed

    def sleep(self, seconds: float) -> None:
        """Sleep so many of the robot's seconds; not at all when negative."""
        if seconds > 0:
            time.sleep(seconds / self.speed)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Whether the event came within so many of the robot's seconds."""
        return event.wait(max(seconds, 0) / self.speed)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The newest that is known of a robot; parts may be of different ages.

    Attributes:
        proprio: (S,) float32, one number for each of the driver's `observation_names`, in their units.
        images: camera name -> its newest frame, `Frame.captured_s` by the driver's clock. A camera that has sent
            nothing yet is missing; one that is lost keeps its last frame, which grows older. Only a later stamp than
            the one before is news, and none may be later than now.
        measured_s: when `proprio` was measured, by the driver's clock; alike.
        stopped: why the robot itself refuses to move (an emergency stop, its dead-man timer, `Driver.stop`); None when
            it takes commands.
    """

    proprio: np.ndarray
    images: Mapping[str, Frame] = field(default_factory=dict)
    measured_s: float
    stopped: str | None = None


@runtime_checkable
class Driver(Protocol):
    """A robot. Commands are targets (positions in metres, radians, degrees or shares of a range) by name.

    Every method but `stop` is called from one thread; `stop` is called from any, also while another call blocks. What
    they raise beside DriverError, and what they return that is not as said here, stops the robot too.

    A robot that stops by itself when no command comes tells after how long by `deadman_s`, an attribute in seconds by
    its clock (None or missing: it does not). It is what is left when this process is killed or its computer fails, so
    a driver should have one; the control period must be shorter.

    A name that is in both `action_names` and `observation_names` means one thing in one unit: the target, and where it
    is now. LeRobot's robots fit through `embodied.robots.lerobot.LeRobotDriver`.
    """

    @property
    def clock(self) -> Clock:
        """By which `measured_s` and `captured_s` are told."""
        ...

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the A entries of a command."""
        ...

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Names of the S entries of `Observation.proprio`."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras; may be none."""
        ...

    def connect(self) -> None:
        """Reach the robot; it does not move. Nothing happens when it is connected already.

        Raises:
            DriverError: it cannot be reached.
        """
        ...

    def observe(self) -> Observation:
        """The newest observation; old ones are given again rather than waited for, so look at the ages.

        Raises:
            DriverError: the robot is gone.
        """
        ...

    def act(self, command: np.ndarray) -> np.ndarray:
        """Send targets, (A,); returns what was really sent, (A,), after the robot's own clipping.

        Raises:
            DriverError: the robot is gone, or stopped and not released.
        """
        ...

    def stop(self) -> None:
        """Hold still, at once, and refuse every command until `release`. May be called at any time, twice, by any
        thread, and after the robot is gone.

        Raises:
            DriverError: the robot could not be told; it must stop by its own dead-man timer.
        """
        ...

    def release(self) -> None:
        """Take commands again after a stop; nothing moves by that alone.

        Raises:
            DriverError: the robot is gone.
        """
        ...

    def disconnect(self) -> None:
        """Stop and let go; nothing happens when it is not connected. Never raises for a robot that is gone."""
        ...
