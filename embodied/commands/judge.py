"""Say how good rewards are, before anyone trains on them: which to trust, for what, and which would fool a learner.

Scores every reward on the same labelled episodes (successes, near misses, failures, random behaviour), on films that
must not pay (frozen, reversed, with another instruction), and on episodes in which robot and outcome differ: does the
reward pay for what was achieved, or for the pose that comes with it? Prints a table, and writes report.html and
judgement.json into a run folder.

The data are a LeRobot folder, or a name such as desk-drawer-mixed, which is collected if it is missing. Thresholds are
chosen on a part of the episodes and reported on the rest. A reward that is fitted to demonstrations gets some that are
not judged: new ones of the world or, without a world, some of the successes. benchmark= reads a public benchmark from
its folder, data=, and gives that benchmark's own figures.

    embodied judge reward=[clip,keypoint,demonstration,process] data=desk-drawer-mixed
    embodied judge reward=clip goal="the cup is upright" data=path/to/lerobot wrong=["the cup lies on its side"]
    embodied judge benchmark=rbm-ood data=path/to/rbm-1m-ood reward=clip
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from embodied import runs
from embodied.building.build import build
from embodied.building.goals import fitted_model, is_open, parts_of, takes_goal
from embodied.building.scorers import Shared, check_weights
from embodied.collecting.opening import open_dataset, reading
from embodied.config import given_in
from embodied.datasets import Dataset
from embodied.datasets.kinds import COUNTERFACTUAL
from embodied.envs import is_world
from embodied.errors import UserError
from embodied.files import whole
from embodied.judging.benchmarking import benchmark_of, run_benchmark
from embodied.judging.benchmarking import table as table_of_benchmark
from embodied.judging.cases import counterfactuals_for, first_of_kinds, read_cases
from embodied.judging.confusion import MOST, confused
from embodied.judging.figures import GROUPS, Case, Division
from embodied.judging.judgement import Judged, json_parts
from embodied.judging.pasted import pasted
from embodied.judging.report import table, write_judgement
from embodied.judging.rewards import TaskRewards, demos_wanted, reward_parts
from embodied.judging.tasks import by_instruction, over_tasks, together
from embodied.judging.verdicts import verdict
from embodied.literal import resolved
from embodied.scoring.labelling import chosen_cameras
from embodied.settings import check_least
from rewards.core import Encoder
from rewards.phrases import plain

ROOT = Path("runs", "judge")
TIMED, REPEATS = 64, 3  # frames of one timing of the encoder, and timings
APPROXIMATE = (
    "Outcome margins are approximate: mimed episodes were pasted from pictures of successes, the arm over the first "
    "frame. Better ones: embodied collect policy=counterfactual, or recorded and marked, as kind=COLUMN."
)
OURS = (  # settings that a public benchmark leaves no choice of
    "arm", "cameras", "canaries", "counterfactual", "fit", "kind", "quality", "success", "surplus", "tolerance",
    "unlabelled", "worst", "wrong",
)  # fmt: skip
FEW = 5  # episodes of a group below which its figures say little


def run(config: DictConfig) -> None:
    """Encode, score, report."""
    _check(config)
    torch.set_num_threads(config.threads)
    if config.benchmark:
        return _benchmark(config)
    encoder: Encoder = build(config.encoder)
    loaded = check_weights(resolved(config)["reward"], encoder)
    dataset = open_dataset(config.data, **reading(config))
    cameras = chosen_cameras(dataset, config.cameras or None)
    cases = read_cases(
        dataset, encoder, cameras, unlabelled=config.unlabelled, goal=_given(config), quality=config.quality
    )
    if not cases:
        raise UserError(
            f"data must hold labelled episodes; {dataset.root} does not tell of any whether it succeeded "
            f"({config.success or 'next.success'}). If another column tells it, name it, as success=next.reward, or "
            "as quality=COLUMN; if all are good demonstrations, add unlabelled=success."
        )
    asking = counterfactuals_for(dataset, config.counterfactual, cameras, cases)
    asked = [] if asking is None else read_cases(asking, encoder, cameras, unlabelled="skip", goal=_given(config))
    films: dict[str, np.ndarray] = {}
    if asking is None and config.counterfactual is not False and not any(c.kind in COUNTERFACTUAL for c in cases):
        asked, films = pasted(dataset, encoder, cameras, cases, list(config.arm or []))
    tasks = _tasks(config, cases)
    for instruction in tasks:
        _check_apart(reward_parts(config, instruction), dataset)
    judged, division = _judged(config, encoder, dataset, cameras, tasks, asked)
    approximate = bool(films) and bool(division.counterfactual)
    verdicts = {each.name: verdict(each) for each in judged}
    encode_ms = encoding_ms(encoder, dataset.frames(0, cameras[0]))
    parts = reward_parts(config, next(iter(tasks)))
    folder = runs.new_folder(ROOT, Path(config.data).name, "-".join(parts), config.seed, run=config.run)
    runs.save_config(folder, config)
    about = {"verb": "judge", "data": f"{dataset.root}, {len(dataset)} episodes", "cameras": ", ".join(cameras)}
    about |= {"encoder": encoder.name, **_split(division, cases, is_world(dataset.env_id), parts)}
    if approximate:
        about["counterfactual"] += ", approximate: pasted from pictures of successes"
    runs.write_run(folder, **about, command=sys.argv, **runs.facts())
    result = {"encode_ms": encode_ms, "verdicts": verdicts, "rewards": {each.name: each for each in judged}}
    _write(folder / "judgement.json", result)
    page = write_judgement(
        folder,
        judged,
        verdicts,
        division,
        lambda i: dataset.frames(i, cameras[0]),
        heading=_heading(division, dataset),
        about=json.loads((folder / "run.json").read_text("utf-8")),
        config=resolved(config),
        notes=[*_notes(division, dataset, len(cases), tasks), *([APPROXIMATE] if approximate else [])],
        encode_ms=encode_ms,
        worst=config.worst,
        kinds=films if approximate else first_of_kinds(asking or dataset, division, cameras[0]),
    )
    print(f"{table(judged, verdicts)}\n\n{f'{APPROXIMATE}{chr(10)}' if approximate else ''}Report: {page}")
    del loaded  # until then nothing is loaded twice


def _judged(
    config: DictConfig,
    encoder: Encoder,
    dataset: Dataset,
    cameras: Sequence[str],
    tasks: Mapping[str, Sequence[Case]],
    asked: Sequence[Case],
) -> tuple[list[Judged], Division]:
    """Every reward over all tasks, and how the episodes were divided.

    Args:
        tasks: instruction -> its episodes.
        asked: counterfactual ones of all tasks.
    """
    env = None
    if is_world(dataset.env_id):
        env = dataset.env | ({"cameras": cameras} if len(cameras) > 1 else {"camera": cameras[0]})
    found: list[dict[str, Judged]] = []
    rewards: dict[str, TaskRewards] = {}
    shared = Shared()
    for instruction, members in tasks.items():
        task = plain(members[0].episode.instruction)
        more = [case for case in asked if plain(case.episode.instruction) == task]
        one = TaskRewards(config, encoder, cameras, instruction, members, env, more, shared)
        found.append({each.name: each for each in one.judged()})
        if len(rewards) >= MOST:  # no later task is asked about others: its rewards need not stay
            one.scorers, one.probes = {}, []
        rewards[instruction] = one
    judged = confused(
        [over_tasks({task: each[name] for task, each in zip(tasks, found, strict=True)}) for name in found[0]],
        {task: each.scorers for task, each in rewards.items()},
        {task: each.probes for task, each in rewards.items()},
        resamples=config.resamples,
        seed=config.seed,
    )
    return judged, together([each.division for each in rewards.values()])


def _benchmark(config: DictConfig) -> None:
    """Score a public benchmark, and tell its own figures."""
    results, judged = run_benchmark(config, build(config.encoder))
    rewards = "-".join(reward_parts(config, ""))
    folder = runs.new_folder(ROOT, Path(config.data).name, rewards, config.seed, run=config.run)
    runs.save_config(folder, config)
    about = {"verb": "judge", "benchmark": config.benchmark, "data": config.data, "judged on": judged}
    runs.write_run(folder, **about, command=sys.argv, **runs.facts())
    published = benchmark_of(config.benchmark).published
    result = {"benchmark": config.benchmark, **judged, "rewards": results, "published": published}
    _write(folder / "benchmark.json", result)
    told = f"{judged['episodes']} episodes, {judged['tasks']} tasks, {len(judged['sources'])} sources"
    print(f"{table_of_benchmark(config.benchmark, results)}\n\n{told}: {folder / 'benchmark.json'}")


def _write(file: Path, result: Mapping[str, Any]) -> None:
    with whole(file) as part, part.open("w", encoding="utf-8") as out:
        out.writelines(json_parts(result))
        out.write("\n")


def _given(config: DictConfig) -> str:
    """The goal that a person gives every reward; "" where one is left open or takes none."""
    rewards = parts_of(resolved(config.reward)).values()
    goals = [part.get("goal") for part in rewards if takes_goal(part) and not is_open(part)]
    return str(goals[0]) if len(goals) == len(rewards) and isinstance(goals[0], str) else ""


def _tasks(config: DictConfig, cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Instruction -> its cases; all are one task where the person gives every reward its goal."""
    found = by_instruction(cases)
    rewards = parts_of(resolved(config.reward)).values()
    if len(found) > 1 and all(takes_goal(part) and not is_open(part) for part in rewards):
        return {next(iter(found)): list(cases)}
    return found


def encoding_ms(encoder: Encoder, frames: np.ndarray) -> float:
    """Milliseconds a frame, in one batch; the median of a few."""
    batch = torch.from_numpy(np.resize(frames, (TIMED, *frames.shape[1:])))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        encoder.encode_images(batch)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds) / TIMED


# What is told -------------------------------------------------------------------------------------------------


def _split(
    division: Division, cases: Sequence[Case], ours: bool, parts: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Which episodes served what."""

    def listed(part: Sequence[Case]) -> str:
        return ", ".join(str(index) for index in sorted(case.index for case in part)) or "none"

    told = {"judged on": f"episodes {listed(division.judged)}", "thresholds from": f"episodes {listed(division.fit)}"}
    told["counterfactual"] = f"{len(division.counterfactual)} episodes"
    one_task = len(by_instruction(cases)) == 1
    for name, part in parts.items():
        if (fitted := fitted_model(part)) is not None:
            told[f"{name} fitted"] = f"before, in {fitted}"
        elif isinstance(part.get("demos"), str):
            told[f"{name} fitted"] = f"to {part['demos']}"
        elif number := demos_wanted(part):
            fresh = f"to {number} fresh expert episodes of the world"
            taken = division.demos[:number] if one_task else division.demos
            told[f"{name} fitted"] = fresh if ours else f"to episodes {listed(taken)}"
    return told


def _notes(division: Division, dataset: Dataset, labelled: int, tasks: Mapping[str, Sequence[Case]]) -> list[str]:
    """What is undefined or weak for want of data."""
    counts = {group: sum(case.group == group for case in division.judged) for group in GROUPS}
    failures = sum(counts.values()) - counts["success"]
    notes = []
    if len(tasks) > 1:
        notes.append(
            f"There are {len(tasks)} tasks: each is scored for its own instruction with a threshold of its own, and "
            "every figure is the mean over the tasks in which it is defined."
        )
    if labelled < len(dataset):
        notes.append(f"{len(dataset) - labelled} of {len(dataset)} episodes have no label and are left out.")
    if not counts["success"]:
        notes.append("There are no successes: only τ among failures is defined, and no reward can be recommended.")
    if not failures:
        notes.append("There are only successes: ranking, AUROC, precision and the motionless share are undefined.")
    few = [f"{count} of {group}" for group, count in counts.items() if 0 < count < FEW]
    if few:
        notes.append(f"Few episodes ({', '.join(few)}): the intervals are wide, and narrower than they should be.")
    if failures and not counts["near miss"]:
        notes.append("There are no near misses, which fool rewards most: embodied collect policy=mixed makes some.")
    if not division.counterfactual:
        notes.append(
            "There are no episodes in which robot and outcome part ways, so a reward of the pose passes for one of the "
            "outcome: collect some (embodied collect policy=counterfactual) and give them as counterfactual=FOLDER, or "
            "mark those of the data in a column of texts and name it, as kind=COLUMN."
        )
    if any(case.env_rewards is None for case in division.judged):
        notes.append("The data hold no reward of the task's own: EPIC is undefined.")
    if any(case.solved is None for case in division.judged):
        notes.append("Rows are not labelled: the AUROC of frames is undefined, and order runs over whole episodes.")
    return notes


def _heading(division: Division, dataset: Dataset) -> str:
    told = [text for text in by_instruction(division.judged) if text]
    more = f" and {len(told) - 1} other task{'s'[: len(told) > 2]}" if len(told) > 1 else ""
    return f"Which reward to trust for \u201c{told[0]}\u201d{more}" if told else f"Rewards on {dataset.root.name}"


def _check(config: DictConfig) -> None:
    """Refuse what cannot be, before anything is read.

    Raises:
        UserError: a value out of its range, or a run folder that exists.
    """
    if given_in(config, "fields") and not (config.benchmark and benchmark_of(config.benchmark).pairs):
        raise UserError("fields must be left out but with benchmark=robopulse: they name the fields of its file.")
    if config.benchmark and (other := next((key for key in OURS if given_in(config, key)), None)):
        raise UserError(f"{other} must be left out with benchmark=…, which says itself what is judged and how.")
    check_least(config, canaries=1, confusion=0, resamples=10, worst=0, threads=1)
    if config.reward.get("_target_") is None:
        raise UserError("reward must be one that sees; reward=true is what the others are compared with.")
    if not 0 < config.fit < 1:
        raise UserError(f"fit must be between 0 and 1, a share of the episodes; got {config.fit}.")
    if config.unlabelled not in ("skip", "success"):
        raise UserError(f"unlabelled must be skip or success; got {config.unlabelled!r}.")
    runs.check_new(config.run)


def _check_apart(parts: Mapping[str, Mapping[str, Any]], dataset: Dataset) -> None:
    """Refuse to judge a reward on what it is fitted to.

    Raises:
        UserError: a part's demonstrations are the judged data.
    """
    for name, part in parts.items():
        for key in ("demos", "adapt"):
            source = part.get(key)
            if isinstance(source, str) and open_dataset(source).root.resolve() == dataset.root.resolve():
                raise UserError(
                    f"reward.{name}.{key} must be other episodes than the judged ones; got {source} for both. "
                    "Collect some: embodied collect policy=mixed seed=1 out=FOLDER"
                )
