"""A Gymnasium world of one's own, rewarded by a sentence, learned by stable-baselines3.

    python examples/gym_world.py

The world needs `render()` and nothing else of this package. The shipped encoder was not trained on this picture, so the
numbers show that the parts fit, not that the sentence is understood: take a larger encoder for a world of your own.
"""

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO

from embodied.envs.bridge import make
from embodied.envs.wrappers import ScoredEnv
from rewards.clip_goal import clip_scorer
from rewards.encoders import embedded_encoder

GOAL = "the tip of the arm touches the red ball"


class Slider(gymnasium.Env):
    """A grey block that slides along a table, and a red ball at its right end."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  as Gymnasium declares it

    def __init__(self, render_mode: str | None = "rgb_array") -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.place = 0.0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 0)
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.place = float(np.clip(self.place + 0.1 * action[0], -1, 1))
        return self._obs(), 0.0, False, False, {"is_success": self.place > 0.8}

    def render(self) -> np.ndarray:
        image = np.full((96, 96, 3), 200, np.uint8)
        image[60:] = (120, 90, 60)
        image[48:60, 84:96] = (220, 30, 30)
        left = round(36 + 36 * self.place)
        image[48:60, left : left + 12] = 90
        return image

    def _obs(self) -> np.ndarray:
        return np.array([self.place], np.float32)


gymnasium.register("Slider-v0", entry_point=Slider, max_episode_steps=20)  # pyright: ignore[reportArgumentType]


def main() -> None:
    """Train for a few steps, then say what the sentence scores at both ends."""
    scorer = clip_scorer(encoder=embedded_encoder(), goal=GOAL)
    env = ScoredEnv(make("Slider-v0"), scorer)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    model.learn(64)
    obs, _ = env.reset(seed=0)
    _, reward, *_, info = env.step(model.predict(obs, deterministic=True)[0])
    print(f"after {model.num_timesteps} steps: reward {reward:.4f}, the task's own {info['env_reward']:.1f}")
    env.close()


if __name__ == "__main__":
    main()
