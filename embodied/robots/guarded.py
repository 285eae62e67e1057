"""A driver of which nothing is taken on trust: whatever it raises, gives or waits for, its user is told in one way.

Shape letters: A entries of a command, S of an observation; H, W image.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from embodied.robots.checks import check_number
from embodied.robots.driver import Driver, DriverError, Observation

LONGEST_S = 3600.0  # of a dead-man time


@contextmanager
def told(where: str) -> Iterator[None]:
    """Whatever a robot's own code raises, as DriverError that says where and what; it lets Ctrl-C through.

    Args:
        where: begins the error's text.

    Raises:
        DriverError: for whatever the robot's code raised.
    """
    try:
        yield
    except DriverError:
        raise
    except Exception as error:
        raise DriverError(f"{where}: {type(error).__name__}: {error}") from error


def within(seconds: float, call: Callable[[], Any]) -> tuple[bool, Any]:
    """Call something that may hang, in a thread of its own, which is left behind if it does.

    Args:
        seconds: of ours, to wait.
        call: no arguments.

    Returns:
        Whether it came back in time, and what it returned.

    Raises:
        BaseException: what it raised, where it came back in time.
    """
    came: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            came.append((call(), None))
        except BaseException as error:  # is raised again in the thread that waits
            came.append((None, error))

    thread = threading.Thread(target=run, name="robot call", daemon=True)
    thread.start()
    thread.join(seconds)
    if not came:
        return False, None
    ((value, error),) = came
    if error is not None:
        raise error
    return True, value


class Guarded:
    """A driver's calls, checked.

    Args:
        driver: the robot's.

    Attributes:
        clock: the driver's, as are the names, read once:
        action_names: of the A entries.
        observation_names: of the S entries.
        cameras: all that it names.

    Raises:
        ValueError: it has no action, or names one thing twice.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver, self.clock = driver, driver.clock
        self.action_names, self.observation_names = tuple(driver.action_names), tuple(driver.observation_names)
        self.cameras = tuple(driver.cameras)
        for kind in ("action_names", "observation_names", "cameras"):
            names = getattr(self, kind)
            if len(set(names)) < len(names) or (kind == "action_names" and not names):
                raise ValueError(f"RobotEnv: driver.{kind} must be names, each once, at least one action; got {names}.")

    @property
    def deadman_s(self) -> float | None:
        """After so long without a command the robot stops by itself, seconds by its clock; None: it does not.

        Raises:
            ValueError: the driver tells no time.
        """
        seconds = getattr(self._driver, "deadman_s", None)
        if seconds is not None:
            check_number("RobotEnv", "driver.deadman_s", seconds, above=0.0, most=LONGEST_S)
        return seconds

    def connect(self) -> None:
        """`Driver.connect`; raises DriverError alone."""
        with told("connect"):
            self._driver.connect()

    def release(self) -> None:
        """`Driver.release`; raises DriverError alone."""
        with told("release"):
            self._driver.release()

    def stop(self) -> None:
        """`Driver.stop`, which may raise anything and take for ever."""
        self._driver.stop()

    def observe(self) -> Observation:
        """`Driver.observe`: an observation in the right form, whose numbers and times may still be anything.

        Raises:
            DriverError: the robot is gone, or what it gave has another form.
        """
        with told("observe"):
            given = self._driver.observe()
            with np.errstate(over="ignore"):
                proprio = np.array(given.proprio, np.float32)
            if proprio.shape != (len(self.observation_names),):
                raise DriverError(f"it gave {proprio.shape} measurements, not {len(self.observation_names)}")
            return Observation(
                proprio=proprio,
                images={name: given.images[name] for name in self.cameras if name in given.images},
                measured_s=float(given.measured_s),
                stopped=None if given.stopped is None else str(given.stopped),
            )

    def act(self, command: np.ndarray) -> np.ndarray:
        """`Driver.act`; (A,) float64 that may be anything.

        Raises:
            DriverError: the robot is gone or refuses, or the answer has another form.
        """
        with told("act"):
            really = np.array(self._driver.act(command.copy()), np.float64)
            if really.shape != command.shape:
                raise DriverError(f"it says that it was sent {really.shape} numbers, not {command.shape}")
            return really

    def disconnect(self, seconds: float) -> str | None:
        """`Driver.disconnect`, waited for no longer than that, in seconds of ours; returns what went wrong."""
        try:
            done, _ = within(seconds, self._driver.disconnect)
        except Exception as error:
            return f"disconnect: {type(error).__name__}: {error}"
        return None if done else f"disconnect did not return within {seconds:g} s"
