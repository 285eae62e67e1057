"""A cart on a rail with a free pole: balance it upright."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from embodied.envs.looks import muted, orbit, relight, tint
from embodied.envs.tasks import CARTPOLE
from embodied.envs.world import World, graded

UP = 0.2  # radians from the vertical
DOWN = 0.35
SIDE = 0.3  # metres from the middle of the rail
MIDDLE = 0.12
RAIL = 0.7  # metres the cart can go to either side
_TARGET = np.array([0.0, 0.0, 0.75])


class CartPole(World):
    """Push the cart (one force, -1 to 1) so that the pole ends up and stays upright.

    Starts with the pole within one radian of upright. `state`: cart position, cosine and sine of the pole's
    angle (0 = up), cart and pole velocity. All five are joint readings, so `agent_pos` is the same.
    """

    scene = "cartpole/scene.xml"
    cameras = ("front", "angle")
    state_is_own = True
    facts = ("pole_up", "pole_down", "cart_left", "cart_right", "cart_centre")
    instruction = CARTPOLE.instruction
    start_angle: ClassVar[float] = 1.0  # radians

    def _start(self) -> None:
        self.data.qpos[:] = self.np_random.uniform([-0.2, -self.start_angle], [0.2, self.start_angle])
        self.data.qvel[:] = self.np_random.uniform(-0.05, 0.05, 2)

    def _angle(self) -> float:
        """Radians from upright, in [-pi, pi]."""
        return math.remainder(self.data.qpos[1], 2 * math.pi)

    def _state(self) -> np.ndarray:
        angle = self.data.qpos[1]
        return np.array([self.data.qpos[0], np.cos(angle), np.sin(angle), *self.data.qvel], np.float32)

    def _proprio(self) -> np.ndarray:
        return self._state()

    def degrees(self) -> dict[str, float]:
        x, tilt = float(self.data.qpos[0]), abs(self._angle())
        return {
            "pole_up": graded(tilt, UP, scale=1.2),
            "pole_down": graded(math.pi - tilt, DOWN, scale=1.2),
            "cart_left": graded(x + RAIL, RAIL - SIDE, scale=0.5),
            "cart_right": graded(RAIL - x, RAIL - SIDE, scale=0.5),
            "cart_centre": graded(abs(x), MIDDLE, scale=0.3),
        }

    def env_reward(self) -> float:
        return self.degrees()["pole_up"]

    def success(self) -> bool:
        return abs(self._angle()) <= UP

    def sample_state(self, rng: np.random.Generator) -> None:
        angle = rng.uniform(-math.pi, math.pi)
        if rng.random() < 0.5:  # as many states at either end as between them
            angle = rng.choice([0.0, math.pi]) + rng.normal(0, 0.2)
        x = rng.normal(0, 0.1) if rng.random() < 0.25 else rng.uniform(-RAIL, RAIL)
        self.data.qpos[:] = np.clip(x, -RAIL, RAIL), angle
        self.data.qvel[:] = rng.normal(0, 1, 2)
        self._refresh()

    def randomize_look(self, rng: np.random.Generator) -> None:
        self.restore_look()
        model = self.model
        for camera in range(model.ncam):
            orbit(model, camera, self._look["cam_pos"][camera], _TARGET, rng, yaw=0.25, pitch=0.1, zoom=0.1)
        relight(model, rng)
        for name in ("floor", "wall", "rail", "post"):
            model.mat_rgba[model.material(name).id] = muted(rng)
        for name in ("cart", "pole", "knob"):
            model.mat_rgba[model.material(name).id] = tint(model.mat_rgba[model.material(name).id], rng, 0.12)
        for i in range(3):
            if rng.random() < 0.4:  # things standing behind the rail
                model.body_pos[model.body(f"distractor_{i}").id] = rng.uniform(-1.2, 1.2), rng.uniform(0.4, 1.1), 0.16
                model.geom_rgba[model.geom(f"distractor_{i}").id] = np.append(rng.uniform(0.1, 0.9, 3), 1)
        self._refresh()
