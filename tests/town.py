"""The car of the town where a test wants it."""

from __future__ import annotations

import numpy as np
import pytest

from embodied.envs.drive import Drive
from embodied.envs.roads import LANES, RoadWay
from embodied.envs.traffic import Traffic

EAST = LANES.index((3, 0))  # from the middle of the west side to the town's middle


def put(world: Drive, *others: tuple[float, float, float], **how: float) -> None:
    """The car at the start of the lane to the east; others so many metres ahead, to the left and turned, at rest."""
    way = RoadWay(EAST, 4.0, [1])
    count = len(others)
    traffic = Traffic(np.full(count, EAST), np.full(count, 4.0), np.ones((count, 1), int), np.zeros(count))
    traffic.aside = np.array(others, float).reshape(-1, 3)
    world.place(way, traffic, **how)
    world._refresh()


def holding(world: Drive) -> set[str]:
    return {fact for fact, degree in world.degrees().items() if degree == 1}


def fixtures():
    """Two fixtures: a town for all tests of a module, and the same with the car in the lane to the east, alone."""

    @pytest.fixture(scope="module")
    def shared():
        world = Drive()
        yield world
        world.close()

    @pytest.fixture
    def world(shared: Drive) -> Drive:
        shared.reset(seed=0)
        shared.restore_look()
        shared.ends = False
        put(shared)
        return shared

    return shared, world
