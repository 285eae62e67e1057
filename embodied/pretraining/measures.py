"""How good an encoder is on our worlds, on frames and wordings kept for judging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from embodied.envs.captions import SCENE, Captions
from embodied.envs.desk import Desk
from embodied.envs.experts import expert
from embodied.pretraining.renders import Renders, open_world
from rewards.core import Encoder
from rewards.metrics import auroc, spearman

MIN_EACH = 15  # frames with and without a fact, below which AUROC says nothing
TRAIN_WORDINGS = 8  # drawn per fact, to compare seen with unseen wordings


def judge_scene(
    encoder: Encoder, captions: Captions, renders: Renders, split: str, rng: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """How well the similarity of each sentence tells whether its fact holds.

    Returns:
        fact -> `goal` AUROC of the offered sentence (if any), `seen` mean AUROC of drawn train wordings, `unseen`
        sentence -> AUROC of the wordings of `split`, `denied` the same of the fact's denials (right is 0), `degree`
        rank correlation of the goal's (else the first unseen wording's) similarity with the graded truth, `holds`
        share of frames. Facts that nearly always or never hold are left out.
    """
    features = encoder.encode_images(torch.from_numpy(renders.frames))
    results = {}
    for column, fact in enumerate(renders.facts):
        known = ~np.isnan(renders.degrees[:, column])
        degrees = renders.degrees[known, column]
        holds = degrees == 1
        if fact == SCENE or fact not in captions.facts or min(holds.sum(), (~holds).sum()) < MIN_EACH:
            continue
        wordings = captions.facts[fact]
        seen = list(dict.fromkeys(wordings["train"].draw(rng) for _ in range(TRAIN_WORDINGS)))
        unseen = wordings[split].all()
        goal = captions.goals.get(fact)
        denied = captions.denials[fact][split].all() if fact in captions.denials else []
        sentences = [goal or unseen[0], *seen, *unseen, *denied]
        scores = (features[torch.from_numpy(known)] @ encoder.encode_texts(sentences).T).numpy()
        areas = [auroc(scores[:, i], holds) for i in range(len(sentences))]
        results[fact] = {
            "goal": areas[0] if goal else None,
            "seen": float(np.mean(areas[1 : 1 + len(seen)])),
            "unseen": dict(zip(unseen, areas[1 + len(seen) :], strict=False)),
            "denied": dict(zip(denied, areas[1 + len(seen) + len(unseen) :], strict=True)),
            "degree": spearman(scores[:, 0], degrees),
            "holds": float(holds.mean()),
        }
    return results


def retrieval(encoder: Encoder, captions: Captions, renders: Renders, split: str) -> float:
    """How often the most similar of one sentence per fact is true of the frame, over frames with a true fact."""
    facts = [fact for fact in renders.facts if fact in captions.facts and fact != SCENE]
    truth = renders.degrees[:, [renders.facts.index(fact) for fact in facts]] == 1
    texts = encoder.encode_texts([captions.facts[fact][split].all()[0] for fact in facts])
    best = (encoder.encode_images(torch.from_numpy(renders.frames)) @ texts.T).argmax(-1).numpy()
    return float(truth[np.arange(len(best)), best][truth.any(1)].mean())


def order_along_expert(encoder: Encoder, env_id: str, goal: str, seeds: Sequence[int]) -> dict[str, float]:
    """Rank correlation of the goal's similarity along expert episodes, with time (VOC) and with the true reward.

    Frames after the first success are left out of both: there is no order to find among them.
    """
    world = open_world(env_id, encoder.image_size[0])
    if not isinstance(world, Desk):
        raise TypeError(f"order_along_expert: env_id must be a desk task, which have experts; got {env_id}.")
    text = encoder.encode_texts([goal])[0]
    by_time, by_truth = [], []
    for seed in seeds:
        world.reset(seed=seed)
        act = expert(world)
        frames, truth = [world.frame()], [world.env_reward()]
        while not world.success() and len(frames) < 150:
            _, reward, *_ = world.step(act(world))
            frames.append(world.frame())
            truth.append(reward)
        if len(frames) > 3:
            scores = (encoder.encode_images(torch.from_numpy(np.stack(frames))) @ text).numpy()
            by_time.append(spearman(scores, np.arange(len(scores))))
            by_truth.append(spearman(scores, np.array(truth)))
    world.close()
    return {"time": float(np.mean(by_time)), "env_reward": float(np.mean(by_truth)), "episodes": len(by_time)}
