"""Reward and success of a running robot, from a reward model and never from anything else.

Shape letters: V views; H, W image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from embodied.robots.checks import check_count, is_finite
from embodied.scoring import Layout
from embodied.scoring.streaming import EpisodeStream, Reading
from rewards.core import Scorer


@dataclass(frozen=True, kw_only=True)
class Success:
    """When a reward model's word is taken for success.

    Attributes:
        threshold: a potential at or above it says success, in the head's own units.
        head: the scorer's head that is read; None: the combined potential.
        hold: fresh readings in a row that must say so, ≥ 1; more than one forgives a model its single mistakes.

    Raises:
        ValueError: `hold` below 1, or a threshold that is no number.
    """

    threshold: float
    head: str | None = None
    hold: int = 2

    def __post_init__(self) -> None:
        if not is_finite(self.threshold):
            raise ValueError(f"Success: threshold must be a finite number; got {self.threshold!r}.")
        check_count("Success", "hold", self.hold)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the robot is rewarded for, and when it is done.

    Attributes:
        scorer: gives the reward.
        success: ends an episode as terminated; None: nothing but a stop does.
        views: the cameras the scorer reads, in its order; empty: all of the robot's.
        instruction: the task in words, for policies that want them.

    Raises:
        ValueError: `success` reads a head that the scorer lacks.
    """

    scorer: Scorer
    success: Success | None = None
    views: tuple[str, ...] = ()
    instruction: str = ""

    def __post_init__(self) -> None:
        head = None if self.success is None else self.success.head
        if head is not None and head not in self.scorer.heads:
            raise ValueError(f"Task: success.head must be one of {', '.join(self.scorer.heads)}; got {head!r}.")


@dataclass(frozen=True, kw_only=True)
class TaskVerdict:
    """What one moment is worth.

    Attributes:
        reward: of the transition that led here; 0 at an episode's first moment.
        success: whether the model says the task is done; None without a `Success`.
        potentials: head name -> φ, and `combined`; the last known ones where this moment could not be scored.
        unscored: why it could not be: no fresh frame, or the model gave NaN; None where it was.
    """

    reward: float = 0.0
    success: bool | None = None
    potentials: Mapping[str, float] = field(default_factory=dict)
    unscored: str | None = None


class Judge:
    """One task's verdicts, moment by moment.

    A moment without a fresh frame, or that the model gives NaN for, keeps the potential of the one before: nothing is
    known to have changed. It counts neither for success nor against it.

    Args:
        task: what is scored.
        views: names of the V cameras.
        signals: names of the readings that a row holds, sorted.
    """

    def __init__(self, task: Task, views: tuple[str, ...], signals: tuple[str, ...]) -> None:
        self.task = task
        self._stream = EpisodeStream(task.scorer, Layout(views, signals))
        self._last: Reading | None = None
        self._in_a_row = 0

    def restart(self) -> None:
        """The next moment begins an episode."""
        self._stream.restart()
        self._last, self._in_a_row = None, 0

    def look(self, frames: np.ndarray | None, signals: Mapping[str, float], stopped: bool) -> TaskVerdict:
        """The verdict on one more moment.

        Args:
            frames: (V, H, W, 3) uint8; None where a view has nothing fresh.
            signals: the robot's readings by name.
            stopped: whether the episode ends here by a safety stop, so that the next potential is zero for shaping,
                as at every termination.
        """
        reading, unscored = None, None if frames is not None else "no fresh frame"
        if frames is not None:
            try:
                row = self._stream.encode(frames, dict(signals))
                reading = self._stream.push(row, None if self.task.scorer.frames_read == "none" else frames)
            except FloatingPointError as error:
                unscored = str(error)
        success = self._success(reading)
        before, now = self._last, reading or self._last
        reward = 0.0
        if before is not None and now is not None:
            reward = self._reward(before.combined, now.combined, terminated=stopped or bool(success))
        self._last = now
        potentials = {} if now is None else {**now.potentials, "combined": now.combined}
        return TaskVerdict(reward=reward, success=success, potentials=potentials, unscored=unscored)

    def _success(self, reading: Reading | None) -> bool | None:
        success = self.task.success
        if success is None:
            return None
        if reading is not None:
            value = reading.combined if success.head is None else reading.potentials[success.head]
            self._in_a_row = self._in_a_row + 1 if value >= success.threshold else 0
        return reading is not None and self._in_a_row >= success.hold

    def _reward(self, before: float, now: float, *, terminated: bool) -> float:
        shaped = self.task.scorer.shaping(torch.tensor([[before]]), torch.tensor([[now]]), torch.tensor([[terminated]]))
        return float(shaped)
