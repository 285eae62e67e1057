"""A LeRobot v3 dataset without some of its episodes, as a new folder: rows and meta data again, films as they are.

Films are linked, not encoded again: pictures of episodes that are left out stay in them, and no row asks for any.
Labels in a file of their own beside the data (`<name>_progress.parquet`) are numbered anew as the rows are; a table
there that does not say whose its rows are is left out.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embodied.datasets import layout
from embodied.datasets.copying import files, is_data
from embodied.datasets.reader import Dataset
from embodied.errors import UserError
from embodied.locks import alone

_NUMBERED = {"index", "episode_index", "frame_index"}  # columns by which a row says whose it is


def check_droppable(dataset: Dataset) -> None:
    """Refuse a dataset of which `drop` could leave nothing out.

    Args:
        dataset: of any version.

    Raises:
        UserError: it is not of version 3.
    """
    version = str(layout.read_json(dataset.root / "meta" / layout.INFO).get("codebase_version", ""))
    if not version.startswith("v3"):
        raise UserError(f"{dataset.root}: must be of version 3 to leave episodes out. Convert it with LeRobot first.")


def drop(dataset: Dataset, dropped: Sequence[int], out: Path) -> Dataset:
    """Write the dataset again without these episodes; those that stay are numbered from 0.

    Args:
        dataset: v3; it stays as it is.
        dropped: positions of episodes, 0 to len(dataset) - 1; some must stay.
        out: a new folder; it is whole or not there.

    Raises:
        UserError: another version, a folder that is there, none that stays, or a disk that cannot take it.
    """
    check_droppable(dataset)
    info = layout.read_json(dataset.root / "meta" / layout.INFO)
    if out.exists():
        raise UserError(f"out must be a new folder; got {out}.")
    gone = set(dropped)
    kept = [i for i in range(len(dataset)) if i not in gone]
    if not kept:
        raise UserError(f"{dataset.root}: all {len(dataset)} episodes would be left out; nothing is written.")
    with alone(out, "out"):
        _whole(dataset, kept, out, info)
    return Dataset(out)


def _whole(dataset: Dataset, kept: Sequence[int], out: Path, info: dict[str, Any]) -> None:
    """The copy, made beside its place and moved there."""
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _write(dataset, kept, part, info)
        made = Dataset(part)
        if [made.length(i) for i in range(len(made))] != [dataset.length(i) for i in kept]:
            raise UserError(f"{part}: must hold the episodes that stay, and does not. The dataset is as it was.")
        part.rename(out)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{out.parent}: must take a copy of {dataset.root}; got {getattr(error, 'strerror', None) or error}. "
            "Make room, or give another folder with out=. The dataset is as it was."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(dataset: Dataset, kept: Sequence[int], part: Path, info: dict[str, Any]) -> None:
    numbers = {dataset.span(i).index: new for new, i in enumerate(kept)}
    starts = np.concatenate([[0], np.cumsum([dataset.length(i) for i in kept])])
    meta = Path("meta")
    remade = {meta / layout.INFO, meta / layout.STATS, meta / layout.OWN}
    for file in files(dataset.root):
        source, target = dataset.root / file, part / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_data(file):
            _rows(source, target, numbers, starts)
        elif len(file.parts) == 1 and file.suffix == ".parquet":  # labels beside the data, by the same numbers
            if set(pq.read_schema(source).names) >= _NUMBERED:
                _rows(source, target, numbers, starts)
        elif file.is_relative_to(meta / layout.EPISODES) or file in remade or file.parts[0] == layout.LAST:
            continue
        else:
            _link(source, target)
    stats = _episodes(dataset, part, numbers, starts)
    count, rows = len(kept), int(starts[-1])
    info |= {"total_episodes": count, "total_frames": rows, "splits": {"train": f"0:{count}"}}
    _json(part / meta / layout.INFO, info)
    if stats is not None:
        _json(part / meta / layout.STATS, stats)
    own = dataset.root / meta / layout.OWN
    told: dict[str, Any] = layout.read_json(own) if own.is_file() else {}
    notes = {str(numbers[int(k)]): v for k, v in told.get("episodes", {}).items() if int(k) in numbers}
    gone = int(told.get(layout.LEFT_OUT, 0)) + len(dataset) - count
    _json(part / meta / layout.OWN, {"env": {}} | told | {"episodes": notes, layout.LEFT_OUT: gone})
    for camera in dataset.cameras:
        for new, i in enumerate(kept):
            source = layout.last_file(dataset.root, camera, dataset.span(i).index)
            if source.is_file():
                target = layout.last_file(part, camera, new)
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(source, target)


def _rows(source: Path, target: Path, numbers: Mapping[int, int], starts: np.ndarray) -> None:
    """A data file's rows of episodes that stay, numbered anew, row group by row group; no file where there are none."""
    with pq.ParquetFile(source) as file:
        writer = None
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            table = _of(table, numbers)
            if not len(table):
                continue
            episodes = np.array([numbers[index] for index in table["episode_index"].to_pylist()], np.int64)
            index = starts[episodes] + np.asarray(table["frame_index"].to_pylist(), np.int64)
            for name, values in (("episode_index", episodes), ("index", index)):
                if name in table.column_names:
                    place, kind = table.column_names.index(name), table.schema.field(name).type
                    table = table.set_column(place, table.schema.field(name), pa.array(values).cast(kind))
            if writer is None:
                writer = pq.ParquetWriter(target, table.schema, compression="snappy")
            writer.write_table(table, row_group_size=len(table))
        if writer is not None:
            writer.close()


def _episodes(
    dataset: Dataset, part: Path, numbers: Mapping[int, int], starts: np.ndarray
) -> dict[str, dict[str, Any]] | None:
    """meta/episodes again, as one file; the statistics of what stays, where each episode has its own."""
    table = _of(layout.read_episodes(dataset.root / "meta" / layout.EPISODES), numbers)
    new = np.array([numbers[index] for index in table["episode_index"].to_pylist()], np.int64)
    changed = {
        "episode_index": new, "dataset_from_index": starts[new], "dataset_to_index": starts[new + 1],
        "meta/episodes/chunk_index": np.zeros_like(new), "meta/episodes/file_index": np.zeros_like(new),
    }  # fmt: skip
    for name, values in changed.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
    file = part / "meta" / layout.EPISODES / "chunk-000" / "file-000.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, compression="snappy")
    return layout.pooled(table) or None


def _of(table: pa.Table, numbers: Mapping[int, int]) -> pa.Table:
    """The rows of episodes that stay."""
    return table.filter(pa.array([index in numbers for index in table["episode_index"].to_pylist()], pa.bool_()))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
