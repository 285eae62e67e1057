"""Rewards as ordinary Gymnasium wrappers: a model's, one frame and one number a step; and success as a sparse one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from embodied import scoring
from embodied.envs.worker import own_view, view_names
from embodied.scoring import Layout, Track
from rewards.core import Scorer


class ScoredEnv(gymnasium.Wrapper):
    """Replaces a world's reward by a scorer's, for learners that are not SB3's.

    `info` gets `env_reward` (the world's own) and `reward/<head>` (each head's potential after the step). Scores the
    same numbers as `Labeller`, one encoder call a step; batch over many worlds with `Labeller` where you can.

    Args:
        env: has `frame(image_size=…)`, as everything from `embodied.envs.bridge.make`.
        scorer: frames to rewards.
        cameras: the views to score, by name; none: the world's own camera.

    Raises:
        WorldError: a camera that the world lacks, or one twice.
    """

    def __init__(self, env: gymnasium.Env, scorer: Scorer, cameras: Sequence[str] = ()) -> None:
        super().__init__(env)
        self.scorer = scorer
        self._own, self._layout = own_view(env), Layout(view_names(env, cameras))
        self._track = Track()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._layout = Layout(self._layout.views, tuple(sorted(self._signals())))
        row, frames = self._look()
        self._track = Track([row])
        if self.scorer.frames_read != "none":
            self._track.frames = [frames]
            if self.env.has_wrapper_attr("depth"):
                self._track.depth = np.stack([self._view("depth", view) for view in self._layout.views])
        return obs, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        obs, env_reward, terminated, truncated, info = self.env.step(action)
        row, frames = self._look()
        self._track.add(row, bool(terminated), frames if self.scorer.frames_read == "all" else None)
        (labels,) = scoring.label(self.scorer, [self._track], self._layout)
        potentials = {f"reward/{name}": float(values[-1]) for name, values in labels.potentials.items()}
        info = info | potentials | {"env_reward": float(env_reward)}
        return obs, float(labels.rewards[-1]), terminated, truncated, info

    def _look(self) -> tuple[np.ndarray, np.ndarray]:
        """This moment's row, and its frames (V, H, W, 3)."""
        frames = np.stack([self._view("frame", view) for view in self._layout.views])
        (row,) = self._layout.rows(scoring.encode(self.scorer, frames), [self._signals()])
        return row, frames

    def _view(self, kind: str, view: str) -> np.ndarray:
        """A frame, or the depth, of one view; the world's own camera has no need of its name."""
        named = {} if view == self._own else {"camera": view}
        return self.env.get_wrapper_attr(kind)(image_size=self.scorer.encoder.image_size[0], **named)

    def _signals(self) -> dict[str, float]:
        return self.env.get_wrapper_attr("signals")() if self.env.has_wrapper_attr("signals") else {}


class SparseReward(gymnasium.Wrapper):
    """The task's reward as 1 where it is solved and 0 elsewhere: what shaping is compared with.

    Raises:
        ValueError: (step) the world does not tell success.
    """

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = self.env.step(action)
        if "is_success" not in info:
            raise ValueError(f"SparseReward: {self.env} must tell is_success; it does not. Use its own reward.")
        return obs, float(info["is_success"]), terminated, truncated, info
