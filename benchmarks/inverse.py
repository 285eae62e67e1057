"""Films without actions: an inverse model taught on 2,000 free steps labels ten of them, and they are imitated.

Free steps are random actions (`embodied collect policy=random`), 40 episodes of 50 steps; `hold` says for how many
steps each action is repeated, at most. Films are ten expert episodes whose actions are taken out of the files before
`embodied actions` sees them. `pictures` reads the front and the wrist camera alone, `state` own readings alone.
Inferred actions are held against the true ones, then imitated (`embodied finetune`: chunks of actions, from the same
two cameras and own readings; all ten episodes, 1,000 updates) beside the true ones and, the control of `pictures`,
beside the inferred ones shuffled in time within each episode. Success is that at the end of held-out episodes.
Settings were chosen on the drawer, on films and play of another seed (100); that `finetune` imitates, after imitation
by points had taught too little on seed 0 (docs/log.md). What is finished is not run again.

    python -m benchmarks.inverse
    python -m benchmarks.inverse only=desk-drawer seeds=[0] reads=pictures
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import read_options, record_part, success_row
from embodied.datasets import Dataset, layout
from embodied.datasets.columns import with_columns
from embodied.datasets.windows import ACTION
from policies.inverse import r_squared

ROOT = Path("runs", "benchmarks", "inverse")
SEEDS = (0, 1, 2)
EPISODES = 64
UPDATES = 1000
PLAY, FILMS = 40, 10  # episodes of 50 steps
HOLD = 5
CAMERAS = ("front", "wrist")
ENVS = ("desk-drawer", "desk-press")
READS = ("pictures", "state")
CONTROLLED = "shuffled"
KNOWN, KEPT, CONTROL = 0.8, 0.85, 0.2  # bars: R², success by true actions, success of the control


def strip(root: Path, out: Path) -> None:
    """A v3 dataset as a person would film it: without its actions, in no file of it.

    Args:
        root: of the dataset.
        out: a new folder.
    """
    shutil.copytree(root, out)
    for file in (out / "data").glob("*/*.parquet"):
        groups = [pq.ParquetFile(file).read_row_group(k) for k in range(pq.read_metadata(file).num_row_groups)]
        groups = [group.drop_columns([ACTION]) for group in groups]
        with pq.ParquetWriter(file, groups[0].schema) as writer:
            for group in groups:
                writer.write_table(group)
    meta = out / "meta"
    for file in (meta / layout.EPISODES).glob("*/*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.drop_columns([n for n in table.column_names if n.startswith(f"stats/{ACTION}/")]), file)
    for name in (layout.INFO, layout.STATS):
        about = json.loads((meta / name).read_text("utf-8"))
        (about["features"] if name == layout.INFO else about).pop(ACTION)
        (meta / name).write_text(json.dumps(about, indent=2), "utf-8")


def shuffled(dataset: Dataset, out: Path, seed: int) -> None:
    """The same with every episode's actions in another order.

    Args:
        dataset: with actions.
        out: a new folder.
        seed: of the orders.
    """
    part = out.with_name(f".{out.name}.part")
    orders = [np.random.default_rng((seed, i)).permutation(dataset.length(i)) for i in range(len(dataset))]
    feature = {ACTION: dataset.features[ACTION]}
    with_columns(dataset, part, feature, lambda i: {ACTION: actions(dataset, i)[orders[i]]}, {})
    part.rename(out)


def actions(dataset: Dataset, i: int) -> np.ndarray:
    """(T, A) of an episode."""
    return dataset.recording(i, cameras=()).actions


def embodied(folder: Path, verb: str, *words: str) -> None:
    """Run a verb whose `out` is a folder, unless it was done before; what it says is kept beside that."""
    if folder.exists():
        return
    part = folder.with_name(f"{folder.name}-part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        command = [sys.executable, "-m", "embodied.cli", verb, *words, f"out={part}"]
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    part.rename(folder)


def measure(env: str, seed: int, reads: Sequence[str], hold: int) -> dict[str, dict[str, Any]]:
    """What is read -> R² on the films' true actions, and the last evaluation of each way of imitating."""
    root = ROOT / env / f"hold{hold}-s{seed}"
    cameras = f"cameras=[{','.join(CAMERAS)}]"
    # Other seeds than those of evaluation and of each other.
    embodied(root / "true", "collect", f"env={env}", "policy=expert", f"episodes={FILMS}", cameras, f"seed={seed}")
    embodied(root / "play", "collect", f"env={env}", "policy=random", f"episodes={PLAY}", cameras, f"hold={hold}",
             f"seed={1000 + seed}")  # fmt: skip
    if not (root / "films").exists():
        strip(root / "true", root / "films")
    true = Dataset(root / "true")
    found: dict[str, dict[str, Any]] = {}
    for read in reads:
        folder = root / f"acted-{read}"
        embodied(folder, "actions", f"data={root / 'films'}", f"play={root / 'play'}", f"read={read}", "least=null",
                 f"seed={seed}")  # fmt: skip
        inferred, ways = Dataset(folder), {"true": "true", read: f"acted-{read}"}
        if read == READS[0]:
            ways[CONTROLLED] = f"shuffled-{read}"
            if not (root / ways[CONTROLLED]).exists():
                shuffled(inferred, root / ways[CONTROLLED], seed)
        said, done = (np.concatenate([actions(each, i) for i in range(FILMS)]) for each in (inferred, true))
        told = json.loads((folder / "meta" / layout.OWN).read_text("utf-8"))["actions"]
        found[read] = {
            "r_squared": r_squared(said, done), "told": told,
            "entries": [r_squared(said[:, [k]], done[:, [k]]) for k in range(done.shape[1])],
            "success": {way: imitated(root / "imitated" / way, seed, root / data) for way, data in ways.items()},
        }  # fmt: skip
    return found


def imitated(folder: Path, seed: int, demos: Path) -> dict[str, Any]:
    """The success of imitating all of some episodes in the world that they are of, unless it was measured before."""
    file = folder / "imitate" / "episodes.json"
    if not file.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        words = [
            f"data={demos}", f"seed={seed}", "labels.source=all", "labels.weights=uniform", "validation=0",
            "baseline=false", "execute=4", f"steps={UPDATES}", f"eval_episodes={EPISODES}", "videos=1", f"run={folder}",
        ]  # fmt: skip
        with folder.with_suffix(".log").open("w") as log:
            command = [sys.executable, "-m", "embodied.cli", "finetune", *words]
            subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    ended = [bool(each["success"]) for each in json.loads(file.read_text("utf-8"))]
    return {"success_rate": sum(ended) / len(ended)}


def rows(results: Mapping[tuple[str, int], Mapping[str, Any]], hold: int) -> list[dict[str, Any]]:
    """Rows of each task and of what was read: R², success each way, and the ratio with its control."""
    table: list[dict[str, Any]] = []
    play = "random actions" if hold == 1 else f"random actions, each held for 1 to {hold} steps"
    for env in ENVS:
        for read in READS:
            found = {seed: each[read] for (task, seed), each in sorted(results.items()) if task == env and read in each}
            if found:
                table += _rows(f"{env}, {read}", found, play, read)
    return table


def _rows(about: str, found: Mapping[int, Mapping[str, Any]], play: str, read: str) -> list[dict[str, Any]]:
    known = [each["r_squared"] for each in found.values()]
    row = {
        "claim": f"{about}: R² of inferred actions on the films' true ones, never seen; play: 2,000 steps of {play}",
        "value": float(np.mean(known)), "unit": "R²", "bar": f">= {KNOWN}", "met": float(np.mean(known)) >= KNOWN,
        "n": FILMS * len(found), "seeds": list(found), "by_seed": known, "play": play,
        "by_entry": np.mean([each["entries"] for each in found.values()], 0).tolist(),
        "held_out_play": [each["told"]["held_out_r_squared"] for each in found.values()],
        "outside_share": [each["told"]["outside_share"] for each in found.values()],
    }  # fmt: skip
    table, means = [row], {}
    words = {"true": "the true actions", read: "inferred actions", CONTROLLED: "inferred actions shuffled in time"}
    for way in next(iter(found.values()))["success"]:
        done = {seed: each["success"][way] for seed, each in found.items()}
        each = success_row(f"{about}: success of imitating ten episodes, {words[way]}", done, EPISODES)
        table.append(each | {"play": play})
        means[way] = each["value"]
    ratio, control = means[read] / max(means["true"], 1e-9), means.get(CONTROLLED)
    told = "" if control is None else f"; control, shuffled in time: {control:.2f}"
    held = "" if control is None else f", control <= {CONTROL}"
    return [
        *table,
        {
            "claim": f"{about}: imitation by inferred actions against the true ones{told}",
            "value": ratio, "unit": "ratio", "bar": f">= {KEPT}{held}", "seeds": list(found), "play": play,
            "met": means["true"] > 0 and ratio >= KEPT and (control or 0.0) <= CONTROL,
        },
    ]  # fmt: skip


def main() -> None:
    """Measure what is missing, recording after every task and seed."""
    options = read_options({"only": "", "seeds": list(SEEDS), "reads": "", "hold": HOLD, "record": True})
    envs = [env for env in ENVS if not options["only"] or env in options["only"].split(",")]
    reads = [read for read in READS if not options["reads"] or read in options["reads"].split(",")]
    results: dict[tuple[str, int], dict[str, Any]] = {}
    for env in envs:
        for seed in options["seeds"]:
            results[env, seed] = measure(env, seed, reads, options["hold"])
            measured = rows(results, options["hold"])
            for row in measured:
                print(f"{row['value']:.3f} {row['unit']:6} {row['claim']}", flush=True)
            if options["record"]:
                record_part("inverse", measured)


if __name__ == "__main__":
    main()
