"""The desk's arm as the simulated robot moves it: by ticks of a servo, with brakes, and what its sensors measure."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from embodied.envs.desk import Desk

TICK_S = 0.01  # of the servo
BRAKE_NM = 60.0  # what a joint's brake holds
BRAKE_SOLREF, BRAKE_SOLIMP = (0.01, 1.0), (0.99, 0.999)  # MuJoCo's friction creeps unless it is as stiff as it can be
STILL, BRAKE_TICKS = 0.1, 6  # rad/s; a joint that is slower is held where it was sent
FINGERS_STILL = 0.005  # m/s


class Arm(Desk):
    """The desk, stepped by the servo's tick; its brakes, friction as in a real arm's, hold the joints, not the tip.

    Args:
        options: as of `embodied.envs.desk.Desk`.
    """

    ctrl_dt = TICK_S
    braked, _braking = False, 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._tip = self.model.site("tip").id
        self._joint_places = [self.joint_address(f"joint{i}") for i in range(1, 8)]
        self._hand = _subtree_geoms(self.model, "hand")
        self.model.dof_solref[self._arm_dof] = BRAKE_SOLREF
        self.model.dof_solimp[self._arm_dof, :2] = BRAKE_SOLIMP

    def brake(self) -> None:
        """Bring every joint to rest and hold it there. Fingers that hold something go on holding it."""
        self.settle()
        if abs(self.data.joint("finger_left").qvel[0]) > FINGERS_STILL:
            self.data.ctrl[7] = self.opening
        self.model.dof_frictionloss[self._arm_dof] = BRAKE_NM
        self.braked, self._braking = True, BRAKE_TICKS

    def go(self) -> None:
        """Follow actions again, from here."""
        if self.braked:
            self.settle()
        self.model.dof_frictionloss[self._arm_dof] = 0.0
        self.braked = False

    def _apply(self, action: np.ndarray) -> None:
        if not self.braked:
            super()._apply(action)
        elif self._braking:  # the servo's spring is drawn to where a moving joint is, lest it work against the brake
            moving = np.abs(self.data.qvel[self._arm_dof]) > STILL
            self.data.ctrl[:7] = np.where(moving, self.data.qpos[self._arm], self.data.ctrl[:7])
            self._braking -= 1

    def speed(self) -> np.ndarray:
        """(3,) m/s of the tip."""
        velocity = np.empty(6)
        kind = mujoco.mjtObj.mjOBJ_SITE
        mujoco.mj_objectVelocity(self.model, self.data, kind, self._tip, velocity, 0)
        return velocity[3:]

    def joints(self) -> np.ndarray:
        """(7,) radians."""
        return self.data.qpos[self._joint_places]

    def force(self) -> float:
        """Newtons: how hard the world pushes on the hand, all contacts together."""
        model, data, total, each = self.model, self.data, np.zeros(3), np.empty(6)
        for i in range(data.ncon):
            contact = data.contact[i]
            ours = [geom in self._hand for geom in contact.geom]
            if ours[0] != ours[1]:
                mujoco.mj_contactForce(model, data, i, each)
                total += (1 if ours[1] else -1) * contact.frame.reshape(3, 3).T @ each[:3]
        return float(np.linalg.norm(total))


def _subtree_geoms(model: mujoco.MjModel, body: str) -> set[int]:
    """The geoms of a body and of all that hang on it."""
    bodies = {model.body(body).id}
    for child in range(model.nbody):
        if model.body_parentid[child] in bodies:
            bodies.add(child)
    return {geom for geom in range(model.ngeom) if model.geom_bodyid[geom] in bodies}
