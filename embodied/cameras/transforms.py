"""What is done to every image of a camera before anybody sees it: crop, flip, rotate, resize, in this order.

H, W: height and width of an image, pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from embodied.errors import UserError

FLIPS = ("", "h", "v", "hv")
TURNS = (0, 90, 180, 270)


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Image in, image out.

    Args:
        crop: x, y, width, height of what is kept, pixels of the camera's image; None: all.
        flip: "h" mirrors left and right, "v" up and down, "hv" both.
        rotate: degrees clockwise, a multiple of 90.
        resize: H, W of what comes out; None: as it is.

    Raises:
        UserError: a value that is none of these.
    """

    crop: tuple[int, int, int, int] | None = None
    flip: str = ""
    rotate: int = 0
    resize: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.crop is not None and (len(self.crop) != 4 or min(self.crop) < 0 or min(self.crop[2:]) < 1):
            raise UserError(f"crop must be [x, y, width, height] in pixels, each side at least 1; got {self.crop}.")
        if self.flip not in FLIPS:
            raise UserError(f"flip must be h, v or hv; got {self.flip!r}.")
        if self.rotate not in TURNS:
            raise UserError(f"rotate must be 0, 90, 180 or 270 (degrees clockwise); got {self.rotate}.")
        if self.resize is not None and (len(self.resize) != 2 or min(self.resize) < 1):
            raise UserError(f"resize must be [height, width] in pixels, at least 1; got {self.resize}.")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (H', W', 3) uint8, C-contiguous.

        Raises:
            UserError: the crop reaches out of the image.
        """
        if self.crop is not None:
            x, y, width, height = self.crop
            if x + width > image.shape[1] or y + height > image.shape[0]:
                raise UserError(
                    f"crop must lie within the image of {image.shape[1]} x {image.shape[0]} pixels; got {self.crop}."
                )
            image = image[y : y + height, x : x + width]
        if "h" in self.flip:
            image = image[:, ::-1]
        if "v" in self.flip:
            image = image[::-1]
        image = np.ascontiguousarray(np.rot90(image, -self.rotate // 90))
        return image if self.resize is None else resized(image, self.resize)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 at another `size` H, W; bilinear, smoothed where it shrinks."""
    if image.shape[:2] == tuple(size):
        return image
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
