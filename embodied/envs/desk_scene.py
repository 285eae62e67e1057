"""A 7-joint arm with a gripper at a desk: a drawer, a button, three cubes, a tray and a yellow mark.

What is there and how it moves; the tasks are `embodied.envs.desk`.
"""

from __future__ import annotations

from typing import ClassVar

import mujoco
import numpy as np
from gymnasium import spaces

from embodied.envs.world import World

# Metres. Where the tip may be sent, and how far one action moves it.
BOX_LOW, BOX_HIGH = np.array([-0.17, -0.27, 0.012]), np.array([0.25, 0.27, 0.32])
STEP, LEASH = 0.02, 0.05
TURN, MAX_TILT = 0.1, 1.4  # rad per action; rad from pointing down
OPENING = 0.08
CUBES = ("red", "green", "blue")
HALF = 0.02  # half a cube's edge
RAISED = np.array([0, 0, HALF])
START = np.array([-0.05, 0.0, 0.2])
DRAWER_RANGE, BUTTON_RANGE = 0.15, 0.028
FORCE_LIMIT = 100.0  # newtons, of the gripper on anything
AT_LIMIT = 0.999  # of a joint's torque limit: there it is cut off
DOWN = np.array([0.0, 0.0, 1.0, 0.0])  # quaternion: turned by pi about y
POSTURE = np.array([0.0, 0.26, 0.0, 2.19, 0.0, 0.69, 0.0])


class DeskScene(World):
    """The arm, the desk and its things, without a task.

    Attributes:
        action_dim: 4, the gripper always points down; or 7. See `embodied.envs.desk.Desk`.
        sent: (3,) m, where the tip is sent.
        sent_quat: (4,) how the gripper is sent to be turned.
        passed: (2,) actions of the episode that passed the force and the torque limit.
    """

    scene = "desk/desk.xml"
    cameras = ("front", "side", "wrist")
    ctrl_dt: ClassVar[float] = 0.05
    sim_dt: ClassVar[float] = 0.005
    action_dim: int

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
        self._is_pad = np.zeros(model.ngeom + 1, bool)  # the last is for -1, which is no geom
        self._is_pad[self._pads] = True
        self._sites = {name: model.site(name).id for name in ("tip", "handle", "button", "mark", "tray")}
        self._shades = [model.geom(f"shade_{name}").id for name in (*CUBES, "hand")]
        self._limits = model.jnt_range[[model.joint(f"joint{i}").id for i in range(1, 8)]].T
        arm = [model.joint(f"joint{i}").id for i in range(1, 8)]
        self._torque_limits = AT_LIMIT * model.jnt_actfrcrange[arm, 1]
        self.passed = np.zeros(2, np.int64)
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

    def _passing(self) -> list[bool]:
        """Whether the gripper presses too hard now, and whether a joint's torque is at its limit."""
        contacts = self.data.contact
        touching = self._is_pad[contacts.geom].any(1) & (contacts.efc_address >= 0)
        pressing = self.data.efc_force[contacts.efc_address[touching]]  # elliptic cones: the normal force comes first
        torque = np.abs(self.data.qfrc_actuator[self._arm_dof])
        return [bool((pressing > FORCE_LIMIT).any()), bool((torque >= self._torque_limits).any())]

    # Teleporting ----------------------------------------------------------------------------------------

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
        sent = {"sent": self.sent.copy(), "sent_quat": self.sent_quat.copy()}
        # The arm reads its tip's velocity, which is that of the last physics step: no `_refresh` brings it back.
        return sent | {"passed": self.passed.copy(), "cvel": self.data.cvel.copy()}

    def _set_task_state(self, state: dict[str, np.ndarray]) -> None:
        self.sent, self.sent_quat = state["sent"].copy(), state["sent_quat"].copy()
        self.passed = state["passed"].copy()
        self.data.cvel[:] = state["cvel"]

    # Looks ----------------------------------------------------------------------------------------------

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
