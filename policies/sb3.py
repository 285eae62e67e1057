"""stable-baselines3's SAC, TD3, DQN and PPO for many worlds and any observation form; nothing is overridden.

A rollout is `rollout_steps` steps of every world; then come `updates_per_step` updates for each transition collected.
(SB3 counts vector steps in `train_freq`, and by default makes one update for all of them, which starves many worlds.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.vec_env import VecEnv
from torch import nn


def sac(
    venv: VecEnv, *, seed: int, device: str = "auto", ent_coef: str | float = "auto",
    target_entropy: str | float = "auto", **common: Any,
) -> SAC:  # fmt: skip
    """Soft actor-critic, for continuous actions.

    Args:
        venv: the worlds.
        seed: of the networks, the exploration and the worlds.
        device: "auto", "cuda", "mps" or "cpu".
        ent_coef: temperature, or "auto" to learn it ("auto_0.1" starts at 0.1).
        target_entropy: for the learned temperature; "auto" is minus the number of action dimensions.
        common: see `_off_policy`.

    Raises:
        ValueError: discrete actions, or a setting out of range.
    """
    _check_actions("sac", venv, spaces.Box, "policy=dqn or policy=ppo")
    model = SAC(ent_coef=ent_coef, target_entropy=target_entropy, **_off_policy("sac", venv, seed, device, **common))
    model.critic.register_forward_pre_hook(_hold_still_for_the_actor)
    return model


def _hold_still_for_the_actor(critic: nn.Module, inputs: tuple[Any, torch.Tensor]) -> None:
    """No gradients of the critic's weights where its actions come from the actor.

    SB3's actor loss would compute them, and the next critic loss zero them: a twentieth of an update's time, with
    pixels a fifth. What is learned is the same to the bit.
    """
    _, actions = inputs
    critic.requires_grad_(not actions.requires_grad)


def td3(
    venv: VecEnv, *, seed: int, device: str = "auto", exploration: float = 0.1, policy_delay: int = 2, **common: Any
) -> TD3:
    """Twin delayed DDPG, for continuous actions.

    Args:
        venv: the worlds.
        seed: of the networks, the exploration and the worlds.
        device: "auto", "cuda", "mps" or "cpu".
        exploration: standard deviation of the normal noise on actions scaled to [-1, 1].
        policy_delay: critic updates per actor update.
        common: see `_off_policy`.

    Raises:
        ValueError: discrete actions, or a setting out of range.
    """
    _check_actions("td3", venv, spaces.Box, "policy=dqn or policy=ppo")
    shape = venv.action_space.shape or ()
    noise = NormalActionNoise(np.zeros(shape, np.float32), np.full(shape, exploration, np.float32))
    return TD3(
        action_noise=VectorizedActionNoise(noise, venv.num_envs),
        policy_delay=policy_delay,
        **_off_policy("td3", venv, seed, device, **common),
    )


def dqn(
    venv: VecEnv, *, seed: int, device: str = "auto", exploration_fraction: float = 0.2,
    exploration_final_eps: float = 0.05, target_update_interval: int = 1000, **common: Any,
) -> DQN:  # fmt: skip
    """Deep Q-learning, for discrete actions.

    Args:
        venv: the worlds.
        seed: of the networks, the exploration and the worlds.
        device: "auto", "cuda", "mps" or "cpu".
        exploration_fraction: share of training over which random actions go from all to `exploration_final_eps`.
        exploration_final_eps: share of random actions after that.
        target_update_interval: transitions between target updates by `tau` (1 copies).
        common: see `_off_policy`.

    Raises:
        ValueError: continuous actions, or a setting out of range.
    """
    _check_actions("dqn", venv, spaces.Discrete, "policy=sac, policy=td3 or policy=ppo")
    return DQN(
        exploration_fraction=exploration_fraction,
        exploration_final_eps=exploration_final_eps,
        target_update_interval=target_update_interval,
        **_off_policy("dqn", venv, seed, device, **common),
    )


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
) -> dict[str, Any]:
    """Arguments that SAC, TD3 and DQN share.

    Args:
        name: for errors.
        venv: the worlds.
        seed: of everything random.
        device: where the networks live.
        learning_rate: Adam's.
        batch_size: transitions per update.
        gamma: discount.
        tau: step of the target networks.
        buffer_size: transitions kept.
        learning_starts: random transitions before the first update.
        rollout_steps: steps of every world between rounds of updates.
        updates_per_step: updates per transition collected; each round makes at least one.
        n_steps: rewards summed before bootstrapping; dict observations allow only 1.
        network: widths of the hidden layers.
    """
    for key, value in {"rollout_steps": rollout_steps, "n_steps": n_steps, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name}: {key} must be at least 1; got {value}.")
    if not updates_per_step > 0:
        raise ValueError(f"{name}: updates_per_step must be > 0; got {updates_per_step}.")
    if n_steps > 1 and isinstance(venv.observation_space, spaces.Dict):
        raise ValueError(f"{name}: n_steps must be 1 with mixed observations; got {n_steps}.")
    updates = max(1, round(rollout_steps * venv.num_envs * updates_per_step))
    return {
        "policy": policy_name(venv.observation_space),
        "env": venv,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "gamma": gamma,
        "tau": tau,
        "buffer_size": buffer_size,
        "learning_starts": learning_starts,
        "train_freq": rollout_steps,
        "gradient_steps": updates,
        "n_steps": n_steps,
        "policy_kwargs": {"net_arch": list(network)},
        "seed": seed,
        "device": choose_device(device),
    }


def ppo(
    venv: VecEnv,
    *,
    seed: int,
    device: str = "auto",
    learning_rate: float = 3e-4,
    batch_size: int = 64,
    gamma: float = 0.95,
    rollout_steps: int = 128,
    n_epochs: int = 10,
    network: Sequence[int] = (64, 64),
    **rest: Any,
) -> PPO:
    """Proximal policy optimisation, for any actions.

    Args:
        venv: the worlds.
        seed: of the networks, the exploration and the worlds.
        device: "auto", "cuda", "mps" or "cpu".
        learning_rate: Adam's.
        batch_size: transitions per update; divides rollout_steps × worlds.
        gamma: discount.
        rollout_steps: steps of every world between rounds of updates.
        n_epochs: passes over a rollout.
        network: widths of the hidden layers of actor and critic.
        rest: gae_lambda, clip_range, ent_coef, vf_coef, max_grad_norm, target_kl, normalize_advantage: SB3's.

    Raises:
        ValueError: batch_size does not divide the rollout.
    """
    if rollout_steps * venv.num_envs % batch_size:
        raise ValueError(
            f"ppo: batch_size must divide rollout_steps * num_worlds = {rollout_steps} * {venv.num_envs}; "
            f"got {batch_size}."
        )
    return PPO(
        policy_name(venv.observation_space),
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


def policy_name(space: spaces.Space) -> str:
    """SB3's network for an observation form: mixed, pixels or state."""
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    is_image = isinstance(space, spaces.Box) and len(space.shape) == 3
    return "CnnPolicy" if is_image else "MlpPolicy"


def choose_device(device: str) -> str:
    """ "auto" becomes CUDA, else Apple's GPU, else the CPU."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_actions(name: str, venv: VecEnv, kind: type[spaces.Space], instead: str) -> None:
    if not isinstance(venv.action_space, kind):
        raise ValueError(f"{name}: actions must be {kind.__name__}; got {venv.action_space}. Use {instead}.")
