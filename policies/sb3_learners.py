"""How stable-baselines3's algorithms act, observe and update as learners of the loop; it alone knows their insides.

Shape letters: T steps, E worlds, B batch, A action.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import Tensor

from policies.core import Batch, Memory, Obs, Pace, Rollout, Sampling, map_leaves
from policies.mixing import n_step
from policies.saving import pack, unpack

COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "exploration_rate", "_current_progress_remaining")


class _Adapter:
    """What both kinds of SB3's algorithms share.

    Attributes:
        model: SB3's algorithm, as it is.
    """

    pace: Pace

    def __init__(self, model: BaseAlgorithm, total_steps: int) -> None:
        self.model = model
        model._total_timesteps = total_steps  # schedules go by it
        model.set_logger(Logger(None, []))

    def begin(self, count: int) -> Memory:
        return {}

    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        action, _ = self.model.predict(obs, deterministic=not explore)
        return self._scaled(action), memory

    def _scaled(self, action: np.ndarray) -> np.ndarray:
        """SB3's actions, in the worlds' units, in [-1, 1]; choices and bits as they are."""
        space = self.model.action_space
        if not isinstance(space, spaces.Box):
            return np.asarray(action, np.int64).reshape(len(action), *(space.shape or ()))
        return (2 * (action - space.low) / (space.high - space.low) - 1).astype(np.float32)

    def _count(self, rollout: Rollout) -> None:
        model = self.model
        model.num_timesteps += rollout.first.size
        model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)

    def _metrics(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.model.logger.name_to_value.items()}

    @property
    def _parts(self) -> dict[str, Any]:
        """Networks, optimisers and temperature by name."""
        names, variables = self.model._get_torch_save_params()
        return {name: _attribute(self.model, name) for name in (*names, *variables)}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        model = self.model
        counters = {name: getattr(model, name) for name in COUNTERS if hasattr(model, name)}
        actions = model.action_space.np_random.bit_generator.state
        return pack(self._parts), {"algorithm": type(model).__name__, "counters": counters, "actions": actions}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        model = self.model
        if values.get("algorithm") != type(model).__name__:
            raise ValueError(
                f"{type(model).__name__}.load_state: the state must be its own; got {values.get('algorithm')}'s."
            )
        unpack(type(model).__name__, self._parts, tensors)
        for name, value in values["counters"].items():
            setattr(model, name, value)
        model.action_space.np_random.bit_generator.state = values["actions"]


class OffPolicy(_Adapter):
    """SAC, TD3 or DQN, whose batches come from the loop's replay.

    Args:
        model: stable-baselines3's.
        pace: how collecting and updating take turns.
        sampling: of batches.
        n_steps: rewards summed before bootstrapping.
        total_steps: of the run.
    """

    def __init__(
        self, model: OffPolicyAlgorithm, pace: Pace, sampling: Sampling, n_steps: int, total_steps: int
    ) -> None:
        super().__init__(model, total_steps)
        self.pace, self.sampling = pace, sampling
        self._batches = _Batches(model, n_steps)
        model.replay_buffer = self._batches  # pyright: ignore[reportAttributeAccessIssue]

    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        model, count = self.model, len(first)
        if not explore:
            return super().act(obs, memory, first, explore=False)
        if model.num_timesteps < self.pace.learning_starts:
            return self._scaled(np.array([model.action_space.sample() for _ in range(count)])), memory
        action, memory = super().act(obs, memory, first, explore=True)
        if model.action_noise is not None:
            action = np.clip(action + model.action_noise(), -1, 1).astype(np.float32)
        return action, memory

    def observe(self, rollout: Rollout, reward: np.ndarray) -> None:
        self._count(rollout)
        for _ in range(len(reward) if isinstance(self.model, DQN) else 0):
            self.model._on_step()  # pyright: ignore[reportAttributeAccessIssue]  # its target network and its share of random actions

    def update(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        self._batches.source = batches
        self.model.train(count, batch_size=self.sampling.batch_size)  # pyright: ignore[reportAttributeAccessIssue]
        return self._metrics()


class _Batches:
    """In the place of SB3's replay: gives the loop's batches in SB3's form."""

    def __init__(self, model: OffPolicyAlgorithm, n_steps: int) -> None:
        self._model, self._n_steps = model, n_steps
        self.source: Iterator[Batch] = iter(())
        self._transposed = isinstance(model.env, VecTransposeImage)

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        batch = next(self.source).to(self._model.device)
        steps = n_step(batch, self._model.gamma, self._n_steps)
        action = batch.action[0]
        return ReplayBufferSamples(
            observations=self._images(map_leaves(lambda leaf: leaf[0], batch.obs)),
            actions=action[:, None] if action.ndim == 1 else action,
            next_observations=self._images(steps.next_obs),
            dones=(steps.discount == 0).float()[:, None],
            rewards=steps.reward[:, None],
            discounts=steps.discount[:, None],
        )

    def _images(self, obs: Any) -> Any:
        """Images channels first, as SB3's networks want them."""
        if not self._transposed:
            return obs
        return map_leaves(lambda leaf: leaf.movedim(-1, 1) if leaf.ndim == 4 else leaf, obs)


class OnPolicy(_Adapter):
    """PPO, which learns from the newest rollout alone.

    Args:
        model: stable-baselines3's.
        pace: how collecting and updating take turns.
        total_steps: of the run.
    """

    sampling = None

    def __init__(self, model: PPO, pace: Pace, total_steps: int) -> None:
        super().__init__(model, total_steps)
        self.pace = pace
        self._acted: list[tuple[Any, ...]] = []  # of the running rollout: raw actions, values, log probabilities

    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        if not explore:
            return super().act(obs, memory, first, explore=False)
        model = self.model
        model.policy.set_training_mode(False)
        with torch.no_grad():
            tensor, _ = model.policy.obs_to_tensor(obs)
            raw, values, log_probs = model.policy(tensor)
        raw = raw.cpu().numpy()
        self._acted.append((raw, values, log_probs))
        space = model.action_space
        clipped = np.clip(raw, space.low, space.high) if isinstance(space, spaces.Box) else raw
        return self._scaled(clipped), memory

    def observe(self, rollout: Rollout, reward: np.ndarray) -> None:
        self._count(rollout)
        model: Any = self.model
        buffer, policy = model.rollout_buffer, model.policy
        buffer.reset()
        next_values = np.zeros(reward.shape[1], np.float32)
        for t, (raw, values, log_probs) in enumerate(self._acted):
            rewards, cut = reward[t].astype(np.float32), rollout.truncated[t]
            next_values = self._values(map_leaves(lambda leaf, t=t: leaf[t], rollout.next_obs))
            rewards[cut] += model.gamma * next_values[cut]  # a time limit is no end
            obs = map_leaves(lambda leaf, t=t: leaf[t], rollout.obs)
            actions = raw.reshape(-1, 1) if isinstance(model.action_space, spaces.Discrete) else raw
            seen = map_leaves(lambda leaf: leaf.cpu().numpy(), policy.obs_to_tensor(obs)[0])
            buffer.add(seen, actions, rewards, rollout.first[t], values, log_probs)
        self._acted.clear()
        last = torch.from_numpy(next_values)
        buffer.compute_returns_and_advantage(last_values=last, dones=rollout.ended[-1])

    def _values(self, obs: Obs) -> np.ndarray:
        policy: Any = self.model.policy
        with torch.no_grad():
            return policy.predict_values(policy.obs_to_tensor(obs)[0]).flatten().cpu().numpy()

    def update(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        self.model.train()  # pyright: ignore[reportAttributeAccessIssue]
        return self._metrics()


def _attribute(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name)
    return model
