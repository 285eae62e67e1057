"""The worlds that a config describes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
from omegaconf import DictConfig, OmegaConf

from embodied.building.goals import parts_of
from embodied.envs.wrappers import SparseReward
from embodied.errors import UserError
from rewards.core import Encoder
from rewards.points import things

SEEN = ("points", "features", "places")  # observations that are made of what the encoder sees


def env_maker(config: DictConfig) -> Any:
    """Makes one world, in any process.

    Raises:
        UserError: a key of `env.kwargs` that is a setting of its own.
    """
    env: Any = OmegaConf.to_container(config.env, resolve=True)
    kwargs, cameras = env.pop("kwargs", None) or {}, reward_cameras(config)
    for name in ("cameras", "policy_cameras", "points", "places"):
        env.pop(name, None)
    distractors = env.pop("distractors", None)
    if env.get("obs") in SEEN:
        env["obs"] = "state"  # nobody reads it: observations are made of what the encoder sees
    if cameras and env.get("camera") is None:
        env["camera"] = cameras[0]
    settings = {key: value for key, value in env.items() if value is not None}
    if twice := next((key for key in kwargs if key in settings), None):
        raise UserError(
            f"env.kwargs must hold what has no setting of its own; got {twice}. Say env.{twice}={kwargs[twice]}."
        )
    maker = partial(_make, **settings, **kwargs)
    if distractors is not None:
        maker = partial(_distracted, maker, distractors)
    return partial(_sparse, maker) if config.get("sparse") else maker


def _make(**env: Any) -> gymnasium.Env:
    from embodied.envs.bridge import make  # MuJoCo, which rewards on pictures do without

    return make(**env)


def _distracted(maker: Callable[[], gymnasium.Env], distractors: Any) -> gymnasium.Env:
    from embodied.envs.distractors import Distracted, Distractors  # MuJoCo likewise

    read = Distractors.read(distractors)
    return maker() if read is None else Distracted(maker(), read)


def _sparse(maker: Callable[[], gymnasium.Env]) -> gymnasium.Env:
    return SparseReward(maker())


def things_of(config: DictConfig, encoder: Encoder) -> list[str]:
    """What `env.obs=points` looks for: `env.points`, or the nouns of the goal, or of the world's own instruction.

    Raises:
        UserError: not a list of texts, or there is no text to take nouns from.
    """
    given = config.env.get("points")
    if given:
        if isinstance(given, str) or not all(isinstance(name, str) and name.strip() for name in given):
            raise UserError(
                f"env.points must be a list of things; got {given}. Try env.points=[the red cube,the tray]."
            )
        return list(given)
    reward = config.get("reward") or {}
    goal = next((str(part.get("goal")) for part in parts_of(reward).values() if part.get("goal")), "")
    if not goal:
        env = env_maker(config)()
        goal = str(getattr(env.unwrapped, "instruction", ""))
        env.close()
    if not goal:
        raise UserError("env.points must name what to look for, as there is no goal in words. Try env.points=[a cup].")
    return things(goal, encoder)


def reward_cameras(config: DictConfig) -> list[str]:
    """The cameras that a config's reward reads, by name; empty: the world's own.

    Raises:
        UserError: not a list of names.
    """
    return _cameras(config, "cameras", "[front,side]")


def policy_cameras(config: DictConfig) -> list[str]:
    """The cameras that a config's policy sees beside the reward's; none where the encoder makes no observation.

    Raises:
        UserError: not a list of names.
    """
    cameras = _cameras(config, "policy_cameras", "[wrist]")
    return cameras if config.env.get("obs") in SEEN else []


def _cameras(config: DictConfig, setting: str, example: str) -> list[str]:
    cameras = config.env.get(setting) or []
    if isinstance(cameras, str) or not all(isinstance(name, str) for name in cameras):
        raise UserError(
            f"env.{setting} must be a list of cameras, or null; got {cameras}. Try env.{setting}={example}."
        )
    return list(cameras)
