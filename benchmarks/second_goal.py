"""A second goal from what the first one saw: steps to 90 % with an earlier run's experience, over those from nothing.

The drawer and the button, RLPD with its defaults, one camera, points of all that either sentence names. `scratch`
learns one of them from nothing; `again` learns it with the experience of the other's `scratch`, paid by its own
sentence, no frame encoded again. `busier` is the control: from nothing, in as many steps with three updates a step.
Judged every 250 steps on held-out starts, the drawer from nothing every 500. What is finished is not run again.

    python -m benchmarks.second_goal                         # all, one at a time: 3 to 10 minutes a run
    python -m benchmarks.second_goal 'seeds=[1]' 'goals=["desk-press"]'
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import evaluations_of, read_options, record_part, train
from benchmarks.world_models import REACHED, reached

ROOT = Path("runs", "benchmarks", "second_goal")
SEEDS = (1, 2, 3)  # 0, 5 and 6 chose how experience is used
GOALS = {"desk-drawer": "the drawer is open", "desk-press": "the button is pressed"}
OTHER = {"desk-drawer": "desk-press", "desk-press": "desk-drawer"}
POINTS = "env.points=[the drawer,the button,the gripper]"
WAYS = {  # steps of each goal
    "scratch": {"desk-drawer": 8_000, "desk-press": 4_000},
    "again": {"desk-drawer": 3_000, "desk-press": 1_500},
    "busier": {"desk-drawer": 3_000, "desk-press": 1_500},
}


@dataclass(frozen=True)
class Job:
    """One training run."""

    env: str
    way: str
    seed: int

    @property
    def folder(self) -> Path:
        return ROOT / self.env / f"{self.way}-s{self.seed}"

    def run(self) -> dict[str, Any]:
        """Train, unless it was done before; the last evaluation, and every one before it."""
        steps = WAYS[self.way][self.env]
        every = 500 if steps > 4_000 else 250
        words = [f"env={self.env}", f'reward.goal="{GOALS[self.env]}"', POINTS, f"seed={self.seed}"]
        words += [f"steps={steps}", f"eval_every={every}", "eval_episodes=16", "final_episodes=32"]
        if self.way == "again":
            words.append(f"experience={Job(OTHER[self.env], 'scratch', self.seed).folder}")
        elif self.way == "busier":
            words.append("policy.updates_per_step=3")
        result = train(self.folder, words)
        lines = evaluations_of(self.folder)
        return result | {"curve": {line["steps"]: line["success_rate"] for line in lines}}


def rows(results: dict[Job, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a goal and way, with every seed's steps and curve; a claim a goal once all of its runs are there."""
    table: list[dict[str, Any]] = []
    for env in GOALS:
        medians: dict[str, float] = {}
        for way, longest in WAYS.items():
            done = {job.seed: results[job] for job in results if (job.env, job.way) == (env, way)}
            if not done:
                continue
            steps = [reached(done[seed]["curve"]) for seed in sorted(done)]
            counted = [2 * longest[env] if each is None else each for each in steps]
            claim = f"{env}, {way}, observation points: steps to {REACHED:.0%}, median"
            curves = [done[seed]["curve"] for seed in sorted(done)]
            row = {"claim": claim, "value": float(np.median(counted)), "unit": "steps", "seeds": sorted(done)}
            table.append(row | {"steps": steps, "curves": curves})
            at = WAYS["again"][env]
            rates = [next(rate for step, rate in sorted(curve.items()) if step >= at) for curve in curves]
            claim = f"{env}, {way}, observation points: success after {at:,} steps"
            told = {"claim": claim, "value": float(np.mean(rates)), "unit": "share", "by_seed": rates}
            each = 16 if way == "scratch" else 32  # these end there
            table.append(told | {"seeds": sorted(done), "n": each * len(rates)})
            if set(done) >= set(SEEDS):
                medians[way] = row["value"]
        if len(medians) == len(WAYS):
            ratio, control = (medians[way] / medians["scratch"] for way in ("again", "busier"))
            told = f"{env} with the experience of {OTHER[env]}: steps to {REACHED:.0%} over those from nothing"
            claim = {"claim": f"{told}; control, three updates a step from nothing: {control:.2f}", "value": ratio}
            claim |= {"unit": "ratio", "bar": "<= 0.5 < control", "met": ratio <= 0.5 < control, "seeds": list(SEEDS)}
            table.append(claim)
    return table


def main() -> None:
    """Run what is missing, recording after every run."""
    options = read_options({"goals": list(GOALS), "ways": list(WAYS), "seeds": list(SEEDS), "record": True})
    results: dict[Job, dict[str, Any]] = {}
    for seed in options["seeds"]:
        first = [Job(env, "scratch", seed) for env in GOALS if "scratch" in options["ways"]]
        then = [Job(env, way, seed) for way in options["ways"] if way != "scratch" for env in options["goals"]]
        for job in (*first, *then):
            results[job] = job.run()
            print(f"{job}: {reached(results[job]['curve'])} steps", flush=True)
            if options["record"]:
                record_part("second_goal", rows(results))


if __name__ == "__main__":
    main()
