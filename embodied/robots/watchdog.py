"""A thread that stops the robot when something it relies on grows too old, whatever the policy's thread is doing.

It is told when each thing was last new (`seen`) and looks on its own when the earliest of them will be too old. It
alone calls the driver's `stop`, so that a stop that hangs holds up nobody else; while that fails, in whatever way, it
is tried again. The operator is asked from a second thread: a check that fails or hangs is a stop.

What holds Python's interpreter lock for long (a C extension that hangs) holds these threads too: then only the robot's
own dead-man timer is left, so a driver should have one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from embodied.robots.checks import check_number
from embodied.robots.driver import Clock

POLICY = "policy"
OBSERVATION = "observation"
OPERATOR = "operator"
OPERATOR_S = 0.5
ASKED = "asked to stop"
LONGEST_S = 3600.0  # of an age
TELL_S = 1.0  # seconds of ours for which a stop's telling is waited for; it is tried on after that
JOIN_S = 0.2  # seconds of ours for a thread to end


@dataclass(frozen=True, kw_only=True)
class MaxAge:
    """How old things may be before the robot is stopped, seconds by its clock; above 0, at most `LONGEST_S`.

    Attributes:
        camera_s: of the newest frame of each camera, since it was captured. At least a control period and a camera
            period.
        frozen_s: for how long a camera may send the very same picture, byte for byte, as new: one whose driver or
            network repeats its last frame. None: for ever, as for a simulator's camera, which has no noise.
        observation_s: of the proprioception, since it was measured.
        policy_s: between a command and the next.
        operator_s: of the operator's last answer that all is well.

    Raises:
        ValueError: an age out of that range, or no number.
    """

    camera_s: float = 0.3
    frozen_s: float | None = 0.5
    observation_s: float = 0.2
    policy_s: float = 0.15
    operator_s: float = OPERATOR_S

    def __post_init__(self) -> None:
        for name in ("camera_s", "observation_s", "policy_s", "operator_s", "frozen_s"):
            value = getattr(self, name)
            if value is not None or name != "frozen_s":
                check_number("MaxAge", name, value, above=0.0, most=LONGEST_S)

    def limits(self, cameras: Sequence[str]) -> dict[str, float]:
        """Name -> greatest age, seconds, as `Watchdog` takes them; a camera's picture apart from its frames."""
        limits = {OBSERVATION: self.observation_s, POLICY: self.policy_s, OPERATOR: self.operator_s}
        limits |= {f"camera {name}": self.camera_s for name in cameras}
        if self.frozen_s is not None:
            limits |= {f"camera {name} picture": self.frozen_s for name in cameras}
        return limits


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Why and when the robot was stopped.

    Attributes:
        reason: for a person, one line; the word before its colon names the cause: camera, observation, policy,
            operator, limit, action, robot, signal.
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
        now: seconds, on the same clock; where it is NaN everything is too old.
    """
    due = [(at + limits[name], name) for name, at in seen.items() if not at + limits[name] >= now]
    return (min(due)[1], min(due)[0]) if due else None


class Watchdog:
    """Stops the robot once, within a small part of a control period of the cause, and remembers why.

    Args:
        stop: `Driver.stop`; called from this object's thread alone. While it raises, it is tried again each poll.
        limits: name -> greatest age, seconds: `MaxAge.limits`.
        clock: the robot's.
        poll_s: how often the operator is asked, and a failed stop tried again, seconds.
        operator: whether a person wants the robot to stop, asked from a thread of its own. None: nobody.

    Attributes:
        stopped: what the robot was stopped for since `watch`; None where it was not.
        failure: why the last try to stop it failed; None where it did not.
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
        self._stop, self._clock, self._poll_s, self._operator = stop, clock, poll_s, operator
        self._limits = {OPERATOR: OPERATOR_S, **limits}
        self._seen: dict[str, float] = {}
        self._changed = threading.Condition(threading.RLock())
        self._watching, self._closed = False, False
        self._asked = self._tried = self._told = 0  # stops, counted: wanted, tried, and those the robot knows of
        self.stopped: Stop | None = None
        self.failure: str | None = None
        self._wish: str | None = None  # why the operator asked to stop when nobody was watching any more
        self._thread = threading.Thread(target=self._run, name="robot watchdog", daemon=True)
        self._asker = threading.Thread(target=self._ask_operator, name="robot operator", daemon=True)
        self._thread.start()
        if operator is not None:
            self._asker.start()

    @property
    def operator_s(self) -> float:
        """How long the operator's check may take, seconds of ours."""
        return self._limits[OPERATOR] / self._clock.speed

    def seen(self, name: str, at_s: float) -> None:
        """Something was new at that time. Nothing is changed by times that are earlier than one already known, ahead
        of the clock or no numbers, nor by names without a limit."""
        with self._changed:
            if name in self._limits and math.isfinite(at_s) and at_s <= self._now():
                self._seen[name] = max(at_s, self._seen.get(name, at_s))

    def watch(self) -> None:
        """From now on stop the robot where something is too old; what is so already stops it before this returns, as
        does an operator's stop that came as the last watch ended."""
        with self._changed:
            self.stopped, self._watching = None, True
            if self._operator is not None:
                self.seen(OPERATOR, self._now())
            self._changed.notify_all()
            if (why := self._kept_wish()) is not None:
                self.trip(f"operator: {why}", self._now())
            self.look()

    def look(self) -> Stop | None:
        """Look now, from the caller's thread; what the robot is stopped for, or None."""
        with self._changed:
            if self._watching and (late := self._late()) is not None:
                self.trip(*late)
            return self.stopped

    def hold(self) -> bool:
        """Stop the robot on purpose, and watch nothing until `watch`. Forgets what it was stopped for.

        Returns:
            Whether it has been told, within `TELL_S`; else that is tried on.
        """
        with self._changed:
            self._watching, self.stopped = False, None
            self._seen.clear()
            return self.tell()

    def trip(self, reason: str, due_s: float, *, wait: bool = True) -> Stop:
        """Stop the robot now; the first reason is kept.

        Args:
            reason: as `Stop.reason`.
            due_s: as `Stop.due_s`.
            wait: for the first try to tell it, at most `TELL_S`.

        Returns:
            What it was stopped for, first.
        """
        with self._changed:
            if self.stopped is None:
                self._watching = False
                self.stopped = Stop(reason=reason, due_s=due_s, at_s=due_s, sent=False)  # no command from here on
                self.tell(wait=wait)
            return self.stopped or Stop(reason=reason, due_s=due_s, at_s=due_s, sent=False)

    def tell(self, *, wait: bool = True, persist: bool = False) -> bool:
        """Have the robot told to stop, whatever it was told before.

        Args:
            wait: for the first try, at most `TELL_S`.
            persist: wait for one that succeeds, as long.

        Returns:
            Whether it is known to have been told.
        """
        with self._changed:
            self._asked += 1
            ticket = self._asked
            self._changed.notify_all()
            if wait and threading.current_thread() is not self._thread:
                self._changed.wait_for(lambda: (self._told if persist else self._tried) >= ticket, TELL_S)
            return self._told >= ticket

    def operator_says(self) -> str | None:
        """Why the operator wants the robot to stay still; None where they do not, or there is none. Raises nothing."""
        if self._operator is None:
            return None
        if (why := self._kept_wish()) is not None:
            return why
        try:
            return ASKED if self._operator() else None
        except BaseException as error:  # a check that fails tells nothing good
            return f"the check failed ({type(error).__name__}: {error})"

    def close(self) -> bool:
        """Stop the robot and end the threads, within a little more than `TELL_S`; whether it could be told."""
        if self._closed:
            return self._told >= self._asked
        with self._changed:
            self._watching = False
            told = self.tell(persist=True)
            self._closed = True
            self._changed.notify_all()
        for thread in (self._thread, self._asker):
            if thread.is_alive():
                thread.join(JOIN_S)
        return told

    # The threads ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                self.look()
                ticket = self._asked
                if self._told >= ticket:
                    pause = self._pause()
                    self._changed.wait(None if pause is None else pause / self._clock.speed)
                    continue
            failure = self._try_to_stop()  # unlocked: it may hang
            with self._changed:
                self._tried, self.failure = ticket, failure
                self._told = self._told if failure else ticket
                if self.stopped is not None and not self.stopped.sent:
                    self.stopped = replace(self.stopped, at_s=self._now(), sent=failure is None)
                self._changed.notify_all()
                if failure and not self._closed and ticket == self._asked:
                    self._changed.wait(self._poll_s / self._clock.speed)

    def _try_to_stop(self) -> str | None:
        """What went wrong; None where nothing did."""
        try:
            self._stop()
        except BaseException as error:  # nothing may end this thread
            return f"{type(error).__name__}: {error}"
        return None

    def _late(self) -> tuple[str, float] | None:
        """Why the robot must be stopped now, and since when; None where it need not be."""
        now = self._now()
        if (late := overdue(self._seen, self._limits, now)) is None:
            return None
        name, due = late
        age, most = now - due + self._limits[name], self._limits[name]
        if name == OPERATOR:
            return f"operator: the check has not answered for {age:.3f} s, at most {most:.3f} s allowed", due
        return f"{name}: {age:.3f} s old, at most {most:.3f} s allowed", due

    def _pause(self) -> float | None:
        """Until there may be something to see, seconds of the robot: the next that can grow too old, or a poll."""
        if not self._watching:
            return None
        if not self._seen:
            return self._poll_s
        left = min(at + self._limits[name] for name, at in self._seen.items()) - self._now()
        return max(left, 0) + 1e-4 if left < self._poll_s else self._poll_s

    def _now(self) -> float:
        """The robot's time; NaN, by which everything is too old, where its clock fails."""
        try:
            return float(self._clock.now())
        except Exception:
            return math.nan

    def _kept_wish(self) -> str | None:
        """An operator's stop that nobody has heeded yet; it is told once."""
        with self._changed:
            why, self._wish = self._wish, None
            return why

    def _ask_operator(self) -> None:
        """The second thread: asks while the robot may move."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._watching or self._closed)
                if self._closed:
                    return
                asked_s = self._now()
            why = self.operator_says()  # unlocked: it may hang
            with self._changed:
                if why is None:
                    self.seen(OPERATOR, asked_s)
                elif self._watching:
                    self.trip(f"operator: {why}", asked_s, wait=False)
                else:  # the watch ended as they answered; one who is told once (a key) would not be heard again
                    self._wish = why
                if not self._closed:
                    self._changed.wait(self._poll_s / self._clock.speed)
