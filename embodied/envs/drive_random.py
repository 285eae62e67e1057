"""Random starts, states and looks of the town."""

from __future__ import annotations

import colorsys
import math

import mujoco
import numpy as np

from embodied.envs.drive_scene import AHEAD, HEIGHT, OTHERS, PARKED
from embodied.envs.looks import muted, relight, tint
from embodied.envs.roads import LANE, LANES, PARKING, STREET, STREETS, RoadWay, crossing
from embodied.envs.town import Town
from embodied.envs.traffic import KERB, TURNS, Traffic, gaps, spread, turned

BAYS = (-12.2, -6.6, 6.6, 12.2)  # metres along a street from its crossing, where cars park, on both sides
APART = 11.0  # metres between the middles of cars at the start
KINDS = ("as it comes", "behind a car", "collision", "off the road", "wrong lane", "askew", "walker", "crossing")
SHARES = (0.2, 0.13, 0.2, 0.1, 0.1, 0.08, 0.11, 0.08)


def start(world: Town, rng: np.random.Generator) -> None:
    """An episode's first state: the car at rest in its lane, everybody else where they happen to be.

    Args:
        world: is set to it.
        rng: of the draws.
    """
    way = RoadWay(int(rng.integers(len(LANES))), float(rng.uniform(3.0, STREET - 12.0)), rng.integers(0, 6, TURNS))
    world.place(way, _populated(way, world.traffic, rng))


def _populated(way: RoadWay, density: float, rng: np.random.Generator) -> Traffic:
    count = round(OTHERS * density)
    here, _ = way.at(np.array([-6.0, 0.0, 6.0]))
    lanes, begins = spread(rng, count, APART, here)
    count = len(lanes)
    others = Traffic(lanes, begins, rng.integers(0, 6, (count, TURNS)), rng.uniform(4.5, 6.5, count))
    others.speed = 0.7 * others.cruise
    others.parked = _parked(way, round(PARKED * density), rng)
    way.reach(100.0)
    if density > 0:
        street = [each.street for each in way.crossings if each.at > 12.0][:4]
        others.street = int(rng.choice(street))
        others.sense = int(rng.choice([-1, 1]))
        others.across = float(rng.choice([rng.uniform(-KERB, KERB), math.copysign(KERB, rng.uniform(-1, 1))]))
        others.wait = float(rng.uniform(0, 8))
    return others


def _parked(way: RoadWay, count: int, rng: np.random.Generator) -> np.ndarray:
    """(P, 3) poses at the kerbs, most of them along the way."""
    way.reach(100.0)
    first = list(dict.fromkeys(each.street for each in way.crossings))[:5]
    bays = [(street, along, side) for street in range(len(STREETS)) for along in BAYS for side in (-1, 1)]
    weights = np.array([6.0 if street in first else 1.0 for street, _, _ in bays])
    poses = []
    for index in rng.choice(len(bays), count, replace=False, p=weights / weights.sum()):
        street, along, side = bays[index]
        middle, axis, left = crossing(street)
        spot = middle + (along + rng.uniform(-0.3, 0.3)) * axis + side * (LANE + PARKING / 2 + 0.05) * left
        poses.append([*spot, math.atan2(axis[1], axis[0]) + (math.pi if side > 0 else 0.0)])
    return np.array(poses).reshape(-1, 3)


# Any state --------------------------------------------------------------------------------------------------


def sample_state(world: Town, rng: np.random.Generator) -> None:
    """Any plausible state, accidents and the wrong lane included; each fact in some of them.

    Args:
        world: is set to it.
        rng: of the draws.
    """
    way = RoadWay(int(rng.integers(len(LANES))), float(rng.uniform(0.0, STREET)), rng.integers(0, 6, TURNS))
    others = _populated(way, float(rng.choice([0.25, 0.5, 0.8])), rng)
    kind = str(rng.choice(KINDS, p=SHARES))
    at, aside, tilt = float(rng.uniform(0, 24)), float(rng.normal(0, 0.3)), float(rng.normal(0, 0.08))
    if kind == "off the road":
        at, tilt = float(rng.uniform(0, STREET - way.begin)), float(rng.normal(0, 0.5))
        aside = -float(rng.uniform(0.2, 2.6)) - LANE / 2 - PARKING
    elif kind == "wrong lane":
        at, aside, tilt = float(rng.uniform(0, STREET - way.begin)), LANE + aside, 1.5 * tilt
    elif kind == "askew":
        aside, tilt = 2.5 * aside, float(rng.choice([-1, 1]) * rng.uniform(0.75, 1.9))
    elif kind in ("walker", "crossing"):
        zebra = next(each for each in way.crossings if each.at > 14.0)
        at = zebra.at - float(rng.uniform(5.0, 13.0) if kind == "walker" else rng.uniform(0.0, 5.0))
        others.street = zebra.street
        others.across = float(rng.uniform(-LANE, LANE)) if kind == "walker" else KERB
    world.place(way, others, at=at, aside=aside, tilt=tilt, speed=float(rng.uniform(0, 7)))
    placed: list[int] = []
    if kind == "behind a car":
        placed = _stand(world, 0, _on_way(way, at + float(rng.uniform(5.5, 14.0)), aside, tilt))
    elif kind == "collision":
        placed = _collide(world, rng)
    _make_room(world, placed)


def _on_way(way: RoadWay, at: float, aside: float, tilt: float) -> np.ndarray:
    """(3,) a pose beside a place of a way."""
    place, heading = way.spot(at)
    return np.array([*(place + turned(np.array([0.0, aside]), heading)), heading + tilt])


def _stand(world: Town, number: int, pose: np.ndarray) -> list[int]:
    """Put one of the others anywhere, beside its own way; returns whom, if there is one."""
    others = world.others
    if number >= len(others.ways):
        return []
    own, heading = others.ways[number].spot(float(others.at[number]))
    others.aside[number] = [*turned(pose[:2] - own, -heading), pose[2] - heading]
    return [number]


def _collide(world: Town, rng: np.random.Generator) -> list[int]:
    """Two cars into one another: the driven car and another, or two others before it; returns which others."""
    first, placed = world.pose, []
    if rng.random() < 0.35:
        at, aside = world.at + float(rng.uniform(8.0, 14.0)), float(rng.uniform(-1, 3))
        first = _on_way(world.way, at, aside, float(rng.normal(0, 0.4)))
        placed = _stand(world, 1, first)
    crossed = float(rng.choice([rng.normal(0, 0.15), rng.uniform(-2.2, 2.2), math.pi + rng.normal(0, 0.2)]))
    bearing = float(rng.choice([rng.normal(0, 0.3), math.pi + rng.normal(0, 0.3), rng.uniform(0, 2 * math.pi)]))
    direction = turned(np.array([1.0, 0.0]), first[2] + bearing)
    away, second = 6.0, np.zeros(3)
    while away > 0.5:  # from outside until it touches, then a little further: dents
        second = np.array([*(first[:2] + away * direction), first[2] + crossed])
        if gaps(first, second[None])[0] <= 0:
            break
        away -= 0.1
    second[:2] -= float(rng.uniform(0, 0.3)) * direction
    return [*placed, *_stand(world, 0, second)]


def _make_room(world: Town, placed: list[int]) -> None:
    """Take away whoever stands in the car, in one of those that were placed or on the walker by accident."""
    others = world.others
    poses = others.poses
    fine, clear = np.ones(len(poses), bool), np.ones(len(others.parked), bool)
    for each in (world.pose, *poses[placed]):
        fine &= gaps(each, poses) > 0.3
        clear &= gaps(each, others.parked) > 0.3
    if (walker := others.walker) is not None:
        fine &= np.linalg.norm(poses[:, :2] - walker, axis=-1) > 3.0
    fine[placed] = True
    others.keep(fine)
    others.parked = others.parked[clear]


# Looks ------------------------------------------------------------------------------------------------------


def randomize_look(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """Another light, another day, other paints and houses; the cameras sit a little otherwise on the car.

    Args:
        model: is changed in place.
        rng: of the draws.
    """
    relight(model, rng)
    bird, front = model.camera("bird").id, model.camera("front").id
    model.cam_pos[bird] = [AHEAD + rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8), HEIGHT * rng.uniform(0.95, 1.08)]
    turn = -math.pi / 4 + rng.normal(0, 0.015)
    model.cam_quat[bird] = [math.cos(turn), 0.0, 0.0, math.sin(turn)]
    model.cam_pos[front] += rng.uniform(-0.08, 0.08, 3)
    model.cam_fovy[front] += rng.uniform(-4, 4)
    day = rng.uniform(0.75, 1.1) * rng.uniform(0.92, 1.06, 3)
    for name in ("ground", "meadow"):
        model.mat_rgba[model.material(name).id, :3] *= day
    for name in ("house_a", "house_b", "roof"):
        model.mat_rgba[model.material(name).id] = muted(rng)
    for name in ("tree", "coat"):
        model.mat_rgba[model.material(name).id] = tint(model.mat_rgba[model.material(name).id], rng, 0.05)
    for name in [f"other_{k}" for k in range(OTHERS)] + [f"parked_{k}" for k in range(PARKED)]:
        hue = rng.uniform(0.1, 0.9)  # no red
        paint = [*colorsys.hsv_to_rgb(hue, rng.choice([0.05, rng.uniform(0.3, 0.85)]), rng.uniform(0.15, 0.95)), 1.0]
        model.geom_rgba[model.geom(name).id] = model.geom_rgba[model.geom(f"{name}_roof").id] = paint
    for name in ("car", "car_roof"):
        geom = model.geom(name).id
        model.geom_rgba[geom] = tint(model.geom_rgba[geom], rng, 0.04)
    for k in range(3):
        if rng.random() < 0.4:  # things that stand in gardens
            street = int(rng.integers(len(STREETS)))
            middle, along, left = crossing(street)
            spot = middle + rng.uniform(-14, 14) * along + rng.choice([-1, 1]) * rng.uniform(8.5, 9.5) * left
            model.body_pos[model.body(f"distractor_{k}").id] = [*spot, 0.8]
            model.geom_rgba[model.geom(f"distractor_{k}").id] = muted(rng)
