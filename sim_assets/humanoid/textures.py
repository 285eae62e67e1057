"""Draws the PNG files of this folder again: `python sim_assets/humanoid/textures.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
FACE = 128  # pixels, one side of the sky's cube
PLANKS, LENGTH = 8, 256


def _noise(points: np.ndarray, rng: np.random.Generator, octaves: int = 5) -> np.ndarray:
    """Smooth noise in about [-1, 1] at `points` (..., 3): a sum of random waves, finer ones weaker."""
    value = np.zeros(points.shape[:-1])
    for octave in range(octaves):
        for _ in range(12):
            wave = rng.normal(0, 1, 3) * 2.0**octave * 1.5
            value += np.cos(points @ wave + rng.uniform(0, 6.3)) / 2.0**octave
    return value / np.abs(value).max()


def sky() -> Image.Image:
    """Six faces of one cube, side by side: right, left, up, down, front, back, in MuJoCo's order."""
    axis = (np.arange(FACE) + 0.5) / FACE * 2 - 1
    u, v = np.meshgrid(axis, -axis)
    one = np.ones_like(u)
    faces = [(one, v, -u), (-one, v, u), (u, one, -v), (u, -one, v), (u, v, one), (-u, v, -one)]
    strip = []
    noise_seed = 3
    for x, y, z in faces:  # y is up
        direction = np.stack([x, y, z], -1)
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        height = np.clip(direction[..., 1:2], 0, 1)
        blue = np.array([0.80, 0.88, 0.95]) * (1 - height) + np.array([0.30, 0.52, 0.82]) * height
        cloud = _noise(direction * [1, 2.2, 1], np.random.default_rng(noise_seed))[..., None]
        cover = np.clip((cloud - 0.05) * 2.2, 0, 0.85) * np.clip(height * 6, 0.15, 1)
        strip.append(blue * (1 - cover) + cover)
    return Image.fromarray((np.concatenate(strip, 0) * 255).astype(np.uint8))


def floor() -> Image.Image:
    """Wooden planks that repeat without a seam."""
    rng = np.random.default_rng(1)
    rows = []
    across, along = LENGTH // PLANKS, np.arange(LENGTH) / LENGTH * 2 * np.pi
    for _ in range(PLANKS):
        base = np.array([0.62, 0.47, 0.33]) * rng.uniform(0.85, 1.12)
        grain = np.zeros((across, LENGTH))
        for _ in range(10):
            frequency, phase = rng.integers(1, 4), rng.uniform(0, 6.3)
            bend = np.sin(frequency * along + phase)
            grain += np.sin(np.arange(across)[:, None] * rng.uniform(0.3, 1.6) + bend * rng.uniform(0.4, 1.5))
        plank = base * (1 + 0.035 * grain[..., None] / 3)
        plank[:2] *= 0.55  # the gap
        joint = rng.integers(LENGTH)
        plank[:, joint : joint + 2] *= 0.6
        rows.append(plank)
    return Image.fromarray((np.clip(np.concatenate(rows, 0), 0, 1) * 255).astype(np.uint8))


def shell() -> Image.Image:
    """Light plastic with fine speckle and panel lines."""
    rng = np.random.default_rng(2)
    grey = 0.94 + rng.normal(0, 0.018, (64, 64))
    grey[::16] *= 0.9
    return Image.fromarray((np.clip(grey, 0, 1)[..., None] * [250, 252, 255]).astype(np.uint8))


if __name__ == "__main__":
    for name, image, colours in (("sky", sky(), 128), ("floor", floor(), 64), ("shell", shell(), 32)):
        image.quantize(colours, dither=Image.Dither.NONE).save(HERE / f"{name}.png", optimize=True)
