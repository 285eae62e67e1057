"""Random looks for any scene: cameras, lights, colours. Each starts from a base look, so draws do not add up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mujoco
import numpy as np


def look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(4,) quaternion of a MuJoCo camera at `eye` (3,) that sees `target` (3,) in the middle, world z up."""
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.stack([right, np.cross(back, right), back], axis=1).flatten())
    return quat


def orbit(
    model: mujoco.MjModel,
    camera: int,
    base_pos: np.ndarray,
    target: np.ndarray,
    rng: np.random.Generator,
    *,
    yaw: float = 0.2,
    pitch: float = 0.1,
    zoom: float = 0.1,
    shift: float = 0.05,
) -> None:
    """Put a fixed camera somewhere near its base place, still seeing `target`.

    Args:
        model: changed in place.
        camera: its id.
        base_pos: (3,) where it stands by default, metres.
        target: (3,) what it looks at by default, metres.
        rng: source of the draws, uniform in plus or minus the ranges below.
        yaw: around the vertical axis, radians.
        pitch: up and down, radians.
        zoom: distance, as a share.
        shift: of the point looked at, metres.
    """
    x, y, z = base_pos - target
    radius = math.hypot(x, y, z) * (1 + rng.uniform(-zoom, zoom))
    azimuth = math.atan2(y, x) + rng.uniform(-yaw, yaw)
    elevation = np.clip(math.asin(z / math.hypot(x, y, z)) + rng.uniform(-pitch, pitch), 0.02, 1.5)
    centre = target + rng.uniform(-shift, shift, 3)
    flat = radius * math.cos(elevation)
    eye = centre + np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), radius * math.sin(elevation)])
    model.cam_pos[camera] = eye
    model.cam_quat[camera] = look_at(eye, centre)


def nudge(model: mujoco.MjModel, data: mujoco.MjData, camera: int, rng: np.random.Generator) -> None:
    """Lead a camera of any model a little round what it sees, upright or not; one that hangs on a moving body stays.

    Args:
        model: changed in place.
        data: where everything is now; its camera's pose is read.
        camera: its id.
        rng: source of the draws: up to 0.15 radians to a side, 0.08 up or down, and a tenth nearer or farther.
    """
    body = int(model.cam_bodyid[camera])
    if model.body_weldid[body] != 0 or int(model.cam_mode[camera]) != int(mujoco.mjtCamLight.mjCAMLIGHT_FIXED):
        return
    turn = data.cam_xmat[camera].reshape(3, 3)
    away = float((model.stat.center - data.cam_xpos[camera]) @ -turn[:, 2])
    target = data.cam_xpos[camera] - turn[:, 2] * max(away, 0.3 * model.stat.extent)
    led = _about([0.0, 0.0, 1.0], rng.uniform(-0.15, 0.15)) @ _about(turn[:, 0], rng.uniform(-0.08, 0.08))
    place = target + (1 + rng.uniform(-0.1, 0.1)) * led @ (data.cam_xpos[camera] - target)
    base, at = data.xmat[body].reshape(3, 3), data.xpos[body]
    model.cam_pos[camera] = base.T @ (place - at)
    mujoco.mju_mat2Quat(model.cam_quat[camera], (base.T @ led @ turn).flatten())


def _about(axis: Sequence[float] | np.ndarray, angle: float) -> np.ndarray:
    """(3, 3) a turn about an axis (3,), radians."""
    quat, turn = np.empty(4), np.empty(9)
    mujoco.mju_axisAngle2Quat(quat, np.asarray(axis, np.float64), angle)
    mujoco.mju_quat2Mat(turn, quat)
    return turn.reshape(3, 3)


def relight(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """Scale the brightness of every light by one draw each, up to 0.3, warm or cold, and turn its direction a little.

    Args:
        model: is changed in place.
        rng: of the draws.
    """
    for light in range(model.nlight):
        tint = 1 + rng.uniform(-0.06, 0.06, 3)
        model.light_diffuse[light] *= rng.uniform(0.7, 1.3) * tint
        turned = model.light_dir[light] + rng.normal(0, 0.15, 3)
        model.light_dir[light] = turned / np.linalg.norm(turned)


def tint(rgba: np.ndarray, rng: np.random.Generator, amount: float = 0.08) -> np.ndarray:
    """(4,) the same colour by name, a little lighter, darker or off in hue.

    Args:
        rgba: (4,) in [0, 1].
        rng: of the draws.
        amount: largest shift of a channel, in [0, 1]; its scale changes by up to twice that.
    """
    out = rgba.copy()
    out[:3] = np.clip(rgba[:3] * rng.uniform(1 - 2 * amount, 1 + 2 * amount) + rng.uniform(-amount, amount, 3), 0, 1)
    return out


def muted(rng: np.random.Generator) -> np.ndarray:
    """(4,) a colour without a strong hue, so that it passes for none of the named ones.

    Args:
        rng: of the draws.
    """
    grey = rng.uniform(0.25, 0.9)
    return np.append(np.clip(grey + rng.uniform(-0.1, 0.1, 3), 0, 1), 1.0)
