"""Checkpoints of practice, between two attempts: the learner, its replay, every random generator, the world.

    checkpoints/<steps>/learner.safetensors  learner.json  state.safetensors  state.json

Written beside its place and moved there when it is whole; nothing in it is unpickled. A simulated world goes on
exactly from there; a robot, and a world that hides its state, begins anew from a reset.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from embodied.envs.worker import saved_world, set_wrapper_states, wrapper_states
from embodied.files import write_checkpoint
from embodied.practice.loop import Practice, Tally
from embodied.training.checkpoints import load_learner, load_random, random_state, save_learner
from embodied.training.collector import below


def save_practice(folder: Path, practice: Practice) -> Path:
    """Write everything that practice needs to go on.

    Returns:
        The checkpoint's folder, named by the steps done.

    Raises:
        UserError: the disk is full; the former checkpoint is whole.
    """

    def write(part: Path) -> None:
        save_learner(part, practice.learner)
        arrays, values = _collect(practice)
        save_file(arrays, part / "state.safetensors")
        (part / "state.json").write_text(json.dumps(values), "utf-8")

    return write_checkpoint(folder, practice.tally.steps, write)


def load_practice(checkpoint: Path, practice: Practice) -> bool:
    """Bring practice, built anew and its world reset once, to where `save_practice` was called.

    Returns:
        Whether the world could go on exactly from there.

    Raises:
        UserError: another learner's checkpoint.
    """
    load_learner(checkpoint, practice.learner)
    arrays = load_file(checkpoint / "state.safetensors")
    values = json.loads((checkpoint / "state.json").read_text("utf-8"))
    practice.replay.load(below(arrays, "replay"), values["replay"])
    if "interventions" in values["demos"]:
        practice.demos.load(below(arrays, "demos"), values["demos"])
    else:
        practice.demos.generator.bit_generator.state = values["demos"]
    world: Any = practice.env.unwrapped
    exact = values["world"] is not None and hasattr(world, "set_state")
    if exact:
        world.set_state(below(arrays, "world"))
        world.np_random.bit_generator.state = values["world"]
        set_wrapper_states(practice.env, values["wrappers"])
        practice.obs = arrays["obs"]
    practice.tally, practice.stopped = Tally(**values["tally"]), values["stopped"]
    if not exact:  # the reset that the world has just had is the one that was due
        practice.call_person()
        practice.begin()
    load_random(arrays, values["random"])
    return exact


def _collect(practice: Practice) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and JSON values."""
    world = practice.env.unwrapped
    found, told = practice.replay.arrays()
    arrays = {f"replay/{name}": array for name, array in found.items()}
    shown: Any = practice.demos.generator.bit_generator.state
    if practice.demos.interventions:
        kept, shown = practice.demos.arrays()
        arrays |= {f"demos/{name}": array for name, array in kept.items()}
    random, generators = random_state()
    arrays |= random
    saved = saved_world(practice.env) if isinstance(practice.obs, np.ndarray) else None
    if saved is not None:
        arrays |= {f"world/{name}": array for name, array in saved.items()}
        arrays["obs"] = practice.obs
    values = {
        "tally": asdict(practice.tally),
        "replay": told,
        "demos": shown,
        "world": None if saved is None else world.np_random.bit_generator.state,
        "wrappers": wrapper_states(practice.env),
        "stopped": practice.stopped,
        "random": generators,
    }
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}, values
