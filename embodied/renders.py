"""Renders of a world with the truth of its facts: what an encoder is trained and judged on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np

import embodied.envs  # noqa: F401  (registers the worlds)
from embodied.envs.experts import expert, has_expert
from embodied.envs.world import World
from embodied.training.acting import load_policy
from embodied.training.perception import Perception
from embodied.training.playing import Solo
from policies.core import Actor
from rewards.progress import tqdm

CHUNK = 400  # frames rendered by one job
POLICY_SHARE = 0.7  # of the episodes of a world with policies
NEAR_MISS = 0.6  # share of single states, and of expert episodes, that wander off: solved and nearly solved lie close


@dataclass(frozen=True)
class Renders:
    """Frames (N, H, W, 3) uint8 and degrees (N, F) float32 of F facts, in the order of `facts`."""

    frames: np.ndarray
    degrees: np.ndarray
    facts: tuple[str, ...]


def open_world(env_id: str, image_size: int) -> World:
    """The bare world behind a registered id, for its privileged truth."""
    world = gymnasium.make(env_id).unwrapped
    if not isinstance(world, World):
        kind = type(world).__name__
        raise TypeError(f"{env_id}: a world that tells facts must be an embodied.envs.world.World; got {kind}.")
    world.image_size = image_size
    return world


def render(
    env_ids: Sequence[str],
    count: int,
    *,
    seed: tuple[int, ...],
    image_size: int,
    own_look: float = 0.25,
    second_camera: float = 0.0,
    workers: int = 2,
    policies: Mapping[str, Sequence[Path]] | None = None,
) -> Renders:
    """`count` frames of worlds that share one scene, drawn evenly from them.

    Half are single states from `sample_state`, most of them after a few random steps; the rest are steps of episodes
    by the scripted expert (with noise, and wandering off, where there is one), by random actions, and by trained
    policies, which go where an encoder that they were rewarded by is easily fooled.

    Args:
        own_look: share of states and episodes that keep the world's own look; the rest draw light, camera pose,
            colours and distractors.
        second_camera: share of frames from the scene's second camera; the rest are from its first.
        seed: same seed, same frames, whatever `workers` is.
        policies: world id -> run folders of policies trained there on state observations; they act in
            `POLICY_SHARE` of its episodes.
    """
    runs = {env: tuple((policies or {}).get(env, ())) for env in env_ids}
    jobs = [
        (env, min(CHUNK, count - start), (*seed, i), image_size, own_look, second_camera, runs[env])
        for i, start in enumerate(range(0, count, CHUNK))
        for env in [env_ids[i % len(env_ids)]]
    ]
    parts: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(jobs)
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        tqdm(total=count, desc=f"rendering {env_ids[0]}", unit="frame", mininterval=1.0) as bar,
    ):
        futures = {pool.submit(_render_job, *job): i for i, job in enumerate(jobs)}
        for future in as_completed(futures):
            parts[futures[future]] = future.result()
            bar.update(len(future.result()[0]))
    done = cast(list[tuple[np.ndarray, np.ndarray]], parts)
    facts = open_world(env_ids[0], image_size).facts
    return Renders(np.concatenate([p[0] for p in done]), np.concatenate([p[1] for p in done]), facts)


def _render_job(
    env_id: str,
    count: int,
    seed: tuple[int, ...],
    image_size: int,
    own_look: float,
    second_camera: float,
    runs: tuple[Path, ...],
) -> tuple[np.ndarray, np.ndarray]:
    world = open_world(env_id, image_size)
    rng = np.random.default_rng(seed)
    frames = np.empty((count, image_size, image_size, 3), np.uint8)
    degrees = np.empty((count, len(world.facts)), np.float32)
    filled = 0
    models = [load_policy(run) for run in runs]

    def keep() -> None:
        nonlocal filled
        if filled < count:
            truth = world.degrees()
            camera = world.cameras[int(rng.random() < second_camera)] if second_camera else None
            frames[filled], degrees[filled] = world.frame(camera), [truth[fact] for fact in world.facts]
            filled += 1

    world.reset(seed=int(rng.integers(2**31)))
    while filled < count:
        if filled < count // 2:
            _draw_look(world, own_look, rng)
            world.sample_state(rng)
            if rng.random() < NEAR_MISS:
                _wander(world, rng)
            keep()
        else:
            _episode(world, env_id, own_look, rng, keep, models)
    world.close()
    return frames, degrees


def _wander(world: World, rng: np.random.Generator) -> None:
    """A few steps of one random action: from a solved state, to states that are just not."""
    action = rng.uniform(-1, 1, world.action_space.shape or ()) * rng.uniform(0.1, 1)
    for _ in range(rng.integers(1, 7)):
        world.step(action.astype(np.float32))


def _draw_look(world: World, own_look: float, rng: np.random.Generator) -> None:
    world.restore_look()
    if rng.random() >= own_look:
        world.randomize_look(rng)


def _episode(
    world: World,
    env_id: str,
    own_look: float,
    rng: np.random.Generator,
    keep: Callable[[], None],
    models: Sequence[tuple[Actor, Perception | None]],
) -> None:
    """One episode of a policy, the noisy expert or random actions; every second step on average is kept."""
    world.reset(seed=int(rng.integers(2**31)))
    _draw_look(world, own_look, rng)
    act: Callable[[Any], np.ndarray] | None = None
    if models and rng.random() < POLICY_SHARE:
        act = _acting(models[int(rng.integers(len(models)))], world, rng)
    elif has_expert(world) and rng.random() < 0.75:
        act = expert(world, noise=float(rng.choice([0.0, 0.3, 0.8])), rng=rng)
    limit = gymnasium.spec(env_id).max_episode_steps or 100
    held = np.zeros(world.action_space.shape or ())
    leaves = rng.integers(5, limit) if rng.random() < NEAR_MISS else limit
    for step in range(limit):
        if act is not None and step < leaves:
            action = act(world)
        else:
            if step % 5 == 0:  # held actions travel further than white noise
                held = rng.uniform(-1, 1, held.shape) * rng.choice([0.3, 1.0])
            action = held
        world.step(action.astype(np.float32))
        if rng.random() < 0.5:
            keep()


def _acting(
    policy: tuple[Actor, Perception | None], world: World, rng: np.random.Generator
) -> Callable[[World], np.ndarray]:
    """A trained policy, at times with noise: it shall also be seen beside its habits."""
    noise, solo = float(rng.choice([0.0, 0.0, 0.2, 0.5])), Solo(policy[0], world, policy[1])

    def act(world: World) -> np.ndarray:
        action = solo(world._state())
        return np.clip(action + noise * rng.normal(size=action.shape), -1, 1)

    return act
