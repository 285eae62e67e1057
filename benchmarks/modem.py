"""MoDem-V2 from ten demonstrations, points of three cameras, and 1 while a success model says that the task is done.

`modem` is the world model with its hand-over; its controls have the same demonstrations, observation and reward: `rlpd`
is the default learner, `imitation` the demonstrations imitated alone, `calql` Cal-QL, offline on them and then online,
and `cql` the same without its floors. `free` lets its policies leave imitation once the model is warm, as the source
does. `bold` is MoDem before its second version: plans around the last plan, wide, by one policy, at once. The success
model is fitted once a task, to recorded episodes of mixed outcome, for all of them. Success is judged on held-out
starts, by the simulator's truth. Limits are actions that passed a force or torque limit of the robot, in an episode of
the last evaluation. What is finished is not run again.

    python -m benchmarks.modem                                      # all, one at a time
    python -m benchmarks.modem tasks=desk-place ways=modem,rlpd seeds=[0] steps=5000
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import evaluations_of, read_options, record_part, success_row, train, trained

ROOT = Path("runs", "benchmarks", "modem")
TASKS = {
    "desk-place": "the red cube is in the tray",
    "desk-push": "the red cube is on the yellow mark",
}
SHARED = ["env.cameras=[front,side]", "demos=10", "reward=success"]
BOLD = [
    "policy.centre=plan", "policy.first_std=2", "policy.iterations=4", "policy.ensemble=false", "policy.critics=2",
    "policy.uncertainty=0", "policy.handover=null", "policy.imitation_weight=0",
]  # fmt: skip
WAYS = {
    "modem": ["policy=modem"],
    "rlpd": ["policy=rlpd"],
    "imitation": ["policy=imitation"],
    "calql": ["policy=calql"],
    "cql": ["policy=calql", "policy.calibrated=false"],
    "free": ["policy=modem", "policy.imitation_weight=0"],
    "bold": ["policy=modem", *BOLD],
}
EPISODES, EVALUATED = 64, 16
OPTIONS: dict[str, Any] = {
    "tasks": ",".join(TASKS),
    "ways": ",".join(WAYS),
    "seeds": [0, 1, 2],
    "steps": 10_000,
    "every": 2500,
    "record": True,
}


@dataclass(frozen=True)
class Job:
    """One training run."""

    task: str
    way: str
    seed: int
    steps: int

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return ROOT / self.task / f"{self.way}-n{self.steps}-s{self.seed}"

    def run(self, every: int) -> dict[str, Any]:
        """Train, unless it was done before; the last evaluation, with those before it."""
        words = [f"env={self.task}", *SHARED, f'reward.goal="{TASKS[self.task]}"']
        words += [f"reward.model={detector(self.task)}"]
        words += [*WAYS[self.way], f"seed={self.seed}", f"final_episodes={EPISODES}", f"eval_episodes={EVALUATED}"]
        learns = self.way != "imitation"
        words += [f"steps={self.steps if learns else 8}", f"eval_every={every if learns else 0}", "videos=3"]
        return train(self.folder, words) | self.told()

    def told(self) -> dict[str, Any]:
        """What the policy saw, and success along training."""
        lines = evaluations_of(self.folder)
        curve = {line["steps"]: line["success_rate"] for line in lines if not line.get("final")}
        return {"curve": curve, "observation": json.loads((self.folder / "run.json").read_text("utf-8"))["observation"]}


def detector(task: str) -> Path:
    """The task's success model, fitted now unless it was before."""
    folder = ROOT / f"{task}-success"
    if not folder.exists():
        words = ["reward=success", f'reward.goal="{TASKS[task]}"', f"demos=[{task}-mixed]", "episodes=0"]
        words += ["cameras=[front,side]", f"out={folder}"]
        subprocess.run([sys.executable, "-m", "embodied.cli", "fit", *words], check=True)
    return folder


def rows(results: Mapping[Job, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a task, length and way, and what they say once a task's ways are there."""
    table: list[dict[str, Any]] = []
    for task, steps in sorted({(job.task, job.steps) for job in results}):
        found: dict[str, dict[int, Mapping[str, Any]]] = {}
        for job, result in sorted(results.items(), key=lambda each: each[0].seed):
            if (job.task, job.steps) == (task, steps):
                found.setdefault(job.way, {})[job.seed] = result
        table += [_row(f"{task}, {way}, {steps:,} steps", found[way]) for way in WAYS if way in found]
        table += _claims(task, steps, found)
    return table


def _row(what: str, done: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    seen = next(iter(done.values()))["observation"]
    return success_row(f"{what}, observation {seen}: success at the end", done, EPISODES) | {
        "limits_passed": [limits(done[seed]) for seed in sorted(done)],
        "curves": [done[seed]["curve"] for seed in sorted(done)],
    }


def limits(result: Mapping[str, Any]) -> float:
    """Actions of an episode that passed a limit of the robot, on average."""
    return float(result["force_limit_passed"] + result["torque_limit_passed"])


def _claims(task: str, steps: int, found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Over the seeds that each pair has; one that imitation alone meets says so."""

    def means(*ways: str) -> tuple[list[int], list[float], list[float]]:
        seeds = sorted(set.intersection(*(set(found.get(way, {})) for way in ways)))
        each = [[found[way][seed] for seed in seeds] for way in ways] if seeds else []
        rates = [float(np.mean([result["success_rate"] for result in part])) for part in each]
        return seeds, rates, [float(np.mean([limits(result) for result in part])) for part in each]

    table: list[dict[str, Any]] = []
    seeds, rates, _ = means("modem", "rlpd", "imitation")
    if seeds:
        claim = f"{task}, {steps:,} steps: MoDem's success less RLPD's; MoDem's less imitation's alone: "
        table.append(
            {"claim": f"{claim}{rates[0] - rates[2]:+.2f}", "value": rates[0] - rates[1], "unit": "share",
             "bar": ">= 0", "met": rates[0] >= rates[1], "seeds": seeds}
        )  # fmt: skip
    seeds, rates, passed = means("modem", "bold")
    if seeds:
        claim = f"{task}, {steps:,} steps: limits passed over those of MoDem before its second version"
        claim += f"; success {rates[0]:.2f} against {rates[1]:.2f}"
        met = passed[0] <= 0.5 * passed[1] and rates[0] >= rates[1]
        table.append(
            {"claim": claim, "value": passed[0] / max(passed[1], 1e-9), "unit": "ratio",
             "bar": "<= 0.5, no less success", "met": met, "seeds": seeds}
        )  # fmt: skip
    return table


def main() -> None:
    """Run what is missing, seed by seed, recording after every run."""
    options = read_options(OPTIONS)
    tasks, ways = (options[name].split(",") for name in ("tasks", "ways"))
    steps, seeds = options["steps"], options["seeds"]
    every = [Job(task, way, seed, steps) for task in TASKS for seed in seeds for way in WAYS]
    results = {job: _earlier(job) for job in every if trained(job.folder) is not None}
    for job in every:
        if job.task in tasks and job.way in ways:
            results[job] = job.run(options["every"])
            print(f"{job}: success {results[job]['success_rate']:.2f}", flush=True)
            if options["record"]:
                record_part("modem", rows(results))


def _earlier(job: Job) -> dict[str, Any]:
    """The last evaluation of a run that was done before."""
    return (trained(job.folder) or {}) | job.told()


if __name__ == "__main__":
    main()
