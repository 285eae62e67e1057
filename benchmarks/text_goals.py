"""Text goals against the task's own reward: the same learner, the same steps, three seeds each.

"Unseen" sentences are test wordings in sim_assets/*/captions.yaml, which the embedded encoder never met. Pairs and
training seeds were fixed before the fifth encoder's first run. They are not blind for the sixth, which ships: it
was made after the fifth had failed reach and reacher-red on seed 10 (`text_goals_earlier` keeps all earlier
results), on states of policies of other seeds; and the unseen sentence of desk-drawer was replaced, before its run,
since the former one trains now. Seeds 11 and 12 chose nothing. SAC was set on desk-drawer's own reward, training
seeds 0 and 1. On desk-reach films of what failed showed the gripper in the line of sight, before the cube and a hand's
breadth off it, which one camera cannot tell from touching; so the pair is there again with two cameras, and once more
with these and VLM-RL's contrasting goals, each on training seeds of its own (13 to 15, 16 to 18; both ideas were tried
on 20 to 22, the second after the first had been judged). Success is judged on 50 held-out episodes at the last step
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
from embodied.envs.captions import Captions
from embodied.errors import UserError
from embodied.paths import asset
from rewards.metrics import wilson_interval

ROOT = Path("runs", "benchmarks", "text_goals")
STEPS = {"cartpole": 6_000, "reacher-red": 8_000}
DESK_STEPS = 10_000
SCENES = ("desk", "reacher", "cartpole", "humanoid")


@dataclass(frozen=True)
class Way:
    """How a sentence becomes a reward.

    Attributes:
        reward: settings.
        seeds: of training.
        name: in the runs' folders.
        told: in the claim.
    """

    reward: tuple[str, ...] = ("reward=clip",)
    seeds: tuple[int, ...] = (10, 11, 12)
    name: str = ""
    told: str = ""


NOT = "the gripper does not touch the red cube"
BOTH = ("env.cameras=[front,side]", "reward.views=mean")
PLAIN = Way()
TWO = Way(("reward=clip", *BOTH), (13, 14, 15), "front-side", ", cameras front and side")
AGAINST = Way(
    ("reward=contrast", f'reward.negative="{NOT}"', *BOTH), (16, 17, 18), "contrast", f"{TWO.told}, against “{NOT}”"
)
PAIRS = (
    ("desk-drawer", "the drawer is open", PLAIN),
    ("desk-drawer", "the drawer has been left open", PLAIN),
    ("desk-close", "the drawer is closed", PLAIN),
    ("desk-press", "the button is pressed", PLAIN),
    ("desk-press", "give the button a push", PLAIN),
    ("desk-reach", "the gripper touches the red cube", PLAIN),
    ("desk-reach", "the gripper touches the red cube", TWO),
    ("desk-reach", "the gripper touches the red cube", AGAINST),
    ("cartpole", "pole vertically upright on top of the cart", PLAIN),
    ("cartpole", "hold the pole in balance", PLAIN),
    ("reacher-red", "the tip of the arm touches the red ball", PLAIN),
)


@dataclass(frozen=True)
class Job:
    """One training run; no goal means the task's own reward."""

    env: str
    goal: str | None
    seed: int
    way: Way = PLAIN

    @property
    def folder(self) -> Path:
        words = "true" if self.goal is None else self.goal.replace(" ", "-")
        return ROOT / self.env / "-".join(filter(None, (words, self.way.name, f"s{self.seed}")))

    def run(self) -> dict[str, Any]:
        """Train, unless it was done before; the last evaluation."""
        reward = ["reward=true"] if self.goal is None else [*self.way.reward, f'reward.goal="{self.goal}"']
        steps = STEPS.get(self.env, DESK_STEPS)
        settings = [
            f"env={self.env}",
            "env.obs=state",
            "policy=sac",
            *reward,
            f"seed={self.seed}",
            f"steps={steps}",
            "videos=1",
            "eval_every=4000",
        ]
        return train(self.folder, settings)


def rows(results: dict[Job, dict[str, Any]], unseen: set[str]) -> list[dict[str, Any]]:
    """One row per pair, over the seeds whose runs are there; the bar wants them all.

    Args:
        unseen: sentences the encoder never met.
    """
    table = []
    for env, goal, way in PAIRS:
        jobs = {seed: Job(env, goal, seed, way) for seed in way.seeds}
        seeds = [seed for seed, job in jobs.items() if {job, Job(env, None, seed)} <= results.keys()]
        if not seeds:
            continue
        text = [results[jobs[seed]]["success_rate"] for seed in seeds]
        true = [results[Job(env, None, seed)]["success_rate"] for seed in seeds]
        ratio = round(float(np.mean(text) / np.mean(true)), 9) if np.mean(true) else None  # 36 of 40 are 0.9
        episodes = sum(results[jobs[seed]]["episodes"] for seed in seeds)
        noted = " (unseen)" * (goal in unseen) + way.told
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
    if strange := set(worlds) - {env for env, *_ in PAIRS}:
        known = ", ".join(dict.fromkeys(env for env, *_ in PAIRS))
        raise UserError(f"text_goals: only must name some of {known}; got {', '.join(sorted(strange))}.")
    pairs = [pair for pair in PAIRS if pair[0] in worlds]
    text = [Job(env, goal, seed, way) for env, goal, way in pairs for seed in way.seeds]
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
