"""What a world model saves in steps: the drawer from its sentence, points of one camera, 0.1M parameters.

`plan` is TD-MPC2. Its controls: `policy` without planning, `inconsistent` without the loss of predicted latents,
`frozen` with the dynamics as they began. `rlpd` is the default learner. All make one update a step, as the demo does,
and are judged every 500 steps on held-out starts. What is finished is not run again.

    python -m benchmarks.world_models                       # all, two at a time: 5 to 30 minutes a run on a quiet core
    python -m benchmarks.world_models ways=plan,rlpd seeds=[0] jobs=1
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import evaluations_of, read_options, record_part, success_row, train

ROOT = Path("runs", "benchmarks", "world_models")
SEEDS = (0, 1, 2)
EPISODES, EVERY = 32, 500
REACHED = 0.9  # success of an evaluation that counts as having learned
SMALL = ["policy=tdmpc2", "steps=5000"]
WAYS = {
    "plan": SMALL,
    "policy": [*SMALL, "policy.planning=false"],
    "inconsistent": [*SMALL, "policy.consistency=0"],
    "frozen": [*SMALL, "policy.learn_dynamics=false"],
    "rlpd": ["steps=10000"],
}


@dataclass(frozen=True)
class Job:
    """One training run."""

    way: str
    seed: int

    def run(self) -> dict[str, Any]:
        """Train, unless it was done before; the last evaluation, and every one before it."""
        words = [f"seed={self.seed}", f"final_episodes={EPISODES}", "videos=1", *WAYS[self.way]]
        words += ["experiment=demo", "policy.updates_per_step=1", f"eval_every={EVERY}", "eval_episodes=16"]
        folder = ROOT / self.way / f"s{self.seed}"
        result = train(folder, words)
        lines = evaluations_of(folder)
        observation = json.loads((folder / "run.json").read_text())["observation"]
        curve = {line["steps"]: line["success_rate"] for line in lines}
        return result | {"curve": curve, "observation": observation}


def reached(curve: dict[int, float]) -> int | None:
    """Steps at the first evaluation that counts as having learned."""
    return next((steps for steps, rate in sorted(curve.items()) if rate >= REACHED), None)


def rows(results: dict[Job, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a way, of the seeds that are there; the claims once all of a claim's are."""
    table: list[dict[str, Any]] = []
    steps: dict[str, list[int | None]] = {}
    for way in WAYS:
        done = {job.seed: result for job, result in sorted(results.items(), key=lambda each: each[0].seed)
                if job.way == way}  # fmt: skip
        if not done:
            continue
        seen = next(iter(done.values()))["observation"]
        row = success_row(f"{way}, observation {seen}: success at the end", done, EPISODES)
        row["curves"] = [done[seed]["curve"] for seed in sorted(done)]
        limits = [result["force_limit_passed"] + result["torque_limit_passed"] for result in done.values()]
        table.append(row | {"limits_passed": float(np.mean(limits))})
        if len(done) == len(SEEDS):
            steps[way] = [reached(result["curve"]) for result in done.values()]
    if {"plan", "policy", "rlpd"} <= steps.keys():
        table.append(_claim(steps))
    return table


def _claim(steps: dict[str, list[int | None]]) -> dict[str, Any]:
    """Steps to 90 % with plans over those of RLPD, by their medians; a way that never gets there counts as twice its
    steps."""
    longest = {"plan": 10_000, "policy": 10_000, "rlpd": 20_000}
    medians = {way: float(np.median([s or longest[way] for s in steps[way]])) for way in longest}
    ratio, control = medians["plan"] / medians["rlpd"], medians["policy"] / medians["rlpd"]
    return {
        "claim": f"drawer: steps to {REACHED:.0%} with plans over RLPD's; control, planning off: {control:.2f}",
        "value": ratio,
        "unit": "ratio",
        "bar": "<= 0.5 < control",
        "met": ratio <= 0.5 < control,
        "seeds": list(SEEDS),
        "steps": steps,
    }


def main() -> None:
    """Run what is missing, some at a time, recording after every run."""
    options = read_options({"jobs": 2, "ways": "", "seeds": list(SEEDS), "record": True})
    wanted = [way.strip() for way in options["ways"].split(",") if way.strip()] or list(WAYS)
    jobs = [Job(way, seed) for seed in options["seeds"] for way in wanted]
    results: dict[Job, dict[str, Any]] = {}
    with ThreadPoolExecutor(options["jobs"]) as pool:
        running = {pool.submit(job.run): job for job in jobs}
        for future in as_completed(running):
            results[running[future]] = future.result()
            for row in rows(results):
                print(f"{row['claim']}: {row['value']:.3g} {row['unit']}", flush=True)
            if options["record"]:
                record_part("world_models", rows(results))


if __name__ == "__main__":
    main()
