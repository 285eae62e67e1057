"""Our worlds, registered with Gymnasium by name; nothing of MuJoCo is imported until one is made."""

from __future__ import annotations

from typing import Any

import gymnasium

# id -> (entry point, constructor arguments, steps in an episode)
_WORLDS: dict[str, tuple[str, dict[str, str], int]] = {
    "cartpole": ("embodied.envs.cartpole:CartPole", {}, 100),
    **{f"reacher-{c}": ("embodied.envs.reacher:Reacher", {"task": c}, 50) for c in ("red", "green", "blue", "yellow")},
    **{f"humanoid-{t}": ("embodied.envs.humanoid:Humanoid", {"task": t}, 100) for t in ("stand", "kneel")},
    **{
        f"desk-{task}": ("embodied.envs.desk:Desk", {"task": task}, steps)
        for task, steps in (
            ("reach", 50),
            ("push", 80),
            ("press", 50),
            ("drawer", 50),
            ("close", 50),
            ("lift", 80),
            ("place", 120),
            ("stack", 150),
        )
    },
}

WORLDS = tuple(_WORLDS)  # short names; the Gymnasium id is embodied/<name>-v0
SCRIPTED = tuple(name for name in WORLDS if name.startswith("desk-"))  # those with an expert


def world_id(name: str) -> str:
    """The Gymnasium id of one of `WORLDS`."""
    return f"embodied/{name}-v0"


def world_cameras(name: str) -> tuple[str, ...]:
    """The cameras of one of `WORLDS`, its own first."""
    from gymnasium.envs.registration import load_env_creator

    world: Any = load_env_creator(_WORLDS[name][0])
    return world.cameras


def is_world(env_id: str | None) -> bool:
    """Whether a Gymnasium id is of one of `WORLDS`."""
    return env_id in {world_id(name) for name in WORLDS}


for _name, (_entry_point, _kwargs, _steps) in _WORLDS.items():
    if world_id(_name) not in gymnasium.registry:
        gymnasium.register(world_id(_name), entry_point=_entry_point, kwargs=_kwargs, max_episode_steps=_steps)
