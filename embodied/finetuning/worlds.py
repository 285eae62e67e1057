"""The worlds that a run's policies are judged in: the one that was asked for, or those that the data come from.

A config's `env` is one world, or a list of them where the data hold several tasks; null where there is none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from embodied.building.worlds import env_maker
from embodied.envs import is_world
from embodied.finetuning.inputs import PolicyPlan
from embodied.finetuning.judging import Arena
from embodied.literal import literal_config

TASK = ("id", "kwargs")  # what of a world makes it another task; where it was seen from does not


def worlds_of_data(planned: PolicyPlan) -> Any:
    """The world that all datasets come from, or a list of several; None where one of them comes from none of ours."""
    datasets = [source.dataset for source in planned.sources]
    if not all(is_world(each.env_id) for each in datasets):
        return None
    found: list[Mapping[str, Any]] = []
    for dataset in datasets:
        if not any(_task(dataset.env) == _task(each) for each in found):
            found.append(dataset.env)
    configs = [literal_config(each) for each in found]
    return configs[0] if len(configs) == 1 else configs


def worlds(config: DictConfig) -> list[tuple[str, DictConfig]]:
    """The worlds of a config, each by its name, as a config whose `env` is that world alone; none where there is none.

    Args:
        config: of a run; `env` may be null, a world, or a list of worlds.
    """
    env = config.get("env")
    if env is None:
        return []
    several = list(env) if isinstance(env, ListConfig) else [env]
    found = []
    for each in several:
        one = copy.deepcopy(config)
        one.env = copy.deepcopy(each)
        found.append((_name(each, several), one))
    return found


def names(config: Mapping[str, Any]) -> list[str]:
    """The names of a config's worlds, without "embodied/" and the version."""
    env = config.get("env")
    several = [env] if isinstance(env, Mapping | DictConfig) else list(env or [])
    return [_name(each, several) for each in several]


def arenas(
    config: DictConfig,
    eyes: Mapping[str, Callable[[np.ndarray], Tensor]],
    say: Callable[[Sequence[str]], Tensor],
    *,
    num_worlds: int,
    instruction: str | None,
) -> list[Arena]:
    """Where policies are tried, a world each.

    Args:
        config: of a run.
        eyes, say: see `Arena`.
        num_worlds: at once.
        instruction: the sentence in every world; None: each world's own.
    """
    found = worlds(config)
    return [
        Arena(env_maker(one), eyes, say, num_worlds, instruction, name if len(found) > 1 else "") for name, one in found
    ]


def _task(env: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(env.get(key) or None for key in TASK)


def _name(env: Mapping[str, Any], several: Sequence[Mapping[str, Any]]) -> str:
    """A world's id in short; what it is made with too, where another has the same id."""
    short = str(env["id"]).removeprefix("embodied/").removesuffix("-v0")
    if sum(each["id"] == env["id"] for each in several) > 1:
        told = ",".join(f"{key}={value}" for key, value in (env.get("kwargs") or {}).items())
        return f"{short} {told or 'as it is'}"
    return short
