"""What can be true of Meta-World's button-press, told to `embodied pretrain` by `scenes.NAME.facts=module:Class`.

    PYTHONPATH=examples embodied pretrain model=shipped use=[button] +scenes.button.frames=8000 \\
        +scenes.button.worlds=[metaworld/button-press-v3] +scenes.button.facts=button_facts:ButtonFacts \\
        +scenes.button.captions=examples/button_captions.yaml +scenes.button.camera=corner3

From the side (`corner3`) the button's way of a few centimetres can be seen; from the usual camera it is three pixels.
Privileged, as every fact is: it teaches an encoder and judges it, and no learner reads it.
"""

import math
from typing import Any

import mujoco
import numpy as np

PRESSED, OUT, NEAR = 0.02, 0.07, 0.05  # metres that a button lacks of being pressed; of the fingers to it


def degree(lack: float, scale: float) -> float:
    """1 where nothing is lacking, else below 0.9, falling with what is."""
    return 1.0 if lack <= 0 else 0.88 * math.exp(-lack / scale)


class ButtonFacts:
    """Called once with Meta-World's own environment."""

    facts = ("button_pressed", "button_out", "at_button")

    def __init__(self, env: Any) -> None:
        self.env = env
        joint = env.model.joint("btnbox_joint")
        self.position, self.speed = int(joint.qposadr[0]), int(joint.dofadr[0])

    def degrees(self) -> dict[str, float]:
        """How far each fact holds now, in [0, 1]."""
        data = self.env.data
        button = data.body("button").xpos - np.array([0.0, 0.193, 0.0])  # the head's front
        lack = float(data.site("hole").xpos[1] - button[1])
        return {
            "button_pressed": degree(lack - PRESSED, 0.04),
            "button_out": degree(OUT - lack, 0.04),
            "at_button": degree(float(np.linalg.norm(self.env.tcp_center - button)) - NEAR, 0.15),
        }

    def sample_state(self, rng: np.random.Generator) -> None:
        """The hand some steps from where it was, and in two states of three the button anywhere: in, out or between."""
        action = np.append(rng.uniform(-1, 1, 3), rng.choice([-1.0, 1.0])).astype(np.float32)
        for _ in range(rng.integers(4, 16)):
            self.env.step(action)
        data, share = self.env.data, rng.random()
        if share < 0.67:
            data.qpos[self.position] = -(rng.uniform(0.075, 0.1) if share < 0.3 else rng.uniform(0.0, 0.1))
            data.qvel[self.speed] = 0.0
        mujoco.mj_forward(self.env.model, data)
