"""A robot as a Gymnasium environment: one command each control period, inside its limits, watched while it moves.

Nothing a policy does can reach the robot but through `limits.allowed`; the watchdog stops it from a thread of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from embodied.envs.interventions import INTERVENE_ACTION, IS_INTERVENTION
from embodied.errors import UserError
from embodied.robots import endings
from embodied.robots.checks import check_count, check_number
from embodied.robots.control import Control, Moved
from embodied.robots.driver import Driver
from embodied.robots.eyes import OBS_FORMS, observed, observed_space
from embodied.robots.judge import Judge, Task, TaskVerdict
from embodied.robots.limits import Limits
from embodied.robots.watchdog import ASKED, MaxAge, Stop

FASTEST_HZ = 1000.0  # Python keeps no time beyond it


class RobotEnv(gymnasium.Env):
    """A robot behind a driver, with the control rate, limits, watchdogs and stops that make it safe to learn on.

    Actions are in [-1, 1], one entry for each of the driver's action names: how far its target moves in this period,
    1 being as far as its speed limit lets it; for names in `absolute` where the target is, -1 the low end of its range
    and 1 the high end. What `limits` forbid is cut, which `info["clamped"]` tells. Commands are never less than a
    control period apart; a late one does not make the next come sooner.

    An episode is terminated by the reward model's success, and by a safety stop: something too old (`MaxAge`), the
    operator, a measurement outside its limits, an action that is not finite, a robot that is gone or refuses. It is
    truncated after `max_steps`. Then, and in `pause` and `reset`, the robot is held still, and no ages are watched
    until the next command; so learn there, or within the time `MaxAge.policy_s` leaves. After that commands go on from
    where the robot then is, if it is inside its limits.

    However the program ends, the robot is stopped first: use it as a context manager, or `close` it; what is open at
    the interpreter's end, at SIGTERM or SIGHUP is closed then, and an error or Ctrl-C in `step`, `reset` or `drive`
    stops it at once. When the process is killed, the driver's dead-man time (`Driver`) is what stops the robot.

    `info` has after each step: `jitter_s` (how much later than a control period after the last command this one came,
    seconds; nan at the first), `clamped`, `stale` (no camera picture that is new, for a view of the task's),
    `ages` (name -> seconds, by the robot's clock), `stopped` (the reason, or None), `success` (the reward model's word,
    None without one), `unscored` (why this moment has no potential of its own, or None), `reward/<head>` and
    `reward/combined` (potentials), `command` ((A,) that was really sent), `intervene_action` ((A,) in [-1, 1], the
    action that means what was really sent in this period, after limits and takeover: what a learner should remember;
    where nothing was sent, the one that stays), `is_intervention` (whether a person's action stood in for the
    policy's); the last two as `embodied.envs.interventions` says.

    Args:
        driver: the robot; connected here, disconnected by `close`.
        limits: kept by every command and watched in every observation.
        task: gives reward and success; None: every reward is 0, only stops and `max_steps` end an episode.
        ctrl_hz: commands a second of the robot's clock, at most `FASTEST_HZ`; a period must be shorter than
            `max_age.policy_s` and the driver's dead-man time.
        obs: "state", proprioception (S,) float32; "pixels", the first view's newest picture (H, W, 3) uint8; or
            "mixed", a dict of `pixels` and `agent_pos`.
        reset: puts the scene back before each episode, while the robot is stopped: `by_hand()`, `by_policy(…)`, any
            callable of this environment. None: the scene stays as it is.
        max_age: when the watchdog stops the robot.
        operator: a person's stop: a file (stop while it exists) or a callable that tells, asked several times in
            each control period from a thread of its own. One that raises, or does not answer for `max_age.operator_s`,
            stops it too. `reset` refuses while it is on.
        takeover: a person's hand on the robot, asked before each command: their action, (A,) in [-1, 1], goes in place
            of the policy's, through the same limits; None leaves the policy's. It should answer at once.
        absolute: action names whose target is given itself: a gripper.
        max_steps: of an episode; None: no limit.

    Attributes:
        last_stop: the safety stop that ended the last episode; None where none did.

    Raises:
        DriverError: the robot cannot be reached, or shows nothing within `control.READY_S`.
        ValueError: limits that are not this robot's, or an argument out of range.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as Gymnasium declares it

    def __init__(  # the robot, what it must keep, and who may say what: none has a default that hides another
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
        takeover: Callable[[], Any] | None = None,
        absolute: Sequence[str] = (),
        max_steps: int | None = None,
    ) -> None:
        check_number("RobotEnv", "ctrl_hz", ctrl_hz, above=0.0, most=FASTEST_HZ)
        if max_steps is not None:
            check_count("RobotEnv", "max_steps", max_steps)
        if obs not in OBS_FORMS:
            raise ValueError(f"RobotEnv: obs must be one of {', '.join(OBS_FORMS)}; got {obs!r}.")
        if unknown := [name for name in absolute if name not in driver.action_names]:
            raise ValueError(f"RobotEnv: absolute must name actions of the robot; got {', '.join(unknown)}.")
        limits.check_names(driver.action_names, driver.observation_names)
        self.driver, self.limits, self.obs_form, self.max_steps = driver, limits, obs, max_steps
        self.period_s, self.max_age = 1 / ctrl_hz, max_age or MaxAge()
        if not self.period_s < self.max_age.policy_s:
            raise ValueError(
                f"RobotEnv: max_age.policy_s must be longer than a control period, {self.period_s:g} s; "
                f"got {self.max_age.policy_s:g}. Raise it, or ctrl_hz."
            )
        self.render_mode = "rgb_array"
        self._clock, self._reset_scene = driver.clock, reset
        self._where = operator if isinstance(operator, Path) else None
        self._steps, self._ended, self._closed = 0, True, False
        self.last_stop: Stop | None = None
        self._control = Control(
            driver,
            limits,
            period_s=self.period_s,
            max_age=self.max_age,
            operator=operator.exists if isinstance(operator, Path) else operator,
            takeover=takeover,
            absolute=absolute,
        )
        try:
            endings.begin(self)
            self._control.connect()
            if obs != "state" and not self.cameras:
                raise ValueError(f"RobotEnv: obs must be 'state' for a robot without colour cameras; got {obs!r}.")
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
        """Every camera of the robot that shows colours; one whose pictures have one channel (depth) is left out."""
        return self._control.cameras

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
        self._check_open("reset")
        self._ended, self.last_stop = True, None
        with self._still_after_errors():
            self._control.hold()
            self._check_operator()
            self._control.reach()
            if self._reset_scene is not None:
                self._reset_scene(self)
                self._control.hold()
                self._check_operator()  # who pressed it meanwhile meant it
            self._control.start()
            self._steps, self._ended, verdict = 0, False, TaskVerdict()
            if self._judge is not None:
                self._judge.restart()
                verdict = self._judge.look(self._control.eyes.pictures(self.views), self.signals(), stopped=False)
            return self._obs(), self._info(verdict)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One command, sent when it is due, and what became of it half a period later.

        Raises:
            ValueError: before `reset`, after the end of an episode, or an action of another shape.
        """
        if self._ended:
            raise ValueError("RobotEnv.step: an episode must be running; got none. Call reset first.")
        with self._still_after_errors():
            moved = self._control.advance(action, self.views)
            self._steps += 1
            stopped = self._control.watchdog.stopped is not None
            verdict = TaskVerdict()
            if self._judge is not None:
                pictures = None if moved.stale else self._control.eyes.pictures(self.views)
                verdict = self._judge.look(pictures, self.signals(), stopped=stopped)
            stopped = self._control.watchdog.look() is not None  # scoring takes time
            terminated = stopped or bool(verdict.success)
            truncated = not terminated and self.max_steps is not None and self._steps >= self.max_steps
            info = self._info(verdict, moved)
            if terminated or truncated:
                self._ended, self.last_stop = True, self._control.watchdog.stopped
                self._control.hold()
            return self._obs(), verdict.reward, terminated, truncated, info

    def close(self) -> None:
        """Stop the robot and let it go; returns within about `TELL_S` + `DISCONNECT_S`, 4 s, also where they hang."""
        if self._closed:
            return
        self._closed = self._ended = True
        endings.forget(self)
        for wrong in self._control.close():
            print(f"RobotEnv.close: {wrong}. Look at the robot: its own dead-man timer must stop it.", file=sys.stderr)

    def halt(self, why: str) -> None:
        """Have the robot stopped from any thread, also in the middle of anything, without waiting for it.

        Args:
            why: for `Stop.reason`.
        """
        self._control.watchdog.trip(why, self._clock.now(), wait=False)

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.frame() if self.cameras else None

    # Outside episodes -----------------------------------------------------------------------------------

    def pause(self) -> None:
        """Hold still on purpose, for as long as it takes (an update of the policy); the next step goes on."""
        if self._control.watchdog.stopped is None:  # else the next step tells why
            self._control.hold()

    def drive(self, policy: Callable[[Any], np.ndarray], steps: int) -> str | None:
        """Move by a policy outside any episode, within the same limits and under the same watchdogs: a reset policy.

        Args:
            policy: observation -> action.
            steps: how many.

        Returns:
            Why the robot was stopped before the end; None where it was not.

        Raises:
            ValueError: no step.
        """
        check_count("RobotEnv.drive", "steps", steps)
        self._check_open("drive")
        self._ended = True
        with self._still_after_errors():
            self._control.hold()
            self._control.start()
            for _ in range(steps):
                self._control.advance(policy(self._obs()), self.views)
                if self._control.watchdog.stopped is not None:
                    break
            stopped = self._control.watchdog.stopped
            self._control.hold()
        return None if stopped is None else stopped.reason

    @contextmanager
    def _still_after_errors(self) -> Iterator[None]:
        """Whatever is raised (Ctrl-C, a scorer's error), the robot does not move on without its policy."""
        try:
            yield
        except BaseException:
            self._control.hold()
            raise

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise ValueError(f"RobotEnv.{what}: it must be open; it is closed. Make another.")

    def _check_operator(self) -> None:
        if (why := self._control.operator_stops()) is not None:
            where = f" Remove {self._where}." if self._where is not None else ""
            told = "" if why == ASKED else f" ({why})"
            raise UserError(f"The operator's stop is on{told}: the robot stays still.{where}")

    def signals(self) -> dict[str, float]:
        """The robot's readings by name, as reward models may read them."""
        return self._control.signals()

    def frame(self, image_size: int | None = None, camera: str | None = None) -> np.ndarray:
        """A camera's newest picture, however old, (H, W, 3) uint8.

        Args:
            image_size: height and width to resize to; None: as the camera gives it.
            camera: by name; None: the first.

        Raises:
            ValueError: no such camera.
        """
        return self._control.eyes.image(camera or self.camera, image_size)

    def _obs(self) -> Any:
        pixels = None if self.obs_form == "state" else self.frame()
        return observed(self.obs_form, self._control.observation.proprio.astype(np.float32), pixels)

    def _info(self, verdict: TaskVerdict, moved: Moved | None = None) -> dict[str, Any]:
        control, now, stopped = self._control, self._clock.now(), self._control.watchdog.stopped
        ages = {"observation": now - control.observation.measured_s} | control.eyes.ages(now)
        potentials = {f"reward/{name}": value for name, value in verdict.potentials.items()}
        return potentials | {
            "jitter_s": np.nan if moved is None else moved.jitter_s,
            "clamped": moved is not None and moved.clamped,
            "stale": moved is not None and moved.stale,
            IS_INTERVENTION: moved is not None and moved.intervened,
            INTERVENE_ACTION: control.targets.as_action(control.targets.sent) if moved is None else moved.action,
            "ages": ages,
            "stopped": None if stopped is None else stopped.reason,
            "success": verdict.success,
            "unscored": verdict.unscored,
            "command": control.targets.sent.copy(),
        }
