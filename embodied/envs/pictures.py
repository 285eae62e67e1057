"""What worlds render as one kind of picture: (H, W, 3) uint8 RGB; and the frame of any world that renders."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from embodied.envs.spaces import world_name
from embodied.errors import UserError

RENDER = 'Make it with render_mode="rgb_array".'


def picture(rendered: Any, where: str) -> np.ndarray:
    """What `render()` gave, as (H, W, 3) uint8 RGB, contiguous.

    A list's last picture is the newest; grey becomes RGB; alpha is left out; floats are from 0 to 1. Values are never
    cut off: what lies outside its range is refused.

    Args:
        rendered: a picture, or a list of them.
        where: the world, for errors.

    Raises:
        UserError: no picture, or one of another form.
    """
    if isinstance(rendered, list | tuple):
        if not rendered:
            raise UserError(f"{where}: render() must give a picture; it gave an empty list. {RENDER}")
        rendered = rendered[-1]
    if rendered is None or isinstance(rendered, str):
        raise UserError(f"{where}: render() must give a picture; it gave {type(rendered).__name__}. {RENDER}")
    image = np.asarray(rendered)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4) or not image.size:
        raise UserError(
            f"{where}: render() must give (H, W, 3) pixels, grey or with alpha; got {image.dtype} {np.shape(rendered)}."
        )
    colours = np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[-1] == 1 else image[..., :3]
    return np.ascontiguousarray(_bytes(colours, where))


def _bytes(image: np.ndarray, where: str) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if image.dtype == bool:
        return image * np.uint8(255)
    if image.dtype.kind not in "iuf":
        raise UserError(f"{where}: render() must give numbers; got {image.dtype}.")
    most = 1 if image.dtype.kind == "f" else 255
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= most):  # NaN is neither
        raise UserError(
            f"{where}: render() must give uint8, or {image.dtype} from 0 to {most}; got values from {low} to {high}. "
            "Convert them in the world's render()."
        )
    return (np.rint(image * 255) if most == 1 else image).astype(np.uint8)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the whole picture, by area; one that is not square is squeezed, as VLM-RM does.

    Args:
        image: (H, W, 3) uint8.
        size: side in pixels.
    """
    if image.shape[:2] == (size, size):
        return image
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))


def renders(env: gymnasium.Env) -> bool:
    """Whether a world has frames for a reward model: a `frame()` of ours, or pictures to make them of.

    Args:
        env: any.
    """
    return env.has_wrapper_attr("frame") or str(env.render_mode).startswith("rgb_array")


def view(env: gymnasium.Env, size: int, **named: Any) -> np.ndarray:
    """What a reward model sees now, (size, size, 3) uint8: the world's `frame()`, else its `render()`.

    Args:
        env: see `renders`.
        size: pixels.
        named: `camera`, where it is not the world's own.

    Raises:
        UserError: `render()` gave no picture.
    """
    if env.has_wrapper_attr("frame"):
        return env.get_wrapper_attr("frame")(image_size=size, **named)
    return resized(picture(env.render(), world_name(env)), size)
