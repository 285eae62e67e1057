"""A learned world to practise in: how true it is, and what practice there gains from few demonstrations.

`embodied finetune stages=[imitate,world]` in parts, on the desk: own readings, the sentence, and `cameras`. The world
is learned from the demonstrations and 60 recorded episodes good and bad (experts, noisy experts, near misses,
failures, random actions), to which the success reward that judges what is imagined is fitted: to all of them, the
held-out ones too, so how well it tells success at imagined ends is not free of them. What is foretold of held-out
episodes stands beside “nothing changed” and a world that does not see actions. Practice is judged by the
simulator on starts that chose nothing, the imitated and the practised policy on the same ones, success at the last
step: nothing tells them that they are done. Controls: practice in the action-blind world, and with rewards given to
other rollouts than those that earned them.

    python -m benchmarks.world_env                                   # goes on where it was interrupted
    python -m benchmarks.world_env 'tasks=["drawer"]' 'seeds=[0]' episodes=40 record=false
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from benchmarks.common import begun_with, read_options, record_part
from benchmarks.tuned import gathered
from embodied.building.build import build
from embodied.config import compose
from embodied.files import write_text
from embodied.finetuning import imagining, inputs, judging
from embodied.finetuning.stages import FinetuningRun
from embodied.finetuning.training import POLICY
from embodied.training import evaluation
from policies.vla.core import ChunkPolicy
from policies.vla.world import Reflector
from rewards.metrics import wilson_interval

OPTIONS: dict[str, Any] = {
    "tasks": ["drawer"], "seeds": [0, 1, 2], "demonstrations": 5, "mixed": 60, "episodes": 60, "steps": 1000,
    "rollouts": 0, "world": 250, "updates": 20, "rate": 1e-4, "execute": 4, "controls": 1, "practise": True,
    "cameras": ["front"],
    "record": True,
}  # fmt: skip
ROOT = Path("runs", "benchmarks", "world_env")
COLLECTED = Path("runs", "benchmarks", "demos")


def session(task: str, seed: int, options: Mapping[str, Any]) -> FinetuningRun:
    """A fine-tuning of the task's demonstrations, collected first if they are not there."""
    roots = {}
    for policy, count, first in (("expert", options["demonstrations"], 0), ("mixed", options["mixed"], 100)):
        words = [f"env=desk-{task}", f"policy={policy}", f"seed={first}", "cameras=[front,wrist]"]
        roots[policy] = gathered(COLLECTED / f"{task}-{policy}-{count}", count, *words)
    words = [
        f"data={roots['expert']}", f"seed={seed}", f"steps={options['steps']}", "validation=0",
        f"policy.cameras=[{','.join(options['cameras'])}]",
        f"labels.labelled={roots['mixed']}", f"execute={options['execute']}", "videos=0", "stages=[imitate,world]",
        f"world.data=[{roots['mixed']}]", f"world.rollouts={options['rollouts']}", f"world.steps={options['world']}",
        f"rloo.updates={options['updates']}", f"rloo.learning_rate={options['rate']}",
    ]  # fmt: skip
    folder = ROOT / "-".join([task, str(options["demonstrations"]), *options["cameras"]]) / f"s{seed}"
    begun_with(folder, words)
    config = compose("finetune", words)
    planned = inputs.plan(config)
    OmegaConf.set_struct(config, False)
    config.env = planned.sources[0].dataset.env
    return FinetuningRun(config, folder, build(config.encoder), planned)


def judged(made: FinetuningRun, name: str, policy: ChunkPolicy, episodes: int) -> list[dict[str, Any]]:
    """A policy on the starts that chose nothing, unless that was done."""
    file = made.folder / f"{name}.json"
    rows = json.loads(file.read_text("utf-8")) if file.is_file() else []
    if len(rows) != episodes:
        seeds = [made.config.seed + evaluation.FINAL + k for k in range(episodes)]
        rows = judging.as_rows(made.arena.play(policy, int(made.config.execute), seeds, desc=name))
        write_text(file, json.dumps(rows) + "\n")
    return rows


class Anyhow(Reflector):
    """A reflector whose rewards are given to other rollouts than those that earned them; a control."""

    def __init__(self, real: Reflector, seed: int) -> None:
        torch.nn.Module.__init__(self)
        self.real, self.random = real, torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def judge(self, tokens: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        said = self.real.judge(tokens, text)
        return torch.stack([said[torch.randperm(len(said), generator=self.random), 0], said[:, 1]], 1)


def foretold(
    task: str, seed: int, options: Mapping[str, Any]
) -> tuple[FinetuningRun, imagining.WorldData, imagining.Model]:
    """One seed's imitation and the world that is learned beside it; its truth lies in `world/truth.json`."""
    made = session(task, seed, options)
    former = made.train("imitate", made.fresh(), made.rows.usable.astype(float), made.rows)
    folder = made.folder / "world"
    folder.mkdir(exist_ok=True)
    imagining.gather(made, folder, former, options["execute"])
    teacher = made.labelled[1]
    assert teacher is not None
    known = imagining.know(made, folder, teacher)
    model = imagining.model(made.config, folder / "model", known)
    print(
        task, seed, imagining.told_truth(imagining.tell(made.config, folder / "truth.json", known, model)), flush=True
    )
    return made, known, model


def tried(task: str, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Every policy's episodes; none where nobody should practise in the world."""
    made, known, model = foretold(task, seed, options)
    former = made.folder / "imitate" / POLICY
    found: dict[str, Any] = {"imitation": judged(made, "imitation", ChunkPolicy.load(former), options["episodes"])}
    print(task, seed, "imitation", judging.told_rate(found["imitation"]), flush=True)
    if imagining.refusal(json.loads((made.folder / "world" / "truth.json").read_text("utf-8"))):
        return found
    variants: dict[str, imagining.Model] = {"practised": model}
    if options["seeds"].index(seed) < options["controls"]:
        variants["blind"] = imagining.Model(model.blind, model.blind, model.reflector, model.tracks, model.kept)
        chance = Anyhow(model.reflector, seed)
        variants["random rewards"] = imagining.Model(model.world, model.blind, chance, model.tracks, model.kept)
    for name, each in variants.items():
        where = made.folder / name.replace(" ", "-")
        policy = imagining.practise(made.config, where, ChunkPolicy.load(former), known, each)
        found[name] = judged(made, where.name, policy, options["episodes"])
        compared = judging.compare(found["imitation"], found[name])
        print(task, seed, name, judging.told_rate(found[name]), judging.verdict(compared), flush=True)
    return found


def about(task: str, options: Mapping[str, Any]) -> str:
    """What a row's claim begins with."""
    return f"{task}, {options['demonstrations']} demonstrations by {' and '.join(options['cameras'])}"


def truth_rows(task: str, told: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What worlds foretold, means over seeds."""
    common = {"n": sum(each["windows"] for each in told), "seeds": list(seeds)}

    def row(claim: str, values: Sequence[float], unit: str, met: bool | None = None, bar: str | None = None) -> Any:
        return {"claim": f"{task}: {claim}", "value": float(np.mean(values)), "unit": unit, "bar": bar, "met": met,
                "by_seed": list(map(float, values))} | common  # fmt: skip

    rows = []
    for steps in ("8", "16"):
        error = {who: [each["error"][steps][who] for each in told] for who in ("world", "blind")}
        best = bool(np.mean(error["world"]) < min(1.0, np.mean(error["blind"])))
        unit = "of “nothing changed”"
        rows.append(row(f"error of maps after {steps} actions", error["world"], unit, best, "< 1 and < action-blind"))
        rows.append(row(f"error of maps after {steps} actions, action-blind (control)", error["blind"], unit))
    for who in ("real", "world", "blind", "copy"):
        word = {"real": "true moments", "world": "imagined", "blind": "action-blind (control)",
                "copy": "nothing changed (control)"}[who]  # fmt: skip
        rows.append(row(f"action read back, {word}", [each["happened"][who]["r_squared"] for each in told], "R²"))
        rows.append(row(f"true action of two, {word}", [each["happened"][who]["choice"] for each in told], "share"))
        if all(each["reflector"][who] is not None for each in told):
            seen = [each["reflector"][who] for each in told]
            bar, met = (">= 0.9", bool(np.mean(seen) >= 0.9)) if who == "world" else (None, None)
            rows.append(row(f"recorded success from the end of 16 actions, {word}", seen, "AUROC", met, bar))
        if who != "real":
            rows.append(row(f"same scene of eight, {word}", [each["same"]["scene"][who] for each in told], "share"))
            rows.append(row(f"same moment of five, {word}", [each["same"]["moment"][who] for each in told], "share"))
    return rows


def practice_rows(task: str, done: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Success at the last step by policy, and the paired gain over imitation."""
    rows = []
    for name in ("imitation", "practised", "blind", "random rewards"):
        having = [each for each in done if name in each]
        if not having:
            continue
        solved = [[bool(row["success"]) for row in each[name]] for each in having]
        flat = [each for one in solved for each in one]
        ever = float(np.mean([bool(row["ever"]) for each in having for row in each[name]]))
        counted = {"n": len(flat), "seeds": list(seeds[: len(having)]), "by_seed": [float(np.mean(s)) for s in solved]}
        word = {"imitation": "imitation", "practised": "after practice in the learned world",
                "blind": "after practice in the action-blind world (control)",
                "random rewards": "after practice with rewards given at random (control)"}[name]  # fmt: skip
        interval = list(wilson_interval(sum(flat), len(flat)))
        rows.append({"claim": f"{task}: success, {word}", "value": float(np.mean(flat)), "unit": "share",
                     "interval": interval, "at_any_step": ever} | counted)  # fmt: skip
        if name == "imitation":
            continue
        before = [row for each in having for row in each["imitation"]]
        paired = judging.compare(before, [row for each in having for row in each[name]])
        assert paired is not None
        bar, met = (">= 0.04", bool(paired["difference"] >= 0.04)) if name == "practised" else (None, None)
        told = {key: paired[key] for key in ("better", "worse", "p")}
        first = [float(np.mean([bool(row["success"]) for row in each["imitation"]])) for each in having]
        told["by_seed"] = [after - before for before, after in zip(first, counted["by_seed"], strict=True)]
        rows.append({"claim": f"{task}: gain, {word}", "value": paired["difference"], "unit": "share", "bar": bar,
                     "met": met} | counted | told)  # fmt: skip
    return rows


def main() -> None:
    """Task by task, first the truth of all seeds; recording after every seed."""
    options = read_options(OPTIONS)
    torch.set_num_threads(1)
    table: list[dict[str, Any]] = []
    for task in options["tasks"]:
        before, told, done = list(table), [], []

        def tell(
            task: str = task, before: Sequence[Any] = before, told: Sequence[Any] = told, done: Sequence[Any] = done
        ) -> None:
            seeds = options["seeds"]
            table[:] = [*before, *truth_rows(about(task, options), told, seeds[: len(told)])]
            table.extend(practice_rows(about(task, options), done, seeds[: len(done)]))
            if options["record"]:
                record_part("world_env", table)

        for seed in options["seeds"]:
            made = foretold(task, seed, options)[0]
            told.append(json.loads((made.folder / "world" / "truth.json").read_text("utf-8")))
            tell()
        for seed in options["seeds"] if options["practise"] else ():
            done.append(tried(task, seed, options))
            tell()
    for each in table:
        print(f"{each['claim']}: {each['value']:.3f} {each['unit']}", flush=True)


if __name__ == "__main__":
    main()
