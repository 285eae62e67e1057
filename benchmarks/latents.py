"""What a world model knows of the reward before moving backgrounds: the model alone, no policy.

Random actions in the cart-pole, 32 px pictures, the task's own reward. Each model is learned from the same steps, in
the plain world or before generated backgrounds, and asked for the reward of held-out steps after it has looked: the
share of the variance that it explains (R²). Ways are those of `benchmarks.distractors`. Then the camera is led round
the scene, and the plain RePo is asked before and after `RePo.align`.

    python -m benchmarks.latents
    python -m benchmarks.latents seeds=[0] updates=1000
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch

from benchmarks.common import read_options, record
from embodied.envs.bridge import make
from embodied.envs.distractors import Distracted, Distractors
from embodied.envs.vector import WorldVecEnv
from embodied.training.aligning import RandomActor
from embodied.training.collector import Collector
from policies.core import Rollout, Sampling
from policies.dreaming import Dreaming
from policies.infopower import infopower
from policies.replay import Mix, Replay
from policies.repo import RePo, repo

NUM_WORLDS, TRAIN, HELD_OUT, BATCHES = 8, 300, 100, 12
SMALL = {"length": 10, "learning_rate": 1e-3}
WAYS = {
    "repo": partial(repo, beta_rate=0.05),
    "drawing": partial(repo, reconstruct=True),
    "infopower": infopower,
    "powerless": partial(infopower, empowerment=0.0),
    "uncapped": partial(repo, kl_cap=None),
}
WANTED = (
    ("repo", "plain"), ("repo", "moving"), ("drawing", "plain"), ("drawing", "moving"), ("infopower", "moving"),
    ("powerless", "moving"), ("uncapped", "moving"),
)  # fmt: skip
SHIFT = {"camera": 0.15}


def world(distractors: Any) -> gymnasium.Env:
    """The cart-pole, seen."""
    env, read = make("cartpole", obs="pixels", image_size=32), Distractors.read(distractors)
    return env if read is None else Distracted(env, read)


def steps(distractors: Any, count: int, seed: int) -> tuple[Replay, Rollout]:
    """What random actions lead to, remembered."""
    collector = Collector(WorldVecEnv(partial(world, distractors), NUM_WORLDS, seed=seed))
    try:
        rollout = collector.collect(RandomActor(1, seed), count).rollout
        spaces = collector.observation_space, collector.worlds.action_space
        replay = Replay(*spaces, capacity=count * NUM_WORLDS, num_worlds=NUM_WORLDS, seed=seed)
        replay.add(rollout, rollout.env_reward)
        return replay, rollout
    finally:
        collector.close()


@torch.no_grad()
def explained(learner: Dreaming, replay: Replay) -> float:
    """R² of rewards, after looking, in windows whose first three steps only look."""
    source = Mix(replay).batches(Sampling(length=10, batch_size=32))
    said, real = [], []
    for _ in range(BATCHES):
        batch = next(source)
        states = learner.see(batch).inside.states
        told = learner.world.reward(states.features[1:].flatten(0, 1))[:, 0].unflatten(0, batch.reward.shape)
        said.append(told[3:][batch.valid[3:]])
        real.append(batch.reward[3:][batch.valid[3:]])
    truth = torch.cat(real)
    return float(1 - (torch.cat(said) - truth).square().mean() / truth.var(correction=0))


def measure(seed: int, updates: int, save: Any) -> None:
    """All of one seed, told as it comes."""
    data = {name: steps(name, TRAIN, seed) for name in ("none", "moving")}
    held = {name: steps(name, HELD_OUT, seed + 1000)[0] for name in ("none", "moving")}
    for way, seen in WANTED:
        name = "none" if seen == "plain" else seen
        replay, rollout = data[name]
        learner = WAYS[way](*_spaces(), num_worlds=NUM_WORLDS, total_steps=1, seed=seed, device="cpu", **SMALL)
        learner.observe(rollout, rollout.env_reward)
        assert learner.sampling is not None
        source = Mix(replay).batches(learner.sampling)
        kls = [float(learner.learn_world(next(source))[1]["kl"]) for _ in range(updates)]
        save(seed, f"{way}, {seen}", explained(learner, held[name]), float(np.mean(kls[-50:])))
        if (way, seen) == ("repo", "plain"):
            assert isinstance(learner, RePo)
            shifted, again = steps(SHIFT, TRAIN, seed)[0], steps(SHIFT, HELD_OUT, seed + 1000)[0]
            save(seed, "repo, camera moved", explained(learner, again), None)
            target = Mix(shifted).batches(learner.sampling)
            learner.align(source, target, updates)
            save(seed, "repo, camera moved, aligned", explained(learner, again), None)


def _spaces() -> tuple[gymnasium.Space, gymnasium.Space]:
    env = world(None)
    spaces = env.observation_space, env.action_space
    env.close()
    return spaces


def rows(found: dict[str, dict[int, tuple[float, float | None]]], updates: int) -> list[dict[str, Any]]:
    """Means over seeds, and what they say."""
    table: list[dict[str, Any]] = []
    for name, by_seed in found.items():
        values, kls = [value for value, _ in by_seed.values()], [each for _, each in by_seed.values()]
        row = {"claim": f"Cart-pole, 32 px, {name}: share of held-out rewards' variance explained", "unit": "R²"}
        row |= {"value": float(np.mean(values)), "n": len(values), "seeds": list(by_seed), "by_seed": values}
        row |= {"updates": updates, "kl_nats": [each for each in kls if each is not None]}
        table.append(row)
    for claim, one, other, bar in (
        ("RePo: R² kept before moving backgrounds", "repo, moving", "repo, plain", ">= 0.8"),
        (
            "With reconstruction: R² kept before moving backgrounds (control)",
            "drawing, moving",
            "drawing, plain",
            "<= 0.6",
        ),
        ("InfoPower's R² over itself without empowerment", "infopower, moving", "powerless, moving", ">= 1.1"),
    ):
        seeds = sorted(set(found.get(one, {})) & set(found.get(other, {})))
        if seeds:
            value = np.mean([found[one][s][0] for s in seeds]) / np.mean([found[other][s][0] for s in seeds])
            met = value >= float(bar[3:]) if bar[0] == ">" else value <= float(bar[3:])
            table.append(
                {"claim": claim, "value": float(value), "unit": "ratio", "bar": bar, "met": bool(met), "seeds": seeds}
            )
    seeds = list(found.get("repo, camera moved, aligned", {}))
    if seeds:
        plain, moved, aligned = (
            float(np.mean([found[f"repo, {name}"][s][0] for s in seeds]))
            for name in ("plain", "camera moved", "camera moved, aligned")
        )
        share = (aligned - moved) / max(plain - moved, 1e-9)
        claim = "RePo: share of the R² lost to a moved camera that alignment brings back"
        table.append(
            {"claim": claim, "value": share, "unit": "share", "bar": ">= 0.5", "met": share >= 0.5, "seeds": seeds}
        )
    return table


def main() -> None:
    """Seed by seed, recording after every number."""
    options = read_options({"seeds": [0, 1, 2], "updates": 250, "record": True})
    torch.set_num_threads(1)
    found: dict[str, dict[int, tuple[float, float | None]]] = {}

    def save(seed: int, name: str, value: float, nats: float | None) -> None:
        found.setdefault(name, {})[seed] = (value, nats)
        print(f"seed {seed}, {name}: R² {value:.3f}, KL {nats}", flush=True)
        if options["record"]:
            record("latents", rows(found, options["updates"]))

    for seed in options["seeds"]:
        measure(seed, options["updates"], save)


if __name__ == "__main__":
    main()
