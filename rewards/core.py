"""The nouns every reward shares, and the scorer that turns frames into rewards.

Shape letters: B batch, E parallel worlds, T time, D feature width, M texts; H, W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jaxtyping import Bool, Float, UInt8
from torch import Tensor


class Encoder(Protocol):
    """Heavy and stateless: images and texts in, unit vectors of one space out."""

    name: str
    dim: int
    image_size: tuple[int, int]  # (H, W) at which frames need no resizing

    def encode_images(self, frames: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B D"]: ...

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "M D"]: ...


@dataclass(frozen=True, kw_only=True)
class Features:
    """What an encoder made of one window of each of B episodes.

    Attributes:
        views: camera name -> (B, T, D) float32, unit length.
        signals: sensor name -> (B, T) float32, readings a real robot would have (speed, force); heads
            that ask for none ignore them.
    """

    views: Mapping[str, Float[Tensor, "B T D"]]
    signals: Mapping[str, Float[Tensor, "B T"]] = field(default_factory=dict)

    @property
    def main(self) -> Float[Tensor, "B T D"]:
        """The first view."""
        return next(iter(self.views.values()))


class Head(Protocol):
    """Light: features in, one potential per step out; higher is better, units are the head's own."""

    name: str

    def score(self, features: Features) -> Float[Tensor, "B T"]: ...


class Shaping(Protocol):
    """The one conversion from potential to reward (see `rewards.shaping`)."""

    def __call__(
        self,
        potential: Float[Tensor, "*S"],
        next_potential: Float[Tensor, "*S"],
        terminated: Bool[Tensor, "*S"],
    ) -> Float[Tensor, "*S"]: ...
