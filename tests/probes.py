"""A world whose right answers are known; without torch, so that workers start fast."""

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

SIZE = 16


class ProbeWorld(gymnasium.Env):
    """Each frame spells its episode number, the world's seed and the step, so a score tells where it came from.

    The state is a point pushed by the action; success is being right of zero. `end` terminates after that many steps;
    `fail_at` raises at that step in the world that was reset with `fail_seed`.
    """

    render_mode = "rgb_array"

    def __init__(self, obs="state", end=None, fail_at=None, fail_seed=None):
        if obs not in ("state", "pixels", "mixed"):
            raise ValueError("obs")
        self.form, self.end, self.fail_at, self.fail_seed = obs, end, fail_at, fail_seed
        pixels = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        state = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        mixed = spaces.Dict({"pixels": pixels, "agent_pos": state})
        self.observation_space = {"state": state, "pixels": pixels, "mixed": mixed}[obs]
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.episode, self.seed, self.steps, self.rendered = -1, 0, 0, 0
        self.x = self.noise = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.seed = seed
        self.episode += 1
        self.steps = 0
        self.x, self.noise = self.np_random.uniform(-1, 1, 2)
        return self._obs(), {"is_success": self.x > 0, "big": np.zeros(9)}

    def step(self, action):
        self.steps += 1
        if self.steps == self.fail_at and self.seed == self.fail_seed:
            raise ArithmeticError("probe")
        self.noise = self.np_random.uniform(-0.1, 0.1)
        self.x = float(np.clip(self.x + 0.3 * float(action[0]) + self.noise, -2, 2))
        terminated = self.end is not None and self.steps >= self.end
        return self._obs(), float(self.steps), terminated, False, {"is_success": self.x > 0, "big": np.zeros(9)}

    def _obs(self):
        state = np.array([self.x, self.noise, self.steps / 10], np.float32)
        if self.form == "state":
            return state
        return self.frame() if self.form == "pixels" else {"pixels": self.frame(), "agent_pos": state}

    def frame(self, camera=None, image_size=SIZE):
        """The top row spells (episode, seed, step); the rest shows x as a shade."""
        self.rendered += 1
        frame = np.full((image_size, image_size, 3), int(127 + 60 * self.x), np.uint8)
        frame[0, 0] = (self.episode % 256, self.seed % 256, self.steps)
        return frame

    def render(self):
        return self.frame(image_size=32)

    @staticmethod
    def read(frame):
        """(episode, seed, step) of a frame."""
        return tuple(int(v) for v in frame[0, 0])

    def get_state(self):
        return {"probe": np.array([self.episode, self.seed, self.steps, self.x, self.noise])}

    def set_state(self, state):
        episode, seed, steps, self.x, self.noise = state["probe"].tolist()
        self.episode, self.seed, self.steps = int(episode), int(seed), int(steps)


class TwoEyedWorld(ProbeWorld):
    """Two cameras (the right one's picture is the negative of the left's), their depth, and a reading of x."""

    camera, cameras = "left", ("left", "right")

    def frame(self, camera=None, image_size=SIZE):
        frame = super().frame(None, image_size)
        if camera == "right":
            frame[1:] = 255 - frame[1:]
        return frame

    def depth(self, camera=None, image_size=SIZE):
        return np.full((image_size, image_size), self.x + (camera == "right"), np.float32)

    def signals(self):
        return {"x": self.x, "clock": self.steps / 10}


def make_two_eyed(limit=5, **kwargs):
    return TimeLimit(TwoEyedWorld(**kwargs), limit)


def make_probe(limit=10, **kwargs):
    return TimeLimit(ProbeWorld(**kwargs), limit)
