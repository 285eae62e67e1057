"""World models among what does not matter: the cart-pole, the task's own reward, short runs.

`repo` is RePo, `drawing` the same class with reconstruction in place of the cap, `uncapped` RePo with β held where it
begins, `untaught` RePo whose β weighs what teaches its prior too, as published; `infopower` is InfoPower and
`powerless` the same without its empowerment term. Each learns in the plain world or among distractors, and is judged in
the world it learned in. `random` acts at random. What is finished is not run again.

`seen=readings`: observations are the state's five numbers, distractors 32 idle numbers beside them that swing by
themselves. `seen=pixels`: observations are pictures of 32 px, distractors a generated background that moves; then the
camera is led round the scene of the plain RePo, which is judged before and after `align`. That wants several times the
steps.

    python -m benchmarks.distractors                         # all, one at a time: 2 to 4 minutes a run
    python -m benchmarks.distractors seen=pixels seeds=[0] steps=100000
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from benchmarks.common import read_options, record_part, train, trained
from embodied.literal import load_literal
from embodied.training.aligning import RandomActor
from embodied.training.evaluation import FINAL, evaluate
from embodied.training.stage import Stage

ROOT = Path("runs", "benchmarks", "distractors")
EPISODES, ALIGN, SEEDS = 16, 1600, 3
LEARNED = 1.5  # times what random actions earn; a policy that has learned nothing has nothing to lose by a shift
READINGS, PIXELS = "readings", "pixels"
WORLD = {
    READINGS: ["env=cartpole", "env.obs=state", "reward=true"],
    PIXELS: ["env=cartpole", "env.obs=pixels", "env.image_size=32", "reward=true"],
}
TOLD = {READINGS: "the state's numbers", PIXELS: "32 px"}
SMALL = [
    "policy.length=10", "policy.horizon=8", "policy.imagined=96", "policy.learning_rate=0.001",
    "policy.behaviour_rate=0.001", "policy.learning_starts=1600", "policy.updates_per_step=0.1", "num_worlds=16",
]  # fmt: skip
WAYS = {
    "repo": ["policy=repo", "policy.beta_rate=0.05"],
    "drawing": ["policy=repo", "policy.reconstruct=true"],
    "infopower": ["policy=infopower"],
    "powerless": ["policy=infopower", "policy.empowerment=0"],
    "uncapped": ["policy=repo", "policy.beta_rate=0.05", "policy.kl_cap=null"],
    "untaught": ["policy=repo", "policy.beta_rate=0.05", "policy.dynamics_weight=0"],
}
PLAIN, MOVING, STILL = "plain", "moving", "still"
WANTED = (
    ("repo", PLAIN), ("repo", MOVING), ("drawing", PLAIN), ("drawing", MOVING), ("infopower", MOVING),
    ("powerless", MOVING), ("untaught", PLAIN), ("untaught", MOVING), ("uncapped", MOVING), ("repo", STILL),
)  # fmt: skip
IDLE = "{readings:32}"
SHIFT = "{camera:0.3}"


@dataclass(frozen=True)
class Job:
    """One training run."""

    way: str
    world: str
    seed: int
    steps: int
    seen: str

    @property
    def folder(self) -> Path:
        return ROOT / f"{self.seen}-{self.steps}" / f"{self.way}-{self.world}-s{self.seed}"

    def run(self) -> dict[str, Any]:
        """Train, unless it was done before; the last evaluation."""
        words = [*WORLD[self.seen], *SMALL, *WAYS[self.way], f"seed={self.seed}", f"steps={self.steps}", "videos=1"]
        words += [f"final_episodes={EPISODES}", "eval_every=0"]
        distractors = IDLE if self.seen == READINGS else self.world
        words += [] if self.world == PLAIN else [f"env.distractors={distractors}"]
        return train(self.folder, words)

    def logged(self) -> dict[str, float]:
        """The log's last row: what looking adds, nats; its multiplier; the reward head's error (½ squared)."""
        with (self.folder / "progress.csv").open(newline="") as file:
            last = list(csv.DictReader(file))[-1]
        return {name: float(last[name]) for name in ("kl", "beta", "head_error") if last.get(name)}

    def shifted(self) -> dict[str, Any]:
        """Judged where the camera has moved: its "unaligned" before it learned to see again, the rest after."""
        told = self.folder / "evaluation.json"
        if not told.exists():
            words = [f"run={self.folder}", f"distractors={SHIFT}", f"align={ALIGN}", f"episodes={EPISODES}", "videos=0"]
            subprocess.run([sys.executable, "-m", "embodied.cli", "evaluate", *words], check=True)
        return json.loads(told.read_text("utf-8"))


def at_random(folder: Path, seed: int) -> float:
    """The mean return of random actions where a run was judged."""
    stage = Stage(OmegaConf.create(load_literal(folder / "config.yaml")), None)  # pyright: ignore[reportArgumentType]
    collector = stage.collector(8, seed=seed + FINAL)
    try:
        result = evaluate(RandomActor(1, seed), collector, stage.rewards(collector), EPISODES)
    finally:
        collector.close()
    return result.summary()["mean_env_reward"]


def row(claim: str, values: list[float], seeds: list[int], steps: int, **more: Any) -> dict[str, Any]:
    """A mean over seeds."""
    table = {"claim": claim, "value": float(np.mean(values)), "n": EPISODES * len(values), "seeds": seeds}
    return table | {"by_seed": values, "steps": steps, "unit": "return"} | more


def rows(
    results: dict[Job, dict[str, Any]], shifts: dict[Job, dict[str, Any]], chance: dict[int, float]
) -> list[dict[str, Any]]:
    """Mean returns, and what they say; a ratio only of what both sides have."""
    steps, seen = next(iter(results)).steps, next(iter(results)).seen
    about = f"Cart-pole, {TOLD[seen]}, {steps:,} steps"
    table = [row(f"Cart-pole, {TOLD[seen]}, random actions: return", list(chance.values()), list(chance), steps)]
    table = table if chance else []
    means: dict[tuple[str, str], dict[int, float]] = {}
    logged: dict[tuple[str, str], list[dict[str, float]]] = {}
    for job, result in results.items():
        logged.setdefault((job.way, job.world), []).append(job.logged())
        means.setdefault((job.way, job.world), {})[job.seed] = float(result["mean_env_reward"])
    for (way, world), by_seed in means.items():
        among = {READINGS: {PLAIN: "", MOVING: " beside 32 idle ones"}, PIXELS: {}}[seen].get(
            world, f", {world} background"
        )
        claim = f"{about}{among}, {way}: return"
        table.append(row(claim, list(by_seed.values()), list(by_seed), steps, logged=logged[way, world]))
    for way, bar, least in (("repo", ">= 0.8", True), ("drawing", "<= 0.6 (the control)", False)):
        table += ratio(means, (way, MOVING), (way, PLAIN), f"{about}, {way}: return kept", bar, least)
    claim = f"{about}, among distractors: InfoPower against itself without empowerment"
    table += ratio(means, ("infopower", MOVING), ("powerless", MOVING), claim, ">= 1.1")
    if shifts:
        told = list(shifts.values())
        seeds, plain = [job.seed for job in shifts], [means["repo", PLAIN][job.seed] for job in shifts]
        lost = [before - each["unaligned"]["mean_env_reward"] for before, each in zip(plain, told, strict=True)]
        back = [each["mean_env_reward"] - each["unaligned"]["mean_env_reward"] for each in told]
        for name, values in (
            ("before", [each["unaligned"]["mean_env_reward"] for each in told]),
            ("after", [each["mean_env_reward"] for each in told]),
        ):
            table.append(row(f"RePo, camera led round by 0.3 rad, {name} alignment: return", values, seeds, steps))
        share = float(np.sum(back) / max(float(np.sum(lost)), 1e-9))
        table.append(
            {
                "claim": "RePo: share of what the camera's shift cost that alignment brings back", "value": share,
                "unit": "share", "bar": ">= 0.5", "met": bool(np.sum(lost) > 0 and share >= 0.5), "seeds": seeds,
                "n": EPISODES * len(seeds), "lost": lost,
            }
        )  # fmt: skip
    return table


def ratio(
    means: dict[tuple[str, str], dict[int, float]], one: tuple[str, str], other: tuple[str, str], claim: str, bar: str,
    least: bool = True,
) -> list[dict[str, Any]]:  # fmt: skip
    """One mean over another, over the seeds that both have."""
    seeds = sorted(set(means.get(one, {})) & set(means.get(other, {})))
    if not seeds:
        return []
    value = float(np.mean([means[one][s] for s in seeds]) / np.mean([means[other][s] for s in seeds]))
    limit = float(bar.split()[1])
    met = value >= limit if least else value <= limit
    each = [means[one][s] / means[other][s] for s in seeds]
    known = None if met and len(seeds) < SEEDS else met  # a seed or two can miss a bar, not meet it
    row = {"claim": claim, "value": value, "unit": "ratio", "bar": bar, "met": known, "seeds": seeds, "by_seed": each}
    return [row]


def main() -> None:
    """Run what is missing, seed by seed, recording after every run."""
    options = read_options({"seeds": [0, 1, 2], "steps": 24_000, "ways": [], "seen": READINGS, "record": True})
    results: dict[Job, dict[str, Any]] = {}
    shifts: dict[Job, dict[str, Any]] = {}
    chance: dict[int, float] = {}
    for seed in options["seeds"]:
        for way, world in WANTED:
            job = Job(way, world, seed, options["steps"], options["seen"])
            if options["ways"] and way not in options["ways"] and trained(job.folder) is None:
                continue
            if world == STILL and job.seen == READINGS:
                continue
            results[job] = job.run()
            print(f"{job}: return {results[job]['mean_env_reward']:.1f}", flush=True)
            if (way, world) == ("repo", PLAIN):
                chance[seed] = at_random(job.folder, seed)
                if job.seen == PIXELS and results[job]["mean_env_reward"] > LEARNED * chance[seed]:
                    shifts[job] = job.shifted()
            if options["record"]:
                record_part("distractors", rows(results, shifts, chance))


if __name__ == "__main__":
    main()
