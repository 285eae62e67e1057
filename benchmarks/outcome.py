"""What each family of rewards pays where robot and outcome part ways, before and after it is held to its outcome.

Each task has counterfactual episodes (`embodied collect policy=counterfactual`) and demonstrations, collected anew from
seeds that set nothing. A family is fitted to five demonstrations, three times to different ones, and asked as it
is and held to its outcome (`rewards.outcome`): the same fitted head both times. The outcome margin is the least credit
of what reaches the goal less the greatest of what misses it. Order is the VOC of fresh successes, forward and backward,
the lower of the two. Finished tasks are skipped.

    python -m benchmarks.outcome
    python -m benchmarks.outcome tasks='["drawer"]'
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import load, read_options, record
from embodied.building.build import build
from embodied.collecting.collect import collect
from embodied.collecting.counterfactual import kinds_of
from embodied.config import compose
from embodied.datasets import Dataset
from embodied.datasets.kinds import COUNTERFACTUAL
from embodied.envs.bridge import make
from embodied.files import write_text
from embodied.judging.cases import in_memory, read_cases
from embodied.judging.figures import Case
from embodied.judging.judgement import potential, reversed_film
from embodied.judging.outcome import outcome
from rewards.clip_goal import clip_scorer
from rewards.combine import WeightedSum
from rewards.core import Encoder, Episode, Head, Scorer
from rewards.demonstration import Demonstration
from rewards.keypoint import keypoint_scorer
from rewards.metrics import value_order_correlation
from rewards.outcome import held_to_outcome
from rewards.process import ProcessReward
from rewards.rapl import RAPL
from rewards.shaping import PotentialShaping
from rewards.xirl import XIRL

ROOT = Path("runs", "benchmarks", "outcome")
DEFAULTS = {"tasks": ["drawer", "press", "place"], "starts": 4, "fits": 3, "seed": 8000}
DEMOS, CAMERA, SIZE = 5, "front", 128
FAMILIES = ("demonstration", "process", "xirl", "rapl", "keypoint")
BAR = 0.5


def main() -> None:
    """Collect, fit, ask and record, task by task."""
    options = read_options(DEFAULTS)
    encoder: Encoder = build(compose("judge", []).encoder)
    tasks = tuple(f"desk-{task}:" for task in options["tasks"])
    old = [row for row in load() if row["benchmark"] == "outcome" and row["claim"].startswith("desk-")]
    table = [row for row in old if not row["claim"].startswith(tasks)]  # of tasks that are not asked now
    for task in options["tasks"]:
        table += rows(task, asked(task, encoder, options), options)
        record("outcome", [*table, *counted(table, options)])


def asked(task: str, encoder: Encoder, options: dict[str, Any]) -> dict[str, Any]:
    """Family -> before and after -> fit by fit; asked now unless it was before."""
    file = ROOT / f"{task}-{options['seed']}-{options['starts']}x{options['fits']}.json"
    if file.is_file():
        return json.loads(file.read_text("utf-8"))
    cases = read_cases(data(task, "counterfactual", options["starts"] * len(kinds_of(task)), options["seed"]), encoder,
                       [CAMERA], unlabelled="skip", frames_read="first")  # fmt: skip
    expert = data(task, "expert", DEMOS * options["fits"], options["seed"] + 1)
    cases_shown = read_cases(expert, encoder, [CAMERA], unlabelled="skip", frames_read="first")
    shown = [in_memory(case.episode) for case in cases_shown]
    text = shown[0].instruction
    found: dict[str, Any] = {"clip": {"after": [answered(clip_scorer(encoder=encoder, goal=text), cases)]}}
    for fit in range(options["fits"]):
        demos = shown[fit * DEMOS : (fit + 1) * DEMOS]
        for name in FAMILIES:
            for when, scorer in both(name, demos, encoder, task, fit).items():
                found.setdefault(name, {}).setdefault(when, []).append(answered(scorer, cases))
            print(task, name, fit, {w: each[-1]["margin"] for w, each in found[name].items()}, flush=True)
    write_text(file, json.dumps(found, indent=1))
    return found


def data(task: str, policy: str, episodes: int, seed: int) -> Dataset:
    """A dataset of a task from one camera, collected unless it is there."""
    words = [f"env=desk-{task}", f"policy={policy}", f"episodes={episodes}", f"seed={seed}", f"image_size={SIZE}"]
    out = ROOT / f"{task}-{policy}-{seed}-{episodes}"
    return collect(compose("collect", [*words, f"cameras=[{CAMERA}]", f"out={out}"]))


def both(name: str, demos: list[Episode], encoder: Encoder, task: str, seed: int) -> dict[str, Scorer]:
    """A family's scorer as it is, and held to its outcome."""
    if name == "keypoint":
        world: Any = make(f"desk-{task}")
        options: dict[str, Any] = {"goal": demos[0].instruction, "encoder": encoder}
        options["calibration"] = {CAMERA: world.unwrapped.calibration(CAMERA, SIZE)}
        world.close()
        return {"before": keypoint_scorer(**options), "after": keypoint_scorer(**options, demos=demos)}
    head: Any = {
        "demonstration": lambda: Demonstration.fit(demos),
        "process": lambda: ProcessReward.fit(demos, encoder=encoder, seed=seed),
        "xirl": lambda: XIRL.fit(demos, seed=seed),
        "rapl": lambda: RAPL.fit(demos, seed=seed),
    }[name]()
    held: Head = held_to_outcome(head, {}, encoder=encoder, demos=demos)
    kinds = {"before": head, "after": held}
    return {when: Scorer(encoder, {name: each}, WeightedSum(), PotentialShaping()) for when, each in kinds.items()}


def answered(scorer: Scorer, cases: list[Case]) -> dict[str, Any]:
    """Credits, margin and order of one scorer."""
    ends: dict[str, list[float]] = {}
    order: list[float] = []
    for case in cases:
        said = potential(scorer, case.episode.features)
        success = case.kind not in COUNTERFACTUAL
        ends.setdefault("success" if success else case.kind, []).append(float(said[case.end]))
        if success:
            backward = potential(scorer, reversed_film(case.episode.features, case.clip))
            voc = value_order_correlation(said[: case.clip]), value_order_correlation(backward, rewound=True)
            order.append(min(voc))
    found = outcome(ends, resamples=500)
    credit = {kind: figure.value for kind, figure in found.credit.items()}
    return {"margin": found.margin.value, "low": found.margin.low, "high": found.margin.high, "credit": credit,
            "order": float(np.mean(order))}  # fmt: skip


def rows(task: str, families: dict[str, Any], options: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a family."""
    table: list[dict[str, Any]] = []
    for name, times in families.items():
        after = times["after"]
        margins = {when: [each["margin"] for each in fits] for when, fits in times.items()}
        value = float(np.mean(margins["after"]))
        before = float(np.mean(margins["before"])) if "before" in margins else None
        told = "" if before is None else f" (as it is: {before:.2f})"
        table.append(
            {
                "claim": f"desk-{task}: outcome margin of {name}{told}",
                "value": value,
                "unit": "share of a success's gain",
                "bar": f">= {BAR}",
                "met": value >= BAR,
                "n": options["starts"],
                "seeds": list(range(len(after))),
                "interval": [min(each["low"] for each in after), max(each["high"] for each in after)],
                "fits": margins,
                "before": before,
                "order": {when: float(np.mean([each["order"] for each in fits])) for when, fits in times.items()},
                "credit": {
                    when: {kind: float(np.mean([each["credit"][kind] for each in fits])) for kind in fits[0]["credit"]}
                    for when, fits in times.items()
                },
            }
        )
    return table


def counted(table: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """How many families pass, over all tasks."""
    bound, table = [row for row in table if row["before"] is not None], []
    for when, met in (("before", lambda row: row["before"] >= BAR), ("after", lambda row: row["met"])):
        count = sum(met(row) for row in bound)
        table.append(
            {
                "claim": f"Families fitted to demonstrations, by task, with an outcome margin of {BAR}: {when}",
                "value": count,
                "unit": f"of {len(bound)}",
                "bar": f">= {len(bound)}" if when == "after" else None,
                "met": count >= len(bound) if when == "after" else None,
                "n": len(bound),
                "seeds": [options["seed"]],
            }
        )
    return table


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
