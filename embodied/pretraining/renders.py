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
from embodied.envs.scenes import Scene, open_scene, scene_steps
from embodied.envs.world import World
from embodied.errors import UserError
from embodied.training.acting import load_policy
from embodied.training.perception import Perception
from embodied.training.playing import Solo
from policies.core import Actor
from rewards.progress import tqdm

CHUNK = 400  # frames rendered by one job
KEPT = 40  # frames of a foreign world's episode, on average; its episodes are often long
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
    facts: str | None = None,
    camera: str | Mapping[str, Any] | None = None,
) -> Renders:
    """`count` frames of worlds that share one scene, drawn evenly from them.

    Half are single states from `sample_state`, most of them after a few random steps; the rest are steps of episodes
    by the scripted expert (with noise, and wandering off, where there is one), by random actions, and by trained
    policies, which go where an encoder that they were rewarded by is easily fooled. Where a world cannot be put into a
    state, all are steps of episodes.

    Args:
        env_ids: as `env.id` takes them.
        own_look: share of states and episodes that keep the world's own look; the rest draw light, camera pose,
            colours and distractors.
        second_camera: share of frames from the scene's second camera; the rest are from its first.
        seed: same seed, same frames, whatever `workers` is.
        policies: world id -> run folders of policies trained there on state observations; they act in
            `POLICY_SHARE` of its episodes.
        facts: what tells the facts of worlds that are not ours; see `embodied.envs.scenes`.
        camera: whose frames, of every world; None: each world's own.

    Raises:
        UserError: a world is not there or tells no facts, or the worlds tell different ones.
    """
    told = scene_facts(env_ids, image_size, facts, camera)
    runs = {env: tuple((policies or {}).get(env, ())) for env in env_ids}
    jobs = [
        (env, min(CHUNK, count - start), (*seed, i), image_size, own_look, second_camera, runs[env], facts, camera)
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
    return Renders(np.concatenate([p[0] for p in done]), np.concatenate([p[1] for p in done]), told)


def scene_facts(
    env_ids: Sequence[str], image_size: int, facts: str | None = None, camera: str | Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """What can be true of worlds that share one scene; arguments and errors are those of `render`."""
    found: dict[str, tuple[str, ...]] = {}
    for env in dict.fromkeys(env_ids):
        scene = open_scene(env, image_size, facts=facts, camera=camera)
        found[env] = scene.facts
        scene.close()
    first, *others = found
    if strange := next((env for env in others if found[env] != found[first]), None):
        raise UserError(
            f"pretrain: the worlds of a scene must tell the same facts; got {', '.join(found[first])} of {first} and "
            f"{', '.join(found[strange])} of {strange}. Make them two scenes."
        )
    return found[first]


def _render_job(
    env_id: str,
    count: int,
    seed: tuple[int, ...],
    image_size: int,
    own_look: float,
    second_camera: float,
    runs: tuple[Path, ...],
    facts: str | None,
    camera: str | Mapping[str, Any] | None,
) -> tuple[np.ndarray, np.ndarray]:
    world = open_scene(env_id, image_size, facts=facts, camera=camera)
    rng = np.random.default_rng(seed)
    frames = np.empty((count, image_size, image_size, 3), np.uint8)
    degrees = np.empty((count, len(world.facts)), np.float32)
    filled = 0
    models = [load_policy(run) for run in runs]

    def keep() -> None:
        nonlocal filled
        if filled < count:
            truth = world.degrees()
            seen = world.cameras[int(rng.random() < second_camera)] if second_camera else None
            frames[filled], degrees[filled] = world.frame(seen), [truth[fact] for fact in world.facts]
            filled += 1

    world.reset(seed=int(rng.integers(2**31)))
    while filled < count:
        if filled < count // 2 and (isinstance(world, World) or world.samples):
            _draw_look(world, own_look, rng)
            world.sample_state(rng)
            if rng.random() < NEAR_MISS:
                _wander(world, rng)
            keep()
        else:
            _episode(world, env_id, own_look, rng, keep, models)
    world.close()
    return frames, degrees


def _wander(world: World | Scene, rng: np.random.Generator) -> None:
    """A few steps of one random action: from a solved state, to states that are just not."""
    action = _at_random(world.action_space, rng, lambda: float(rng.uniform(0.1, 1)))
    for _ in range(rng.integers(1, 7)):
        world.step(action)


def _at_random(space: gymnasium.Space, rng: np.random.Generator, reach: Callable[[], float]) -> Any:
    """An action: of numbers, within some share of the way to their bounds; of choices, any."""
    if not isinstance(space, gymnasium.spaces.Box):
        space.seed(int(rng.integers(2**31)))
        return space.sample()
    drawn = rng.uniform(-1, 1, space.shape) * reach()
    low, high = (np.clip(bound.astype(np.float64), -10, 10) for bound in (space.low, space.high))  # some have none
    return ((low + high) / 2 + drawn * (high - low) / 2).astype(np.float32)


def _draw_look(world: World | Scene, own_look: float, rng: np.random.Generator) -> None:
    world.restore_look()
    if rng.random() >= own_look:
        world.randomize_look(rng)


def _episode(
    world: World | Scene,
    env_id: str,
    own_look: float,
    rng: np.random.Generator,
    keep: Callable[[], None],
    models: Sequence[tuple[Actor, Perception | None]],
) -> None:
    """One episode of a policy, the noisy expert or random actions; some steps are kept, half of them in our worlds."""
    world.reset(seed=int(rng.integers(2**31)))
    _draw_look(world, own_look, rng)
    act: Callable[[Any], np.ndarray] | None = None
    played = world.world if isinstance(world, Scene) else world
    if isinstance(world, World) and models and rng.random() < POLICY_SHARE:
        act = _acting(models[int(rng.integers(len(models)))], world, rng)
    elif has_expert(played) and rng.random() < 0.75:
        act = expert(played, noise=float(rng.choice([0.0, 0.3, 0.8])), rng=rng)
    limit = scene_steps(env_id, world)
    share = min(0.5, KEPT / limit) if isinstance(world, Scene) else 0.5
    held: Any = None
    leaves = rng.integers(5, limit) if limit > 5 and rng.random() < NEAR_MISS else limit
    for step in range(limit):
        if act is not None and step < leaves:
            action = act(played).astype(np.float32)
        else:
            if held is None or step % 5 == 0:  # held actions travel further than white noise
                held = _at_random(world.action_space, rng, lambda: float(rng.choice([0.3, 1.0])))
            action = held
        over = world.step(action)
        if rng.random() < share:
            keep()
        if isinstance(world, Scene) and over:
            break


def _acting(
    policy: tuple[Actor, Perception | None], world: World, rng: np.random.Generator
) -> Callable[[World], np.ndarray]:
    """A trained policy, at times with noise: it shall also be seen beside its habits."""
    noise, solo = float(rng.choice([0.0, 0.0, 0.2, 0.5])), Solo(policy[0], world, policy[1])

    def act(world: World) -> np.ndarray:
        action = solo(world._state())
        return np.clip(action + noise * rng.normal(size=action.shape), -1, 1)

    return act
