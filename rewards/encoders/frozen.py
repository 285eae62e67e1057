"""What every encoder does alike, whichever library its towers come from: batches, precision, checks, caching.

Shape letters: B batch, D feature width, M texts; H, W image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from rewards.core import check_frames
from rewards.encoders import int8
from rewards.encoders.maps import Towers
from rewards.encoders.preprocess import RESIZE_MODES, Preprocess
from rewards.storage import SAME

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_TEXTS = 4096  # whose vectors are kept: whoever sends new ones for ever takes no more memory than that
BATCH_NORM_PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1"))


class FrozenEncoder(ABC):
    """Batching, checks and caching; a subclass gives the towers.

    Attributes:
        name: the model as the user wrote it.
        dim: D.
        image_size: (H, W) at which frames need no resizing.
        precision: what runs, "fp32", "bf16", "fp16" or "int8".

    Args:
        device: "auto" (CUDA if there is one), or a torch device.
        batch_size: frames in one forward pass, ≥ 1.

    Raises:
        ValueError: an unknown precision, a batch of less than 1, or int8 on another device than the CPU.
    """

    name: str
    dim: int
    precision: str
    context_length: int
    _preprocess: Preprocess
    _image_tower: Callable[[Tensor], Tensor]
    _maps: Towers
    _rest: Towers  # layer -> its maps to the tower's vectors, where a tower has stages

    def __init__(self, name: str, precision: str, device: str, batch_size: int) -> None:
        where = type(self).__name__
        if precision not in ("auto", *PRECISIONS, "int8"):
            raise ValueError(f"{where}: precision must be auto, {', '.join(PRECISIONS)}, int8; got {precision!r}.")
        if batch_size < 1:
            raise ValueError(f"{where}: batch_size must be ≥ 1; got {batch_size}.")
        self.name = name
        self.device = _device(device, where)
        self.precision = fast_precision(self.device) if precision == "auto" else precision
        if precision == "int8" and self.device.type != "cpu":
            raise ValueError(f"{where}: device must be cpu for precision=int8; got {self.device}. Use precision=auto.")
        self._dtype = PRECISIONS.get(self.precision, torch.float32)  # of what a tower reads
        self.batch_size = batch_size
        self._compiled = False
        self._texts: dict[str, Tensor] = {}

    @property
    def image_size(self) -> tuple[int, int]:
        return self._preprocess.resize

    def encode_images(self, frames: Tensor) -> Float[Tensor, "B D"]:
        """Unit vectors of frames.

        Args:
            frames: (B, H, W, 3) uint8 RGB, any size: they are resized and cropped as the model's own transform does.
        Returns:
            (B, D) float32 on the device of `frames`, unit length.
        Raises:
            TypeError, ValueError: frames of another kind or shape.
        """
        check_frames(frames, f"{type(self).__name__}.encode_images")
        parts = [self._encode_batch(batch) for batch in frames.split(self.batch_size)] if len(frames) else []
        return torch.cat([torch.empty(0, self.dim, device=self.device), *parts]).to(frames.device)

    def encode_maps(self, frames: Tensor, layer: str | None = None) -> Float[Tensor, "B C h w"]:
        """What the tower sees where, before it pools.

        Args:
            frames: see `encode_images`.
            layer: one of `map_layers`; None: the first.
        Returns:
            (B, C, h, w) half precision, on the device of `frames`.
        Raises:
            TypeError, ValueError: frames of another kind or shape; no such layer, or a tower without maps.
        """
        layer = self._layer(frames, layer, f"{type(self).__name__}.encode_maps")
        parts = [self._map_batch(batch, layer) for batch in frames.split(self.batch_size)]
        return torch.cat(parts).to(frames.device)

    def encode_both(
        self, frames: Tensor, layer: str | None = None
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B C h w"]]:
        """`encode_images` and `encode_maps` of the same frames, of one pass through the tower where it has stages.

        Args:
            frames, layer: see `encode_maps`; at least one frame.
        Returns:
            What they return, up to rounding.
        Raises:
            TypeError, ValueError: as `encode_maps`.
        """
        layer = self._layer(frames, layer, f"{type(self).__name__}.encode_both")
        if layer not in self._rest or self._compiled:
            return self.encode_images(frames), self.encode_maps(frames, layer)
        parts = [self._both_batch(batch, layer) for batch in frames.split(self.batch_size)]
        vectors, maps = (torch.cat(each).to(frames.device) for each in zip(*parts, strict=True))
        return vectors, maps

    def _layer(self, frames: Tensor, layer: str | None, where: str) -> str:
        """The name of a layer that gives maps, of frames that can be encoded."""
        check_frames(frames, where)
        if not self.map_layers:
            raise ValueError(f"{where}: {self.name} must have maps; it gives one vector an image. Use another encoder.")
        layer = self.map_layers[0] if layer is None else layer
        if layer not in self.map_layers:
            raise ValueError(f"{where}: layer must be one of {', '.join(self.map_layers)}; got {layer!r}.")
        if not len(frames):
            raise ValueError(f"{where}: frames must hold at least one; got none.")
        return layer

    @property
    def map_layers(self) -> tuple[str, ...]:
        """What `encode_maps` can give, the usual one first; () where the tower has no maps."""
        return tuple(self._maps)

    @torch.no_grad()
    def _map_batch(self, frames: Tensor, layer: str) -> Tensor:
        return self._maps[layer](self._preprocess(frames, self.device, self._dtype)).half()

    @torch.no_grad()
    def _both_batch(self, frames: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        maps = self._maps[layer](self._preprocess(frames, self.device, self._dtype))
        return nn.functional.normalize(self._rest[layer](maps).float(), dim=-1), maps.half()

    @torch.no_grad()
    def _encode_batch(self, frames: Tensor) -> Tensor:
        count = len(frames)
        if self._compiled and count < self.batch_size:  # a compiled tower keeps one shape
            frames = torch.cat([frames, frames[-1:].expand(self.batch_size - count, -1, -1, -1)])
        images = self._preprocess(frames, self.device, self._dtype)
        return nn.functional.normalize(self._image_tower(images)[:count].float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "M D"]:
        """Unit vectors of texts, (M, D) float32 on the CPU, each text embedded once (of the last `MAX_TEXTS`).

        Raises:
            ValueError: an empty text, or one longer than the model's context (nothing is cut silently).
        """
        where = f"{type(self).__name__}.encode_texts"
        for text in texts:
            if not text.strip():
                raise ValueError(f"{where}: every text must say something; got {text!r}.")
            if text not in self._texts and (length := self._count_tokens(text)) > self.context_length:
                raise ValueError(
                    f"{where}: a text must be at most {self.context_length} tokens, the context of {self.name}; "
                    f"got {length} for {text[:60]!r}… Shorten it, or give several texts."
                )
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            vectors = nn.functional.normalize(self._embed_texts(new).float(), dim=-1).cpu()
            self._texts.update(zip(new, vectors, strict=True))
        wanted = torch.stack([self._texts[text] for text in texts])
        for text in list(self._texts)[:-MAX_TEXTS]:
            del self._texts[text]
        return wanted

    def _set_preprocess(self, own: Preprocess, resize: str | None) -> None:
        """Take the model's own transform, or another way of resizing, which then is part of the encoder's name.

        Raises:
            ValueError: an unknown way.
        """
        if resize not in (None, *RESIZE_MODES):
            raise ValueError(f"{type(self).__name__}: resize must be null, {', '.join(RESIZE_MODES)}; got {resize!r}.")
        self._preprocess = own
        if resize is not None and resize != own.mode:
            self._preprocess = replace(own, mode=resize, resize=own.crop)
            self.name = f"{self.name} ({resize})"  # heads that were fitted to other features are refused by it

    def _use_image_tower(self, tower: nn.Module, parts: Sequence[nn.Module], compile: bool) -> None:
        """Take `tower` as images -> features, after making `parts` of it fast; batch norms fold before the cast."""
        tower.eval().requires_grad_(False)
        for part in parts:
            _fold_batch_norms(part)
            part.to(self._dtype)
        tower.to(self.device)
        tower.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._image_tower = tower
        if self.precision == "int8":
            self._quantize(parts)
        self._image_tower = torch.compile(tower, dynamic=False) if compile else tower
        self._compiled = compile

    def _quantize(self, parts: Sequence[nn.Module]) -> None:
        """Turn parts of the tower to int8, and see that it sees what it saw.

        Raises:
            ValueError: it does not, or most of it cannot be turned.
        """
        where = f"{type(self).__name__}: precision"
        pictures = _pictures(*self._preprocess.crop)
        exact = self._encode_batch(pictures)
        for part in parts:
            int8.quantize(part)
        held = int8.share(nn.ModuleList(parts))
        if held < 0.5:
            raise ValueError(
                f"{where} must be other than int8 for {self.name}, whose weights are not mostly linear layers "
                f"({held:.0%}). Use precision=auto."
            )
        if (cosine := float((self._encode_batch(pictures) * exact).sum(-1).min())) < SAME:
            raise ValueError(
                f"{where} must be other than int8 for {self.name}: it no longer sees the same (cosine {cosine:.3f} "
                f"with float32, less than {SAME}). Use precision=auto."
            )

    @abstractmethod
    def _count_tokens(self, text: str) -> int:
        """How many tokens a text is, its start and end included."""

    @abstractmethod
    def _embed_texts(self, texts: list[str]) -> Tensor:
        """(M, D): vectors of texts that are short enough, of any length."""


def _pictures(height: int, width: int) -> UInt8[Tensor, "B H W 3"]:
    """Pictures of soft patches, coarse and fine, the same each time."""
    random = torch.Generator().manual_seed(0)
    patches = [torch.rand(2, 3, side, side, generator=random) for side in (3, 7, 15)]
    images = torch.cat([nn.functional.interpolate(each, (height, width), mode="bilinear") for each in patches])
    return (255 * images).to(torch.uint8).permute(0, 2, 3, 1)


def _device(name: str, where: str) -> torch.device:
    cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{where}: device must be auto, cpu, cuda or cuda:N; got {name!r}.") from error
    if device.type == "cuda" and not cuda:
        raise ValueError(f"{where}: device must be one this machine has; got {name!r}, and torch finds no CUDA here.")
    return device


def fast_precision(device: torch.device) -> str:
    """bf16 where it is faster than float32, by what the hardware is and not by a clock: the same on every start.

    Args:
        device: where the network runs.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        has = getattr(torch.cpu, "get_capabilities", dict)()  # torch of before 2.11 cannot tell
        # AVX512_BF16 alone is no reason: an Intel Xeon whose AMX was off took 1.7 times as long with it as in float32
        # (ViT-B-32; the embedded encoder 1.2 times). AMD's units, which SSE4a tells, are twice as wide for it.
        fast = has.get("amx_bf16", False) or (has.get("avx512_bf16", False) and has.get("sse4a", False))
    else:
        fast = False
    return "bf16" if fast else "fp32"


def _fold_batch_norms(tower: nn.Module) -> None:
    """Fold each batch norm of an open_clip ResNet into its convolution: the same numbers, fewer passes."""
    for module in list(tower.modules()):
        for conv, norm in BATCH_NORM_PAIRS:
            if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                fused = nn.utils.fusion.fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                setattr(module, conv, fused)
                setattr(module, norm, nn.Identity())
