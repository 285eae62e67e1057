"""Draws the desk's textures: `python sim_assets/desk/make_textures.py` writes the PNG files beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
SIZE = 192


def smooth_noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """(SIZE, SIZE) in [-1, 1]: random values on a coarse periodic grid, enlarged smoothly, so that it tiles."""
    grid = np.pad(rng.uniform(-1, 1, (rows, columns)), ((0, 1), (0, 1)), mode="wrap")
    for axis, cells in ((0, rows), (1, columns)):
        at = np.arange(SIZE) * cells / SIZE
        low = at.astype(int)
        t = at - low
        t = t * t * (3 - 2 * t)
        t = t[:, None] if axis == 0 else t[None, :]
        grid = np.take(grid, low, axis) * (1 - t) + np.take(grid, low + 1, axis) * t
    return grid


def wood(rng: np.random.Generator, base: tuple[int, int, int], planks: int) -> np.ndarray:
    """Planks along the columns, each with its own shade and a stretched grain."""
    grain = 0.6 * smooth_noise(rng, 48, 3) + 0.3 * smooth_noise(rng, 96, 6) + 0.3 * smooth_noise(rng, 12, 2)
    row = np.arange(SIZE) * planks // SIZE
    shade = 1 + 0.06 * grain + rng.uniform(-0.06, 0.06, planks)[row][:, None]
    shade[np.diff(row, append=planks) > 0] *= 0.8
    return shade[..., None] * np.array(base)


def stone(rng: np.random.Generator, base: tuple[int, int, int]) -> np.ndarray:
    """Clouds with fine speckles."""
    cloud = 0.5 * smooth_noise(rng, 4, 4) + 0.4 * smooth_noise(rng, 12, 12) + 0.5 * smooth_noise(rng, 64, 64)
    return (1 + 0.1 * cloud)[..., None] * np.array(base)


def cloth(rng: np.random.Generator, base: tuple[int, int, int]) -> np.ndarray:
    """A plain weave."""
    at = np.arange(SIZE) * 2 * np.pi * 32 / SIZE
    weave = np.sin(at)[:, None] * np.sin(at)[None, :]
    return (1 + 0.06 * weave + 0.05 * smooth_noise(rng, 24, 24))[..., None] * np.array(base)


def main() -> None:
    """Write every texture."""
    rng = np.random.default_rng(0)
    pictures = {
        "oak": wood(rng, (222, 190, 148), 6),
        "walnut": wood(rng, (150, 108, 76), 6),
        "stone": stone(rng, (196, 198, 200)),
        "cloth": cloth(rng, (176, 184, 190)),
    }
    for name, values in pictures.items():
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
        image.quantize(48).save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
