"""stable-baselines3's SAC, TD3, DQN and PPO as learners of the loop; nothing of theirs is overridden.

A rollout is `rollout_steps` steps of every world; then come `updates_per_step` updates for each transition collected.
(SB3 counts vector steps in `train_freq`, and by default makes one update for all of them, which starves many worlds.)
Given a vector of worlds alone (`sac(worlds, seed=0)`), each factory returns SB3's algorithm itself, for its `learn`.
Their algorithms draw from the global generators of NumPy and torch; the loop saves those.

Shape letters: T steps, E worlds, B batch, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn

from policies.core import Pace, Sampling
from policies.networks import choose_device
from policies.sb3_learners import OffPolicy, OnPolicy
from policies.sb3_worlds import takes_worlds


@takes_worlds
def sac(
    observation_space: spaces.Space, action_space: spaces.Space, *, num_worlds: int, total_steps: int, seed: int,
    device: str = "auto", ent_coef: str | float = "auto", target_entropy: str | float = "auto", **common: Any,
) -> OffPolicy:  # fmt: skip
    """Soft actor-critic, for continuous actions.

    Args:
        observation_space, action_space: of one world.
        num_worlds: E.
        total_steps: transitions of the whole run.
        seed: of the networks and the exploration.
        device: "auto", "cuda", "mps" or "cpu".
        ent_coef: temperature, or "auto" to learn it ("auto_0.1" starts at 0.1).
        target_entropy: for the learned temperature; "auto" is minus the number of action dimensions.
        common: see `_off_policy`.

    Raises:
        ValueError: discrete actions, or a setting out of range.
    """
    venv = _stage("sac", observation_space, action_space, num_worlds, spaces.Box)
    pace, sampling, n_steps, settings = _off_policy("sac", venv, seed, device, **common)
    model = SAC(ent_coef=ent_coef, target_entropy=target_entropy, **settings)
    model.critic.register_forward_pre_hook(_hold_still_for_the_actor)
    return OffPolicy(model, pace, sampling, n_steps, total_steps)


def _hold_still_for_the_actor(critic: nn.Module, inputs: tuple[Any, torch.Tensor]) -> None:
    """No gradients of the critic's weights where its actions come from the actor.

    SB3's actor loss would compute them, and the next critic loss zero them: a twentieth of an update's time, with
    pixels a fifth. What is learned is the same to the bit.
    """
    _, actions = inputs
    critic.requires_grad_(not actions.requires_grad)


@takes_worlds
def td3(
    observation_space: spaces.Space, action_space: spaces.Space, *, num_worlds: int, total_steps: int, seed: int,
    device: str = "auto", exploration: float = 0.1, policy_delay: int = 2, **common: Any,
) -> OffPolicy:  # fmt: skip
    """Twin delayed DDPG, for continuous actions.

    Args:
        observation_space, action_space, num_worlds, total_steps, seed, device: see `sac`.
        exploration: standard deviation of the normal noise on actions scaled to [-1, 1].
        policy_delay: critic updates per actor update.
        common: see `_off_policy`.

    Raises:
        ValueError: discrete actions, or a setting out of range.
    """
    _check_counts("td3", policy_delay=policy_delay)
    venv = _stage("td3", observation_space, action_space, num_worlds, spaces.Box)
    pace, sampling, n_steps, settings = _off_policy("td3", venv, seed, device, **common)
    shape = action_space.shape or ()
    noise = NormalActionNoise(np.zeros(shape, np.float32), np.full(shape, exploration, np.float32))
    model = TD3(action_noise=VectorizedActionNoise(noise, num_worlds), policy_delay=policy_delay, **settings)
    return OffPolicy(model, pace, sampling, n_steps, total_steps)


@takes_worlds
def dqn(
    observation_space: spaces.Space, action_space: spaces.Space, *, num_worlds: int, total_steps: int, seed: int,
    device: str = "auto", exploration_fraction: float = 0.2, exploration_final_eps: float = 0.05,
    target_update_interval: int = 1000, **common: Any,
) -> OffPolicy:  # fmt: skip
    """Deep Q-learning, for discrete actions.

    Args:
        observation_space, action_space, num_worlds, total_steps, seed, device: see `sac`.
        exploration_fraction: share of training over which random actions go from all to `exploration_final_eps`.
        exploration_final_eps: share of random actions after that.
        target_update_interval: transitions between target updates by `tau` (1 copies).
        common: see `_off_policy`.

    Raises:
        ValueError: continuous actions, or a setting out of range.
    """
    _check_counts("dqn", target_update_interval=target_update_interval)
    venv = _stage("dqn", observation_space, action_space, num_worlds, spaces.Discrete)
    pace, sampling, n_steps, settings = _off_policy("dqn", venv, seed, device, **common)
    model = DQN(
        exploration_fraction=exploration_fraction,
        exploration_final_eps=exploration_final_eps,
        target_update_interval=target_update_interval,
        **settings,
    )
    return OffPolicy(model, pace, sampling, n_steps, total_steps)


def _off_policy(
    name: str,
    venv: VecEnv,
    seed: int,
    device: str,
    *,
    learning_rate: float = 3e-4,
    batch_size: int = 256,
    gamma: float = 0.95,
    tau: float = 0.005,
    buffer_size: int = 1_000_000,
    learning_starts: int = 500,
    rollout_steps: int = 4,
    updates_per_step: float = 1.0,
    n_steps: int = 1,
    network: Sequence[int] = (256, 256),
) -> tuple[Pace, Sampling, int, dict[str, Any]]:
    """What SAC, TD3 and DQN share: when they update, on what, rewards summed, and SB3's arguments.

    Args:
        name: for errors.
        venv: the worlds' spaces.
        seed: of everything random.
        device: where the networks live.
        learning_rate: Adam's.
        batch_size: transitions per update.
        gamma: discount.
        tau: step of the target networks.
        buffer_size: transitions kept.
        learning_starts: random transitions before the first update.
        rollout_steps: steps of every world between rounds of updates.
        updates_per_step: updates per transition collected, over all rounds together.
        n_steps: rewards summed before bootstrapping.
        network: widths of the hidden layers.
    """
    _check_counts(name, rollout_steps=rollout_steps, n_steps=n_steps, batch_size=batch_size)
    _check_counts(name, network=min(network, default=1))
    if not updates_per_step > 0:
        raise ValueError(f"{name}: updates_per_step must be > 0; got {updates_per_step}.")
    pace = Pace(rollout_steps=rollout_steps, updates_per_step=updates_per_step, learning_starts=learning_starts)
    sampling = Sampling(length=n_steps, batch_size=batch_size, capacity=buffer_size, gamma=gamma)
    return pace, sampling, n_steps, {
        "policy": policy_name(venv.observation_space),
        "env": venv,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "gamma": gamma,
        "tau": tau,
        "buffer_size": venv.num_envs,  # SB3's own stays empty: batches come from the loop's replay
        "learning_starts": learning_starts,
        "policy_kwargs": {"net_arch": list(network)},
        "seed": seed,
        "device": choose_device(device),
    }  # fmt: skip


@takes_worlds
def ppo(
    observation_space: spaces.Space, action_space: spaces.Space, *, num_worlds: int, total_steps: int, seed: int,
    device: str = "auto", learning_rate: float = 3e-4, batch_size: int = 64, gamma: float = 0.95,
    rollout_steps: int = 128, n_epochs: int = 10, network: Sequence[int] = (64, 64), **rest: Any,
) -> OnPolicy:  # fmt: skip
    """Proximal policy optimisation, for any actions.

    Args:
        observation_space, action_space, num_worlds, total_steps, seed, device: see `sac`.
        learning_rate: Adam's.
        batch_size: transitions per update; divides rollout_steps × worlds.
        gamma: discount.
        rollout_steps: steps of every world between rounds of updates.
        n_epochs: passes over a rollout.
        network: widths of the hidden layers of actor and critic.
        rest: gae_lambda, clip_range, ent_coef, vf_coef, max_grad_norm, target_kl, normalize_advantage: SB3's.

    Raises:
        ValueError: a setting out of range, or a batch_size that does not divide the rollout.
    """
    _check_counts("ppo", rollout_steps=rollout_steps, n_epochs=n_epochs, network=min(network, default=1))
    _check_counts("ppo", least=2 if rest.get("normalize_advantage", True) else 1, batch_size=batch_size)
    venv = _stage("ppo", observation_space, action_space, num_worlds, spaces.Space)
    if rollout_steps * num_worlds % batch_size:
        raise ValueError(
            f"ppo: batch_size must divide rollout_steps * num_worlds = {rollout_steps} * {num_worlds}; "
            f"got {batch_size}."
        )
    model = PPO(
        policy_name(observation_space),
        venv,
        learning_rate=learning_rate,
        batch_size=batch_size,
        gamma=gamma,
        n_steps=rollout_steps,
        n_epochs=n_epochs,
        policy_kwargs={"net_arch": list(network)},
        seed=seed,
        device=choose_device(device),
        **rest,
    )
    return OnPolicy(model, Pace(rollout_steps=rollout_steps, learning_starts=0), total_steps)


class _Shape(gymnasium.Env):
    """What SB3 must know of worlds that it never steps itself."""

    def __init__(self, observations: spaces.Space, actions: spaces.Space) -> None:
        self.observation_space, self.action_space = observations, actions


def _stage(
    name: str, observations: spaces.Space, actions: spaces.Space, num_worlds: int, kind: type[spaces.Space]
) -> VecEnv:  # fmt: skip
    if not isinstance(actions, kind):
        fitting = "rlpd or " if isinstance(actions, spaces.Box) else "dqn or " * isinstance(actions, spaces.Discrete)
        raise ValueError(f"{name}: actions must be {kind.__name__}; got {actions}. Use policy={fitting}ppo.")
    return DummyVecEnv([lambda: _Shape(observations, actions)] * num_worlds)


def _check_counts(name: str, *, least: int = 1, **counts: int) -> None:
    for key, value in counts.items():
        if value < least:
            raise ValueError(f"{name}: {key} must be at least {least}; got {value}.")


def policy_name(space: spaces.Space) -> str:
    """SB3's network for an observation form: mixed, pixels or state.

    Args:
        space: of observations.
    """
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    is_image = isinstance(space, spaces.Box) and len(space.shape) == 3
    return "CnnPolicy" if is_image else "MlpPolicy"
