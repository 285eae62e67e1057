"""What a robot may be told and what it may do, checked outside any policy.

Commands are kept inside by `allowed`; measurements are only watched (`violations`): what is found outside stops the
robot. Everything is per name of the driver, in that name's unit, so the same limits hold a workspace (tip positions
in metres), joints (radians), a gripper, speeds (m/s) and forces (newtons).

Shape letters: A entries of a command, S of an observation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from embodied.robots.checks import is_finite

MOST = 1e9  # of any number here: beyond it, differences are lost in rounding and products overflow


@dataclass(frozen=True)
class Bound:
    """How one entry of a command may be and change.

    Attributes:
        low: least target, in the entry's unit; all of them within ±`MOST`.
        high: greatest target.
        speed: most change of the target in a second, from 1/`MOST`.
        acceleration: most change of that speed in a second, from 1/`MOST`; inf: any.

    Raises:
        ValueError: an empty range, a rate that is not positive, or something that is no number.
    """

    low: float
    high: float
    speed: float
    acceleration: float = math.inf

    def __post_init__(self) -> None:
        if not (is_finite(self.low) and is_finite(self.high) and -MOST <= self.low < self.high <= MOST):
            raise ValueError(
                f"Bound: low must be finite and below high, both within ±{MOST:g}; got {self.low!r} and {self.high!r}."
            )
        rates = [self.speed] if self.acceleration == math.inf else [self.speed, self.acceleration]
        if not all(is_finite(rate) and 1 / MOST <= rate <= MOST for rate in rates):
            raise ValueError(
                f"Bound: speed must be finite, it and acceleration above 0 (from {1 / MOST:g} to {MOST:g}); "
                f"got {self.speed!r} and {self.acceleration!r}."
            )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one robot in one place.

    Attributes:
        command: action name -> its bound; every action name of the driver must have one.
        state: observation name -> (least, most) that may be measured: tip positions a little wider than the commands',
            joints, speeds, forces. Names that are missing are not watched.

    Raises:
        ValueError: a range of `state` is empty, or `command` holds something else than bounds.
    """

    command: Mapping[str, Bound]
    state: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, bound in self.command.items():
            if not isinstance(bound, Bound):
                raise ValueError(f"Limits: command[{name!r}] must be a Bound; got {bound!r}.")
        for name, (low, high) in self.state.items():
            if not low < high:  # so for NaN too
                raise ValueError(f"Limits: state[{name!r}] must be a range, low below high; got {low} and {high}.")

    def check_names(self, action_names: Sequence[str], observation_names: Sequence[str]) -> None:
        """Refuse a driver that these limits are not for.

        Raises:
            ValueError: an action without a bound, or an action or a watched name that the robot does not measure.
        """
        if unbound := [name for name in action_names if name not in self.command]:
            raise ValueError(
                f"Limits.check_names: command must bound every action; {', '.join(unbound)} missing. Add them."
            )
        if unseen := [name for name in action_names if name not in observation_names]:
            raise ValueError(
                f"Limits.check_names: every action must be measured, so that commands begin where the robot is; "
                f"{', '.join(unseen)} is not in observation_names."
            )
        if unmeasured := [name for name in self.state if name not in observation_names]:
            raise ValueError(
                f"Limits.check_names: state must name what the robot measures; got {', '.join(unmeasured)}. "
                f"It measures {', '.join(observation_names)}."
            )

    def arrays(self, names: Sequence[str]) -> np.ndarray:
        """(4, A) float64: low, high, speed and acceleration of each action, in the names' order."""
        bounds = [self.command[name] for name in names]
        return np.array([[each.low, each.high, each.speed, each.acceleration] for each in bounds], np.float64).T


def allowed(bounds: np.ndarray, wanted: np.ndarray, sent: np.ndarray, speed: np.ndarray, period_s: float) -> np.ndarray:
    """The command nearest to the wanted one that keeps every limit, now and for ever after.

    Targets change by no more than `speed` a second, that change by no more than `acceleration`; and never so fast
    towards an end of the range that braking within the acceleration would pass it. From inside the limits there is
    therefore always a next command inside them. Let u be the speed towards an end that is r away: braking from u after
    one more period of it takes u·dt + u²/2a ≤ r, so u ≤ a·(√(dt² + 2r/a) − dt).

    From outside the range (an arm that was pushed there) commands lead to the end of it, whatever is wanted, within the
    same speed and acceleration; and never further out.

    Args:
        bounds: (4, A), `Limits.arrays`.
        wanted: (A,) targets, finite.
        sent: (A,) the targets sent last.
        speed: (A,) at which those moved, units/s: (sent − the ones before) / period_s.
        period_s: until the next command, seconds; never less in truth.

    Returns:
        (A,) float64.

    Raises:
        ValueError: something is not finite.
    """
    if not (np.isfinite(wanted).all() and np.isfinite(sent).all() and np.isfinite(speed).all()):
        raise ValueError(f"allowed: wanted, sent and speed must be finite; got {wanted}, {sent} and {speed}.")
    low, high, fastest, sharpest = bounds
    end, speed = np.clip(sent, low, high), np.clip(speed, -fastest, fastest)
    wanted = np.where(sent == end, wanted, toward(bounds, end, sent, period_s))
    up = np.minimum(fastest, _brakeable(np.maximum(high - sent, 0), sharpest, period_s))
    down = -np.minimum(fastest, _brakeable(np.maximum(sent - low, 0), sharpest, period_s))
    up, down = np.minimum(up, speed + sharpest * period_s), np.maximum(down, speed - sharpest * period_s)
    # Rounding alone can part the two when braking hard; the range then comes first.
    chosen = np.clip((wanted - sent) / period_s, np.minimum(down, up), np.maximum(down, up))
    return np.clip(sent + chosen * period_s, np.minimum(low, sent), np.maximum(high, sent))


def toward(bounds: np.ndarray, goal: np.ndarray, sent: np.ndarray, period_s: float) -> np.ndarray:
    """(A,) the target to want next on the way to a goal, slow enough to end there without passing it.

    Args:
        bounds: (4, A), `Limits.arrays`.
        goal: (A,) where the targets shall come to rest.
        sent: (A,) the targets sent last.
        period_s: until the next command, seconds.
    """
    away = goal - sent
    speed = np.minimum(bounds[2], _brakeable(np.abs(away), bounds[3], period_s))
    return sent + np.sign(away) * speed * period_s


def _brakeable(room: np.ndarray, sharpest: np.ndarray, period_s: float) -> np.ndarray:
    """(A,) greatest speed from which braking ends within `room`."""
    # a·(√(dt² + 2r/a) − dt), written so that nothing cancels: r/dt where a is infinite.
    return 2 * room / (np.sqrt(period_s**2 + 2 * room / sharpest) + period_s)


def violations(limits: Limits, names: Sequence[str], values: np.ndarray) -> tuple[str, ...]:
    """What is measured outside its range, in words; NaN and infinity are outside any.

    Args:
        limits: whose `state` is watched.
        names: of the S entries.
        values: (S,).
    """
    found = [
        f"{name} is {value}" for name, value in zip(names, values.tolist(), strict=True) if not math.isfinite(value)
    ]
    measured = dict(zip(names, values.tolist(), strict=True))
    for name, (low, high) in limits.state.items():
        value = measured[name]
        if math.isfinite(value) and not low <= value <= high:
            found.append(f"{name} is {value:.4g}, outside {low:.4g} to {high:.4g}")
    return tuple(found)
