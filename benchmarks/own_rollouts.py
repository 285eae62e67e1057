"""What a fine-tuned policy gains from its own tries, accepted from pixels, beside eight demonstrations.

`embodied finetune stages=[rollouts]`: the policy that imitates eight demonstrations of the desk's scripted expert, seen
from the front and the wrist, plays new starts; those that the success reward calls failed are tried again with noise,
and what it accepts is imitated too. `stages=[rollouts,corrections]` adds as many episodes in which the scripted expert
takes over from the policy, where the success reward accepts them. It was fitted to 20 labelled episodes, good and bad,
of other starts. `random` is the control: as many episodes, drawn from all that were accepted or refused: the tries, and
the first goes that failed (those that succeed are never kept). `corrections` has no control with as many more expert
actions, so what they gain may be what more of an expert gains.
`chunked_rl` goes on from what imitates the accepted tries, with a critic that learns from the refused ones too, and
`best_of_n` lets that critic choose among the chunks of the policy as it was; its control `random_of_n` takes any of the
same chunks. Whether the critic ranks chunks at one moment is told. All are judged on the same starts, which chose and
taught nothing.

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
from jaxtyping import Float
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks.common import begun_with, load, read_options, record
from benchmarks.tuned import by_start, gathered, ranking_row, ratios, row
from embodied.building.build import build
from embodied.config import compose
from embodied.finetuning import inputs, judging
from embodied.finetuning.stages import CHUNKED, REFUSED, FinetuningRun
from policies.vla.choosing import BestOfN, load_critic
from policies.vla.critic import Context
from rewards.metrics import wilson_interval

OPTIONS: dict[str, Any] = {
    "tasks": ["place"], "seeds": [0, 1, 2], "episodes": 100, "steps": 2000, "starts": 60, "tries": 2, "execute": 2,
    "ways": ["random", "corrections", "chunked_rl", "best_of_n", "random_of_n"], "moments": 24, "record": True,
}  # fmt: skip
DEMONSTRATIONS, LABELLED = 8, 20
ROOT = Path("runs", "benchmarks", "own_rollouts")
STAGE, RANDOM, CORRECTIONS, BEST, ANY = "rollouts", "random", "corrections", "best_of_n", "random_of_n"
TOLD = {
    "imitate": "{}, imitation", STAGE: "{} and own tries that the success reward accepted",
    RANDOM: "{} and as many own tries at random (control)",
    CORRECTIONS: "{}, own tries and corrections that the success reward accepted",
    CHUNKED: "{} and own tries, chunked RL", BEST: "{} and own tries, the best of eight chunks by its critic",
    ANY: "{} and own tries, any of the eight chunks (control)",
}  # fmt: skip


class AnyOfN(BestOfN):
    """Takes any of the chunks, whatever the critic says."""

    def rank(self, context: Context, drawn: Float[Tensor, "B M H A"]) -> Float[Tensor, "B M"]:
        return torch.rand(drawn.shape[:2], generator=self._random).to(drawn)


def shown(task: str, policy: str, count: int, seed: int) -> Path:
    """A dataset of so many episodes, collected unless it is there."""
    words = [f"env=desk-{task}", f"policy={policy}", f"seed={seed}", "cameras=[front,wrist]"]
    return gathered(ROOT / f"{task}-{policy}-{count}", count, *words)


def session(task: str, seed: int, options: Mapping[str, Any]) -> FinetuningRun:
    """A fine-tuning of the eight demonstrations."""
    data, labelled = shown(task, "expert", DEMONSTRATIONS, 0), shown(task, "mixed", LABELLED, 500_000)
    words = [f"data={data}", f"labels.labelled={labelled}", "labels.known=0", f"seed={seed}", "validation=0"]
    words += [f"steps={options['steps']}", f"own.starts={options['starts']}", f"own.tries={options['tries']}"]
    words += [f"execute={options['execute']}", f"ranked.moments={options['moments']}"]
    folder = ROOT / f"{task}-s{seed}"
    begun_with(folder, words)
    config = compose("finetune", [*words, f"eval_episodes={options['episodes']}", "videos=1"])
    planned = inputs.plan(config)
    OmegaConf.set_struct(config, False)
    config.env = planned.sources[0].dataset.env
    return FinetuningRun(config, folder, build(config.encoder), planned)


def tried(task: str, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """One seed: the episodes of each way, and what was gathered."""
    made, ways = session(task, seed, options), options["ways"]
    weights = made.rows.usable.astype(float)  # the eight are an expert's: nobody asks what they are
    policy = made.train("imitate", made.fresh(), weights, made.rows)
    found: dict[str, Any] = {"imitate": judged(made, "imitate", policy)}
    gathered = found["gathered"] = made.grow(STAGE, policy, "imitate")
    print(f"  {task}, seed {seed}: {gathered}", flush=True)
    rows, more = made.grown([STAGE], weights)
    grown = made.train(STAGE, made.fresh(), more, rows)
    found[STAGE] = judged(made, STAGE, grown)
    if {CHUNKED, BEST, ANY} & set(ways):
        learned = made.learn(grown, weights, [STAGE], STAGE)
        found["ranking"] = made.ranked(grown, STAGE)
        if CHUNKED in ways:
            found[CHUNKED] = judged(made, CHUNKED, learned)
        rl, critic = made.config.rl, load_critic(made.folder / CHUNKED)[0].to(made.device)
        for way, kind in ((BEST, BestOfN), (ANY, AnyOfN)):
            if way in ways:
                chooser = kind(grown, critic, count=rl.candidates, deviation=rl.deviation, seed=seed)
                found[way] = judged(made, way, chooser)
    if RANDOM in ways:
        every = made.sources([STAGE]) + made.sources([STAGE], REFUSED)
        rows = made.windows_with(every)
        first = len(made.episodes)
        tries = np.arange(first, len(rows.episodes))
        drawn = np.random.default_rng(seed).choice(tries, min(gathered["accepted"], len(tries)), replace=False)
        chosen = rows.usable & (np.isin(rows.episode, drawn) | (rows.episode < first))
        found[RANDOM] = judged(made, RANDOM, made.train(RANDOM, made.fresh(), chosen.astype(float), rows))
    if CORRECTIONS in ways:
        found["corrected"] = made.grow(CORRECTIONS, policy, "imitate")
        print(f"  {task}, seed {seed}: {CORRECTIONS} {found['corrected']}", flush=True)
        rows, more = made.grown([STAGE, CORRECTIONS], weights)
        found[CORRECTIONS] = judged(made, CORRECTIONS, made.train(CORRECTIONS, made.fresh(), more, rows))
    return found


def judged(made: FinetuningRun, name: str, policy: Any) -> list[dict[str, Any]]:
    """A policy's episodes on the starts that judge, played unless they were."""
    file = made.folder / name / "episodes.json"
    if not file.is_file() or len(json.loads(file.read_text("utf-8"))) != made.config.eval_episodes:
        file.parent.mkdir(parents=True, exist_ok=True)
        made.judge(name, policy)
    return json.loads(file.read_text("utf-8"))


def table(task: str, done: Sequence[Mapping[str, Any]], seeds: Sequence[int], execute: int) -> list[dict[str, Any]]:
    """A row a way; the gain over imitation, and what was accepted wrongly."""
    eight, ways = f"{task}, {DEMONSTRATIONS} demonstrations", [way for way in TOLD if way in done[0]]
    rows = {
        way: row(TOLD[way].format(eight), [{"rows": one[way], "execute": execute, "tried": {}} for one in done], seeds)
        for way in ways
    }
    gains = [
        ("own tries accepted", STAGE, "imitate", 1.5), ("own tries at random (control)", RANDOM, "imitate", None),
        ("own tries and corrections accepted", CORRECTIONS, "imitate", 1.5),
        ("chunked RL", CHUNKED, STAGE, 1.25), ("the best of eight chunks", BEST, STAGE, 1.25),
        ("any of the eight chunks (control)", ANY, STAGE, None),
    ]  # fmt: skip
    found = list(rows.values())
    for name, way, other, bar in gains:
        if way not in ways:
            continue
        rate = max(rows[other]["value"], 1 / rows[other]["n"])
        both = [[each for one in done for each in one[kind]] for kind in (other, way)]
        compared = judging.compare(*both)
        assert compared is not None
        compared["p"] = by_start(*both)
        ratio = 1 + compared["difference"] / rate
        over = "imitation's" if other == "imitate" else "that of imitating the accepted tries"
        found.append(
            {
                "claim": f"{eight}: success with {name}, over {over}", "value": ratio, "unit": "ratio",
                "bar": bar and f">= {bar}", "met": bar and ratio >= bar, "n": compared["starts"], "seeds": list(seeds),
                "by_seed": ratios([one[other] for one in done], [one[way] for one in done]),
                **{k: compared[k] for k in ("better", "worse", "p", "steps_saved", "steps_saved_interval")},
            }
        )  # fmt: skip
    if CORRECTIONS in ways:
        gathered, corrected = [each["gathered"] for each in done], [each["corrected"] for each in done]
        accepted, wrongly = (sum(each[key] for each in [*gathered, *corrected]) for key in ("accepted", "wrongly"))
        played = [a["starts"] + a["tries"] + b["starts"] for a, b in zip(gathered, corrected, strict=True)]
        found.append(
            {
                "claim": f"{task}: own tries and corrections accepted wrongly", "value": wrongly / max(accepted, 1),
                "unit": "share", "bar": "<= 0.02", "met": wrongly <= 0.02 * accepted, "n": accepted,
                "interval": list(wilson_interval(wrongly, accepted)), "seeds": list(seeds),
                "own_tries": [sum(each[key] for each in gathered) for key in ("accepted", "wrongly")],
                "rollouts": played, "gathered": gathered, "corrected": corrected,
            }
        )  # fmt: skip
    if done[0].get("ranking") and (ranking := ranking_row(f"{eight} and own tries", done, seeds)):
        found.append(ranking)
    return found


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
                claims = {each["claim"] for each in told}  # ways that were not asked for stay as they were
                kept = [each for each in load() if each["benchmark"] == "own_rollouts" and each["claim"] not in claims]
                record("own_rollouts", [*told, *kept])


if __name__ == "__main__":
    main()
