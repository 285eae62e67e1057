"""A camera's calibration from demonstrations: where the robot says its gripper is, and where the gripper is seen.

Shape letters: N frames.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from rewards.core import Episode
from rewards.keypoint.path import CalibratedCamera

TIP = ("gripper_x", "gripper_y", "gripper_z")  # signals, metres, in the world's axes
FRAMES = 250  # of all demonstrations that are looked at
LEAST = 20  # frames that a camera is found from
FOCAL = 1.2  # of the image's height, a field of view of 45 degrees: where the search starts, and what it leans to
LEAN = 4 / 96  # of the image's height: twice that focal length counts as one frame missed by as much
CLOSE = 0.03  # of the image's height: a camera misses the gripper by less, in the median, and sees it spread by more

log = logging.getLogger(__name__)


@runtime_checkable
class Tracker(Protocol):
    """A text's place in each frame: a `Grounder`."""

    def track(self, frames: UInt8[Tensor, "N H W 3"], text: str) -> Float[Tensor, "N 2"]: ...


class FoundCamera(NamedTuple):
    """A camera that was found.

    Attributes:
        camera: right for the gripper in the image, and neither in depth nor for places in the world.
        scene_m: metres that the image's height stands for, as far away as the gripper was on average.
    """

    camera: CalibratedCamera
    scene_m: float


def camera_from_demos(demos: Sequence[Episode], tracker: Tracker, gripper: str, camera: str) -> FoundCamera | None:
    """The camera that sees the gripper where it is, as the robot's readings tell.

    At most `FRAMES` frames are looked at, evenly. The camera has square pixels and its optical axis in the middle of
    the image. What is found in an image is the middle of what is visible of a gripper, not its tip, and the camera
    is that which sees the tip there; so it is right for the gripper in the image alone.

    Args:
        demos: with all frames of the camera, all of one size, and the signals gripper_x, _y, _z; others are left out,
            and so are readings that are not finite.
        gripper: words for the robot's gripper.
        camera: whose frames.
        tracker: finds the gripper in frames.

    Returns:
        None where fewer than `LEAST` frames tell, where the gripper's places in the images spread by less than
        `CLOSE`, as from the wrist, or where no such camera is right within `CLOSE`: it moves, the gripper is hidden or
        not known by these words, or the readings are in other axes. The log tells of the last two.
    """
    usable = [
        (demo.features.frames[camera][0].cpu(), torch.stack([demo.features.signals[name][0].cpu() for name in TIP], -1))
        for demo in demos
        if camera in demo.features.frames
        and demo.features.frames[camera].shape[1] == len(demo)
        and all(name in demo.features.signals for name in TIP)
    ]
    usable = [(frames[known], tips[known]) for frames, tips in usable if (known := tips.isfinite().all(1)).any()]
    count = sum(len(frames) for frames, _ in usable)
    if count < LEAST:
        return None
    every = -(-count // FRAMES)
    seen = torch.cat([tracker.track(frames[::every], gripper) for frames, _ in usable]).double().numpy()
    tips = torch.cat([tips[::every] for _, tips in usable]).double().numpy()
    height, width = usable[0][0].shape[1:3]
    found = fit_camera(tips, seen, (height, width))
    missed = float(np.median(np.linalg.norm(found.project(tips) - seen, axis=1)))
    moved = float(np.linalg.norm(seen.std(0)))
    about = f"camera {camera!r} from {len(seen)} frames of {len(usable)} demonstrations, {height} px high: {gripper!r}"
    if moved < CLOSE * height or missed > CLOSE * height:
        log.warning(
            "%s moves by %.1f px, and is missed by %.1f: not found. It is looked for in every frame.",
            about, moved, missed,
        )  # fmt: skip
        return None
    log.info("%s moves by %.1f px, and is missed by %.1f.", about, moved, missed)
    away = float(found.extrinsics[2, :3] @ tips.mean(0) + found.extrinsics[2, 3])
    return FoundCamera(found, height * away / float(found.intrinsics[1, 1]))


def fit_camera(
    points: Float[np.ndarray, "N 3"], pixels: Float[np.ndarray, "N 2"], size: tuple[int, int]
) -> CalibratedCamera:
    """The pinhole camera with square pixels and a centred axis that sees world points at pixels.

    Least squares of the distances in the image over turn, place and focal length, with those far off weighing less
    (soft L1 from 1/96 of the height on), from the camera at an unchanging distance that fits best. A focal length that
    the points do not tell leans to `FOCAL`.

    Args:
        points: N ≥ 4, metres.
        pixels: (u, v) of each.
        size: (H, W) px.
    """
    height, width = size
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    centre = points.mean(0)
    spread, seen = points - centre, (pixels - middle) / height
    linear = np.linalg.lstsq(np.c_[spread, np.ones(len(points))], seen, rcond=None)[0]
    left, scales, right = np.linalg.svd(linear[:3].T, full_matrices=False)
    rows = left @ right
    turn = Rotation.from_matrix(np.stack([*rows, np.cross(*rows)]))
    away = FOCAL / max(float(scales.mean()), 1e-6)
    start = np.concatenate([turn.as_rotvec(), linear[3] * away / FOCAL, [np.log(away), 0.0]])

    def read(x: np.ndarray) -> tuple[Rotation, np.ndarray, float]:
        """Turn, place of the points' middle before the camera, focal length in heights."""
        return Rotation.from_rotvec(x[:3]), np.array([x[3], x[4], np.exp(x[5])]), FOCAL * float(np.exp(x[6]))

    def errors(x: np.ndarray) -> np.ndarray:
        turn, place, focal = read(x)
        before = turn.apply(spread) + place
        image = focal * before[:, :2] / np.maximum(before[:, 2:], 1e-3)
        return np.append((image - seen).ravel(), LEAN * x[6] / np.log(2))

    turn, place, focal = read(least_squares(errors, start, loss="soft_l1", f_scale=1 / 96).x)
    extrinsics = np.eye(4)
    extrinsics[:3, :3] = turn.as_matrix()
    extrinsics[:3, 3] = place - turn.apply(centre)
    focal *= height
    return CalibratedCamera(np.array([[focal, 0, middle[0]], [0, focal, middle[1]], [0, 0, 1]]), extrinsics, size)
