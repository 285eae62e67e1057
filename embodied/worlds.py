"""The worlds that a config describes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
from omegaconf import DictConfig, OmegaConf

from embodied.envs.bridge import make
from embodied.envs.vector import WorldVecEnv
from embodied.envs.wrappers import SparseReward
from embodied.errors import UserError
from rewards.core import Scorer


def env_maker(config: DictConfig) -> Any:
    """Makes one world, in any process."""
    env: Any = OmegaConf.to_container(config.env, resolve=True)
    kwargs, cameras = env.pop("kwargs", None) or {}, reward_cameras(config)
    env.pop("cameras", None)
    if cameras and env.get("camera") is None:
        env["camera"] = cameras[0]
    maker = partial(make, **{key: value for key, value in env.items() if value is not None}, **kwargs)
    return partial(_sparse, maker) if config.get("sparse") else maker


def _sparse(maker: Callable[[], gymnasium.Env]) -> gymnasium.Env:
    return SparseReward(maker())


def make_venv(config: DictConfig, scorer: Scorer | None, *, num_worlds: int, workers: int, seed: int) -> WorldVecEnv:
    """The worlds; they render what the scorer reads, or nothing on the task's own reward."""
    return WorldVecEnv(
        env_maker(config),
        num_worlds,
        workers=workers,
        seed=seed,
        frame_size=None if scorer is None else int(scorer.encoder.image_size[0]),
        cameras=reward_cameras(config),
        env_weight=float(config.get("env_weight", 0.0)),
        depth=scorer is not None and scorer.frames_read != "none",
    )


def reward_cameras(config: DictConfig) -> list[str]:
    """The cameras that a config's reward reads, by name; empty: the world's own.

    Raises:
        UserError: not a list of names.
    """
    cameras = config.env.get("cameras") or []
    if isinstance(cameras, str) or not all(isinstance(name, str) for name in cameras):
        raise UserError(f"env.cameras must be a list of cameras, or null; got {cameras}. Try env.cameras=[front,side].")
    return list(cameras)
