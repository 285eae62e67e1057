"""An encoder without a model: a fixed random projection of pixels, and a fixed random vector per text."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor


class FakeEncoder:
    """Counts what it encodes; `vectors` fixes the embeddings of chosen texts."""

    name = "fake"

    def __init__(self, dim: int = 16, size: int = 8, vectors: dict[str, Tensor] | None = None) -> None:
        self.dim, self.image_size, self.vectors = dim, (size, size), vectors or {}
        self.projection = torch.randn(size * size * 3, dim, generator=torch.Generator().manual_seed(0))
        self.encoded = 0

    def encode_images(self, frames: Tensor) -> Tensor:
        self.encoded += len(frames)
        return torch.nn.functional.normalize((frames.flatten(1).float() - 127.5) @ self.projection, dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([self.vectors.get(text, self._vector(text)) for text in texts])

    def _vector(self, text: str) -> Tensor:
        seed = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        return torch.nn.functional.normalize(torch.randn(self.dim, generator=seed), dim=0)
