"""Rewards as ordinary Gymnasium wrappers: a model's, one frame and one number a step; and success as a sparse one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from embodied import scoring
from embodied.envs.pictures import RENDER, renders
from embodied.envs.spaces import number, told_success, world_name
from embodied.envs.worker import frames_of, view_names
from embodied.errors import UserError
from embodied.scoring import Layout, Track
from rewards.core import Scorer


class ScoredEnv(gymnasium.Wrapper):
    """Replaces a world's reward by a scorer's, for learners that are not SB3's.

    `info` gets `env_reward` (the world's own) and `reward/<head>` (each head's potential after the step). Scores the
    same numbers as `Labeller`, one encoder call a step; batch over many worlds with `Labeller` where you can.

    Args:
        env: any that renders: its `frame(image_size=…)`, as everything from `embodied.envs.bridge.make` has, else its
            `render()`, squeezed to the encoder's size.
        scorer: frames to rewards.
        cameras: the views to score, by name; none: the world's own camera.

    Raises:
        UserError: a world without pictures.
        WorldError: a camera that the world lacks, or one twice.
        ValueError: a reward that reads later frames.
    """

    def __init__(self, env: gymnasium.Env, scorer: Scorer, cameras: Sequence[str] = ()) -> None:
        if not renders(env):
            raise UserError(f"ScoredEnv: {world_name(env)} must have pictures to score; it renders none. {RENDER}")
        scorer.check_causal("ScoredEnv")
        super().__init__(env)
        self.scorer = scorer
        self._layout = Layout(view_names(env, cameras))
        self._track = Track()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """An episode begins; its first frame is scored with the first step's."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._layout = Layout(self._layout.views, tuple(sorted(self._signals())))
        row, frames = self._look()
        self._track = Track([row])
        if self.scorer.frames_read != "none":
            self._track.frames = [frames]
            if self.env.has_wrapper_attr("depth"):
                size = int(self.scorer.encoder.image_size[0])
                self._track.depth = frames_of(self.env, self._layout.views, size, kind="depth")
        return obs, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """One step; the reward is the scorer's, and `info` has what the class tells."""
        obs, env_reward, terminated, truncated, info = self.env.step(action)
        row, frames = self._look()
        self._track.add(row, bool(terminated), frames if self.scorer.frames_read == "all" else None)
        (labels,) = scoring.label(self.scorer, [self._track], self._layout)
        potentials = {f"reward/{name}": float(values[-1]) for name, values in labels.potentials.items()}
        env_reward = number(env_reward, f"{world_name(self.env)}: a reward")
        info = info | potentials | {"env_reward": env_reward}
        return obs, float(labels.rewards[-1]), terminated, truncated, info

    def _look(self) -> tuple[np.ndarray, np.ndarray]:
        """This moment's row, and its frames (V, H, W, 3)."""
        frames = frames_of(self.env, self._layout.views, int(self.scorer.encoder.image_size[0]))
        (row,) = self._layout.rows(scoring.encode(self.scorer, frames), [self._signals()])
        return row, frames

    def _signals(self) -> dict[str, float]:
        return self.env.get_wrapper_attr("signals")() if self.env.has_wrapper_attr("signals") else {}


class SparseReward(gymnasium.Wrapper):
    """The task's reward as 1 where it is solved and 0 elsewhere: what shaping is compared with.

    Args:
        env: tells `is_success` at every step. A step is made in it at once, to see that it does.

    Raises:
        UserError: the world does not tell success, now or at a later step.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        env.reset(seed=0)
        self.step(copy.deepcopy(env.action_space).sample())

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """One step; 1.0 where the task is solved after it. UserError where the world does not say."""
        obs, _, terminated, truncated, info = self.env.step(action)
        success = told_success(info)
        if success is None:
            raise UserError(
                f"SparseReward: {world_name(self.env)} must tell is_success at every step; it does not. "
                "Leave sparse=true out, for the world's own reward."
            )
        return obs, float(success), terminated, truncated, info
