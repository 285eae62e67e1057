"""Gymnasium's Humanoid-v5 body in a room of ours, seen as in VLM-RM: fixed-length episodes, judged by posture."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from embodied.envs.looks import look_at, muted, orbit, relight, tint
from embodied.envs.tasks import HUMANOID
from embodied.envs.world import World, graded

CONTROLS = ("torque", "position")
FORCE = 0.4  # control at action 1: Gymnasium's limit
STIFFNESS, DAMPING = 3.0, 0.05  # position: of a joint's greatest torque, per radian off; of the stiffness, in seconds

# VLM-RM's camera (arXiv 2310.12921, section 4.3): a free camera at this distance, elevation and azimuth.
LOOK_AT, DISTANCE, ELEVATION, AZIMUTH, FOVY = (0.0, 0.0, 1.0), 3.5, -10.0, 180.0, 45.0

# Colours by the start of a geom's name; the rest of the body has the shell.
_MATERIALS = {
    "floor": "floor", "head": "head", "butt": "joint", "lwaist": "joint", "right_foot": "joint", "left_foot": "joint",
    "right_hand": "joint", "left_hand": "joint", "right_larm": "joint", "left_larm": "joint", "right_shin": "joint",
    "left_shin": "joint",
}  # fmt: skip

_RAISED = {"shoulder1": -80, "shoulder2": 15, "elbow": -85}  # degrees, right arm; the left one is mirrored
_HANGING = {"shoulder1": 45, "shoulder2": -30, "elbow": -80}
_POSES = {  # how often a sampled state has them
    "standing": 0.24, "kneeling": 0.15, "sitting": 0.15, "lying": 0.13, "upside_down": 0.11, "between": 0.13,
    "one_leg": 0.09,
}  # fmt: skip
LAST = 1.0  # second: the time of an episode of which `judge/held` tells


class Humanoid(World):
    """Seventeen joints (-1 to 1) of Gymnasium's humanoid, which starts upright a hand above the floor.

    Physics, start noise and limits are Humanoid-v5's; actions are scaled to [-1, 1], episodes never end early
    and the reward is the degree of the task's own posture. By `control="position"` an action tells where each joint
    should be, 0 upright and ±1 at the ends of its range, and a spring and damper pull it there with no more than the
    torque that Gymnasium allows: poses are learned in far fewer steps so (Peng and van de Panne, arXiv 1611.01055).

    `state` and `agent_pos` (62): torso height and rotation (6, two columns), joint angles (17), velocities (23), and
    hands, feet and head relative to the torso in its own axes (15); Humanoid-v5 gives 348 numbers, most of them
    inertias and forces that follow from these.
    `info` tells for judging alone `judge/held`: in which share of the last second the posture was the task's.

    Args:
        task: stand, kneel, arms, sit, lie or leg.
        action_repeat: how many of Gymnasium's steps of 0.015 s an action lasts. Two or three make an episode of as many
            seconds fewer steps, so fewer frames and updates; cut it with `max_episode_steps`.
        control: what an action is: torque, as in Humanoid-v5 and VLM-RM, or position.
        **kwargs: those of `World`.

    Raises:
        ValueError: an unknown task or control, or an action that does not last a whole number of steps.
    """

    scene = "humanoid"
    cameras = ("front", "side")
    state_is_own = True
    facts = ("standing", "kneeling", "sitting", "lying", "arms_raised", "upside_down", "one_leg_up")
    ctrl_dt = 0.015
    sim_dt = 0.003

    def __init__(self, *, task: str = "stand", action_repeat: int = 1, control: str = "torque", **kwargs: Any) -> None:
        if task not in HUMANOID:
            raise ValueError(f"Humanoid: task must be one of {', '.join(HUMANOID)}; got {task!r}.")
        if isinstance(action_repeat, bool) or not isinstance(action_repeat, int) or action_repeat < 1:
            raise ValueError(f"Humanoid: action_repeat must be a whole number, at least 1; got {action_repeat!r}.")
        if control not in CONTROLS:
            raise ValueError(f"Humanoid: control must be one of {', '.join(CONTROLS)}; got {control!r}.")
        self.control = control
        self.task, self.instruction = task, HUMANOID[task].instruction
        self._last = round(LAST / (self.ctrl_dt * action_repeat))  # actions
        self._held: list[bool] = []  # whether the posture was right, after each action of the last second
        super().__init__(**kwargs)
        self._steps_per_action *= action_repeat

    def _load(self, path: Path) -> mujoco.MjModel:
        found = importlib.util.find_spec("gymnasium")
        assert found is not None
        assert found.origin is not None
        return restyled(Path(found.origin).parent / "envs/mujoco/assets/humanoid.xml", path)

    def _setup(self) -> None:
        model = self.model
        self._torso = model.body("torso").id
        self._knees = [model.body(f"{side}_shin").id for side in ("right", "left")]
        self._head, self._butt = model.geom("head").id, model.geom("butt").id
        self._hands = [model.geom(f"{side}_hand").id for side in ("right", "left")]
        self._feet = [model.geom(f"{side}_foot").id for side in ("right", "left")]
        self._joint = {model.joint(j).name: int(model.jnt_qposadr[j]) for j in range(1, model.njnt)}
        self._range = {model.joint(j).name: model.jnt_range[j] for j in range(1, model.njnt)}
        round_ = (mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CAPSULE)
        self._round = [g for g in range(model.ngeom) if model.geom_type[g] in round_ and model.geom_contype[g]]
        self._shape = model.geom_size[self._round, 0], model.geom_size[self._round, 1]  # spheres: half-length 0

        if self.control == "position":
            self._add_springs()

    def _add_springs(self) -> None:
        model = self.model
        joints = model.actuator_trnid[:, 0]
        limit = FORCE * model.actuator_gear[:, 0]
        self._low, self._high = model.jnt_range[joints].T
        self._upright = model.qpos0[model.jnt_qposadr[joints]].clip(self._low, self._high)
        model.actuator_gear[:, 0] = 1
        model.actuator_biastype[:] = mujoco.mjtBias.mjBIAS_AFFINE
        model.actuator_gainprm[:, 0] = STIFFNESS * limit
        model.actuator_biasprm[:, 1], model.actuator_biasprm[:, 2] = -STIFFNESS * limit, -DAMPING * STIFFNESS * limit
        model.actuator_forcelimited[:] = True
        model.actuator_forcerange[:] = np.stack([-limit, limit], -1)
        model.actuator_ctrlrange[:] = np.stack([self._low, self._high], -1)

    def _start(self) -> None:
        self.data.qpos[:] += self.np_random.uniform(-0.01, 0.01, self.model.nq)
        self.data.qvel[:] = self.np_random.uniform(-0.01, 0.01, self.model.nv)
        self._held = []

    def _apply(self, action: np.ndarray) -> None:
        action = np.clip(action, -1, 1)
        if self.control == "torque":
            self.data.ctrl[:] = FORCE * action
        else:
            way = np.where(action < 0, self._upright - self._low, self._high - self._upright)
            self.data.ctrl[:] = self._upright + way * action

    def _act(self, action: np.ndarray) -> None:
        super()._act(action)
        self._held = [*self._held, self.success()][-self._last :]

    def _state(self) -> np.ndarray:
        data = self.data
        turn = data.xmat[self._torso].reshape(3, 3)
        limbs = (data.geom_xpos[[*self._hands, *self._feet, self._head]] - data.xpos[self._torso]) @ turn
        parts = [data.qpos[2:3], turn[:, 0], turn[:, 2], data.qpos[7:], data.qvel, limbs.flatten()]
        return np.concatenate(parts).astype(np.float32)

    def _proprio(self) -> np.ndarray:
        return self._state()

    # Truth ----------------------------------------------------------------------------------------------

    def degrees(self) -> dict[str, float]:
        data = self.data
        turn = data.xmat[self._torso].reshape(3, 3)
        height, up = float(data.xpos[self._torso, 2]), float(turn[2, 2])
        head, butt = float(data.geom_xpos[self._head, 2]), float(data.geom_xpos[self._butt, 2])
        hand = float(data.geom_xpos[self._hands, 2].min())
        knees, feet = data.xpos[self._knees], data.geom_xpos[self._feet]
        low, high = sorted(feet[:, 2])
        ahead = float(((knees - data.geom_xpos[self._butt]) @ turn[:, 0]).mean())
        missing = {  # metres, and half the lack of cosine
            "standing": _over(1.1 - height) + _over(0.85 - up) / 2,
            "kneeling": _over(knees[:, 2] - 0.16) + _over(feet[:, 2] - 0.2) + _over(0.75 - up) / 2 + _over(0.3 - butt),
            "sitting": _over(butt - 0.17) + _over(0.7 - up) / 2 + _over(0.2 - ahead),
            "lying": _over(height - 0.35) + _over(head - 0.4) + _over(abs(up) - 0.5) / 2,
            "arms_raised": _over(head + 0.08 - hand) + _over(0.3 - up) / 2,
            "upside_down": _over(up + 0.7) / 2 + _over(head + 0.3 - butt),
            "one_leg_up": _over(1.1 - height) + _over(0.85 - up) / 2 + _over(low - 0.2) + _over(low + 0.2 - high),
        }
        return {fact: graded(lack, 0.0, scale=0.35) for fact, lack in missing.items()}

    def env_reward(self) -> float:
        return self.degrees()[HUMANOID[self.task].fact]

    def success(self) -> bool:
        return self.env_reward() == 1.0

    def _info(self) -> dict[str, Any]:
        info = super()._info()
        return info | {"judge/held": float(np.mean(self._held or [info["is_success"]]))}

    def _task_state(self) -> dict[str, np.ndarray]:
        return {"held": np.array(self._held, bool)}

    def _set_task_state(self, state: dict[str, np.ndarray]) -> None:
        self._held = state["held"].tolist()

    # Postures -------------------------------------------------------------------------------------------

    def sample_state(self, rng: np.random.Generator) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self._pose(str(rng.choice(list(_POSES), p=list(_POSES.values()))), rng)
        self._refresh()

    def _pose(self, posture: str, rng: np.random.Generator) -> None:
        """Set `qpos` to one of the postures, resting on the floor."""
        if posture == "between":  # on the way from one to another
            first, second = rng.choice(("standing", "kneeling", "sitting", "lying"), 2, replace=False)
            self._pose(str(first), rng)
            start, share = self.data.qpos.copy(), rng.uniform(0.15, 0.85)
            self._pose(str(second), rng)
            mixed = start + share * (self.data.qpos - start)
            mixed[3:7] /= np.linalg.norm(mixed[3:7])
            self.data.qpos[:] = mixed
            self._rest()
            return
        angles, pitch, roll = self._angles(posture, rng)
        for name, value in angles.items():
            self.data.qpos[self._joint[name]] = np.clip(math.radians(value), *self._range[name])
        yaw = rng.normal(0, 0.5) if rng.random() < 0.7 else rng.uniform(-math.pi, math.pi)
        self.data.qpos[:2] = rng.normal(0, 0.08, 2)
        turn = [np.empty(4) for _ in range(3)]
        for quat, axis, angle in zip(turn, np.eye(3), (math.radians(roll), math.radians(pitch), yaw), strict=True):
            mujoco.mju_axisAngle2Quat(quat, axis, angle)
        pitched = np.empty(4)
        mujoco.mju_mulQuat(pitched, turn[1], turn[0])
        mujoco.mju_mulQuat(self.data.qpos[3:7], turn[2], pitched)
        self._rest()
        if posture == "lying":  # limbs fall where they fall
            mujoco.mj_step(self.model, self.data, 240)
            self.data.qvel[:], self.data.time = 0, 0.0

    def _angles(self, posture: str, rng: np.random.Generator) -> tuple[dict[str, float], float, float]:
        """Of each joint, and the body's pitch and roll, in degrees."""
        angles = {name: rng.normal(0, 5) for name in self._joint}
        pitch, roll = rng.normal(0, 4), rng.normal(0, 3)
        if posture == "standing":
            angles["right_knee"], angles["left_knee"] = -abs(rng.normal(0, 10, 2)) - 2
        elif posture == "one_leg":  # thigh up before it, or shin up behind it
            side, other = rng.permutation(("right", "left"))
            angles[f"{side}_knee"] = -abs(rng.normal(0, 8)) - 2
            hip = rng.uniform(-110, -70) if rng.random() < 0.7 else rng.uniform(-10, 15)
            angles[f"{other}_hip_y"] = hip
            angles[f"{other}_knee"] = hip + rng.uniform(-30, 30) if hip < -20 else rng.uniform(-130, -75)
        elif posture == "kneeling":
            for side in ("right", "left"):
                angles[f"{side}_hip_y"] = rng.uniform(-45, 0)
                angles[f"{side}_knee"] = pitch + angles[f"{side}_hip_y"] - 90  # shins flat on the floor
        elif posture == "sitting":
            bend = rng.uniform(2, 70)
            pitch -= 4 + 0.25 * bend  # leaning back, as the hips bend no further than 110 degrees
            for side in ("right", "left"):
                angles[f"{side}_knee"] = -bend + rng.normal(0, 3)
                angles[f"{side}_hip_y"] = -93 - 0.5 * bend - pitch + rng.normal(0, 3)  # feet as low as the seat
        elif posture == "lying":
            pitch, roll = rng.choice([-90, 90]) + rng.normal(0, 15), rng.choice([0, 0, 90, -90]) + rng.normal(0, 15)
            angles |= {f"{side}_hip_y": rng.uniform(-70, 10) for side in ("right", "left")}
            angles |= {f"{side}_knee": rng.uniform(-90, -2) for side in ("right", "left")}
        else:
            pitch += 180
            spread = rng.uniform(-20, 20)
            angles["right_hip_y"], angles["left_hip_y"] = spread - 10, -spread - 10
        raised = 0.6 if posture == "upside_down" else 0.0 if posture == "lying" else 0.3
        arms = rng.random()
        kind = _RAISED if arms < raised else _HANGING if arms < raised + 0.35 else dict.fromkeys(_RAISED, 0)
        for joint, value in kind.items():
            noise = 6 if kind is not _RAISED or posture == "upside_down" else 4
            angles[f"right_{joint}"] = value + rng.normal(0, noise)
            angles[f"left_{joint}"] = (value if joint == "elbow" else -value) + rng.normal(0, noise)
        return angles, pitch, roll

    def _rest(self) -> None:
        """Shift the body up or down until its lowest point touches the floor."""
        self.data.qvel[:] = 0
        self.data.qpos[2] = 1.0
        mujoco.mj_kinematics(self.model, self.data)
        radius, half = self._shape
        tilt = np.abs(self.data.geom_xmat[self._round, 8])
        self.data.qpos[2] -= (self.data.geom_xpos[self._round, 2] - half * tilt - radius).min()

    def randomize_look(self, rng: np.random.Generator) -> None:
        self.restore_look()
        model = self.model
        for camera, name in enumerate(model.camera(i).name for i in range(model.ncam)):
            if name in self.cameras:
                base = self._look["cam_pos"][camera]
                orbit(model, camera, base, np.array(LOOK_AT), rng, yaw=0.5, pitch=0.12, zoom=0.12, shift=0.08)
        relight(model, rng)
        floor, plain = model.material("floor").id, model.material("floor_plain").id
        model.mat_rgba[floor] = model.mat_rgba[plain] = muted(rng)
        if rng.random() < 0.4:  # by its material: which texture one has is read when the renderer is made, then never
            model.geom("floor").matid = plain
        for name in ("shell", "joint", "head"):
            material = model.material(name).id
            model.mat_rgba[material] = tint(model.mat_rgba[material], rng) if rng.random() < 0.5 else muted(rng)
        for i in range(3):
            if rng.random() < 0.4:  # things standing behind
                place = rng.uniform(-3, -1.2), rng.uniform(-1.8, 1.8), rng.uniform(0.2, 0.4)
                model.body_pos[model.body(f"distractor_{i}").id] = place
                model.geom_rgba[model.geom(f"distractor_{i}").id] = np.append(rng.uniform(0.1, 0.9, 3), 1)
        self._refresh()


def _over(lack: float | np.ndarray) -> float:
    """The mean of what is above zero."""
    return float(np.mean(np.maximum(lack, 0)))


def restyled(xml: Path, textures: Path) -> mujoco.MjModel:
    """Gymnasium's model with our sky, floor, body, light and cameras; bodies, joints and forces are untouched.

    Args:
        xml: Gymnasium's `humanoid.xml`.
        textures: folder with sky.png, floor.png and shell.png.
    """
    spec = mujoco.MjSpec.from_file(str(xml))
    sky = next(t for t in spec.textures if t.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)
    sky.builtin, sky.file = mujoco.mjtBuiltin.mjBUILTIN_NONE, str(textures / "sky.png")
    sky.gridsize, sky.width, sky.height = [6, 1], 0, 0
    for i, face in enumerate("RLUDFB"):
        sky.gridlayout[i] = face
    for name, kind in (("floor", mujoco.mjtTexture.mjTEXTURE_2D), ("shell", mujoco.mjtTexture.mjTEXTURE_CUBE)):
        spec.add_texture(name=name, type=kind, file=str(textures / f"{name}.png"))
    for name, texture, rgba, shine in (
        ("floor", "floor", (1, 1, 1, 1), 0.1),
        ("floor_plain", "", (1, 1, 1, 1), 0.1),  # some looks' floor
        ("shell", "shell", (0.9, 0.92, 0.95, 1), 0.4),
        ("joint", "", (0.25, 0.29, 0.36, 1), 0.4),
        ("head", "", (0.95, 0.6, 0.15, 1), 0.5),
    ):
        material = spec.add_material(name=name, rgba=rgba, specular=shine, shininess=shine, reflectance=0)
        if texture:
            material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = texture
        if name == "floor":
            material.texrepeat = [14, 14]
    for geom in spec.geoms:
        key = next((k for k in _MATERIALS if geom.name.startswith(k)), None)
        geom.material = _MATERIALS[key] if key else "shell"
        geom.rgba = [0.5, 0.5, 0.5, 1]  # MuJoCo's default: the material's colour counts
    light = spec.lights[0]
    light.pos, light.dir, light.diffuse, light.specular = [3, -2, 5], [-0.5, 0.35, -0.8], [0.55] * 3, [0.2] * 3
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.4] * 3, [0.3] * 3
    for name, azimuth in (("front", AZIMUTH), ("side", 120.0)):
        eye = _eye(azimuth)
        spec.worldbody.add_camera(name=name, pos=eye, quat=look_at(eye, np.array(LOOK_AT)), fovy=FOVY)
    kinds = (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_SPHERE)
    for i, kind in enumerate(kinds):
        body = spec.worldbody.add_body(name=f"distractor_{i}", pos=[0, 0, -3])
        geom = body.add_geom(name=f"distractor_{i}", type=kind, size=[0.25, 0.25, 0.25], contype=0, conaffinity=0)
        geom.rgba = [0.5, 0.4, 0.3, 1]
    return spec.compile()


def _eye(azimuth: float) -> np.ndarray:
    """(3,) where a free camera stands that sees `LOOK_AT` from `DISTANCE`, metres."""
    turn, tilt = math.radians(azimuth), math.radians(ELEVATION)
    forward = np.array([math.cos(tilt) * math.cos(turn), math.cos(tilt) * math.sin(turn), math.sin(tilt)])
    return np.array(LOOK_AT) - DISTANCE * forward
