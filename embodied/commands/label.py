"""Label a dataset: the progress and the reward of every frame, by any reward model.

Writes LeRobot's sidecar (`<name>_progress.parquet`, which its reward-weighted training reads, with the raw potential
and the reward beside the progress), or a copy of the dataset with the features `progress.<name>` and `reward.<name>`.
The column `next.reward` stays as it was, and the source is not changed unless you say in_place=true.

Row t's potential is that of its frame. Row t's reward is that of action t, which leads to the next frame; after the
last frame, whose successor no dataset holds, the world is taken to stay as it is. The same command continues after a
kill. On several machines or GPUs, each labels a shard of the episodes into the same folder, and one joins them; the
result has the same bits as one run's.

    embodied label data=path/to/lerobot reward=clip goal="put the cube in the tray"
    embodied label data=desk-drawer-mixed reward=process columns=columns out=data/labelled
    embodied label data=path/to/lerobot reward=process shard=3/16
    embodied label data=path/to/lerobot reward=process merge=true
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from omegaconf import DictConfig

from embodied import hub
from embodied.building import scorers
from embodied.building.goals import of_other_tasks, told_goals
from embodied.collecting import COLLECTED
from embodied.collecting.opening import open_dataset, reading
from embodied.datasets import Dataset, layout
from embodied.datasets.columns import with_columns
from embodied.errors import BusyError, UserError
from embodied.files import check_place, whole
from embodied.literal import resolved
from embodied.locks import alone
from embodied.scoring.labelling import (
    KeptLabels,
    Shard,
    by_goal,
    chosen_cameras,
    instructions,
    label_all,
    progress_range,
)
from embodied.settings import check_least
from rewards.core import Encoder
from rewards.storage import former_of, replace_folder

ROOT = Path("runs", "label")
GOALS = "goals"  # what labels were made for: a JSON list, in a sidecar's metadata
DATA, PLACE = "data", "place"  # there: the dataset, and a hash of where it lies, for the file may be shared
COUNTERS = ("index", "episode_index", "frame_index")  # of a sidecar
NUMBERS = ("progress_sparse", "progress_dense", "potential", "reward")
ROWS = 2**16  # of a sidecar that are held before they are written
TABLES = 256  # of episodes, beside each other in memory before they are joined


def run(config: DictConfig) -> None:
    """Score every episode, then write all at once."""
    if config.columns not in ("sidecar", "columns"):
        raise UserError(f"columns must be sidecar or columns; got {config.columns!r}.")
    check_least(config, batch=1, threads=1)
    shard = Shard.read(config.shard)
    hub.check_id(config.push)
    if config.merge and config.shard is not None:
        raise UserError("merge=true must be without shard: it writes what all shards have made.")
    if config.reward.get("_target_") is None:
        raise UserError("reward=true labels nothing: it is the task's own. Choose a reward model.")
    name = config.name or scorers.reward_name(config.reward)
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"name must be letters, digits and . _ + - alone; got {name!r}.")
    torch.set_num_threads(config.threads)
    encoder, loaded = scorers.encoder_checked(config)
    _recover(config.data, in_place=config.in_place)
    dataset = open_dataset(config.data, **reading(config))
    cameras = chosen_cameras(dataset, config.cameras)
    out = _out(config, dataset, name)
    check_place(out, "out")
    if told := of_other_tasks(resolved(config)["reward"], instructions(dataset)):
        print(told, file=sys.stderr)
    with nullcontext() if config.shard is not None else alone(out, "out"):  # shards write files of their own alone
        if config.in_place:
            dataset = open_dataset(config.data, **reading(config))  # the last holder may have changed it
        _label(config, dataset, _out(config, dataset, name), name, cameras, encoder, shard)
    del loaded  # until then nothing is loaded twice


def _label(
    config: DictConfig,
    dataset: Dataset,
    out: Path,
    name: str,
    cameras: Sequence[str],
    encoder: Encoder | None,
    shard: Shard,
) -> None:
    """Score, and write what no other process writes meanwhile."""
    groups = by_goal(config, dataset)
    goals = [goal for goal in groups if goal is not None] or told_goals(resolved(config)["reward"])
    if config.columns == "sidecar":
        _check_same(out, dataset, goals)
    labels = KeptLabels(dataset, _parts(out))
    label_all(config, labels, cameras, groups, shard=shard, only_see=config.merge, encoder=encoder)
    if config.shard is not None:
        print(f"Shard {config.shard}: kept in {labels.root}. When all are done: the same with merge=true for shard=…")
        return
    low, high = progress_range(*labels.extremes())
    if config.columns == "sidecar":
        about = {"reward_model_path": name, "low": low, "high": high, GOALS: json.dumps(goals, ensure_ascii=False)}
        about |= _whose(out, dataset)
        if len(goals) == 1:
            about["goal"] = goals[0]
        _write_sidecar(out, labels, about)
    else:
        _write_copy(out, labels, name, goals, in_place=config.in_place)
    if (low, high) != (0.0, 1.0):
        print(f"Potentials from {low:.4g} to {high:.4g} over this dataset; the sidecar's progress is 0 to 1 of that.")
    rows = sum(span.length for span in dataset.spans)
    print(f"Labels: {out} ({len(dataset)} episodes, {rows} rows, {name})")
    if config.push:
        facts = {
            "data": dataset.root.name,
            "reward": scorers.reward_name(config.reward),
            "encoder": hub.encoder(config),
        }
        facts |= {"cameras": cameras, "goals": goals, "episodes": len(dataset), "rows": rows, "range": [low, high]}
        files = _to_push(out, name, facts, columns=config.columns)
        print(f"Pushed: {hub.push(files, config.push, hub.DATASET, private=config.private)}")
    shutil.rmtree(_parts(out), ignore_errors=True)


def _to_push(out: Path, name: str, facts: Mapping[str, Any], *, columns: str) -> dict[str, Path | bytes]:
    """Path in the repository -> what goes there; a sidecar's card has a name of its own, beside the dataset's."""
    told = [
        "Rewards of every frame of a LeRobot dataset, by a reward model of `embodied`. Row t's potential is that of "
        "its frame; its reward is that of action t, which leads to the next frame. They are a model's opinion: judge "
        "the model on labelled episodes (`embodied judge`) before you train on them.",
    ]
    tags = ("LeRobot", "robotics", "reward-model", "embodied")
    if columns == "sidecar":
        about = hub.card(f"{name}: progress and reward", told, facts, tags)
        return {f"{name}_progress.parquet": out, f"{name}_progress.md": about}
    told.append(f"The features are `progress.{name}` and `reward.{name}`; `next.reward` is what it was.")
    return hub.folder_files(out) | {"README.md": hub.card(f"A dataset with rewards: {name}", told, facts, tags)}


# Checking -----------------------------------------------------------------------------------------------


def _whose(out: Path, dataset: Dataset) -> dict[str, str]:
    """What a sidecar notes of its dataset; nothing in the dataset's own folder, which may be moved with it."""
    root = dataset.root.resolve()
    if out.resolve().is_relative_to(root):
        return {}
    return {DATA: "/".join(root.parts[-2:]), PLACE: hashlib.sha256(str(root).encode()).hexdigest()}


def _check_same(out: Path, dataset: Dataset, goals: Sequence[str]) -> None:
    """Refuse to write over labels of another dataset or goal.

    Raises:
        UserError: a file that holds such, or does not say its goal.
    """
    if not out.exists():
        return
    noted: dict[bytes, bytes] = {}
    try:
        noted = pq.read_schema(out).metadata or {}
        kept = json.loads(noted[GOALS.encode()])
    except (KeyError, ValueError, OSError):  # not ours, or from before goals were noted
        kept = None
    place = _whose(out, dataset).get(PLACE)
    if place is not None and noted.get(PLACE.encode(), place.encode()) != place.encode():  # older ones note none
        other = noted.get(DATA.encode(), b"another").decode(errors="replace")
        raise UserError(
            f"out must be a new file, or hold labels of {dataset.root}; {out} holds labels of the dataset {other}. "
            "Give another with out=… or name=…, or delete it."
        )
    if kept != list(goals):
        held = "labels that do not say their goal" if kept is None else f"labels of {_listed(kept)}"
        raise UserError(
            f"out must be a new file, or hold labels of {_listed(goals)}; {out} holds {held}. "
            "Give another with out=… or name=…, or delete it."
        )


def _listed(goals: Sequence[str]) -> str:
    told = ", ".join(repr(goal) for goal in goals[:3]) + (f" and {len(goals) - 3} more" if len(goals) > 3 else "")
    return told or "no goal"


# Writing ------------------------------------------------------------------------------------------------


def _write_sidecar(out: Path, labels: KeptLabels, about: Mapping[str, Any]) -> None:
    """LeRobot's columns, both of its progress modes alike, then ours; `ROWS` of them in memory at a time."""
    dataset, low, high = labels.dataset, about["low"], about["high"]
    kinds = [*dict.fromkeys(COUNTERS, pa.int64()).items(), *dict.fromkeys(NUMBERS, pa.float32()).items()]
    metadata = {key.encode(): str(value).encode() for key, value in about.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    held: list[pa.Table] = []
    schema = pa.schema(kinds, metadata=metadata)
    with whole(out) as part, pq.ParquetWriter(part, schema) as writer:
        for i, each in enumerate(labels):
            progress = (each["potential"] - low) / ((high - low) or 1.0)
            columns = dict(dataset.columns(i, COUNTERS)) | dict.fromkeys(NUMBERS[:2], progress) | each
            arrays = [pa.array(columns[name]).cast(kind) for name, kind in kinds]
            held.append(pa.Table.from_arrays(arrays, schema=schema))
            if len(held) == TABLES:  # many of few rows take more room than their rows
                held = [pa.concat_tables(held).combine_chunks()]
            if sum(map(len, held)) >= ROWS or i == len(dataset) - 1:
                writer.write_table(pa.concat_tables(held).combine_chunks())
                held.clear()


def _write_copy(out: Path, labels: KeptLabels, name: str, goals: Sequence[str], *, in_place: bool) -> None:
    """The dataset with two more features, as a whole: made beside its place and moved there."""
    dataset = labels.dataset
    part = out.with_name(f".{out.name}.part")
    columns = _features(name)
    features = {key: {"dtype": "float32", "shape": [1], "names": None} for key in columns}
    notes = {"labels": {name: {GOALS: list(goals)}}}

    def values(i: int) -> dict[str, np.ndarray]:
        each = labels[i]
        return {key: each[value] for key, value in columns.items()}

    with_columns(dataset, part, features, values, notes)
    if in_place:
        replace_folder(part, out)
    else:
        part.rename(out)


def _features(name: str) -> dict[str, str]:
    """New column -> which of an episode's labels it holds."""
    return {f"progress.{name}": "potential", f"reward.{name}": "reward"}


def _recover(data: str, *, in_place: bool) -> None:
    """Undo a kill between the two steps in which a labelled copy takes a dataset's place; after them, clear up."""
    for root in (Path(data).resolve(), (COLLECTED / data).resolve()):
        old = former_of(root)
        with suppress(BusyError):  # then a copy is taking its place just now
            if (old / "meta" / layout.INFO).is_file() and (in_place or not root.exists()):
                with alone(root, "data"):
                    if not root.exists():
                        old.rename(root)
                    else:
                        shutil.rmtree(old, ignore_errors=True)
                        shutil.rmtree(_parts(root), ignore_errors=True)


def _out(config: DictConfig, dataset: Dataset, name: str) -> Path:
    """Where the labels go, checked before anything is scored."""
    if config.in_place and config.out:
        raise UserError("out must be left out with in_place=true.")
    if config.columns == "sidecar":
        default = (dataset.root if config.in_place else ROOT / dataset.root.name) / f"{name}_progress.parquet"
        out = Path(config.out or default)
        if out.suffix != ".parquet":
            raise UserError(f"out must end in .parquet; got {out}.")
        return out
    out = dataset.root.resolve() if config.in_place else Path(config.out or ROOT / f"{dataset.root.name}-{name}")
    if not config.in_place and out.exists():
        raise UserError(f"out must be a new folder; got {out}.")
    if not config.in_place and out.resolve().is_relative_to(dataset.root.resolve()):
        raise UserError(f"out must lie outside of data; got {out}, in {dataset.root}.")
    if taken := [key for key in _features(name) if key in dataset.features]:
        raise UserError(f"name must be new: {dataset.root} has {taken[0]} already. Add name=…")
    return out


def _parts(out: Path) -> Path:
    """Finished episodes of a run that is under way, beside what it will write."""
    return out.with_name(f".{out.name}.labels")
