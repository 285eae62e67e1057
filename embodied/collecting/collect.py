"""Episodes of experts, near misses, failures, random actions and trained policies, written as datasets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from omegaconf import DictConfig, OmegaConf

from embodied.building.worlds import env_maker
from embodied.collecting import COLLECTED, COUNTERFACTUAL, POLICIES
from embodied.collecting.counterfactual import CounterfactualStarts, kinds_of
from embodied.collecting.episodes import Player, episode, play, show
from embodied.datasets import Dataset, Writer
from embodied.envs.desk import Desk
from embodied.envs.experts import has_expert
from embodied.envs.world import World, control_rate
from embodied.errors import UserError, nearest
from embodied.settings import check_least
from rewards.progress import tqdm

KINDS = ("expert", "noisy", "near_miss", "failure", "random")


def collect(config: DictConfig, learner: Player | None = None) -> Dataset:
    """The dataset that a config describes, finished where it was left.

    Args:
        config: of `embodied collect`.
        learner: what acts, for `policy=run:…`.

    Raises:
        UserError: a world without an expert for a policy that needs one, a wrong share, camera, size or folder.
    """
    _check(config)
    env = env_maker(config)()
    try:
        world = env.unwrapped
        scripted = config.policy in ("expert", "mixed", COUNTERFACTUAL)
        known = isinstance(world, Desk) if config.policy == COUNTERFACTUAL else has_expert(world)
        if scripted and not known:
            what = "one of the desk's worlds" if config.policy == COUNTERFACTUAL else "a scripted expert"
            raise UserError(f"policy={config.policy} needs {what}, which {config.env.id} lacks. Use random.")
        cameras = _cameras(env, config.cameras)
        kinds = kinds_of(world.task) if isinstance(world, Desk) and config.policy == COUNTERFACTUAL else ()
        starts = CounterfactualStarts(env, config.seed)
        first = play(env, 0, lambda obs: env.action_space.sample(), stop=1).columns(env)
        features = {name: _feature(name, values, env) for name, values in first.items()}
        size = config.image_size
        root = Path(config.out or COLLECTED / _name(config))
        description: Any = OmegaConf.to_container(config.env, resolve=True)
        if description.get("max_episode_steps") is None:
            description.pop("max_episode_steps", None)  # as datasets of before this setting
        with (
            Writer(
                root,
                fps=control_rate(env),
                features=features,
                cameras=dict.fromkeys(cameras, (size, size)),
                env=description,
                made=_heeded(config),
            ) as writer,
            tqdm(total=config.episodes, initial=len(writer), desc="collecting", unit="episode") as bar,
        ):
            drawn = islice(_kinds(config), len(writer), None)
            for i in range(len(writer), config.episodes):
                if kinds:
                    kind = kinds[i % len(kinds)]
                    seed, shown = starts.path(i // len(kinds), kind)
                    take = show(env, shown, seed, (cameras, int(size)))
                else:
                    kind = next(drawn)
                    take = episode(env, kind, config, i, learner, cameras)
                writer.add(
                    take.columns(env),
                    {short: np.stack(images) for short, images in take.frames.items()},
                    instruction=_instruction(env),
                    kind=kind,
                    last=take.last,
                    steps=take.steps(),
                    seed=take.seed,
                )
                bar.update()
    finally:
        env.close()
    return Dataset(root)


# What is written ----------------------------------------------------------------------------------------


def _feature(name: str, values: np.ndarray, env: gymnasium.Env) -> dict[str, Any]:
    """The entry of info.json for a column."""
    width = values.shape[1] if values.ndim > 1 else 1
    names = None
    if name == "observation.state" and hasattr(env.unwrapped, "signals"):
        names = list(env.get_wrapper_attr("signals")())
    elif values.ndim > 1:
        names = [f"{'action' if name == 'action' else 'state'}_{k}" for k in range(width)]
    return {"dtype": str(values.dtype), "shape": [width], "names": names}


def _cameras(env: gymnasium.Env, wanted: Any) -> dict[str, str]:
    """Short name in the dataset -> the world's camera."""
    known, chosen = env.get_wrapper_attr("cameras"), env.get_wrapper_attr("camera")
    if wanted is None:
        wanted = [chosen] if isinstance(chosen, str) else ["free"]
        if isinstance(env.unwrapped, World):
            wanted += [name for name in known[:2] if name != chosen][:1]
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if not wanted or len(set(wanted)) != len(wanted):
        raise UserError(f"cameras must be a list of different names; got {wanted}.")
    for name in wanted:
        if name not in known:
            raise UserError(f"cameras: {name!r} is none of this world's. {nearest(str(name), known)}")
    return {name.replace("/", "_"): name for name in wanted}


def _instruction(env: gymnasium.Env) -> str:
    return str(getattr(env.unwrapped, "instruction", ""))


def _kinds(config: DictConfig) -> Iterator[str]:
    """Of each episode in turn; any number of first ones has the declared shares, as nearly as whole numbers can."""
    if config.policy != "mixed":
        yield from repeat("policy" if config.policy.startswith("run:") else config.policy)
    shares, drawn = {kind: config.shares[kind] for kind in KINDS}, dict.fromkeys(KINDS, 0)
    for n in count(1):
        kind = max(KINDS, key=lambda kind, n=n: shares[kind] * n - drawn[kind])
        drawn[kind] += 1
        yield kind


def _heeded(config: DictConfig) -> dict[str, int | float | str]:
    """The settings, by their names, that decide what episodes are, beside the world's: the policy and its own."""
    names = ["policy", "seed"]
    if config.policy in ("random", "mixed"):
        names.append("hold")
    if config.policy == "mixed":
        names += ["noise", *(f"shares.{kind}" for kind in KINDS)]
    return {name: OmegaConf.select(config, name) for name in names}


def _name(config: DictConfig) -> str:
    env = str(config.env.id).removeprefix("embodied/").removesuffix("-v0").replace("/", "-").replace(":", "-")
    return f"{env}-{config.policy.replace('run:', '').replace('/', '-')}"


# From a config ------------------------------------------------------------------------------------------


def _check(config: DictConfig) -> None:
    if config.policy not in POLICIES and not str(config.policy).startswith("run:"):
        raise UserError(f"policy must be {', '.join(POLICIES)} or run:FOLDER; got {config.policy!r}. "
                        f"{nearest(str(config.policy), POLICIES)}")  # fmt: skip
    check_least(config, episodes=1, image_size=1, hold=1, noise=0)
    if config.image_size % 2:
        raise UserError(f"image_size must be even, for H.264; got {config.image_size}.")
    shares = {kind: float(config.shares[kind]) for kind in KINDS}
    if min(shares.values()) < 0 or not np.isclose(sum(shares.values()), 1):
        raise UserError(f"shares must be 0 or more and sum to 1; got {shares}.")
