"""Other people's environments behind the face of ours: one `frame()`, one success flag, one observation form."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from PIL import Image

from embodied.envs import WORLDS, world_id
from embodied.envs.classic import FixedCartPole, FixedMountainCar
from embodied.envs.rendering import PICTURE_SIZE, FrameRenderer, free_camera
from embodied.envs.world import OBS_FORMS
from embodied.errors import UserError, nearest

SUITES_HELP = "Install it: pip install 'embodied-rewards[suites]'."
DEFAULT_STEPS = 1000  # an episode, where neither the caller nor the suite says

_CLASSIC = {"CartPole-v1": (FixedCartPole, 200), "MountainCarContinuous-v0": (FixedMountainCar, 999)}
_ROBOTICS = ("Fetch", "Hand", "Adroit", "FrankaKitchen", "PointMaze", "AntMaze")  # how Gymnasium-Robotics' ids begin
# What suites change of the model from episode to episode: where things stand, what shows the goal.
_MODEL = (
    "body_pos", "body_quat", "geom_pos", "geom_quat", "geom_size", "geom_rgba", "mat_rgba", "site_pos", "site_quat",
    "site_rgba", "cam_pos", "cam_quat",
)  # fmt: skip
# After a step these are one physics step old, and some suites (Fetch) act on them as they are.
_POSES = ("xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat")
_FREE = ("distance", "lookat", "elevation", "azimuth")  # keys of a free camera
_UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")  # Meta-World's cameras that hang head down


@dataclass(frozen=True)
class _Found:
    """An environment of a suite and what the suite is known for."""

    env: gymnasium.Env
    steps: int  # the suite's own time limit
    success: Callable[[dict[str, Any]], bool] = lambda info: bool(info.get("is_success", info.get("success", False)))
    proprio: Callable[[np.ndarray], np.ndarray] = lambda flat: flat  # of the flattened state, for obs="mixed"
    camera: str | None = None  # where frames come from unless the caller says
    upside_down: tuple[str, ...] = ()  # cameras whose pictures need a half turn
    seeds: Callable[[int], Any] | None = None  # for suites whose reset ignores its seed


def make(
    id: str,
    *,
    obs: str = "state",
    camera: str | Mapping[str, Any] | None = None,
    image_size: int = 96,
    max_episode_steps: int | None = None,
    **kwargs: Any,
) -> gymnasium.Env:
    """Make one environment of ours or of a suite, ready for a reward model.

    What comes back has `frame(camera=None, image_size=None)` ((H, W, 3) uint8 RGB, upright, contiguous), tells
    `info["is_success"]` at every step, is cut by a time limit, and saves itself with `get_state()`.

    | id | what | `is_success` |
    |---|---|---|
    | `desk-drawer`, `embodied/desk-drawer-v0` | ours | the task's own test |
    | `CartPole-v1`, `MountainCarContinuous-v0` | as in VLM-RM, see `embodied.envs.classic` | never left / arrived |
    | `HalfCheetah-v5`, Gymnasium's other ids | as they are, but no early end when "unhealthy" | never: none given |
    | `FetchReach-v4` and others of Gymnasium-Robotics | as they are | theirs; Kitchen: every task done |
    | `metaworld/reach-v3` | Meta-World, goal in the observation, new goal each episode | theirs |
    | `dm_control/walker-walk-v0` | dm_control by Shimmy | never: none given |

    A suite's own early end (a fallen pendulum) stays `terminated`, save where Gymnasium lets it be switched off.

    Args:
        id: a name from the table.
        obs: "state" (S,) float32, dictionaries flattened in the order of their keys; "pixels" (H, W, 3) uint8; or
            "mixed", a dict of `pixels` and `agent_pos`, which is the arm's own part of the state for Fetch and
            Meta-World and all of the state elsewhere.
        camera: a camera of the model; or the keys of a free one: distance (m), lookat (3 numbers, m), elevation and
            azimuth (degrees). None: the world's or suite's usual one.
        image_size: height and width of `frame()`, pixels.
        max_episode_steps: the time limit; None: the world's or suite's own.
        **kwargs: for the environment's constructor.

    Raises:
        UserError: no such environment, a suite that is not installed, or no such camera.
    """
    if obs not in OBS_FORMS:
        raise UserError(f"make: obs must be one of {', '.join(OBS_FORMS)}; got {obs!r}.")
    name = id.removeprefix("embodied/").removesuffix("-v0")
    if name in WORLDS:
        extra = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
        return gymnasium.make(
            world_id(name), obs=obs, camera=camera, image_size=image_size, disable_env_checker=True, **extra, **kwargs
        )
    found = _find(id, kwargs)
    bridged = Bridged(found, obs=obs, camera=camera, image_size=image_size)
    return gymnasium.wrappers.TimeLimit(bridged, max_episode_steps or found.steps)


class Bridged(gymnasium.Env):
    """See `make`. Not a wrapper: `unwrapped` stays here, with the frames, the random generator and the state.

    Every episode's start is drawn from `np_random`, also where the suite keeps a generator of its own.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, found: _Found, *, obs: str, camera: str | Mapping[str, Any] | None, image_size: int) -> None:
        self._found, self.inner = found, found.env
        self.obs_form, self.image_size, self.render_mode = obs, image_size, "rgb_array"
        self._renderer: FrameRenderer | None = None
        physics = _physics(self.inner)
        names = () if physics is None else tuple(physics[0].camera(i).name for i in range(physics[0].ncam))
        self.cameras: tuple[str, ...] = (*(n for n in names if n), "free") if physics else ("default",)
        self.camera = self._camera(camera or self._usual_camera())
        self.action_space = self.inner.action_space
        flat = spaces.flatten_space(self.inner.observation_space)
        if not isinstance(flat, spaces.Box):
            raise UserError(f"make: observations of {self.inner} cannot be flattened to numbers.")
        state = spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)
        pixels = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        if obs == "state":
            self.observation_space = state
        elif obs == "pixels":
            self.observation_space = pixels
        else:
            own = spaces.Box(found.proprio(state.low), found.proprio(state.high), dtype=np.float32)
            self.observation_space = spaces.Dict({"pixels": pixels, "agent_pos": own})
        self.metadata = {**type(self).metadata, "render_fps": self.inner.metadata.get("render_fps", 20)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        start = int(self.np_random.integers(2**31)) if seed is None else seed
        if self._found.seeds is not None:
            self._found.seeds(start)
        obs, info = self.inner.reset(seed=start, options=options)
        return self._obs(obs), {**info, "is_success": self._found.success(info)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.inner.step(action)
        info = {**info, "is_success": self._found.success(info)}
        return self._obs(obs), float(reward), bool(terminated), bool(truncated), info

    def _obs(self, obs: Any) -> Any:
        if self.obs_form == "pixels":
            return self.frame()
        flat = np.asarray(spaces.flatten(self.inner.observation_space, obs), np.float32)
        if self.obs_form == "state":
            return flat
        return {"pixels": self.frame(), "agent_pos": self._found.proprio(flat)}

    # Frames ---------------------------------------------------------------------------------------------

    def frame(self, camera: str | Mapping[str, Any] | None = None, image_size: int | None = None) -> np.ndarray:
        """What the reward model sees now: (H, W, 3) uint8 RGB, contiguous, upright.

        Rendered at that size with the fast settings where MuJoCo runs underneath; else the suite's own picture,
        resized by area.
        """
        return self._view(image_size or self.image_size, camera, fast=True)

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._view(PICTURE_SIZE, None, fast=False)

    def _view(self, size: int, camera: str | Mapping[str, Any] | None, *, fast: bool) -> np.ndarray:
        physics = _physics(self.inner)
        if physics is None:
            picture = Image.fromarray(np.ascontiguousarray(self.inner.render()))
            return np.array(picture.resize((size, size), Image.Resampling.BOX))
        model, data = physics
        if self._renderer is None or self._renderer.model is not model:
            self._renderer = FrameRenderer(model)
        view = self.camera if camera is None else self._camera(camera)
        image = self._renderer.frame(data, view, size, size) if fast else self._renderer.picture(data, view, size)
        return np.ascontiguousarray(image[::-1, ::-1]) if view in self._found.upside_down else image

    def _camera(self, camera: str | Mapping[str, Any]) -> Any:
        """A camera's name, or a free camera made of the suite's usual view and the caller's keys."""
        if isinstance(camera, str) and camera not in self.cameras:
            raise UserError(f"make: no camera {camera!r} here. {nearest(camera, self.cameras)}")
        if isinstance(camera, str) and camera != "free":
            return camera
        base = self.inner.unwrapped
        robot = getattr(base, "robot_env", base)  # Kitchen keeps its viewer there
        usual = getattr(getattr(robot, "mujoco_renderer", None), "default_cam_config", None) or {}
        given = {} if isinstance(camera, str) else dict(camera)
        if unknown := next((key for key in given if key not in _FREE), None):
            raise UserError(f"make: a free camera has no {unknown!r}. {nearest(unknown, _FREE)}")
        physics = _physics(self.inner)
        if physics is None:
            raise UserError("make: a free camera needs a MuJoCo environment. Leave `camera` out.")
        view = {key: value for key, value in usual.items() if key in _FREE} | given
        lookat = tuple(float(x) for x in view.pop("lookat", ())) or None
        return free_camera(physics[0], lookat=lookat, **{key: float(value) for key, value in view.items()})

    def _usual_camera(self) -> str:
        if self._found.camera in self.cameras:
            return str(self._found.camera)
        return "track" if "track" in self.cameras else self.cameras[-1]

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.inner.close()

    # Resume ---------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything `set_state` needs to go on from here: MuJoCo's state and the numbers the environment holds."""
        state = {f"{i}/{key}": np.array(v) for i, part in enumerate(self._parts()) for key, v in _numbers(part)}
        physics, base = _physics(self.inner), self.inner.unwrapped
        hidden = physics is None and not isinstance(base, FixedCartPole | FixedMountainCar)
        if hidden or hasattr(base, "robot_env"):  # Kitchen's robot draws noise for every reading
            raise UserError(f"get_state: {self.inner} keeps some of its state to itself. It cannot be resumed.")
        if physics is None:
            return state
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state["mujoco"] = np.empty(mujoco.mj_stateSize(physics[0], kind))
        mujoco.mj_getState(*physics, state["mujoco"], kind)
        for part, keys in zip(physics, (_MODEL, _POSES), strict=True):
            state |= {f"mujoco/{key}": np.array(getattr(part, key)) for key in keys}
        return state

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        for i, part in enumerate(self._parts()):
            for key, value in list(_numbers(part)):
                saved = state.get(f"{i}/{key}")
                if saved is not None:
                    setattr(part, key, saved.copy() if isinstance(value, np.ndarray) else saved.item())
        physics = _physics(self.inner)
        if physics is not None:
            model, data = physics
            kind = mujoco.mjtState.mjSTATE_INTEGRATION
            for key in _MODEL:
                getattr(model, key)[:] = state[f"mujoco/{key}"]
            mujoco.mj_setState(model, data, state["mujoco"], kind)
            mujoco.mj_forward(model, data)  # it also touches the solver's warm start, hence once more
            mujoco.mj_setState(model, data, state["mujoco"], kind)
            for key in _POSES:
                getattr(data, key)[:] = state[f"mujoco/{key}"]

    def _parts(self) -> list[Any]:
        """The objects that hold Python-side numbers of the episode."""
        base = self.inner.unwrapped
        control = getattr(base, "_env", None)  # dm_control behind Shimmy
        return [base] if control is None else [control, control.task]


def _numbers(part: Any) -> list[tuple[str, Any]]:
    kinds = (np.ndarray, np.generic, bool, int, float)
    return [(k, v) for k, v in vars(part).items() if isinstance(v, kinds) and np.asarray(v).dtype != object]


def _physics(env: gymnasium.Env) -> tuple[mujoco.MjModel, mujoco.MjData] | None:
    """MuJoCo's model and data behind an environment, if it has them."""
    base = env.unwrapped
    control = vars(base).get("_env")
    if control is not None and hasattr(control, "physics"):
        return control.physics.model.ptr, control.physics.data.ptr
    model, data = getattr(base, "model", None), getattr(base, "data", None)
    return (model, data) if isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData) else None


# Suites -------------------------------------------------------------------------------------------------


def _find(id: str, kwargs: dict[str, Any]) -> _Found:
    if id in _CLASSIC:
        kind, steps = _CLASSIC[id]
        return _Found(kind(render_mode="rgb_array", **kwargs), steps)
    if id.startswith("metaworld/"):
        return _metaworld(id, kwargs)
    if id.startswith("dm_control/"):
        _suite("shimmy", id)
        env = _registered(id, kwargs)
        control: Any = vars(env.unwrapped)["_env"]
        steps, control._step_limit = control._step_limit, float("inf")  # ours cuts instead, and can be saved
        named = _physics(env)
        first = named[0].camera(0).name if named and named[0].ncam else None
        return _Found(env, int(steps) if np.isfinite(steps) else DEFAULT_STEPS, lambda info: False, camera=first)
    if id.startswith(_ROBOTICS):
        _suite("gymnasium_robotics", id)
        env = _registered(id, kwargs)
        own = {25: [0, 1, 2, 9, 10, *range(20, 25)], 10: list(range(10))}  # Fetch: grip, fingers and their velocities
        parts = env.observation_space
        width = parts["observation"].shape if isinstance(parts, spaces.Dict) and "observation" in parts.spaces else None
        keep = own.get(width[0]) if id.startswith("Fetch") and width else None
        return _Found(
            env,
            _limit(env),
            _kitchen_done if id.startswith("FrankaKitchen") else _Found.success,
            (lambda flat: flat[..., 6:][keep]) if keep else _Found.proprio,
            camera="free",
        )
    return _Found(env := _registered(id, kwargs), _limit(env))


def _kitchen_done(info: dict[str, Any]) -> bool:
    return "tasks_to_complete" in info and not info["tasks_to_complete"]


def _metaworld(id: str, kwargs: dict[str, Any]) -> _Found:
    metaworld = _suite("metaworld", id)
    tasks = {key.removesuffix("-goal-observable"): key for key in metaworld.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE}
    task = id.removeprefix("metaworld/")
    if task not in tasks:
        raise UserError(f"make: no environment {id!r}. {nearest(id, [f'metaworld/{t}' for t in tasks])}")
    env: Any = metaworld.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[tasks[task]](seed=0, **kwargs)
    env._freeze_rand_vec, env.seeded_rand_vec = False, True  # a new start and goal each episode, drawn from its seed
    env.observation_space = env.sawyer_observation_space  # what it was made with gives the goal no room
    steps, env.max_path_length = int(env.max_path_length), 10**9  # ours cuts instead
    return _Found(
        env,
        steps,
        proprio=lambda flat: flat[:4],  # hand position and gripper opening
        camera="corner2",
        upside_down=_UPSIDE_DOWN,
        seeds=env.seed,
    )


def _suite(module: str, id: str) -> Any:
    """Import a suite, without the notes on other versions of itself that it prints and warns."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"make: {id!r} needs the package {module}, which is not installed. {SUITES_HELP}")
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        suite = importlib.import_module(module)
        if module != "metaworld":
            gymnasium.register_envs(suite)
    return suite


def _registered(id: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    """From Gymnasium's registry, without a time limit."""
    if id not in gymnasium.registry:
        raise UserError(f"make: no environment {id!r}. {nearest(id, [*WORLDS, *gymnasium.registry], listed='worlds')}")
    spec = gymnasium.spec(id)
    entry = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    known = inspect.signature(entry).parameters if entry else {}
    kwargs = {"terminate_when_unhealthy": False} | kwargs if "terminate_when_unhealthy" in known else kwargs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "a newer version exists", precision of bounds
            return gymnasium.make(id, max_episode_steps=-1, disable_env_checker=True, render_mode="rgb_array", **kwargs)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise UserError(f"make: {id} cannot be made: {error}") from error


def _limit(env: gymnasium.Env) -> int:
    spec = gymnasium.registry.get(env.spec.id) if env.spec else None
    return (spec.max_episode_steps if spec else None) or DEFAULT_STEPS
