"""Watched moments for tests: row k of an episode that goes up a tenth a row, ten rows a second."""

from __future__ import annotations

import numpy as np

from embodied.cameras.camera import Frame
from embodied.scoring.streaming import Reading
from embodied.watching.watched import Watched


def image(k: int, height: int = 48, width: int = 64, *, noise: bool = False) -> np.ndarray:
    """(H, W, 3) uint8 that differs from row to row by far more than compression does."""
    if noise:
        return np.random.default_rng(k).integers(0, 255, (height, width, 3), dtype=np.uint8)
    ramp = np.linspace(0, 60, width) + np.linspace(0, 40, height)[:, None] + 7 * (k % 20)
    return np.stack([ramp] * 3, -1).clip(0, 255).astype(np.uint8)


def moment(
    k: int,
    *,
    episode: int = 0,
    stale: bool = False,
    success: bool | None = False,
    goal: str | None = "the drawer is open",
    event: str | None = None,
    noise: bool = False,
) -> Watched:
    """Row k: potential k / 10, reward 0.1; a stale one shows the first picture and has no reading."""
    frame = Frame(image=image(0 if stale else k, noise=noise), captured_s=k / 10, index=0 if stale else k, stale=stale)
    reading = Reading(episode, k, {"clip": k / 10, "process": 0.5}, k / 10, 0.1 if k else None)
    return Watched(
        frames={"front": frame},
        reading=None if stale else reading,
        at_s=k / 10,
        time=1_700_000_000 + k / 10,
        normalised={} if stale else {"clip": min(k / 10, 1.0), "process": 0.5},
        success=success,
        smoothed=0.5,
        stale=stale,
        age_s=0.7 if stale else 0.01,
        latency_s=None if stale else 0.05,
        latencies_s={"encode": 0.04, "p95": 0.06},
        model_hz=10.0,
        goal=goal,
        event=event,
    )
