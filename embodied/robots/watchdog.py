"""A thread that stops the robot when something it relies on grows too old, whatever the policy's thread is doing.

It is told when each thing was last new (`seen`) and looks on its own when the earliest of them will be too old. What
holds Python's interpreter lock for long (a C extension that hangs) holds this thread too: then only the robot's own
dead-man timer is left, so a driver should have one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from embodied.robots.driver import Clock, DriverError

POLICY = "policy"
OBSERVATION = "observation"


@dataclass(frozen=True, kw_only=True)
class MaxAge:
    """How old things may be before the robot is stopped, seconds by the robot's clock; all above 0.

    Attributes:
        camera_s: of the newest frame of each camera, since it was captured. At least a control period and a camera
            period.
        frozen_s: for how long a camera may send the very same picture, byte for byte, as new: one whose driver or
            network repeats its last frame. None: for ever, as for a simulator's camera, which has no noise.
        observation_s: of the proprioception, since it was measured.
        policy_s: between a command and the next.

    Raises:
        ValueError: an age that is not positive.
    """

    camera_s: float = 0.3
    frozen_s: float | None = 0.5
    observation_s: float = 0.2
    policy_s: float = 0.15

    def __post_init__(self) -> None:
        for name in ("camera_s", "observation_s", "policy_s", "frozen_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"MaxAge: {name} must be above 0 seconds; got {value}.")

    def limits(self, cameras: Sequence[str]) -> dict[str, float]:
        """Name -> greatest age, seconds, as `Watchdog` takes them; a camera's picture apart from its frames."""
        limits = {OBSERVATION: self.observation_s, POLICY: self.policy_s}
        limits |= {f"camera {name}": self.camera_s for name in cameras}
        if self.frozen_s is not None:
            limits |= {f"camera {name} picture": self.frozen_s for name in cameras}
        return limits


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Why and when the robot was stopped.

    Attributes:
        reason: for a person, one line; the word before its colon names the cause: camera, observation, policy,
            operator, limit, action, robot.
        due_s: when the cause came about (an age passed its limit, the operator asked), by the robot's clock.
        at_s: when the stop had been sent.
        sent: whether the robot could be told; else its own dead-man timer has to stop it.
    """

    reason: str
    due_s: float
    at_s: float
    sent: bool


def overdue(seen: Mapping[str, float], limits: Mapping[str, float], now: float) -> tuple[str, float] | None:
    """What has been too old for the longest time: its name, and when it became too old; None where nothing is.

    Args:
        seen: name -> when it was last new, seconds.
        limits: name -> how old it may be, seconds; every name of `seen`.
        now: seconds, on the same clock.
    """
    due = [(at + limits[name], name) for name, at in seen.items() if at + limits[name] < now]
    return (min(due)[1], min(due)[0]) if due else None


class Watchdog:
    """Stops the robot once, within a small part of a control period of the cause, and remembers why.

    Args:
        stop: `Driver.stop`; called from this thread or the caller's of `trip`. While it raises DriverError it is tried
            again each poll.
        limits: name -> greatest age, seconds: `MaxAge.limits`.
        clock: the robot's.
        poll_s: how often the operator is asked, and a failed stop tried again, seconds.
        operator: whether a person wants the robot to stop, asked from this thread; raises nothing. None: nobody.
    """

    def __init__(
        self,
        stop: Callable[[], None],
        limits: Mapping[str, float],
        *,
        clock: Clock,
        poll_s: float,
        operator: Callable[[], bool] | None = None,
    ) -> None:
        self._stop, self._limits, self._clock, self._poll_s, self._operator = stop, limits, clock, poll_s, operator
        self._seen: dict[str, float] = {}
        self._changed = threading.Condition(threading.RLock())
        self._watching, self._closed, self._untold = False, False, False
        self.stopped: Stop | None = None
        self._thread = threading.Thread(target=self._run, name="robot watchdog", daemon=True)
        self._thread.start()

    def seen(self, name: str, at_s: float) -> None:
        """Something was new at that time; earlier times than already known change nothing."""
        with self._changed:
            self._seen[name] = max(at_s, self._seen.get(name, at_s))

    def watch(self) -> None:
        """From now on stop the robot where something is too old; what is so already stops it before this returns."""
        with self._changed:
            self.stopped, self._untold, self._watching = None, False, True
            self._look()
            self._changed.notify()

    def rest(self, *, told: bool) -> None:
        """Watch nothing until `watch`: the robot holds still on purpose. Forgets what stopped it.

        Args:
            told: whether the robot has been told to stop since; else that is tried on, each poll.
        """
        with self._changed:
            self._watching, self.stopped, self._untold = False, None, not told
            self._seen.clear()
            self._changed.notify()

    def trip(self, reason: str, due_s: float) -> Stop:
        """Stop the robot now; the first reason is kept.

        Returns:
            What it was stopped for, first.
        """
        with self._changed:
            if self.stopped is None:
                self._watching = False
                self.stopped = Stop(reason=reason, due_s=due_s, at_s=due_s, sent=False)  # no command from here on
                sent = self._told()
                self.stopped = Stop(reason=reason, due_s=due_s, at_s=self._clock.now(), sent=sent)
                self._changed.notify()
            return self.stopped

    def close(self) -> None:
        """End the thread; stops nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _told(self) -> bool:
        try:
            self._stop()
        except DriverError:
            self._untold = True
            return False
        self._untold = False
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                self._look()
                pause = self._pause()
                self._changed.wait(None if pause is None else pause / self._clock.speed)

    def _look(self) -> None:
        now = self._clock.now()
        if self._untold:
            self._told()
        if not self._watching:
            return
        if self._operator is not None and self._operator():
            self.trip("operator: asked to stop", now)
        elif (late := overdue(self._seen, self._limits, now)) is not None:
            name, due = late
            age = now - due + self._limits[name]
            self.trip(f"{name}: {age:.3f} s old, at most {self._limits[name]:.3f} s allowed", due)

    def _pause(self) -> float | None:
        """Until there may be something to see, seconds of the robot: the next that can grow too old, or a poll."""
        if not self._watching:
            return self._poll_s if self._untold else None
        if not self._seen:
            return self._poll_s
        due = min(at + self._limits[name] for name, at in self._seen.items())
        return min(max(due - self._clock.now(), 0) + 1e-4, self._poll_s)
