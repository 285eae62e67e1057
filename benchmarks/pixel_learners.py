"""Learners on pictures: DrQ-v2 and DrM on cart-pole from 32 px, the task's own reward; and unseen looks with SGFD.

Far smaller than their papers' sizes, so that a CPU makes the curves: these are no curves of the papers. `untrained` is
the control: the same policy before its first update. `published` leaves out the loss on actions before tanh,
`predictive` adds the predictive one. `looks` and `sgfd` train DrQ-v2 in four looks, without and with decorrelation,
and are judged in eight others. What is finished is not run again.

    python -m benchmarks.pixel_learners                    # all: 5 to 15 minutes a run
    python -m benchmarks.pixel_learners ways=drqv2,drm seeds=[0]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import evaluations_of, read_options, record_part, train, trained

ROOT = Path("runs", "benchmarks", "pixel_learners")
SEEDS, EPISODES, STEPS = (0, 1, 2), 16, 8000
UNSEEN = list(range(100, 108))
SMALL = [
    "env=cartpole", "env.obs=pixels", "env.image_size=32", "reward=true", "num_worlds=8", "policy.batch_size=64",
    "policy.hidden=[256,256]", "policy.learning_rate=0.001", "policy.gamma=0.95", "policy.learning_starts=400",
    "policy.noise_steps=4000", "policy.updates_per_step=1", "eval_every=2000", "eval_episodes=8",
    f"final_episodes={EPISODES}", "videos=1", "checkpoint_every=0",
]  # fmt: skip
WAYS = {
    "untrained": ["policy=drqv2", "steps=8"],
    "drqv2": ["policy=drqv2", f"steps={STEPS}"],
    "drm": ["policy=drm", f"steps={STEPS}", "policy.perturb_every=2000"],
    "published": ["policy=drqv2", f"steps={STEPS}", "policy.pre_activation=0"],
    "predictive": ["policy=drqv2", f"steps={STEPS}", "policy.prediction=1.0"],
    "looks": ["policy=drqv2", f"steps={STEPS}", "env.looks=4"],
    "sgfd": ["policy=drqv2", f"steps={STEPS}", "env.looks=4", "policy.looks=4"],
}
TOLD = {
    "untrained": "an untrained policy",
    "drqv2": "DrQ-v2",
    "drm": "DrM",
    "published": "DrQ-v2 without its loss before tanh",
    "predictive": "DrQ-v2 with the predictive loss",
    "looks": "DrQ-v2 trained in 4 looks",
    "sgfd": "DrQ-v2 trained in 4 looks with SGFD's weights",
}


@dataclass(frozen=True)
class Job:
    """One training run."""

    way: str
    seed: int

    @property
    def folder(self) -> Path:
        return ROOT / f"{self.way}-s{self.seed}"

    def run(self) -> dict[str, Any]:
        """Train, unless it was done before; the last evaluation, with the curve and what unseen looks gave."""
        result = train(self.folder, [*SMALL, *WAYS[self.way], f"seed={self.seed}"])
        if "env.looks=4" in WAYS[self.way] and not (self.folder / "evaluation.json").exists():
            words = [f"run={self.folder}", f"looks={UNSEEN}".replace(" ", ""), f"episodes={EPISODES}", "videos=0"]
            command = [sys.executable, "-m", "embodied.cli", "evaluate", *words]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        return self.told(result)

    def told(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """What a finished run's files say."""
        lines = evaluations_of(self.folder)
        curve = [[line["steps"], line["mean_env_reward"]] for line in lines if not line.get("final")]
        unseen = self.folder / "evaluation.json"
        others = json.loads(unseen.read_text())["mean_env_reward"] if unseen.exists() else None
        return {"return": result["mean_env_reward"], "curve": curve, "unseen": others}


def rows(results: Mapping[Job, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a way, and one more of the unseen looks."""
    table, means = [], {}
    for way in WAYS:
        done = {job.seed: result for job, result in results.items() if job.way == way}
        for key, where in (("return", ""), ("unseen", ", judged in 8 unseen looks")):
            values = [done[seed][key] for seed in sorted(done) if done[seed][key] is not None]
            if not values:
                continue
            means[way, key] = float(np.mean(values))
            row: dict[str, Any] = {
                "claim": f"cart-pole, pixels of 32 px, own reward, {TOLD[way]}{where}: return of 100 steps",
                "value": means[way, key],
                "unit": "of 100",
                "n": EPISODES * len(values),
                "seeds": sorted(done),
                "by_seed": values,
            }
            if key == "return" and way in ("drqv2", "drm") and ("untrained", "return") in means:
                bar = 1.5 * means["untrained", "return"]
                row |= {"bar": f">= {bar:.1f}, 1.5 times the untrained", "met": means[way, key] >= bar}
            if (way, key) == ("sgfd", "unseen") and ("looks", "unseen") in means:
                bar = means["looks", "unseen"]
                met = means[way, key] > bar if len(values) >= len(SEEDS) else None  # of fewer it is chance
                row |= {"bar": f"> {bar:.1f}, without the weights", "met": met}
            table.append(row | {"curves": [done[seed]["curve"] for seed in sorted(done)]})
    return table


def main() -> None:
    """Run what is missing, seed by seed, recording after every run."""
    options = read_options({"ways": ",".join(WAYS), "seeds": list(SEEDS), "record": True})
    every = [Job(way, seed) for seed in SEEDS for way in WAYS]
    results = {job: job.run() for job in every if trained(job.folder) is not None}  # what was done before
    for job in every:
        if job.way not in options["ways"].split(",") or job.seed not in options["seeds"]:
            continue
        results[job] = job.run()
        print(f"{job}: return {results[job]['return']:.1f}", flush=True)
        if options["record"]:
            record_part("pixel_learners", rows(results))


if __name__ == "__main__":
    main()
