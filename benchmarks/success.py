"""Success detectors fitted to a few labelled episodes, and goal-image ensembles, on episodes kept for judging.

Four desk tasks. The detector is fitted to 17 episodes (5 expert, 4 noisy expert, 5 near misses that stop one to four
steps short, 3 random) of which only "ended well" or "did not" is told; the ensemble to 10 goal pictures from the
simulator and the same episodes' beginnings. Both are judged, frame by frame, on 20 episodes of other seeds, and on
canaries: first frames frozen, and the expert at another task. Choices were made on episodes of a third seed.

    python -m benchmarks.success
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch

import embodied.envs  # noqa: F401  (registers the worlds)
from benchmarks.common import record
from embodied.building.goal_images import simulated
from embodied.envs.desk import Desk
from embodied.envs.experts import expert
from embodied.pretraining.renders import open_world
from rewards.calibration import quality
from rewards.core import Encoder, Episode, Features
from rewards.encoders import embedded_encoder
from rewards.goal_image import goal_image_scorer
from rewards.metrics import auroc, bootstrap_interval, wilson_interval
from rewards.success import SuccessClassifier, fit_success

TASKS = {"desk-drawer": "drawer_open", "desk-press": "button_pressed", "desk-lift": "red_lifted",
         "desk-place": "red_in_tray"}  # fmt: skip
KINDS = {"fit": {"expert": 5, "noisy": 4, "near_miss": 5, "random": 3},
         "judge": {"expert": 5, "noisy": 5, "near_miss": 6, "random": 4}}  # fmt: skip
SEEDS = {"fit": 1, "judge": 3}  # 2 was for choosing
HOLD = 3


@dataclass(frozen=True)
class Judged:
    """An encoded episode, and in which of its rows each of the tasks is done."""

    episode: Episode
    done: dict[str, np.ndarray]
    kind: str


def play(world: Desk, kind: str, seed: tuple[int, int], limit: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One episode: frames (T+1, H, W, 3), and task -> (T+1,) bool."""
    rng = np.random.default_rng(seed)
    world.reset(seed=int(rng.integers(2**31)))
    stop = limit
    if kind == "near_miss":  # rehearse to learn when it would have been done
        start, act, stop = world.get_state(), expert(world), 0
        while stop < limit and not world.success():
            world.step(act(world))
            stop += 1
        world.set_state(start)
        stop = max(1, stop - int(rng.integers(1, 5)))
    act = expert(world, noise=0.4 if kind == "noisy" else 0.0, rng=rng)
    frames: list[np.ndarray] = []
    done: dict[str, list[bool]] = {task: [] for task in TASKS}
    action = np.zeros(4)
    for t in range(limit + 1):
        frames.append(world.frame())
        for task, fact in TASKS.items():
            done[task].append(world.degree(fact) == 1)
        if kind == "random":
            action = rng.uniform(-1, 1, 4) if t % 5 == 0 else action
        elif t < stop:
            action = act(world)
        else:
            action = np.array([0, 0, 0, action[3]])
        world.step(action.astype(np.float32))
    return np.stack(frames), {task: np.array(each) for task, each in done.items()}


def collect(task: str, split: str, encoder: Encoder) -> list[Judged]:
    """The episodes of a split."""
    world = open_world(f"embodied/{task}-v0", encoder.image_size[0])
    assert isinstance(world, Desk)
    limit = gymnasium.spec(f"embodied/{task}-v0").max_episode_steps or 100
    found = []
    for kind, count in KINDS[split].items():
        for _ in range(count):
            frames, done = play(world, kind, (SEEDS[split], len(found)), limit)
            rows = torch.cat([encoder.encode_images(part) for part in torch.from_numpy(frames).split(16)])
            features = Features(views={"front": rows[None]})
            said = Episode(features=features, instruction=world.instruction, success=bool(done[task][-1]))
            found.append(Judged(said, done, kind))
    world.close()
    return found


def frozen(episode: Episode) -> Features:
    """The first row, for as long as the episode."""
    rows = episode.features.main
    return Features(views={"front": rows[:, :1].expand_as(rows)})


def detector_rows(task: str, head: SuccessClassifier, judged: list[Judged], others: list[Judged]) -> list[dict]:
    """The claims about one detector."""
    truth = [each.done[task] for each in judged]
    chance = [head.probability(each.episode.features)[0].numpy() for each in judged]
    answers = [head.verdicts(each.episode.features)[0].numpy() for each in judged]
    held = [head.decision.rewards(torch.from_numpy(each)[None])[0][0].numpy() for each in answers]
    owner = np.repeat(np.arange(len(judged)), [len(each) for each in truth])
    y = np.concatenate(truth)
    raw, steady = (quality(np.concatenate(each).astype(int), y, owner) for each in (answers, held))
    canaries = {
        "first frame frozen": fired(head, [frozen(each.episode) for each in judged]),
        "expert at another task": fired(head, [each.episode.features for each in others if not each.done[task].any()]),
        "near misses, random": fired(head, [each.episode.features for each in judged if not each.done[task].any()]),
    }
    by_episode = area_interval(chance, truth)
    detail = {
        "n": len(y), "unsure": raw.unsure, "base_rate": raw.base_rate, "fitted": str(head.quality),
        "temperature": head.decision.temperature, "yes": head.decision.yes, "no": head.decision.no,
    }  # fmt: skip
    area = auroc(np.concatenate(chance), y)
    rows: list[dict[str, Any]] = [
        {"claim": f"{task}: success detector, AUROC of frames", "value": area, "unit": "AUROC", "bar": ">= 0.95",
         "met": area >= 0.95, "interval": by_episode, **detail},
    ]  # fmt: skip
    for name, each in (("a frame's own answer", raw), (f"held for {HOLD} frames", steady)):
        rows.append(
            {"claim": f"{task}: success detector, precision, {name}", "value": each.precision, "unit": "share",
             "bar": ">= 0.95", "met": each.precision >= 0.95, "interval": each.precision_interval,
             "recall": each.recall, "recall_interval": each.recall_interval, **detail}
        )  # fmt: skip
    for name, (count, of) in canaries.items():
        rows.append(
            {"claim": f"{task}: success detector, failed episodes rewarded at all: {name}", "value": count / of,
             "unit": "share of episodes", "n": of, "interval": wilson_interval(count, of)}
        )  # fmt: skip
    return rows


def fired(head: SuccessClassifier, episodes: list[Features]) -> tuple[int, int]:
    """How many episodes get any reward, and of how many."""
    return sum(bool(head.score(features).any()) for features in episodes), len(episodes)


def area_interval(scores: list[np.ndarray], truth: list[np.ndarray]) -> tuple[float, float]:
    """Of the AUROC, episodes drawn anew."""

    def statistic(drawn: np.ndarray) -> float:
        return auroc(np.concatenate([scores[i] for i in drawn]), np.concatenate([truth[i] for i in drawn]))

    return bootstrap_interval(np.arange(len(scores)), statistic, resamples=300)


def goal_image_rows(
    task: str, encoder: Encoder, fitted: list[Judged], judged: list[Judged], others: list[Judged]
) -> list[dict[str, Any]]:
    """The claims about one ensemble; its threshold is one half, since nothing labelled chose it."""
    world = open_world(f"embodied/{task}-v0", encoder.image_size[0])
    pictures = simulated(world, 10, cameras=["front"], image_size=encoder.image_size[0], seed=7)
    world.close()
    scorer = goal_image_scorer(encoder=encoder, goal_images=pictures, demos=[each.episode for each in fitted])

    def score(features: Features) -> np.ndarray:
        return scorer.potentials(features)["goal_image"][0].numpy()

    scores, truth = [score(each.episode.features) for each in judged], [each.done[task] for each in judged]
    y = np.concatenate(truth)
    owner = np.repeat(np.arange(len(judged)), [len(each) for each in truth])
    at_half = quality((np.concatenate(scores) > 0.5).astype(int), y, owner)
    area = auroc(np.concatenate(scores), y)
    wrong = [score(each.episode.features) for each in others if not each.done[task].any()]
    return [
        {
            "claim": f"{task}: 10 goal images, AUROC of frames",
            "value": area,
            "unit": "AUROC",
            "bar": ">= 0.95",
            "met": area >= 0.95,
            "interval": area_interval(scores, truth),
            "n": len(y),
            "precision_at_half": None if math.isnan(at_half.precision) else at_half.precision,
            "precision_interval": at_half.precision_interval,
            "recall_at_half": at_half.recall,
            "recall_interval": at_half.recall_interval,
            "base_rate": at_half.base_rate,
            "frozen_first_frame_over_half": float(np.mean([score(frozen(e.episode)).max() > 0.5 for e in judged])),
            "another_task_over_half": float(np.mean([each.max() > 0.5 for each in wrong])),
        }
    ]


def main() -> None:
    """Collect, fit, judge, record."""
    torch.set_num_threads(1)
    encoder = embedded_encoder()
    splits = {split: {task: collect(task, split, encoder) for task in TASKS} for split in KINDS}
    rows = []
    for task in TASKS:
        fitted, judged = splits["fit"][task], splits["judge"][task]
        others = [each for name in TASKS if name != task for each in splits["judge"][name] if each.kind == "expert"]
        head = fit_success([e.episode for e in fitted], encoder=encoder, goal=fitted[0].episode.instruction, hold=HOLD)
        rows += detector_rows(task, head, judged, others)
        rows += goal_image_rows(task, encoder, fitted, judged, others)
    for row in rows:
        print(f"{row['claim']}: {row['value']:.3f} {row.get('interval') or ''}")
    record("success", rows)


if __name__ == "__main__":
    main()
