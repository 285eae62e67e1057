"""Memory of `label` and `judge`: of few and of many episodes, of a short and of a long one.

Each is a process of its own, and its peak counts. Episodes of the large dataset share their films, so that it is made
quickly; every one of them is read, encoded and kept by itself all the same.

    python -m benchmarks.memory                     # 100 against 2,000 episodes, 1 against 30 minutes
    python -m benchmarks.memory many=50000 rows=2   # the large one: half an hour
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import read_options, record
from benchmarks.measure import in_child
from embodied import cli
from embodied.datasets import Writer, layout
from embodied.datasets.staged import GROUP_ROWS

ROOT = Path("runs", "benchmarks", "memory")
DEFAULTS = {"few": 100, "many": 2000, "rows": 8, "minutes": [1, 30], "fps": 10}
BASE, SIZE, BAR = 20, 32, 1.2  # episodes that are filmed; picture; how much more the larger one may take
FEATURES = {"next.success": {"dtype": "bool", "shape": (1,), "names": None}}
GOAL = "goal=the bar is full"


def main() -> None:
    """Make the data, measure, record."""
    options = read_options(DEFAULTS)
    shutil.rmtree(ROOT, ignore_errors=True)
    base = filmed("base", [options["rows"]] * BASE, options["fps"])
    rows = []
    sets = {count: repeated(base, ROOT / str(count), count) for count in (options["few"], options["many"])}
    for verb in ("label", "judge"):
        peaks = {count: peak(verb, data) for count, data in sets.items()}
        told = f"{verb}: memory of {options['many']:,} episodes over that of {options['few']}"
        rows.append(row(told, peaks, options))
        record("memory", rows)
    lengths = [round(minutes * 60 * options["fps"]) for minutes in options["minutes"]]
    peaks = {length: peak("label", filmed(f"long-{length}", [length], options["fps"])) for length in lengths}
    short, long = options["minutes"]
    rows.append(row(f"label: memory of an episode of {long} min over that of {short} min", peaks, options))
    record("memory", rows)


def filmed(name: str, lengths: list[int], fps: int) -> Path:
    """Episodes of a bar that grows; in every other one it does not get full, and it fails."""
    rng = np.random.default_rng(0)
    with Writer(ROOT / name, fps=fps, features=FEATURES, cameras={"front": (SIZE, SIZE)}) as writer:
        for k, length in enumerate(lengths):
            end = 1.0 if k % 2 == 0 else 0.4
            frames = rng.integers(100, 120, (length, SIZE, SIZE, 3), np.uint8)
            for t, frame in enumerate(frames):
                frame[:, : round(end * SIZE * (t + 1) / length)] = (220, 20, 20)
            solved = (np.arange(length) == length - 1) & (end == 1.0)
            writer.add({"next.success": solved[:, None]}, {"front": frames}, instruction="fill the bar")
    return ROOT / name


def repeated(base: Path, out: Path, count: int) -> Path:
    """A dataset of so many episodes, which show the films of `base` over and over."""
    shutil.copytree(base, out)
    rows = pq.read_table(next((base / "data").rglob("*.parquet")))
    episodes = pq.read_table(next((base / "meta" / layout.EPISODES).rglob("*.parquet")))
    each = len(rows) // len(episodes)
    take = np.arange(count) % len(episodes)
    about = episodes.take(pa.array(take))
    for name, values in {
        "episode_index": np.arange(count), "dataset_from_index": each * np.arange(count),
        "dataset_to_index": each * (1 + np.arange(count)),
    }.items():  # fmt: skip
        about = about.set_column(about.column_names.index(name), name, pa.array(values))
    pq.write_table(about, next((out / "meta" / layout.EPISODES).rglob("*.parquet")))
    number, at_once = np.arange(count), -(-GROUP_ROWS // each)
    with pq.ParquetWriter(next((out / "data").rglob("*.parquet")), rows.schema) as writer:
        for first in range(0, count, at_once):  # row groups as datasets of ours have them
            some = number[first : first + at_once]
            part = rows.take(pa.array((each * take[some][:, None] + np.arange(each)).reshape(-1)))
            index = (each * some[:, None] + np.arange(each)).reshape(-1)
            for name, values in {"episode_index": np.repeat(some, each), "index": index}.items():
                part = part.set_column(part.column_names.index(name), rows.schema.field(name), pa.array(values))
            writer.write_table(part, row_group_size=len(part))
    info = json.loads((out / "meta" / layout.INFO).read_text())
    info |= {"total_episodes": count, "total_frames": each * count, "splits": {"train": f"0:{count}"}}
    (out / "meta" / layout.INFO).write_text(json.dumps(info))
    own = json.loads((out / "meta" / layout.OWN).read_text())
    (out / "meta" / layout.OWN).write_text(json.dumps(own | {"episodes": {}}))
    return out


def peak(verb: str, data: Path) -> float:
    """GB that a verb held at most."""
    return float(in_child("benchmarks.memory", {"verb": verb, "data": str(data)})["pss_gb"])


def child(job: Mapping[str, Any]) -> None:
    """Run one verb here."""
    os.environ["OMP_NUM_THREADS"] = "1"
    words = {
        "label": [f"out={ROOT / 'labels' / Path(job['data']).name}.parquet"],
        "judge": [f"run={ROOT / 'judged' / Path(job['data']).name}", "counterfactual=false", "resamples=10"],
    }[job["verb"]]
    status = cli.main([job["verb"], f"data={job['data']}", "reward=clip", GOAL, *words])
    print(json.dumps({"status": status}))
    assert status == 0


def row(told: str, peaks: Mapping[int, float], options: Mapping[str, Any]) -> dict[str, Any]:
    """One claim."""
    small, large = peaks.values()
    value = large / small
    print(f"{told}: {value:.2f} ({small:.2f} and {large:.2f} GB)", flush=True)
    return {
        "claim": told, "value": value, "unit": "ratio", "bar": f"<= {BAR}", "met": value <= BAR, "n": 1,
        "peaks_gb": {str(key): each for key, each in peaks.items()}, "options": dict(options),
    }  # fmt: skip


if __name__ == "__main__":
    main()
