"""Learning over a folder: a curve, checkpoints, and a policy; killed, it goes on to the same curve."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from embodied.datasets.windows import Windows
from embodied.files import latest_checkpoint, write_checkpoint
from embodied.training.log import RunLog
from policies.vla.core import CONFIG, ChunkPolicy
from policies.vla.imitation import ChunkImitation
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
        steps, batch_size, learning_rate, seed: see `ChunkImitation`.
        held_out: row numbers whose error is watched; may be none.
        checkpoint_every, log_every: steps; 0 of the former: only at the end.
        name: for the bar.
    """
    if (folder / POLICY / CONFIG).is_file():
        return ChunkPolicy.load(folder / POLICY).to(policy.device)
    learner = ChunkImitation(
        policy, weights, rows.batch, steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed
    )

    def step() -> dict[str, float]:
        return {"train/error": learner.step()}

    advance(
        folder, learner, step, lambda: {"validation/error": learner.error(held_out)} if len(held_out) else {},
        checkpoint_every=checkpoint_every, log_every=log_every, name=name,
    )  # fmt: skip
    acting = learner.averaged()
    acting.save(folder / POLICY)
    return acting


@runtime_checkable
class Advancing(Protocol):
    """What `advance` takes to its last step."""

    steps: int
    done: int

    def get_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None: ...


def advance(
    folder: Path, learner: Advancing, step: Callable[[], Mapping[str, float]], watch: Callable[[], Mapping[str, float]],
    *, checkpoint_every: int, log_every: int, name: str,
) -> None:  # fmt: skip
    """Take a learner to its last step, from the newest checkpoint where there is one.

    Args:
        folder: progress.csv, checkpoints.
        learner: at its beginning.
        step: one of its steps; what was measured, whose means are logged.
        watch: what else is logged, at the moment.
        checkpoint_every, log_every, name: see `train`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, recent = latest_checkpoint(folder), dict[str, list[float]]()
    if checkpoint is not None:
        values = json.loads((checkpoint / "state.json").read_text())
        learner.load_state(load_file(checkpoint / "state.safetensors"), values)
        recent = values["recent"]
    log = RunLog(folder, steps=learner.done if checkpoint is not None else None)

    def write(part: Path) -> None:
        tensors, values = learner.get_state()
        save_file(tensors, part / "state.safetensors")
        (part / "state.json").write_text(json.dumps(values | {"recent": recent}), "utf-8")

    try:
        with tqdm(total=learner.steps, initial=learner.done, desc=name, unit="update", smoothing=0.05) as bar:
            while learner.done < learner.steps:
                for key, value in step().items():
                    recent.setdefault(key, []).append(value)
                bar.update()
                if learner.done % log_every == 0 or learner.done == learner.steps:
                    means = {key: float(np.mean(values)) for key, values in recent.items()}
                    log.record({**means, **watch()})
                    bar.set_postfix({key.rpartition("/")[2]: f"{value:.4f}" for key, value in means.items()})
                    log.write(learner.done)
                    recent = {}
                if checkpoint_every and learner.done % checkpoint_every == 0 and learner.done < learner.steps:
                    write_checkpoint(folder, learner.done, write)
    finally:
        log.close()
