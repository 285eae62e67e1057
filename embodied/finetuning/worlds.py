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
from embodied.envs.suites import has_suite
from embodied.envs.world import control_rate
from embodied.finetuning import orientation
from embodied.finetuning.inputs import PolicyPlan
from embodied.finetuning.judging import Arena
from embodied.finetuning.rollouts import RolloutWorlds
from embodied.literal import literal_config

_LOOKS = 3  # first frames that are compared
TASK = ("id", "kwargs")  # what of a world makes it another task; where it was seen from does not


def worlds_of_data(planned: PolicyPlan) -> Any:
    """The world that all datasets come from, or a list of several; None where one comes from none that we know.

    Known are our worlds, and those of installed suites as they are: nobody's code is imported because data name it.
    """
    datasets = [source.dataset for source in planned.sources]
    if not all(is_world(each.env_id) or _of_suite(each.env) for each in datasets):
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


def check(config: DictConfig, planned: PolicyPlan) -> None:
    """Refuse a world in which the policy to come could not be tried, before it is trained.

    Args:
        config: of a run.
        planned: its data.

    Raises:
        UserError: a world without a camera or a reading of the data's, or with other actions.
    """
    for _, one in worlds(config):
        RolloutWorlds(
            env_maker(one), 1, cameras=planned.frames, states=planned.states, actions=len(planned.actions)
        ).close()


def misplaced(config: DictConfig, planned: PolicyPlan) -> list[str]:
    """What is wrong with how the data's pictures are turned, beside what the worlds of a config show.

    Args:
        config: of a run.
        planned: its data.
    """
    told, found = [], worlds(config)
    for _, one in found:
        sources = [each for each in planned.sources if len(found) == 1 or _task(each.dataset.env) == _task(one.env)]
        env = env_maker(one)()
        try:
            shown: dict[str, list[np.ndarray]] = {}
            for seed in range(_LOOKS):
                env.reset(seed=seed)
                for name in set(planned.cameras) & set(env.get_wrapper_attr("cameras")):
                    shown.setdefault(name, []).append(env.get_wrapper_attr("frame")(camera=name))
        finally:
            env.close()
        for name in filter(shown.__contains__, planned.cameras):
            recorded = [
                each.dataset.frames(i, each.names.cameras[name], [0])[0]
                for each in sources if name in each.names.cameras for i in list(each.episodes)[:_LOOKS]
            ]  # fmt: skip
            how = orientation.misplaced(recorded, shown[name]) if recorded else None
            if how is not None:
                mend = "Say +env.kwargs.mirrored=true." if str(one.env.id).startswith("libero/") else "Turn the data's."
                told.append(f"the data's pictures of {name} are {how} beside the world's. {mend}")
    return told


def off_pace(config: DictConfig, fps: float) -> list[str]:
    """Where a world takes more or fewer actions a second than the policy gives, so that each does something else there.

    Args:
        config: of a run.
        fps: of the policy.
    """
    told = []
    for _, one in worlds(config):
        env = env_maker(one)()
        try:
            rate = control_rate(env)
        finally:
            env.close()
        if abs(rate - fps) > 0.01 * rate:
            mend = "Leave policy.fps out." if config.policy.fps else "Judge it in a world of the data's rate: env=…"
            told.append(f"the policy gives {fps:g} actions a second, {one.env.id} takes {rate:g}. {mend}")
    return told


def _of_suite(env: Mapping[str, Any]) -> bool:
    return has_suite(str(env.get("id", ""))) and not env.get("kwargs")


def _task(env: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(env.get(key) or None for key in TASK)


def _name(env: Mapping[str, Any], several: Sequence[Mapping[str, Any]]) -> str:
    """A world's id in short; what it is made with too, where another has the same id."""
    short = str(env["id"]).removeprefix("embodied/").removesuffix("-v0")
    if sum(each["id"] == env["id"] for each in several) > 1:
        told = ",".join(f"{key}={value}" for key, value in (env.get("kwargs") or {}).items())
        return f"{short} {told or 'as it is'}"
    return short
