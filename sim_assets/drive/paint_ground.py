"""Draws `ground.png`, the town's ground as seen from above: asphalt, lane markings, crossings, pavement and grass.

python sim_assets/drive/paint_ground.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from embodied.envs.drive_scene import GROUND
from embodied.envs.roads import BLOCK, BOX, GRID, LANE, PARKING, STREET, ZEBRA, outside

PIXELS = 1584
ASPHALT, PAVED, GRASS, WHITE, BAY = (72, 74, 78), (158, 154, 148), (104, 138, 84), (236, 236, 232), (92, 92, 97)


def paint() -> Image.Image:
    """The same whichever way it is turned or mirrored, so no axis can be the wrong one."""
    half = (np.arange(PIXELS // 2) + 0.5) * (GROUND / (PIXELS // 2))
    x, y = np.meshgrid(half, half, indexing="ij")
    out = outside(np.stack([x, y], -1))
    image = np.empty((*x.shape, 3), np.uint8)
    image[:] = GRASS
    image[out < 2.4] = PAVED
    image[out < 0] = ASPHALT
    for along, across in ((x, y), (y, x)):  # streets along either axis
        middles = (np.arange(GRID) - (GRID - 1) / 2) * BLOCK
        beside = np.abs(across[..., None] - middles).min(-1)
        run = np.abs(along % BLOCK - BLOCK / 2)  # from the middle of a street
        street = (run < STREET / 2) & (np.abs(along) < middles[-1]) & (beside < LANE + PARKING)
        zebra = street & (run < ZEBRA)
        image[street & (beside > LANE) & (run > 3.2)] = BAY
        image[street & (np.abs(beside - LANE) < 0.08) & (run > ZEBRA)] = WHITE
        image[street & (beside < 0.1) & (run > 4.0) & ((run // 1.5) % 2 < 1)] = WHITE
        image[zebra & (beside < LANE + PARKING) & ((beside + 0.3) % 1.2 < 0.6)] = WHITE
    assert BOX > LANE + PARKING
    image = np.concatenate([image[::-1], image])
    image = np.concatenate([image[:, ::-1], image], axis=1)
    return Image.fromarray(image)


if __name__ == "__main__":
    paint().convert("P", palette=Image.Palette.ADAPTIVE, colors=16).save(
        Path(__file__).parent / "ground.png", optimize=True
    )
