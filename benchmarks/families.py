"""Policies from every family of rewards, beside the task's own reward and its success alone, in equal steps.

Every reward has its defaults: texts from the captions, five demonstrations of the scripted expert, the front camera.
`shaped` is the sparse success plus differences of the process reward's potential. Success is judged on 50 held-out
episodes at the last step of training. Runs are kept in runs/benchmarks/families and skipped when they are finished.

    python -m benchmarks.families jobs=2
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import read_options, record, train
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
        """Train, unless it was done before; the last evaluation."""
        goal = [f'reward.goal="{GOALS[self.env]}"'] if self.reward == "clip" else []
        settings = [f"env={self.env}", *REWARDS[self.reward], *goal, f"seed={self.seed}", f"steps={STEPS}"]
        return train(ROOT / self.env / f"{self.reward}-s{self.seed}", [*settings, "videos=1", "eval_every=0"])


def rows(results: dict[Job, dict[str, Any]]) -> list[dict[str, Any]]:
    """Success of each reward on each task over the seeds that are there, and the three claims once all are."""
    table, means = [], {}
    for env in GOALS:
        for reward in REWARDS:
            found = [(seed, results[Job(env, reward, seed)]) for seed in SEEDS if Job(env, reward, seed) in results]
            if not found:
                continue
            rates = [result["success_rate"] for _, result in found]
            episodes = sum(result["episodes"] for _, result in found)
            solved = round(sum(result["success_rate"] * result["episodes"] for _, result in found))
            if len(found) == len(SEEDS):
                means[env, reward] = float(np.mean(rates))
            table.append(
                {
                    "claim": f"{env}: success after {STEPS} steps on {reward}",
                    "value": float(np.mean(rates)),
                    "unit": "share",
                    "n": episodes,
                    "seeds": [seed for seed, _ in found],
                    "success": rates,
                    "interval": wilson_interval(solved, episodes),
                }
            )
    for env in GOALS:
        if {(env, reward) for reward in REWARDS} <= means.keys():
            best = max(FAMILIES, key=lambda reward, env=env: means[env, reward])
            table.append(
                {
                    "claim": f"{env}: the best family ({best}) against the task's own reward",
                    "value": means[env, best] / means[env, "true"] if means[env, "true"] else 0.0,
                    "unit": "ratio",
                    "bar": ">= 0.9",
                    "met": means[env, best] >= 0.9 * means[env, "true"] > 0,
                    "seeds": list(SEEDS),
                }
            )
            table.append(
                {
                    "claim": f"{env}: sparse success with process shaping, less without it",
                    "value": means[env, "shaped"] - means[env, "sparse"],
                    "unit": "share",
                    "bar": ">= 0",
                    "met": means[env, "shaped"] >= means[env, "sparse"],
                    "seeds": list(SEEDS),
                }
            )
    return table


def main() -> None:
    """Run what is missing, some at a time, recording after every run."""
    jobs_at_once = read_options({"jobs": 2})["jobs"]
    jobs = [Job(env, reward, seed) for env in GOALS for seed in SEEDS for reward in REWARDS]
    results: dict[Job, dict[str, Any]] = {}
    with ThreadPoolExecutor(jobs_at_once) as pool:
        futures = {pool.submit(job.run): job for job in jobs}
        for future in as_completed(futures):
            job = futures[future]
            results[job] = future.result()
            print(f"{job}: success {results[job]['success_rate']:.2f}", flush=True)
            record("families", rows(results))


if __name__ == "__main__":
    main()
