"""VLM-RL's claims at our size: policies in the town from contrasting goals and readings, beside rewards that lack a part.

Every run is RLPD, which sees the car's own readings and the vector of an encoder that was taught the town by
`benchmarks.own_scenes` (the shipped one does not know it; what is missing is taught first). The ways differ in the
reward alone:

    synthesis   contrasting goals times the terms of speed, lane, angle and steadiness: VLM-RL
    contrast    contrasting goals alone
    goal        the goal alone
    dense       VLM-RL's hand-written reward, for comparison
    sparse      1 once the route is completed
    swapped     synthesis with the goal for the negative and the negative for the goal: the control

Judged on routes that nobody looked at, and on the same number with traffic twice as dense as in training. A route is
completed if no collision came before its end. A policy that stands still never collides: read collisions beside the
share of the route. What is finished is not run again.

    python -m benchmarks.drive_policies                     # one at a time
    python -m benchmarks.drive_policies ways=["dense"] seeds=[0]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import read_options, record, train, trained
from benchmarks.own_scenes import ROOT as TAUGHT
from benchmarks.own_scenes import taught
from embodied.commands.train import judged
from embodied.files import latest_checkpoint, write_text
from embodied.literal import load_literal
from embodied.training.acting import actor_of
from embodied.training.stage import Stage
from rewards.metrics import wilson_interval

ROOT = Path("runs", "benchmarks", "drive_policies")
FRAMES, TEST_FRAMES, EPOCHS = 8000, 1000, 4  # of the encoder
SEEDS = (0, 1, 2)
STEPS, EPISODES = 20_000, 24
TRAFFIC, DENSER = 0.5, 1.0  # in training; twice as dense
CLEAR, CRASHED = "the road is clear with no car accidents", "two cars have collided with each other on the road"
WAYS = ("synthesis", "swapped", "contrast", "dense", "sparse", "goal")
SECONDS, ROUTE = 40.0, 120.0  # of an episode; metres
SEED = 3_000_000  # of the judging with denser traffic, beside the run's own


def encoder() -> Path:
    """The folder of the encoder that was taught the town, now unless it was before."""
    taught("drive", FRAMES, TEST_FRAMES, EPOCHS)
    return TAUGHT / f"drive-{FRAMES}x{EPOCHS}" / "encoder"


@dataclass(frozen=True)
class Job:
    """One training run."""

    way: str
    seed: int
    steps: int

    @property
    def settings(self) -> list[str]:
        """Of `embodied train`."""
        words = ["env=drive-town", f"env.traffic={TRAFFIC}", f"seed={self.seed}", f"steps={self.steps}"]
        words += ["encoder=open_clip", f"encoder.model=local-dir:{encoder()}", "env.obs=features"]
        words += [f"final_episodes={EPISODES}", "videos=1", "eval_every=0"]
        return words + {
            "synthesis": ["reward=synthesis", *texts(CLEAR, CRASHED)],
            "swapped": ["reward=synthesis", *texts(CRASHED, CLEAR)],
            "contrast": ["reward=contrast", *texts(CLEAR, CRASHED)],
            "goal": ["reward=clip", f'reward.goal="{CLEAR}"'],
            "dense": ["reward=true"],
            "sparse": ["reward=true", "sparse=true"],
        }[self.way]

    @property
    def folder(self) -> Path:
        return ROOT / str(self.steps) / f"{self.way}-s{self.seed}"

    def run(self) -> dict[str, dict[str, Any]]:
        """Train, unless it was done before; the judgement in the traffic of training, and in denser."""
        return {"trained": train(self.folder, self.settings), "denser": self.denser()}

    def denser(self) -> dict[str, Any]:
        """The judgement with traffic twice as dense, made unless it was before."""
        file = self.folder / "denser.json"
        if not file.exists():
            config = load_literal(self.folder / "config.yaml")
            checkpoint = latest_checkpoint(self.folder)
            assert checkpoint is not None
            actor = actor_of(config, Stage(config, None), checkpoint, device="cpu")
            config.env.traffic = DENSER
            found = judged(Stage(config, None), actor, EPISODES, count=int(config.num_worlds), seed=SEED + self.seed)
            write_text(file, json.dumps(found.summary(), indent=2) + "\n")
        return json.loads(file.read_text("utf-8"))


def texts(goal: str, negative: str) -> list[str]:
    """Settings of a reward."""
    return [f'reward.goal="{goal}"', f'reward.negative="{negative}"']


def figures(judgement: Mapping[str, Any]) -> dict[str, float]:
    """What a row tells beside completion, means over episodes; the speed is that along the route."""
    told = {name: float(judgement[name]) for name in ("collisions", "lane_departures", "stalls", "route", "routes")}
    return told | {"kmh": told["routes"] * ROUTE / SECONDS * 3.6}


def rows(results: Mapping[Job, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row a way and traffic; the claims once all that they compare is there, over the seeds that they share."""
    table: list[dict[str, Any]] = []
    for steps in sorted({job.steps for job in results}):
        found = {(job.way, job.seed): result for job, result in results.items() if job.steps == steps}
        for way in dict.fromkeys(job.way for job in results if job.steps == steps):
            seeds = sorted(seed for each, seed in found if each == way)
            for traffic, kind in ((TRAFFIC, "trained"), (DENSER, "denser")):
                by_seed = [found[way, seed][kind] for seed in seeds]
                rates, told = [each["success_rate"] for each in by_seed], [figures(each) for each in by_seed]
                count = EPISODES * len(seeds)
                row = {
                    "claim": f"drive-town, {way}, {steps:,} steps, traffic {traffic}: routes completed, no collision",
                    "value": float(np.mean(rates)),
                    "unit": "share of episodes",
                    "n": count,
                    "seeds": seeds,
                    "interval": wilson_interval(round(sum(rates) * EPISODES), count),
                    "by_seed": rates,
                }
                table.append(row | {name: float(np.mean([each[name] for each in told])) for name in told[0]})
        table += claims(found, steps)
    return table


def claims(found: Mapping[tuple[str, int], dict[str, dict[str, Any]]], steps: int) -> list[dict[str, Any]]:
    """What the ways say about one another, each claim over the seeds that all of its ways have."""

    def means(names: Sequence[str], kind: str, column: str) -> tuple[list[int], list[float]]:
        shared = [seed for seed in SEEDS if all((name, seed) in found for name in names)]
        return shared, [float(np.mean([found[name, seed][kind][column] for seed in shared])) for name in names if shared]

    table: list[dict[str, Any]] = []

    def add(claim: str, value: float, bar: str, met: bool, seeds: list[int], unit: str = "share of episodes") -> None:
        row = {"claim": f"{claim}, {steps:,} steps", "value": value, "unit": unit, "bar": bar, "met": met}
        table.append(row | {"seeds": seeds, "n": EPISODES * len(seeds)})

    seeds, both = means(("synthesis", "dense"), "trained", "success_rate")
    if seeds:
        value, other = both
        met = other > 0 and value >= 0.9 * other
        add(f"synthesis: completion; hand-written {other:.2f}", value, ">= 0.9 × hand-written", met, seeds)
        _, (value, other) = means(("synthesis", "dense"), "trained", "collisions")
        name = f"synthesis: collisions; hand-written {other:.2f}"
        add(name, value, "<= hand-written", value <= other, seeds, "an episode")
    for rival in ("contrast", "sparse"):
        seeds, both = means(("synthesis", rival), "trained", "route")
        if seeds:
            add(f"synthesis: share of the route; {rival} {both[1]:.2f}", both[0], f"> {rival}", both[0] > both[1], seeds)
    others = ("synthesis", "contrast", "dense", "sparse")
    seeds, every = means(("swapped", *others), "trained", "route")
    if seeds:
        least = min(every[1:])
        name = f"swapped texts, the control: share of the route; the least of {', '.join(others)} {least:.2f}"
        add(name, every[0], "< every other", every[0] < least, seeds)
    seeds, here = means(("synthesis",), "trained", "success_rate")
    if seeds:
        _, there = means(("synthesis",), "denser", "success_rate")
        name = f"synthesis: fall of completion ({here[0]:.2f}) in traffic twice as dense"
        add(name, here[0] - there[0], "<= 0.15", 0 < here[0] <= there[0] + 0.15, seeds)
    return table


def main() -> None:
    """Run what is missing, one after the other, recording after every run."""
    options = read_options({"ways": list(WAYS), "seeds": list(SEEDS), "steps": STEPS, "record": True})
    if unknown := set(options["ways"]) - set(WAYS):
        raise SystemExit(f"ways must be among {', '.join(WAYS)}; got {', '.join(sorted(unknown))}.")
    every = [Job(way, seed, options["steps"]) for seed in SEEDS for way in WAYS]
    results = {job: job.run() for job in every if trained(job.folder) is not None}  # what was done before
    for job in every:
        if job.way not in options["ways"] or job.seed not in options["seeds"]:
            continue
        results[job] = job.run()
        for kind, told in results[job].items():
            print(f"{job}, {kind}: completed {told['success_rate']:.2f}; {figures(told)}", flush=True)
        if options["record"]:
            record("drive_policies", rows(results))


if __name__ == "__main__":
    main()
