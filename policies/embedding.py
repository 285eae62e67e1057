"""Observations to embeddings and back, for world models that imagine: pictures, vectors, or both.

Pictures are read less their running mean; embeddings are layer-normed.

Shape letters: N rows of any kind, C channels, D embedding, F features; H, W image; `…` any.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from policies.core import leaves
from policies.networks import MLP, LayerNorm, Linear, Standardise
from policies.pixels import Contrast, as_planes
from policies.rssm import Sizes


class ObservationEncoder(nn.Module):
    """Images and vectors to one embedding: convolutions of stride 2 down to 3 or 4 pixels, an MLP for all vectors.

    Args:
        space: a Box or a Dict of them.
        sizes: see `Sizes`.
        who: the learner, for errors.
        generator: of the first weights.

    Raises:
        ValueError: an entry that is neither a vector nor a uint8 image whose side is 3 or 4 times a power of 2.
    """

    def __init__(self, space: spaces.Space, sizes: Sizes, who: str, *, generator: torch.Generator) -> None:
        super().__init__()
        self.images, self.vectors = images_of(space, who), vectors_of(space)
        self.norm = Standardise(max(sum(self.vectors.values()), 1))
        self.convolutions, self.contrasts = nn.ModuleDict(), nn.ModuleDict()
        width = sizes.hidden if self.vectors else 0
        for name, (side, channels) in self.images.items():
            halvings, last = _halvings(side)
            depths = [channels, *(sizes.channels * 2**k for k in range(halvings))]
            pairs = pairwise(depths)
            stack = [layer for i, o in pairs for layer in (_convolution(nn.Conv2d, i, o, generator), nn.ReLU())]
            self.convolutions[_key(name)] = nn.Sequential(*stack)
            self.contrasts[_key(name)] = Contrast((channels, side, side))
            width += depths[-1] * last * last
        if self.vectors:
            self.mlp = MLP(sum(self.vectors.values()), [sizes.hidden], sizes.hidden, generator=generator)
        self.head = Linear(width, sizes.embedding, generator=generator)
        self.head_norm = LayerNorm(sizes.embedding)

    def forward(self, obs: Any) -> Float[Tensor, "*N D"]:
        """Of (…, one observation), however many axes lead."""
        parts, lead = leaves(obs), ()
        out = []
        for name in self.images:
            lead = parts[name].shape[:-3]
            planes = self.contrasts[_key(name)](as_planes(parts[name]))
            out.append(self.convolutions[_key(name)](planes).flatten(1))
        if self.vectors:
            flat = self.flat(obs)
            lead = flat.shape[:-1]
            out.append(self.mlp(self.norm(flat.flatten(0, -2))))
        return self.head_norm(self.head(torch.cat(out, -1))).reshape(*lead, -1)

    def add(self, obs: Any) -> None:
        """Count observations, (…, one), into means and deviations."""
        parts = leaves(obs)
        for name in self.images:
            contrast = self.contrasts[_key(name)]
            assert isinstance(contrast, Contrast)
            contrast.add(as_planes(parts[name]))
        if self.vectors:
            self.norm.add(self.flat(obs).flatten(0, -2))

    def flat(self, obs: Any) -> Float[Tensor, "*N S"]:
        """Its vectors, side by side in the order of their names."""
        parts = leaves(obs)
        return torch.cat([parts[name].float() for name in self.vectors], -1)


class Decoder(nn.Module):
    """Features to what is seen, for the control that reconstructs.

    Args:
        encoder: whose mirror it is.
        features: width of what it reads.
        sizes: see `Sizes`.
        generator: of the first weights.
    """

    def __init__(self, encoder: ObservationEncoder, features: int, sizes: Sizes, *, generator: torch.Generator) -> None:
        super().__init__()
        self.images, self.vectors = encoder.images, encoder.vectors
        self.starts, self.convolutions = nn.ModuleDict(), nn.ModuleDict()
        for name, (side, channels) in self.images.items():
            halvings, last = _halvings(side)
            depths = [*(sizes.channels * 2**k for k in reversed(range(halvings))), channels]
            self.starts[_key(name)] = Linear(features, depths[0] * last * last, generator=generator)
            layers: list[nn.Module] = [nn.Unflatten(1, (depths[0], last, last))]
            for i, o in pairwise(depths):
                layers += [nn.ReLU(), _convolution(nn.ConvTranspose2d, i, o, generator)]
            self.convolutions[_key(name)] = nn.Sequential(*layers)
        if self.vectors:
            self.mlp = MLP(features, [sizes.hidden], sum(self.vectors.values()), generator=generator)

    def error(self, features: Float[Tensor, "N F"], obs: Any, encoder: ObservationEncoder) -> Float[Tensor, " N"]:
        """−log p(o | features) of N observations, less a constant: ½ Σ (o − ô)², pixels in [−½, ½]."""
        parts = leaves(obs)
        total = features.new_zeros(len(features))
        for name in self.images:
            shown = self.convolutions[_key(name)](self.starts[_key(name)](features))
            total = total + 0.5 * (shown - as_planes(parts[name])).square().flatten(1).sum(1)
        if self.vectors:
            total = total + 0.5 * (self.mlp(features) - encoder.norm(encoder.flat(obs))).square().sum(-1)
        return total


def images_of(space: spaces.Space, who: str) -> dict[str, tuple[int, int]]:
    """The images of an observation: name -> side in pixels, channels.

    Args:
        space: of observations.
        who: the learner, for errors.

    Raises:
        ValueError: an entry that is neither a vector nor such an image; tells which.
    """
    found = {}
    for name, box in _boxes(space).items():
        if isinstance(box, spaces.Box) and len(box.shape) == 1:
            continue
        what = f"observation {name!r}" if name else "observations"
        if not isinstance(box, spaces.Box) or len(box.shape) != 3 or box.dtype != "uint8":
            raise ValueError(f"{who}: {what} must be a vector or a uint8 image (H, W, C); got {box}.")
        height, width, channels = box.shape
        if height != width or not _halvings(height)[0]:
            raise ValueError(
                f"{who}: {what} must be square with a side of 3 or 4 times a power of 2, such as 32, 64 or 96; "
                f"got {height} x {width}. Set env.image_size."
            )
        found[name] = (height, channels)
    return found


def vectors_of(space: spaces.Space) -> dict[str, int]:
    """The vectors of an observation, in the order of their names: name -> width.

    Args:
        space: of observations.
    """
    boxes = sorted(_boxes(space).items())
    return {name: box.shape[0] for name, box in boxes if isinstance(box, spaces.Box) and len(box.shape) == 1}


def _boxes(space: spaces.Space) -> dict[str, spaces.Space]:
    return leaves(space.spaces if isinstance(space, spaces.Dict) else space)


def _halvings(side: int) -> tuple[int, int]:
    """How often a side can be halved down to 3 or 4, and which of both; (0, 0): it cannot."""
    for last in (4, 3):
        count = math.log2(side / last) if side > last else 0
        if count >= 1 and count == int(count):
            return int(count), last
    return 0, 0


def _key(name: str) -> str:
    """A module's name for an entry."""
    return f"obs_{name}"


def _convolution(kind: type[nn.Module], inputs: int, outputs: int, generator: torch.Generator) -> nn.Module:
    """Kernel 4, stride 2: half, or twice, the side. He's uniform weights and no offsets, so that little is not lost."""
    layer: Any = skip_init(kind, inputs, outputs, 4, stride=2, padding=1)
    fan = inputs * 16 if kind is nn.Conv2d else inputs * 4  # of the outputs, each input pixel reaches a quarter
    with torch.no_grad():
        layer.weight.uniform_(-math.sqrt(6 / fan), math.sqrt(6 / fan), generator=generator)
        layer.bias.zero_()
    return layer
