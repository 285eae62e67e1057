"""Classes of pretrained backbones: how each is asked, how its tower reads pictures, and where its tokens stand.

    SmolVLM2 and Idefics3 · Qwen2.5-VL · Qwen3-VL · PaliGemma 1 and 2

Shape letters: N images, s side of a picture, P tokens of one, D width of tokens; L tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

Looked = tuple[Tensor, list[Tensor]]  # (N, P, D) tokens, and (N, P, D) of each layer that is shown pictures again


@dataclass(frozen=True)
class Family:
    """What one class of backbone needs.

    Attributes:
        before: text before the first picture.
        opening, closing: around each picture.
        asked: the request, {} being what is to be done.
        causal: whether a token of what is given sees those before it alone, as in its pretraining.
        first: the first token's position.
        text, blocks: dotted names of its language model, and of its tower's blocks.
        attention: name of a block's attention.
        look: (network, (N, 3, s, s)) -> tokens.
        step: (config) -> what the side of a picture is a multiple of.
        grid: (config, s) -> side of the P tokens' square, where they have places in two dimensions; None: in one.
    """

    before: str
    opening: str
    closing: str
    asked: str
    causal: bool
    first: int
    text: str
    blocks: str
    attention: str
    look: Callable[[Any, Tensor], Looked]
    step: Callable[[Any], int]
    grid: Callable[[Any, int], int] | None = None


QUESTION = "What action should the robot take to {}?"  # OpenVLA's


def _look_smolvlm(network: Any, pictures: Float[Tensor, "N 3 s s"]) -> Looked:
    return network.connector(network.vision_model(pixel_values=pictures).last_hidden_state), []


def _look_paligemma(network: Any, pictures: Float[Tensor, "N 3 s s"]) -> Looked:
    return network.multi_modal_projector(network.vision_tower(pictures).last_hidden_state), []


def _look_qwen(network: Any, pictures: Float[Tensor, "N 3 s s"]) -> Looked:
    vision = network.config.vision_config
    side, count = pictures.shape[-1] // vision.patch_size, len(pictures)
    grid = torch.tensor([[1, side, side]], device=pictures.device).expand(count, 3)
    found = network.visual(patches(pictures, vision), grid_thw=grid)
    again = getattr(found, "deepstack_features", None) or []
    return found.pooler_output.view(count, -1, found.pooler_output.shape[-1]), [
        each.view(count, -1, each.shape[-1]) for each in again
    ]


def patches(pictures: Float[Tensor, "N 3 s s"], vision: Any) -> Float[Tensor, "n d"]:
    """Pictures cut as Qwen's processor cuts them: patches that are merged later lie together, still times repeated.

    Args:
        pictures: squares.
        vision: the vision tower's config.
    """
    size, merge, times = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    count, channels, side = len(pictures), pictures.shape[1], pictures.shape[-1] // size
    cut = pictures.view(count, channels, side // merge, merge, size, side // merge, merge, size)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # rows, columns, two in each, channels, time, pixels
    return cut.expand(-1, -1, -1, -1, -1, -1, times, -1, -1).reshape(count * side * side, -1)


def _qwen_step(config: Any) -> int:
    return config.vision_config.patch_size * config.vision_config.spatial_merge_size


_QWEN: dict[str, Any] = {
    "before": "<|im_start|>user\n", "opening": "<|vision_start|>", "closing": "<|vision_end|>",
    "asked": QUESTION + "<|im_end|>\n<|im_start|>assistant\n", "causal": True, "first": 0, "text": "language_model",
    "blocks": "visual.blocks", "attention": "attn", "look": _look_qwen, "step": _qwen_step,
    "grid": lambda config, size: size // _qwen_step(config),
}  # fmt: skip
_SMOLVLM = Family(
    before="<|im_start|>User:", opening="<fake_token_around_image><global-img>", closing="<fake_token_around_image>",
    asked=QUESTION + "<end_of_utterance>\nAssistant:", causal=True, first=0, text="text_model",
    blocks="vision_model.encoder.layers", attention="self_attn", look=_look_smolvlm,
    step=lambda config: config.vision_config.patch_size * config.scale_factor,
)  # fmt: skip
_PALIGEMMA = Family(
    before="", opening="", closing="", asked="<bos>" + QUESTION + "\n", causal=False, first=1, text="language_model",
    blocks="vision_tower.encoder.layers", attention="self_attn", look=_look_paligemma,
    step=lambda config: config.vision_config.image_size,  # its places are learned at one size
)  # fmt: skip
FAMILIES: Mapping[str, Family] = {  # a config's model_type -> its family
    "smolvlm": _SMOLVLM,
    "idefics3": _SMOLVLM,
    "qwen2_5_vl": Family(**_QWEN),
    "qwen3_vl": Family(**_QWEN),
    "paligemma": _PALIGEMMA,
}


def natural_size(config: Any) -> int:
    """The side of pictures that a backbone was trained on; 224 where it takes any.

    Args:
        config: the backbone's.
    """
    step = FAMILIES[config.model_type].step(config)
    size = getattr(config.vision_config, "image_size", None) or 224
    return max(int(size) // step * step, step)


def places(family: Family, config: Any, runs: Sequence[tuple[bool, int]], size: int) -> Int64[Tensor, "3 L"]:
    """Positions in time, height and width of the tokens of a sequence, which for most families are one number.

    Args:
        family: of the backbone.
        config: of it.
        runs: whether a picture, and how many tokens, one run after another.
        size: side of a picture.
    """
    at, found = family.first, [torch.zeros(3, 0, dtype=torch.long)]
    for picture, count in runs:
        if picture and family.grid is not None:  # a square, which takes no more room than its side
            side = family.grid(config, size)
            row, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
            found.append(at + torch.stack([torch.zeros_like(row), row, column]))
            at += side
        else:
            found.append(at + torch.arange(count).expand(3, count))
            at += count
    return torch.cat(found, 1)


def part(network: nn.Module, dotted: str) -> Any:
    """A part of a network by its dotted name; `vision_model` in between is passed, where a version has it."""
    for name in dotted.split("."):
        inner = getattr(network, "vision_model", None)
        network = getattr(network, name) if hasattr(network, name) or inner is None else getattr(inner, name)
    return network
