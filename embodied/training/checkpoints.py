"""Checkpoints of training that continue the same curve.

    checkpoints/<steps>/learner.safetensors  learner.json  state.safetensors  state.json

One holds the learner, the replay with its features, every random generator, and the state of every world. It is written
beside its place and moved there when it is whole. Nothing in it is unpickled.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from embodied.errors import UserError
from embodied.files import write_checkpoint
from embodied.training.collector import Collector, below
from embodied.training.labeller import restore_constraints
from embodied.training.log import RunLog
from embodied.training.loop import EPISODES, Training
from policies.core import Learner
from policies.replay import Replay
from rewards.core import Scorer


def save_checkpoint(folder: Path, training: Training, log: RunLog) -> Path:
    """Write everything the run needs to go on, between rollouts.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: the disk is full; the former checkpoint is whole.
    """

    def write(part: Path) -> None:
        save_learner(part, training.learner)
        arrays, values = _collect(training)
        values["log"] = log.state()
        save_file(arrays, part / "state.safetensors")
        (part / "state.json").write_text(json.dumps(values), "utf-8")

    return write_checkpoint(folder, training.steps, write)


def save_learner(folder: Path, learner: Learner) -> None:
    """A learner's whole state as two files."""
    tensors, values = learner.state()
    save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "learner.safetensors")
    (folder / "learner.json").write_text(json.dumps(values), "utf-8")


def load_learner(checkpoint: Path, learner: Learner) -> None:
    """A checkpoint's learner, into one built from the run's config.

    Raises:
        UserError: it is another learner's, or of other shapes.
    """
    try:
        values = json.loads((checkpoint / "learner.json").read_text("utf-8"))
        learner.load_state(load_tensors(checkpoint / "learner.safetensors"), values)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"checkpoint: {checkpoint} must hold this learner's state; got {error}.") from error


def load_constraints(checkpoint: Path, scorer: Scorer | None) -> None:
    """Multipliers that a run's constrained reward had learned, into a scorer built from the run's config."""
    values = json.loads((checkpoint / "state.json").read_text("utf-8"))
    told = values["rewards"]
    if scorer is not None and told:
        restore_constraints(scorer, told)


def load_checkpoint(checkpoint: Path, training: Training, log: RunLog) -> bool:
    """Bring fresh training to where `save_checkpoint` was called.

    Returns:
        Whether the worlds could go on in the middle of their episodes; else they start new ones.
    """
    load_learner(checkpoint, training.learner)
    arrays = load_file(checkpoint / "state.safetensors")
    values = json.loads((checkpoint / "state.json").read_text("utf-8"))
    training.steps, training.owed = values["steps"], values["owed"]
    training.begun = True
    if "past" in values:
        training.past = loaded(below(arrays, "past"), values["past"], training.collector)
    training.recent = {name: deque(each, maxlen=EPISODES) for name, each in values["recent"].items()}
    log.load_state(values["log"])
    if training.replay is not None:
        training.replay.load(below(arrays, "replay"), values["replay"])
    if training.demos is not None and "demos" in values:
        if "interventions" in values["demos"]:
            training.demos.load(below(arrays, "demos"), values["demos"])
        else:
            training.demos.generator.bit_generator.state = values["demos"]
    exact = training.collector.load_state(below(arrays, "collector"), values["collector"])
    if not exact and training.replay is not None and training.demos is not None and training.replay.total:
        training.demos.take(training.replay, training.replay.running[None])  # cut here; nothing will end them
    training.rewards.load_state(below(arrays, "rewards"), values["rewards"], episodes=exact)
    load_random(arrays, values["random"])
    return exact


def loaded(arrays: Mapping[str, np.ndarray], values: Mapping[str, Any], collector: Collector) -> Replay:
    """A replay as it was, of as many worlds.

    Raises:
        ValueError: what it holds is of other observations or actions than these worlds'.
    """
    count = arrays["reward"].shape[1]
    spaces = (collector.observation_space, collector.worlds.action_space)
    replay = Replay(*spaces, capacity=int(values["slots"]) * count, num_worlds=count, seed=0)
    replay.load(arrays, values)
    return replay


def _collect(training: Training) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and JSON values of a checkpoint."""
    arrays: dict[str, np.ndarray] = {}
    values: dict[str, Any] = {"steps": training.steps, "owed": training.owed}
    values["recent"] = {name: list(each) for name, each in training.recent.items()}
    parts = {"collector": training.collector.state(), "rewards": training.rewards.state()}
    if training.replay is not None:
        parts["replay"] = training.replay.arrays()
    if training.past is not None:
        parts["past"] = training.past.arrays()
    if training.demos is not None and training.demos.interventions:
        parts["demos"] = training.demos.arrays()
    for name, (found, told) in parts.items():
        arrays |= {f"{name}/{key}": array for key, array in found.items()}
        values[name] = told
    if training.demos is not None and not training.demos.interventions:  # what a dataset shows is read from there
        values["demos"] = training.demos.generator.bit_generator.state
    found, values["random"] = random_state()
    arrays |= found
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}, values


def random_state() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The global generators, which some libraries draw from, as arrays and JSON."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    arrays = {"random/torch": torch.get_rng_state().numpy(), "random/numpy": np.asarray(keys)}
    if torch.cuda.is_available():
        arrays["random/cuda"] = torch.cuda.get_rng_state().numpy()
    return arrays, {"numpy": [kind, position, has_gauss, gauss], "python": random.getstate()}


def load_random(arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
    """Undo of `random_state`."""
    torch.set_rng_state(torch.from_numpy(arrays["random/torch"]))
    if "random/cuda" in arrays and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(arrays["random/cuda"]))
    kind, position, has_gauss, gauss = values["numpy"]
    np.random.set_state((kind, arrays["random/numpy"], position, has_gauss, gauss))
    version, internal, gauss = values["python"]
    random.setstate((version, tuple(internal), gauss))
