"""Text to pixels: dense maps of an image tower in its text space, and the places where a phrase is.

Shape letters: B batch, D feature width, M texts; H, W image; h, w map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from rewards.core import Encoder, check_frames
from rewards.encoders.frozen import FrozenEncoder
from rewards.pointer import FILE as POINTER
from rewards.pointer import Pointer
from rewards.storage import load_half, save_half, weights_folder

FILE = "grounding.safetensors"  # beside an encoder's weights
PROBE = "the red cube on the desk"  # a projector knows its encoder by what this text embeds to
SAME_TEXT = 0.999  # cosine of the probe's embeddings by the same weights
TEMPERATURE = 0.03  # of a map without a projector, whose cosines have no scale of their own
EDGE = 0.5  # a region ends where the map falls below this share of its peak
FAINT = 0.08  # the least peak, as a probability, that counts as found


@dataclass(frozen=True)
class Region:
    """Where a phrase is in one frame.

    Attributes:
        centre: (u, v) px, the region's middle weighted by its heat; the middle of the frame's first pixel is (0, 0).
        peak: highest probability of the map, in [0, 1].
        points: (N, 2) px, middles of the region's cells.
        heat: (N,) their probabilities.
    """

    centre: np.ndarray
    peak: float
    points: np.ndarray
    heat: np.ndarray


class Projector(nn.Module):
    """Maps of a ResNet at four scales to text space, on the grid of the finest.

    Each scale is reduced to `hidden` channels and brought to the finest grid; two 3 x 3 convolutions mix them.

    Args:
        widths: channels of the four maps, finest first.
        dim: D.
        hidden: channels in between.
    """

    def __init__(self, widths: Sequence[int], dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.widths, self.dim, self.hidden = tuple(widths), dim, hidden
        self.reduce = nn.ModuleList(nn.Sequential(nn.Conv2d(w, hidden, 1), nn.GroupNorm(4, hidden)) for w in widths)
        self.mix = nn.ModuleList(nn.Conv2d(hidden, hidden, 3, padding=1) for _ in range(2))
        self.out = nn.Conv2d(hidden, dim, 1)
        last = nn.Linear(hidden, dim)
        nn.init.zeros_(last.weight)  # texts start as they are
        nn.init.zeros_(last.bias)
        self.text = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), last)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.bias = nn.Parameter(torch.tensor(-3.0))

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "B D h w"]:
        """Unit vectors in text space."""
        size = maps[0].shape[-2:]
        x = torch.zeros((), device=maps[0].device)
        for reduce, values in zip(self.reduce, maps, strict=True):
            x = x + functional.interpolate(reduce(values.float()), size, mode="bilinear", align_corners=False)
        x = functional.gelu(x)
        for mix in self.mix:
            x = x + functional.gelu(mix(x))
        return functional.normalize(self.out(x), dim=1)

    def logits(self, vectors: Float[Tensor, "B D h w"], texts: Float[Tensor, "*B M D"]) -> Float[Tensor, "B M h w"]:
        """How far each text holds in each cell, before the sigmoid; the same texts for all frames, or each its own."""
        texts = functional.normalize(texts + self.text(texts), dim=-1)
        form = "bmd,bdhw->bmhw" if texts.ndim == 3 else "md,bdhw->bmhw"
        return self.scale.exp() * torch.einsum(form, texts, vectors) + self.bias

    def save(self, folder: Path, encoder: Encoder) -> None:
        """Write it beside the weights of the encoder that it was trained for, in half precision."""
        save_half(folder / FILE, self, encoder.encode_texts([PROBE])[0])

    @classmethod
    def load(cls, folder: Path, encoder: Encoder) -> Projector:
        """The projector beside an encoder's weights.

        Raises:
            ValueError: it was trained for other weights.
        """
        tensors = load_half(folder / FILE, encoder.encode_texts([PROBE])[0], encoder.name, same=SAME_TEXT)
        widths = [tensors[f"reduce.{i}.0.weight"].shape[1] for i in range(4)]
        made = cls(widths, encoder.dim, tensors["out.weight"].shape[1])
        made.load_state_dict(tensors)
        return made.eval().requires_grad_(False)


def resnet_maps(tower: Any, images: Tensor) -> list[Float[Tensor, "B C h w"]]:
    """The four scales of an open_clip ResNet, finest first.

    Args:
        tower: open_clip's image tower.
        images: (B, 3, H, W), preprocessed.
    """
    x, maps = tower.stem(images), []
    for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        x = layer(x)
        maps.append(x)
    return maps


class Grounder:
    """Where phrases are in frames.

    With a trained `Projector` beside the encoder's weights, a map is a probability per cell. Without one, the tower's
    own last map is read in text space (MaskCLIP): the last attention is left out and each patch passes through its
    value and output projections alone; the map is then the phrase's softmax against the frame's mean.

    With a trained `Pointer` there too, `point` tells one thing's place from frames' vectors: coarser, nearly for free.

    Args:
        encoder: an open_clip ResNet or vision transformer, or a transformers CLIP or SigLIP.

    Raises:
        ValueError: an encoder whose towers give no maps in text space, one in int8, or a projector or pointer of other
            weights.
    Source: MaskCLIP, arXiv 2112.01071 §3.2. Departs: no key smoothing, no prompt denoising; the class token and
        position embeddings of an attention pool take no part in the map.
    """

    def __init__(self, encoder: Encoder) -> None:
        if not isinstance(encoder, FrozenEncoder):
            raise ValueError(
                f"Grounder: encoder must be an open_clip or transformers encoder, whose maps can be read; "
                f"got {type(encoder).__name__}. Use encoder=embedded, open_clip or transformers."
            )
        if encoder.precision == "int8":
            raise ValueError(
                "Grounder: precision of the encoder must be auto, fp32, bf16 or fp16, so that its maps can be read; "
                "got int8."
            )
        self.encoder = encoder
        self._tower = getattr(encoder._image_tower, "_orig_mod", encoder._image_tower)
        folder = weights_folder(encoder)
        found = folder is not None and (folder / FILE).is_file() and hasattr(self._tower, "layer4")
        self.projector = Projector.load(folder, encoder).to(encoder.device) if folder and found else None
        known = folder is not None and (folder / POINTER).is_file()
        self.pointer = Pointer.load(folder, encoder) if folder and known else None
        self._read = _reader(self._tower, encoder.name) if self.projector is None else None

    @torch.no_grad()
    def vectors(self, frames: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B D h w"]:
        """Unit vectors in text space, one per cell."""
        check_frames(frames, "Grounder.vectors")
        images = self.encoder._preprocess(frames, self.encoder.device, self.encoder._dtype)
        if self.projector is not None:
            return self.projector(resnet_maps(self._tower, images)).cpu()
        assert self._read is not None
        return functional.normalize(self._read(images).float(), dim=1).cpu()

    @torch.no_grad()
    def heat(self, frames: UInt8[Tensor, "B H W 3"], texts: Sequence[str]) -> Float[Tensor, "B M h w"]:
        """How likely each text holds in each cell, in [0, 1]."""
        vectors, wanted = self.vectors(frames), self.encoder.encode_texts(texts)
        if self.projector is not None:
            device = self.encoder.device
            return self.projector.logits(vectors.to(device), wanted.to(device)).sigmoid().cpu()
        cosines = torch.einsum("md,bdhw->bmhw", wanted, vectors)
        above = cosines - cosines.flatten(2).mean(-1)[..., None, None]
        return (above / TEMPERATURE).sigmoid()

    def locate(self, frames: UInt8[Tensor, "B H W 3"], texts: Sequence[str]) -> list[list[Region]]:
        """Where each text is in each frame, whether or not it is there at all: see `Region.peak`."""
        regions = []
        for batch in frames.split(self.encoder.batch_size):
            heat = self.heat(batch, texts).numpy().astype(np.float64)
            grid = self._cells(batch.shape[1], batch.shape[2], heat.shape[2:])
            regions += [[_region(each, grid) for each in maps] for maps in heat]
        return regions

    def find(self, frames: UInt8[Tensor, "B H W 3"], texts: Sequence[str]) -> list[list[Region]]:
        """Where each text is in each frame.

        Raises:
            ValueError: a frame does not show one of them, as far as the map tells.
        """
        found = self.locate(frames, texts)
        for regions in found:
            for text, region in zip(texts, regions, strict=True):
                if region.peak < FAINT:
                    raise ValueError(
                        f"Grounder.find: the frame must show {text!r}; its best match is {region.peak:.2f} likely, "
                        f"below {FAINT}. Name it otherwise, or check what the camera sees with: embodied preview"
                    )
        return found

    def track(self, frames: UInt8[Tensor, "B H W 3"], text: str) -> Float[Tensor, "B 2"]:
        """(u, v) px of one text in each of many frames."""
        places = [region.centre for (region,) in self.locate(frames, [text])]
        return torch.from_numpy(np.stack(places).astype(np.float32))

    def points(self, text: str) -> bool:
        """Whether `point` can tell where a text is."""
        return self.pointer is not None and self.pointer.knows(self.encoder.encode_texts([text])[0])

    @torch.no_grad()
    def point(self, vectors: Float[Tensor, "N D"], size: tuple[int, int]) -> Float[Tensor, "N 2"]:
        """(u, v) px of what the pointer knows, in each of many frames, told from their vectors.

        Args:
            vectors: what the encoder made of the frames.
            size: (H, W) px of the frames.
        """
        assert self.pointer is not None, "an encoder without a pointer"
        shares = self.pointer(vectors.float().cpu()).numpy()
        return torch.from_numpy(self._pixels(*size, shares).astype(np.float32))

    def _cells(self, height: int, width: int, cells: tuple[int, ...]) -> np.ndarray:
        """(h, w, 2) middles of a map's cells as (u, v) px of a frame."""
        v, u = np.meshgrid(*((np.arange(count) + 0.5) / count for count in cells), indexing="ij")
        return self._pixels(height, width, np.stack([u, v], -1))

    def _pixels(self, height: int, width: int, shares: np.ndarray) -> np.ndarray:
        """(…, 2) places in the encoder's image, in shares of its sides, as (u, v) px of a frame, through the encoder's
        resize and crop."""
        preprocess = self.encoder._preprocess
        resized, crop = preprocess.resized(height, width), preprocess.crop
        axes = []
        for axis, (full, small, cut) in enumerate(zip((height, width), resized, crop, strict=True)):
            at = shares[..., 1 - axis] * cut + round((small - cut) / 2)  # in the resized image
            axes.append(at * full / small - 0.5)
        return np.stack(axes[::-1], -1)


def _region(heat: np.ndarray, grid: np.ndarray) -> Region:
    """The connected cells about the peak."""
    peak = np.unravel_index(heat.argmax(), heat.shape)
    labels: Any = ndimage.label(heat >= EDGE * heat[peak], np.ones((3, 3)))[0]  # pyright: ignore[reportIndexIssue, reportGeneralTypeIssues]
    inside = labels == labels[peak]
    points, weights = grid[inside], heat[inside]
    return Region((points * weights[:, None]).sum(0) / weights.sum(), float(heat[peak]), points, weights)


# Maps in text space, by kind of tower ------------------------------------------------------------------------


def _reader(tower: Any, name: str) -> Any:
    """A function from images to (B, D, h, w)."""
    if hasattr(tower, "attnpool") and hasattr(tower, "layer4"):
        return lambda images: _resnet_map(tower, images)
    if hasattr(tower, "transformer") and hasattr(tower, "ln_post") and getattr(tower, "attn_pool", None) is None:
        return lambda images: _vit_map(tower, images)
    network = getattr(tower, "_network", None)
    vision = getattr(network, "vision_model", None)
    if hasattr(network, "visual_projection"):
        return lambda images: _clip_map(network, images)
    if hasattr(getattr(vision, "head", None), "attention"):
        return lambda images: _siglip_map(vision, images)
    trunk = getattr(tower, "trunk", None)
    if hasattr(getattr(trunk, "attn_pool", None), "kv"):
        return lambda images: _timm_map(tower, images)
    raise ValueError(
        f"Grounder: encoder must have maps in text space: an open_clip ResNet or ViT, or a transformers CLIP or "
        f"SigLIP; got {name}."
    )


def _grid(tokens: Tensor, images: Tensor) -> Tensor:
    """(B, N, D) patches to (B, D, h, w), in the image's own ratio."""
    batch, count, dim = tokens.shape
    rows = round((count * images.shape[-2] / images.shape[-1]) ** 0.5)
    return tokens.transpose(1, 2).reshape(batch, dim, rows, count // rows)


def _resnet_map(tower: Any, images: Tensor) -> Tensor:
    x = resnet_maps(tower, images)[-1].permute(0, 2, 3, 1)
    return tower.attnpool.c_proj(tower.attnpool.v_proj(x)).permute(0, 3, 1, 2)


def _vit_map(tower: Any, images: Tensor) -> Tensor:
    """All blocks but the last; of that the value path, the rest of the block, the last norm, the projection."""
    seen: list[Tensor] = []
    last = tower.transformer.resblocks[-1]
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        tower(images)
    finally:
        hook.remove()
    x = seen[0] if tower.transformer.batch_first else seen[0].transpose(0, 1)
    width = x.shape[-1]
    values = functional.linear(last.ln_1(x), last.attn.in_proj_weight[2 * width :], last.attn.in_proj_bias[2 * width :])
    x = x + last.ls_1(last.attn.out_proj(values))
    x = tower.ln_post(x + last.ls_2(last.mlp(last.ln_2(x))))[:, 1:]
    return _grid(x if tower.proj is None else x @ tower.proj, images)


def _clip_map(network: Any, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    vision = network.vision_model
    last = vision.encoder.layers[-1]
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        network.get_image_features(pixel_values=images)
    finally:
        hook.remove()
    x = seen[0]
    x = x + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(x)))
    x = vision.post_layernorm(x + last.mlp(last.layer_norm2(x)))[:, 1:]
    return _grid(network.visual_projection(x), images)


def _siglip_map(vision: Any, images: Tensor) -> Tensor:
    """The pooling head's value path for every patch, as if it alone were attended to."""
    head = vision.head
    x = vision(pixel_values=images).last_hidden_state
    width = x.shape[-1]
    values = functional.linear(x, head.attention.in_proj_weight[2 * width :], head.attention.in_proj_bias[2 * width :])
    x = head.attention.out_proj(values)
    return _grid(x + head.mlp(head.layernorm(x)), images)


def _timm_map(tower: Any, images: Tensor) -> Tensor:
    """SigLIP in open_clip's timm towers; as `_siglip_map`."""
    pool = tower.trunk.attn_pool
    x = tower.trunk.forward_features(images)
    width = x.shape[-1]
    values = functional.linear(x, pool.kv.weight[width:], None if pool.kv.bias is None else pool.kv.bias[width:])
    x = pool.proj(values)
    return _grid(tower.head(tower.trunk.head(x + pool.mlp(pool.norm(x)))), images)
