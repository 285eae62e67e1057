"""Worlds that a GPU steps together, and their reward from `rewards.vector.VectorScorer`: a few lines a library.

None of the libraries is imported: what is read are the shapes that they document.

    vector = VectorScorer(scorer, worlds=env.num_envs)
    obs, _, terminated, truncated, infos = env.step(actions)
    reward = maniskill_reward(vector, obs, terminated, truncated, infos, cameras=["base_camera"])

E worlds; frames are (E, H, W, 3) uint8 on the worlds' device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rewards.vector import VectorScorer


def maniskill_reward(
    vector: VectorScorer,
    obs: Mapping[str, Any],
    terminated: Bool[Tensor, " E"],
    truncated: Bool[Tensor, " E"],
    infos: Mapping[str, Any],
    *,
    cameras: Sequence[str],
) -> Float[Tensor, " E"]:
    """The reward of a step of ManiSkill's `ManiSkillVectorEnv`, `obs_mode="rgb"`.

    Args:
        vector: made with the wrapper's own `auto_reset`.
        obs, terminated, truncated, infos: what `step` gave. `infos` holds `final_observation` where a world was reset.
        cameras: names in `obs["sensor_data"]`, the first being the main view.
    """
    final = infos.get("final_observation")
    return vector.step(
        maniskill_frames(obs, cameras),
        terminated | truncated,
        terminated=terminated,
        final=None if final is None or not vector.autoreset else maniskill_frames(final, cameras),
    )


def maniskill_frames(obs: Mapping[str, Any], cameras: Sequence[str]) -> dict[str, Tensor]:
    """`obs["sensor_data"][camera]["rgb"]` of each camera.

    Args:
        cameras: names of those to read.
    """
    return {name: obs["sensor_data"][name]["rgb"] for name in cameras}


def mjlab_reward(
    vector: VectorScorer,
    env: Any,
    terminated: Bool[Tensor, " E"],
    time_outs: Bool[Tensor, " E"],
    *,
    cameras: Sequence[str],
) -> Float[Tensor, " E"]:
    """The reward of a step of mjlab's `ManagerBasedRlEnv` whose scene has RGB camera sensors.

    With its `auto_reset=True` the last frame of an episode is gone when `step` returns: its potential is taken to
    stay. With False, and `VectorScorer(autoreset=False)`, it is scored; after `env.reset(env_ids=…)` call
    `vector.reset(mjlab_frames(env, cameras), vector.unknown)`.

    Args:
        vector: made with the `auto_reset` of `env.cfg`.
        env: after `step`.
        terminated, time_outs: the third and the fourth of what `step` gave.
        cameras: names of sensors, the first being the main view.
    """
    return vector.step(mjlab_frames(env, cameras), terminated | time_outs, terminated=terminated)


def mjlab_frames(env: Any, cameras: Sequence[str]) -> dict[str, Tensor]:
    """`env.scene[camera].data.rgb` of each camera.

    Args:
        cameras: names of those to read.
    """
    return {name: env.scene[name].data.rgb for name in cameras}


def torchrl_reward(vector: VectorScorer, step: Any, *, pixels: Sequence[str] = ("pixels",)) -> Any:
    """A TorchRL step with its reward replaced: `("next", "reward")`, (E, 1), in place.

    TorchRL's `next` holds an episode's last frame, and the next root its successor's first: make the `VectorScorer`
    with `autoreset=False`, and after a reset call `vector.reset(step["pixels"], vector.unknown)`, or the first action
    of an episode is paid nothing.

    Args:
        vector: of as many worlds as the step's batch.
        step: a TensorDict of batch size (E,) that `env.step` gave.
        pixels: entries of `next` with frames, the first being the main view.
    """
    after = step["next"]
    frames = {name: after[name] for name in pixels}
    done, terminated = (after[name].reshape(-1) for name in ("done", "terminated"))
    after["reward"] = vector.step(frames, done, terminated=terminated)[:, None].to(torch.float32)
    return step
