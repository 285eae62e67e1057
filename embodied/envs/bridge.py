"""Other people's environments behind the face of ours: one `frame()`, one success flag, one observation form."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator

from embodied.envs import WORLDS, world_id
from embodied.envs.classic import FixedCartPole, FixedMountainCar
from embodied.envs.interventions import INTERVENE_ACTION
from embodied.envs.libero import LiberoTask
from embodied.envs.pictures import RENDER, picture, renders, resized
from embodied.envs.rendering import PICTURE_SIZE, FrameRenderer, free_camera
from embodied.envs.spaces import Actions, FlatObservations, number
from embodied.envs.suites import DEFAULT_STEPS, SuiteWorld, find, physics_of
from embodied.envs.world import OBS_FORMS, World
from embodied.errors import UserError, nearest

View = str | Mapping[str, Any] | mujoco.MjvCamera  # a camera's name, the keys of a free one, or MuJoCo's own object
_THEIRS = ("gymnasium.", "gymnasium_robotics.", "shimmy.", "metaworld")  # entry points that are nobody's own
# What suites change of the model from episode to episode: where things stand, what shows the goal; dm_control also
# what tendons pull at (point_mass-hard), springs (lqr) and a light (swimmer).
_MODEL = (
    "body_pos", "body_quat", "geom_pos", "geom_quat", "geom_size", "geom_rgba", "mat_rgba", "site_pos", "site_quat",
    "site_rgba", "cam_pos", "cam_quat", "light_pos", "wrap_prm", "jnt_stiffness",
)  # fmt: skip
# After a step these are one physics step old; some suites (Fetch) act on them as they are, and a frame shows them.
_POSES = (
    "xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "subtree_com",
    "cam_xpos", "cam_xmat", "light_xpos", "light_xdir",
)  # fmt: skip
_FREE = ("distance", "lookat", "elevation", "azimuth")  # keys of a free camera


def make(
    id: str,
    *,
    obs: str = "state",
    camera: str | Mapping[str, Any] | None = None,
    image_size: int = 96,
    max_episode_steps: int | None = None,
    action_repeat: int = 1,
    **kwargs: Any,
) -> gymnasium.Env:
    """Make one environment of ours or of a suite, ready for a reward model.

    What comes back has `frame(camera=None, image_size=None)` ((H, W, 3) uint8 RGB, upright, contiguous), tells
    `info["is_success"]` where the environment does, is cut by a time limit, and saves itself with `get_state()`.
    Actions and observations are translated as `embodied.envs.spaces` tells.

    | id | what | `is_success` |
    |---|---|---|
    | `desk-drawer`, `embodied/desk-drawer-v0` | ours | the task's own test |
    | `CartPole-v1`, `MountainCarContinuous-v0` | as in VLM-RM, see `embodied.envs.classic` | never left / arrived |
    | `HalfCheetah-v5`, Gymnasium's other ids | as they are, but no early end when "unhealthy" | not told |
    | `FetchReach-v4` and others of Gymnasium-Robotics | as they are | theirs; Kitchen: every task done |
    | `metaworld/reach-v3` | Meta-World, goal in the observation, new goal each episode | theirs |
    | `dm_control/walker-walk-v0` | dm_control by Shimmy | not told |
    | `libero/libero_object/0` | LIBERO: a suite's task by number or name, see `embodied.envs.libero` | theirs |
    | `mine:Mine-v0` | your own: module `mine` is imported and registers it | its `is_success` or `success` |

    A robot's own readings are `signals()`, name -> number: the environment's method of that name, or what is known of
    Fetch, Meta-World and LIBERO. Where neither tells, no reading is told from the rest of the state.

    A suite's own early end (a fallen pendulum) stays `terminated`, save where Gymnasium lets it be switched off.

    Args:
        id: a name from the table.
        obs: "state" (S,) float32, dictionaries flattened in the order of their keys; "pixels" (H, W, 3) uint8; or
            "mixed", a dict of `pixels` and `agent_pos`, which is the own readings, and all of the state where
            there are none.
        camera: a camera of the model; or the keys of a free one: distance (m), lookat (3 numbers, m), elevation and
            azimuth (degrees). None: the world's or suite's usual one.
        image_size: height and width of `frame()`, pixels.
        max_episode_steps: the time limit, in actions; None: the world's or suite's own, over `action_repeat`.
        action_repeat: how many of the environment's own steps an action lasts; their rewards are summed. Of our own
            worlds the humanoid alone has it.
        **kwargs: for the environment's constructor.

    Raises:
        UserError: no such environment, a suite that is not installed, a space that no learner reads right, no such
            camera, or a wrong number.
    """
    if obs not in OBS_FORMS:
        raise UserError(f"make: obs must be one of {', '.join(OBS_FORMS)}; got {obs!r}.")
    for key, value in {
        "max_episode_steps": 1 if max_episode_steps is None else max_episode_steps,
        "action_repeat": action_repeat,
    }.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"make: {key} must be a whole number, at least 1; got {value!r}.")
    if ":" in id:
        id = _imported(id)
    name = id.removeprefix("embodied/").removesuffix("-v0")
    ours = name in WORLDS and (id.startswith("embodied/") or id not in gymnasium.registry)
    if ours or _is_ours(id):
        known = world_id(name) if ours else id
        own = gymnasium.spec(known).max_episode_steps or DEFAULT_STEPS
        steps = max_episode_steps or math.ceil(own / action_repeat)
        face = {"obs": obs, "camera": camera, "image_size": image_size}
        face |= {"action_repeat": action_repeat} if action_repeat > 1 else {}
        with _named(id):
            return gymnasium.make(known, max_episode_steps=steps, disable_env_checker=True, **face, **kwargs)
    with _named(id):
        found = find(id, kwargs)
    bridged = Bridged(found, name=id, obs=obs, camera=camera, image_size=image_size, action_repeat=action_repeat)
    return gymnasium.wrappers.TimeLimit(bridged, max_episode_steps or math.ceil(found.steps / action_repeat))


@contextmanager
def _named(id: str) -> Iterator[None]:
    """Say in our words which setting an environment does not take."""
    try:
        yield
    except (TypeError, UserError) as error:
        unknown = re.search(r"got an unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        raise UserError(f"make: {id} takes no {unknown[1]}. Leave it out of env and env.kwargs.") from error


class Bridged(gymnasium.Env):
    """See `make`. Not a wrapper: `unwrapped` stays here, with the frames, the random generator and the state.

    Every episode's start is drawn from `np_random`, also where the suite keeps a generator of its own.

    Args:
        found: the environment, made.
        name: its id, for errors.
        obs, camera, image_size, action_repeat: as of `make`.

    Attributes:
        signals: () -> name -> number, the own readings; not there where the world does not tell them.

    Raises:
        UserError: `obs` needs pictures that the environment does not render.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        found: SuiteWorld,
        *,
        name: str,
        obs: str,
        camera: str | Mapping[str, Any] | None,
        image_size: int,
        action_repeat: int = 1,
    ) -> None:
        self._found, self.inner, self.world_id = found, found.env, name
        self._action_repeat = action_repeat
        self.instruction, self.script = found.instruction, found.script
        self.solved = False  # by the suite's word, which may be none, after the last step
        self.flat = np.zeros(0, np.float32)  # the state as `obs="state"` tells it, whatever form was asked for
        self.obs_form, self.image_size, self.render_mode = obs, image_size, "rgb_array"
        self._renderer: FrameRenderer | None = None
        physics = physics_of(self.inner)
        names = () if physics is None else tuple(physics[0].camera(i).name for i in range(physics[0].ncam))
        self.cameras: tuple[str, ...] = (*(n for n in names if n), "free") if physics else ("default",)
        self.camera = self._camera(camera or self._usual_camera())
        self._actions = Actions(self.inner.action_space, self.world_id)
        self.action_space = self._actions.space
        self._readings = FlatObservations(self.inner.observation_space, self.world_id)
        state = self._readings.space
        self._signals: Callable[[], Mapping[str, Any]] | None = None  # the environment's own
        if self.inner.has_wrapper_attr("signals"):
            self._signals = self.inner.get_wrapper_attr("signals")
        self.tells_own = self._signals is not None or len(found.proprio(state.low)) < len(state.low)
        if self.tells_own:
            self.signals = self._told_signals
        pixels = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        if obs != "state" and physics is None and not renders(self.inner):
            raise UserError(f"make: obs={obs} needs pictures, which {self.world_id} does not render.")
        if obs == "state":
            self.observation_space = state
        elif obs == "pixels":
            self.observation_space = pixels
        else:
            low, high = found.proprio(state.low), found.proprio(state.high)
            if self._signals is not None:
                self.inner.reset(seed=0)  # only now are there readings to count
                high = np.full(len(self.signals()), np.inf, np.float32)
                low = -high
            own = spaces.Box(low, high, dtype=np.float32)
            self.observation_space = spaces.Dict({"pixels": pixels, "agent_pos": own})
        fps = self.inner.metadata.get("render_fps") or 20
        self.metadata = {**type(self).metadata, "render_fps": fps / action_repeat}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        start = int(self.np_random.integers(2**31)) if seed is None else seed
        if self._found.seeds is not None:
            self._found.seeds(start)
        obs, info = self.inner.reset(seed=start, options=options)
        return self._obs(obs), self._told(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        played = self._actions(action)
        obs, reward, terminated, truncated, info = self.inner.step(played)
        total = number(reward, f"{self.world_id}: a reward")
        for _ in range(self._action_repeat - 1):
            if terminated or truncated:
                break
            obs, reward, terminated, truncated, info = self.inner.step(played)
            total += number(reward, f"{self.world_id}: a reward")
        return self._obs(obs), total, bool(terminated), bool(truncated), self._told(info)

    def _told(self, info: dict[str, Any]) -> dict[str, Any]:
        """An info whose `is_success` is yes, no, or not there (unknown is not no), and actions as we take them."""
        told = {key: value for key, value in info.items() if key != "is_success"}
        if told.get(INTERVENE_ACTION) is not None:
            told[INTERVENE_ACTION] = self._actions.agents(told[INTERVENE_ACTION])
        success = self._found.success(info)
        self.solved = bool(success)
        return told if success is None else told | {"is_success": success}

    def _obs(self, obs: Any) -> Any:
        self.flat = self._readings(obs)
        if self.obs_form == "pixels":
            return self.frame()
        return self.flat if self.obs_form == "state" else {"pixels": self.frame(), "agent_pos": self.own}

    @property
    def own(self) -> np.ndarray:
        """The robot's own readings, as they are now; all of the state where it does not tell them."""
        if self._signals is not None:
            return np.array(list(self.signals().values()), np.float32)
        return self._found.proprio(self.flat)

    def _told_signals(self) -> dict[str, float]:
        if self._signals is None:
            return {f"state_{k}": float(value) for k, value in enumerate(self.own)}
        told = self._signals()
        if not isinstance(told, Mapping) or not told:
            raise UserError(f"{self.world_id}: signals() must give own readings, name -> number; got {told!r}.")
        return {str(name): number(value, f"{self.world_id}: signals() {name!r}") for name, value in told.items()}

    # Frames ---------------------------------------------------------------------------------------------

    def frame(self, camera: View | None = None, image_size: int | None = None) -> np.ndarray:
        """What the reward model sees now: (H, W, 3) uint8 RGB, contiguous, upright.

        Rendered at that size with the fast settings where MuJoCo runs underneath; else the suite's own picture,
        resized by area, squeezed if it is not square. "free" is the world's own free camera where it has one.

        Raises:
            UserError: the world renders no pictures, or no such camera.
        """
        return self._view(image_size or self.image_size, camera, fast=True)

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._view(PICTURE_SIZE, None, fast=False)

    def _view(self, size: int, camera: View | None, *, fast: bool) -> np.ndarray:
        physics = physics_of(self.inner)
        if physics is None:
            if not renders(self.inner):
                raise UserError(f"{self.world_id} has no pictures to score: it does not render any. {RENDER}")
            return resized(picture(self.inner.render(), self.world_id), size)
        model, data = physics
        if self._renderer is None or self._renderer.model is not model:
            self._renderer = FrameRenderer(model)
        own = camera is None or (camera == "free" and not isinstance(self.camera, str))
        view = self.camera if own else self._camera(camera)
        image = self._renderer.frame(data, view, size, size) if fast else self._renderer.picture(data, view, size)
        if view in self._found.upside_down:
            image = image[::-1, ::-1]
        return np.ascontiguousarray(image[:, ::-1] if self._found.mirrored else image)

    def _camera(self, camera: View) -> Any:
        """A camera's name, or a free camera made of the suite's usual view and the caller's keys."""
        if isinstance(camera, mujoco.MjvCamera):
            return camera
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
        physics = physics_of(self.inner)
        if physics is None:
            raise UserError("make: a free camera needs a MuJoCo environment. Leave `camera` out.")
        view = {key: value for key, value in usual.items() if key in _FREE} | given
        lookat = tuple(float(x) for x in view.pop("lookat", ())) or None
        return free_camera(physics[0], lookat=lookat, **{key: float(value) for key, value in view.items()})

    def _usual_camera(self) -> str:
        if self._found.camera in self.cameras:
            return str(self._found.camera)
        theirs = getattr(getattr(self.inner.unwrapped, "mujoco_renderer", None), "camera_id", None)  # None: not said
        physics = physics_of(self.inner)
        if theirs is not None and theirs >= 0 and physics is not None and physics[0].camera(theirs).name:
            return physics[0].camera(theirs).name
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
        physics, base = physics_of(self.inner), self.inner.unwrapped
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
                if saved is None:
                    continue
                if _is_mujocos(value):  # Meta-World's pads: a copy in its place would stay where it is
                    value[...] = saved
                else:
                    setattr(part, key, saved.copy() if isinstance(value, np.ndarray) else saved.item())
        physics = physics_of(self.inner)
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
        if isinstance(base, LiberoTask):
            return list(base.parts)
        control = getattr(base, "_env", None)  # dm_control behind Shimmy
        return [base] if control is None else [control, control.task]


def _numbers(part: Any) -> list[tuple[str, Any]]:
    kinds = (np.ndarray, np.generic, bool, int, float)
    return [(k, v) for k, v in vars(part).items() if isinstance(v, kinds) and np.asarray(v).dtype != object]


def _is_mujocos(value: Any) -> bool:
    """Whether a value is a view of what MuJoCo's model or data hold, which goes with them."""
    while isinstance(value, np.ndarray):
        value = value.base
    return type(value).__name__ == "PyCapsule"  # what its arrays keep alive


def _imported(id: str) -> str:
    """The plain id of `module:Id-v0`, once its module is imported, as `gymnasium.make` does.

    Raises:
        UserError: the module cannot be imported, or registers no such environment.
    """
    module, _, name = id.rpartition(":")
    before = set(gymnasium.registry)
    try:
        importlib.import_module(module)
    except Exception as error:  # a person's own module may fail in any way
        where = "Install it, or add its folder to PYTHONPATH." if isinstance(error, ModuleNotFoundError) else "Mend it."
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"make: {id!r}: the module {module!r} cannot be imported: {what}. {where}") from error
    if name not in gymnasium.registry:
        registry = gymnasium.registry.items()
        own = [each for each, spec in registry if each not in before or _made_in(module, spec.entry_point)]
        known = nearest(name, own) if own else f'Add gymnasium.register("{name}", entry_point=YOUR_CLASS) to it.'
        raise UserError(f"make: the module {module!r} registers no environment {name!r}. {known}")
    return name


def _made_in(module: str, entry_point: Any) -> bool:
    """Whether an environment's entry point lies in a module or below it."""
    place = entry_point.partition(":")[0] if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
    return place == module or place.startswith(f"{module}.")


def _is_ours(id: str) -> bool:
    """Whether a person's own environment is a `World`, which has our face by itself."""
    spec = gymnasium.registry.get(id)
    made: Any = None if spec is None else spec.entry_point
    if isinstance(made, str) and not made.startswith(_THEIRS):
        with suppress(ImportError, AttributeError):  # told when it is made
            made = load_env_creator(made)
    return isinstance(made, type) and issubclass(made, World)
