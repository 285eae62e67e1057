"""A two-link arm over a table with four balls: put the tip on one of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from embodied.envs.looks import muted, orbit, relight, tint
from embodied.envs.tasks import REACHER
from embodied.envs.world import World, graded

COLOURS = tuple(REACHER)
UPPER, LOWER = 0.3, 0.27  # metres
TOUCH = 0.07  # metres between the tip and a ball's middle, seen from above: the ball's radius and half the tip's
STRAIGHT, FOLDED = 0.3, 2.2  # elbow angle, radians
SPEED = 4.0  # rad/s at action 1
_NEAR, _FAR, _APART = 0.2, 0.53, 0.17  # metres: where balls lie, how far from each other
_TARGET = np.array([0.0, 0.0, 0.0])


READINGS = (
    "shoulder_cos", "elbow_cos", "shoulder_sin", "elbow_sin", "shoulder_speed", "elbow_speed", "tip_x", "tip_y",
)  # fmt: skip


class Reacher(World):
    """Turn shoulder and elbow (two speeds, -1 to 1) so that the tip rests on the ball of the task's colour.

    `state`: cosine and sine of both angles, both velocities, the tip (2), the ball relative to the tip in the
    upper arm's axes (2).
    `agent_pos`: the same without the ball.

    Args:
        task: colour of the ball to reach: red, green, blue or yellow.
        **kwargs: those of `World`.

    Raises:
        ValueError: an unknown task.
    """

    scene = "reacher/scene.xml"
    cameras = ("top", "side")
    facts = ("tip_red", "tip_green", "tip_blue", "tip_yellow", "arm_straight", "arm_folded")

    def __init__(self, *, task: str = "red", **kwargs: Any) -> None:
        if task not in COLOURS:
            raise ValueError(f"Reacher: task must be one of {', '.join(COLOURS)}; got {task!r}.")
        self.task, self.instruction = task, REACHER[task].instruction
        super().__init__(**kwargs)

    def _setup(self) -> None:
        self._upper = self.model.body("upper").id
        self._tip_site = self.model.site("tip").id
        self._balls = {colour: int(self.model.body(colour).mocapid[0]) for colour in COLOURS}

    def _start(self) -> None:
        self._place_balls(self.np_random)
        self.data.qpos[:] = self.np_random.uniform([-math.pi, -2.0], [math.pi, 2.0])

    def _place_balls(self, rng: np.random.Generator) -> None:
        placed: list[np.ndarray] = []
        while len(placed) < len(COLOURS):
            radius, angle = rng.uniform(_NEAR, _FAR), rng.uniform(-math.pi, math.pi)
            spot = radius * np.array([math.cos(angle), math.sin(angle)])
            if all(np.linalg.norm(spot - other) > _APART for other in placed):
                placed.append(spot)
        for colour, spot in zip(COLOURS, placed, strict=True):
            self.data.mocap_pos[self._balls[colour], :2] = spot

    def _apply(self, action: np.ndarray) -> None:
        self.data.ctrl[:] = SPEED * np.clip(action, -1, 1)

    def _tip(self) -> np.ndarray:
        """(2,) seen from above, metres."""
        return self.data.site_xpos[self._tip_site, :2]

    def _ball(self, colour: str) -> np.ndarray:
        """(2,) seen from above, metres."""
        return self.data.mocap_pos[self._balls[colour], :2]

    def _state(self) -> np.ndarray:
        axes = self.data.xmat[self._upper].reshape(3, 3)[:2, :2]  # learners need not learn that turning changes nothing
        return np.concatenate([self._proprio(), (self._ball(self.task) - self._tip()) @ axes]).astype(np.float32)

    def signals(self) -> dict[str, float]:
        """The arm's own readings: its joints' angles and speeds, and so where its tip is."""
        return dict(zip(READINGS, self._proprio().tolist(), strict=True))

    def _proprio(self) -> np.ndarray:
        angles, speeds = self.data.qpos[:2], self.data.qvel[:2]
        return np.concatenate([np.cos(angles), np.sin(angles), speeds / SPEED, self._tip()]).astype(np.float32)

    def degrees(self) -> dict[str, float]:
        elbow, tip = abs(float(self.data.qpos[1])), self._tip()
        touching = {
            f"tip_{colour}": graded(float(np.linalg.norm(self._ball(colour) - tip)), TOUCH, scale=0.25)
            for colour in COLOURS
        }
        return touching | {
            "arm_straight": graded(elbow, STRAIGHT, scale=0.8),
            "arm_folded": graded(math.pi - elbow, math.pi - FOLDED, scale=0.8),
        }

    def env_reward(self) -> float:
        return self.degrees()[f"tip_{self.task}"]

    def success(self) -> bool:
        return bool(np.linalg.norm(self._ball(self.task) - self._tip()) <= TOUCH)

    def sample_state(self, rng: np.random.Generator) -> None:
        self._place_balls(rng)
        self.data.qpos[:] = rng.uniform([-math.pi, -2.75], [math.pi, 2.75])
        draw = rng.random()
        if draw < 0.55:  # on a ball, or near one
            spread = 0.0 if draw < 0.3 else 0.08
            spot = self._ball(COLOURS[rng.integers(4)]) + rng.normal(0, 0.02 + spread, 2)
            self.data.qpos[:2] = _joints(spot, sign=rng.choice([-1.0, 1.0]))
        elif draw < 0.65:
            self.data.qpos[1] = rng.uniform(-STRAIGHT, STRAIGHT)
        self.data.qvel[:] = 0
        self._refresh()

    def randomize_look(self, rng: np.random.Generator) -> None:
        self.restore_look()
        model = self.model
        for camera in range(model.ncam):
            orbit(model, camera, self._look["cam_pos"][camera], _TARGET, rng, yaw=0.3, pitch=0.12, zoom=0.1)
        relight(model, rng)
        for name in ("floor", "table", "rim", "upper", "lower"):
            model.mat_rgba[model.material(name).id] = muted(rng)
        for name in (*COLOURS, "tip", "base"):
            model.mat_rgba[model.material(name).id] = tint(model.mat_rgba[model.material(name).id], rng, 0.06)
        for i in range(3):
            if rng.random() < 0.4:  # things lying at the table's edge, out of the balls' ring
                angle, radius = rng.uniform(-math.pi, math.pi), rng.uniform(0.64, 0.68)
                place = radius * math.cos(angle), radius * math.sin(angle), 0.04
                model.body_pos[model.body(f"distractor_{i}").id] = place
                model.geom_rgba[model.geom(f"distractor_{i}").id] = muted(rng)
        self._refresh()


def _joints(spot: np.ndarray, sign: float) -> np.ndarray:
    """(2,) joint angles that put the tip at `spot` (2,), or as near as the arm comes; `sign` picks the elbow's side."""
    far = np.clip(np.linalg.norm(spot), 0.12, UPPER + LOWER - 1e-3)
    elbow = sign * math.acos((far**2 - UPPER**2 - LOWER**2) / (2 * UPPER * LOWER))
    shoulder = math.atan2(spot[1], spot[0]) - math.atan2(LOWER * math.sin(elbow), UPPER + LOWER * math.cos(elbow))
    return np.array([math.remainder(shoulder, 2 * math.pi), elbow])
