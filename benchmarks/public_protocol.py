"""Our families of rewards by Robometer's protocol, on films of our own worlds: what their authors ask of their models.

Three desk tasks. Episodes (experts, noisy ones, near misses, failures, random actions) are collected from a seed that
set nothing, written as RBM-EVAL is (`train/metadata.parquet` beside the films, one front camera), and scored by
`embodied judge benchmark=rbm-ood` under the world's instruction: success, near miss and the rest are `successful`,
`suboptimal` and `failure`, and a success's film ends where the task is solved. Heads that learn are fitted before, to 5
expert episodes or to 20 mixed ones of other seeds, with the goal as a sentence where they take one (`goal_image`: the
experts' last frames); `success` tells its probability, and everything else has its defaults. Values are means over the
tasks. Not here: `calibrated` (a threshold on `clip`), `synthesis` (its terms need a robot's readings, which films have
not), and models whose weights are not here. Finished tasks are skipped.

    python -m benchmarks.public_protocol
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.common import record
from embodied.datasets import Dataset
from embodied.datasets.video import write_video

ROOT = Path("runs", "benchmarks", "public_protocol")
TASKS = {  # goal, and the opposite
    "drawer": ("the drawer is open", "the drawer is closed"),
    "press": ("the button is pressed", "the button is not pressed"),
    "place": ("the red cube is in the tray", "the red cube is on the table"),
}
SEED, EPISODES = 9000, 40
EXPERTS, MIXED = ("expert", 5, 9100), ("mixed", 20, 9200)  # policy, episodes and seed of what heads are fitted to
FITTED = {
    "demonstration": EXPERTS, "xirl": EXPERTS, "process": EXPERTS, "rapl": MIXED, "success": MIXED,
    "goal_image": MIXED, "preference": MIXED, "vpl": MIXED,
}  # fmt: skip
FAMILIES = ("clip", "contrast", "softmax", "keypoint", *FITTED)
BASELINES = {"constant": "a constant", "clock": "time alone"}
FIGURES = {
    "voc_spearman": "order along successes, Spearman",
    "voc_pearson": "order along successes, Pearson",
    "kendall_tau": "policy ranking, Kendall's tau",
    "ranking_acc": "ranking accuracy",
    "succ_fail_diff": "success less failure",
    "success_auprc": "success per frame, AUPRC",
}


def main() -> None:
    """Collect, fit, write, judge and record, task by task."""
    found = {task: judged(task) for task in TASKS}
    record("public_protocol", rows(found))


def judged(task: str) -> dict[str, Any]:
    """What `embodied judge` says of a task's rewards, by name; judged now unless it was before."""
    folder = ROOT / f"{task}-judged"
    if not (folder / "benchmark.json").is_file():
        goal, opposite = TASKS[task]
        words = [f'reward.{name}.negative="{opposite}"' for name in ("contrast", "softmax")]
        words += [f"reward.{name}.model={fitted(task, name, goal)}" for name in FITTED]
        words += ["reward.success.output=probability"]
        shutil.rmtree(folder, ignore_errors=True)
        data = films(task)
        embodied(task, "judge", "benchmark=rbm-ood", f"data={data}", f"reward=[{','.join(FAMILIES)}]", *words,
                 f"run={folder}")  # fmt: skip
    return json.loads((folder / "benchmark.json").read_text("utf-8"))


def fitted(task: str, name: str, goal: str) -> Path:
    """The folder of a fitted head."""
    folder = ROOT / f"{task}-{name}"
    if not folder.is_dir():
        words = [f'reward.goal="{goal}"'] if name in ("process", "success", "preference", "vpl") else []
        words += [f'reward.outcome.goal="{goal}"'] if name in ("demonstration", "xirl", "process", "rapl") else []
        words += [f"reward.goal_images=[{','.join(map(str, pictures(task)))}]"] if name == "goal_image" else []
        demos = collected(task, *FITTED[name])
        embodied(
            task, "fit", f"reward={name}", f"demos={demos}", "episodes=0", "cameras=[front]", *words, f"out={folder}"
        )
    return folder


def collected(task: str, policy: str, episodes: int, seed: int) -> Path:
    """A dataset's folder."""
    folder = ROOT / f"{task}-{policy}-{seed}"
    words = [f"env=desk-{task}", f"policy={policy}", f"episodes={episodes}", f"seed={seed}", "cameras=[front]"]
    embodied(task, "collect", *words, f"out={folder}")
    return folder


def pictures(task: str) -> list[Path]:
    """The experts' last frames, as pictures of the goal."""
    dataset = Dataset(collected(task, *EXPERTS))
    files = [ROOT / f"{task}-goal-{i}.png" for i in range(len(dataset))]
    for i, file in enumerate(files):
        Image.fromarray(dataset.frames(i, "front", [dataset.length(i) - 1])[0]).save(file)
    return files


def films(task: str) -> Path:
    """The judged episodes as a folder of RBM-EVAL's form."""
    root = ROOT / f"{task}-rbm"
    dataset = Dataset(collected(task, "mixed", EPISODES, SEED))
    (root / "train").mkdir(parents=True, exist_ok=True)
    table = []
    for i in range(len(dataset)):
        recording = dataset.recording(i, cameras=())
        assert recording.success is not None  # our worlds tell
        success, shown = bool(recording.success[-1]), len(recording)
        if success:  # row t's frame was there before action t, and what followed the action is on row t + 1
            shown = min(int(recording.success.argmax()) + 2, shown)
        label = "successful" if success else "suboptimal" if recording.kind == "near_miss" else "failure"
        name = f"{i:04d}.mp4"
        write_video(root / "train" / name, dataset.frames(i, "front", range(shown)), dataset.fps)
        table.append({
            "file_name": name, "task": recording.instruction, "data_source": f"desk-{task}", "quality_label": label,
        })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(table), root / "train" / "metadata.parquet")
    return root


def embodied(task: str, *words: str) -> None:
    """A command of ours, on one thread, its output in the task's log."""
    ROOT.mkdir(parents=True, exist_ok=True)
    with (ROOT / f"{task}.log").open("a") as log:
        subprocess.run(
            [sys.executable, "-m", "embodied.cli", *words],
            check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def rows(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A figure of a reward each: its mean over tasks, and every task's own."""
    episodes = sum(result["episodes"] for result in found.values())
    made = []
    for key, told in FIGURES.items():
        for name in (*FAMILIES, *BASELINES):
            figures = {task: result["rewards"][name]["figures"][key] for task, result in found.items()}
            value, interval = mean_of(list(figures.values()))
            made.append(
                {
                    "claim": f"{told}: {BASELINES.get(name, name)}",
                    "value": value,
                    "unit": "in its own unit" if key == "succ_fail_diff" else "",
                    "n": episodes,
                    "seeds": [SEED],
                    "interval": interval,
                    "figure": key,
                    "tasks": figures,
                }
            )
    return made


def mean_of(figures: Sequence[Mapping[str, float]]) -> tuple[float, list[float]]:
    """The mean of figures of disjoint episodes, and its interval from theirs.

    Distances of a mean's limits from it are the root of the sum of squares of its terms' own, over their number
    (Zou and Donner, Statistics in Medicine 27, 2008: the method of variance estimates recovery).
    """
    value, low, high = (np.array([each[name] for each in figures]) for name in ("value", "low", "high"))
    mean, count = float(value.mean()), len(figures)
    return mean, [mean - math.hypot(*(value - low)) / count, mean + math.hypot(*(high - value)) / count]


if __name__ == "__main__":
    main()
