"""ReWiND: a small transformer over one vector a frame and one of the text, with heads for progress and success.

    [text, frame 1, token 1, frame 2, token 2, …]  ->  progress and success at each token (or each frame)

Frames are vectors of DINOv2, texts of a MiniLM. Weights in Robometer's layout (`config.yaml`, safetensors). Shape
letters: N frames, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from rewards.chat.local import put_model
from rewards.encoders.foreign_weights import (
    fetched,
    from_logits,
    mapping,
    prediction_head,
    read_configs,
    read_tensors,
    whole_number,
)
from rewards.encoders.frozen import _device
from rewards.encoders.loading import explain_missing, import_transformers

IMAGES, TEXTS = "facebook/dinov2-base", "sentence-transformers/all-MiniLM-L12-v2"


class RewindNetwork(nn.Module):
    """The transformer, its parameters named as in the checkpoint.

    Args:
        tensors: the checkpoint's weights.
        config: its `rewind` settings.
        folder: for errors.

    Raises:
        ValueError: weights that are missing or of another shape, or settings that do not fit them.
    """

    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
        super().__init__()
        width = whole_number(config, "hidden_dim", 1, folder, default=512)
        layers = whole_number(config, "num_layers", 1, folder, default=4)
        heads = whole_number(config, "num_attention_heads", 1, folder, default=8)
        self.frames = whole_number(config, "max_len", 2, folder, default=16)
        self.causal = bool(config.get("causal_mask", False))
        self.with_tokens = bool(config.get("use_per_frame_progress_token", False))
        if width % heads:
            raise ValueError(
                f"weights: hidden_dim in {folder} must divide by num_attention_heads; got {width}, {heads}."
            )
        self.video_proj = nn.Linear(_columns(tensors, "video_proj.weight", folder), width)
        self.text_proj = nn.Linear(_columns(tensors, "text_proj.weight", folder), width)
        self.first_embedding_A = nn.Parameter(torch.zeros(1, 1, width))
        if self.with_tokens:
            self.text_position_embedding = nn.Parameter(torch.zeros(1, 1, width))
            self.prog_token_A = nn.Parameter(torch.zeros(1, self.frames, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        wanted = self.state_dict()
        wrong = [name for name, value in wanted.items() if name not in tensors or tensors[name].shape != value.shape]
        if wrong:
            raise ValueError(
                f"weights: {folder} must hold every weight of ReWiND; {len(wrong)} are missing or of another shape, "
                f"the first {wrong[0]}."
            )
        self.load_state_dict({name: tensors[name].float() for name in wanted})
        self.progress_head, _ = prediction_head(tensors, "progress", str(folder))
        self.success_head, _ = prediction_head(tensors, "success", str(folder))
        self.float()

    def forward(self, video: Float[Tensor, "N V"], text: Float[Tensor, " W"]) -> tuple[Tensor, Tensor]:
        """Progress and success at each frame, each (N,) in [0, 1]."""
        frames = self.video_proj(video)
        frames = torch.cat([frames[:1] + self.first_embedding_A[0], frames[1:]])
        told = self.text_proj(text)[None]
        if self.with_tokens:
            tokens = self.prog_token_A[0, : len(frames)]
            sequence = torch.cat(
                [told + self.text_position_embedding[0], torch.stack([frames, tokens], 1).flatten(0, 1)]
            )
        else:
            sequence = torch.cat([told, frames])
        mask = nn.Transformer.generate_square_subsequent_mask(len(sequence)).isinf() if self.causal else None
        states = self.transformer(sequence[None], mask=None if mask is None else mask.to(sequence.device))[0, 1:]
        states = states[1::2] if self.with_tokens else states
        return from_logits(self.progress_head(states)), self.success_head(states)[:, 0].sigmoid()


class Rewind:
    """The network with the encoders of its frames and texts; asked as `VLMWithHeads` is.

    Args:
        weights: a folder, or a hub id.
        images, texts: the encoders, folders or hub ids; tensors of theirs in the checkpoint take their place.
        device: see `LocalChat`. Runs in float32.

    Raises:
        FileNotFoundError: weights or encoders that are neither here nor to be downloaded; says what to put where.
        ValueError: a checkpoint of another form, or damaged.
    Source: arXiv 2505.10911; robometer/robometer c7f38e2, robometer/models/rewind_transformer.py. Texts' vectors have
        unit length, as in that repository's training data; its model leaves them as they are when given words.
    """

    kind = "rewind"

    def __init__(self, weights: str, *, images: str = IMAGES, texts: str = TEXTS, device: str = "auto") -> None:
        self.name, self.device = weights, _device(device, "Rewind")
        transformers = import_transformers()
        folder = fetched(weights)
        config, said = read_configs(folder)
        model = mapping(said.get("model"))
        settings = {**config, **mapping(config.get("rewind")), **mapping(model.get("rewind"))}
        tensors = read_tensors(folder)
        self._network = RewindNetwork(tensors, settings, folder).to(self.device).eval().requires_grad_(False)
        trained = whole_number({**config, **mapping(said.get("data"))}, "max_frames", 2, folder, default=8)
        self.frames = min(trained, self._network.frames)
        self._encoders: dict[str, Any] = {}
        sources = {"images": images, "texts": texts}
        put = {name: put_model(source).replace("model=", f"{name}=") for name, source in sources.items()}
        for part, source, name in (("image_encoder", images, "images"), ("text_encoder", texts, "texts")):
            with explain_missing("Rewind: encoder", source, put[name]):
                encoder = transformers.AutoModel.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
            own = {n.removeprefix(f"{part}."): v.float() for n, v in tensors.items() if n.startswith(f"{part}.")}
            encoder.load_state_dict(own, strict=bool(own))
            self._encoders[part] = encoder.to(self.device).eval().requires_grad_(False)
        with explain_missing("Rewind: the image processor of", images, put["images"]):
            self._processor = transformers.AutoImageProcessor.from_pretrained(images, trust_remote_code=False)
        with explain_missing("Rewind: the tokenizer of", texts, put["texts"]):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(texts, trust_remote_code=False)

    @torch.inference_mode()
    def judge(self, frames: Sequence[np.ndarray], task: str) -> dict[str, Float[Tensor, " N"]]:
        """Progress and success at each frame of a window, each in [0, 1], float32 on the CPU."""
        pictures = [Image.fromarray(frame) for frame in frames]
        pixels = self._processor(images=pictures, return_tensors="pt")["pixel_values"].to(self.device)
        video = self._encoders["image_encoder"](pixel_values=pixels).pooler_output
        words = self._tokenizer(task, truncation=True, return_tensors="pt").to(self.device)
        hidden = self._encoders["text_encoder"](**words)[0][0]
        text = nn.functional.normalize(hidden.mean(0), dim=0)
        progress, success = self._network(video, text)
        return {"progress": progress.clamp(0, 1).cpu(), "success": success.cpu()}

    def judge_windows(self, windows: Sequence[Sequence[np.ndarray]], task: str) -> list[dict[str, Float[Tensor, " N"]]]:
        """As `judge`, one window after another."""
        return [self.judge(frames, task) for frames in windows]


def _columns(tensors: Mapping[str, Tensor], name: str, folder: Path) -> int:
    if name not in tensors or tensors[name].ndim != 2:
        raise ValueError(f"weights: {folder} must hold {name}, a matrix; it does not.")
    return tensors[name].shape[1]
