"""From a policy's actions to commands inside the limits, one control period after another.

Shape letters: A entries of an action and of a command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from embodied.robots.limits import Limits, allowed, toward

ROUNDING = 1e-5  # of a number, that a driver's own formats may lose


class Targets:
    """Where the robot was sent last, how fast that moved, and where it may be sent next.

    Args:
        limits: bound every name.
        names: of the A entries.
        absolute: the names whose action says where the target is, not how it moves.
        period_s: of control, seconds.

    Attributes:
        sent: (A,) the last command, as the robot was really sent it.
        speed: (A,) at which the targets move, units/s.
    """

    def __init__(self, limits: Limits, names: Sequence[str], absolute: Sequence[str], period_s: float) -> None:
        self._names, self._period_s = tuple(names), period_s
        self._bounds = limits.arrays(names)
        self._move = self._bounds[2] * period_s  # the most in a period
        self._absolute = np.array([name in absolute for name in names], bool)
        self.sent = self.speed = self._asked = np.zeros(len(self._names))

    def start(self, here: Mapping[str, float]) -> None:
        """Go on from where the robot is, by name, at rest; from outside the range commands lead back into it."""
        self.sent = self._asked = np.array([here[name] for name in self._names], np.float64)
        self.rest()

    def too_far(self, here: Mapping[str, float]) -> tuple[str, ...]:
        """The names that are further out of their range than it is wide: nothing that could be led back from there."""
        low, high, _, _ = self._bounds
        at = np.array([here[name] for name in self._names], np.float64)
        far = ~((at >= low - (high - low)) & (at <= high + (high - low)))  # so for NaN too
        return tuple(name for name, is_far in zip(self._names, far, strict=True) if is_far)

    def rest(self) -> None:
        """The targets have stood still for a while."""
        self.speed = np.zeros_like(self.sent)

    def next(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """The command for an action, (A,) finite, and whether limits made it another than was asked for."""
        inside = np.clip(action, -1, 1)
        low, high, _, _ = self._bounds
        goal = low + (inside + 1) / 2 * (high - low)
        wanted = np.where(
            self._absolute, toward(self._bounds, goal, self.sent, self._period_s), self.sent + inside * self._move
        )
        command = allowed(self._bounds, wanted, self.sent, self.speed, self._period_s)
        # A move from what was asked for as well as from what the robot says: whichever is true, it is no jump.
        far, near = np.maximum(self._asked, self.sent), np.minimum(self._asked, self.sent)
        command = np.clip(command, far - self._move, near + self._move)
        self._asked = command
        return command, bool((inside != action).any() or np.abs(command - wanted).max() > 1e-9)

    def believable(self, really: np.ndarray) -> bool:
        """Whether the robot can have been sent that, (A,), for the last command: within a period's move of it.

        A robot's own clipping leaves less than the move that was asked for; what is further is a driver's mistake, from
        which the next command would jump.
        """
        return bool((np.abs(really - self._asked) <= self._move + ROUNDING * np.maximum(1, np.abs(self._asked))).all())

    def taken(self, really: np.ndarray) -> None:
        """What the robot was really sent, (A,), `believable`."""
        low, high, fastest, _ = self._bounds
        really = np.clip(really, np.minimum(low, self._asked), np.maximum(high, self._asked))
        really = np.clip(really, self._asked - self._move, self._asked + self._move)
        self.speed = np.clip((really - self.sent) / self._period_s, -fastest, fastest)
        self.sent = really

    def as_action(self, before: np.ndarray) -> np.ndarray:
        """(A,) float32 in [-1, 1]: the action that means the way from `before`, (A,) sent earlier, to `sent`."""
        low, high, _, _ = self._bounds
        place = 2 * (self.sent - low) / (high - low) - 1
        return np.clip(np.where(self._absolute, place, (self.sent - before) / self._move), -1, 1).astype(np.float32)
