"""What can be true of Meta-World's drawer-open, told to `embodied pretrain` by `scenes.NAME.facts=module:Class`.

    PYTHONPATH=examples embodied pretrain model=shipped use=[drawer] +scenes.drawer.frames=8000 \\
        +scenes.drawer.worlds=[metaworld/drawer-open-v3] +scenes.drawer.facts=drawer_facts:DrawerFacts \\
        +scenes.drawer.captions=examples/drawer_captions.yaml

Privileged, as every fact is: it teaches an encoder and judges it, and no learner reads it.
"""

import math
from typing import Any

import mujoco
import numpy as np

WIDE, SHUT, NEAR = 0.16, 0.02, 0.05  # metres that the drawer is pulled out; of the fingers to the handle


def degree(lack: float, scale: float) -> float:
    """1 where nothing is lacking, else below 0.9, falling with what is."""
    return 1.0 if lack <= 0 else 0.88 * math.exp(-lack / scale)


class DrawerFacts:
    """Called once with Meta-World's own environment."""

    facts = ("drawer_open", "drawer_closed", "at_handle")

    def __init__(self, env: Any) -> None:
        self.env = env
        slide = env.model.joint("goal_slidey")
        self.position, self.speed = int(slide.qposadr[0]), int(slide.dofadr[0])

    def degrees(self) -> dict[str, float]:
        """How far each fact holds now, in [0, 1]."""
        opening = -float(self.env.data.qpos[self.position])
        handle = self.env.data.body("drawer_link").xpos - np.array([0.0, 0.16, 0.0])
        return {
            "drawer_open": degree(WIDE - opening, 0.08),
            "drawer_closed": degree(opening - SHUT, 0.08),
            "at_handle": degree(float(np.linalg.norm(self.env.tcp_center - handle)) - NEAR, 0.15),
        }

    def sample_state(self, rng: np.random.Generator) -> None:
        """The drawer anywhere, open, shut or between, and the hand some steps from where it was."""
        action = np.append(rng.uniform(-1, 1, 3), rng.choice([-1.0, 1.0])).astype(np.float32)
        for _ in range(rng.integers(4, 16)):
            self.env.step(action)
        data, share = self.env.data, rng.random()
        opening = 0.0 if share < 0.35 else rng.uniform(0.16, 0.2) if share < 0.7 else rng.uniform(0.0, 0.2)
        data.qpos[self.position], data.qvel[self.speed] = -opening, 0.0
        mujoco.mj_forward(self.env.model, data)
