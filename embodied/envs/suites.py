"""Other people's suites, each as it is known: its time limit, its word of success, its usual camera."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator

from embodied.envs import WORLDS
from embodied.envs.classic import FixedCartPole, FixedMountainCar
from embodied.envs.spaces import told_success
from embodied.errors import UserError, nearest

_EXTRAS = {"libero": "libero"}  # the extra that brings a suite's module, where it is not `suites`
DEFAULT_STEPS = 1000  # an episode, where neither the caller nor the suite says

_NAMED = {"metaworld/": "metaworld", "dm_control/": "shimmy", "libero/": "libero"}  # how their ids begin -> module
_CLASSIC = {"CartPole-v1": (FixedCartPole, 200), "MountainCarContinuous-v0": (FixedMountainCar, 999)}
_ROBOTICS = ("Fetch", "Hand", "Adroit", "FrankaKitchen", "PointMaze", "AntMaze")  # how Gymnasium-Robotics' ids begin
_UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")  # Meta-World's cameras that hang head down


@dataclass(frozen=True)
class SuiteWorld:
    """An environment of a suite and what the suite is known for.

    Attributes:
        env: made, without a time limit.
        steps: of an episode.
        success: info -> whether the task is solved; None where it does not say.
        proprio: observation as one row -> own readings.
        camera: the usual one; None: the environment's own.
        upside_down: cameras whose pictures are turned.
        mirrored: whether left and right change places in every picture.
        seeds: seed -> what begins that episode; None: `reset` takes the seed.
        script: makes a scripted expert; None: there is none.
        instruction: the task as an order; "" where unknown.
    """

    env: gymnasium.Env
    steps: int  # the suite's own time limit
    success: Callable[[dict[str, Any]], bool | None] = told_success  # None where it does not tell
    proprio: Callable[[np.ndarray], np.ndarray] = lambda flat: flat  # of the flattened state, for obs="mixed"
    camera: str | None = None  # where frames come from unless the caller says
    upside_down: tuple[str, ...] = ()  # cameras whose pictures need a half turn
    mirrored: bool = False  # as the suite's published datasets are
    seeds: Callable[[int], Any] | None = None  # for suites whose reset ignores its seed
    script: Callable[[], Callable[[np.ndarray], np.ndarray]] | None = None  # makes the suite's own expert, of the state
    instruction: str = ""  # the task in words


def find(id: str, kwargs: dict[str, Any]) -> SuiteWorld:
    """Make an environment of a suite, or of Gymnasium's registry.

    Args:
        id: as `embodied.envs.bridge.make` takes it.
        kwargs: of the environment.

    Raises:
        UserError: there is none, or it cannot be made.
    """
    if id in _CLASSIC and comes_from("gymnasium", id):
        kind, steps = _CLASSIC[id]
        return SuiteWorld(kind(render_mode="rgb_array", **kwargs), steps)
    if id.startswith("metaworld/"):
        return _metaworld(id, kwargs)
    if id.startswith("libero/"):
        return _libero(id, kwargs)
    if id.startswith("dm_control/"):
        _suite("shimmy", id)
        env = _registered(id, kwargs)
        control: Any = vars(env.unwrapped)["_env"]
        steps, control._step_limit = control._step_limit, float("inf")  # ours cuts instead, and can be saved
        named = physics_of(env)
        first = named[0].camera(0).name if named and named[0].ncam else None
        return SuiteWorld(env, int(steps) if np.isfinite(steps) else DEFAULT_STEPS, camera=first)
    if id.startswith(_ROBOTICS) and (id not in gymnasium.registry or comes_from("gymnasium_robotics", id)):
        _suite("gymnasium_robotics", id)
        env = _registered(id, kwargs)
        own = {25: [0, 1, 2, 9, 10, *range(20, 25)], 10: list(range(10))}  # Fetch: grip, fingers and their velocities
        parts = env.observation_space
        width = parts["observation"].shape if isinstance(parts, spaces.Dict) and "observation" in parts.spaces else None
        keep = own.get(width[0]) if id.startswith("Fetch") and width else None
        return SuiteWorld(
            env,
            _limit(env),
            _kitchen_done if id.startswith("FrankaKitchen") else told_success,
            (lambda flat: flat[..., 6:][keep]) if keep else SuiteWorld.proprio,
            camera="free",
        )
    return SuiteWorld(env := _registered(id, kwargs), _limit(env))


def has_suite(id: str) -> bool:
    """Whether an id names a suite's own world, nobody else's code, and that suite is installed.

    Args:
        id: as `find` takes it.
    """
    module = next((module for start, module in _NAMED.items() if id.startswith(start)), None)
    return module is not None and importlib.util.find_spec(module) is not None


def _kitchen_done(info: dict[str, Any]) -> bool | None:
    return not info["tasks_to_complete"] if "tasks_to_complete" in info else None


def _metaworld(id: str, kwargs: dict[str, Any]) -> SuiteWorld:
    metaworld = _suite("metaworld", id)
    tasks = {key.removesuffix("-goal-observable"): key for key in metaworld.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE}
    task = id.removeprefix("metaworld/")
    if task not in tasks:
        raise UserError(f"make: no environment {id!r}. {nearest(id, [f'metaworld/{t}' for t in tasks])}")
    env: Any = metaworld.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[tasks[task]](seed=0, **kwargs)
    env._freeze_rand_vec, env.seeded_rand_vec = False, True  # a new start and goal each episode, drawn from its seed
    env.observation_space = env.sawyer_observation_space  # what it was made with gives the goal no room
    steps, env.max_path_length = int(env.max_path_length), 10**9  # ours cuts instead
    return SuiteWorld(
        env,
        steps,
        proprio=lambda flat: flat[:4],  # hand position and gripper opening
        camera="corner2",
        upside_down=_UPSIDE_DOWN,
        seeds=env.seed,
        script=lambda: importlib.import_module("metaworld.policies").ENV_POLICY_MAP[task]().get_action,
        instruction=task.rpartition("-")[0].replace("-", " "),
    )


def _libero(id: str, kwargs: dict[str, Any]) -> SuiteWorld:
    _suite("libero", id)
    from embodied.envs.libero import LiberoTask, own_readings
    from embodied.envs.libero_expert import PickAndPlace, can

    suite, _, task = id.removeprefix("libero/").partition("/")
    mirrored = kwargs.pop("mirrored", False)
    if not isinstance(mirrored, bool):
        raise UserError(f"make: mirrored must be true or false; got {mirrored!r}.")
    if unknown := next((key for key in kwargs if key != "starts"), None):
        raise UserError(f"make: {id} has no setting {unknown!r}. {nearest(unknown, ['mirrored', 'starts'])}")
    env = LiberoTask(suite, task or "0", **kwargs)
    return SuiteWorld(
        env,
        env.steps,
        proprio=own_readings,
        camera="agentview",
        mirrored=mirrored,
        script=(lambda: PickAndPlace(env)) if can(env) else None,
        instruction=env.instruction,
    )


def _suite(module: str, id: str) -> Any:
    """Import a suite, without the notes on other versions of itself that it prints and warns."""
    if importlib.util.find_spec(module) is None:
        install = f"Install it: pip install 'embodied-rewards[{_EXTRAS.get(module, 'suites')}]'."
        raise UserError(f"make: {id!r} needs the package {module}, which is not installed. {install}")
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        suite = importlib.import_module(module)
        if module not in ("metaworld", "libero"):
            gymnasium.register_envs(suite)
    return suite


def _registered(id: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    """From Gymnasium's registry, without a time limit."""
    if id not in gymnasium.registry:
        known = nearest(id, [*WORLDS, *gymnasium.registry], listed="worlds")
        raise UserError(f"make: no environment {id!r}. {known} One of your own is written module:{id}.")
    spec = gymnasium.spec(id)
    try:
        entry = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        known = inspect.signature(entry).parameters if entry else {}
        kwargs = {"terminate_when_unhealthy": False} | kwargs if "terminate_when_unhealthy" in known else kwargs
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        if takes_any or "render_mode" in known:  # a world without pictures can be trained on its own reward
            kwargs = {"render_mode": "rgb_array"} | kwargs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "a newer version exists", precision of bounds
            return gymnasium.make(id, max_episode_steps=-1, disable_env_checker=True, **kwargs)
    except (gymnasium.error.Error, ImportError, AttributeError, TypeError) as error:
        raise UserError(f"make: {id} cannot be made: {error}") from error


def comes_from(package: str, id: str) -> bool:
    """Whether a registered environment is made by a package.

    Args:
        package: its name.
        id: as Gymnasium knows it.
    """
    spec = gymnasium.registry.get(id)
    made: Any = None if spec is None else spec.entry_point
    module = made if isinstance(made, str) else str(getattr(made, "__module__", ""))
    return module.replace(":", ".").split(".")[0] == package.split(".")[0]


def _limit(env: gymnasium.Env) -> int:
    spec = gymnasium.registry.get(env.spec.id) if env.spec else None
    return (spec.max_episode_steps if spec else None) or DEFAULT_STEPS


def physics_of(env: gymnasium.Env) -> tuple[mujoco.MjModel, mujoco.MjData] | None:
    """MuJoCo's model and data behind an environment, if it has them.

    Args:
        env: any.
    """
    base = env.unwrapped
    control = getattr(base, "__dict__", {}).get("_env")
    if control is not None and hasattr(control, "physics"):
        return control.physics.model.ptr, control.physics.data.ptr
    model, data = getattr(base, "model", None), getattr(base, "data", None)
    return (model, data) if isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData) else None
