"""A scripted expert for LIBERO's tasks of one thing to pick up and put somewhere; LIBERO ships none.

It reads the simulator's state, for demonstrations and judging.
"""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import numpy as np

from embodied.envs.libero import LiberoTask

OPEN, SHUT = -1.0, 1.0
_REACH, _TURN = 0.05, 0.5  # what an action of 1 moves, m, and turns, rad
_WIDEST, _RIM = 0.072, 0.006  # m: what is wider than the first is taken by its rim, so far inside
_FINGER, _FLOOR = 0.025, 0.01  # m: how far down a thing's side the fingers reach, and how near to its bottom
_ABOVE, _CARRIED = 0.12, 0.08  # m: over a thing before it is taken, and higher by so much while it is carried
_DROP = 0.06  # m over its place at which it is let go
_NEAR, _TRIES = 0.008, 60  # m, and steps after which a way is given up
_CLOSING, _OPENING = 12, 10  # steps


def can(task: LiberoTask) -> bool:
    """Whether the goal is one movable thing in or on something else.

    Args:
        task: any.
    """
    return len(task.goal) == 1 and task.goal[0][0] in ("in", "on") and task.movable(task.goal[0][1])


class PickAndPlace:
    """Takes the thing from above by its narrow side, carries it over its place, and lets go.

    Args:
        task: one that `can` tells, just reset.
    """

    def __init__(self, task: LiberoTask) -> None:
        self._task, (_, self._thing, self._where) = task, task.goal[0]
        self._script = self._forever()

    def __call__(self, _: np.ndarray) -> np.ndarray:
        """(7,) in [-1, 1]."""
        return next(self._script)

    def _forever(self) -> Iterator[np.ndarray]:
        """The script, again wherever the goal does not hold."""
        task = self._task
        while True:
            grasp, across = self._grasp()
            over = np.array([*grasp[:2], grasp[2] + _ABOVE])
            high = over[2] + _CARRIED
            yield from self._go(over, across, OPEN)
            yield from self._go(grasp, across, OPEN)
            yield from (self._toward(grasp, across, SHUT) for _ in range(_CLOSING))
            yield from self._go(np.array([*over[:2], high]), across, SHUT)
            held = task.place(self._thing) - task.hand()[0]
            goal = task.place(self._where) - held
            there, down = np.array([*goal[:2], high]), np.array([*goal[:2], max(goal[2] + _DROP, grasp[2])])
            yield from self._go(there, across, SHUT)
            yield from self._go(down, across, SHUT)
            yield from (self._toward(down, across, OPEN) for _ in range(_OPENING))
            yield from self._go(there, across, OPEN)
            while task.solved():
                yield self._toward(there, across, OPEN)

    def _grasp(self) -> tuple[np.ndarray, np.ndarray]:
        """(3,) where the fingers close, metres, and (2,) the horizontal way along which they do."""
        points = _shape(self._task, self._thing)
        least, most = points.min(0), points.max(0)
        across, width = _narrow(points)
        place = (least + most) / 2
        place[2] = max(most[2] - _FINGER, least[2] + _FLOOR)
        if width > _WIDEST:
            place[:2] += (width / 2 - _RIM) * across
        return place, across

    def _go(self, place: np.ndarray, across: np.ndarray, gripper: float) -> Iterator[np.ndarray]:
        for _ in range(_TRIES):
            if np.linalg.norm(place - self._task.hand()[0]) < _NEAR:
                return
            yield self._toward(place, across, gripper)

    def _toward(self, place: np.ndarray, across: np.ndarray, gripper: float) -> np.ndarray:
        """(7,) one action: straight to a place, upright, the fingers closing along `across`."""
        at, turned = self._task.hand()
        fingers = np.array([*across, 0.0])
        if fingers @ turned[:, 0] < 0:
            fingers = -fingers
        down = np.array([0.0, 0.0, -1.0])
        wanted = np.stack([fingers, np.cross(down, fingers), down], 1)
        quaternion, turn = np.empty(4), np.empty(3)
        mujoco.mju_mat2Quat(quaternion, (wanted @ turned.T).ravel())
        mujoco.mju_quat2Vel(turn, quaternion, 1.0)
        moved, turned_by = (place - at) / _REACH, turn / _TURN
        return np.array([*np.clip(moved, -1, 1), *np.clip(turned_by, -1, 1), gripper])


def _shape(task: LiberoTask, name: str) -> np.ndarray:
    """(N, 3) corners of the boxes around a thing's shapes, metres."""
    model, data = task.model, task.data
    root = task.body(name)
    geoms = [g for g in range(model.ngeom) if model.body_rootid[model.geom_bodyid[g]] == model.body_rootid[root]]
    corners = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
    found = []
    for g in geoms:
        center, half = model.geom_aabb[g, :3], model.geom_aabb[g, 3:]
        found.append(data.geom_xpos[g] + (center + corners * half) @ data.geom_xmat[g].reshape(3, 3).T)
    return np.concatenate(found)


def _narrow(points: np.ndarray) -> tuple[np.ndarray, float]:
    """(2,) the horizontal direction in which points are spread least, and how wide they are there, metres."""
    angles = np.linspace(0, np.pi, 36, endpoint=False)
    ways = np.stack([np.cos(angles), np.sin(angles)], 1)
    widths = np.ptp(points[:, :2] @ ways.T, axis=0)
    best = int(widths.argmin())
    return ways[best], float(widths[best])
