"""Frames that look unlike all that an encoder was taught: its scores of a text there look like any, and say nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from omegaconf import DictConfig

from embodied.building.far_texts import goals_read
from rewards.core import Encoder
from rewards.known import strangeness


def unlike(encoder: Encoder, frames: Sequence[np.ndarray]) -> float | None:
    """The share of frames of one camera that look unlike all that the encoder was taught; None where nothing tells.

    Args:
        encoder: whose weights may have beside them what it knows (`embodied.pretraining.knowing`).
        frames: (H, W, 3) uint8 RGB each.
    """
    found = strangeness(encoder, [torch.from_numpy(np.ascontiguousarray(frame)) for frame in frames])
    return None if found is None else float((found > 1).float().mean())


def warn(
    config: DictConfig,
    encoder: Encoder,
    frames: Mapping[str, Sequence[np.ndarray]],
    where: str,
    tell: Callable[[str], object] = lambda text: print(text, file=sys.stderr),
) -> None:
    """Say in one line which cameras show what the encoder was never taught the look of: most of their frames.

    Only rewards that follow a text are warned of; what was fitted to episodes has seen their frames.

    Args:
        config: a verb's, with `reward`.
        encoder: of its scorer.
        frames: camera -> some frames, (H, W, 3) uint8 RGB.
        where: what they are of, for the line.
        tell: takes the line.
    """
    if not goals_read(config):
        return
    shares = {camera: unlike(encoder, seen) for camera, seen in frames.items() if len(seen)}
    far = [camera for camera, share in shares.items() if share is not None and share > 0.5]
    if not far:
        return
    cameras = "" if far == ["main"] else f" by {', '.join(far)}"
    tell(
        f"encoder: frames of {where}{cameras} look unlike all that {encoder.name} was taught, so its scores there say "
        "little. Teach it this scene (embodied pretrain), or take a larger: encoder=open_clip."
    )
