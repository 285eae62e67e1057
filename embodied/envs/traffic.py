"""Those who share the town with a car: cars that keep to their lanes and stop for others, parked cars, and a walker.

Nothing here is drawn by chance once it has begun: whoever has the state has the future.

Shape letters: C other cars; P parked ones; all vehicles are the driven car first, then the C others.
"""

from __future__ import annotations

import math

import numpy as np

from embodied.envs.roads import BLOCK, BOX, LANE, LANES, PARKING, STREET, RoadWay, crossing

HALF = np.array([2.2, 0.9])  # half length and half width of a car, metres
GIRTH = 0.45  # of the walker: radius, metres
FEELERS = np.array([-1.5, 0.0, 1.5])  # middles of the discs that a car is made of for others, metres along it
WIDTH = 1.95  # nearer to a disc than this, the way leads into that car
TURNS = 64  # drawn for each car
HEADWAY, GIVE_WAY = 2.0, 8.0  # metres kept to whatever is ahead; before a junction, where its turn is asked for
GAIN, COMFORT, BRAKE = 2.0, 2.5, 7.0  # m/s²: speeding up, planned braking, hardest braking
SIDEWAYS = 2.5  # m/s² in bends
SIGHT = 26.0  # metres ahead that drivers look
KERB = LANE + PARKING + 0.7  # metres from the street's middle, where the walker waits
PACE = 1.4  # m/s, of the walker
_AHEAD = np.arange(0.0, 12.0)  # metres in which bends are looked for
_EXIT = np.array([0.5, 3.0, 5.5])  # metres beyond a junction that must be free, in the lane alone, to go through
_OUTLINE = np.array([(x, y) for x in (-1, -0.5, 0, 0.5, 1) for y in (-1, 1)] + [(-1, 0), (1, 0)]) * HALF


def turned(points: np.ndarray, heading: np.ndarray | float) -> np.ndarray:
    """Points (..., 2) turned by a heading (...).

    Args:
        points: metres.
        heading: radians.
    """
    c, s = np.cos(heading), np.sin(heading)
    return np.stack([c * points[..., 0] - s * points[..., 1], s * points[..., 0] + c * points[..., 1]], -1)


def gaps(pose: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(K,) metres between a car (3,) and other cars (K, 3), each x, y, heading; 0 where they touch.

    Args:
        pose: metres, radians.
        others: the same of K cars.
    """
    mine = pose[:2] + turned(_OUTLINE, pose[2])
    theirs = others[:, None, :2] + turned(_OUTLINE, others[:, None, 2])
    found = np.minimum(
        _beside(turned(mine - others[:, None, :2], -others[:, None, 2])), _beside(turned(theirs - pose[:2], -pose[2]))
    )
    return found.min(-1, initial=np.inf)


def _beside(points: np.ndarray) -> np.ndarray:
    """(...) how far points (..., 2), in a car's own axes, are outside it."""
    return np.asarray(np.linalg.norm(np.maximum(np.abs(points) - HALF, 0), axis=-1))


def walker_gap(pose: np.ndarray, walker: np.ndarray) -> float:
    """Metres between a car (3,) and the walker (2,).

    Args:
        pose: metres, radians.
        walker: metres.
    """
    return max(float(_beside(turned(walker - pose[:2], -pose[2]))) - GIRTH, 0.0)


def discs(poses: np.ndarray) -> np.ndarray:
    """(K, 3, 2) the middles of the discs that cars (K, 3) are made of.

    Args:
        poses: metres, radians.
    """
    along = np.stack([FEELERS, np.zeros(3)], -1)
    return poses[:, None, :2] + turned(along, poses[:, None, 2])


def free(way: RoadWay, at: float, obstacles: np.ndarray, *, sight: float = SIGHT, aside: float = 0.0) -> float:
    """Metres from a car's front, at a place of its way, to the first of some discs (K, 2) that stand in the way, or so
    many metres to the left of it.

    Args:
        way: that the car follows.
        at: metres along it.
        obstacles: metres.
        sight: metres that are looked ahead.
        aside: metres to the left of the way.
    """
    ahead = np.arange(1.0, sight + 1.0)
    if not len(obstacles):
        return sight
    places, headings = way.at(at + ahead)
    if aside:
        places = places + aside * np.stack([-np.sin(headings), np.cos(headings)], -1)
    hit = (((places[:, None] - obstacles) ** 2).sum(-1) < WIDTH**2).any(-1)
    return float(ahead[hit.argmax()] - 1.0) if hit.any() else sight


def speed_for(distance: float) -> float:
    """m/s at which one can still stop comfortably within so many metres.

    Args:
        distance: metres.
    """
    return math.sqrt(2 * COMFORT * max(distance, 0.0))


def bend_speed(way: RoadWay, at: float) -> float:
    """m/s at which the bends ahead can be taken, as seen from here.

    Args:
        way: that the car follows.
        at: metres along it.
    """
    bends = np.abs(way.curvature(at + _AHEAD))
    return float(np.sqrt((SIDEWAYS / np.maximum(bends, 1e-3) + 2 * COMFORT * _AHEAD).min()))


class Traffic:
    """The others.

    Attributes:
        ways, at, speed, cruise: of the C cars: their ways, metres along them, m/s, and m/s that they like.
        aside: (C, 3) how each stands beside its place on the way (along, left, turned); zero unless it was put so.
        parked: (P, 3) poses.
        turn: (9,) whose turn it is at each junction, a vehicle's number; -1: nobody's.
        street, across, sense, wait: of the walker: the street it crosses, metres to the left of its middle line, +1 or
            -1 as it walks, seconds that it still waits. Nobody walks where `street` is -1.

    Args:
        lanes: (K,) where each begins.
        begins: (K,) metres along it.
        turns: where each goes at junctions.
    """

    def __init__(self, lanes: np.ndarray, begins: np.ndarray, turns: np.ndarray, cruise: np.ndarray) -> None:
        count = len(lanes)
        self.lanes, self.begins, self.turns, self.cruise = lanes, begins, turns, cruise
        self.ways = [RoadWay(int(lane), float(b), t) for lane, b, t in zip(lanes, begins, turns, strict=True)]
        self.at, self.speed, self.aside = np.zeros(count), np.zeros(count), np.zeros((count, 3))
        self._seen: tuple[bytes, np.ndarray] = b"", np.zeros((0, 3))  # where everybody was when last asked
        self.parked = np.zeros((0, 3))
        self.turn = np.full(9, -1)
        self.street, self.across, self.sense, self.wait = -1, 0.0, 1, 0.0

    def keep(self, which: np.ndarray) -> None:
        """Leave out the others of `which` (C,) bool, before anybody has a turn at a junction."""
        self.ways = [way for way, kept in zip(self.ways, which, strict=True) if kept]
        for name in ("lanes", "begins", "turns", "cruise", "at", "speed", "aside"):
            setattr(self, name, getattr(self, name)[which])

    @property
    def poses(self) -> np.ndarray:
        """(C, 3) x, y, heading; not to be written to."""
        key = self.at.tobytes() + self.aside.tobytes()
        if key != self._seen[0]:
            poses = np.zeros((len(self.ways), 3))
            for k, way in enumerate(self.ways):
                place, heading = way.spot(float(self.at[k]))
                poses[k, :2] = place + turned(self.aside[k, :2], heading)
                poses[k, 2] = heading + self.aside[k, 2]
            self._seen = key, poses
        return self._seen[1]

    @property
    def walker(self) -> np.ndarray | None:
        """(2,) where the walker is; None: nobody walks."""
        if self.street < 0:
            return None
        middle, _, left = crossing(self.street)
        return middle + self.across * left

    @property
    def walker_on_road(self) -> bool:
        return self.street >= 0 and abs(self.across) < LANE + 0.8

    def limit(self, number: int, way: RoadWay, at: float, obstacles: np.ndarray) -> float:
        """m/s that a careful driver goes no faster than: bends, whoever is ahead, junctions, the walker."""
        ahead = free(way, at, obstacles) - HEADWAY
        junction = way.junction(at, HALF[0])
        line = junction.enter - at - HALF[0]
        if self.turn[junction.node] != number and line > -0.5:
            ahead = min(ahead, line - 0.3)
        return min(bend_speed(way, at), speed_for(min(ahead, self._before_walker(way, at))))

    def _before_walker(self, way: RoadWay, at: float) -> float:
        """Metres to where one stops for the walker; infinite where one need not."""
        if not self.walker_on_road:
            return math.inf
        for each in way.crossings:
            distance = each.at - at - HALF[0]
            if each.street == self.street and 1.0 < distance < SIGHT:  # else one is on it: off it, then
                passed = (self.across - each.side) * self.sense > LANE / 2 + 0.4
                return math.inf if passed else distance - 2.8
        return math.inf

    def step(self, seconds: float, pose: np.ndarray, speed: float, way: RoadWay, at: float) -> None:
        """Everybody moves on, the driven car being at `pose` (3,), `at` metres along its way, with `speed` m/s."""
        self._walk(seconds, pose, speed)
        self._take_turns(pose, way, at)
        everyone = np.concatenate([pose[None], self.poses])
        every_disc = discs(everyone)
        target = np.empty(len(self.ways))
        for k, own in enumerate(self.ways):
            near = ((everyone[:, :2] - everyone[k + 1, :2]) ** 2).sum(-1) < (SIGHT + 4) ** 2
            near[k + 1] = False
            target[k] = min(self.cruise[k], self.limit(k + 1, own, float(self.at[k]), every_disc[near].reshape(-1, 2)))
        change = np.clip((target - self.speed) / seconds, -BRAKE, GAIN)
        self.speed = np.maximum(self.speed + change * seconds, 0.0)
        self.at = self.at + self.speed * seconds

    def _take_turns(self, pose: np.ndarray, way: RoadWay, at: float) -> None:
        """At each junction one vehicle at a time: whoever is nearest when it is free, and can leave it again."""
        ways, places = [way, *self.ways], [at, *self.at]
        poses = np.concatenate([pose[None], self.poses])
        speeds = np.concatenate([[np.inf], self.speed])
        following = [each.junction(place, HALF[0]) for each, place in zip(ways, places, strict=True)]
        for node, holder in enumerate(self.turn):
            if holder >= 0 and following[holder].node != node:
                self.turn[node] = -1
        distances = [each.enter - place - HALF[0] for each, place in zip(following, places, strict=True)]
        for number in np.argsort(distances):
            node = following[number].node
            if distances[number] > GIVE_WAY or self.turn[node] >= 0:
                continue
            middle = (np.array(divmod(node, 3)) - 1) * BLOCK
            inside = np.abs(poses[:, :2] - middle).max(-1) < BOX + 1.0
            inside[number] = False
            exits, _ = ways[number].at(following[number].leave + _EXIT)
            blocks = (((poses[:, None, :2] - exits) ** 2).sum(-1) < LANE**2 / 2).any(-1)
            queue = blocks & (speeds < 2.0)
            queue[number] = False
            if not inside.any() and not queue.any():
                self.turn[node] = number

    def _walk(self, seconds: float, pose: np.ndarray, speed: float) -> None:
        if self.street < 0:
            return
        self.wait = max(self.wait - seconds, 0.0)
        if abs(self.across) >= KERB - 1e-6:  # at the kerb
            if self.wait > 0 or self._somebody_comes(pose, speed):
                return
            self.sense = -int(math.copysign(1, self.across))
        across, poses = self.across, np.concatenate([pose[None], self.poses])
        self.across += self.sense * PACE * seconds
        here = self.walker
        assert here is not None
        near = poses[((poses[:, :2] - here) ** 2).sum(-1) < 16]
        if any(walker_gap(each, here) < 0.4 for each in near):  # nobody walks into a car, or waits for one that waits
            self.across, self.sense = across, -self.sense
        elif abs(self.across) >= KERB:
            self.across, self.wait = math.copysign(KERB, self.across), 6.0

    def _somebody_comes(self, pose: np.ndarray, speed: float) -> bool:
        """Whether a car is too near to the crossing to stop for somebody who steps onto it."""
        middle, along, left = crossing(self.street)
        poses, speeds = np.concatenate([pose[None], self.poses]), np.concatenate([[speed], self.speed])
        off = poses[:, :2] - middle
        towards = np.where(np.cos(poses[:, 2]) * along[0] + np.sin(poses[:, 2]) * along[1] > 0, 1.0, -1.0)
        distance = -(off @ along) * towards  # to the crossing; negative behind it
        on_street = (np.abs(off @ left) < LANE + 1.0) & (np.abs(off @ along) < STREET / 2 + BOX)
        near = (distance > -4.5) & (distance < 7.0 + 1.5 * speeds + speeds**2 / (2 * COMFORT))
        return bool((on_street & near & ((speeds > 0.3) | (distance < 4.0))).any())

    # Resume ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """What `load` goes on from."""
        kept = {name: getattr(self, name).copy() for name in _KEPT}
        return kept | {"walker": np.array([self.street, self.across, self.sense, self.wait])}

    @classmethod
    def load(cls, state: dict[str, np.ndarray]) -> Traffic:
        """Undo of `state`."""
        traffic = cls(*(state[name].copy() for name in ("lanes", "begins", "turns", "cruise")))
        for name in _KEPT:
            setattr(traffic, name, state[name].copy())
        street, traffic.across, sense, traffic.wait = (float(value) for value in state["walker"])
        traffic.street, traffic.sense = int(street), int(sense)
        return traffic


_KEPT = ("lanes", "begins", "turns", "cruise", "at", "speed", "aside", "parked", "turn")


def spread(rng: np.random.Generator, count: int, apart: float, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lanes (K,) and metres along them (K,) of up to `count` cars, so far from one another and from `taken` (N, 2).

    Args:
        rng: of the draws.
        apart: metres between two, at least.
    """
    lanes: list[int] = []
    begins: list[float] = []
    places = [*taken]
    for _ in range(count * 20):
        if len(lanes) == count:
            break
        lane, begin = int(rng.integers(len(LANES))), float(rng.uniform(2.5, STREET - 3.0))
        place, _ = RoadWay(lane, begin, [0]).spot(0.0)
        if all(np.linalg.norm(place - other) > apart for other in places):
            lanes.append(lane)
            begins.append(begin)
            places.append(place)
    return np.array(lanes, int), np.array(begins)
