"""A keypoint plan as a way through space: cameras, lifting to metres, and progress along the way.

Shape letters: T time, N points, K waypoints, D 2 or 3 axes; H, W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float

from rewards.keypoint.plan import PathStop

CLOSED = 0.15  # how much narrower than its widest a gripper is that has closed
EMPTY = 0.1  # a gripper narrower than this holds nothing
SLACK = 0.1  # how much wider than at its narrowest a gripper still holds
THIN = 0.035  # metres that a thin thing reaches back from its nearest point
LEAD_M = 0.15  # metres of path that coming to the first waypoint counts for
GATE_M = 0.04  # metres of path that grasping or releasing counts for


@dataclass(frozen=True)
class CalibratedCamera:
    """A pinhole camera.

    Attributes:
        intrinsics: (3, 3), metres in the camera's axes -> px; the middle of the first pixel is (0, 0).
        extrinsics: (4, 4), world -> camera, metres; x right, y down, z forward (OpenCV).
        size: (H, W) px of the images that the intrinsics are for.
    """

    intrinsics: np.ndarray
    extrinsics: np.ndarray
    size: tuple[int, int]

    @classmethod
    def read(cls, name: str, values: Mapping[str, Any]) -> CalibratedCamera:
        """From a config's `intrinsics`, `extrinsics` and `size`.

        Raises:
            ValueError: a part is missing or has another shape.
        """
        try:
            made = cls(
                np.array(values["intrinsics"], np.float64),
                np.array(values["extrinsics"], np.float64),
                (int(values["size"][0]), int(values["size"][1])),
            )
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"CalibratedCamera.read: calibration of {name!r} must have intrinsics, extrinsics and size; "
                f"got {values!r}."
            ) from error
        if made.intrinsics.shape != (3, 3) or made.extrinsics.shape != (4, 4):
            raise ValueError(
                f"CalibratedCamera.read: calibration of {name!r} must have intrinsics (3, 3) and extrinsics (4, 4); "
                f"got {made.intrinsics.shape} and {made.extrinsics.shape}."
            )
        return made

    def at(self, height: int, width: int) -> CalibratedCamera:
        """The same camera for images of another size."""
        scale = np.diag([width / self.size[1], height / self.size[0], 1.0])
        half = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        return CalibratedCamera(scale @ (self.intrinsics + half) - half, self.extrinsics, (height, width))

    def project(self, points: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 2"]:
        """World points, metres -> px."""
        seen = points @ self.extrinsics[:3, :3].T + self.extrinsics[:3, 3]
        image = seen @ self.intrinsics.T
        return image[:, :2] / image[:, 2:]

    def lift(self, pixels: Float[np.ndarray, "N 2"], depths: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 3"]:
        """The world points at pixels, `depths` metres along the optical axis."""
        return self._from_camera(depths[:, None] * self._rays(pixels))

    def on_plane(self, pixel: Sequence[float] | np.ndarray, height: float) -> Float[np.ndarray, " 3"]:
        """The world point at a pixel, on the level plane z = `height` metres.

        Raises:
            ValueError: the pixel looks past the plane.
        """
        eye = self._from_camera(np.zeros(3))
        ray = self._from_camera(self._rays(np.array([pixel])))[0] - eye
        steps = (height - eye[2]) / ray[2] if ray[2] else -1.0
        if steps <= 0:
            raise ValueError(
                f"CalibratedCamera.on_plane: pixel must see the plane at z = {height} m; "
                f"got ({pixel[0]:.0f}, {pixel[1]:.0f}), which looks past it. "
                "Give depth, or path.plane=null to plan in the image."
            )
        return eye + steps * ray

    def _rays(self, pixels: np.ndarray) -> np.ndarray:
        seen = np.concatenate([pixels, np.ones((len(pixels), 1))], -1)
        return np.linalg.solve(self.intrinsics, seen.T).T

    def _from_camera(self, points: np.ndarray) -> np.ndarray:
        return (points - self.extrinsics[:3, 3]) @ self.extrinsics[:3, :3]


@dataclass(frozen=True)
class Way:
    """A way in the world or, where `unit` is set, in the image plane.

    Attributes:
        points: (K, 3) metres; or (K, 2), px times `unit`.
        gates: K of `keypoint_plan.GATES`.
        unit: metres that a pixel stands for; None in the world.
    """

    points: np.ndarray
    gates: tuple[str, ...]
    unit: float | None = None


def lift_path(stops: Sequence[PathStop], camera: CalibratedCamera, depth: np.ndarray | None, plane: float) -> Way:
    """Stops in the world, by measured depth, or else on the level plane z = `plane` metres.

    A stop's depth is the median of the 3 x 3 pixels about it. Of a thin thing it is that of what lies nearest within a
    24th of the image, and its place the middle of all there that is no more than `THIN` farther. Pixels that were not
    measured, 0 or not finite, do not count; where none was, the plane stands in.

    Args:
        stops: in pixels.
        camera: calibrated.
        depth: (H, W) metres; None: not measured.
        plane: height, metres.
    """

    @cache  # several stops are about one place
    def place(pixel: tuple[float, float], thin: bool = False) -> np.ndarray:
        if depth is None:
            return camera.on_plane(pixel, plane)
        side = max(1, depth.shape[0] // 24) if thin else 1
        u, v = (round(min(max(x, side), n - 1 - side)) for x, n in zip(pixel, depth.shape[::-1], strict=True))
        patch = depth[v - side : v + side + 1, u - side : u + side + 1]
        measured = np.isfinite(patch) & (patch > 0)
        if not measured.any():
            return camera.on_plane(pixel, plane)
        if not thin:
            return camera.lift(np.array([pixel]), np.median(patch[measured], keepdims=True))[0]
        near = measured & (patch <= patch[measured].min() + THIN)
        rows, columns = np.nonzero(near)
        pixels = np.stack([columns, rows], -1) + np.array([u - side, v - side], np.float64)
        return camera.lift(pixels, patch[near]).mean(0)

    points = []
    for stop in stops:
        point = place(stop.at, stop.thin) + np.array([0.0, 0.0, stop.up])
        if stop.by and stop.tail is not None and stop.head is not None:
            way = (place(stop.head, stop.thin) - place(stop.tail)) * [1.0, 1.0, 0.0]
            point = point + stop.by * way / max(float(np.linalg.norm(way)), 1e-9)
        points.append(point)
    return Way(np.stack(points), tuple(stop.gate for stop in stops))


def flat_path(stops: Sequence[PathStop], unit: float, up: Sequence[float] = (0.0, -1.0)) -> Way:
    """Stops in the image plane, scaled to metres by `unit` a pixel; `up` is how far a metre up moves them, metres.

    Args:
        stops: in pixels.
        unit: metres a pixel.
        up: (du, dv) metres in the picture for a metre up.
    """
    points = []
    for stop in stops:
        point = unit * np.array(stop.at) + stop.up * np.array(up)
        if stop.by and stop.tail is not None and stop.head is not None:
            way = np.array(stop.head) - np.array(stop.tail)
            point = point + stop.by * way / max(float(np.linalg.norm(way)), 1e-9)
        points.append(point)
    return Way(np.stack(points), tuple(stop.gate for stop in stops), unit)


# Progress ----------------------------------------------------------------------------------------------------


def path_progress(
    points: Float[np.ndarray, "K D"],
    gates: Sequence[str],
    robot: Float[np.ndarray, "T D"],
    opening: Float[np.ndarray, " T"] | None = None,
    *,
    sigma: float,
    reach: float,
) -> Float[np.ndarray, " T"]:
    """How far along its way a robot is.

        Φ_t = ρ_t · exp(−d_t / σ)

    with ρ_t the share of the way behind the point nearest to x_t on the section that is under way, and d_t the
    distance to it. The way runs through the K waypoints, with a lead of `LEAD_M` before the first, so that coming
    near counts; gates part it into sections, and a section counts only after every gate before it, so nothing is won by
    going to the target first. A grasp or release adds `GATE_M` to the way.

    A "reach" gate opens within `reach` of its waypoint; "grasp" asks besides that the gripper has closed by `CLOSED` of
    its stroke and is not empty; "release" that it then opens, where it still held something one step before. Without
    an opening, both are "reach". A gripper that lost what it held falls back to the section before the grasp until it
    holds again. After a last gate Φ = 1.

    Args:
        points: the waypoints, metres.
        gates: of each waypoint, one of `GATES`.
        robot: x_t, metres in the same axes.
        opening: of the gripper, 0 shut to 1 open.
        sigma: σ, metres.
        reach: metres.
    Returns:
        (T,) in [0, 1]; reads nothing after t. With gates it depends on the past, without on x_t alone.
    Source: ours, since KAGI's own formula (arXiv 2407.10341) was not obtainable [dense_rewards §2.1, stand-in]. Departs
        from the stand-in by the lead and the gates.
    """
    way = np.asarray(points, np.float64)
    lengths = np.linalg.norm(np.diff(way, axis=0), axis=1)  # (K-1,)
    total = LEAD_M + float(lengths.sum()) + GATE_M * sum(gate in ("grasp", "release") for gate in gates)
    passed = np.ones(len(robot), bool)
    holding = np.ones(len(robot), bool)
    progress = fallback = np.zeros(len(robot))
    behind, first, grip = LEAD_M, 0, np.ones(len(robot))
    ends = [k for k, gate in enumerate(gates) if gate or k == len(gates) - 1]
    for last in ends:
        arc, gap = nearest_on_polyline(way[first : last + 1], robot)
        here = (behind + arc) / total * np.exp(-gap / sigma)
        progress = np.where(passed, np.where(holding, here, fallback), progress)
        gate = gates[last]
        if not gate:
            return progress
        behind += float(lengths[first:last].sum()) + (GATE_M if gate in ("grasp", "release") else 0.0)
        event = passed & (np.linalg.norm(robot - way[last], axis=1) <= reach)
        if gate == "grasp" and opening is not None:
            event &= (opening <= np.maximum.accumulate(opening) - CLOSED) & (opening >= EMPTY)
        elif gate == "release" and opening is not None:
            event &= (opening > grip + SLACK) & np.concatenate([[False], (event & holding)[:-1]])
        passed = np.maximum.accumulate(event)
        if gate == "grasp" and opening is not None and passed.any():
            fallback = here
            grip = np.minimum.accumulate(np.where(passed & (opening >= EMPTY), opening, np.inf))  # it may still close
            holding = (opening >= EMPTY) & (opening <= grip + SLACK)
        elif gate == "release":
            holding = np.ones(len(robot), bool)
        first = last
    return np.where(passed, np.where(holding, 1.0, fallback), progress)


def nearest_on_polyline(
    way: Float[np.ndarray, "K D"], points: Float[np.ndarray, "T D"]
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Arc length to the polyline's nearest point, and the distance to it; of equally near ones the farthest on.

    Args:
        way: K corners.
        points: T places, in the units of `way`.
    """
    if len(way) == 1:
        return np.zeros(len(points)), np.linalg.norm(points - way, axis=1)
    starts, legs = way[:-1], np.diff(way, axis=0)  # (K-1, D)
    squares = np.maximum((legs * legs).sum(1), 1e-18)
    share = np.clip(((points[:, None] - starts) * legs).sum(-1) / squares, 0, 1)  # (T, K-1)
    gaps = np.linalg.norm(points[:, None] - (starts + share[..., None] * legs), axis=-1)
    lengths = np.sqrt(squares)
    arcs = np.concatenate([[0.0], np.cumsum(lengths)[:-1]]) + share * lengths
    best = gaps.shape[1] - 1 - gaps[:, ::-1].argmin(1)
    rows = np.arange(len(points))
    return arcs[rows, best], gaps[rows, best]
