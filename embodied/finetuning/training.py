"""Imitation over a folder: a curve, checkpoints, and a policy; killed, it goes on to the same curve."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from embodied.datasets.windows import Windows
from embodied.files import latest_checkpoint, write_checkpoint
from embodied.training.log import RunLog
from policies.vla.core import CONFIG, ChunkPolicy
from policies.vla.imitation import Imitation
from rewards.progress import tqdm

POLICY = "policy"


def train(
    folder: Path,
    policy: ChunkPolicy,
    weights: np.ndarray,
    rows: Windows,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    held_out: np.ndarray,
    checkpoint_every: int,
    log_every: int,
    name: str = "imitate",
) -> ChunkPolicy:
    """Imitate weighted rows; returns the averaged policy, which lies in `folder/policy` too.

    Args:
        folder: of this stage: progress.csv, checkpoints, policy. Where a policy lies already, nothing is done.
        policy: as it starts.
        weights: (N,) of the rows.
        rows: the windows.
        steps, batch_size, learning_rate, seed: see `Imitation`.
        held_out: row numbers whose error is watched; may be none.
        checkpoint_every, log_every: steps; 0 of the former: only at the end.
        name: for the bar.
    """
    if (folder / POLICY / CONFIG).is_file():
        return ChunkPolicy.load(folder / POLICY).to(policy.device)
    folder.mkdir(parents=True, exist_ok=True)
    learner = Imitation(
        policy, weights, rows.batch, steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed
    )
    checkpoint = latest_checkpoint(folder)
    if checkpoint is not None:
        learner.load_state(
            load_file(checkpoint / "state.safetensors"), json.loads((checkpoint / "state.json").read_text())
        )
    log = RunLog(folder, steps=learner.done if checkpoint is not None else None)
    recent: list[float] = []

    def write(part: Path) -> None:
        tensors, values = learner.get_state()
        save_file(tensors, part / "state.safetensors")
        (part / "state.json").write_text(json.dumps(values | {"recent": recent}), "utf-8")

    if checkpoint is not None:
        recent = list(json.loads((checkpoint / "state.json").read_text())["recent"])
    try:
        with tqdm(total=steps, initial=learner.done, desc=name, unit="update", smoothing=0.05) as bar:
            while learner.done < steps:
                recent.append(learner.step())
                bar.update()
                if learner.done % log_every == 0 or learner.done == steps:
                    log.record({"train/error": float(np.mean(recent))})
                    if len(held_out):
                        log.record({"validation/error": float(learner.error(held_out))})
                    bar.set_postfix(error=f"{np.mean(recent):.4f}")
                    log.write(learner.done)
                    recent = []
                if checkpoint_every and learner.done % checkpoint_every == 0 and learner.done < steps:
                    write_checkpoint(folder, learner.done, write)
    finally:
        log.close()
    acting = learner.averaged()
    acting.save(folder / POLICY)
    return acting
