"""What a person's interventions add: RLPD from a few demonstrations, with a scripted operator and without.

The observation is what a robot has: its own readings and where the named things are in its cameras; the reward is the
sentence's. `obs=state` is simulator state and the task's own reward, for a machine without time.

`person`: where the task's own reward has not risen for `PATIENCE` steps the world's expert takes over for `TURN` steps,
at most so many an episode (`benchmarks.rescue.Rescued`). `alone` is the same without it, `imitation` the
demonstrations imitated alone: the floor. Nothing is handed over (`policy.handover=false`), as that counts only episodes
without help. All are judged without an operator, on the same held-out starts. What is finished is not run again.

    python -m benchmarks.interventions                              # all seeds, one at a time
    python -m benchmarks.interventions obs=state seeds=[0] steps=2000 jobs=2
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from benchmarks.common import read_options, record_part
from benchmarks.rescue import Rescued
from embodied.building.scorers import make_scorer
from embodied.commands.train import filmed, judged
from embodied.config import compose
from embodied.files import write_text
from embodied.training import evaluation
from embodied.training.acting import make_learner
from embodied.training.demonstrations import demonstrations
from embodied.training.log import RunLog
from embodied.training.loop import Training, train
from embodied.training.stage import Stage
from rewards.metrics import wilson_interval

ROOT = Path("runs", "benchmarks", "interventions")
WAYS = ("imitation", "alone", "person")
GOALS = {
    "desk-drawer": "the drawer is open",
    "desk-press": "the button is pressed",
    "desk-lift": "the red cube is lifted",
    "desk-place": "the red cube is in the tray",
}
PATIENCE, TURN, LOG_EVERY = 8, 15, 500


@dataclass(frozen=True)
class Job:
    """One training run, with its settings."""

    env: str
    way: str
    seed: int
    steps: int
    demos: int
    episodes: int
    obs: str

    @property
    def folder(self) -> Path:
        return ROOT / f"{self.env}-{self.obs}-d{self.demos}-n{self.steps}" / f"{self.way}-s{self.seed}"

    @property
    def words(self) -> list[str]:
        """Of `embodied train`."""
        few = ["policy=imitation", "steps=8"]
        if self.way != "imitation":
            few = [f"steps={self.steps}", "policy.handover=false"]
        paid = ["reward=true"] if self.obs == "state" else ["reward=clip", f'reward.goal="{GOALS[self.env]}"']
        return [
            f"env={self.env}", f"env.obs={self.obs}", *paid, f"demos={self.demos}", f"seed={self.seed}",
            "num_worlds=4", "device=cpu", *few,
        ]  # fmt: skip


class Assisted(Stage):
    """Worlds in which the expert stands for a person."""

    def maker(self) -> Callable[[], gymnasium.Env]:
        """See `Stage.maker`."""
        make = super().maker()
        return lambda: Rescued(make(), patience=PATIENCE, turn=TURN, most=TURN)


def run(job: Job) -> dict[str, Any]:
    """Train and judge, unless it was done before."""
    file = job.folder / "result.json"
    if file.is_file() and (kept := json.loads(file.read_text("utf-8")))["episodes"] == job.episodes:
        return kept
    torch.set_num_threads(1)
    config = compose("train", job.words)
    job.folder.mkdir(parents=True, exist_ok=True)
    stage = (Assisted if job.way == "person" else Stage)(config, make_scorer(config))
    collector = stage.collector(config.num_worlds, seed=config.seed)
    log = RunLog(job.folder)
    try:
        learner = make_learner(config, collector)
        shown = demonstrations(config, stage, collector)
        training = Training.of(
            collector, stage.rewards(collector), learner, demos=shown, total=config.steps, seed=config.seed
        )
        train(training, config.steps, log, log_every=LOG_EVERY)
    finally:
        collector.close()
        log.close()
    without, seed = Stage(config, make_scorer(config)), config.seed + evaluation.FINAL  # nobody helps
    result = judged(without, learner, job.episodes, count=min(8, job.episodes), seed=seed).summary()
    filmed(without, job.folder, "final", learner, seed=seed, count=2)
    own = training.replay
    acted = 0 if own is None else int(own.arrays()[0]["imitate"].sum())
    result |= {"intervened_share": acted / training.steps, "observation": without.observation}
    write_text(file, json.dumps(result))
    return result


def rows(results: dict[Job, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a way; and what the person added, a seed beside the same seed."""
    found = list[dict[str, Any]]()
    rates = {way: {job.seed: r["success_rate"] for job, r in results.items() if job.way == way} for way in WAYS}
    for way in WAYS:
        if not rates[way]:
            continue
        one = next(job for job in results if job.way == way)
        told = [result for job, result in results.items() if job.way == way]
        values, n = [rates[way][seed] for seed in sorted(rates[way])], one.episodes * len(rates[way])
        rlpd = "RLPD without hand-over"
        about = {"imitation": "imitation alone", "alone": rlpd, "person": f"{rlpd}, with a scripted operator"}[way]
        seen = f"observation {told[0]['observation']}"
        about += "" if way == "imitation" else f", {one.steps} steps"
        found.append(
            {
                "claim": f"{one.env}, {one.demos} demonstrations, {about}, {seen}: success",
                "value": float(np.mean(values)),
                "unit": "share",
                "n": n,
                "seeds": sorted(rates[way]),
                "interval": wilson_interval(round(sum(values) * one.episodes), n),
                "by_seed": values,
                "intervened_share": float(np.mean([each["intervened_share"] for each in told])),
            }
        )
    both = sorted(rates["alone"].keys() & rates["person"].keys())
    if both:
        one = next(iter(results))
        gain = [rates["person"][seed] - rates["alone"][seed] for seed in both]
        floor = [rates["imitation"][seed] for seed in both if seed in rates["imitation"]]
        control = f"; control, imitation alone: {np.mean(floor):.2f}" if floor else ""
        found.append(
            {
                "claim": f"{one.env}, {one.demos} demonstrations, {one.steps} steps: what the operator adds{control}",
                "value": float(np.mean(gain)),
                "unit": "share",
                "n": len(both),
                "seeds": both,
                "by_seed": gain,
            }
        )
    return found


def main() -> None:
    """Run what is missing, recording after every run."""
    defaults = {"env": "desk-lift", "obs": "points", "seeds": [0, 1, 2], "steps": 6000, "demos": 5, "episodes": 64}
    options = read_options(defaults | {"jobs": 1, "record": True})
    rest = {key: options[key] for key in ("steps", "demos", "episodes", "obs")}
    jobs = [Job(options["env"], way, seed, **rest) for seed in options["seeds"] for way in WAYS]
    results: dict[Job, dict[str, Any]] = {}
    with ProcessPoolExecutor(options["jobs"], multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            print(json.dumps(asdict(futures[future]) | future.result()), flush=True)
            if options["record"]:
                record_part("interventions", rows(results))


if __name__ == "__main__":
    main()
