"""From a policy's actions to commands inside the limits, one control period after another.

Shape letters: A entries of an action and of a command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from embodied.robots.limits import Limits, allowed, toward


class Targets:
    """Where the robot was sent last, how fast that moved, and where it may be sent next.

    Args:
        limits: bound every name.
        names: of the A entries.
        absolute: the names whose action says where the target is, not how it moves.
        period_s: of control, seconds.

    Attributes:
        sent: (A,) the last command.
        speed: (A,) at which the targets move, units/s.
    """

    def __init__(self, limits: Limits, names: Sequence[str], absolute: Sequence[str], period_s: float) -> None:
        self._names, self._period_s = tuple(names), period_s
        self._bounds = limits.arrays(names)
        self._absolute = np.array([name in absolute for name in names])
        self.sent = self.speed = np.zeros(len(self._names))

    def start(self, here: Mapping[str, float]) -> None:
        """Go on from where the robot is, by name, at rest."""
        self.sent = np.clip([here[name] for name in self._names], self._bounds[0], self._bounds[1])
        self.rest()

    def rest(self) -> None:
        """The targets have stood still for a while."""
        self.speed = np.zeros_like(self.sent)

    def next(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """The command for an action, (A,) finite, and whether limits made it another than was asked for."""
        inside = np.clip(action, -1, 1)
        low, high, fastest, _ = self._bounds
        moved = self.sent + inside * fastest * self._period_s
        goal = low + (inside + 1) / 2 * (high - low)
        wanted = np.where(self._absolute, toward(self._bounds, goal, self.sent, self._period_s), moved)
        command = allowed(self._bounds, wanted, self.sent, self.speed, self._period_s)
        return command, bool((inside != action).any() or np.abs(command - wanted).max() > 1e-9)

    def taken(self, really: np.ndarray) -> None:
        """What the robot was really sent, (A,) finite."""
        really = np.clip(really, self._bounds[0], self._bounds[1])
        self.speed, self.sent = (really - self.sent) / self._period_s, really
