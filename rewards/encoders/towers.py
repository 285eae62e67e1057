"""An open_clip model with its gradients, for training; `rewards.encoders` runs what this saves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor

from rewards.encoders.loading import import_open_clip, load_open_clip, open_clip_source
from rewards.encoders.preprocess import open_clip_preprocess

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


class Towers:
    """Image and text towers to train, with the preprocessing and tokenizer that belong to them.

    Args:
        model: a model as `rewards.encoders.OpenCLIPEncoder` takes it.
        weights: False starts from seeded random weights instead of the model's own.
        device: "auto" (CUDA if there is one), or a torch device.
        frozen: how the names of weights begin that stay as they are.

    Attributes:
        image_size: (H, W) at which frames need no resizing.
    """

    def __init__(self, model: str, *, weights: bool = True, device: str = "auto", frozen: Sequence[str] = ()) -> None:
        open_clip = import_open_clip()
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.model: Any = load_open_clip(model, None if weights else "random")
        self.model.to(self.device).requires_grad_(True)
        for name, value in self.model.named_parameters():
            value.requires_grad_(not name.startswith(tuple(frozen)))
        name = open_clip_source(model)
        self._model_config: dict[str, Any] = open_clip.get_model_config(name)
        self._tokenizer = open_clip.get_tokenizer(name)
        self._preprocess = open_clip_preprocess(self.model.visual)
        self.image_size = self._preprocess.resize

    def preprocess(self, frames: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 h w"]:
        """Raw frames to what the image tower reads."""
        return self._preprocess(frames, self.device, torch.float32)

    def shrink(self, frames: UInt8[Tensor, "B H W 3"]) -> UInt8[Tensor, "B h w 3"]:
        """What the image tower sees of raw frames, as pictures; `preprocess` makes the same of both."""
        return self._preprocess.shrink(frames)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(M, L) int64; longer texts are cut at the context."""
        return self._tokenizer(list(texts))

    def save(self, folder: Path) -> None:
        """Write an open_clip `local-dir` in half precision: config, safetensors, and the tokenizer if it has files."""
        folder.mkdir(parents=True, exist_ok=True)
        preprocess: dict[str, Any] = dict(self.model.visual.preprocess_cfg)
        config = {"model_cfg": self._model_config, "preprocess_cfg": preprocess}
        if getattr(self.model, "logit_bias", None) is not None:
            config["model_cfg"].setdefault("init_logit_bias", 0.0)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        if hasattr(self._tokenizer, "tokenizer"):
            self._tokenizer.tokenizer.save_pretrained(folder)
        half = {
            name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
            for name, value in self.model.state_dict().items()
        }
        part = folder / f"{WEIGHTS}.part"
        save_file(half, part)
        part.replace(folder / WEIGHTS)
