"""The process reward on desk tasks: order along unseen episodes, one-shot adaptation, outcomes, and its ablation.

python -m benchmarks.process

Models are fitted to episodes of the scripted experts and judged on episodes of other seeds: the expert's, near misses
(the expert up to 60–85 % of its way, then rest) and random actions, through two cameras. Nothing judged here chose
anything: recipe and guard were set on other seeds, with an earlier encoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import record
from embodied.datasets.encoding import fingerprint
from embodied.envs.desk import Desk
from embodied.envs.experts import expert
from embodied.pretraining.renders import open_world
from rewards.core import Encoder, Episode, Features
from rewards.encoders import embedded_encoder
from rewards.hops import FUSIONS, fuse
from rewards.metrics import bootstrap_interval, value_order_correlation
from rewards.process import ProcessReward

FOLDER = Path("runs", "benchmarks", "process")
TASKS = ("reach", "push", "press", "drawer", "close", "lift", "place", "stack")
UNSEEN = (("press", "drawer"), ("lift", "stack"))  # left out together, then learned one by one
VIEWS = ("front", "side")
SEEDS = (0, 1, 2)
FIT_FROM, JUDGE_FROM = 300_000, 900_000  # seeds of episodes; each benchmark seed takes a thousand of them
DEMOS, JUDGED = 6, 3  # of each task; of each task and kind
KINDS = {"expert": "success", "near_miss": "partial", "random": "fail"}
MARGIN = 0.05  # r_gold is paid where progress is at least 1 − MARGIN
REST = 8  # rows after the expert's success
FRAMES = 64  # for the cost of the head


@dataclass(frozen=True)
class Take:
    """One episode: what it is and how it ends. `solved` is the first row of success, or the last row."""

    episode: Episode
    task: str
    kind: str
    solved: int

    def until_solved(self, *, reverse: bool = False) -> Features:
        """Rows after the success are left out: there is no order to find among them."""
        views = {name: view[:, : self.solved + 1] for name, view in self.episode.features.views.items()}
        return Features(views={name: view.flip(1) if reverse else view for name, view in views.items()})


def main() -> None:
    """Fit, judge, record."""
    torch.set_num_threads(1)
    encoder = embedded_encoder()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("seen", "adapted", "unadapted", "wrong", "fit")}
    for done, seed in enumerate(SEEDS, 1):
        demos = takes(encoder, FIT_FROM + 1000 * seed, {"expert": DEMOS})
        judged = takes(encoder, JUDGE_FROM + 1000 * seed, dict.fromkeys(KINDS, JUDGED))
        start = time.perf_counter()
        head = fitted(demos, encoder, seed, TASKS)
        found["fit"].append({"seconds": time.perf_counter() - start})
        for task in TASKS:
            own = [take for take in judged if take.task == task]
            others = [take for take in judged if take.task != task and take.kind == "expert"]
            found["seen"] += [judge(toward(head, own[0], fusion), take, fusion) for fusion in FUSIONS for take in own]
            told = head.toward(own[0].episode.instruction)
            found["wrong"] += [{"task": task, "last": last(told, take)} for take in others]
        for group in UNSEEN:
            base = fitted(demos, encoder, seed, [task for task in TASKS if task not in group])
            for task in group:
                own = [take for take in judged if take.task == task]
                one = next(take for take in demos if take.task == task)
                found["unadapted"] += [judge(base.toward(one.episode.instruction), take, "guarded") for take in own]
                adapted = base.adapt([one.episode], seed=seed)
                found["adapted"] += [judge(adapted, take, "guarded") for take in own]
        draw(head, judged, FOLDER / f"progress-{seed}.png")
        record("process", rows(found, cost(head, encoder), SEEDS[:done]))  # written anew after each seed


def fitted(takes: Sequence[Take], encoder: Encoder, seed: int, tasks: Sequence[str]) -> ProcessReward:
    episodes = [take.episode for take in takes if take.task in tasks]
    return ProcessReward.fit(episodes, encoder=encoder, seed=seed, goal=episodes[0].instruction)


def toward(head: ProcessReward, take: Take, fusion: str) -> ProcessReward:
    return ProcessReward(
        head.model, head.demos, encoder=head.encoder, goal=take.episode.instruction, views=head.views, fusion=fusion
    )


# Episodes -----------------------------------------------------------------------------------------------


def takes(encoder: Encoder, first_seed: int, kinds: dict[str, int]) -> list[Take]:
    """So many episodes of each kind of each task; encoded once for each encoder, kept below `FOLDER`."""
    file = FOLDER / f"{first_seed}-{fingerprint(encoder)[:12]}.pt"
    if not file.exists():
        made: list[dict[str, Any]] = []
        for task in TASKS:
            world = open_world(f"embodied/desk-{task}-v0", encoder.image_size[0])
            assert isinstance(world, Desk)
            for kind, count in kinds.items():
                seed, target = first_seed, len(made) + count
                while len(made) < target:
                    one = play(world, seed, kind, encoder)
                    made += [one] if one else []
                    seed += 1
            world.close()
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(made, file)
    return [
        Take(
            Episode(features=Features(views=one["views"]), instruction=one["instruction"], success=None), *one["about"]
        )
        for one in torch.load(file, weights_only=True)
    ]


def play(world: Desk, seed: int, kind: str, encoder: Encoder) -> dict[str, Any] | None:
    """One episode; None where the expert fails from this seed, or what should fail succeeds."""
    world.reset(seed=seed)
    act, length = expert(world), 0
    while not world.success() and length < 120:
        world.step(act(world))
        length += 1
    if not world.success():
        return None
    rng = np.random.default_rng((seed, 1))
    stop = {"expert": length + REST, "near_miss": int(length * rng.uniform(0.6, 0.85)), "random": 0}[kind]
    world.reset(seed=seed)
    act, action = expert(world), np.zeros(world.action_dim)
    frames: dict[str, list[np.ndarray]] = {view: [world.frame(view)] for view in VIEWS}
    solved = 0
    for step in range(length + REST):
        if step < stop:
            action = act(world)
        elif kind == "near_miss":
            action = np.append(np.zeros(world.action_dim - 1), action[-1])
        elif step % 5 == 0:
            action = rng.uniform(-1, 1, world.action_dim) * rng.choice([0.3, 1.0])
        world.step(action.astype(np.float32))
        for view in VIEWS:
            frames[view].append(world.frame(view))
        solved = solved or (step + 1) * world.success()
    if kind != "expert" and solved:
        return None
    views = {view: encoder.encode_images(torch.from_numpy(np.stack(each)))[None] for view, each in frames.items()}
    return {
        "views": views,
        "instruction": world.instruction,
        "about": (world.task, kind, int(solved or length + REST)),
    }


# Judging ------------------------------------------------------------------------------------------------


def judge(head: ProcessReward, take: Take, fusion: str) -> dict[str, Any]:
    """Order along the expert's episodes, both ways, and the outcome of any."""
    result: dict[str, Any] = {"task": take.task, "kind": take.kind, "fusion": fusion}
    progress = head.score(take.episode.features)[0].numpy()
    result["outcome"] = outcome(progress)
    result["gold"] = bool((progress >= 1 - MARGIN).any())
    if take.kind == "expert":
        result["forward"] = value_order_correlation(head.score(take.until_solved())[0].numpy())
        back = head.score(take.until_solved(reverse=True))[0].numpy()
        result["reversed"] = value_order_correlation(back, rewound=True)
    return result


def outcome(progress: np.ndarray) -> str:
    """Robo-Dopamine's rule: arXiv 2512.23703, outcome classification."""
    if progress[-1] > 0.8 and progress[-(len(progress) // 3) :].mean() > 0.6:
        return "success"
    return "partial" if progress.mean() >= 0.4 else "fail"


def last(head: ProcessReward, take: Take) -> float:
    return float(head.score(take.until_solved())[0, -1])


def cost(head: ProcessReward, encoder: Encoder) -> float:
    """Time of scoring an episode over the time of encoding it; medians of runs in turn."""
    frames = torch.randint(0, 255, (FRAMES, *encoder.image_size, 3), dtype=torch.uint8)
    encoding, scoring = [], []
    for _ in range(7):
        start = time.perf_counter()
        views = {view: encoder.encode_images(frames)[None] for view in VIEWS}
        middle = time.perf_counter()
        head.score(Features(views=views))
        encoding.append(middle - start)
        scoring.append(time.perf_counter() - middle)
    return float(np.median(scoring) / np.median(encoding))


def controls() -> dict[str, float]:
    """Mean of the forward and reversed order correlation of predictors that look at nothing."""
    found = {}
    for name, size in (("constant", 0.0), ("ever forward", 0.2)):
        hops = torch.full((1, 40), size)
        scores = fuse(hops, hops.clamp(min=0), hops - 1, fusion="incremental")[0].numpy()
        ways = (value_order_correlation(scores), value_order_correlation(scores, rewound=True))
        found[name] = float(np.mean(ways))
    return found


# Results ------------------------------------------------------------------------------------------------


def rows(found: dict[str, list[dict[str, Any]]], share: float, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The claims."""
    guarded = [each for each in found["seen"] if each["fusion"] == "guarded"]
    result = []
    for claim, judged, bar in (
        ("process reward: order along unseen episodes of the expert, eight desk tasks", guarded, 0.95),
        ("process reward, one demonstration of a task it never saw: order, four desk tasks", found["adapted"], 0.90),
        ("process reward, the text of a task it never saw, no demonstration: order", found["unadapted"], None),
    ):
        for way in ("forward", "reversed"):
            result.append(row(f"{claim}, {way}", "VOC", [e for e in judged if way in e], lambda e, w=way: e[w], bar))
    for name, judged in (("", guarded), (", after one demonstration of a task it never saw", found["adapted"])):
        right = "process reward: success, partial and fail told apart by the paper's rule"
        result.append(row(right + name, "accuracy", judged, lambda e: e["outcome"] == KINDS[e["kind"]]))
        wrong = [each for each in judged if each["kind"] != "expert"]
        false = "process reward: near misses and random episodes taken for successes"
        result.append(row(false + name, "share", wrong, lambda e: e["outcome"] == "success"))
        gold = "process reward: r_gold paid at some step of"
        result.append(row(f"{gold} near misses and random episodes{name}", "share", wrong, lambda e: e["gold"]))
        solved = [each for each in judged if each["kind"] == "expert"]
        result.append(row(f"{gold} the expert's episodes{name}", "share", solved, lambda e: e["gold"]))
    result.append(
        row(
            "process reward: last progress when told another task's text",
            "progress",
            found["wrong"],
            lambda e: e["last"],
        )
    )
    for fusion in FUSIONS:
        judged = [each for each in found["seen"] if each["fusion"] == fusion]
        ways = [each for each in judged if "forward" in each]
        result.append(
            row(f"fusion {fusion}: order forward", "VOC", ways, lambda e: e["forward"])
            | {
                "reversed": float(np.mean([each["reversed"] for each in ways])),
                "outcome_accuracy": float(np.mean([e["outcome"] == KINDS[e["kind"]] for e in judged])),
            }
        )
    result += [
        {"claim": f"control: {name} hops, mean of forward and reversed order", "value": value, "unit": "VOC",
         "bar": "0", "met": abs(value) < 1e-9}
        for name, value in controls().items()
    ]  # fmt: skip
    seconds = [each["seconds"] for each in found["fit"]]
    result.append(
        {"claim": "process reward: time of scoring over time of encoding, two cameras, one thread", "value": share,
         "unit": "ratio", "bar": "<= 0.10", "met": share <= 0.10, "n": 7, "fit_seconds": seconds}
    )  # fmt: skip
    for each in result:
        each["seeds"] = list(seeds)
    return result


def row(
    claim: str,
    unit: str,
    judged: list[dict[str, Any]],
    value: Callable[[dict[str, Any]], float],
    bar: float | None = None,
) -> dict[str, Any]:
    """A mean over episodes with its interval, and the means by task."""
    values = np.array([float(value(each)) for each in judged])
    tasks = dict.fromkeys(each["task"] for each in judged)
    by_task = {t: float(np.mean([v for v, e in zip(values, judged, strict=True) if e["task"] == t])) for t in tasks}
    mean = float(values.mean())
    return {
        "claim": claim,
        "value": mean,
        "unit": unit,
        "bar": None if bar is None else f">= {bar:.2f}",
        "met": None if bar is None else mean >= bar,
        "n": len(values),
        "interval": bootstrap_interval(values),
        "by_task": by_task,
    }


def draw(head: ProcessReward, judged: Sequence[Take], file: Path) -> None:
    """Progress of every judged episode of a seed, a panel a task: expert green, near miss orange, random red."""
    from PIL import Image, ImageDraw

    colours = {"expert": (30, 140, 60), "near_miss": (230, 140, 20), "random": (200, 40, 40)}
    wide, high, gap = 260, 160, 26
    sheet = Image.new("RGB", (4 * (wide + gap) + gap, 2 * (high + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for i, task in enumerate(TASKS):
        left, top = gap + (i % 4) * (wide + gap), gap + (i // 4) * (high + gap)
        pen.rectangle((left, top, left + wide, top + high), outline=(180, 180, 180))
        pen.text((left + 4, top - 14), task, "black")
        for take in (take for take in judged if take.task == task):
            progress = head.toward(take.episode.instruction).score(take.episode.features)[0].tolist()
            across = [left + wide * t / (len(progress) - 1) for t in range(len(progress))]
            pen.line([(x, top + high * (1 - p)) for x, p in zip(across, progress, strict=True)], colours[take.kind], 2)
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)


if __name__ == "__main__":
    main()
