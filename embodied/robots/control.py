"""One robot between an environment and its driver: held still, begun from where it is, commanded and watched.

Nothing a policy or a person does can reach the robot but through `limits.allowed`; the watchdog stops it from a thread
of its own. Whatever fails in between, the last that the robot is told is to stop.

Shape letters: A entries of an action and of a command.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embodied.robots.driver import Driver, DriverError, Observation
from embodied.robots.eyes import Eyes
from embodied.robots.guarded import Guarded, within
from embodied.robots.limits import Limits, violations
from embodied.robots.targets import Targets
from embodied.robots.watchdog import OBSERVATION, POLICY, MaxAge, Stop, Watchdog

LOOK = 0.5  # of a period after the command the robot is looked at; the rest is for scoring and the policy
READY_S = 5.0  # seconds of ours that a robot may take to show itself before an episode
DISCONNECT_S = 3.0  # seconds of ours that letting go may take
POLLS = 8  # of the watchdog, each control period


@dataclass(frozen=True, kw_only=True)
class Moved:
    """One control period.

    Attributes:
        jitter_s: how much later than a period after the last command this one came, seconds; nan where none did.
        clamped: whether limits made the command another than was asked for.
        stale: whether a view has no new picture.
        intervened: whether a person's action stood in for the policy's.
        action: (A,) float32 in [-1, 1] that means what was really sent; the one that stays, where nothing was.
    """

    jitter_s: float
    clamped: bool
    stale: bool
    intervened: bool
    action: np.ndarray


class Control:
    """A robot's motion.

    Args:
        driver: the robot; connected by `connect`.
        limits: kept by every command and watched in every observation.
        period_s: of control, seconds of the robot's clock.
        max_age: when the watchdog stops the robot.
        operator: whether a person wants it to stop.
        takeover: a person's action in place of the policy's, (A,) in [-1, 1]; gives None to leave the policy's.
        absolute: action names whose target is given itself.

    Attributes:
        watchdog: stops the robot.
        eyes: what its cameras have shown.
        targets: where it is sent.
        observation: the newest; its measurements have the latest stamp so far.
    """

    def __init__(
        self,
        driver: Driver,
        limits: Limits,
        *,
        period_s: float,
        max_age: MaxAge,
        operator: Callable[[], bool] | None,
        takeover: Callable[[], Any] | None,
        absolute: Sequence[str],
    ) -> None:
        self.limits, self.period_s, self.takeover = limits, period_s, takeover
        self._driver = Guarded(driver)
        self._clock, self._names = self._driver.clock, self._driver.observation_names
        self.eyes = Eyes(compare=max_age.frozen_s is not None)
        self.targets = Targets(limits, self._driver.action_names, absolute, period_s)
        self.observation = Observation(proprio=np.full(len(self._names), np.nan, np.float32), measured_s=-np.inf)
        self._refused: str | None = None  # why the last measurement was
        self._moving, self._sent_s = False, float("nan")
        self.watchdog = Watchdog(
            self._driver.stop,
            max_age.limits(self._driver.cameras),
            clock=self._clock,
            poll_s=period_s / POLLS,
            operator=operator,
        )

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that show colours."""
        return tuple(name for name in self._driver.cameras if name not in self.eyes.depth)

    def signals(self) -> dict[str, float]:
        """The robot's readings by name."""
        return dict(zip(self._names, self.observation.proprio.tolist(), strict=True))

    # Starting and stopping ------------------------------------------------------------------------------

    def connect(self) -> None:
        """Reach the robot; it is held still.

        Raises:
            DriverError: it cannot be reached, or shows nothing within `READY_S`.
            ValueError: it stops by itself sooner than commands come.
        """
        self._driver.connect()
        deadman_s = self._driver.deadman_s
        if deadman_s is not None and deadman_s <= self.period_s:
            raise ValueError(
                f"RobotEnv: ctrl_hz must give commands sooner than the robot stops by itself, after {deadman_s:g} s; "
                f"got {1 / self.period_s:g}. Raise it above {1 / deadman_s:g}."
            )
        self._ready()
        self.hold()

    def hold(self) -> bool:
        """Still, and unwatched until the next command; whether it could be told at once."""
        self._moving = False
        return self.watchdog.hold()  # where not: that goes on, it has its own dead-man timer, and `_ready` says so

    def reach(self) -> None:
        """The robot shows itself, over a new connection where the old one is lost, and is held still."""
        try:
            self._ready()
        except DriverError:
            self._driver.disconnect(DISCONNECT_S)
            self._driver.connect()
            self._ready()
        self.hold()

    def start(self) -> None:
        """Ready for the first command.

        Raises:
            DriverError: the robot shows nothing new, or stands outside its limits.
        """
        self._ready()
        if found := self._outside():
            self.hold()
            raise DriverError(f"The robot stands outside its limits: {found}. Move it back by hand.")

    def operator_stops(self) -> str | None:
        """Why a person wants the robot to stay still; None where nobody does. Waits for no longer than `OPERATOR_S`."""
        seconds = self.watchdog.operator_s
        done, why = within(seconds, self.watchdog.operator_says)
        return why if done else f"the check does not answer within {seconds:g} s"

    def close(self) -> list[str]:
        """Stop the robot and let it go, in little more than `TELL_S` + `DISCONNECT_S`; what went wrong, in words."""
        told = self.watchdog.close()
        wrong = [] if told else [f"the robot could not be told to stop ({self.watchdog.failure or 'stop hangs'})"]
        left = self._driver.disconnect(DISCONNECT_S)
        return wrong if left is None else [*wrong, left]

    def _begin(self) -> Stop | None:
        """Commands go on from where the robot is, at rest; from here on it is watched."""
        try:
            self._ready()
        except DriverError as error:
            return self.watchdog.trip(f"robot: {error}", self._clock.now())
        if found := self._outside():
            return self.watchdog.trip(f"limit: {found}", self._clock.now())
        self.targets.start(self.signals())
        self._sent_s, self._moving = float("nan"), True
        self.watchdog.watch()
        return self.watchdog.stopped

    def _ready(self) -> None:
        """Release the robot and wait until it takes commands and everything it shows is newer than that.

        Raises:
            DriverError: it did not within `READY_S`; says what is missing. It is held still again.
        """
        if not self.watchdog.hold():  # a stop that is still being tried would come after the release
            failure = self.watchdog.failure or "stop does not return"
            raise DriverError(f"The robot could not be told to stop: {failure}. It is not moved on.")
        try:
            self._driver.release()
            since, deadline = self._clock.now(), time.monotonic() + READY_S
            while missing := self._missing(since):
                if time.monotonic() > deadline:
                    raise DriverError(f"The robot is not ready after {READY_S:g} s: {'; '.join(missing)}.")
                self._clock.sleep(self.period_s / POLLS)
        except BaseException:
            self.hold()
            raise

    def _missing(self, since: float) -> list[str]:
        """What the robot does not show, in words, after looking."""
        stopped = self._take(self._driver.observe()).stopped
        missing = [] if stopped is None else [f"it refuses to move ({stopped})"]
        if self._refused:
            missing.append(f"its measurement: {self._refused}")
        elif self.observation.measured_s <= since:
            missing.append("no new measurement")
        return missing + self.eyes.missing(self.cameras, since)

    def _outside(self) -> str:
        """What is measured where no command can begin, in words."""
        found, here = list(violations(self.limits, self._names, self.observation.proprio)), self.signals()
        if not found:
            found += [f"{name} is {here[name]:.4g}, far out of its range" for name in self.targets.too_far(here)]
        return "; ".join(found)

    # Moving ---------------------------------------------------------------------------------------------

    def advance(self, action: Any, views: Sequence[str]) -> Moved:
        """One control period: a command when it is due, and a look at what became of it.

        Args:
            action: (A,).
            views: the cameras whose pictures shall be new.

        Raises:
            ValueError: an action of another shape.
        """
        action = np.asarray(action, np.float64)
        if action.shape != self.targets.sent.shape:
            raise ValueError(f"RobotEnv.step: action must have shape {self.targets.sent.shape}; got {action.shape}.")
        if self.watchdog.stopped is None and not self._moving:
            self._begin()
        if np.isfinite(self._sent_s):
            self._clock.sleep(min(self._sent_s + self.period_s - self._clock.now(), self.period_s))
        action, intervened = self._person(action)
        before = self.targets.sent
        jitter_s, clamped = self._command(action) if self.watchdog.look() is None else (np.nan, False)
        done = self.targets.as_action(before)
        self._clock.sleep(LOOK * self.period_s)
        seen = self.eyes.new_s(views)
        self._look()
        stale = any(now <= then for now, then in zip(self.eyes.new_s(views), seen, strict=True))
        return Moved(jitter_s=jitter_s, clamped=clamped, stale=stale, intervened=intervened, action=done)

    def _person(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """A person's action where they give one, and whether they do; one that cannot be used stops the robot."""
        if self.takeover is None or self.watchdog.stopped is not None:
            return action, False
        try:
            given = self.takeover()
            theirs = None if given is None else np.array(given, np.float64)
        except Exception as error:
            self.watchdog.trip(f"operator: takeover: {type(error).__name__}: {error}", self._clock.now())
            return action, False
        if theirs is None:
            return action, False
        if theirs.shape != action.shape or not np.isfinite(theirs).all():
            why = f"operator: takeover must give None or {action.shape} finite numbers; got {theirs.tolist()}"
            self.watchdog.trip(why, self._clock.now())
            return action, False
        return theirs, True

    def _command(self, action: np.ndarray) -> tuple[float, bool]:
        now = self._clock.now()
        if not np.isfinite(action).all():
            self.watchdog.trip(f"action: it must be finite; the policy gave {action.tolist()}", now)
            return np.nan, False
        jitter_s = now - self._sent_s - self.period_s  # nan at the first
        if jitter_s > self.period_s / 2:
            self.targets.rest()  # they have come to rest in the meantime
        command, clamped = self.targets.next(action)
        wrong = None
        try:
            really = self._driver.act(command)
            if not np.isfinite(really).all():
                wrong = f"it says that it was sent {really.tolist()}"
            elif not self.targets.believable(really):
                wrong = f"it says that it was sent {really.tolist()}, more than a period's move from {command.tolist()}"
            else:
                self.targets.taken(really)
        except DriverError as error:
            wrong = str(error)
        finally:
            if self.watchdog.stopped is not None:
                self.watchdog.tell()  # it came while the command was on its way, and must have the last word
        self._sent_s = self._clock.now()  # after: the next is never less than a period from this one
        self.watchdog.seen(POLICY, self._sent_s)
        if wrong:
            self.watchdog.trip(f"robot: {wrong}", now)
        return jitter_s, clamped

    def _look(self) -> None:
        """Take the newest observation; what is wrong with it stops the robot."""
        try:
            observation = self._take(self._driver.observe())
        except DriverError as error:
            self.watchdog.trip(f"robot: {error}", self._clock.now())
            return
        if observation.stopped is not None:
            self.watchdog.trip(f"robot: {observation.stopped}", self._clock.now())
        elif found := violations(self.limits, self._names, observation.proprio):  # whenever that was measured
            self.watchdog.trip(f"limit: {'; '.join(found)}", self._clock.now())

    def _take(self, given: Observation) -> Observation:
        """Remember what is new in an observation and tell the watchdog."""
        now = self._clock.now()
        if not given.measured_s <= now:  # it would never grow old
            ahead = given.measured_s - now
            self._refused = f"its time is {given.measured_s}, {ahead:.3f} s ahead of the robot's clock"
        else:
            self._refused = None
            if given.measured_s > self.observation.measured_s:
                self.observation = given
            self.watchdog.seen(OBSERVATION, self.observation.measured_s)
        for name, at_s in self.eyes.take(given.images, now).items():
            self.watchdog.seen(name, at_s)
        return given
