"""Policies from rewards of several families, beside the task's own reward, from what a robot has.

Every reward and the learner (RLPD, points of one camera) have their defaults; rewards that want demonstrations get five
of the scripted expert and are held to what the goal's text says. `true` and `clip` are the runs of
`benchmarks.learners`. Success is judged on 64 held-out episodes at the last step of training. What is finished is not
run again. `families_*_earlier` are of SAC that read the simulator's state, and of rewards that were not held to the
outcome.

    python -m benchmarks.families                             # 45 runs of three to six minutes, two at a time
    python -m benchmarks.families tasks=["desk-press"] rewards=["process"] jobs=1
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import learners
from benchmarks.common import load, read_options, record_part, train, trained
from benchmarks.learners import EPISODES, SEEDS, SENTENCES, STEPS
from rewards.metrics import wilson_interval

ROOT = Path("runs", "benchmarks", "families")
FITTED: dict[str, list[str]] = {
    "process": ["reward=process"],
    "demonstration": ["reward=demonstration"],
    "keypoint": ["reward=keypoint", "reward.demos=5"],
}
LEARNERS = {"true": "true", "clip": "sentence"}  # what benchmarks.learners calls them
REWARDS = (*LEARNERS, *FITTED)
BAR = 0.8  # of the success on the task's own reward


@dataclass(frozen=True)
class Job:
    """One training run."""

    env: str
    reward: str
    seed: int

    @property
    def folder(self) -> Path:
        if self.reward in LEARNERS:
            return learners.Job(self.env, LEARNERS[self.reward], self.seed).folder
        return ROOT / self.env / f"{self.reward}-s{self.seed}"

    def run(self) -> dict[str, Any]:
        """Train, unless it was done before; the last evaluation."""
        if self.reward in LEARNERS:
            return learners.Job(self.env, LEARNERS[self.reward], self.seed).run()
        words = [f"env={self.env}", *FITTED[self.reward], f"seed={self.seed}", f"steps={STEPS}"]
        return train(self.folder, [*words, f"final_episodes={EPISODES}", "videos=1", "eval_every=0"])


def measured() -> dict[Job, dict[str, Any]]:
    """What `benchmarks.learners` recorded of the same runs."""
    said = {row["claim"]: row for row in load() if row["benchmark"] == "learners"}
    found: dict[Job, dict[str, Any]] = {}
    for env in SENTENCES:
        for reward, way in LEARNERS.items():
            row = said.get(f"{env}, {way}, observation points: success at the end", {"seeds": [], "by_seed": []})
            rates = zip(row["seeds"], row["by_seed"], strict=True)
            found |= {Job(env, reward, seed): {"success_rate": rate} for seed, rate in rates}
    return found


def rows(env: str, results: dict[Job, dict[str, Any]]) -> list[dict[str, Any]]:
    """Success of each reward on a task over the seeds that are there; the claims once all of their seeds are."""
    table: list[dict[str, Any]] = []
    means: dict[str, float] = {}
    for reward in REWARDS:
        rates = {seed: results[Job(env, reward, seed)]["success_rate"] for seed in SEEDS
                 if Job(env, reward, seed) in results}  # fmt: skip
        if not rates:
            continue
        mean, episodes = float(np.mean(list(rates.values()))), EPISODES * len(rates)
        if len(rates) == len(SEEDS):
            means[reward] = mean
        table.append(
            {
                "claim": f"{env}, points: success after {STEPS:,} steps on {reward}",
                "value": mean,
                "unit": "share",
                "n": episodes,
                "seeds": list(rates),
                "interval": wilson_interval(round(mean * episodes), episodes),
                "by_seed": list(rates.values()),
            }
        )
    for reward in FITTED:
        if {"true", reward} <= means.keys():
            ratio = means[reward] / max(means["true"], 1e-9)
            table.append(
                {
                    "claim": f"{env}, points: {reward} against the task's own reward",
                    "value": ratio,
                    "unit": "ratio",
                    "bar": f">= {BAR}",
                    "met": ratio >= BAR and means["true"] > 0,
                    "seeds": list(SEEDS),
                }
            )
    return table


def main() -> None:
    """Run what is missing, some at a time, task after task, recording after every run."""
    options = read_options({"jobs": 2, "tasks": list(SENTENCES), "rewards": list(REWARDS)})
    for key, known in (("tasks", SENTENCES), ("rewards", REWARDS)):
        if unknown := set(options[key]) - set(known):
            raise SystemExit(f"{key} must be among {', '.join(known)}; got {', '.join(unknown)}.")
    every = [Job(env, reward, seed) for env in SENTENCES for seed in SEEDS for reward in REWARDS]
    results = measured() | {job: job.run() for job in every if trained(job.folder) is not None}  # what was done before
    jobs = [
        job
        for job in every
        if job.env in options["tasks"]
        and job.reward in options["rewards"]
        and (job.reward in FITTED or job not in results)
    ]
    with ThreadPoolExecutor(options["jobs"]) as pool:
        futures = {pool.submit(job.run): job for job in jobs}
        for future in as_completed(futures):
            job = futures[future]
            results[job] = future.result()
            print(f"{job}: success {results[job]['success_rate']:.2f}", flush=True)
            record_part(f"families_{job.env.removeprefix('desk-')}", rows(job.env, results))


if __name__ == "__main__":
    main()
