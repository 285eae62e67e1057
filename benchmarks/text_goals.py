"""Text goals against the task's own reward: the same learner, the same steps, three seeds each.

"Unseen" sentences are test wordings in sim_assets/*/captions.yaml, which the embedded encoder never met. Pairs and
training seeds were fixed before the fifth encoder's first run. They are not blind for the sixth, which ships: it
was made after the fifth had failed reach and reacher-red on seed 10 (`text_goals_earlier` keeps all earlier
results), on states of policies of other seeds; and the unseen sentence of desk-drawer was replaced, before its run,
since the former one trains now. Seeds 11 and 12 chose nothing. SAC was set on desk-drawer's own reward, training
seeds 0 and 1. On desk-reach films of what failed showed the gripper in the line of sight, before the cube and a hand's
breadth off it, which one camera cannot tell from touching; so the pair is there again with two cameras, on training
seeds of its own (13 to 15; the idea was tried on 20 to 22). Success is judged on 50 held-out episodes at the last step
of training. Runs are kept in runs/benchmarks/text_goals and skipped when they are finished, so the script can be
stopped and started again. `only` runs some worlds, and leaves what was recorded of the others.

    python -m benchmarks.text_goals jobs=2
    python -m benchmarks.text_goals only=desk-reach,reacher-red
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import load, read_options, record, train
from embodied.captions import Captions
from embodied.paths import asset
from rewards.metrics import wilson_interval

ROOT = Path("runs", "benchmarks", "text_goals")
SEEDS, SEEDS_OF_TWO = (10, 11, 12), (13, 14, 15)
STEPS = {"cartpole": 6_000, "reacher-red": 8_000}
DESK_STEPS = 10_000
SCENES = ("desk", "reacher", "cartpole", "humanoid")
TWO = ("front", "side")
PAIRS: tuple[tuple[str, str, tuple[str, ...]], ...] = (  # world, sentence, cameras where it is not the world's own
    ("desk-drawer", "the drawer is open", ()),
    ("desk-drawer", "the drawer has been left open", ()),
    ("desk-close", "the drawer is closed", ()),
    ("desk-press", "the button is pressed", ()),
    ("desk-press", "give the button a push", ()),
    ("desk-reach", "the gripper touches the red cube", ()),
    ("desk-reach", "the gripper touches the red cube", TWO),
    ("cartpole", "pole vertically upright on top of the cart", ()),
    ("cartpole", "hold the pole in balance", ()),
    ("reacher-red", "the tip of the arm touches the red ball", ()),
)


@dataclass(frozen=True)
class Job:
    """One training run; no goal means the task's own reward."""

    env: str
    goal: str | None
    seed: int
    cameras: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        words = "-".join(["true" if self.goal is None else self.goal.replace(" ", "-"), *self.cameras])
        return ROOT / self.env / f"{words}-s{self.seed}"

    def run(self) -> dict[str, Any]:
        """Train, unless it was done before; the last evaluation."""
        reward = ["reward=true"] if self.goal is None else ["reward=clip", f'reward.goal="{self.goal}"']
        if self.cameras:
            reward += [f"env.cameras=[{','.join(self.cameras)}]", "reward.views=mean"]
        steps = STEPS.get(self.env, DESK_STEPS)
        settings = [f"env={self.env}", *reward, f"seed={self.seed}", f"steps={steps}", "videos=1", "eval_every=4000"]
        return train(self.folder, settings)


def seeds_of(cameras: tuple[str, ...]) -> tuple[int, ...]:
    """Training seeds of a pair."""
    return SEEDS_OF_TWO if cameras else SEEDS


def rows(results: dict[Job, dict[str, Any]], unseen: set[str]) -> list[dict[str, Any]]:
    """One row per pair, over the seeds whose runs are there; the bar wants them all.

    Args:
        unseen: sentences the encoder never met.
    """
    table = []
    for env, goal, cameras in PAIRS:
        jobs = {seed: Job(env, goal, seed, cameras) for seed in seeds_of(cameras)}
        seeds = [seed for seed, job in jobs.items() if {job, Job(env, None, seed)} <= results.keys()]
        if not seeds:
            continue
        text = [results[jobs[seed]]["success_rate"] for seed in seeds]
        true = [results[Job(env, None, seed)]["success_rate"] for seed in seeds]
        ratio = round(float(np.mean(text) / np.mean(true)), 9) if np.mean(true) else None  # 36 of 40 are 0.9
        episodes = sum(results[jobs[seed]]["episodes"] for seed in seeds)
        noted = " (unseen)" * (goal in unseen) + f", cameras {' and '.join(cameras)}" * bool(cameras)
        table.append(
            {
                "claim": f"{env}: “{goal}”{noted}, success against the own reward's",
                "value": ratio if ratio is not None else 0.0,
                "unit": "ratio",
                "bar": ">= 0.9",
                "met": _met(ratio, complete=len(seeds) == len(jobs)),
                "n": episodes,
                "seeds": seeds,
                "success_interval": wilson_interval(
                    round(sum(rate * episodes / len(seeds) for rate in text)), episodes
                ),
                "success_text": text,
                "success_true": true,
                "steps": STEPS.get(env, DESK_STEPS),
                "unseen": goal in unseen,
            }
        )
    return table


def _met(ratio: float | None, *, complete: bool) -> bool | None:
    """Undecided while seeds are missing and those that are there reach the bar."""
    reached = ratio is not None and ratio >= 0.9
    return None if reached and not complete else reached


def main() -> None:
    """Run what is missing, two at a time, recording after every run."""
    options = read_options({"jobs": 2, "only": ""})
    worlds = options["only"].split(",") if options["only"] else [env for env, *_ in PAIRS]
    pairs = [pair for pair in PAIRS if pair[0] in worlds]
    text = [Job(env, goal, seed, cameras) for env, goal, cameras in pairs for seed in seeds_of(cameras)]
    own = dict.fromkeys(Job(job.env, None, job.seed) for job in text)
    captions = [Captions.load(asset(scene) / "captions.yaml") for scene in SCENES]
    unseen = {text for one in captions for splits in one.facts.values() for text in splits["test"].all()}
    results: dict[Job, dict[str, Any]] = {}
    recorded = {row["claim"]: row for row in load() if row["benchmark"] == "text_goals"} if options["only"] else {}
    with ThreadPoolExecutor(options["jobs"]) as pool:
        futures = {pool.submit(job.run): job for job in [*own, *text]}
        for future in as_completed(futures):
            job = futures[future]
            results[job] = future.result()
            print(f"{job.folder}: success {results[job]['success_rate']:.2f}", flush=True)
            if table := rows(results, unseen):
                record("text_goals", (recorded | {row["claim"]: row for row in table}).values())


if __name__ == "__main__":
    main()
