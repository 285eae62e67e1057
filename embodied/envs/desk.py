"""A 7-joint arm with a gripper at a desk: a drawer, a button, three cubes, a tray and a yellow mark."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces

from embodied.envs import desk_random
from embodied.envs.desk_random import CUBES, HALF
from embodied.envs.tasks import DESK
from embodied.envs.world import World

# Metres. Where the tip may be sent, and how far one action moves it.
BOX_LOW, BOX_HIGH = np.array([-0.17, -0.27, 0.012]), np.array([0.25, 0.27, 0.32])
STEP, LEASH = 0.02, 0.05
TURN, MAX_TILT = 0.1, 1.4  # rad per action; rad from pointing down
OPENING = 0.08
RAISED = np.array([0, 0, HALF])
START = np.array([-0.05, 0.0, 0.2])
DRAWER_OPEN, DRAWER_CLOSED, DRAWER_RANGE = 0.09, 0.012, 0.15
PRESSED, BUTTON_RANGE = 0.02, 0.028
FORCE_LIMIT = 100.0  # newtons, of the gripper on anything
AT_LIMIT = 0.999  # of a joint's torque limit: there it is cut off
MARK_RADIUS, TRAY_HALF = 0.04, 0.062
DOWN = np.array([0.0, 0.0, 1.0, 0.0])  # quaternion: turned by pi about y
POSTURE = np.array([0.0, 0.26, 0.0, 2.19, 0.0, 0.69, 0.0])


def near(distance: float | np.floating, scale: float) -> float:
    """1 at distance 0 m, falling with `scale` m."""
    return float(np.exp(-distance / scale))


class Desk(World):
    """One of eight tasks at the desk; the true reward is the degree, in [0, 1], of the task's own fact.

    Actions are in [-1, 1]: the tip's move (2 cm a step along the world's x, y, z), with `action_dim=7` also its
    turn (a rotation vector in the world's axes, 0.1 rad a step), and last the gripper's opening (-1 shut, 1 open).
    The sent pose stays in a box over the desk and within 5 cm of the real one. Damped least squares turns it
    into joint targets. `info` counts the actions of the episode in which the gripper pressed with more than 100 N on
    anything (`force_limit_passed`), and in which a joint of the arm was at its torque limit (`torque_limit_passed`):
    for judging only, like success.

    Args:
        task: reach, push (onto the mark), press, drawer (open it), close, lift, place (in the tray) or stack.
        target: the cube to reach, push, lift or place (default red); for stack, the cube that the red one goes
            on (default green).
        action_dim: 4, the gripper always points down; or 7.
        obs: see `World`.
        camera: see `World`.
        image_size: see `World`.
        looks: see `World`.
        render_mode: see `World`.

    Raises:
        ValueError: an unknown task, a target that it has not, or an action that has neither 4 nor 7 numbers.
    """

    scene = "desk/desk.xml"
    cameras = ("front", "side", "wrist")
    facts = (
        "drawer_open", "drawer_closed", "button_pressed", "touch_red", "touch_green", "touch_blue", "red_on_mark",
        "red_lifted", "green_lifted", "blue_lifted", "red_in_tray", "green_in_tray", "blue_in_tray", "red_on_green",
        "red_on_blue", "gripper_closed", "gripper_open", "at_handle", "at_button", "arm_raised",
    )  # fmt: skip
    ctrl_dt: ClassVar[float] = 0.05
    sim_dt: ClassVar[float] = 0.005

    def __init__(
        self,
        *,
        task: str = "drawer",
        target: str | None = None,
        action_dim: int = 4,
        obs: str = "state",
        camera: str | None = None,
        image_size: int = 96,
        looks: int | Sequence[int] = 0,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if task not in DESK:
            close = difflib.get_close_matches(task, DESK, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"Desk: task must be one of {', '.join(DESK)}; got {task!r}.{hint}")
        targets = {"push": ("red",), "stack": ("green", "blue")}.get(task, CUBES)
        target = target or targets[0]
        if target not in targets:
            raise ValueError(f"Desk: target of task {task!r} must be one of {', '.join(targets)}; got {target!r}.")
        if action_dim not in (4, 7):
            raise ValueError(f"Desk: action_dim must be 4 or 7; got {action_dim}.")
        self.task, self.target, self.action_dim = task, target, action_dim
        self.instruction, self.fact = DESK[task].told(target)
        super().__init__(obs=obs, camera=camera, image_size=image_size, looks=looks, render_mode=render_mode)

    def _action_space(self) -> spaces.Space:
        return spaces.Box(-1.0, 1.0, (self.action_dim,), np.float32)

    def _setup(self) -> None:
        model = self.model
        self._arm = np.array([model.joint(f"joint{i}").qposadr[0] for i in range(1, 8)])
        self._arm_dof = np.array([model.joint(f"joint{i}").dofadr[0] for i in range(1, 8)])
        self._fingers = [model.joint(name).qposadr[0] for name in ("finger_left", "finger_right")]
        self._drawer, self._button = (model.joint(name).qposadr[0] for name in ("drawer", "button"))
        self._drawer_dof = model.joint("drawer").dofadr[0]
        self._cube_qpos = {cube: model.joint(cube).qposadr[0] for cube in CUBES}
        self._cube_dof = {cube: model.joint(cube).dofadr[0] for cube in CUBES}
        self._cube_geom = {cube: model.geom(cube).id for cube in CUBES}
        self._pads = [model.geom(name).id for name in ("pad_left", "pad_right")]
        self._sites = {name: model.site(name).id for name in ("tip", "handle", "button", "mark", "tray")}
        self._shades = [model.geom(f"shade_{name}").id for name in (*CUBES, "hand")]
        self._limits = model.jnt_range[[model.joint(f"joint{i}").id for i in range(1, 8)]].T
        arm = [model.joint(f"joint{i}").id for i in range(1, 8)]
        self._torque_limits = AT_LIMIT * model.jnt_actfrcrange[arm, 1]
        self.passed = np.zeros(2, np.int64)  # actions of the episode that passed the force and the torque limit
        self._ik = mujoco.MjData(model)  # scratch: poses of joint targets
        self.sent = START.copy()  # where the tip is sent, metres
        self.sent_quat = DOWN.copy()

    # Where things are -----------------------------------------------------------------------------------

    def site(self, name: str) -> np.ndarray:
        """(3,) m: tip (of the gripper), handle (behind it, where a finger goes), button (its top), mark or tray."""
        return self.data.site_xpos[self._sites[name]]

    def cube(self, cube: str) -> np.ndarray:
        """(3,) m: a cube's centre."""
        return self.data.geom_xpos[self._cube_geom[cube]]

    @property
    def opening(self) -> float:
        """Between the fingers, m: 0 to about 0.08."""
        return float(self.data.qpos[self._fingers].sum())

    @property
    def drawer(self) -> float:
        """How far the drawer is out, m: 0 to 0.15."""
        return float(self.data.qpos[self._drawer])

    @property
    def pressed(self) -> float:
        """How far the button is down, m: 0 to 0.028."""
        return float(self.data.qpos[self._button])

    def gaps(self, cube: str) -> list[float]:
        """From each finger to a cube, m; negative where soft contacts overlap."""
        geom = self._cube_geom[cube]
        return [mujoco.mj_geomDistance(self.model, self.data, pad, geom, 1.0, None) for pad in self._pads]

    def held(self, cube: str) -> bool:
        """Whether both fingers are on a cube."""
        return max(self.gaps(cube)) < 0.003

    # Judging --------------------------------------------------------------------------------------------

    def degree(self, fact: str) -> float:
        """One entry of `degrees`: how far a fact holds, in [0, 1]; 1 is solved. ValueError for no fact of the desk."""
        tip = self.site("tip")
        match fact.split("_"):
            case ["drawer", "open"]:
                opened = self.drawer / DRAWER_OPEN
                return 1.0 if opened >= 1 else 0.25 * near(self._distance("handle"), 0.15) + 0.6 * max(opened, 0)
            case ["drawer", "closed"]:
                left = (self.drawer - DRAWER_CLOSED) / (DRAWER_RANGE - DRAWER_CLOSED)
                return 1.0 if left <= 0 else 0.25 * near(self._distance("handle"), 0.15) + 0.6 * max(1 - left, 0)
            case ["button", "pressed"]:
                down = self.pressed / PRESSED
                return 1.0 if down >= 1 else 0.45 * near(self._distance("button"), 0.12) + 0.4 * max(down, 0)
            case ["touch", cube]:
                gap = min(self.gaps(cube))
                return 1.0 if gap <= 0.004 else 0.85 * near(gap, 0.12)
            case [cube, "lifted"]:
                height = (self.cube(cube)[2] - HALF) / 0.05
                grasp = near(np.linalg.norm(tip - self.cube(cube)), 0.12)
                grip = near(np.linalg.norm(tip - self.cube(cube)), 0.03) * near(abs(self.opening - 2 * HALF), 0.02)
                return 1.0 if height >= 1 else 0.3 * grasp + 0.1 * grip + 0.45 * max(height, 0)
            case [cube, "on", "mark"]:
                away = self.cube(cube) - self.site("mark") - RAISED
                if np.hypot(away[0], away[1]) <= MARK_RADIUS and away[2] < 0.012:
                    return 1.0
                grasp = near(np.linalg.norm(tip - self.cube(cube)), 0.12)
                return 0.25 * grasp + 0.6 * near(np.linalg.norm(away), 0.12)
            case [cube, "in", "tray"]:
                away = self.cube(cube) - self.site("tray") - RAISED
                if max(abs(away[0]), abs(away[1])) <= TRAY_HALF and away[2] < 0.012:
                    return 1.0
                lift = min(max((self.cube(cube)[2] - HALF) / 0.05, 0), 1)
                grasp = near(np.linalg.norm(tip - self.cube(cube)), 0.12)
                return 0.2 * grasp + 0.15 * lift + 0.5 * near(np.linalg.norm(away), 0.12)
            case ["red", "on", below]:
                away = self.cube("red") - self.cube(below) - 2 * RAISED
                on_top = np.hypot(away[0], away[1]) <= 0.026 and abs(away[2]) < 0.008
                if on_top and not self.held("red"):
                    return 1.0
                lift = min(max((self.cube("red")[2] - HALF) / 0.05, 0), 1)
                grasp = near(np.linalg.norm(tip - self.cube("red")), 0.12)
                return 0.2 * grasp + 0.15 * lift + 0.5 * near(np.linalg.norm(away), 0.12)
            case ["gripper", "closed"]:
                return 1.0 if self.opening <= 0.012 else 0.85 * np.clip(1.15 - self.opening / OPENING, 0, 1)
            case ["gripper", "open"]:
                return 1.0 if self.opening >= 0.06 else 0.85 * max(self.opening / 0.06, 0)
            case ["at", place]:
                away = self._distance(place)
                return 1.0 if away <= 0.045 else 0.85 * near(away - 0.045, 0.12)
            case ["arm", "raised"]:
                return 1.0 if tip[2] >= 0.22 else 0.85 * max(float(tip[2]) / 0.22, 0)
        raise ValueError(f"Desk.degree: fact must be one of {', '.join(self.facts)}; got {fact!r}.")

    def _distance(self, place: str) -> float:
        return float(np.linalg.norm(self.site("tip") - self.site(place)))

    def degrees(self) -> dict[str, float]:
        return {fact: float(self.degree(fact)) for fact in self.facts}

    def env_reward(self) -> float:
        return float(self.degree(self.fact))

    def success(self) -> bool:
        return self.env_reward() == 1.0

    def _info(self) -> dict[str, Any]:
        force, torque = self.passed.tolist()
        return super()._info() | {"force_limit_passed": force, "torque_limit_passed": torque}

    def _passing(self) -> list[bool]:
        """Whether the gripper presses too hard now, and whether a joint's torque is at its limit."""
        contacts = self.data.contact
        touching = np.isin(contacts.geom, self._pads).any(1) & (contacts.efc_address >= 0)
        pressing = self.data.efc_force[
            contacts.efc_address[touching]
        ]  # of elliptic cones: the normal force comes first
        torque = np.abs(self.data.qfrc_actuator[self._arm_dof])
        return [bool((pressing > FORCE_LIMIT).any()), bool((torque >= self._torque_limits).any())]

    # Observing ------------------------------------------------------------------------------------------

    def signals(self) -> dict[str, float]:
        """The robot's own readings, which a real arm has from its joints: where the tip is (metres, in the world's
        axes) and how wide the gripper stands (0 shut to 1 open)."""
        x, y, z = self.site("tip").tolist()
        return {
            "gripper_x": x,
            "gripper_y": y,
            "gripper_z": z,
            "gripper_opening": min(max(self.opening / OPENING, 0), 1),
        }

    def _proprio(self) -> np.ndarray:
        velocity = np.empty(6)
        kind = mujoco.mjtObj.mjOBJ_SITE
        mujoco.mj_objectVelocity(self.model, self.data, kind, self._sites["tip"], velocity, 0)
        turned = np.empty(3)
        mujoco.mju_subQuat(turned, self.sent_quat, DOWN)
        tip = self.site("tip")
        parts = [(tip - START) / 0.2, velocity[3:] / 0.4, (self.sent - tip) / LEASH, turned]
        widths = [2 * self.opening / OPENING - 1, 2 * self.data.ctrl[7] / OPENING - 1]
        return np.concatenate([*parts, widths]).astype(np.float32)

    def _state(self) -> np.ndarray:
        tip, target = self.site("tip"), "red" if self.task == "stack" else self.target
        dof = self._cube_dof[target]
        parts = [(self.cube(target) - tip) / 0.2, self._goal(target) / 0.2, self.data.qvel[dof : dof + 3] / 0.4]
        parts += [self.data.geom_xmat[self._cube_geom[target]][[0, 3, 6]]]  # its x axis
        parts += [(self.cube(cube) - tip) / 0.2 for cube in CUBES]
        parts += [(self.site(place) - tip) / 0.2 for place in ("handle", "button", "tray", "mark")]
        drawer = [2 * self.drawer / DRAWER_RANGE - 1, self.data.qvel[self._drawer_dof] / 0.4]
        parts += [drawer, [2 * self.pressed / BUTTON_RANGE - 1]]
        return np.concatenate([self._proprio(), *parts]).astype(np.float32)

    def _goal(self, cube: str) -> np.ndarray:
        """(3,) m: from a cube to where the task wants it; zero where the task moves none."""
        at = self.cube(cube)
        match self.task:
            case "push":
                return self.site("mark") + RAISED - at
            case "lift":
                return np.array([0, 0, 0.08 + HALF - at[2]])
            case "place":
                return self.site("tray") + RAISED - at
            case "stack":
                return self.cube(self.target) + 2 * RAISED - at
        return np.zeros(3)

    # Moving ---------------------------------------------------------------------------------------------

    def _act(self, action: np.ndarray) -> None:
        self._apply(action)
        passed = np.zeros(2, bool)
        for _ in range(self._steps_per_action):
            mujoco.mj_step(self.model, self.data)
            passed |= self._passing()
        self.passed += passed
        self._refresh()

    def _apply(self, action: np.ndarray) -> None:
        action = np.clip(np.asarray(action, np.float64), -1, 1)
        tip = self.site("tip")
        sent = np.clip(self.sent + STEP * action[:3], BOX_LOW, BOX_HIGH) - tip
        self.sent = tip + sent * min(1.0, LEASH / max(float(np.linalg.norm(sent)), 1e-9))
        if self.action_dim == 7:
            self._turn(TURN * action[3:6])
        joints = self.data.ctrl[:7].copy()
        for _ in range(2):
            joints = self._toward(joints, self.sent)
        self.data.ctrl[:7] = joints
        self.data.ctrl[7] = OPENING * (action[-1] + 1) / 2

    def _turn(self, rotation: np.ndarray) -> None:
        """Turn the sent pose by a rotation vector, unless that tilts it too far."""
        turn, quat, tilt = np.empty(4), np.empty(4), np.empty(3)
        angle = float(np.linalg.norm(rotation))
        mujoco.mju_axisAngle2Quat(turn, rotation / max(angle, 1e-9), angle)
        mujoco.mju_mulQuat(quat, turn, self.sent_quat)
        mujoco.mju_subQuat(tilt, quat, DOWN)
        if np.linalg.norm(tilt) <= MAX_TILT:
            mujoco.mju_normalize4(quat)
            self.sent_quat = quat

    def _toward(self, joints: np.ndarray, tip: np.ndarray) -> np.ndarray:
        """(7,) rad: joint targets one damped least-squares step nearer to a tip position and the sent turn."""
        model, data = self.model, self._ik
        data.qpos[self._arm] = joints
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        jacobian, error, quat, turn = np.empty((6, model.nv)), np.empty(6), np.empty(4), np.empty(3)
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], self._sites["tip"])
        mujoco.mju_mat2Quat(quat, data.site_xmat[self._sites["tip"]])
        error[:3] = tip - data.site_xpos[self._sites["tip"]]
        mujoco.mju_subQuat(turn, self.sent_quat, quat)  # in the tip's own axes
        mujoco.mju_rotVecQuat(error[3:], turn, quat)
        jacobian = jacobian[:, self._arm_dof]
        square = jacobian @ jacobian.T + 1e-4 * np.eye(6)
        rest = 0.1 * (POSTURE - joints)
        step = rest + jacobian.T @ np.linalg.solve(square, error - jacobian @ rest)
        return np.clip(joints + np.clip(step, -0.5, 0.5), *self._limits)

    def put_arm(self, tip: np.ndarray, opening: float) -> None:
        """Teleport the arm, gripper down and `opening` m wide, and send it there."""
        self.sent, self.sent_quat = np.clip(tip, BOX_LOW, BOX_HIGH), DOWN.copy()
        joints = POSTURE.copy()
        joints[0] = joints[6] = np.arctan2(self.sent[1], self.sent[0] + 0.36)
        for _ in range(12):
            joints = self._toward(joints, self.sent)
        self.data.qpos[self._arm] = self.data.ctrl[:7] = joints
        self.data.qpos[self._fingers] = opening / 2
        self.data.ctrl[7] = opening

    def put_cube(self, cube: str, at: np.ndarray, yaw: float = 0.0) -> None:
        """Place a cube by its centre, (3,) m, turned by `yaw` radians about the vertical; kinematics follow later."""
        address = self._cube_qpos[cube]
        self.data.qpos[address : address + 3] = at
        self.data.qpos[address + 3 : address + 7] = [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]

    def cube_at(self, cube: str) -> np.ndarray:
        """(3,) m: a cube's centre as `put_cube` left it, before kinematics."""
        address = self._cube_qpos[cube]
        return self.data.qpos[address : address + 3].copy()

    def joint_address(self, name: str) -> int:
        """Where a joint's position is in `qpos`."""
        return int(self.model.joint(name).qposadr[0])

    def press_on(self, depth: float) -> None:
        """Send the tip `depth` m below where it was put."""
        self.sent = self.sent - [0, 0, depth]
        self.data.ctrl[:7] = self._toward(self.data.ctrl[:7], self.sent)

    @property
    def robot_qpos(self) -> np.ndarray:
        """(9,) where the arm's joints and the fingers are in `qpos`."""
        return np.array([*self._arm, *self._fingers])

    def put_qpos(self, qpos: np.ndarray) -> None:
        """Teleport everything, (Q,); the fingers are sent to where they are."""
        self.data.qpos[:], self.data.qvel[:] = qpos, 0
        self.data.ctrl[:7], self.data.ctrl[7] = qpos[self._arm], qpos[self._fingers].sum()

    def settle(self) -> None:
        """After a teleport and some physics: poses up to date, the arm sent to where it is."""
        self._refresh()
        self.sent = self.site("tip").copy()

    def _task_state(self) -> dict[str, np.ndarray]:
        return {"sent": self.sent.copy(), "sent_quat": self.sent_quat.copy(), "passed": self.passed.copy()}

    def _set_task_state(self, state: dict[str, np.ndarray]) -> None:
        self.sent, self.sent_quat = state["sent"].copy(), state["sent_quat"].copy()
        self.passed = state.get("passed", np.zeros(2, np.int64)).copy()  # states of earlier versions lack it

    # States and looks -----------------------------------------------------------------------------------

    def _start(self) -> None:
        self.passed = np.zeros(2, np.int64)
        desk_random.start(self, self.np_random)

    def sample_state(self, rng: np.random.Generator) -> None:
        desk_random.sample_state(self, rng)

    def randomize_look(self, rng: np.random.Generator) -> None:
        self.restore_look()
        desk_random.randomize_look(self.model, rng)
        self._refresh()

    def restore_look(self) -> None:
        super().restore_look()
        self._refresh()

    def frame(self, camera: str | None = None, image_size: int | None = None) -> np.ndarray:
        for shade, at in zip(self._shades, [*(self.cube(cube) for cube in CUBES), self.site("tip")], strict=True):
            on_tray = np.abs(at[:2] - self.site("tray")[:2]).max() < 0.09
            self.data.geom_xpos[shade] = [at[0], at[1], 0.007 if on_tray else 0.0012]
        frame = super().frame(camera, image_size)
        self.data.geom_xpos[self._shades, 2] = -3.0  # pictures have real shadows
        return frame
