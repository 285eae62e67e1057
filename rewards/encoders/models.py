"""Frozen image and text towers: any open_clip or transformers model, and the embedded encoder.

Shape letters: B batch, D feature width, M texts; H, W image.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewards.encoders.difference import add_difference
from rewards.encoders.frozen import FrozenEncoder
from rewards.encoders.loading import (
    explain_missing,
    import_open_clip,
    import_transformers,
    load_open_clip,
    open_clip_source,
    put_folder,
)  # fmt: skip
from rewards.encoders.maps import open_clip_maps, open_clip_rest, transformers_maps
from rewards.encoders.preprocess import open_clip_preprocess, transformers_preprocess
from rewards.phrases import denies


class OpenCLIPEncoder(FrozenEncoder):
    """Any open_clip model.

    Args:
        model: `ViT-B-32:laion2b_s34b_b79k` (architecture:weights), `local-dir:FOLDER` (open_clip_config.json beside
            the weights) or `hf-hub:OWNER/NAME`.
        pretrained: weights tag or file, when `model` is an architecture alone; "random" for seeded random weights
            (speed measurements and tests).
        precision: "auto" (bf16 weights and inputs where that is faster, else fp32), "fp32", "bf16",
            "fp16", or "int8" (the image tower's linear layers, on the CPU; see `rewards.encoders.int8`). Unit vectors
            come out in float32 always.
        device: "auto" (CUDA if there is one), or a torch device.
        batch_size: frames per forward pass.
        compile: whether to `torch.compile` the image tower (slow first call; batches are padded to one shape).
        resize: how a frame that is not square is brought to the model's size, in place of the model's own way: "squash"
            (the ratio is lost; VLM-RM's), "shortest" (the ends are cut off) or "longest" (the rest is filled).
        difference: what to add to the weights; see `rewards.encoders.difference`.
        denials: the same, of a second text tower, which reads texts that may deny something (`rewards.phrases.denies`).

    Raises:
        ValueError: an unknown architecture or weights tag, names the nearest; weights that int8 would change; a folder
            or repository that wants code of its own to be run, which is never done.
        FileNotFoundError: weights that are neither here nor to be downloaded; says what to put where.
    """

    def __init__(
        self,
        model: str,
        *,
        pretrained: str | None = None,
        precision: str = "auto",
        device: str = "auto",
        batch_size: int = 64,
        compile: bool = False,
        resize: str | None = None,
        difference: Path | None = None,
        denials: Path | None = None,
    ) -> None:
        super().__init__(model, precision, device, batch_size)
        where = type(self).__name__
        open_clip = import_open_clip()
        towers, source = load_open_clip(model, pretrained), open_clip_source(model)
        if difference is not None:
            add_difference(towers, difference)
        with explain_missing(f"{where}: the tokenizer of", model, put_folder(source.partition(":")[2] or source)):
            self._tokenizer = open_clip.get_tokenizer(source)
        self.context_length = self._tokenizer.context_length
        self.dim = open_clip.get_model_config(source)["embed_dim"]
        self._set_preprocess(open_clip_preprocess(towers.visual), resize)
        self._maps, self._rest = open_clip_maps(towers.visual), open_clip_rest(towers.visual)
        self._use_image_tower(towers.visual, [towers.visual], compile)
        towers.visual = None  # what is left embeds texts, in float32
        self._text_model = towers.eval().requires_grad_(False).to(self.device)
        self._denial_model = None
        if denials is not None:
            self._denial_model = copy.deepcopy(self._text_model)
            add_difference(self._denial_model, denials)

    @property
    def reads_denials(self) -> bool:
        """Whether a text tower of its own reads texts that may deny something."""
        return self._denial_model is not None

    def _count_tokens(self, text: str) -> int:
        if hasattr(self._tokenizer, "tokenizer"):  # a transformers tokenizer
            text = self._tokenizer.clean_fn(text)
            extra = 3 if self._tokenizer.tokenizer_mode == "clips" else 0
            return len(self._tokenizer.tokenizer(text, add_special_tokens=not extra).input_ids) + extra
        return len(self._tokenizer.encode(text)) + 2

    def _embed_texts(self, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(texts).to(self.device)
        vectors = self._text_model.encode_text(tokens)
        denying = [i for i, text in enumerate(texts) if denies(text)]
        if self._denial_model is not None and denying:
            vectors[denying] = self._denial_model.encode_text(tokens[denying])
        return vectors


class TransformersEncoder(FrozenEncoder):
    """Any transformers CLIP or SigLIP (1 and 2, fixed size), and image-only towers such as DINOv2 and DINOv3.

    Args:
        model: hub id (`google/siglip2-base-patch16-224`) or a local folder as `save_pretrained` writes it.
        precision, device, batch_size, compile, resize: see `OpenCLIPEncoder`.

    Raises:
        ValueError: a model whose processor or towers do not give one vector per fixed-size image; a folder or
            repository that wants code of its own to be run, which is never done; a package that is missing.
        FileNotFoundError: weights that are neither here nor to be downloaded; says what to put where.
    SigLIP's texts are lower-cased, as those it was trained on: SigLIP 2's published tokenizer leaves that to its user.
    Departs: an image-only tower gives its pooled output; `encode_texts` then raises.
    """

    def __init__(
        self,
        model: str,
        *,
        precision: str = "auto",
        device: str = "auto",
        batch_size: int = 64,
        compile: bool = False,
        resize: str | None = None,
    ) -> None:
        super().__init__(model, precision, device, batch_size)
        where = type(self).__name__
        transformers = import_transformers()
        with explain_missing(
            f"{where}: model",
            model,
            f"Run `hf download {model} --local-dir FOLDER` where there is a "
            "network, copy FOLDER here, and give model=FOLDER.",
        ):
            network = transformers.AutoModel.from_pretrained(model, dtype=torch.float32, trust_remote_code=False)
            processor = transformers.AutoImageProcessor.from_pretrained(model, trust_remote_code=False)
            self._tokenizer = None
            if hasattr(network, "get_text_features"):
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        if network.config.model_type == "siglip2":
            raise ValueError(
                f"{where}: model must take images of one size; got {model!r}, a NaFlex model. "
                "Use a fixed-size one, such as google/siglip2-base-patch16-224."
            )
        self._set_preprocess(transformers_preprocess(processor, f"{where}: model {model!r}"), resize)
        self._network = network
        self._lower = "siglip" in network.config.model_type
        if self._tokenizer is not None:
            self.context_length = network.config.text_config.max_position_embeddings
        parts = [child for name, child in network.named_children() if "text" not in name]  # texts stay in float32
        self._maps, self._rest = transformers_maps(network), {}
        self._use_image_tower(_Pooled(network), parts, compile)
        black = torch.zeros(1, *self._preprocess.crop, 3, dtype=torch.uint8)
        self.dim = self._encode_batch(black).shape[-1]

    def _count_tokens(self, text: str) -> int:
        if self._tokenizer is None:
            raise ValueError(
                f"{type(self).__name__}.encode_texts: model must have a text tower; got {self.name!r}, which only "
                "reads images. Use a CLIP or SigLIP model for text goals."
            )
        return len(self._tokenizer(self._cased(text)).input_ids)

    def _cased(self, text: str) -> str:
        return text.lower() if self._lower else text

    def _embed_texts(self, texts: list[str]) -> Tensor:
        assert self._tokenizer is not None  # _count_tokens raised
        texts = [self._cased(text) for text in texts]
        tokens = self._tokenizer(texts, padding="max_length", max_length=self.context_length, return_tensors="pt")
        if "siglip" in self._network.config.model_type:  # trained with padding unmasked
            tokens.pop("attention_mask", None)
        return _pooled(self._network.get_text_features(**tokens.to(self.device)))


class _Pooled(nn.Module):
    """A transformers model as images -> one vector each."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self._features = getattr(network, "get_image_features", network)

    def forward(self, images: Tensor) -> Tensor:
        return _pooled(self._features(pixel_values=images))


def _pooled(output: Any) -> Tensor:
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state[:, 0] if pooled is None else pooled


# What the embedded encoder knows -> its name, what is added to the weights, and to those that read denials.
EMBEDDED: dict[str, tuple[str, str | None, str | None]] = {
    "desk": ("embedded", None, "denials.safetensors"),
    "town": ("embedded-town", "town.safetensors", None),
}


def embedded_encoder(*, knows: str = "desk", **options: Any) -> OpenCLIPEncoder:
    """The small encoder that ships with the package, trained on renders of its own worlds.

    Args:
        knows: "desk" (the desk, the reacher, the cart-pole, and of the humanoid how it stands, kneels and lies) or
            "town" (the town and all of the humanoid's poses): two sets of weights, most of which are the same.
        options: `precision`, `device`, `batch_size`, `compile`, `resize` of `OpenCLIPEncoder`.

    Raises:
        ValueError: knows is neither.
        FileNotFoundError: this copy of the package lacks it.
    """
    if knows not in EMBEDDED:
        raise ValueError(f"embedded_encoder: knows must be one of {', '.join(EMBEDDED)}; got {knows!r}.")
    name, difference, denials = EMBEDDED[knows]
    root = Path(__file__).resolve().parents[2]
    folders = [root / "sim_assets" / "encoder", root / "embodied" / "sim_assets" / "encoder"]  # checkout, wheel
    wanted = [each for each in ("open_clip_config.json", difference, denials) if each is not None]
    for folder in folders:
        if all((folder / each).is_file() for each in wanted):
            added = [None if file is None else folder / file for file in (difference, denials)]
            encoder = OpenCLIPEncoder(f"local-dir:{folder}", difference=added[0], denials=added[1], **options)
            encoder.name = encoder.name.replace(f"local-dir:{folder}", name)
            return encoder
    raise FileNotFoundError(
        f"embedded_encoder: {folders[0]} must hold {', '.join(wanted)} and weights; it does not. "
        "Reinstall the package, or train one: embodied pretrain"
    )
