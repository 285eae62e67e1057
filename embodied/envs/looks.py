"""Random looks for any scene: cameras, lights, colours. Each starts from a base look, so draws do not add up."""

from __future__ import annotations

import math

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


def relight(model: mujoco.MjModel, rng: np.random.Generator, strength: float = 0.3) -> None:
    """Scale the brightness of every light by one draw each, warm or cold, and turn its direction a little.

    Args:
        model: is changed in place.
        rng: of the draws.
        strength: largest change of brightness, as a share.
    """
    for light in range(model.nlight):
        tint = 1 + rng.uniform(-0.06, 0.06, 3)
        model.light_diffuse[light] *= rng.uniform(1 - strength, 1 + strength) * tint
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
