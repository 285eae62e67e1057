"""Decoded pictures of films and streams as RGB, and which of them have no colours: depth and infrared.

H, W: height and width of a picture, pixels.
"""

from __future__ import annotations

from functools import lru_cache

import av
import av.error
import numpy as np

# swscale's bicubic, full_chroma_int, full_chroma_inp, accurate_rnd: without them colours come out a level darker.
ACCURATE = 4 | 0x2000 | 0x4000 | 0x40000
SMALL = 256 * 256  # pixels; a picture below that is done before threads are awake: on a busy machine, long before


@lru_cache(maxsize=64)
def lack_of_colours(pix_fmt: str) -> str:
    """Why pictures of a pixel format are no camera's, in words; "" where they are.

    One component of more than 8 bits is depth or infrared, and so are floats. Colours of 10 bits are colours.
    """
    try:
        components = [each for each in av.VideoFormat(pix_fmt).components if not each.is_alpha]
    except ValueError:  # a name that this FFmpeg does not know
        return ""
    if "f16" in pix_fmt or "f32" in pix_fmt or (len(components) == 1 and components[0].bits > 8):
        return f"its pixels must be 8-bit greys or colours; they are {pix_fmt}, as in depth pictures"
    return ""


def threads(picture: av.VideoFrame) -> int:
    """How many threads convert a picture: one where it is small, else 0, as many as there are cores.

    Args:
        picture: to be converted.
    """
    return 1 if picture.width * picture.height < SMALL else 0


def to_rgb(picture: av.VideoFrame, *, accurate: bool = True) -> np.ndarray:
    """(H, W, 3) uint8 RGB, in the colours that the film says: PyAV before 17 takes every film for BT.601.

    Args:
        picture: one that has colours (see `lack_of_colours`).
        accurate: as datasets are read; otherwise quicker, a level darker at most.

    Raises:
        ValueError: a damaged picture, whose pixels are of no kind.
    """
    how = {"interpolation": ACCURATE} if accurate else {}
    try:
        return picture.reformat(format="rgb24", threads=threads(picture), **how).to_ndarray()
    except av.error.FFmpegError as error:
        raise ValueError(f"a picture of {picture.format.name} cannot be brought to RGB ({error.strerror})") from error
