"""Tasks at the desk: what each asks for, how far it holds, and what is seen of it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from embodied.envs import desk_random
from embodied.envs.desk_scene import (
    BUTTON_RANGE,
    CUBES,
    DOWN,
    DRAWER_RANGE,
    HALF,
    LEASH,
    OPENING,
    RAISED,
    START,
    DeskScene,
)  # fmt: skip
from embodied.envs.tasks import DESK

DRAWER_OPEN, DRAWER_CLOSED = 0.09, 0.012  # m
PRESSED = 0.02  # m
MARK_RADIUS, TRAY_HALF = 0.04, 0.062  # m


def near(distance: float | np.floating, scale: float) -> float:
    """1 at distance 0 m, falling with `scale` m."""
    return float(np.exp(-distance / scale))


class Desk(DeskScene):
    """One of eight tasks at the desk; the true reward is the degree, in [0, 1], of the task's own fact.

    Actions are in [-1, 1]: the tip's move (2 cm a step along the world's x, y, z), with `action_dim=7` also its
    turn (a rotation vector in the world's axes, 0.1 rad a step), and last the gripper's opening (-1 shut, 1 open).
    The sent pose stays in a box over the desk and within 5 cm of the real one. Damped least squares turns it
    into joint targets. `info` counts the actions of the episode in which the gripper pressed with more than 100 N on
    anything (`force_limit_passed`), and in which a joint of the arm was at its torque limit (`torque_limit_passed`):
    for judging only, like success.

    Args:
        task: reach, push (onto the mark), press, drawer (open it), close, lift, place (in the tray) or stack.
        target: the cube to reach, push, lift or place (default red); for stack, the cube that the red one goes
            on (default green).
        action_dim: 4, the gripper always points down; or 7.
        obs: see `World`.
        camera: see `World`.
        image_size: see `World`.
        looks: see `World`.
        render_mode: see `World`.

    Raises:
        ValueError: an unknown task, a target that it has not, or an action that has neither 4 nor 7 numbers.
    """

    facts = (
        "drawer_open", "drawer_closed", "button_pressed", "touch_red", "touch_green", "touch_blue", "red_on_mark",
        "red_lifted", "green_lifted", "blue_lifted", "red_in_tray", "green_in_tray", "blue_in_tray", "red_on_green",
        "red_on_blue", "gripper_closed", "gripper_open", "at_handle", "at_button", "arm_raised",
    )  # fmt: skip

    def __init__(
        self,
        *,
        task: str = "drawer",
        target: str | None = None,
        action_dim: int = 4,
        obs: str = "state",
        camera: str | None = None,
        image_size: int = 96,
        looks: int | Sequence[int] = 0,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if task not in DESK:
            close = difflib.get_close_matches(task, DESK, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"Desk: task must be one of {', '.join(DESK)}; got {task!r}.{hint}")
        targets = {"push": ("red",), "stack": ("green", "blue")}.get(task, CUBES)
        target = target or targets[0]
        if target not in targets:
            raise ValueError(f"Desk: target of task {task!r} must be one of {', '.join(targets)}; got {target!r}.")
        if action_dim not in (4, 7):
            raise ValueError(f"Desk: action_dim must be 4 or 7; got {action_dim}.")
        self.task, self.target, self.action_dim = task, target, action_dim
        self.instruction, self.fact = DESK[task].told(target)
        super().__init__(obs=obs, camera=camera, image_size=image_size, looks=looks, render_mode=render_mode)

    # Judging --------------------------------------------------------------------------------------------

    def degree(self, fact: str) -> float:
        """One entry of `degrees`: how far a fact holds, in [0, 1]; 1 is solved. ValueError for no fact of the desk."""
        tip = self.site("tip")
        match fact.split("_"):
            case ["drawer", "open"]:
                opened = self.drawer / DRAWER_OPEN
                return 1.0 if opened >= 1 else 0.25 * near(self._distance("handle"), 0.15) + 0.6 * max(opened, 0)
            case ["drawer", "closed"]:
                left = (self.drawer - DRAWER_CLOSED) / (DRAWER_RANGE - DRAWER_CLOSED)
                return 1.0 if left <= 0 else 0.25 * near(self._distance("handle"), 0.15) + 0.6 * max(1 - left, 0)
            case ["button", "pressed"]:
                down = self.pressed / PRESSED
                return 1.0 if down >= 1 else 0.45 * near(self._distance("button"), 0.12) + 0.4 * max(down, 0)
            case ["touch", cube]:
                gap = min(self.gaps(cube))
                return 1.0 if gap <= 0.004 else 0.85 * near(gap, 0.12)
            case [cube, "lifted"]:
                height = (self.cube(cube)[2] - HALF) / 0.05
                grasp = near(np.linalg.norm(tip - self.cube(cube)), 0.12)
                grip = near(np.linalg.norm(tip - self.cube(cube)), 0.03) * near(abs(self.opening - 2 * HALF), 0.02)
                return 1.0 if height >= 1 else 0.3 * grasp + 0.1 * grip + 0.45 * max(height, 0)
            case [cube, "on", "mark"]:
                away = self.cube(cube) - self.site("mark") - RAISED
                if np.hypot(away[0], away[1]) <= MARK_RADIUS and away[2] < 0.012:
                    return 1.0
                grasp = near(np.linalg.norm(tip - self.cube(cube)), 0.12)
                return 0.25 * grasp + 0.6 * near(np.linalg.norm(away), 0.12)
            case [cube, "in", "tray"]:
                away = self.cube(cube) - self.site("tray") - RAISED
                if max(abs(away[0]), abs(away[1])) <= TRAY_HALF and away[2] < 0.012:
                    return 1.0
                lift = min(max((self.cube(cube)[2] - HALF) / 0.05, 0), 1)
                grasp = near(np.linalg.norm(tip - self.cube(cube)), 0.12)
                return 0.2 * grasp + 0.15 * lift + 0.5 * near(np.linalg.norm(away), 0.12)
            case ["red", "on", below]:
                away = self.cube("red") - self.cube(below) - 2 * RAISED
                on_top = np.hypot(away[0], away[1]) <= 0.026 and abs(away[2]) < 0.008
                if on_top and not self.held("red"):
                    return 1.0
                lift = min(max((self.cube("red")[2] - HALF) / 0.05, 0), 1)
                grasp = near(np.linalg.norm(tip - self.cube("red")), 0.12)
                return 0.2 * grasp + 0.15 * lift + 0.5 * near(np.linalg.norm(away), 0.12)
            case ["gripper", "closed"]:
                return 1.0 if self.opening <= 0.012 else 0.85 * np.clip(1.15 - self.opening / OPENING, 0, 1)
            case ["gripper", "open"]:
                return 1.0 if self.opening >= 0.06 else 0.85 * max(self.opening / 0.06, 0)
            case ["at", place]:
                away = self._distance(place)
                return 1.0 if away <= 0.045 else 0.85 * near(away - 0.045, 0.12)
            case ["arm", "raised"]:
                return 1.0 if tip[2] >= 0.22 else 0.85 * max(float(tip[2]) / 0.22, 0)
        raise ValueError(f"Desk.degree: fact must be one of {', '.join(self.facts)}; got {fact!r}.")

    def _distance(self, place: str) -> float:
        return float(np.linalg.norm(self.site("tip") - self.site(place)))

    def degrees(self) -> dict[str, float]:
        return {fact: float(self.degree(fact)) for fact in self.facts}

    def env_reward(self) -> float:
        return float(self.degree(self.fact))

    def success(self) -> bool:
        return self.env_reward() == 1.0

    def _info(self) -> dict[str, Any]:
        force, torque = self.passed.tolist()
        return super()._info() | {"force_limit_passed": force, "torque_limit_passed": torque}

    # Observing ------------------------------------------------------------------------------------------

    def signals(self) -> dict[str, float]:
        """The robot's own readings, which a real arm has from its joints: where the tip is (metres, in the world's
        axes) and how wide the gripper stands (0 shut to 1 open)."""
        x, y, z = self.site("tip").tolist()
        return {
            "gripper_x": x,
            "gripper_y": y,
            "gripper_z": z,
            "gripper_opening": min(max(self.opening / OPENING, 0), 1),
        }

    def _proprio(self) -> np.ndarray:
        velocity = np.empty(6)
        kind = mujoco.mjtObj.mjOBJ_SITE
        mujoco.mj_objectVelocity(self.model, self.data, kind, self._sites["tip"], velocity, 0)
        turned = np.empty(3)
        mujoco.mju_subQuat(turned, self.sent_quat, DOWN)
        tip = self.site("tip")
        parts = [(tip - START) / 0.2, velocity[3:] / 0.4, (self.sent - tip) / LEASH, turned]
        widths = [2 * self.opening / OPENING - 1, 2 * self.data.ctrl[7] / OPENING - 1]
        return np.concatenate([*parts, widths]).astype(np.float32)

    def _state(self) -> np.ndarray:
        tip, target = self.site("tip"), "red" if self.task == "stack" else self.target
        dof = self._cube_dof[target]
        parts = [(self.cube(target) - tip) / 0.2, self._goal(target) / 0.2, self.data.qvel[dof : dof + 3] / 0.4]
        parts += [self.data.geom_xmat[self._cube_geom[target]][[0, 3, 6]]]  # its x axis
        parts += [(self.cube(cube) - tip) / 0.2 for cube in CUBES]
        parts += [(self.site(place) - tip) / 0.2 for place in ("handle", "button", "tray", "mark")]
        drawer = [2 * self.drawer / DRAWER_RANGE - 1, self.data.qvel[self._drawer_dof] / 0.4]
        parts += [drawer, [2 * self.pressed / BUTTON_RANGE - 1]]
        return np.concatenate([self._proprio(), *parts]).astype(np.float32)

    def _goal(self, cube: str) -> np.ndarray:
        """(3,) m: from a cube to where the task wants it; zero where the task moves none."""
        at = self.cube(cube)
        match self.task:
            case "push":
                return self.site("mark") + RAISED - at
            case "lift":
                return np.array([0, 0, 0.08 + HALF - at[2]])
            case "place":
                return self.site("tray") + RAISED - at
            case "stack":
                return self.cube(self.target) + 2 * RAISED - at
        return np.zeros(3)

    # States and looks -----------------------------------------------------------------------------------

    def _start(self) -> None:
        self.passed = np.zeros(2, np.int64)
        desk_random.start(self, self.np_random, drawer_out=self.task == "close")

    def sample_state(self, rng: np.random.Generator) -> None:
        desk_random.sample_state(self, rng)

    def randomize_look(self, rng: np.random.Generator) -> None:
        self.restore_look()
        desk_random.randomize_look(self.model, rng)
        self._refresh()
