"""Pictures of a world in which its task is done, from the simulator: goal images for testing, where no one took any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embodied.envs.world import World
from embodied.errors import UserError

TRIES = 200  # states drawn for each picture at most


def simulated(
    world: World, count: int, *, cameras: Sequence[str], image_size: int, seed: int = 0
) -> dict[str, list[np.ndarray]]:
    """Frames of random states in which the world's task is done.

    Privileged like demonstrations: it stands for pictures that a person took of the goal. The world is left in the last
    state drawn; reset it before use.

    Args:
        world: any of ours.
        count: how many, ≥ 1.
        cameras: of the pictures; each state is seen by all of them.
        image_size: pixels.
        seed: same seed, same pictures.

    Returns:
        camera -> `count` frames (H, W, 3) uint8, in one order.

    Raises:
        UserError: count < 1, or the task is not done in any state drawn.
    """
    if count < 1:
        raise UserError(f"reward.goal_images must be ≥ 1 pictures, or picture files; got {count}.")
    rng = np.random.default_rng(seed)
    world.reset(seed=seed)
    found: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}
    for _ in range(TRIES * count):
        world.sample_state(rng)
        if world.success():
            for camera, frames in found.items():
                frames.append(world.frame(camera, image_size))
            if len(found[cameras[0]]) == count:
                return found
    raise UserError(
        f"reward.goal_images: {type(world).__name__} showed too few states with its task done in {TRIES * count}. "
        "Give picture files."
    )
