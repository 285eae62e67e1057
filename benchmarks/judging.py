"""Every family of rewards on desk tasks, judged before anyone trains: order along success both ways, and outcome.

Each task's episodes (experts, noisy ones, near misses, failures, random actions) are collected anew, from a seed that
set nothing, and `embodied judge` scores all families on them with their defaults and five demonstrations of the
scripted expert. A task's best family is the one whose least figure is highest; it is found on the episodes that it is
reported on, so `families` keeps the figures of all. Finished tasks are skipped, results written after each.

    python -m benchmarks.judging
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import record

ROOT = Path("runs", "benchmarks", "judging")
GOALS = {
    "drawer": "the drawer is open",
    "press": "the button is pressed",
    "place": "the red cube is in the tray",
    "close": "the drawer is closed",
}
FAMILIES = ("clip", "demonstration", "process", "success", "keypoint")
SEED, EPISODES = 7000, 60
FIGURES = {"voc": "order along success", "voc_reversed": "the same, shown backwards", "auroc": "success by its end"}
BAR = 0.95


def main() -> None:
    """Collect, judge and record, task by task."""
    found: dict[str, dict[str, Any]] = {}
    for task in GOALS:
        found[task] = judged(task)
        made = rows(found)
        record("judging", made)
        for row in made[-len(FIGURES) - 1 : -1]:
            print(f"{row['claim']}: {row['value']:.3f}", flush=True)


def judged(task: str) -> dict[str, Any]:
    """What `embodied judge` says of a task's rewards, by name; judged now unless it was before."""
    data, folder = ROOT / f"{task}-data", ROOT / task
    if not (folder / "report.html").is_file():  # the last thing that is written
        embodied(task, "collect", f"env=desk-{task}", "policy=mixed", f"episodes={EPISODES}", f"seed={SEED}", out=data)
        shutil.rmtree(folder, ignore_errors=True)
        rewards = [f"reward=[{','.join(FAMILIES)}]", f'reward.clip.goal="{GOALS[task]}"', "reward.keypoint.demos=5"]
        embodied(task, "judge", *rewards, f"data={data}", run=folder)
    return json.loads((folder / "judgement.json").read_text("utf-8"))["rewards"]


def embodied(task: str, *words: str, **folder: Path) -> None:
    """A command of ours, on one thread, its output in the task's log."""
    ROOT.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "embodied.cli", *words, *(f"{key}={value}" for key, value in folder.items())]
    with (ROOT / f"{task}.log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def rows(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The best family's figures on each task, and on how many tasks all of them meet the bar."""
    table, passed = [], []
    for task, rewards in found.items():
        figures = {name: {key: rewards[name]["figures"][key] for key in FIGURES} for name in FAMILIES}
        values = {name: {key: number(each[key]["value"]) for key in FIGURES} for name, each in figures.items()}
        best = max(FAMILIES, key=lambda name: min(values[name].values()))
        if min(values[best].values()) >= BAR:
            passed.append(task)
        for key, told in FIGURES.items():
            figure = figures[best][key]
            table.append(
                {
                    "claim": f"desk-{task}: {told}, best family ({best})",
                    "value": values[best][key],
                    "unit": "AUROC" if key == "auroc" else "correlation",
                    "bar": f">= {BAR}",
                    "met": values[best][key] >= BAR,
                    "n": len(rewards[best]["potentials"]),
                    "seeds": [SEED],
                    "interval": [figure["low"], figure["high"]],
                    "families": {name: each[key] for name, each in values.items()},
                    "canary_gains": {n: c["gain"]["value"] for n, c in rewards[best]["canaries"].items()},
                }
            )
    return [
        *table,
        {
            "claim": "Desk tasks whose best family (found on them) meets every bar: order both ways and outcome",
            "value": len(passed),
            "unit": "tasks",
            "bar": ">= 4",
            "met": len(passed) >= 4,
            "n": len(found),
            "seeds": [SEED],
            "tasks": passed,
        },
    ]


def number(value: float | None) -> float:
    """A figure; one that is undefined is the worst."""
    return -1.0 if value is None else value


if __name__ == "__main__":
    main()
