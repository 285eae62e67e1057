"""A MuJoCo scene with one task: the base of every world in `sim_assets/`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from embodied.envs.captions import Captions
from embodied.envs.rendering import FrameRenderer
from embodied.paths import asset

OBS_FORMS = ("state", "pixels", "mixed")
LOOKS = 860_401  # of the generators of numbered looks, so that they are not those of anything else


class World(gymnasium.Env, ABC):
    """One scene, one task, fixed-length episodes.

    An episode never ends on success or failure: an early end would tell the learner what the reward should
    (the time limit is the registered `max_episode_steps`). `step` returns the task's own reward, which the
    reward wrappers replace, and `info["is_success"]`, which only judges read.

    A subclass gives `scene`, `cameras`, `facts`, `instruction`, `ctrl_dt`, `sim_dt` and the abstract methods below; one
    whose robot has readings that a reward may use also a `signals()`, name -> number, and where they suit VLM-RL's
    hierarchical synthesis, a `synthesis`. What a world counts for judging alone is in `info` as `judge/NAME`.

    Args:
        obs: "state" (S,) float32; "pixels" (H, W, 3) uint8; or "mixed", a dict of `pixels` and `agent_pos`.
        camera: the camera of `frame()` and of pixel observations, one of `cameras`.
        image_size: height and width of `frame()`, pixels.
        looks: what each episode looks like: so many looks, of which one is drawn, or their numbers; `info["look"]` is
            then where the episode's look stands among them. 0: always the world's own. A number is one look for ever.
        render_mode: only "rgb_array" (`render()`: a 480 px picture for people, with shadows).

    Raises:
        ValueError: an unknown camera, form of observation or render mode, or looks that are no numbers of looks.
    """

    scene: ClassVar[str]  # file below sim_assets/
    cameras: ClassVar[tuple[str, ...]]
    facts: ClassVar[tuple[str, ...]]  # what `degrees` tells
    instruction: str  # the task in words, for policies and for rewards that want one
    synthesis: ClassVar[Mapping[str, Any]] = {}  # arguments of `rewards.combine.Synthesis`, by the names of `signals`
    state_is_own: ClassVar[bool] = False  # whether obs=state holds only what the robot measures, and is no privilege
    ctrl_dt: ClassVar[float] = 0.05  # seconds per action
    sim_dt: ClassVar[float] = 0.005  # seconds per physics step

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        *,
        obs: str = "state",
        camera: str | None = None,
        image_size: int = 96,
        looks: int | Sequence[int] = 0,
        render_mode: str | None = "rgb_array",
    ) -> None:
        name = type(self).__name__
        if obs not in OBS_FORMS:
            raise ValueError(f"{name}: obs must be one of {', '.join(OBS_FORMS)}; got {obs!r}.")
        camera = camera or self.cameras[0]
        if camera not in self.cameras:
            raise ValueError(f"{name}: camera must be one of {', '.join(self.cameras)}; got {camera!r}.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"{name}: render_mode must be 'rgb_array' or None; got {render_mode!r}.")
        self.obs_form, self.camera, self.image_size, self.render_mode = obs, camera, image_size, render_mode
        self._looks, self._shown = _numbers(looks, name), 0
        self.alter: Callable[[mujoco.MjModel], None] | None = None  # what is done to every look that an episode draws
        self.model: mujoco.MjModel = self._load(asset(self.scene))
        self.model.opt.timestep = self.sim_dt
        self.data = mujoco.MjData(self.model)
        self._renderer: FrameRenderer | None = None
        self._steps_per_action = round(self.ctrl_dt / self.sim_dt)
        names = [self.model.geom(index).name for index in range(self.model.ngeom)]
        self._behind = np.array([*(name.startswith(_BACKDROP) for name in names), True])  # the last: no geom
        self._look = {key: getattr(self.model, key).copy() for key in _LOOK_FIELDS}
        self.action_space = self._action_space()
        pixels = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self._setup()
        mujoco.mj_forward(self.model, self.data)
        if obs == "pixels":
            self.observation_space = pixels
        elif obs == "mixed":
            low = np.full(self._proprio().shape, -np.inf, np.float32)
            self.observation_space = spaces.Dict({"pixels": pixels, "agent_pos": spaces.Box(low, -low)})
        else:
            low = np.full(self._state().shape, -np.inf, np.float32)
            self.observation_space = spaces.Box(low, -low)

    # What a subclass gives ------------------------------------------------------------------------------

    def _load(self, path: Path) -> mujoco.MjModel:
        return mujoco.MjModel.from_xml_path(str(path))

    def _action_space(self) -> spaces.Space:
        return spaces.Box(-1.0, 1.0, (self.model.nu,), np.float32)

    def _setup(self) -> None:
        """Look up ids once, after loading."""

    @abstractmethod
    def _start(self) -> None:
        """Put `data` into a start state drawn from `self.np_random`."""

    def _apply(self, action: np.ndarray) -> None:
        """Write controls for one action in the action space; called before every physics step."""
        self.data.ctrl[:] = action

    @abstractmethod
    def _state(self) -> np.ndarray:
        """(S,) float32: everything the task needs, poses included."""

    @abstractmethod
    def _proprio(self) -> np.ndarray:
        """(P,) float32: the robot's own readings."""

    @abstractmethod
    def degrees(self) -> dict[str, float]:
        """How far each of `facts` holds now, in [0, 1]: exactly 1 when it holds, below 0.9 when it does not,
        rising as the state comes closer to making it true. Privileged: trains encoders, judges, never learns."""

    @abstractmethod
    def env_reward(self) -> float:
        """The task's own reward in this state."""

    @abstractmethod
    def success(self) -> bool:
        """Whether the task is solved in this state."""

    @abstractmethod
    def sample_state(self, rng: np.random.Generator) -> None:
        """Put `data` into any plausible state, solved ones included: pretraining data, not episode starts."""

    @property
    def action_s(self) -> float:
        """How long an action lasts, seconds: `ctrl_dt`, but where a world holds it for longer."""
        return self._steps_per_action * self.sim_dt

    # Gymnasium ------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        if self._looks:
            self._show(int(self.np_random.integers(len(self._looks))))
        self._start()
        mujoco.mj_forward(self.model, self.data)
        return self._obs(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._act(np.asarray(action))
        return self._obs(), self.env_reward(), False, False, self._info()

    def _info(self) -> dict[str, Any]:
        return {"is_success": self.success()} | ({"look": self._shown} if self._looks else {})

    def _act(self, action: np.ndarray) -> None:
        """Advance physics by one action."""
        self._apply(action)
        mujoco.mj_step(self.model, self.data, self._steps_per_action)
        self._refresh()

    def _refresh(self) -> None:
        """Bring poses up to the current `qpos`: after `mj_step` they are one physics step old."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _obs(self) -> Any:
        if self.obs_form == "state":
            return self._state()
        if self.obs_form == "pixels":
            return self.frame()
        return {"pixels": self.frame(), "agent_pos": self._proprio()}

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.render_mode is None:
            return None
        return self._frames().picture(self.data, self.camera)

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    # Frames ---------------------------------------------------------------------------------------------

    def _frames(self) -> FrameRenderer:
        if self._renderer is None:
            self._renderer = FrameRenderer(self.model)
        return self._renderer

    def frame(self, camera: str | None = None, image_size: int | None = None) -> np.ndarray:
        """What the reward model sees now: (H, W, 3) uint8 RGB, contiguous, rendered with the fast settings."""
        size = image_size or self.image_size
        return self._frames().frame(self.data, camera or self.camera, size, size)

    def calibration(self, camera: str | None = None, image_size: int | None = None) -> dict[str, Any]:
        """Where a camera stands and how it projects, as one would measure it; of one on the robot, as it is now.

        Args:
            camera: one of `cameras`; None: the world's own.
            image_size: of the frames it is for, pixels; None: the world's own.

        Returns:
            `intrinsics` (3 x 3): metres in the camera's axes -> pixels, the middle of the first pixel being (0, 0).
            `extrinsics` (4 x 4): world -> camera, metres, OpenCV's axes: x right, y down, z forward.
            `size` [H, W], pixels. All lists, as in a config.
        """
        size = image_size or self.image_size
        index = self.model.camera(camera or self.camera).id
        focal = size / 2 / math.tan(math.radians(self.model.cam_fovy[index]) / 2)
        middle = (size - 1) / 2
        turn = self.data.cam_xmat[index].reshape(3, 3) * [1, -1, -1]  # MuJoCo: y up, looking along -z
        extrinsics = np.eye(4)
        extrinsics[:3, :3] = turn.T
        extrinsics[:3, 3] = -turn.T @ self.data.cam_xpos[index]
        intrinsics = [[focal, 0.0, middle], [0.0, focal, middle], [0.0, 0.0, 1.0]]
        return {"intrinsics": intrinsics, "extrinsics": extrinsics.tolist(), "size": [size, size]}

    def moves(self, camera: str) -> bool:
        """Whether a camera hangs on the robot, so that its calibration holds for one moment only."""
        return bool(self.model.camera(camera).bodyid[0])

    def depth(self, camera: str | None = None, image_size: int | None = None) -> np.ndarray:
        """(H, W) float32: metres along the optical axis to what each pixel of `frame` shows."""
        size = image_size or self.image_size
        return self._frames().depth(self.data, camera or self.camera, size, size)

    def backdrop(self, camera: str | None = None, image_size: int | None = None) -> np.ndarray:
        """(H, W) bool: which pixels of `frame` show floor, walls or sky."""
        size = image_size or self.image_size
        return self._behind[self._frames().geoms(self.data, camera or self.camera, size, size)]

    @abstractmethod
    def randomize_look(self, rng: np.random.Generator) -> None:
        """Draw light, camera pose, surface colours and distractors; call `restore_look` to undo."""

    def _show(self, look: int) -> None:
        """One of the looks that episodes vary over."""
        self._shown = look
        self.randomize_look(np.random.default_rng([LOOKS, self._looks[look]]))
        if self.alter is not None:
            self.alter(self.model)
            self._refresh()

    def restore_look(self) -> None:
        for key, value in self._look.items():
            getattr(self.model, key)[:] = value

    def describe(self, rng: np.random.Generator) -> list[str]:
        """This state in words, privileged like `degrees`: a sentence for the scene and for every fact that holds."""
        captions = Captions.load(asset(Path(self.scene).parts[0]) / "captions.yaml")
        return captions.describe(self.degrees(), rng)

    # Resume ---------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything `set_state` needs to go on exactly from here, without the random generator."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, state, kind)
        look = {"look": np.array([self._shown])} if self._looks else {}
        return {"mujoco": state} | look | self._task_state()

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        if self._looks:
            self._show(int(state["look"][0]))
        mujoco.mj_setState(self.model, self.data, state["mujoco"], mujoco.mjtState.mjSTATE_INTEGRATION)
        self._set_task_state(state)
        self._refresh()

    def _task_state(self) -> dict[str, np.ndarray]:
        """Python-side values of the episode (targets, filters) by name."""
        return {}

    def _set_task_state(self, state: dict[str, np.ndarray]) -> None:
        """Undo of `_task_state`."""


# What `randomize_look` may change; restored from the loaded model.
_LOOK_FIELDS = (
    "cam_pos", "cam_quat", "cam_fovy", "light_pos", "light_dir", "light_diffuse", "light_ambient",
    "light_specular", "geom_rgba", "geom_matid", "mat_rgba", "mat_reflectance", "site_rgba", "body_pos", "body_quat",
)  # fmt: skip


def _numbers(looks: int | Sequence[int], who: str) -> tuple[int, ...]:
    """The numbers of the looks that episodes vary over."""
    numbers = tuple(range(looks) if isinstance(looks, int) else looks)
    if isinstance(looks, bool) or (isinstance(looks, int) and looks < 0):
        raise ValueError(f"{who}: looks must be a number of looks, or a list of their numbers; got {looks!r}.")
    if len(set(numbers)) < len(numbers) or any(number < 0 for number in numbers):
        raise ValueError(f"{who}: looks must be different numbers from 0; got {list(numbers)}.")
    return numbers


_BACKDROP = ("floor", "wall")  # how the names of such geoms begin


def graded(distance: float, reach: float, scale: float) -> float:
    """How far a fact holds that is true within `reach` of some ideal: 1 there, else under 0.9, falling with distance.

    Args:
        distance: from the ideal, >= 0, in the unit of the other two.
        reach: the fact holds when `distance <= reach`.
        scale: how much farther away makes the degree fall to 1/e.
    """
    return 1.0 if distance <= reach else 0.88 * math.exp(-(distance - reach) / scale)


def control_rate(env: gymnasium.Env) -> float:
    """Actions a second of a world: ours, or what another tells of its films; 20 where it tells nothing.

    Args:
        env: ours or another, wrapped or not.
    """
    world = env.unwrapped
    return round(1 / world.action_s if isinstance(world, World) else float(world.metadata.get("render_fps") or 20), 6)
