"""Pictures as RGB, where they have colours: depth and infrared in 16-bit or float pixels are none, and are refused.
How films of them are encoded.

Pillow would cut such values off at 255, so half a metre and four metres would both come out white.

H, W: height and width of a picture, pixels.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

# Of libx264: with a processor's own fast paths, up to 1 film in 80 came out otherwise than the same frames had before.
REPEATABLE = {"x264-params": "cpu-independent=1"}
DEEP = ("I", "F")  # Pillow's modes of 32-bit whole numbers and floats; "I;16" and its kin are the 16-bit ones


def lack_of_colours(image: Image.Image) -> str:
    """Why a picture is no camera's, in words; "" where its pixels are 8-bit greys or colours.

    Args:
        image: opened, not yet converted.
    """
    if image.mode not in DEEP and not image.mode.startswith("I;"):
        return ""
    kind = "floats" if image.mode == "F" else "whole numbers of 16 bits or more"
    return f"its pixels must be 8-bit greys or colours; they are {kind}, as in depth pictures"


def rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8, C-contiguous; ValueError where the picture has no colours.

    Args:
        image: opened by Pillow.

    Raises:
        ValueError: the picture has no colours; says why.
    """
    if lack := lack_of_colours(image):
        raise ValueError(lack)
    return np.ascontiguousarray(image if image.mode == "RGB" else image.convert("RGB"))


def fitting(height: int, width: int, side: int, least: int, most: int) -> tuple[int, int]:
    """(H, W) in multiples of `side`, of `least` to `most` pixels and nearly the same ratio: Qwen-VL's `smart_resize`.

    Args:
        height, width: of a picture.
        side: of the squares that a model sees it in, pixels.
        least, most: pixels.
    """
    rows, columns = (max(side, round(each / side) * side) for each in (height, width))
    if rows * columns > most:
        shrink = math.sqrt(height * width / most)
        rows, columns = (math.floor(each / shrink / side) * side for each in (height, width))
    elif rows * columns < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(each * grow / side) * side for each in (height, width))
    return max(rows, side), max(columns, side)
