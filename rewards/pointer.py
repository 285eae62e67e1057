"""Vectors to places: where one thing, the gripper, is in a frame, as the frame's vector alone tells it.

Shape letters: N frames, W words, D feature width, K hidden width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rewards.core import Encoder
from rewards.storage import load_half, picture_probe, save_half

FILE = "pointer.safetensors"  # beside an encoder's weights
SPREAD = 1 / 6  # of an image's sides: about how far from its middle things lie, the unit of the output
KNOWN = 0.9  # cosine with one of the words for the thing, from which a text means it


class Pointer(nn.Module):
    """A perceptron from an image's vector x to a place in the image.

        (u, v) = ½ + C GELU(B GELU(A (x − x̄) / σ)) / 6

    Args:
        words: embeddings of the words for the thing, unit length.
        hidden: K.
    """

    words: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, words: Float[Tensor, "W D"], hidden: int = 512) -> None:
        super().__init__()
        dim = words.shape[1]
        self.register_buffer("words", words.clone())
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.first, self.second, self.out = nn.Linear(dim, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 2)

    def forward(self, vectors: Float[Tensor, "N D"]) -> Float[Tensor, "N 2"]:
        """(u, v) in shares of the image's sides, from its upper left corner; not bounded to it."""
        hidden = functional.gelu(self.first((vectors - self.mean) / self.std))
        return 0.5 + SPREAD * self.out(functional.gelu(self.second(hidden)))

    def knows(self, text: Float[Tensor, " D"]) -> bool:
        """Whether a text means the thing, by its embedding."""
        return float((self.words @ text).max()) >= KNOWN

    def save(self, folder: Path, encoder: Encoder) -> None:
        """Write it beside the weights of the encoder that it was trained for, in half precision."""
        save_half(folder / FILE, self, picture_probe(encoder))

    @classmethod
    def load(cls, folder: Path, encoder: Encoder) -> Pointer:
        """The pointer beside an encoder's weights.

        Raises:
            ValueError: it was trained for other weights.
        """
        tensors = load_half(folder / FILE, picture_probe(encoder), encoder.name)
        made = cls(tensors["words"], len(tensors["first.bias"]))
        made.load_state_dict(tensors)
        return made.eval().requires_grad_(False)
