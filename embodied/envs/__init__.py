"""Our worlds, registered with Gymnasium by name; nothing of MuJoCo is imported until one is made."""

from __future__ import annotations

from typing import Any

import gymnasium

from embodied.envs import tasks

_SCENES = {  # entry points
    "cartpole": "embodied.envs.cartpole:CartPole",
    "reacher": "embodied.envs.reacher:Reacher",
    "humanoid": "embodied.envs.humanoid:Humanoid",
    "desk": "embodied.envs.desk:Desk",
    "drive": "embodied.envs.drive:Drive",
}

WORLDS = tuple(tasks.WORLDS)  # short names; the Gymnasium id is embodied/<name>-v0
DESK = tuple(name for name in WORLDS if name.startswith("desk-"))
SCRIPTED = (*DESK, "drive-town")  # those with an expert


def world_id(name: str) -> str:
    """The Gymnasium id of one of `WORLDS`.

    Args:
        name: of a world, as "desk-drawer".
    """
    return f"embodied/{name}-v0"


def world_cameras(name: str) -> tuple[str, ...]:
    """The cameras of one of `WORLDS`, its own first.

    Args:
        name: of a world, as "desk-drawer".
    """
    from gymnasium.envs.registration import load_env_creator

    world: Any = load_env_creator(_SCENES[name.partition("-")[0]])
    return world.cameras


def world_scene(name: str) -> str:
    """The folder below `sim_assets/` of one of `WORLDS`.

    Args:
        name: of a world, as "desk-drawer".
    """
    from gymnasium.envs.registration import load_env_creator

    world: Any = load_env_creator(_SCENES[name.partition("-")[0]])
    return world.scene.partition("/")[0]


def is_world(env_id: str | None) -> bool:
    """Whether a Gymnasium id is of one of `WORLDS`.

    Args:
        env_id: as "embodied/desk-drawer-v0"; None is of none.
    """
    return env_id in {world_id(name) for name in WORLDS}


for _name, _task in tasks.WORLDS.items():
    _scene, _, _kind = _name.partition("-")
    if world_id(_name) not in gymnasium.registry:
        gymnasium.register(
            world_id(_name), entry_point=_SCENES[_scene], kwargs={"task": _kind} if _kind else {},
            max_episode_steps=_task.steps,
        )  # fmt: skip
