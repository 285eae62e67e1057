"""Fine-tuning: imitation from pixels with 50 demonstrations, its controls, and what labels from pixels are worth.

`embodied finetune` with its defaults on demonstrations of the desk's scripted expert (front and wrist camera, 192 px):
training seeds beside each other, the ways of each judged on the same starts, which chose nothing. How many steps of a
chunk are executed is chosen once a task, by the first seed's policy on validation starts, and holds for the other
seeds, for the controls and for what else is made of the task; whole chunks are judged beside it. Controls: the same
policy that does not look (own readings and the sentence alone), and one that was taught the actions of another episode.
`mixed` imitates 60 episodes good and bad: all of them, those that the success reward accepts from pixels (fitted to the
first 20, which were labelled and keep their label), those that truly succeeded, and as many drawn at random.
`language` teaches one policy several tasks of
one scene, each by its sentence, beside a policy of each task alone that was `taught` as many demonstrations of it; the
control tells the one policy in each world the sentence of the next task, and what that world asks for must not come
of it. `chunked` goes on from imitation of those of 60 that truly succeeded: chunked RL, with the outcomes of the
episodes dealt out anew, and without weight (imitation that goes on), each against the imitation that all began from, on
the same starts; and how its critic ranks chunks.

    python -m benchmarks.finetune                              # goes on where it was interrupted
    python -m benchmarks.finetune 'tasks=["drawer"]' 'mixed=[]' 'language=[]' 'chunked=[]' 'seeds=[0]' episodes=40
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from benchmarks.common import begun_with, load, read_options, record
from benchmarks.tuned import by_start, gathered, ranking_row, ratios, row, voided
from embodied.building.build import build
from embodied.config import compose
from embodied.files import write_text
from embodied.finetuning import inputs, judging, labels, worlds
from embodied.finetuning.stages import CHUNKED, FinetuningRun
from embodied.finetuning.training import POLICY
from embodied.training.evaluation import FINAL
from policies.vla.core import ChunkPolicy
from policies.vla.critic import Outcomes

OPTIONS: dict[str, Any] = {
    "tasks": ["drawer", "press", "place", "lift", "stack"], "mixed": ["place"], "chunked": ["place", "drawer"],
    "language": ["drawer", "press", "place", "lift"], "taught": 25, "seeds": [0, 1, 2],
    "episodes": 200, "steps": 2000, "controls": True, "whole": True, "choose": 40, "execute": 0,
    "moments": 24, "actor": "distil", "rl_steps": 3000, "record": True,
}  # fmt: skip
LANGUAGE = "language"
BARS = {"drawer": 0.95, "press": 0.95, "place": 0.85, "lift": 0.7}
ROOT = Path("runs", "benchmarks", "finetune")
COLLECTED = Path("runs", "benchmarks", "demos")
Change = Callable[[FinetuningRun], np.ndarray]  # a session, changed in place -> how much each row is imitated


def session(
    task: str, policy: str, count: int, seed: int, options: Mapping[str, Any], name: str, *more: str,
    kind: type[FinetuningRun] = FinetuningRun, exact: bool = True,
) -> FinetuningRun:  # fmt: skip
    """A fine-tuning of demonstrations that are collected first if they are not there; of several tasks as a+b.

    Unless it is to be exact, there may be more of them, of which `taught` takes the first `count` of each task.
    """
    roots = [demonstrations(each, policy, count, exact=exact) for each in task.split("+")]
    words = [f"data=[{','.join(map(str, roots))}]", f"seed={seed}", f"steps={options['steps']}", "validation=0", *more]
    folder = _folder(task, policy, options) / f"{name}-s{seed}"
    told = [word for word in words if name.startswith("rl-") or not word.startswith(("rl.", "ranked."))]
    chooses = f"choose_episodes={options['choose']}"
    told += [] if exact else [f"taught={count}"]
    begun_with(folder, [*told, f"execute={options['execute']}" if options["execute"] else chooses])
    words += [f"eval_episodes={options['episodes']}", "videos=0", chooses]
    execute = options["execute"] or chosen(task, options)
    if execute and not any(word.startswith("execute=") for word in more):  # else chosen on validation starts
        words.append(f"execute={execute}")
    config = compose("finetune", words)
    planned = inputs.plan(config)
    OmegaConf.set_struct(config, False)
    config.env, config.taught = worlds.worlds_of_data(planned), count
    return kind(config, folder, build(config.encoder), planned)


def demonstrations(task: str, policy: str, count: int, *, exact: bool) -> Path:
    """A task's dataset of so many episodes, or of at least so many."""
    words = [f"env=desk-{task}", f"policy={policy}", "cameras=[front,wrist]"]
    return gathered(COLLECTED / f"{task}-{policy}", count, *words, exact=exact)


def chosen(task: str, options: Mapping[str, Any]) -> int:
    """How many steps of a chunk the task's first policy executes, chosen on validation starts; 0: not yet chosen."""
    name = LANGUAGE if "+" in task else "imitate"
    file = _folder(task, "expert", options) / f"{name}-s{options['seeds'][0]}" / "policy" / "execute.json"
    if not file.is_file():
        return 0
    tried = json.loads(file.read_text("utf-8"))
    return best(tried) if "1" in tried else 0


def best(tried: Mapping[str, float]) -> int:
    """The number of steps with the most success; of equals, the larger."""
    return max((int(key) for key in tried), key=lambda execute: (tried[str(execute)], execute))


def _folder(task: str, policy: str, options: Mapping[str, Any]) -> Path:
    return ROOT / f"{task}-{policy}-{options['steps']}"


def usable(made: FinetuningRun) -> np.ndarray:
    """Everything."""
    return made.rows.usable.astype(float)


def shuffled(made: FinetuningRun) -> np.ndarray:
    """Each episode with the actions of another."""
    episodes = made.episodes
    turned = np.random.default_rng(0).permutation(len(episodes))
    turned = np.roll(turned, 1)[np.argsort(turned)]  # one cycle, so that none keeps its own
    count = [min(len(a), len(episodes[k])) for a, k in zip(episodes, turned, strict=True)]
    made.__dict__.pop("rows", None)  # those of the episodes as they were
    made.__dict__["episodes"] = [
        replace(a, actions=episodes[k].actions[:n], state=a.state[:n], maps={c: m[:n] for c, m in a.maps.items()})
        for a, k, n in zip(episodes, turned, count, strict=True)
    ]
    return made.rows.usable.astype(float)


def by_labels(made: FinetuningRun) -> np.ndarray:
    """What the config's labels say."""
    return labels.row_weights(made.config, made.labelled[0], made.plan, made.encoder, made.rows)


def permuted(made: FinetuningRun) -> np.ndarray:
    """As many episodes as are accepted, drawn at random."""
    words = np.random.default_rng(made.config.seed).permutation(made.labelled[0].words)
    said = labels.EpisodeLabels(tuple(map(str, words)), made.labelled[0].said_by)
    return labels.row_weights(made.config, said, made.plan, made.encoder, made.rows)


class Dealt(FinetuningRun):
    """Of which each episode has the outcome of another, drawn at random."""

    def outcomes(self, more: Sequence[inputs.DataSource]) -> Outcomes:
        true = super().outcomes(more)
        first = [0, *(true.last.unique()[:-1] + 1).tolist()]
        order = np.random.default_rng(self.config.seed).permutation(len(first))
        lengths = np.diff([*first, len(true.last)])
        rows = [first[k] + np.minimum(np.arange(n), lengths[k] - 1) for n, k in zip(lengths, order, strict=True)]
        dealt = torch.from_numpy(np.concatenate(rows))
        return Outcomes(true.solved[dealt], true.last, true.end[dealt])


def chunked(task: str, seed: int, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Imitation of the solved, and what chunked RL and its controls make of it: episodes, comparison, ranking."""
    ways: dict[str, tuple[type[FinetuningRun], float]] = {
        "chunked RL": (FinetuningRun, 1.0), "outcomes dealt out anew (control)": (Dealt, 1.0),
        "no weight (control)": (FinetuningRun, 0.0),
    }  # fmt: skip
    rl = ["labels.source=recorded", f"rl.actor={options['actor']}", f"rl.steps={options['rl_steps']}",
          f"ranked.moments={options['moments']}"]  # fmt: skip
    made = session(task, "mixed", 60, seed, options, "true-labels", *rl)
    weights = by_labels(made)
    policy = made.train("policy", made.fresh(), weights, made.rows)
    rows = made.judge("policy", policy)
    assert rows is not None
    found: dict[str, dict[str, Any]] = {"imitation of the solved": {
        "rows": rows, "tried": {}, "execute": made.execute("policy", policy),
    }}  # fmt: skip
    execute = found["imitation of the solved"]["execute"]
    for name, (kind, weight) in ways.items():
        more = [*rl, f"rl.weight={weight}", f"execute={execute}"]
        other = session(task, "mixed", 60, seed, {**options, "execute": 0}, f"rl-{kind.__name__}-{weight:g}", *more,
                        kind=kind)  # fmt: skip
        other.__dict__["episodes"], other.__dict__["eyes"] = made.episodes, made.eyes  # encoded once
        rows = other.judge(CHUNKED, other.learn(policy, weights, [], "policy"))
        assert rows is not None
        found[name] = {
            "rows": rows, "tried": {}, "execute": execute,
            "compared": judging.compare(found["imitation of the solved"]["rows"], rows),
            "ranking": other.ranked(policy, CHUNKED) if weight else None,
        }  # fmt: skip
    return found


def paired(
    claim: str, done: Sequence[Mapping[str, Any]], seeds: Sequence[int], *, least: float, over: str = "imitation's"
) -> dict[str, Any]:
    """Of all seeds' starts: those that one alone solves, and the steps saved where both do; no bar for a control."""
    before = [row for one in done for row in one["before"]]
    after = [row for one in done for row in one["rows"]]
    compared = judging.compare(before, after)
    assert compared is not None
    compared["p"] = by_start(before, after)
    rate = max(float(np.mean([bool(row["success"]) for row in before])), 1 / len(before))
    ratio, control = 1 + compared["difference"] / rate, "control" in claim
    bar, met = f">= {least}", ratio >= least
    if least > 1:
        bar, met = f"{bar}, p < 0.01", met and compared["p"] < 0.01
    return {
        "claim": f"{claim}, success over {over}", "value": ratio, "unit": "ratio",
        "bar": None if control else bar, "met": None if control else bool(met),
        "n": compared["starts"], "seeds": list(seeds), **{k: compared[k] for k in ("better", "worse", "p")},
        "by_seed": ratios([one["before"] for one in done], [one["rows"] for one in done]),
        "steps_saved": compared["steps_saved"], "steps_saved_interval": compared["steps_saved_interval"],
    }  # fmt: skip


def played(made: FinetuningRun, change: Change) -> dict[str, Any]:
    """Train and judge, unless that was done: every start's episode, and what was tried for the steps executed."""
    file = made.folder / "policy" / "episodes.json"
    if not file.is_file() or len(json.loads(file.read_text("utf-8"))) != made.config.eval_episodes * len(made.arenas):
        weights = change(made)  # before anything is made of the rows, which it may change
        made.judge("policy", made.train("policy", made.fresh(), weights, made.rows))
    told = made.folder / "policy" / "execute.json"
    tried = json.loads(told.read_text("utf-8")) if told.is_file() else {}
    execute = made.config.execute or best(tried)
    return {"rows": json.loads(file.read_text("utf-8")), "execute": execute, "tried": tried}


def whole(made: FinetuningRun) -> list[dict[str, Any]]:
    """The same policy on the same starts, executing all of every chunk."""
    file = made.folder / "policy" / "whole.json"
    if not file.is_file() or len(json.loads(file.read_text("utf-8"))) != made.config.eval_episodes:
        policy = ChunkPolicy.load(made.folder / "policy" / POLICY)
        seeds = range(made.config.seed + FINAL, made.config.seed + FINAL + made.config.eval_episodes)
        played = made.arena.play(policy, policy.spec.horizon, seeds, desc="whole chunks")
        write_text(file, json.dumps(judging.as_rows(played)) + "\n")
    return json.loads(file.read_text("utf-8"))


def taught(made: FinetuningRun) -> np.ndarray:
    """The first few demonstrations of each task (`taught`), and no others."""
    count = int(made.config.taught)
    lengths = [len(source.dataset) for source in made.plan.sources]
    used = np.concatenate([np.arange(length) < count for length in lengths])
    return made.rows.usable * used[made.rows.episode].astype(float)


def told_another(made: FinetuningRun, execute: int) -> list[dict[str, Any]]:
    """A policy of several tasks on the same starts, told the sentence of the next task in each world."""
    file, count = made.folder / "policy" / "another.json", made.config.eval_episodes * len(made.arenas)
    if not file.is_file() or len(json.loads(file.read_text("utf-8"))) != count:
        policy = ChunkPolicy.load(made.folder / "policy" / POLICY)
        seeds = range(made.config.seed + FINAL, made.config.seed + FINAL + made.config.eval_episodes)
        sentences = [source.dataset.recording(0, cameras=()).instruction for source in made.plan.sources]
        said = [replace(arena, instruction=sentence) for arena, sentence in
                zip(made.arenas, [*sentences[1:], sentences[0]], strict=True)]  # fmt: skip
        played = judging.play_all(said, policy, execute, seeds, desc="another sentence")
        write_text(file, json.dumps(judging.as_rows(played)) + "\n")
    return json.loads(file.read_text("utf-8"))


def language(options: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """One policy of several tasks beside one of each, and told another task's sentence: rows, after every seed."""
    tasks, count = options["language"], options["taught"]
    words = ["labels.source=all", "labels.weights=uniform"]
    found: dict[str, list[dict[str, Any]]] = {"one": [], "each": [], "another": []}
    for seed in options["seeds"]:
        both = session("+".join(tasks), "expert", count, seed, options, LANGUAGE, *words, exact=False)
        one = played(both, taught)
        found["one"].append(one)
        found["another"].append({"rows": told_another(both, one["execute"]), "execute": one["execute"], "tried": {}})
        each = []
        for task in tasks:
            alone = session(task, "expert", count, seed, options, f"first-{count}", *words, exact=False)
            done = played(alone, taught)
            each += [row | {"world": f"desk-{task}"} for row in done["rows"]]
        found["each"].append({"rows": each, "execute": one["execute"], "tried": {}})
        seeds = options["seeds"][: len(found["one"])]
        claim = f"language, {len(tasks)} tasks ({', '.join(tasks)}), {count} demonstrations of each"
        shares = {name: by_task(done) for name, done in found.items()}
        ratio = float(np.mean([*shares["one"].values()]) / max(np.mean([*shares["each"].values()]), 1e-9))
        yield [
            row(f"{claim}, a policy of each", found["each"], seeds) | {"by_task": shares["each"]},
            row(f"{claim}, one policy", found["one"], seeds) | {"by_task": shares["one"]},
            row(f"{claim}, told another task's sentence (control)", found["another"], seeds, "<= 0.15 of each task")
            | {"by_task": shares["another"], "met": max(shares["another"].values()) <= 0.15},
            {"claim": f"{claim}, one policy: success over the mean of a policy of each", "value": ratio,
             "unit": "ratio", "bar": ">= 0.9, four tasks", "met": ratio >= 0.9 and len(tasks) >= 4,
             "n": sum(len(one["rows"]) for one in found["one"]),
             "seeds": list(seeds)},
        ]  # fmt: skip


def by_task(done: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Success in each world."""
    rows = [row for one in done for row in one["rows"]]
    return {name: float(np.mean([bool(row["success"]) for row in each]))
            for name, each in judging.by_world(rows).items()}  # fmt: skip


def over_whole(claim: str, done: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """Success of the chosen number of steps over that of whole chunks, on the same starts."""
    before = [row for one in done for row in one["whole"]]
    after = [row for one in done for row in one["rows"]]
    compared = judging.compare(before, after)
    assert compared is not None
    compared["p"] = by_start(before, after)
    rate = float(np.mean([bool(row["success"]) for row in before]))
    ratio = 1 + compared["difference"] / max(rate, 1 / len(before))
    return {
        "claim": f"{claim}: success over that of whole chunks", "value": ratio, "unit": "ratio", "bar": ">= 1.3",
        "met": ratio >= 1.3, "n": compared["starts"], "seeds": list(seeds), "whole": rate,
        "by_seed": ratios([one["whole"] for one in done], [one["rows"] for one in done]),
        "executed": done[0]["execute"], **{k: compared[k] for k in ("better", "worse", "p")},
    }  # fmt: skip


def main() -> None:
    """Task by task, recording after every run."""
    options = read_options(OPTIONS)
    torch.set_num_threads(1)
    measured: list[dict[str, Any]] = []

    def tell(new: dict[str, Any]) -> None:
        print(f"{new['claim']}: {new['value']:.3f} (bar {new['bar']}, {new.get('by_seed', '')})", flush=True)
        measured[:] = [*(each for each in measured if each["claim"] != new["claim"]), new]
        if options["record"]:  # what is not measured now stays as it was
            claims = {each["claim"] for each in measured}
            before = [{k: v for k, v in each.items() if k != "benchmark"} for each in load()
                      if each["benchmark"] == "finetune" and each["claim"] not in claims]  # fmt: skip
            record("finetune", [*before, *measured])

    for task in options["tasks"]:
        bar = BARS.get(task)
        variants: dict[str, tuple[str, Change, str | None, tuple[str, ...]]] = {
            "imitate": (f"{task}, 50 demonstrations", usable, None if bar is None else f">= {bar}", ())
        }
        blind, other = f"{task}, own readings only (control)", f"{task}, actions of another episode (control)"
        names = [f"imitation, {each}" for each in (blind, other)]
        if options["controls"]:
            variants["blind"] = (blind, usable, None if task == "drawer" else "<= 0.2", ("policy.places=0",))
            variants["shuffled"] = (other, shuffled, "<= 0.05", ())
        told_now: dict[str, dict[str, Any]] = {}

        def beside(claim: Mapping[str, Any], names: Sequence[str] = names) -> dict[str, Any]:
            before = [each for each in load() if each["benchmark"] == "finetune"]
            return voided(claim, names, [*before, *measured])

        for name, (claim, change, limit, more) in variants.items():
            done: list[dict[str, Any]] = []
            for seed in options["seeds"][: None if name == "imitate" else 1]:
                made = session(
                    task, "expert", 50, seed, options, name, "labels.source=all", "labels.weights=uniform", *more
                )
                done.append(played(made, change))
                told_now[name] = row(f"imitation, {claim}", done, options["seeds"][: len(done)], limit)
                tell(told_now[name] if bar is None or name != "imitate" else beside(told_now[name]))
                if name == "imitate" and options["whole"]:
                    done[-1]["whole"] = whole(made)
                    tell(over_whole(f"imitation, {claim}", done, options["seeds"][: len(done)]))
        if bar is not None:
            tell(beside(told_now["imitate"]))
    for task in options["mixed"]:
        ways: dict[str, tuple[Change, tuple[str, ...]]] = {
            "all": (usable, ()), "pixels": (by_labels, ()), "true labels": (by_labels, ("labels.source=recorded",)),
            "permuted labels (control)": (permuted, ()),
        }  # fmt: skip
        found: dict[str, list[dict[str, Any]]] = {}
        for seed in options["seeds"]:
            for name, (change, more) in ways.items():
                made = session(
                    task, "mixed", 60, seed, options, name.removesuffix(" (control)").replace(" ", "-"), *more
                )
                found.setdefault(name, []).append(played(made, change))
                tell(row(f"{task}, 60 mixed demonstrations, {name}", found[name], options["seeds"][: len(found[name])]))
            seeds = options["seeds"][: len(found["all"])]
            for name, other, least in (
                ("pixels", "all", 1.5), ("pixels", "true labels", 0.95), ("permuted labels (control)", "all", 1.0)
            ):  # fmt: skip
                done = [one | {"before": two["rows"]} for one, two in zip(found[name], found[other], strict=True)]
                tell(
                    paired(
                        f"{task}, 60 mixed demonstrations, {name}", done, seeds, least=least, over=f"that of {other}"
                    )
                )
    for rows in language(options) if options["language"] else ():
        for each in rows:
            tell(each)
    for task in options["chunked"]:
        told: dict[str, list[dict[str, Any]]] = {}
        for seed in options["seeds"]:
            for name, one in chunked(task, seed, options).items():
                told.setdefault(name, []).append(one | {"before": told["imitation of the solved"][-1]["rows"]}
                                                 if "compared" in one else one)  # fmt: skip
            for name, each in told.items():
                claim, seeds = f"{task}, 60 mixed demonstrations, {name}", options["seeds"][: len(each)]
                tell(row(claim, each, seeds))
                if "compared" in each[0]:
                    tell(paired(claim, each, seeds, least=1.25))
                if each[0].get("ranking") and (new := ranking_row(claim, each, seeds)):
                    tell(new)


if __name__ == "__main__":
    main()
