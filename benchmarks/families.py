"""Policies from every family of rewards, beside the task's own reward and its success alone, in equal steps.

Every reward has its defaults: texts from the captions, five demonstrations of the scripted expert, the front camera.
`shaped` is the sparse success plus differences of the process reward's potential. Success is judged on 50 held-out
episodes at the last step of training. What is recorded is not run again, on whatever machine it was; each run says
where and of which commit. To measure all anew, remove benchmarks/results/families_*.json and runs/benchmarks/families.

    python -m benchmarks.families                             # 63 runs of three to six minutes, two at a time
    python -m benchmarks.families tasks=["desk-press"] jobs=1
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, read_options, record, train
from rewards.metrics import wilson_interval

ROOT = Path("runs", "benchmarks", "families")
SEEDS = (20, 21, 22)
STEPS = 10_000
GOALS = {
    "desk-drawer": "the drawer is open",
    "desk-press": "the button is pressed",
    "desk-close": "the drawer is closed",
}
SPARSE = ["sparse=true", "env_weight=1"]
REWARDS: dict[str, list[str]] = {
    "true": ["reward=true"],
    "sparse": ["reward=true", "sparse=true"],
    "clip": ["reward=clip"],
    "keypoint": ["reward=keypoint", "reward.demos=5"],
    "demonstration": ["reward=demonstration"],
    "process": ["reward=process"],
    "shaped": ["reward=process", "reward.shaping.kind=difference", "reward.shaping.success_bonus=0", *SPARSE],
}
FAMILIES = ("clip", "keypoint", "demonstration", "process")


@dataclass(frozen=True)
class Job:
    """One training run."""

    env: str
    reward: str
    seed: int

    def run(self) -> dict[str, Any]:
        """Train, unless it was done before; its success, and where it was."""
        goal = [f'reward.goal="{GOALS[self.env]}"'] if self.reward == "clip" else []
        settings = [
            f"env={self.env}",
            "env.obs=state",
            "policy=sac",
            *REWARDS[self.reward],
            *goal,
            f"seed={self.seed}",
            f"steps={STEPS}",
        ]
        folder = ROOT / self.env / f"{self.reward}-s{self.seed}"
        result = train(folder, [*settings, "videos=1", "eval_every=0"])
        about = json.loads((folder / "run.json").read_text())
        return {
            "seed": self.seed,
            "success": result["success_rate"],
            "episodes": result["episodes"],
            "commit": about["commit"],
            "cpu": about["hardware"]["cpu"],
        }


def recorded(env: str) -> dict[Job, dict[str, Any]]:
    """The runs of a task that its results hold."""
    file = RESULTS / f"{name(env)}.json"
    rows = json.loads(file.read_text("utf-8")) if file.is_file() else []
    return {Job(env, row["reward"], run["seed"]): run for row in rows for run in row.get("runs", ())}


def name(env: str) -> str:
    """Of a task's results."""
    return f"families_{env.removeprefix('desk-')}"


def rows(env: str, results: dict[Job, dict[str, Any]]) -> list[dict[str, Any]]:
    """Success of each reward on a task over the seeds that are there, and the claims once all are."""
    table: list[dict[str, Any]] = []
    means: dict[str, float] = {}
    for reward in REWARDS:
        runs = [results[Job(env, reward, seed)] for seed in SEEDS if Job(env, reward, seed) in results]
        if not runs:
            continue
        rates = [run["success"] for run in runs]
        episodes = sum(run["episodes"] for run in runs)
        if len(runs) == len(SEEDS):
            means[reward] = float(np.mean(rates))
        table.append(
            {
                "claim": f"{env}: success after {STEPS:,} steps on {reward}",
                "value": float(np.mean(rates)),
                "unit": "share",
                "n": episodes,
                "seeds": [run["seed"] for run in runs],
                "interval": wilson_interval(round(sum(run["success"] * run["episodes"] for run in runs)), episodes),
                "reward": reward,
                "runs": runs,
            }
        )
    if len(means) == len(REWARDS):
        best = max(FAMILIES, key=lambda reward: means[reward])
        table.append(
            {
                "claim": f"{env}: the best family ({best}) against the task's own reward",
                "value": means[best] / means["true"] if means["true"] else 0.0,
                "unit": "ratio",
                "bar": ">= 0.9",
                "met": means[best] >= 0.9 * means["true"] > 0,
                "seeds": list(SEEDS),
            }
        )
        table.append(
            {
                "claim": f"{env}: sparse success with process shaping, less without it",
                "value": means["shaped"] - means["sparse"],
                "unit": "share",
                "bar": ">= 0",
                "met": means["shaped"] >= means["sparse"],
                "seeds": list(SEEDS),
            }
        )
    return table


def main() -> None:
    """Run what is missing, some at a time, task after task, recording after every run."""
    options = read_options({"jobs": 2, "tasks": list(GOALS)})
    if unknown := set(options["tasks"]) - set(GOALS):
        raise SystemExit(f"tasks must be among {', '.join(GOALS)}; got {', '.join(unknown)}.")
    results = {job: run for env in options["tasks"] for job, run in recorded(env).items()}
    jobs = [Job(env, reward, seed) for env in options["tasks"] for seed in SEEDS for reward in REWARDS]
    with ThreadPoolExecutor(options["jobs"]) as pool:
        futures = {pool.submit(job.run): job for job in jobs if job not in results}
        for future in as_completed(futures):
            job = futures[future]
            results[job] = future.result()
            print(f"{job}: success {results[job]['success']:.2f}", flush=True)
            record(name(job.env), rows(job.env, results))


if __name__ == "__main__":
    main()
