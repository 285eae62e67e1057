"""Spatial maps of a dataset's frames, compressed and kept in half precision: what a policy sees of each camera.

A map of the embedded encoder has 256 channels, of which 64 directions hold nearly all that varies: kept so, a frame is
18 kB, less than its pixels. Shape letters: T frames of an episode; C channels, P of them kept; h, w map; N pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from embodied.datasets.encoding import fingerprint, place_key
from embodied.datasets.reader import Dataset
from embodied.errors import UserError
from embodied.files import whole
from policies.vla.pictures import resized

CACHE = Path("runs", "cache", "maps")
SAMPLE, SAMPLED = 256, 16  # frames of a camera to which its compression is fitted, and episodes they are of


@dataclass(frozen=True)
class Eye:
    """Frames of one camera to the maps that a policy reads.

    Attributes:
        encoder: has `encode_maps`.
        layer: of it; None: the usual one.
        weight: (C, P).
        offset: (P,); a map is x·weight − offset, pixel by pixel.
        mark: of the encoder's weights, for the cache.
    """

    encoder: Any
    layer: str | None
    weight: Float[Tensor, "C P"]
    offset: Float[Tensor, " P"]
    mark: str

    def __call__(self, frames: np.ndarray) -> Float[Tensor, "T P h w"]:
        """(T, H, W, 3) uint8 to maps in half precision, on the CPU."""
        return self.compress(self.encoder.encode_maps(torch.from_numpy(frames), self.layer))

    def compress(self, maps: Float[Tensor, "T C h w"]) -> Float[Tensor, "T P h w"]:
        """The encoder's maps to those that a policy reads, in half precision, on the CPU."""
        mixed = torch.einsum("tchw,cp->tphw", maps.float(), self.weight) - self.offset.view(-1, 1, 1)
        return mixed.half().cpu()

    def of(self, dataset: Dataset, i: int, camera: str, *, cache: Path | None = None) -> Float[Tensor, "T P h w"]:
        """The maps of one camera of an episode, kept or made now."""
        made = hashlib.sha256(self.mark.encode() + str(self.layer).encode())
        for tensor in (self.weight, self.offset):
            made.update(tensor.contiguous().numpy().tobytes())
        return kept(dataset, i, camera, made.hexdigest(), self.__call__, cache)


@dataclass(frozen=True)
class PictureEye:
    """Frames of one camera to the pictures that a pretrained body reads.

    Attributes:
        size: side of a picture.
    """

    size: int

    def __call__(self, frames: np.ndarray) -> UInt8[Tensor, "T 3 s s"]:
        """(T, H, W, 3) uint8 to squares."""
        return resized(frames, self.size)

    def of(self, dataset: Dataset, i: int, camera: str, *, cache: Path | None = None) -> UInt8[Tensor, "T 3 s s"]:
        """The pictures of one camera of an episode, kept or made now."""
        return kept(dataset, i, camera, f"pictures {self.size}", self.__call__, cache)


def kept(
    dataset: Dataset, i: int, camera: str, mark: str, make: Callable[[np.ndarray], Tensor], cache: Path | None = None
) -> Tensor:
    """What is made of the frames of one camera of an episode, from a file that the system pages in; made if missing.

    Args:
        dataset, i, camera: whose frames.
        mark: of what makes it.
        make: frames (T, H, W, 3) uint8 to a tensor.
        cache: where it is kept; None: `CACHE`.
    """
    key = place_key(dataset, i, camera, mark)
    file = (cache or CACHE) / key[:2] / f"{key}.safetensors"
    try:
        return load_file(file)["maps"]
    except (FileNotFoundError, SafetensorError, KeyError):  # not yet there, or damaged: made again
        pass
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as part:
        save_file({"maps": make(dataset.frames(i, camera)).contiguous()}, part)
    return load_file(file)["maps"]


def check_maps(encoder: Any, layer: str | None) -> None:
    """Refuse an encoder, or a layer, that gives no maps.

    Raises:
        UserError: so.
    """
    layers = getattr(encoder, "map_layers", ())
    if not layers:
        raise UserError(f"encoder must give maps of a frame; {encoder.name} gives one vector. Use encoder=embedded.")
    if layer is not None and layer not in layers:
        raise UserError(f"policy.layer must be one of {', '.join(layers)}, or null; got {layer!r}.")


def fit_eye(
    sources: Sequence[tuple[Dataset, str, Sequence[int]]], encoder: Any, *, layer: str | None, channels: int
) -> Eye:
    """An eye whose compression is the principal directions of maps of frames spread over all the episodes.

    Args:
        sources: datasets, each with its name of the camera and the episodes to look at.
        encoder: has `encode_maps`.
        layer: of it.
        channels: P; as many as there are keep everything.
    """
    places = [(d, name, i) for d, name, indices in sources for i in indices]
    chosen = [places[k] for k in np.unique(np.linspace(0, len(places) - 1, min(len(places), SAMPLED)).astype(int))]
    each = max(SAMPLE // len(chosen), 1)
    pixels = []
    for dataset, name, i in chosen:
        rows = np.unique(np.linspace(0, dataset.length(i) - 1, min(each, dataset.length(i))).astype(int))
        maps = encoder.encode_maps(torch.from_numpy(dataset.frames(i, name, rows.tolist())), layer).float()
        pixels.append(maps.permute(0, 2, 3, 1).flatten(0, 2).cpu().double())
    values = torch.cat(pixels)
    mean = values.mean(0)
    cov = (values - mean).T @ (values - mean) / len(values)
    spread, directions = torch.linalg.eigh(cov)
    kept = directions[:, spread.argsort(descending=True)[:channels]]
    signs = kept[kept.abs().argmax(0), torch.arange(kept.shape[1])].sign()  # the same on every machine
    weight = kept * signs / spread.sort(descending=True).values[:channels].mean().sqrt().clamp_min(1e-6)
    return Eye(encoder, layer, weight.float().contiguous(), (mean @ weight).float().contiguous(), fingerprint(encoder))
