"""What a fine-tuned policy gains from its own tries, accepted from pixels, beside eight demonstrations.

`embodied finetune stages=[rollouts]`: the policy that imitates eight demonstrations of the desk's scripted expert, seen
from the front and the wrist, plays new starts; those that the success reward calls failed are tried again with noise,
and what it accepts is imitated too. `stages=[rollouts,corrections]` adds as many episodes in which the scripted expert
takes over from the policy, where the success reward accepts them. It was fitted to 20 labelled episodes, good and bad,
of other starts. `random` is the control: as many tries, drawn from all of them, whatever the success reward says. All
are judged on the same starts, which chose and taught nothing.

    python -m benchmarks.own_rollouts                       # goes on where it was interrupted
    python -m benchmarks.own_rollouts 'tasks=["place"]' 'seeds=[0]' episodes=40 record=false
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from benchmarks.common import others, read_options, record
from benchmarks.finetune import row
from embodied.building.build import build
from embodied.collecting.collect import collect
from embodied.config import compose
from embodied.finetuning import inputs, judging
from embodied.finetuning.stages import REFUSED, FinetuningRun

OPTIONS: dict[str, Any] = {
    "tasks": ["place"], "seeds": [0, 1, 2], "episodes": 100, "steps": 2000, "starts": 60, "tries": 2, "execute": 2,
    "record": True,
}  # fmt: skip
DEMONSTRATIONS, LABELLED = 8, 20
ROOT = Path("runs", "benchmarks", "own_rollouts")
STAGE, RANDOM, CORRECTIONS = "rollouts", "random", "corrections"


def shown(task: str, policy: str, count: int, seed: int) -> Path:
    """A dataset of so many episodes, collected unless it is there."""
    data = ROOT / f"{task}-{policy}-{count}"
    if not data.is_dir():
        words = [f"env=desk-{task}", f"policy={policy}", f"episodes={count}", f"out={data}", f"seed={seed}"]
        collect(compose("collect", [*words, "cameras=[front,wrist]"]))
    return data


def session(task: str, seed: int, options: Mapping[str, Any]) -> FinetuningRun:
    """A fine-tuning of the eight demonstrations."""
    data, labelled = shown(task, "expert", DEMONSTRATIONS, 0), shown(task, "mixed", LABELLED, 500_000)
    words = [f"data={data}", f"labels.labelled={labelled}", "labels.known=0", f"seed={seed}", "validation=0"]
    words += [f"steps={options['steps']}", f"own.starts={options['starts']}", f"own.tries={options['tries']}"]
    words += [f"eval_episodes={options['episodes']}", f"execute={options['execute']}", "videos=1"]
    config = compose("finetune", words)
    planned = inputs.plan(config)
    OmegaConf.set_struct(config, False)
    config.env = planned.sources[0].dataset.env
    folder = ROOT / f"{task}-s{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return FinetuningRun(config, folder, build(config.encoder), planned)


def tried(task: str, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """One seed: the episodes of each way, and what was gathered."""
    made = session(task, seed, options)
    found: dict[str, Any] = {"imitate": None, STAGE: None, RANDOM: None, CORRECTIONS: None}
    weights = made.rows.usable.astype(float)  # the eight are an expert's: nobody asks what they are
    policy = made.train("imitate", made.fresh(), weights, made.rows)
    found["imitate"] = judged(made, "imitate", policy)
    gathered = made.grow(STAGE, policy, "imitate")
    print(f"  {task}, seed {seed}: {gathered}", flush=True)
    rows, more = made.grown([STAGE], weights)
    found[STAGE] = judged(made, STAGE, made.train(STAGE, made.fresh(), more, rows))
    every = made.sources([STAGE]) + made.sources([STAGE], REFUSED)
    rows = made.windows_with(every)
    first = len(made.episodes)
    tries = np.arange(first, len(rows.episodes))
    drawn = np.random.default_rng(seed).choice(tries, min(gathered["accepted"], len(tries)), replace=False)
    chosen = rows.usable & (np.isin(rows.episode, drawn) | (rows.episode < first))
    found[RANDOM] = judged(made, RANDOM, made.train(RANDOM, made.fresh(), chosen.astype(float), rows))
    corrected = made.grow(CORRECTIONS, policy, "imitate")
    print(f"  {task}, seed {seed}: {CORRECTIONS} {corrected}", flush=True)
    rows, more = made.grown([STAGE, CORRECTIONS], weights)
    found[CORRECTIONS] = judged(made, CORRECTIONS, made.train(CORRECTIONS, made.fresh(), more, rows))
    return found | {"gathered": gathered, "corrected": corrected}


def judged(made: FinetuningRun, name: str, policy: Any) -> list[dict[str, Any]]:
    """A policy's episodes on the starts that judge, played unless they were."""
    file = made.folder / name / "episodes.json"
    if not file.is_file() or len(json.loads(file.read_text("utf-8"))) != made.config.eval_episodes:
        made.judge(name, policy)
    return json.loads(file.read_text("utf-8"))


def table(task: str, done: Sequence[Mapping[str, Any]], seeds: Sequence[int], execute: int) -> list[dict[str, Any]]:
    """A row a way; the gain over imitation of the eight, and what was accepted wrongly."""

    def told(way: str) -> list[dict[str, Any]]:
        return [{"rows": each[way], "execute": execute, "tried": {}} for each in done]

    eight = f"{task}, {DEMONSTRATIONS} demonstrations"
    rows = [
        row(f"{eight}, imitation", told("imitate"), seeds),
        row(f"{eight} and own tries that the success reward accepted", told(STAGE), seeds),
        row(f"{eight} and as many own tries at random (control)", told(RANDOM), seeds),
        row(f"{eight}, own tries and corrections that the success reward accepted", told(CORRECTIONS), seeds),
    ]
    rate = max(rows[0]["value"], 1 / rows[0]["n"])
    ways = (("own tries accepted", STAGE), ("own tries at random (control)", RANDOM),
            ("own tries and corrections accepted", CORRECTIONS))  # fmt: skip
    for name, way in ways:
        control = way == RANDOM
        before, after = ([each for one in done for each in one[kind]] for kind in ("imitate", way))
        compared = judging.compare(before, after)
        assert compared is not None
        ratio = 1 + compared["difference"] / rate
        rows.append(
            {
                "claim": f"{eight}: success with {name}, over imitation's", "value": ratio, "unit": "ratio",
                "bar": None if control else ">= 1.5", "met": None if control else ratio >= 1.5,
                "n": compared["starts"], "seeds": list(seeds), **{k: compared[k] for k in ("better", "worse", "p")},
            }
        )  # fmt: skip
    gathered, corrected = [each["gathered"] for each in done], [each["corrected"] for each in done]
    accepted, wrongly = (sum(each[key] for each in [*gathered, *corrected]) for key in ("accepted", "wrongly"))
    played = [one["starts"] + one["tries"] + other["starts"] for one, other in zip(gathered, corrected, strict=True)]
    rows.append(
        {
            "claim": f"{task}: own tries and corrections accepted wrongly", "value": wrongly / max(accepted, 1),
            "unit": "share", "bar": "<= 0.02", "met": wrongly <= 0.02 * accepted, "n": accepted, "seeds": list(seeds),
            "rollouts": played, "gathered": gathered, "corrected": corrected,
        }
    )  # fmt: skip
    return rows


def main() -> None:
    """Task by task and seed by seed, recording after every one."""
    options = read_options(OPTIONS)
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {}
    for task in options["tasks"]:
        done: list[dict[str, Any]] = []
        for seed in options["seeds"]:
            done.append(tried(task, seed, options))
            found[task] = table(task, done, options["seeds"][: len(done)], options["execute"])
            for each in found[task]:
                print(
                    f"{each['claim']}: {each['value']:.3f} (bar {each.get('bar')}, {each.get('by_seed', '')})",
                    flush=True,
                )
            if options["record"]:
                told = [each for rows in found.values() for each in rows]
                record("own_rollouts", [*told, *others("own_rollouts", told)])


if __name__ == "__main__":
    main()
