"""What can be seen to be true of the town from above: the facts that encoders are taught and judged on."""

from __future__ import annotations

import math

import numpy as np

from embodied.envs.roads import BLOCK, BOX, GRID, LANE, STREETS, ZEBRA, crossing, outside
from embodied.envs.town import Town
from embodied.envs.traffic import HALF, discs, free, gaps, turned
from embodied.envs.world import graded

FACTS = (
    "collision", "road_clear", "car_ahead", "in_lane", "wrong_lane", "off_road", "askew", "walker_on_road",
    "at_crossing", "in_junction",
)  # fmt: skip
TOUCH, CLEAR, CLOSE, SIGHT = 0.05, 14.0, 6.0, 18.0  # metres
CENTRED, STRAIGHT, ASKEW = 0.6, 15.0, 40.0  # metres; degrees
SEEN = np.array([[-7.5, 21.0], [-14.5, 14.5]])  # metres ahead and to the left that the bird's-eye camera shows well


def degrees(world: Town) -> dict[str, float]:
    """See `World.degrees`.

    Args:
        world: in any state.
    """
    others = np.concatenate([world.others.poses, world.others.parked])
    pose, walker = world.pose, world.others.walker
    shown = others[seen(pose, others[:, :2])]
    touch = _touch(pose, shown)
    obstacles = discs(shown).reshape(-1, 2)
    lanes = (0.0, float(np.clip(world.center, -LANE, LANE)))  # its own, and the one that it is in
    car = min(free(world.way, world.at, obstacles, sight=SIGHT, aside=aside) for aside in lanes)
    walking = _walker_on_road(world, walker)
    beside, tilt = abs(world.center), abs(world.angle)
    clear = graded(max(CLEAR - car, 0.0), 0.0, scale=7.0)
    left = world.center - LANE / 2  # beyond the street's middle line
    junction = _beside_junction(pose[:2])
    oncoming = graded(max(abs(left - LANE / 2) - 1.2, -junction, 0.0), 0.0, scale=2.0) if tilt < 90 else 0.0
    return {
        "collision": graded(touch, TOUCH, scale=1.0),
        "road_clear": clear if touch > TOUCH and walking < 1 else min(clear, 0.3),
        "car_ahead": graded(max(car - CLOSE, 0.0), 0.0, scale=6.0),
        "in_lane": graded(max(beside - CENTRED, (tilt - STRAIGHT) / 30, 0.0), 0.0, scale=1.0),
        "wrong_lane": oncoming,
        "off_road": graded(max(-float(outside(pose[:2])), 0.0), 0.0, scale=2.5),
        "askew": graded(max(ASKEW - min(tilt, 180 - tilt), 0.0), 0.0, scale=20.0),
        "walker_on_road": walking,
        "at_crossing": graded(_to_crossing(pose), 0.0, scale=5.0),
        "in_junction": graded(max(junction, 0.0), 0.0, scale=5.0),
    }


def seen(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(K,) bool: which points (K, 2) the bird's-eye camera over a car shows well.

    Args:
        pose: (3,) the car's x, y in metres and heading in radians.
        points: (K, 2) metres.
    """
    local = turned(points - pose[:2], -pose[2])
    return np.all((local > SEEN[:, 0]) & (local < SEEN[:, 1]), axis=-1)


def _touch(pose: np.ndarray, others: np.ndarray) -> float:
    """Metres between the two that are nearest to each other, of the car and the other cars that are seen."""
    everyone = np.concatenate([pose[None], others])
    nearest = [gaps(each, everyone[k + 1 :]).min(initial=math.inf) for k, each in enumerate(everyone[:-1])]
    return float(min(nearest, default=math.inf))


def _beside_junction(point: np.ndarray) -> float:
    """Metres from a point (2,) to the nearest junction; below 0 inside it."""
    middles = (np.arange(GRID) - (GRID - 1) / 2) * BLOCK
    return float(np.abs(point[:, None] - middles).min(-1).max() - BOX + 1.0)


def _walker_on_road(world: Town, walker: np.ndarray | None) -> float:
    if walker is None or not seen(world.pose, walker[None])[0]:
        return 0.0
    return graded(max(abs(world.others.across) - LANE, 0.0), 0.0, scale=2.0)


def _to_crossing(pose: np.ndarray) -> float:
    """Metres between the car and the nearest zebra crossing, along its street; 0 where it stands on it."""
    best = math.inf
    for street in range(len(STREETS)):
        middle, along, left = crossing(street)
        off = pose[:2] - middle
        if abs(off @ left) < LANE:
            best = min(best, max(abs(float(off @ along)) - ZEBRA - HALF[0] + 0.4, 0.0))
    return best
