"""The streets of a small town: lanes, junctions, crossings and the ways along them, as plain geometry.

Nine junctions lie on a square grid, a block apart; every street between two of them has one lane in each direction, on
the right-hand side, and a zebra crossing in its middle. Metres and radians, x to the east, y to the north; a heading is
counted from east to north. A lane is (junction it leaves, direction), directions 0 to 3 being east, north, west, south.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

GRID, BLOCK = 3, 48.0  # junctions a side, and how far apart they lie
LANE = 3.5  # width of a lane
PARKING = 2.3  # width of the parking strip beside each lane
BOX = 8.0  # half the side of a junction
STREET = BLOCK - 2 * BOX  # length of a street between its junctions
STEP = 0.25  # between the places of a way that are worked out; between them it is straight
ZEBRA = 1.6  # half the width of a crossing, along the street
DIRECTIONS = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])


class Junction(NamedTuple):
    """Where a way goes through a junction: metres along the way, and which one.

    Attributes:
        enter, leave: metres along the way.
        node: number of the junction.
    """

    enter: float
    leave: float
    node: int


class Crossing(NamedTuple):
    """Where a way goes over a zebra crossing: metres along the way, the street, and on which side of its middle line
    (metres to the left of east or north) the way runs.

    Attributes:
        at: metres along the way.
    """

    at: float
    street: int
    side: float


def place(node: int) -> np.ndarray:
    """(2,) the middle of a junction.

    Args:
        node: number of the junction.
    """
    return (np.array(divmod(node, GRID)) - (GRID - 1) / 2) * BLOCK


def neighbour(node: int, direction: int) -> int | None:
    """The junction that a street leads to from another; None where the town ends.

    Args:
        node: number of the junction.
        direction: in which the street leaves it.
    """
    i, j = np.array(divmod(node, GRID)) + DIRECTIONS[direction].astype(int)
    return int(i * GRID + j) if min(i, j) >= 0 and max(i, j) < GRID else None


LANES = tuple((n, k) for n in range(GRID**2) for k in range(4) if neighbour(n, k) is not None)
STREETS = tuple((n, k) for n, k in LANES if k < 2)  # each once, towards the east or the north


def ways(node: int, direction: int) -> list[int]:
    """The directions in which one may leave the junction at the end of a lane: all but back.

    Args:
        node, direction: of the lane.
    """
    end = neighbour(node, direction)
    assert end is not None
    return [k for k in range(4) if k != (direction + 2) % 4 and neighbour(end, k) is not None]


def street_of(node: int, direction: int) -> int:
    """The street in `STREETS` that a lane belongs to.

    Args:
        node, direction: of the lane.
    """
    if direction >= 2:
        end = neighbour(node, direction)
        assert end is not None
        node, direction = end, direction - 2
    return STREETS.index((node, direction))


def crossing(street: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middle of a street's zebra crossing, the street's direction and, to the left of it, the way across; (2,) each."""
    node, direction = STREETS[street]
    along = DIRECTIONS[direction]
    return place(node) + BLOCK / 2 * along, along, np.array([-along[1], along[0]])


def outside(points: np.ndarray) -> np.ndarray:
    """(...) how far points (..., 2) lie beside the asphalt; negative: how far inside."""
    middles = (np.arange(GRID) - (GRID - 1) / 2) * BLOCK
    reach = middles[-1] + LANE + PARKING
    away = np.abs(points[..., None] - middles).min(-1)  # (..., 2) from the nearest street's middle line, either way
    beside = away.min(-1) - LANE - PARKING
    beyond = np.abs(points).max(-1) - reach
    at_box = away.max(-1) - BOX
    return np.asarray(np.maximum(np.minimum(beside, at_box), beyond))


class RoadWay:
    """A way along lanes and through junctions, as long as it is asked for.

    Args:
        lane: where it begins, an index of `LANES`.
        begin: metres along that lane.
        turns: at the k-th junction the way leaves by the turns[k]-th of `ways`, counted around; after the last turn
            the first is taken again.

    Attributes:
        length: metres that are laid out so far.
        junctions, crossings: on them.
    """

    def __init__(self, lane: int, begin: float, turns: Sequence[int] | np.ndarray) -> None:
        self.lane, self.begin, self.turns = lane, float(begin), np.asarray(turns)
        self._lane = LANES[lane]
        self.length = -self.begin
        self.junctions: list[Junction] = []
        self.crossings: list[Crossing] = []
        self._rows: list[np.ndarray] = []  # x, y, heading, curvature, every STEP metres from the lane's begin
        self._table = np.zeros((0, 4))
        self._heading = self._lane[1] * math.pi / 2  # at the end; it is not taken back to one turn
        self._street()

    def _street(self) -> None:
        node, direction = self._lane
        along = DIRECTIONS[direction]
        start = place(node) + BOX * along + LANE / 2 * np.array([along[1], -along[0]])
        side = -LANE / 2 if direction < 2 else LANE / 2
        self.crossings.append(Crossing(self.length + STREET / 2, street_of(node, direction), side))
        self._add(start, 0.0, STREET)

    def _turn(self) -> None:
        node, direction = self._lane
        options = ways(node, direction)
        out = options[int(self.turns[len(self.junctions) % len(self.turns)]) % len(options)]
        end = neighbour(node, direction)
        assert end is not None
        along = DIRECTIONS[direction]
        start = place(end) - BOX * along + LANE / 2 * np.array([along[1], -along[0]])
        radius = {1: BOX + LANE / 2, 3: LANE / 2 - BOX}.get((out - direction) % 4)  # of a right turn, negative
        enter = self.length
        self._add(
            start, 0.0 if radius is None else 1 / radius, 2 * BOX if radius is None else abs(radius) * math.pi / 2
        )
        self.junctions.append(Junction(enter, self.length, end))
        self._lane = end, out

    def _add(self, start: np.ndarray, curvature: float, length: float) -> None:
        """A piece of one curvature, from where the last one ended."""
        first, last = (round((each + self.begin) / STEP + 0.5 - 1e-9) for each in (self.length, self.length + length))
        run = np.arange(first, last) * STEP - self.begin - self.length
        heading = self._heading + curvature * run
        if curvature:
            along = (
                np.stack([np.sin(heading) - np.sin(self._heading), np.cos(self._heading) - np.cos(heading)]) / curvature
            )
        else:
            along = run * np.array([[math.cos(self._heading)], [math.sin(self._heading)]])
        self._rows.append(np.column_stack([start + along.T, heading, np.full(len(run), curvature)]))
        self._table = np.concatenate(self._rows)
        self.length += length
        self._heading += curvature * length

    def reach(self, at: float) -> None:
        """Make the way at least so long."""
        while self.length < at:
            self._turn()
            self._street()

    def at(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions (N, 2) and headings (N,) at so many metres along it; before its begin, along its first lane."""
        self.reach(float(at[-1] if len(at) else 0.0) + 1.0)
        row = (at + self.begin) / STEP
        below = np.maximum(row.astype(int), 0)
        first = self._table[below, :3]
        found = first + (row - below)[:, None] * (self._table[below + 1, :3] - first)
        return found[:, :2], found[:, 2]

    def spot(self, at: float) -> tuple[np.ndarray, float]:
        """Position (2,) and heading at one place."""
        self.reach(at + 1.0)
        row = (at + self.begin) / STEP
        below = max(int(row), 0)
        (x, y, heading, _), (end_x, end_y, end_heading, _) = self._table[below : below + 2].tolist()
        share = row - below
        return np.array([x + share * (end_x - x), y + share * (end_y - y)]), heading + share * (end_heading - heading)

    def curvature(self, at: np.ndarray) -> np.ndarray:
        """(N,) 1/m, positive to the left."""
        self.reach(float(at[-1]) + 1.0)
        return self._table[np.maximum(((at + self.begin) / STEP).astype(int), 0), 3]

    def nearest(self, point: np.ndarray, around: float) -> float:
        """Metres along it of the place nearest to a point (2,), from 4 behind `around` to 6 ahead of it."""
        tried = np.arange(around - 4.0, around + 6.0, 0.5)
        places, headings = self.at(tried)
        best = int(((places - point) ** 2).sum(-1).argmin())
        off = point - places[best]
        return float(tried[best] + np.clip(off @ [np.cos(headings[best]), np.sin(headings[best])], -0.5, 0.5))

    def junction(self, at: float, tail: float = 0.0) -> Junction:
        """The first junction that is not yet left by `tail` metres, seen from so many metres along it."""
        while self.junctions == [] or self.junctions[-1].leave + tail <= at:
            self.reach(self.length + 1.0)
        return next(each for each in self.junctions if each.leave + tail > at)
