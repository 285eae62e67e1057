"""RoboFuME's loop: a robot practises a task and its undoing by turns, in a world that nobody resets.

    attempt: act until the success model says it is done, or the time is over ──► update ──► the other task ──► …

A vision model's word is the only reward: 1 when its yes has held, which ends the attempt, else 0. What the simulator
knows is written beside it (`env_…`) and read by nothing here. Updates are made between attempts, while the robot
stands still. A person resets the world when too many attempts in a row have failed, now and then by plan, and after a
safety stop; each is counted.

Source: Yang et al., arXiv 2310.15145; its code was never published. Departs: it pre-trains and fine-tunes with Cal-QL
on a thousand related trajectories beside the demonstrations; here any learner of `policies` practises, by default RLPD,
which begins as imitation and takes over only where it earns no less. The task is told by a one-hot, not in words; the
policy reads the encoder's frozen features, not pixels; and a task that the success model says is done already is passed
over.

Shape letters: T actions of an attempt, S the policy's inputs, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from embodied.envs.interventions import executed
from embodied.envs.spaces import Actions, world_name
from embodied.practice.inputs import TASKS, Senses, Standard, SuccessHead
from embodied.training.collector import in_units, to_unit
from policies.core import Learner, Rollout
from policies.replay import Replay
from policies.shown import Shown
from rewards.calibration import UNSURE, YES, Latch
from rewards.core import Features


@dataclass(frozen=True)
class PracticeTask:
    """One of the two.

    Attributes:
        name: one of `TASKS`.
        head: says whether it is done.
        fact: its truth, of those that `Practice` is told for judging; None where nobody knows it.
    """

    name: str
    head: SuccessHead
    fact: str | None = None


class Practised(NamedTuple):
    """What an attempt showed: an episode of one world.

    Attributes:
        rollout: of `Standard`'s observations; it terminates where the task was done, and being out of time truncates.
        reward: (T, 1) 1 where the success model's yes has held, else 0.
        intervened: (T, 1) bool, a person acted in the policy's place.
    """

    rollout: Rollout
    reward: np.ndarray
    intervened: np.ndarray


@dataclass
class Attempt:
    """One attempt, as it is logged.

    Attributes:
        task: one of `TASKS`.
        steps: actions taken, T.
        success: by the success model.
        stopped: why the robot stopped by itself; None where it did not.
        env_success: the truth at the end; None where nobody knows it (so for all of `env_…`).
        env_before: the truth at the start.
        yes: rows after an action to which the model said yes.
        env_false_yes: those of them at which it was not true.
        env_true: rows at which it was true.
        env_missed: those of them at which it did not say yes.
        person_steps: actions that a person gave; a success with any is not the policy's.
        pictures: `env.render()` of every row, where asked for; not logged.
    """

    task: str
    steps: int = 0
    success: bool = False
    stopped: str | None = None
    env_success: bool | None = None
    env_before: bool | None = None
    yes: int = 0
    env_false_yes: int | None = None
    env_true: int | None = None
    env_missed: int | None = None
    person_steps: int = 0
    pictures: list[Any] = field(default_factory=list, repr=False)

    def line(self) -> dict[str, Any]:
        """For JSON lines."""
        values = asdict(self)
        del values["pictures"]
        return values


@dataclass
class Tally:
    """How far practice is; JSON."""

    steps: int = 0
    attempts: int = 0
    updates: int = 0
    turn: int = 0  # the next task, unless it is done already
    failed: int = 0  # attempts in a row
    since_reset: int = 0  # attempts
    passed_over: int = 0  # tasks that were done already
    stuck_resets: int = 0
    planned_resets: int = 0
    stop_resets: int = 0
    said_success: int = 0  # attempts
    env_said_wrongly: int = 0  # those of them that were not true at their end, where that is known

    @property
    def interventions(self) -> int:
        """How often a person had to come."""
        return self.stuck_resets + self.planned_resets + self.stop_resets


class Practice:
    """Two tasks, one world, one learner.

    Args:
        env: a world of ours or a `RobotEnv`; its time limit is not heeded, its terminations are stops.
        senses: what is seen of it.
        tasks: forward and backward.
        learner: acts on `Standard`'s observations.
        replay: what it did; attempts are put there by whoever learns from them.
        demos: what it was shown; what a person does in an attempt is put there too.
        standard: inputs to its observations.
        attempt_steps: after which an attempt has failed.
        stuck_after: failed attempts in a row until a person resets the world.
        reset_every: attempts until a person resets it anyway; 0: never.
        facts: tells how far each fact holds, 1 where it does, for records; None: nobody knows.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        senses: Senses,
        tasks: Sequence[PracticeTask],
        learner: Learner,
        replay: Replay,
        demos: Shown,
        standard: Standard,
        *,
        attempt_steps: int,
        stuck_after: int,
        reset_every: int,
        facts: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        if len(tasks) != len(TASKS) or min(attempt_steps, stuck_after) < 1 or reset_every < 0:
            raise ValueError(
                f"Practice: tasks must be two, attempt_steps and stuck_after ≥ 1, reset_every ≥ 0; "
                f"got {len(tasks)}, {attempt_steps}, {stuck_after}, {reset_every}."
            )
        self.env, self.senses, self.tasks, self.learner, self.standard = env, senses, tuple(tasks), learner, standard
        self.replay, self.demos = replay, demos
        self._actions = Actions(env.action_space, world_name(env))
        self.attempt_steps, self._stuck_after, self._reset_every = attempt_steps, stuck_after, reset_every
        self._facts, self.tally = facts, Tally()
        self.obs: Any = None  # the newest, from the world
        self.stopped = False  # whether the robot did so by itself, in the last attempt

    def reset(self, seed: int | None = None) -> None:
        """A person (or a world's own generator) puts everything back; the forward task is next."""
        self.obs, _ = self.env.reset(seed=seed)
        self.begin()

    def begin(self) -> None:
        """Count from here, where the world has been put back: the forward task is next."""
        self.tally.turn = self.tally.failed = self.tally.since_reset = 0
        self.stopped = False

    def attempts(self, steps: int) -> Iterator[tuple[Attempt, Practised]]:
        """Practise until so many steps are done in all: each attempt, and its steps, before they are learned.

        The world must have been reset once. Between two attempts everything is at rest: the moment to save.
        """
        while self.tally.steps < steps:
            if self.call_person():
                self.reset()
            index = self._choose()
            attempt, steps_made = self.attempt(index, limit=steps - self.tally.steps)
            tally = self.tally
            tally.steps += attempt.steps
            tally.attempts += 1
            tally.since_reset += 1
            tally.said_success += attempt.success
            tally.env_said_wrongly += attempt.success and attempt.env_success is False
            tally.failed = 0 if attempt.success else tally.failed + 1
            tally.turn = 1 - index
            self.stopped = attempt.stopped is not None
            if self.env.has_wrapper_attr("pause"):
                self.env.get_wrapper_attr("pause")()  # a robot holds still while its policy is updated
            yield attempt, steps_made

    def remember(self, made: Practised) -> None:
        """Put an attempt's steps where they are learned from; a person's among what is shown, too."""
        self.replay.add(made.rollout, made.reward, made.intervened)
        self.demos.take(self.replay, made.rollout.ended)
        self.learner.observe(made.rollout, made.reward)

    def call_person(self) -> bool:
        """Count a person where one is needed to reset the world.

        Returns:
            Whether one is.
        """
        tally = self.tally
        if self.stopped:
            tally.stop_resets += 1
        elif tally.failed >= self._stuck_after:
            tally.stuck_resets += 1
        elif self._reset_every and tally.since_reset >= self._reset_every:
            tally.planned_resets += 1
        else:
            return False
        return True

    def _choose(self) -> int:
        """Whose turn it is; the other one's where that is done already and the other is not."""
        seen, turn = self.senses.look(self.obs).features, self.tally.turn
        done = [self._verdict(task, seen) == YES for task in self.tasks]
        if done[turn] and not done[1 - turn]:
            self.tally.passed_over += 1
            return 1 - turn
        return turn

    @staticmethod
    def _verdict(task: PracticeTask, features: Features) -> int:
        return int(task.head.verdicts(features)[0, 0])

    def truth(self, task: PracticeTask) -> bool | None:
        """Whether a task is really done; for records."""
        if task.fact is None or self._facts is None:
            return None
        return bool(self._facts()[task.fact] >= 1)

    def attempt(
        self, index: int, *, limit: int | None = None, explore: bool = True, film: bool = False
    ) -> tuple[Attempt, Practised]:
        """One attempt at a task from where the world stands.

        Args:
            index: into `TASKS`.
            limit: on its actions, beside `attempt_steps`.
            explore: with the policy's noise.
            film: keep pictures.

        A moment without a fresh picture is one at which the model is unsure.

        Returns:
            What came of it, and its T steps.
        """
        task, columns = self.tasks[index], {name: list[Any]() for name in Rollout._fields}
        intervened: list[list[bool]] = []
        latch, moment = Latch(task.head.decision.hold), self.senses.look(self.obs)
        latch.step(torch.tensor([self._verdict(task, moment.features)], dtype=torch.int8))
        attempt = Attempt(task.name, env_before=self.truth(task))
        attempt.env_success = attempt.env_before
        if attempt.env_before is not None:
            attempt.env_false_yes = attempt.env_true = attempt.env_missed = 0
        if film:
            attempt.pictures.append(self.env.render())
        observation, memory, first = self.standard(moment.inputs, index), self.learner.begin(1), np.ones(1, dtype=bool)
        for _ in range(min(self.attempt_steps, limit or self.attempt_steps)):
            action, memory = self.learner.act(observation[None], memory, first, explore=explore)
            asked = in_units(self.env.action_space, action)[0]
            self.obs, _, terminated, _, info = self.env.step(asked)
            done, person = executed(info, self._actions, asked)  # by its limits, or by a person's hand
            if done is not None:
                action = to_unit(self.env.action_space, done[None])
                if hasattr(self.learner, "executed"):
                    memory = self.learner.executed(memory, action, np.array([person]), explore=explore)  # pyright: ignore[reportAttributeAccessIssue]
            attempt.person_steps += person
            intervened.append([person])
            moment = self.senses.look(self.obs)
            verdict = UNSURE if info.get("stale") else self._verdict(task, moment.features)
            attempt.success = bool(latch.step(torch.tensor([verdict], dtype=torch.int8)))
            attempt.steps += 1
            self._judge(attempt, task, verdict)
            if film:
                attempt.pictures.append(self.env.render())
            before, observation = observation, self.standard(moment.inputs, index)
            values = (before[None], action, observation[None], [0.0], [attempt.success], [False], first)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
            first = np.zeros(1, dtype=bool)
            if terminated and not attempt.success:
                attempt.stopped = str(info.get("stopped") or "ended by the world")
            if terminated or attempt.success:
                break
        rollout = Rollout(*(np.array(column) for column in columns.values()))
        rollout.truncated[-1] = not attempt.success
        rollout = rollout._replace(env_reward=rollout.env_reward.astype(np.float32))
        return attempt, Practised(rollout, rollout.terminated.astype(np.float32), np.array(intervened))

    def _judge(self, attempt: Attempt, task: PracticeTask, verdict: int) -> None:
        said, true = verdict == YES, self.truth(task)
        attempt.yes += said
        if true is not None:
            attempt.env_success = true
            attempt.env_false_yes = (attempt.env_false_yes or 0) + (said and not true)
            attempt.env_true = (attempt.env_true or 0) + true
            attempt.env_missed = (attempt.env_missed or 0) + (true and not said)
