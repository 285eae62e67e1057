"""LeRobot's robots behind our driver's interface; they fit by shape, so LeRobot itself is not imported.

A LeRobot robot has `observation_features` and `action_features` (flat: `float`, or a shape for images), `connect()`,
`get_observation()` (a flat dict), `send_action()` (returns what was really sent) and `disconnect()`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from embodied.cameras.camera import Frame
from embodied.locks import hold
from embodied.robots.checks import is_finite
from embodied.robots.driver import Clock, DriverError, Observation
from embodied.robots.guarded import told

FRESH_S = 0.1  # a measured position is where the robot is for so long, seconds
PLACES = ("port", "ip", "address", "host")  # ends of the names of a config's settings that say which robot it is


@runtime_checkable
class LeRobot(Protocol):
    """What we use of `lerobot.robots.Robot`."""

    @property
    def observation_features(self) -> dict[str, Any]: ...
    @property
    def action_features(self) -> dict[str, Any]: ...
    @property
    def is_connected(self) -> bool: ...
    def connect(self) -> None: ...
    def get_observation(self) -> dict[str, Any]: ...
    def send_action(self, action: dict[str, Any]) -> dict[str, Any]: ...
    def disconnect(self) -> None: ...


class LeRobotDriver:
    """The driver of a LeRobot robot whose actions are position targets.

    A stop is kept here, for LeRobot has none: commands are refused, and the position that was measured last is sent as
    the target (the last command's, where that is older than `FRESH_S`). A robot that keeps moving when nobody speaks to
    it, or must be limp when stopped, needs its own driver. There is no dead-man timer on the robot's side either, so no
    `deadman_s`: when this process is killed, a position-controlled arm rests at its last target, at most a control
    period's move away.

    A frame is stamped when it was got; a camera that LeRobot reads in a thread of its own and that has stopped is
    noticed by its repeated picture (`MaxAge.frozen_s`), or by LeRobot's own error.

    Cameras are what has the shape (H, W, 3); depth, (H, W, 1), and whatever else is neither that nor a number is left
    out, see `left_out`.

    Args:
        robot: not connected yet, or connected already.
        lock: a file that nobody else may hold while this is connected, so that no two processes command one robot.
            None: one in the system's temporary folder for each of the robot's ports and addresses, as its `config`
            tells them, or for its `id`; no lock where it tells neither.

    Attributes:
        left_out: names of observations that are not handed on.
    """

    clock = Clock()

    def __init__(self, robot: LeRobot, lock: Path | None = None) -> None:
        self._robot = robot
        features = robot.observation_features
        self.action_names = tuple(robot.action_features)
        self.observation_names = tuple(name for name, kind in features.items() if kind in (float, int, bool))
        self.cameras = tuple(name for name, kind in features.items() if _shows_colours(kind))
        self.left_out = tuple(name for name in features if name not in (*self.observation_names, *self.cameras))
        self._lock_files = _lock_files(robot) if lock is None else [lock]
        self._locks: list[int] = []
        self._bus, self._stopped = threading.RLock(), True
        self._index = 0
        self._measured: tuple[float, dict[str, float]] | None = None
        self._sent: dict[str, float] | None = None

    def connect(self) -> None:
        self._claim()
        try:
            with told("LeRobotDriver: connect"):
                if not self._robot.is_connected:
                    self._robot.connect()
        except BaseException:
            self._unclaim()
            raise

    def observe(self) -> Observation:
        with self._bus, told("LeRobotDriver: get_observation"):
            measured_s = self.clock.now()  # not after: reading takes time
            given = self._robot.get_observation()
            values = {name: float(given[name]) for name in self.observation_names}
            images = {name: _image(name, given[name]) for name in self.cameras}
        self._index += 1
        self._measured = (measured_s, values)
        frames = {name: Frame(image=each, captured_s=measured_s, index=self._index) for name, each in images.items()}
        return Observation(
            proprio=np.array(list(values.values()), np.float32),
            images=frames,
            measured_s=measured_s,
            stopped="stopped here" if self._stopped else None,
        )

    def act(self, command: np.ndarray) -> np.ndarray:
        with self._bus:
            if self._stopped:
                raise DriverError("LeRobotDriver.act: the robot is stopped. Call release first.")
            sent = self._send(dict(zip(self.action_names, command.tolist(), strict=True)))
        return np.array([sent[name] for name in self.action_names])

    def stop(self) -> None:
        self._stopped = True  # at once: what waits for the bus is refused
        if not self._bus.acquire(timeout=FRESH_S):
            raise DriverError("LeRobotDriver.stop: the robot's bus is busy, so it could not be told; try again.")
        try:
            at_s, here = self._measured or (-np.inf, {})
            fresh = self.clock.now() - at_s < FRESH_S
            hold = {name: here[name] for name in self.action_names if is_finite(here.get(name))} if fresh else {}
            if self._sent is not None:  # else it was never moved
                self._send(self._sent | hold)
                self._sent = None
        finally:
            self._bus.release()

    def release(self) -> None:
        with self._bus:
            self._stopped = False

    def disconnect(self) -> None:
        self._stopped = True
        try:
            with suppress(DriverError), told("LeRobotDriver: disconnect"):  # gone already
                if self._robot.is_connected:
                    with suppress(DriverError):  # where it cannot be told, it is let go all the same
                        self.stop()
                    self._robot.disconnect()
        finally:
            self._unclaim()

    def _send(self, targets: dict[str, float]) -> dict[str, float]:
        """Send targets; what the robot says it was sent, by action name."""
        self._sent = targets  # first: a call that fails may have been heard
        with told("LeRobotDriver: send_action"):
            given = self._robot.send_action(dict(targets))
            sent = {name: float(given.get(name, targets[name])) for name in self.action_names}
        self._sent = {name: value if is_finite(value) else targets[name] for name, value in sent.items()}
        return sent

    def _claim(self) -> None:
        """Take every lock.

        Raises:
            DriverError: another process has one, or it cannot be made.
        """
        if self._locks:
            return
        for file in self._lock_files:
            try:
                self._locks.append(_locked(file))
            except OSError as error:
                self._unclaim()
                busy = isinstance(error, BlockingIOError)
                why = "another process (or driver) commands this robot" if busy else str(error)
                raise DriverError(f"LeRobotDriver: {why}; the lock is {file}. Let that one disconnect first.") from None

    def _unclaim(self) -> None:
        while self._locks:
            os.close(self._locks.pop())


def _lock_files(robot: Any) -> list[Path]:
    """Where a robot's locks are: by its ports and addresses, or by its id."""
    config = getattr(robot, "config", None)
    fields = vars(config) if hasattr(config, "__dict__") else {}
    places = [value for name, value in fields.items() if name.endswith(PLACES) and isinstance(value, str) and value]
    names = [os.path.realpath(place) for place in places]  # /dev/serial/by-id/… and /dev/ttyACM0 are one
    if not names and isinstance(name := getattr(robot, "id", None), str):
        names = [f"{type(robot).__name__}-{name}"]
    folder = Path(tempfile.gettempdir())
    return [folder / f"robot-{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock" for name in sorted(set(names))]


def _locked(file: Path) -> int:
    """A handle of a file that this process alone has locked; the system lets go of it when the process ends.

    Raises:
        BlockingIOError: another has.
        OSError: it can be neither made nor opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)  # Windows has neither
    try:
        handle = os.open(file, flags | os.O_CREAT, 0o644)
    except PermissionError:  # another user's, in a folder for all
        handle = os.open(file, flags)
    try:
        hold(handle)
    except OSError:
        os.close(handle)
        raise
    return handle


def _shows_colours(kind: Any) -> bool:
    return isinstance(kind, tuple) and len(kind) == 3 and kind[-1] == 3


def _image(name: str, value: Any) -> np.ndarray:
    """A camera's picture as our frames are.

    Raises:
        ValueError: not (H, W, 3) uint8.
    """
    image = np.ascontiguousarray(value)
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"camera {name} must give (H, W, 3) uint8; got {image.dtype} {image.shape}")
    return image
