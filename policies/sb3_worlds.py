"""stable-baselines3's own loop in a vector of worlds: for scripts that call `learn` on an SB3 algorithm.

    model = ppo(worlds, seed=0)  # worlds as `embodied.envs.vector` has them
    model.learn(10_000)          # on the worlds' own reward

Shape letters: E worlds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv


class SB3Worlds(VecEnv):
    """Worlds that tell terminated from truncated, as SB3 wants them: one `dones`, the difference in `infos`.

    Args:
        worlds: E of them, that reset themselves; `last_obs()` holds the last observations of ended episodes.
    """

    def __init__(self, worlds: Any) -> None:
        self._worlds, self._actions = worlds, np.zeros(0)
        self.render_mode = "rgb_array"
        super().__init__(worlds.num_envs, worlds.observation_space, worlds.action_space)

    def reset(self) -> Any:
        return self._worlds.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        obs, rewards, terminated, truncated, infos = self._worlds.step(self._actions)
        if any(info.get("is_intervention") for info in infos):
            raise ValueError(
                "SB3Worlds: a person acted (info['is_intervention']), and SB3's own loop stores what its policy said. "
                "Train by embodied.training, whose replay stores what was executed."
            )
        ended, last = terminated | truncated, self._worlds.last_obs()
        for e in np.flatnonzero(ended):
            infos[e]["TimeLimit.truncated"] = bool(truncated[e])
            infos[e]["terminal_observation"] = (
                {name: leaf[e] for name, leaf in last.items()} if isinstance(last, dict) else last[e]
            )
        return obs, rewards, ended, infos

    def close(self) -> None:
        self._worlds.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "render_mode":  # SB3 asks every vector for it; a world need not have one
            return [self.render_mode for _ in self._get_indices(indices)]
        values = self._worlds.get_attr(attr_name)
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(f"SB3Worlds.set_attr: worlds are not changed from outside; got {attr_name}.")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        values = self._worlds.env_method(method_name, *method_args, **method_kwargs)
        return [values[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        return self._worlds.env_method("render")


def takes_worlds(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Let a factory of learners take a vector of worlds too, and then give SB3's algorithm in them, as it is."""

    @functools.wraps(factory)
    def made(*args: Any, **settings: Any) -> Any:
        if len(args) != 1 or not hasattr(args[0], "step"):
            return factory(*args, **settings)
        worlds = args[0]
        spaces = (worlds.observation_space, worlds.action_space)
        learner = factory(*spaces, num_worlds=worlds.num_envs, total_steps=1, **settings)
        return alone(learner, SB3Worlds(worlds))

    return made


def alone(learner: Any, worlds: SB3Worlds) -> BaseAlgorithm:
    """An adapter's algorithm with worlds and a replay of its own, for SB3's `learn`.

    Args:
        learner: `OffPolicy` or `OnPolicy`.
        worlds: as SB3 knows them.

    Raises:
        ValueError: more than one reward is summed before bootstrapping.
    """
    model: Any = learner.model
    model.set_env(worlds)
    if isinstance(model, OffPolicyAlgorithm):
        if learner.sampling.length > 1:
            raise ValueError("n_steps must be 1 in SB3's own loop; train by embodied.training for more.")
        kind: Any = DictReplayBuffer if isinstance(model.observation_space.sample(), dict) else ReplayBuffer
        spaces = (model.observation_space, model.action_space)
        model.replay_buffer = kind(learner.sampling.capacity, *spaces, device=model.device, n_envs=model.n_envs)
        model.train_freq = TrainFreq(learner.pace.rollout_steps, TrainFrequencyUnit.STEP)
        transitions = learner.pace.rollout_steps * model.n_envs
        model.gradient_steps = max(1, round(transitions * learner.pace.updates_per_step))
    return model
