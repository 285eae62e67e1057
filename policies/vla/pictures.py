"""Pictures for a pretrained vision tower: one size, OFT's augmentation in training, the same middle otherwise.

Shape letters: N images, H, W of a frame; s side of a picture.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

CROP = 0.9  # share of the area
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.2, 0.2, 0.2, 0.05


def resized(frames: UInt8[np.ndarray, "N H W 3"], size: int) -> UInt8[Tensor, "N 3 s s"]:
    """Frames as squares; what is not square is squashed, as OFT's data are.

    Args:
        frames: of any size.
        size: s, pixels.
    """
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if images.shape[-2:] == (size, size):
        return images.contiguous()
    scaled = nn.functional.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)


def cropped(images: Float[Tensor, "N 3 s s"], random: torch.Generator | None = None) -> Float[Tensor, "N 3 s s"]:
    """A square of `CROP` of the area, enlarged again: of the middle, or with a generator from anywhere.

    Args:
        images: in [0, 1].
        random: of the draws; None: the middle.
    """
    side = math.sqrt(CROP)
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    if random is not None:
        theta[:, :, 2] = (2 * torch.rand(len(images), 2, generator=random) - 1) * (1 - side)
    grid = nn.functional.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def recoloured(images: Float[Tensor, "N 3 s s"], random: torch.Generator) -> Float[Tensor, "N 3 s s"]:
    """Other light: brightness, contrast, saturation and hue, each drawn for each image; values stay in [0, 1].

    Args:
        images: in [0, 1].
        random: of the draws.

    Source: OpenVLA-OFT's augmentation (brightness ± 0.2, contrast and saturation 0.8 to 1.2, hue ± 0.05 of a turn).
        Departs: saturation and hue by a turn and a stretch of the YIQ plane, not in HSV.
    """
    drawn = (2 * torch.rand(4, len(images), 1, 1, 1, generator=random) - 1).to(images)
    images = images + BRIGHTNESS * drawn[0]
    mean = images.mean((-2, -1), keepdim=True)
    images = mean + (1 + CONTRAST * drawn[1]) * (images - mean)
    angle, stretch = 2 * math.pi * HUE * drawn[3].flatten(), 1 + SATURATION * drawn[2].flatten()
    cos, sin, zero = stretch * angle.cos(), stretch * angle.sin(), torch.zeros_like(angle)
    rows = [zero + 1, zero, zero, zero, cos, -sin, zero, sin, cos]
    turn = torch.stack(rows, -1).view(-1, 3, 3)
    yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]).to(images)
    mixed = torch.linalg.inv(yiq) @ turn @ yiq
    return torch.einsum("nij,njhw->nihw", mixed, images).clamp(0, 1)
