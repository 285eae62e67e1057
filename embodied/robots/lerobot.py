"""LeRobot's robots behind our driver's interface; they fit by shape, so LeRobot itself is not imported.

A LeRobot robot has `observation_features` and `action_features` (flat: `float`, or a shape for images), `connect()`,
`get_observation()` (a flat dict), `send_action()` (returns what was really sent) and `disconnect()`.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol, runtime_checkable

import numpy as np

from embodied.cameras.camera import Frame
from embodied.robots.driver import Clock, DriverError, Observation

FRESH_S = 0.1  # a measured position is where the robot is for so long, seconds


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
    it, or must be limp when stopped, needs its own driver. There is no dead-man timer on the robot's side either: a
    position-controlled arm rests at its last target, at most a control period's move away.

    A frame is stamped when it was got; a camera that LeRobot reads in a thread of its own and that has stopped is
    noticed by its repeated picture (`MaxAge.frozen_s`), or by LeRobot's own error.

    Args:
        robot: not connected yet, or connected already.
    """

    clock = Clock()

    def __init__(self, robot: LeRobot) -> None:
        self._robot = robot
        features = robot.observation_features
        self.action_names = tuple(robot.action_features)
        self.observation_names = tuple(name for name, kind in features.items() if not _is_image(kind))
        self.cameras = tuple(name for name, kind in features.items() if _is_image(kind))
        self._bus, self._stopped = threading.RLock(), True
        self._index = 0
        self._measured: tuple[float, dict[str, float]] | None = None
        self._sent: dict[str, float] | None = None

    def connect(self) -> None:
        if self._robot.is_connected:
            return
        with _told("connect"):
            self._robot.connect()

    def observe(self) -> Observation:
        with self._bus, _told("get_observation"):
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
            hold = {name: here[name] for name in self.action_names if name in here} if fresh else {}
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
        if self._robot.is_connected:
            try:
                self.stop()
                self._robot.disconnect()
            except (DriverError, OSError, RuntimeError):
                return  # gone already

    def _send(self, targets: dict[str, float]) -> dict[str, float]:
        with _told("send_action"):
            sent = self._robot.send_action(targets)
            self._sent = {name: float(sent.get(name, targets[name])) for name in self.action_names}
        return self._sent


class _told:  # noqa: N801  reads as a word
    """Whatever a robot's own code raises, as DriverError: the environment stops for it, and says what it was."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, DriverError):
            raise DriverError(f"LeRobotDriver: {self._what}: {type(error).__name__}: {error}") from error


def _is_image(kind: Any) -> bool:
    return isinstance(kind, tuple) and len(kind) == 3


def _image(name: str, value: Any) -> np.ndarray:
    """A camera's picture as our frames are.

    Raises:
        ValueError: not (H, W, 3) uint8.
    """
    image = np.ascontiguousarray(value)
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"camera {name} must give (H, W, 3) uint8; got {image.dtype} {image.shape}")
    return image
