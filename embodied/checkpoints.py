"""Checkpoints of training that continue the same curve.

    checkpoints/<steps>/learner.zip  state.safetensors  state.json

One holds the learner (SB3's zip), the replay with its features, every random generator, and the state of every world.
It is written beside its place and moved there when it is whole. Nothing in it is unpickled: tensors come from
safetensors and from the zip's `weights_only` files, everything else from JSON.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.save_util import load_from_zip_file

from embodied.build import build
from embodied.envs.vector import WorldVecEnv
from embodied.errors import UserError
from embodied.feature_memory import FeatureMemory
from embodied.files import latest_checkpoint, write_checkpoint
from embodied.labeller import Labeller, restore_constraints
from embodied.literal import load_literal, resolved
from embodied.runs import find
from embodied.trust import check_trusted
from embodied.worlds import make_venv
from rewards.core import Scorer

COUNTERS = (
    "num_timesteps",
    "_episode_num",
    "_n_updates",
    "_n_calls",
    "exploration_rate",
    "_current_progress_remaining",
)


def save_checkpoint(folder: Path, model: BaseAlgorithm, labeller: Labeller | None) -> Path:
    """Write everything the run needs to go on, between rollouts.

    Args:
        folder: the run folder.
        model: SB3's algorithm.
        labeller: its labeller; None on the true reward.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: the disk is full; the former checkpoint is whole.
    """

    def write(part: Path) -> None:
        with (part / "learner.zip").open("wb") as file:  # SB3 leaves its own open when the disk is full
            model.save(file)
        tensors, values = _collect(model, labeller)
        save_file(tensors, part / "state.safetensors")
        (part / "state.json").write_text(json.dumps(values), "utf-8")

    return write_checkpoint(folder, model.num_timesteps, write)


def load_parameters(checkpoint: Path, model: BaseAlgorithm) -> None:
    """Networks, optimisers and temperature into a learner built from the run's config."""
    file = checkpoint / "learner.zip"
    model.set_parameters(str(file), device=model.device)
    _, _, variables = load_from_zip_file(str(file), load_data=False, device=model.device)
    for name, value in (variables or {}).items():
        if value is not None:  # SAC: log_ent_coef where the temperature is learned
            getattr(model, name).data.copy_(value.data)


def load_policy(folder: Path, *, trust: Iterable[str] | None = None) -> BaseAlgorithm:
    """The newest policy of a run, to act with; its worlds are closed.

    Args:
        folder: of the run.
        trust: what its config may reach out to; see `embodied.trust`.

    Raises:
        UserError: no such run, or one that stopped before its first checkpoint.
    """
    checkpoint = latest_checkpoint(find(str(folder), folder.parent))
    if checkpoint is None:
        raise UserError(f"run must hold a checkpoint; {folder} stopped before its first.")
    config = load_literal(folder / "config.yaml")
    check_trusted(folder, {"env": resolved(config)["env"]}, trust)  # all that is built of it here
    if "buffer_size" in config.policy:
        config.policy.buffer_size = 1  # nothing is learned here
    venv = make_venv(config, None, num_worlds=config.num_worlds, workers=0, seed=0)  # PPO checks their number
    try:
        model: BaseAlgorithm = build(config.policy, venv=venv, seed=0, device="cpu")
    finally:
        venv.close()
    load_parameters(checkpoint, model)
    return model


def load_constraints(checkpoint: Path, scorer: Scorer | None) -> None:
    """Multipliers that a run's constrained reward had learned, into a scorer built from the run's config."""
    values = json.loads((checkpoint / "state.json").read_text("utf-8"))
    if scorer is not None and "labeller" in values:
        restore_constraints(scorer, values["labeller"])


def load_checkpoint(checkpoint: Path, model: BaseAlgorithm, labeller: Labeller | None) -> bool:
    """Bring a fresh learner, its labeller and its worlds to where `save_checkpoint` was called.

    Returns:
        Whether the worlds could go on in the middle of their episodes; else they start new ones.
    """
    load_parameters(checkpoint, model)
    tensors = load_file(checkpoint / "state.safetensors")
    values = json.loads((checkpoint / "state.json").read_text("utf-8"))
    for name, value in values["counters"].items():
        setattr(model, name, value)
    model.ep_info_buffer = deque(values["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(values["successes"], maxlen=model._stats_window_size)
    log = model.logger
    for name, (kind, value) in values["logged"].items():
        log.name_to_value[name] = np.dtype(kind).type(value)  # a float32 is written with fewer digits
    log.name_to_count.update(values["counted"])
    log.name_to_excluded.update({name: tuple(formats) for name, formats in values["excluded"].items()})
    replay = getattr(model, "replay_buffer", None)
    if replay is not None:
        _load_replay(replay, tensors, values["replay"])
    venv = _worlds(model)
    venv.seed(model.seed)
    venv.reset()
    exact = values["worlds"] is not None
    if exact:
        venv.set_states([state | {"world": _below(tensors, f"world/{i}")} for i, state in enumerate(values["worlds"])])
        model._last_obs = _below(tensors, "last_obs")
        if set(model._last_obs) == {""}:
            model._last_obs = model._last_obs[""]
        model._last_episode_starts = tensors["last_episode_starts"].astype(bool)
    if labeller is not None:
        if "memory/rows" in tensors:
            assert replay is not None
            labeller.memory = FeatureMemory.restored(_below(tensors, "memory"), replay.buffer_size)
        labeller.set_state(_below(tensors, "labeller"), values["labeller"], episodes=exact)
    torch.set_rng_state(torch.from_numpy(tensors["random/torch"]))
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(tensors["random/cuda"]))
    kind, _, position, has_gauss, gauss = values["random"]["numpy"]
    np.random.set_state((kind, tensors["random/numpy"], position, has_gauss, gauss))
    version, internal, gauss = values["random"]["python"]
    random.setstate((version, tuple(internal), gauss))
    model.action_space.np_random.bit_generator.state = values["random"]["actions"]
    return exact


def _collect(model: BaseAlgorithm, labeller: Labeller | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and JSON values of a checkpoint."""
    venv = _worlds(model)
    tensors: dict[str, np.ndarray] = {}
    worlds = venv.get_states()
    saved = [state.pop("world") for state in worlds]
    for i, arrays in enumerate(saved):
        tensors |= {f"world/{i}/{name}": array for name, array in (arrays or {}).items()}
    obs = model._last_obs
    tensors |= {f"last_obs/{k}": v for k, v in obs.items()} if isinstance(obs, dict) else {"last_obs/": obs}  # pyright: ignore
    tensors["last_episode_starts"] = np.asarray(model._last_episode_starts)
    tensors["random/torch"] = torch.get_rng_state().numpy()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state().numpy()
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    tensors["random/numpy"] = np.asarray(keys)
    values: dict[str, Any] = {
        "counters": {name: getattr(model, name) for name in COUNTERS if hasattr(model, name)},
        "episodes": [{key: float(value) for key, value in each.items()} for each in model.ep_info_buffer or ()],
        "successes": [float(value) for value in model.ep_success_buffer or ()],
        "logged": {name: _typed(value) for name, value in model.logger.name_to_value.items()},
        "counted": dict(model.logger.name_to_count),
        "excluded": {name: list(formats) for name, formats in model.logger.name_to_excluded.items()},
        "worlds": None if any(arrays is None for arrays in saved) else worlds,
        "random": {
            "numpy": [kind, None, position, has_gauss, gauss],
            "python": random.getstate(),
            "actions": model.action_space.np_random.bit_generator.state,
        },
    }
    replay = getattr(model, "replay_buffer", None)
    if replay is not None:
        tensors |= _replay_arrays(replay)
        values["replay"] = {"pos": replay.pos, "full": replay.full}
    if labeller is not None:
        arrays, values["labeller"] = labeller.get_state()
        tensors |= {f"labeller/{name}": array for name, array in arrays.items()}
        if labeller.memory is not None and replay is not None:
            memory = labeller.memory.arrays(replay.size())
            tensors |= {f"memory/{name}": array for name, array in memory.items()}
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}, values


def _typed(value: Any) -> tuple[str, float | int]:
    """A logged number as JSON: the name of its type, and itself."""
    array = np.asarray(value)
    return array.dtype.name, array.item()


def _replay_fields(replay: ReplayBuffer) -> dict[str, np.ndarray]:
    """Every array of a replay buffer by name."""
    fields = {name: getattr(replay, name) for name in ("actions", "rewards", "dones", "timeouts")}
    for name in ("observations", "next_observations"):
        value: Any = getattr(replay, name)
        nested = (
            {f"{name}/{key}": array for key, array in value.items()} if isinstance(replay, DictReplayBuffer) else {}
        )
        fields |= nested or {name: value}
    return fields


def _replay_arrays(replay: ReplayBuffer) -> dict[str, np.ndarray]:
    return {f"replay/{name}": array[: replay.size()] for name, array in _replay_fields(replay).items()}


def _load_replay(replay: ReplayBuffer, tensors: dict[str, np.ndarray], values: dict[str, Any]) -> None:
    for name, array in _replay_fields(replay).items():
        stored = tensors[f"replay/{name}"]
        array[: len(stored)] = stored
    replay.pos, replay.full = values["pos"], values["full"]


def _worlds(model: BaseAlgorithm) -> WorldVecEnv:
    assert model.env is not None
    venv = model.env.unwrapped
    assert isinstance(venv, WorldVecEnv)
    return venv


def _below(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    return {name[len(prefix) + 1 :]: array for name, array in tensors.items() if name.startswith(f"{prefix}/")}
