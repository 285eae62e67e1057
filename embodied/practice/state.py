"""Checkpoints of practice, between two attempts: the learner, its replay, every random generator, the world.

    checkpoints/<steps>/learner.zip  state.safetensors  state.json

Written beside its place and moved there when it is whole; nothing in it is unpickled. A simulated world goes on
exactly from there; a robot begins anew from a reset.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from embodied.checkpoints import load_parameters
from embodied.files import write_checkpoint
from embodied.practice.loop import Practice, Tally
from policies.demonstrations import SymmetricReplay

REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def save_practice(folder: Path, practice: Practice) -> Path:
    """Write everything that practice needs to go on.

    Returns:
        The checkpoint's folder, named by the steps done.

    Raises:
        UserError: the disk is full; the former checkpoint is whole.
    """

    def write(part: Path) -> None:
        with (part / "learner.zip").open("wb") as file:
            practice.model.save(file)
        tensors, values = _collect(practice)
        save_file(tensors, part / "state.safetensors")
        (part / "state.json").write_text(json.dumps(values), "utf-8")

    return write_checkpoint(folder, practice.tally.steps, write)


def load_practice(checkpoint: Path, practice: Practice) -> bool:
    """Bring practice, built anew and its world reset once, to where `save_practice` was called.

    Returns:
        Whether the world could go on exactly from there.
    """
    model = practice.model
    load_parameters(checkpoint, model)
    tensors = load_file(checkpoint / "state.safetensors")
    values = json.loads((checkpoint / "state.json").read_text("utf-8"))
    replay = _replay(practice)
    for name in REPLAY:
        stored = tensors[f"replay/{name}"]
        getattr(replay, name)[: len(stored)] = stored
    replay.pos, replay.full = values["replay"]["pos"], values["replay"]["full"]
    model._n_updates, model.num_timesteps = values["updates"], values["tally"]["steps"]
    world: Any = practice.env.unwrapped
    exact = values["world"] is not None and hasattr(world, "set_state")
    if exact:
        world.set_state({name[6:]: array for name, array in tensors.items() if name.startswith("world/")})
        world.np_random.bit_generator.state = values["world"]
        practice.obs = tensors["obs"]
    practice.tally = Tally(**values["tally"])
    torch.set_rng_state(torch.from_numpy(tensors["random/torch"]))
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(tensors["random/cuda"]))
    kind, position, has_gauss, gauss = values["random"]["numpy"]
    np.random.set_state((kind, tensors["random/numpy"], position, has_gauss, gauss))
    version, internal, gauss = values["random"]["python"]
    random.setstate((version, tuple(internal), gauss))
    return exact


def _collect(practice: Practice) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and JSON values."""
    replay, world = _replay(practice), practice.env.unwrapped
    tensors: dict[str, np.ndarray] = {f"replay/{name}": getattr(replay, name)[: replay.size()] for name in REPLAY}
    tensors["random/torch"] = torch.get_rng_state().numpy()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state().numpy()
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    tensors["random/numpy"] = np.asarray(keys)
    saves = hasattr(world, "get_state") and isinstance(practice.obs, np.ndarray)
    if saves:
        tensors |= {f"world/{name}": array for name, array in world.get_state().items()}  # pyright: ignore
        tensors["obs"] = practice.obs
    values = {
        "tally": asdict(practice.tally),
        "updates": practice.model._n_updates,
        "replay": {"pos": replay.pos, "full": replay.full},
        "world": world.np_random.bit_generator.state if saves else None,
        "random": {"numpy": [kind, position, has_gauss, gauss], "python": random.getstate()},
    }
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}, values


def _replay(practice: Practice) -> SymmetricReplay:
    replay = practice.model.replay_buffer
    assert isinstance(replay, SymmetricReplay)
    return replay
