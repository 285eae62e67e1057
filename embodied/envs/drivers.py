"""The town's scripted driver: pure pursuit along the route, braking for all that a careful driver brakes for."""

from __future__ import annotations

import math

import numpy as np

from embodied.envs.drive import Drive
from embodied.envs.town import BRAKES, DRAG, LAG, MAX_STEER, POWER, ROUTE, WHEELS
from embodied.envs.traffic import discs, turned

CRUISE = 6.4  # m/s, 23 km/h
AHEAD_S, NEAREST, FARTHEST = 0.55, 3.2, 7.0  # how far ahead it aims: seconds, and metres at least and at most
RESPONSE_S = 0.25  # in which it makes up for a wrong speed
NUMBER = 0  # of the driven car among the vehicles


class CarDriver:
    """A function from the world, as it is now, to the next action; make a new one after every reset.

    Steering by pure pursuit (R. C. Coulter, CMU-RI-TR-92-01): δ = atan(2 · wheelbase · left / distance²) to a place on
    the route ahead. It reads the simulator's state, as the desk's experts do.

    Args:
        world: the world that will be driven in, just reset.
        noise: standard deviation of Gaussian noise on both entries of the action, in [-1, 1] units.
        rng: where the noise comes from; needed when `noise` is not zero.

    Attributes:
        phase: how many quarters of the route are done.

    Raises:
        ValueError: noise without `rng`.
    """

    def __init__(self, world: Drive, *, noise: float = 0.0, rng: np.random.Generator | None = None) -> None:
        if noise and rng is None:
            raise ValueError(f"expert: rng must be given when noise is not 0; got noise={noise}.")
        self._world, self._noise, self._rng = world, noise, rng

    @property
    def phase(self) -> int:
        return min(int(4 * self._world.farthest / ROUTE), 4)

    def __call__(self, current: Drive) -> np.ndarray:
        """(2,) float32, in [-1, 1]."""
        if current is not self._world:
            raise ValueError("expert: act must get the world that the expert was made for. Make one for each world.")
        action = np.array([self._steering(current), self._pedal(current)])
        if self._noise and self._rng is not None:
            action = action + self._noise * self._rng.normal(size=2)
        return np.clip(action, -1, 1).astype(np.float32)

    def _steering(self, world: Drive) -> float:
        ahead = min(max(AHEAD_S * world.speed + 2.0, NEAREST), FARTHEST)
        place, _ = world.way.spot(world.at + ahead)
        x, y = turned(place - world.pose[:2], -world.pose[2])
        wanted = math.atan2(2 * WHEELS * y, x * x + y * y) / MAX_STEER
        return (wanted - LAG * world.steer) / (1 - LAG)  # the wheels follow with a lag

    def _pedal(self, world: Drive) -> float:
        others, way, at = world.others, world.way, world.at
        obstacles = discs(others.poses).reshape(-1, 2)
        wanted = min(CRUISE, others.limit(NUMBER, way, at, obstacles))
        push = (wanted - world.speed) / RESPONSE_S + DRAG * world.speed**2
        if wanted == 0 and world.speed < 0.3:
            return -0.3
        return push / POWER if push > 0 else push / BRAKES
