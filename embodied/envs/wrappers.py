"""A reward model as an ordinary Gymnasium wrapper: one frame, one reward, per step."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from embodied import scoring
from rewards.core import Scorer


class ScoredEnv(gymnasium.Wrapper):
    """Replaces a world's reward by a scorer's, for learners that are not SB3's.

    `info` gets `env_reward` (the world's own) and `reward/<head>` (each head's potential after the step). Scores the
    same numbers as `Labeller`, one encoder call a step; batch over many worlds with `Labeller` where you can.

    Args:
        env: has `frame(image_size=…)`, as everything from `embodied.envs.bridge.make`.
        scorer: frames to rewards.
    """

    def __init__(self, env: gymnasium.Env, scorer: Scorer) -> None:
        super().__init__(env)
        self.scorer = scorer
        self._rows: list[np.ndarray] = []
        self._names: tuple[str, ...] = ()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        if self.env.has_wrapper_attr("signals"):
            self._names = tuple(sorted(self.env.get_wrapper_attr("signals")()))
        self._rows = [self._row()]
        return obs, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        obs, env_reward, terminated, truncated, info = self.env.step(action)
        self._rows.append(self._row())
        ended = np.zeros(len(self._rows) - 1, dtype=bool)
        ended[-1] = terminated
        (labels,) = scoring.label(self.scorer, [np.stack(self._rows)], [ended], self._names)
        potentials = {f"reward/{name}": float(values[-1]) for name, values in labels.potentials.items()}
        info = info | potentials | {"env_reward": float(env_reward)}
        return obs, float(labels.rewards[-1]), terminated, truncated, info

    def _row(self) -> np.ndarray:
        frame = self.env.get_wrapper_attr("frame")(image_size=self.scorer.encoder.image_size[0])
        signals = self.env.get_wrapper_attr("signals")() if self._names else {}
        return scoring.row(scoring.encode(self.scorer, frame[None])[0], signals, self._names)
