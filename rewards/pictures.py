"""Pictures as RGB, where they have colours: depth and infrared in 16-bit or float pixels are none, and are refused.

Pillow would cut such values off at 255, so half a metre and four metres would both come out white.

H, W: height and width of a picture, pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

DEEP = ("I", "F")  # Pillow's modes of 32-bit whole numbers and floats; "I;16" and its kin are the 16-bit ones


def lack_of_colours(image: Image.Image) -> str:
    """Why a picture is no camera's, in words; "" where its pixels are 8-bit greys or colours."""
    if image.mode not in DEEP and not image.mode.startswith("I;"):
        return ""
    kind = "floats" if image.mode == "F" else "whole numbers of 16 bits or more"
    return f"its pixels must be 8-bit greys or colours; they are {kind}, as in depth pictures"


def rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8, C-contiguous; ValueError where the picture has no colours."""
    if lack := lack_of_colours(image):
        raise ValueError(lack)
    return np.ascontiguousarray(image if image.mode == "RGB" else image.convert("RGB"))
