"""uint8 frames to what an image tower reads, as tensor work on whole batches.

Shape letters: B batch; H, W image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

WASTE = 2.0  # pixels resized for each that the crop keeps; above it, only what the crop sees is resized
RESIZE_MODES = ("squash", "shortest", "longest")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize (antialiased, rounded to 8 bits, as Pillow does), crop or pad about the centre, scale, normalise.

    Args:
        mode: "shortest" (the short side becomes `resize`'s, the ratio stays), "longest" (the long side, padding
            the rest) or "squash" (both, the ratio is lost).
        resize: (H, W) the resize aims at.
        crop: (H, W) the tower reads.
        interpolation: "bicubic" or "bilinear".
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        fill: grey level of padding, 0–255.
    """

    mode: str
    resize: tuple[int, int]
    crop: tuple[int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fill: int = 0

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of a frame after resizing, before the crop."""
        target_height, target_width = self.resize
        if self.mode == "squash":
            return self.resize
        ratios = height / target_height, width / target_width
        if self.mode == "shortest" and target_height == target_width:  # torchvision truncates the long side here
            short = min(height, width)
            return target_height * height // short, target_width * width // short
        ratio = min(ratios) if self.mode == "shortest" else max(ratios)
        return max(round(height / ratio), 1), max(round(width / ratio), 1)

    def __call__(
        self, frames: UInt8[Tensor, "B H W 3"], device: torch.device, dtype: torch.dtype
    ) -> Float[Tensor, "B 3 h w"]:
        """The tower's input, channels last in memory."""
        images = self._seen(frames.to(device, non_blocking=True))
        scale = 1 / (255 * torch.tensor(self.std, device=device))
        shift = -torch.tensor(self.mean, device=device) / torch.tensor(self.std, device=device)
        normal = torch.addcmul(shift.view(3, 1, 1), images.float(), scale.view(3, 1, 1))
        return normal.to(dtype, memory_format=torch.channels_last)

    def shrink(self, frames: UInt8[Tensor, "B H W 3"]) -> UInt8[Tensor, "B h w 3"]:
        """What the tower sees of frames, as pictures: resized and cropped, and no more than that."""
        return self._seen(frames).to(torch.uint8).permute(0, 2, 3, 1)

    def _seen(self, frames: UInt8[Tensor, "B H W 3"]) -> Tensor:
        """(B, 3, h, w) whole numbers from 0 to 255."""
        images = frames.permute(0, 3, 1, 2)
        size = self.resized(*images.shape[-2:])
        if size[0] * size[1] > WASTE * self.crop[0] * self.crop[1]:
            images = torch.stack([self._resize_cropped(image, size) for image in images])
        elif size != tuple(images.shape[-2:]):
            images = self._resize(images, size)
        return self._crop(images)

    def _resize(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        if images.device.type == "cpu":  # torch resizes uint8 as Pillow does
            return functional.interpolate(images, size, mode=self.interpolation, antialias=True)
        return self._resize_floats(images, size)

    def _resize_floats(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Where uint8 cannot be resized: width, then height, each rounded to 8 bits, as Pillow does."""
        images = images.float()
        for shape in ((images.shape[-2], size[1]), size):
            images = functional.interpolate(images, shape, mode=self.interpolation, antialias=True)
            images = images.round_().clamp_(0, 255)
        return images

    def _resize_cropped(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """The crop of one resized image, (3, H, W) -> (3, h, w), without the rest: a frame a hundred times as wide as
        high would become a hundred times the crop first. Width, then height, each rounded to 8 bits, as Pillow does.
        """
        rows, down = self._weights(image.shape[-2], size[0], self.crop[0])
        columns, across = self._weights(image.shape[-1], size[1], self.crop[1])
        seen = image[:, rows, columns].float()
        seen = (seen @ across.to(seen.device).T).round_().clamp_(0, 255)
        return (down.to(seen.device) @ seen).round_().clamp_(0, 255)

    def _weights(self, length: int, resized: int, kept: int) -> tuple[slice, Tensor]:
        """What each of the middle `kept` of `resized` pixels is made of, along one side.

        Returns:
            The source pixels that any of them sees, and (kept, seen) weights, rows summing to 1.
        """
        kept = min(kept, resized)
        scale = length / resized
        wide = max(scale, 1.0)  # downwards the filter grows, so that nothing is skipped
        reach = wide * (2.0 if self.interpolation == "bicubic" else 1.0)
        centres = (torch.arange(kept, dtype=torch.float64) + round((resized - kept) / 2) + 0.5) * scale
        first = max(math.floor(float(centres[0]) - reach), 0)
        last = min(math.ceil(float(centres[-1]) + reach), length)
        away = (torch.arange(first, last, dtype=torch.float64) + 0.5 - centres[:, None]).abs_() / wide
        if self.interpolation == "bicubic":  # Keys' cubic with a = -0.5
            near = (1.5 * away - 2.5) * away**2 + 1
            far = ((-0.5 * away + 2.5) * away - 4) * away + 2
            weights = torch.where(away < 1, near, torch.where(away < 2, far, 0.0))
        else:
            weights = (1 - away).clamp_(min=0)
        return slice(first, last), (weights / weights.sum(1, keepdim=True)).float()

    def _crop(self, images: Tensor) -> Tensor:
        (height, width), (crop_height, crop_width) = images.shape[-2:], self.crop
        pad_height, pad_width = max(crop_height - height, 0), max(crop_width - width, 0)
        if pad_height or pad_width:
            left, top = pad_width // 2, pad_height // 2
            images = functional.pad(images, (left, pad_width - left, top, pad_height - top), value=float(self.fill))
        top = round((images.shape[-2] - crop_height) / 2)
        left = round((images.shape[-1] - crop_width) / 2)
        return images[..., top : top + crop_height, left : left + crop_width]


def open_clip_preprocess(tower: Any) -> Preprocess:
    """The transform that belongs to an open_clip image tower."""
    config = tower.preprocess_cfg
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocess(
        mode=config["resize_mode"],
        resize=(height, width),
        crop=(height, width),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        fill=config.get("fill_color", 0),
    )


def transformers_preprocess(processor: Any, where: str) -> Preprocess:
    """What an image processor does, if it resizes to one size, crops, scales and normalises.

    Args:
        processor: transformers' image processor.
        where: begins the error's text.

    Raises:
        ValueError: it does anything else, such as tiling.
    """

    def sides(size: Any) -> tuple[int, int] | None:
        return (size["height"], size["width"]) if size and size.get("height") else None

    size = dict(processor.size)
    short = size.get("shortest_edge")
    resize = sides(size) or ((short, short) if short else None)
    crop = sides(dict(processor.crop_size)) if getattr(processor, "do_center_crop", False) else None
    interpolation = {2: "bilinear", 3: "bicubic"}.get(int(processor.resample))
    if resize is None or interpolation is None or (short and crop is None):
        raise ValueError(
            f"{where} must resize to one size by bilinear or bicubic interpolation; "
            f"got size {size}, crop {crop}, resample {processor.resample}."
        )
    normal = getattr(processor, "do_normalize", True)
    return Preprocess(
        mode="shortest" if short else "squash",
        resize=resize,
        crop=crop or resize,
        interpolation=interpolation,
        mean=tuple(processor.image_mean) if normal else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if normal else (1.0, 1.0, 1.0),
    )
