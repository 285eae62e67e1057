"""How far the points that a policy reads are from where things are, by the simulator's truth.

On states that nothing was chosen on: half of them at random, half during experts' episodes.

    python -m benchmarks.points
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch

from benchmarks.common import record
from embodied.envs import world_id
from embodied.envs.desk import Desk
from embodied.envs.experts import Expert
from embodied.envs.tasks import DESK
from embodied.pretraining.pointing import VISIBLE_PX, Parts
from rewards.encoders import embedded_encoder
from rewards.keypoint.path import CalibratedCamera
from rewards.metrics import auroc, bootstrap_interval
from rewards.points import PointReader

PARTS = {  # world -> what its instruction names -> the part of `sim_assets/desk/parts.yaml` that it is
    "desk-place": {"the red cube": "red cube", "the tray": "tray", "the gripper": "gripper"},
    "desk-drawer": {"the drawer": "drawer", "the handle of the drawer": "handle", "the gripper": "gripper"},
    "desk-press": {"the button": "button", "the gripper": "gripper"},
}
CAMERAS = ("front", "side")
LOOKS = ("own look", "varied look and camera pose")
SEED, STATES, SIDE = 940_007, 200, 96
SCARCE = 15  # fewer frames of a kind tell no AUROC


@dataclass(frozen=True)
class Shown:
    """Frames of one camera, and the truth of M parts in them.

    Attributes:
        frames: (N, H, W, 3) uint8.
        places: (N, M, 2) px of the middle of each part, as the camera's calibration projects it.
        visible: (N, M) pixels that show it.
    """

    frames: np.ndarray
    places: np.ndarray
    visible: np.ndarray


def main() -> None:
    """Render, judge, record."""
    torch.set_num_threads(1)
    encoder = embedded_encoder()
    found: list[dict[str, Any]] = []
    for index, (name, parts) in enumerate(PARTS.items()):
        for number, look in enumerate(LOOKS):
            shown = show(name, list(parts.values()), STATES, seed=(SEED, index, number), varied=number > 0)
            for camera, truth in shown.items():
                found += judged(f"{name}, {camera}, {look}", PointReader(encoder, list(parts)), truth)
    record("points", found)


def show(name: str, parts: Sequence[str], count: int, *, seed: Sequence[int], varied: bool) -> dict[str, Shown]:
    """Frames of every camera in the same states, half of them during an expert's episode."""
    rng = np.random.default_rng([*seed])
    world = gymnasium.make(world_id(name), image_size=SIDE).unwrapped
    assert isinstance(world, Desk)
    labels = Parts.load("desk")
    numbers = labels.of_geoms(world.model)
    wanted = [labels.names.index(part) + 1 for part in parts]
    world.reset(seed=0)
    world.frame()  # the fast settings, without which edges blend
    masks = mujoco.Renderer(world.model, SIDE, SIDE)
    masks.enable_segmentation_rendering()
    rows: dict[str, list[tuple[np.ndarray, ...]]] = {camera: [] for camera in CAMERAS}
    for i in range(count):
        world.restore_look()
        world.reset(seed=int(rng.integers(2**31)))
        if i % 2:
            world.sample_state(rng)
        else:
            expert = Expert(world, noise=0.2, rng=rng)
            for _ in range(rng.integers(DESK[world.task].steps)):
                world.step(expert(world))
        if varied:
            world.randomize_look(rng)
        middles = np.stack([world.data.geom_xpos[numbers[:-1] == number].mean(0) for number in wanted])
        for camera in CAMERAS:
            masks.update_scene(world.data, camera)
            ids, kinds = np.moveaxis(masks.render(), -1, 0)
            seen = numbers[np.where(kinds == mujoco.mjtObj.mjOBJ_GEOM, ids, -1)]
            visible = np.array([(seen == number).sum() for number in wanted])
            places = CalibratedCamera.read(camera, world.calibration(camera)).project(middles)
            rows[camera].append((world.frame(camera), places, visible))
    masks.close()
    world.close()
    return {camera: Shown(*(np.stack(each) for each in zip(*rows[camera], strict=True))) for camera in CAMERAS}


def judged(about: str, reader: PointReader, shown: Shown) -> list[dict[str, Any]]:
    """Median error of each thing where it can be seen, and how well its peak tells whether it can."""
    points = reader.read(torch.from_numpy(shown.frames))[1].numpy()
    errors = np.linalg.norm((points[..., :2] + 1) / 2 * SIDE - 0.5 - shown.places, axis=-1)
    found = []
    for m, thing in enumerate(reader.things):
        seen = shown.visible[:, m] >= VISIBLE_PX
        mine = errors[seen, m]
        shared = {"seeds": [SEED], "states": len(seen)}
        found.append(
            {
                "claim": f"{about}: {thing}, median distance from its projected middle where it is in sight",
                "value": float(np.median(mine)),
                "unit": f"px of {SIDE}",
                "n": len(mine),
                "interval": bootstrap_interval(mine, np.median),
                "quantile_90": round(float(np.quantile(mine, 0.9)), 2),
                **shared,
            }
        )
        if min(seen.sum(), (~seen).sum()) >= SCARCE:
            found.append(
                {
                    "claim": f"{about}: {thing}, how well the peak tells whether it is in sight",
                    "value": float(auroc(points[:, m, 2], seen)),
                    "unit": "AUROC",
                    "n": len(seen),
                    "hidden": int((~seen).sum()),
                    **shared,
                }
            )
    for row in found:
        print(f"{row['claim']}: {row['value']:.2f} ({row['n']}; {row.get('quantile_90', '')})", flush=True)
    return found


if __name__ == "__main__":
    main()
