"""What learners on pictures are made of: the last few frames at once, random shifts, a convolutional encoder, a trunk.

DrQ-v2's parts (Yarats et al., arXiv 2107.09645), for pictures of any size, vectors beside them, or vectors alone.

Departures. Pictures are read less their running mean, as vectors are standardised. They are shifted by as large a part
of their side as in the paper, whatever their size.

Shape letters: E worlds, T steps, B batch, K frames at once, C channels, N encoded observation (R pictures, S vectors),
F features, W what a head reads; H, W picture.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

from policies.core import Batch, Memory, Obs, leaves
from policies.networks import LayerNorm, Linear, Running, Standardise

PAD = 4 / 84  # of a picture's side, the largest shift: 4 pixels at the paper's size
CHANNELS, STRIDES = 32, (2, 1, 1, 1)

Frames = tuple[Tensor, Tensor]  # pictures (B, H, W, C), uint8 or contrasted, and vectors (B, S); either may be empty


class Sight:
    """How an observation is read: its pictures, the last K of each at once, and its vectors.

    Args:
        space: uint8 pictures (H, W, C) of one size, vectors, or a dictionary of both.
        stack: K, of pictures.
        who: asks, for errors.

    Attributes:
        size: H and W of the pictures; None without any.
        stack: K; 1 without pictures.
        frame_channels: of all pictures of a moment.
        channels: of K frames of them.
        vectors: S.

    Raises:
        ValueError: other spaces, pictures of two sizes or too small to encode, or K below 1.
    """

    def __init__(self, space: spaces.Space, stack: int, who: str) -> None:
        if stack < 1:
            raise ValueError(f"{who}: stack must be at least 1; got {stack}.")
        boxes = leaves(space.spaces if isinstance(space, spaces.Dict) else space)
        self._pictures: dict[str, tuple[int, ...]] = {}
        self._flat: dict[str, int] = {}
        for name in sorted(boxes):
            box = boxes[name]
            if isinstance(box, spaces.Box) and box.dtype == np.uint8 and len(box.shape) == 3:
                self._pictures[name] = box.shape
            elif isinstance(box, spaces.Box) and len(box.shape) == 1:
                self._flat[name] = box.shape[0]
            else:
                what = f"observation {name!r}" if name else "observations"
                raise ValueError(f"{who}: {what} must be a uint8 picture (H, W, C) or a vector; got {box}.")
        sizes = {(shape[0], shape[1]) for shape in self._pictures.values()}
        if len(sizes) > 1:
            raise ValueError(f"{who}: pictures must be of one size; got {' and '.join(map(str, sorted(sizes)))}.")
        self.size = next(iter(sizes), None)
        if self.size is not None and min(map(encoded, self.size)) < 1:
            raise ValueError(f"{who}: pictures must be at least 15 pixels high and wide; got {self.size}.")
        self.stack = stack if self._pictures else 1
        self.frame_channels = sum(shape[2] for shape in self._pictures.values())
        self.channels = self.stack * self.frame_channels
        self.vectors = sum(self._flat.values())

    def begin(self, count: int) -> Memory:
        """The K − 1 frames before now of so many worlds, of which none is known yet."""
        if self.stack == 1:
            return {}
        return {
            f"history/{name}": np.zeros((count, self.stack - 1, *shape), np.uint8)
            for name, shape in self._pictures.items()
        }

    def now(self, obs: Obs, memory: Memory, first: np.ndarray) -> tuple[Frames, Memory]:
        """What E worlds show now, and what to remember of it; an episode's first frame stands for those before it."""
        parts, pictures, kept = leaves(obs), [], {}
        for name in self._pictures:
            frames = np.asarray(parts[name])[:, None]
            if self.stack > 1:
                past = memory[f"history/{name}"]
                frames = np.concatenate([np.where(first[:, None, None, None, None], frames, past), frames], 1)
                kept[f"history/{name}"] = frames[:, 1:].copy()
            pictures.append(_channels(torch.from_numpy(frames).transpose(0, 1)))
        return self._frames(pictures, {name: torch.as_tensor(parts[name]) for name in self._flat}, len(first)), kept

    def moment(self, batch: Batch, at: Int[Tensor, " B"]) -> Frames:
        """What each window shows at a moment of its own, from 0 to T."""
        columns = torch.arange(len(at), device=at.device)
        rows = at + torch.arange(self.stack, device=at.device)[:, None]
        obs, past, pictures = leaves(batch.obs), leaves(batch.history), []
        for name in self._pictures:
            frames = obs[name] if self.stack == 1 else torch.cat([past[name], obs[name]])
            pictures.append(_channels(frames[rows, columns]))
        return self._frames(pictures, {name: obs[name][at, columns] for name in self._flat}, len(at))

    def stacked(self, single: Float[Tensor, "H W F"]) -> Tensor:
        """(H, W, channels): what is told of a moment's pictures, of each of K frames."""
        parts = single.split([shape[2] for shape in self._pictures.values()], -1)
        return torch.cat([part.repeat(1, 1, self.stack) for part in parts], -1)

    def pictures(self, obs: Obs) -> Tensor:
        """(…, H, W, frame_channels) the pictures alone, side by side."""
        parts = leaves(obs)
        return torch.cat([torch.as_tensor(parts[name]) for name in self._pictures], -1)

    def flat(self, obs: Obs) -> Tensor:
        """(…, S) the vectors alone."""
        parts = leaves(obs)
        return torch.cat([torch.as_tensor(parts[name]).float() for name in self._flat], -1)

    def _frames(self, pictures: list[Tensor], vectors: dict[str, Tensor], count: int) -> Frames:
        device = next(iter([*pictures, *vectors.values()])).device
        shown = torch.cat(pictures, -1) if pictures else torch.zeros(count, 0, 0, 0, dtype=torch.uint8, device=device)
        return shown, self.flat(vectors) if vectors else torch.zeros(count, 0, device=device)


def _channels(frames: UInt8[Tensor, "K B H W C"]) -> UInt8[Tensor, "B H W K*C"]:
    """Frames at once as channels, the oldest first."""
    return frames.permute(1, 2, 3, 0, 4).flatten(3)


def shifted(pictures: Shaped[Tensor, "B H W C"], offsets: Int[Tensor, "2 B"], pad: int) -> Shaped[Tensor, "B H W C"]:
    """Pictures padded by their edges and cropped again to their size (DrQ-v2 §3.1).

    Args:
        pictures: of a batch.
        offsets: of the crop's first row and column in the padded picture, from 0 to 2 · pad.
        pad: on every side, pixels.
    """
    count, height, width = pictures.shape[:3]
    device = pictures.device
    rows = (torch.arange(height, device=device) + offsets[0, :, None] - pad).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) + offsets[1, :, None] - pad).clamp(0, width - 1)
    return pictures[torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def random_shift(pictures: Shaped[Tensor, "B H W C"], generator: torch.Generator) -> Shaped[Tensor, "B H W C"]:
    """Each picture moved at random, by up to `PAD` of its side either way; all its frames alike.

    Args:
        pictures: of stacked frames, of any type.
        generator: of the draws.
    """
    if not pictures.numel():
        return pictures
    pad = max(round(PAD * min(pictures.shape[1:3])), 1)
    offsets = torch.randint(2 * pad + 1, (2, len(pictures)), generator=generator, device=generator.device)
    return shifted(pictures, offsets, pad)


def encoded(size: int) -> int:
    """Height or width after the convolutions.

    Args:
        size: of the picture, pixels.
    """
    for stride in STRIDES:
        size = (size - 3) // stride + 1
    return size


def as_planes(image: Tensor) -> Float[Tensor, "N C H W"]:
    """(…, H, W, C) uint8 as rows in [−½, ½], channels first.

    Args:
        image: frames, stacked or not.
    """
    return image.flatten(0, -4).movedim(-1, 1).float().div(255).sub(0.5)


class Contrast(Running):
    """Pictures less their running mean picture, in running deviations of what is left, so that what moves counts.

    A pole of a few pixels before a wall is then found in a third of the updates. The deviation is one number for all.

    Args:
        shape: (C, H, W).
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__(torch.zeros(shape), torch.zeros(()))
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(()))

    shift: Tensor
    scale: Tensor

    def forward(self, planes: Tensor) -> Tensor:
        return (planes - self.shift) * self.scale

    @torch.no_grad()
    def add(self, planes: Float[Tensor, "N C H W"]) -> None:
        """Count more pictures in."""
        x, number = planes.to(self.mean.dtype), len(planes)
        mean, total = x.mean(0), self.count + number
        away = mean - self.mean
        self.square += (x - mean).square().sum(0).mean() + away.square().mean() * self.count * number / total
        self.mean += away * number / total
        self.count.copy_(total)
        self.shift.copy_(self.mean)
        self.scale.copy_(1 / (self.square / self.count).sqrt().clamp(min=1e-2))


class Conv(nn.Module):
    """A 3 × 3 convolution without padding; orthogonal weights with ReLU's gain, no offset at first.

    Args:
        inputs, outputs: channels.
        stride: pixels.
        generator: of the weights.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, generator: torch.Generator) -> None:
        super().__init__()
        weight = nn.init.orthogonal_(torch.empty(outputs, inputs, 3, 3), math.sqrt(2), generator=generator)
        self.weight, self.bias, self._stride = nn.Parameter(weight), nn.Parameter(torch.zeros(outputs)), stride

    def forward(self, x: Float[Tensor, "B I H W"]) -> Tensor:
        return nn.functional.conv2d(x, self.weight, self.bias, self._stride)


class PixelEncoder(nn.Module):
    """Pictures and vectors to one vector: four convolutions of 32 channels, and the vectors standardised.

    Args:
        sight: how observations are read.
        generator: of the first weights.

    Attributes:
        pictures: R, 32 · h · w after the convolutions; 0 without pictures.
        vectors: S.
    """

    def __init__(self, sight: Sight, *, generator: torch.Generator) -> None:
        super().__init__()
        inputs = [sight.channels, *[CHANNELS] * (len(STRIDES) - 1)] if sight.size is not None else []
        self.convolutions = nn.ModuleList(
            Conv(i, CHANNELS, stride, generator=generator) for i, stride in zip(inputs, STRIDES, strict=False)
        )
        self.norm = Standardise(sight.vectors) if sight.vectors else None
        self.contrast = None if sight.size is None else Contrast((sight.frame_channels, *sight.size))
        self._sight = sight
        self.pictures = 0 if sight.size is None else CHANNELS * encoded(sight.size[0]) * encoded(sight.size[1])
        self.vectors = sight.vectors

    @torch.no_grad()
    def add(self, obs: Obs) -> None:
        """Count observations, (T, E, …), into means and deviations."""
        device = next(self.buffers()).device
        if self.norm is not None:
            self.norm.add(self._sight.flat(obs).flatten(0, 1).to(device))
        if self.contrast is not None:
            self.contrast.add(as_planes(self._sight.pictures(obs).to(device)))

    def contrasted(self, pictures: UInt8[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        """Stacked frames less their mean, as `forward` reads them; shifts come after."""
        if self.contrast is None:
            return pictures.float()
        mean = self._sight.stacked(self.contrast.shift.movedim(0, -1))
        return (pictures.float().div_(255).sub_(0.5) - mean) * self.contrast.scale

    def forward(self, frames: Frames) -> Float[Tensor, "B N"]:
        pictures, vectors = frames
        flat = [self.norm(vectors)] if self.norm is not None else []
        if not self.pictures:
            return flat[0]
        x = pictures.permute(0, 3, 1, 2)
        for convolution in self.convolutions:
            x = torch.relu(convolution(x))
        return torch.cat([x.flatten(1), *flat], -1)


class Trunk(nn.Module):
    """What a head reads: encoded pictures as Linear → LayerNorm → tanh, vectors as they are.

    Args:
        encoder: whose output it reads.
        features: F.
        generator: of the first weights.

    Attributes:
        width: F + S, or S without pictures.
    """

    def __init__(self, encoder: PixelEncoder, features: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self._parts = (encoder.pictures, encoder.vectors)
        self.linear = Linear(encoder.pictures, features, generator=generator) if encoder.pictures else None
        self.norm = LayerNorm(features) if encoder.pictures else None
        self.width = encoder.vectors + (features if encoder.pictures else 0)

    def forward(self, x: Float[Tensor, "B N"]) -> Float[Tensor, "B W"]:
        if self.linear is None or self.norm is None:
            return x
        pictures, vectors = x.split(self._parts, -1)
        return torch.cat([torch.tanh(self.norm(self.linear(pictures))), vectors], -1)

    def before(self, x: Float[Tensor, "B N"]) -> list[Tensor]:
        """[(B, F)] what comes out of the linear layer; [] without pictures."""
        return [] if self.linear is None else [self.linear(x[:, : self._parts[0]])]


@torch.no_grad()
def orthogonal(module: nn.Module, generator: torch.Generator) -> Any:
    """The module, its linear layers begun anew: orthogonal weights, no offset.

    Args:
        module: is changed in place.
        generator: of the weights.
    """
    for layer in module.modules():
        if isinstance(layer, Linear):
            for weight in layer.weight:
                nn.init.orthogonal_(weight, generator=generator)
            layer.bias.zero_()
    return module
