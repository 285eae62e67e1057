"""What benchmarks of fine-tuned policies share: sessions of other people's worlds, and the rows that tell of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from benchmarks.common import begun_with
from embodied.building.build import build
from embodied.collecting.collect import collect
from embodied.config import compose
from embodied.datasets import Dataset
from embodied.finetuning import inputs, worlds
from embodied.finetuning.ranking import ranked
from embodied.finetuning.stages import FinetuningRun
from rewards.metrics import mcnemar, wilson_interval

SEEDS = 3  # training seeds that a bar is for: fewer can miss it, not meet it


def of_suite(
    world: str, data: Path, folder: Path, seed: int, options: Mapping[str, Any], *more: str,
    cameras: Sequence[str], size: int, longest: int,
) -> FinetuningRun:  # fmt: skip
    """A fine-tuning of a suite's world, whose expert's demonstrations are collected first if they are not there."""
    count = int(options["demonstrations"])
    gathered(
        data, count, "env=gym", f"env.id={world}", f"env.max_episode_steps={longest}", "policy=expert",
        f"cameras=[{','.join(cameras)}]", f"image_size={size}",
    )  # fmt: skip
    words = [
        f"data={data}", f"seed={seed}", f"steps={options['steps']}", "validation=0", "labels.source=recorded",
        f"execute={options['execute']}", *more,
    ]  # fmt: skip
    begun_with(folder, [*words, f"demonstrations={count}"])
    config = compose("finetune", [*words, f"eval_episodes={options['episodes']}", "videos=1", "num_worlds=2"])
    planned = inputs.plan(config)
    OmegaConf.set_struct(config, False)
    config.env = config.get("env") or worlds.worlds_of_data(planned)
    return FinetuningRun(config, folder, build(config.encoder), planned)


def gathered(data: Path, count: int, *words: str, exact: bool = True) -> Path:
    """A dataset of so many episodes, collected or finished now unless it is whole; `exact=False`: of more, too.

    Raises:
        SystemExit: it holds more.
    """
    found = len(Dataset(data)) if (data / "meta").is_dir() else 0
    if found < count:
        found = len(collect(compose("collect", [*words, f"episodes={count}", f"out={data}"])))
    if exact and found > count:
        sys.exit(f"{data} holds {found} episodes, and {count} are asked for. Move it away to collect anew.")
    return data


def row(claim: str, done: Sequence[Mapping[str, Any]], seeds: Sequence[int], bar: str | None = None) -> dict[str, Any]:
    """Success over seeds, with the interval over all episodes."""
    solved = [[bool(each["success"]) for each in one["rows"]] for one in done]
    flat = [each for one in solved for each in one]
    value = float(np.mean(flat))
    steps = [each["steps"] for one in done for each in one["rows"] if each["steps"] is not None]
    met = None
    if bar is not None:
        limit = float(bar.split()[1])
        met = value >= limit if bar.startswith(">=") else value <= limit
    return {
        "claim": claim, "value": value, "unit": "share", "bar": bar, "met": met, "n": len(flat), "seeds": list(seeds),
        "interval": list(wilson_interval(sum(flat), len(flat))), "by_seed": [float(np.mean(one)) for one in solved],
        "at_any_step": float(np.mean([bool(each["ever"]) for one in done for each in one["rows"]])),
        "steps_to_success": float(np.median(steps)) if steps else None,
        "executed": [one["execute"] for one in done], "tried": [one["tried"] for one in done if one["tried"]],
    }  # fmt: skip


def voided(claim: Mapping[str, Any], controls: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A claim beside its controls: one that does what it must not do leaves the claim unproven; without them none is.

    Nor is one that too few training seeds meet.

    Args:
        claim: a row, as it is by itself.
        controls: their claims.
        rows: what was measured, now or before, the newest of a claim last.
    """
    known = {row["claim"]: row["met"] for row in rows if row["claim"] in controls}
    passed = [each for each in controls if known.get(each) is False]
    if passed:
        return {**claim, "bar": f"{claim['bar']}; void, as a control passes", "met": False, "passed": passed}
    if claim["met"] and set(controls) - set(known):
        return {**claim, "bar": f"{claim['bar']}; undecided without its controls", "met": None}
    if claim["met"] and len(claim["seeds"]) < SEEDS:
        return {**claim, "bar": f"{claim['bar']}; undecided below {SEEDS} seeds", "met": None}
    return dict(claim)


def ratios(before: Sequence[Sequence[Mapping[str, Any]]], after: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
    """Success after over success before, of each seed by itself; none before counts as one episode."""
    rates = ([float(np.mean([bool(row["success"]) for row in rows])) for rows in each] for each in (before, after))
    return [b / max(a, 1 / len(rows)) for a, b, rows in zip(*rates, before, strict=True)]


def by_start(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> float:
    """McNemar's exact p over starts, each counted once, for more or for less success over the seeds that played it.

    Neighbouring training seeds are judged on nearly the same starts, whose episodes are no independent pairs.
    """
    gained: dict[Any, int] = {}
    for one, other in zip(before, after, strict=True):
        start = one["seed"], one.get("world")
        gained[start] = gained.get(start, 0) + bool(other["success"]) - bool(one["success"])
    return mcnemar(sum(each > 0 for each in gained.values()), sum(each < 0 for each in gained.values()))


def ranking_row(claim: str, done: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any] | None:
    """The critics' AUROC within moments, over all moments of all seeds that tell chunks apart."""
    tables = [each for one in done for each in one["ranking"]["table"]]
    found = ranked(np.array([each["scores"] for each in tables]), np.array([each["success"] for each in tables], bool))
    if found["auroc"] is None:
        return None
    return {
        "claim": f"{claim}: the critic ranks chunks at one moment", "value": found["auroc"], "unit": "AUROC",
        "bar": ">= 0.8" if "control" not in claim else None,
        "met": found["auroc"] >= 0.8 if "control" not in claim else None, "n": found["mixed"], "seeds": list(seeds),
        "moments": found["moments"], **{f"success_of_{k}": found[k] for k in ("own", "random", "best")},
    }  # fmt: skip
