"""Rewards from five demonstrations: do the steps found agree with the known ones, and does the reward rank frames?

python -m benchmarks.perceptual

Known steps come from the simulator: the first ends where its fact first holds (`TWO_STEPS`), the second at success.
Settings were chosen on other starts (seeds 1000 to 1019). An earlier version, whose joint steps had one start only, was
judged on seeds from 60,000 and missed both bars (segmentation 0.66, rewards 0.57); those are not used again. Intervals
of order and outcome are over the three groups of demonstrations alone, each judged on the same held-out episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from benchmarks.common import record
from embodied.envs import world_id
from embodied.envs.desk import Desk
from embodied.envs.experts import expert
from rewards.core import Encoder, Episode, Features, Head
from rewards.demonstration import Demonstration
from rewards.encoders import embedded_encoder
from rewards.metrics import auroc, bootstrap_interval, value_order_correlation
from rewards.progress import tqdm
from rewards.rapl import RAPL
from rewards.segmentation import jaccard, ordered_random, row_steps, segment, segment_jointly
from rewards.views import shared_views
from rewards.xirl import XIRL

TWO_STEPS = {  # task -> the fact whose first row begins the second step
    "drawer": "at_handle", "press": "at_button", "lift": "touch_red", "push": "touch_red", "place": "red_lifted",
    "stack": "red_lifted",
}  # fmt: skip
TASKS = ("reach", "push", "press", "drawer", "close", "lift", "place", "stack")
SEED, GROUPS, DEMOS, HELD_OUT = 70_000, 3, 5, 10
OVERRUN = 20  # rows that a demonstration runs on after success, as recordings do
FITS: dict[str, Callable[[Sequence[Episode]], Head]] = {
    "demonstration": lambda demos: Demonstration.fit(demos),
    "demonstration, the paper's Gaussian steps": lambda demos: Demonstration.fit(demos, form="gaussian"),
    "demonstration, in sequence": lambda demos: Demonstration.fit(demos, sequenced=True),
    "xirl": lambda demos: XIRL.fit(demos),
    "xirl, the paper's distance": lambda demos: XIRL.fit(demos, readout="distance"),
    "rapl": lambda demos: RAPL.fit(demos),
}


class Take(NamedTuple):
    """One episode: features, when the second step begins (None: not known), when it first succeeds (None: never)."""

    features: torch.Tensor  # (1, T, D)
    second: int | None
    solved: int | None

    def episode(self, stop: int | None = None) -> Episode:
        return Episode(features=Features(views={"front": self.features[:, :stop]}), success=self.solved is not None)

    def until_solved(self) -> Features:
        assert self.solved is not None
        return Features(views={"front": self.features[:, : self.solved + 1]})


def main() -> None:
    """Render, encode, fit, judge, record."""
    torch.set_num_threads(1)
    encoder = embedded_encoder()
    takes = {task: collect(task, encoder) for task in tqdm(TASKS, "episodes")}
    print(record("perceptual", [*step_rows(takes), *order_rows(takes)]))


# Episodes -----------------------------------------------------------------------------------------------------


def collect(task: str, encoder: Encoder) -> dict[str, list[Take]]:
    """Expert episodes, near misses and random ones of one task, each kind on its own starts."""
    env = gymnasium.make(world_id(f"desk-{task}")).unwrapped
    assert isinstance(env, Desk)
    starts = SEED + 100 * np.arange(3)
    found = {
        "expert": [
            play(env, task, "expert", seed, encoder) for seed in starts[0] + np.arange(GROUPS * DEMOS + HELD_OUT)
        ],
        "near_miss": [play(env, task, "near_miss", seed, encoder) for seed in starts[1] + np.arange(2 * HELD_OUT)],
        "random": [play(env, task, "random", seed, encoder) for seed in starts[2] + np.arange(HELD_OUT)],
    }
    env.close()
    return found


def play(world: Desk, task: str, kind: str, seed: int, encoder: Encoder) -> Take:
    """One episode: the expert until `OVERRUN` rows after success; the expert until 50 to 90 % of the way, then 15 rows
    of idle motion; or 50 rows of random motion."""
    rng = np.random.default_rng(seed)
    world.reset(seed=int(seed))
    act = expert(world)
    leave = 0 if kind == "random" else 150
    if kind == "near_miss":
        steps = 0
        while not world.success() and steps < 150:
            world.step(act(world))
            steps += 1
        leave = int(steps * rng.uniform(0.5, 0.9))
        world.reset(seed=int(seed))
        act = expert(world)
    length = {"expert": 150, "near_miss": leave + 15, "random": 50}[kind]
    frames, solved, second = [world.frame()], None, None
    idle = np.zeros(world.action_dim)
    while len(frames) <= length and (kind != "expert" or solved is None or len(frames) <= solved + OVERRUN):
        step = len(frames) - 1
        if step >= leave and (step - leave) % 4 == 0:
            idle = rng.uniform(-1, 1, world.action_dim) * (1.0 if kind == "random" else 0.5)
        world.step(act(world) if step < leave else idle.astype(np.float32))
        frames.append(world.frame())
        if second is None and task in TWO_STEPS and world.degree(TWO_STEPS[task]) == 1:
            second = len(frames) - 1
        if solved is None and world.success():
            solved = len(frames) - 1
    return Take(encoder.encode_images(torch.from_numpy(np.stack(frames)))[None], second, solved)


def split(experts: Sequence[Take]) -> tuple[list[list[Take]], list[Take]]:
    """Groups of demonstrations, and held-out episodes, by their starts: whoever fails is in neither."""
    groups = [experts[group * DEMOS : (group + 1) * DEMOS] for group in range(GROUPS)]
    solved = [[take for take in group if take.solved is not None] for group in (*groups, experts[GROUPS * DEMOS :])]
    return solved[:-1], solved[-1]


# The two known steps ------------------------------------------------------------------------------------------


def step_rows(takes: Mapping[str, Mapping[str, list[Take]]]) -> list[dict[str, Any]]:
    """Jaccard of the steps found in demonstrations and of step rewards on held-out episodes, beside baselines."""
    found: dict[str, dict[str, list[float]]] = {}
    for task in TWO_STEPS:
        scores: dict[str, list[float]] = {}
        shown, held_out = split(takes[task]["expert"])
        for group in range(GROUPS):
            demos = shown[group]
            segmentation_scores(demos, scores)
            rng = np.random.default_rng(group)
            for form in ("gaussian", "logistic"):
                head = Demonstration.fit([take.episode() for take in demos], form=form, num_steps=2)
                for take in held_out:
                    truth = known(take, int(take.solved or 0) + 1)
                    on = head.steps(take.until_solved())["front"][0].numpy() > 0.5
                    add(scores, f"reward, {form}", np.mean([jaccard(on[:, k], truth == k) for k in (0, 1)]))
                    if form == "gaussian":
                        chance = [agreement(ordered_random(len(truth), 2, rng), truth) for _ in range(20)]
                        add(scores, "reward, ordered random", np.mean(chance))
        found[task] = scores
    return [
        jaccard_row(found, "segmentation of the demonstrations", "joint", ">= 0.76", "random"),
        jaccard_row(found, "segmentation, each demonstration alone as in the paper", "alone", None, "random"),
        jaccard_row(found, "segmentation, a cut in the middle", "middle", None, "random"),
        jaccard_row(found, "Gaussian step rewards, held-out", "reward, gaussian", ">= 0.72", "reward, ordered random"),
        jaccard_row(found, "logistic step rewards, held-out", "reward, logistic", ">= 0.72", "reward, ordered random"),
    ]


def segmentation_scores(demos: Sequence[Take], scores: dict[str, list[float]]) -> None:
    """Jaccard of one group's demonstrations, as `Demonstration.fit` sees them (the rest at their end cut off)."""
    rows = [each["front"].numpy() for each in shared_views("perceptual", [take.episode() for take in demos])]
    both = np.concatenate(rows)
    normal = [(each - both.mean(0)) / np.maximum(both.std(0), 1e-6) for each in rows]
    joint, _ = segment_jointly(normal, 2)
    rng = np.random.default_rng(len(scores.get("joint", [])))
    for take, each, ends in zip(demos, normal, joint, strict=True):
        truth = known(take, len(each))
        add(scores, "joint", agreement(ends, truth))
        add(scores, "alone", agreement(segment(each, 2), truth))
        add(scores, "middle", agreement((len(each) // 2 - 1, len(each) - 1), truth))
        add(scores, "random", np.mean([agreement(ordered_random(len(each), 2, rng), truth) for _ in range(20)]))


def known(take: Take, length: int) -> np.ndarray:
    """(T,) the known step, 0 or 1, of the first rows of an episode."""
    assert take.second is not None
    return (np.arange(length) >= take.second).astype(int)


def agreement(ends: tuple[int, ...], truth: np.ndarray) -> float:
    steps = row_steps(ends)
    return float(np.mean([jaccard(steps == k, truth == k) for k in (0, 1)]))


def add(scores: dict[str, list[float]], name: str, value: Any) -> None:
    scores.setdefault(name, []).append(float(value))


def jaccard_row(
    found: Mapping[str, Mapping[str, list[float]]], what: str, name: str, bar: str | None, baseline: str
) -> dict[str, Any]:
    """One claim: the mean over tasks, its interval over tasks and demonstrations, each task's mean, the baseline's."""
    means = {task: float(np.mean(scores[name])) for task, scores in found.items()}
    value = float(np.mean(list(means.values())))
    return {
        "claim": f"perceptual reward, {DEMOS} demonstrations, two known steps, {len(found)} desk tasks: {what}",
        "value": value,
        "unit": "Jaccard",
        "bar": bar,
        "met": None if bar is None else value >= float(bar.split()[-1]),
        "n": sum(len(scores[name]) for scores in found.values()),
        "seeds": GROUPS,
        "interval": list(bootstrap_interval(np.array([scores[name] for scores in found.values()]).T, np.mean)),
        "by_task": means,
        "ordered_random": {task: float(np.mean(scores[baseline])) for task, scores in found.items()},
        "ordered_random_mean": float(np.mean([np.mean(scores[baseline]) for scores in found.values()])),
    }


# Order and outcome --------------------------------------------------------------------------------------------


def order_rows(takes: Mapping[str, Mapping[str, list[Take]]]) -> list[dict[str, Any]]:
    """VOC on held-out experts, forward and reversed, and AUROC of the last potential for success."""
    rows = []
    for name, fit in FITS.items():
        scores = {task: [judge(takes[task], group, fit) for group in range(GROUPS)] for task in tqdm(TASKS, name)}
        for k, what in enumerate(("VOC on held-out experts", "VOC on them reversed", "AUROC of the last potential")):
            means = {task: float(np.mean([each[k] for each in groups])) for task, groups in scores.items()}
            values = np.array([[each[k] for each in groups] for groups in scores.values()])
            rows.append(
                {
                    "claim": f"{name}, {DEMOS} demonstrations, mean of {len(TASKS)} desk tasks: {what}",
                    "value": float(values.mean()),
                    "unit": "AUROC" if k == 2 else "Spearman",
                    "bar": ">= 0.95",
                    "met": bool(values.mean() >= 0.95),
                    "n": values.size,
                    "seeds": GROUPS,
                    "interval": list(bootstrap_interval(values.T, np.mean)),
                    "by_task": means,
                }
            )
    return rows


def judge(
    takes: Mapping[str, list[Take]], group: int, fit: Callable[[Sequence[Episode]], Head]
) -> tuple[float, float, float]:
    shown, kept = split(takes["expert"])
    head = fit([take.episode() for take in shown[group]])
    held_out = [take.until_solved() for take in kept]
    backwards = [Features(views={"front": each.main.flip(1)}) for each in held_out]
    failures = [take for kind in ("near_miss", "random") for take in takes[kind] if take.solved is None]
    final = [head.score(each)[0, -1].item() for each in (*held_out, *(take.episode().features for take in failures))]
    return (
        float(np.mean([value_order_correlation(head.score(each)[0].double().numpy()) for each in held_out])),
        float(
            np.mean([value_order_correlation(head.score(each)[0].double().numpy(), rewound=True) for each in backwards])
        ),
        auroc(final, [True] * len(held_out) + [False] * len(failures)),
    )


if __name__ == "__main__":
    main()
