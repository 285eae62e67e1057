"""A robot as a Gymnasium environment: one command each control period, inside its limits, watched while it moves.

Nothing a policy does can reach the robot but through `limits.allowed`; the watchdog stops it from a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from embodied.errors import UserError
from embodied.robots.driver import Driver, DriverError, Observation
from embodied.robots.eyes import OBS_FORMS, Eyes, observed, observed_space
from embodied.robots.judge import Judge, Task, Verdict
from embodied.robots.limits import Limits, violations
from embodied.robots.targets import Targets
from embodied.robots.watchdog import OBSERVATION, POLICY, MaxAge, Stop, Watchdog

LOOK = 0.5  # of a period after the command the robot is looked at; the rest is for scoring and the policy
READY_S = 5.0  # seconds of ours that a robot may take to show itself before an episode
POLLS = 8  # of the watchdog, each control period


class RobotEnv(gymnasium.Env):
    """A robot behind a driver, with the control rate, limits, watchdogs and stops that make it safe to learn on.

    Actions are in [-1, 1], one entry for each of the driver's action names: how far its target moves in this period,
    1 being as far as its speed limit lets it; for names in `absolute` where the target is, -1 the low end of its range
    and 1 the high end. What `limits` forbid is cut, which `info["clamped"]` tells. Commands are never less than a
    control period apart; a late one does not make the next come sooner.

    An episode is terminated by the reward model's success, and by a safety stop: something too old (`MaxAge`), the
    operator, a measurement outside its limits, an action that is not finite, a robot that is gone or refuses. It is
    truncated after `max_steps`. Then, and in `pause` and `reset`, the robot is held still, and no ages are watched
    until the next command; so learn there, or within the time `MaxAge.policy_s` leaves.

    `info` has after each step: `jitter_s` (how much later than a control period after the last command this one came,
    seconds; nan at the first), `clamped`, `stale` (no camera picture that is new, for a view of the task's),
    `ages` (name -> seconds, by the robot's clock), `stopped` (the reason, or None), `success` (the reward model's word,
    None without one), `unscored` (why this moment has no potential of its own, or None), `reward/<head>` and
    `reward/combined` (potentials), `command` ((A,) that was really sent).

    Args:
        driver: the robot; connected here, disconnected by `close`.
        limits: kept by every command and watched in every observation.
        task: gives reward and success; None: every reward is 0, only stops and `max_steps` end an episode.
        ctrl_hz: commands a second of the robot's clock.
        obs: "state", proprioception (S,) float32; "pixels", the first view's newest picture (H, W, 3) uint8; or
            "mixed", a dict of `pixels` and `agent_pos`.
        reset: puts the scene back before each episode, while the robot is stopped: `by_hand()`, `by_policy(…)`, any
            callable of this environment. None: the scene stays as it is.
        max_age: when the watchdog stops the robot.
        operator: a person's stop: a file (stop while it exists) or a callable that tells, asked several times in
            each control period from the watchdog's thread. `reset` refuses while it is on.
        absolute: action names whose target is given itself: a gripper.
        max_steps: of an episode; None: no limit.

    Attributes:
        last_stop: the safety stop that ended the last episode; None where none did.

    Raises:
        DriverError: the robot cannot be reached, or shows nothing within `READY_S`.
        ValueError: limits that are not this robot's, or an argument out of range.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as Gymnasium declares it

    def __init__(
        self,
        driver: Driver,
        limits: Limits,
        *,
        task: Task | None = None,
        ctrl_hz: float = 20.0,
        obs: str = "mixed",
        reset: Callable[[RobotEnv], None] | None = None,
        max_age: MaxAge | None = None,
        operator: Callable[[], bool] | Path | None = None,
        absolute: Sequence[str] = (),
        max_steps: int | None = None,
    ) -> None:
        if not ctrl_hz > 0:
            raise ValueError(f"RobotEnv: ctrl_hz must be above 0; got {ctrl_hz}.")
        if obs not in OBS_FORMS:
            raise ValueError(f"RobotEnv: obs must be one of {', '.join(OBS_FORMS)}; got {obs!r}.")
        if obs != "state" and not driver.cameras:
            raise ValueError(f"RobotEnv: obs must be 'state' for a robot without cameras; got {obs!r}.")
        if unknown := [name for name in absolute if name not in driver.action_names]:
            raise ValueError(f"RobotEnv: absolute must name actions of the robot; got {', '.join(unknown)}.")
        limits.check_names(driver.action_names, driver.observation_names)
        self.driver, self.limits, self.obs_form, self.max_steps = driver, limits, obs, max_steps
        self.period_s = 1 / ctrl_hz
        self.max_age = max_age or MaxAge()
        self.render_mode = "rgb_array"
        self._clock, self._reset_scene = driver.clock, reset
        self._targets = Targets(limits, driver.action_names, absolute, self.period_s)
        self._operator = operator.exists if isinstance(operator, Path) else operator
        self._where = operator if isinstance(operator, Path) else None
        self._eyes = Eyes(compare=self.max_age.frozen_s is not None)
        self._steps, self._moving, self._ended = 0, False, True
        self._sent_s: float | None = None
        self.last_stop: Stop | None = None
        self._watchdog = Watchdog(
            driver.stop,
            self.max_age.limits(driver.cameras),
            clock=self._clock,
            poll_s=self.period_s / POLLS,
            operator=self._operator,
        )
        try:
            driver.connect()
            self._ready()
            self._hold()
            self.set_task(task)
            self.action_space = spaces.Box(-1.0, 1.0, (len(driver.action_names),), np.float32)
            self.observation_space = observed_space(self._obs())
        except BaseException:
            self.close()
            raise

    @property
    def camera(self) -> str | None:
        """The first camera: what pixel observations show."""
        return self.cameras[0] if self.cameras else None

    @property
    def cameras(self) -> tuple[str, ...]:
        """Every camera of the robot."""
        return self.driver.cameras

    def set_task(self, task: Task | None) -> None:
        """Reward something else from the next episode on; call it between episodes.

        Raises:
            ValueError: it reads a camera that the robot lacks, or in the middle of an episode.
        """
        if not self._ended:
            raise ValueError("RobotEnv.set_task: it must be called between episodes; one is running. Call reset first.")
        views = self.cameras if task is None else task.views or self.cameras
        if unknown := [view for view in views if view not in self.cameras]:
            raise ValueError(
                f"RobotEnv.set_task: task.views must be cameras of the robot, {', '.join(self.cameras)}; "
                f"got {', '.join(unknown)}."
            )
        if task is not None and not views:
            raise ValueError("RobotEnv.set_task: a task needs a camera; the robot has none.")
        self.task, self.views = task, views
        self._judge = None if task is None else Judge(task, views, tuple(sorted(self.signals())))

    # Gymnasium ------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Hold still, put the scene back, and be ready for an episode.

        Raises:
            DriverError: the robot cannot be reached (a lost connection is made again once), shows nothing new, or
                stands outside its limits.
            UserError: the operator's stop is on.
        """
        super().reset(seed=seed, options=options)
        self._ended, self.last_stop = True, None
        self._hold()
        if self._operator is not None and self._operator():
            where = f" Remove {self._where}." if self._where is not None else ""
            raise UserError(f"The operator's stop is on: the robot stays still.{where}")
        self._reach()
        if self._reset_scene is not None:
            self._reset_scene(self)
            self._hold()
        self._start()
        self._steps, self._ended, verdict = 0, False, Verdict()
        if self._judge is not None:
            self._judge.restart()
            verdict = self._judge.look(self._eyes.pictures(self.views), self.signals(), stopped=False)
        return self._obs(), self._info(verdict, jitter_s=np.nan, clamped=False, stale=False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One command, sent when it is due, and what became of it half a period later.

        Raises:
            ValueError: before `reset`, after the end of an episode, or an action of another shape.
        """
        if self._ended:
            raise ValueError("RobotEnv.step: an episode must be running; got none. Call reset first.")
        jitter_s, clamped, stale = self._advance(action)
        self._steps += 1
        stopped = self._watchdog.stopped is not None
        verdict = Verdict()
        if self._judge is not None:
            verdict = self._judge.look(
                None if stale else self._eyes.pictures(self.views), self.signals(), stopped=stopped
            )
        stopped = self._watchdog.stopped is not None  # scoring takes time
        terminated = stopped or bool(verdict.success)
        truncated = not terminated and self.max_steps is not None and self._steps >= self.max_steps
        info = self._info(verdict, jitter_s=jitter_s, clamped=clamped, stale=stale)
        if terminated or truncated:
            self._ended, self.last_stop = True, self._watchdog.stopped
            self._hold()
        return self._obs(), verdict.reward, terminated, truncated, info

    def close(self) -> None:
        """Stop the robot and let it go."""
        self._watchdog.close()
        self.driver.disconnect()

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.frame() if self.cameras else None

    # Outside episodes -----------------------------------------------------------------------------------

    def pause(self) -> None:
        """Hold still on purpose, for as long as it takes (an update of the policy); the next step goes on."""
        if self._watchdog.stopped is None:  # else the next step tells why
            self._hold()

    def drive(self, policy: Callable[[Any], np.ndarray], steps: int) -> str | None:
        """Move by a policy outside any episode, within the same limits and under the same watchdogs: a reset policy.

        Args:
            policy: observation -> action.
            steps: how many.

        Returns:
            Why the robot was stopped before the end; None where it was not.
        """
        self._ended = True
        self._hold()
        self._start()
        for _ in range(steps):
            self._advance(policy(self._obs()))
            if self._watchdog.stopped is not None:
                break
        stopped = self._watchdog.stopped
        self._hold()
        return None if stopped is None else stopped.reason

    def signals(self) -> dict[str, float]:
        """The robot's readings by name, as reward models may read them."""
        return dict(zip(self.driver.observation_names, self._observation.proprio.tolist(), strict=True))

    def frame(self, image_size: int | None = None, camera: str | None = None) -> np.ndarray:
        """A camera's newest picture, however old, (H, W, 3) uint8.

        Args:
            image_size: height and width to resize to; None: as the camera gives it.
            camera: by name; None: the first.

        Raises:
            ValueError: no such camera.
        """
        return self._eyes.image(camera or self.camera, image_size)

    # Moving ---------------------------------------------------------------------------------------------

    def _advance(self, action: Any) -> tuple[float, bool, bool]:
        """One control period: jitter (s), whether limits cut the action, whether a view has no new picture."""
        action = np.asarray(action, np.float64)
        if action.shape != self._targets.sent.shape:
            raise ValueError(f"RobotEnv.step: action must have shape {self._targets.sent.shape}; got {action.shape}.")
        if self._watchdog.stopped is None and not self._moving:
            try:
                self._begin()
            except DriverError as error:
                self._watchdog.trip(f"robot: {error}", self._clock.now())
        if self._sent_s is not None:
            self._clock.sleep(self._sent_s + self.period_s - self._clock.now())
        jitter_s, clamped = self._command(action) if self._watchdog.stopped is None else (np.nan, False)
        self._clock.sleep(LOOK * self.period_s)
        before = self._eyes.new_s(self.views)
        self._look()
        stale = any(now <= then for now, then in zip(self._eyes.new_s(self.views), before, strict=True))
        return jitter_s, clamped, stale

    def _command(self, action: np.ndarray) -> tuple[float, bool]:
        now = self._clock.now()
        if not np.isfinite(action).all():
            self._watchdog.trip(f"action: it must be finite; the policy gave {action.tolist()}", now)
            return np.nan, False
        jitter_s = np.nan if self._sent_s is None else now - self._sent_s - self.period_s
        if self._sent_s is not None and jitter_s > self.period_s / 2:
            self._targets.rest()  # they have come to rest in the meantime
        command, clamped = self._targets.next(action)
        try:
            really = self.driver.act(command)
        except DriverError as error:
            self._watchdog.trip(f"robot: {error}", now)
            return jitter_s, clamped
        if not np.isfinite(really).all():
            self._watchdog.trip(f"robot: it says that it was sent {really.tolist()}", now)
            return jitter_s, clamped
        self._sent_s = self._clock.now()  # after: the next is never less than a period from this one
        self._watchdog.seen(POLICY, self._sent_s)
        self._targets.taken(really)
        return jitter_s, clamped

    def _look(self) -> None:
        """Take the newest observation; what is wrong with it stops the robot."""
        now = self._clock.now()
        try:
            observation = self.driver.observe()
        except DriverError as error:
            self._watchdog.trip(f"robot: {error}", now)
            return
        self._take(observation)
        if observation.stopped is not None:
            self._watchdog.trip(f"robot: {observation.stopped}", now)
        elif found := violations(self.limits, self.driver.observation_names, observation.proprio):
            self._watchdog.trip(f"limit: {'; '.join(found)}", now)

    def _take(self, observation: Observation) -> None:
        """Remember an observation and tell the watchdog what is new in it."""
        now = self._clock.now()
        self._observation = observation
        self._watchdog.seen(OBSERVATION, min(observation.measured_s, now))
        for name, at_s in self._eyes.take(observation.images, now).items():
            self._watchdog.seen(name, at_s)

    # Starting and stopping ------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Still, and unwatched until the next command."""
        try:
            self.driver.stop()
        except DriverError:  # it stops by its own dead-man timer, and `_ready` says so where it is gone
            self._watchdog.rest(told=False)
        else:
            self._watchdog.rest(told=True)
        self._moving = False

    def _reach(self) -> None:
        """The robot shows itself, over a new connection where the old one is lost."""
        try:
            self._ready()
        except DriverError:
            self.driver.disconnect()
            self.driver.connect()
            self._ready()
        self._hold()

    def _start(self) -> None:
        """Ready for the first command."""
        self._ready()
        if found := violations(self.limits, self.driver.observation_names, self._observation.proprio):
            self._hold()
            raise DriverError(f"The robot stands outside its limits: {'; '.join(found)}. Move it back by hand.")

    def _begin(self) -> None:
        """Commands go on from where the robot is, at rest; from here on it is watched."""
        self._ready()
        self._targets.start(self.signals())
        self._sent_s, self._moving = None, True
        self._watchdog.watch()

    def _ready(self) -> None:
        """Release the robot and wait until it takes commands and everything it shows is newer than that.

        Raises:
            DriverError: it did not within `READY_S`; says what is missing.
        """
        self.driver.stop()
        self._watchdog.rest(told=True)  # so no stop that could not be sent before comes after the release
        self.driver.release()
        since, deadline = self._clock.now(), time.monotonic() + READY_S
        while True:
            observation = self.driver.observe()
            self._take(observation)
            missing = [] if observation.stopped is None else [f"it refuses to move ({observation.stopped})"]
            missing += ["no new measurement"] if observation.measured_s < since else []
            missing += self._eyes.missing(self.cameras, since)
            if not missing:
                return
            if time.monotonic() > deadline:
                raise DriverError(f"The robot is not ready after {READY_S:g} s: {'; '.join(missing)}.")
            self._clock.sleep(self.period_s / POLLS)

    def _obs(self) -> Any:
        pixels = None if self.obs_form == "state" else self.frame()
        return observed(self.obs_form, self._observation.proprio.astype(np.float32), pixels)

    def _info(self, verdict: Verdict, *, jitter_s: float, clamped: bool, stale: bool) -> dict[str, Any]:
        now, stopped = self._clock.now(), self._watchdog.stopped
        ages = {"observation": now - self._observation.measured_s} | self._eyes.ages(now)
        potentials = {f"reward/{name}": value for name, value in verdict.potentials.items()}
        return potentials | {
            "jitter_s": jitter_s,
            "clamped": clamped,
            "stale": stale,
            "ages": ages,
            "stopped": None if stopped is None else stopped.reason,
            "success": verdict.success,
            "unscored": verdict.unscored,
            "command": self._targets.sent.copy(),
        }
