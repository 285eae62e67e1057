"""Where things are in a frame: the maps that image towers make before they pool them into one vector.

A pooled vector says what is there; control needs where. Nothing here imports a model library: towers are taken by
what they have. Shape letters: B batch, C channels; H, W image; h, w map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

Towers = Mapping[str, Callable[[Tensor], Tensor]]  # layer -> images (B, 3, H, W) to maps (B, C, h, w)
STAGES = ("layer1", "layer2", "layer3", "layer4")
RESNET, VIT = "layer2", "patches"  # the usual layers


def open_clip_maps(visual: Any) -> Towers:
    """The maps of an open_clip image tower, the usual layer first; none where it has no such parts.

    A ResNet's stages are its layers (`layer2` first: 1/8 of the image's side, before places blur). A transformer has
    `patches`, those of its last block but one, as OpenVLA-OFT takes them.

    Args:
        visual: open_clip's image tower.
    """
    if all(hasattr(visual, name) for name in ("stem", *STAGES)):
        return {name: _stages(visual, name) for name in (RESNET, *(s for s in STAGES if s != RESNET))}
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is not None and hasattr(visual, "forward_intermediates"):
        index = max(len(blocks) - 2, 0)

        def patches(images: Tensor) -> Tensor:
            options = {"indices": [index], "stop_early": True, "output_fmt": "NCHW", "intermediates_only": True}
            return visual.forward_intermediates(images, **options)["image_intermediates"][0]

        return {VIT: patches}
    return {}


def _stages(visual: Any, last: str) -> Callable[[Tensor], Tensor]:
    return _in_turn([visual.stem, *(getattr(visual, name) for name in STAGES[: STAGES.index(last) + 1])])


def _in_turn(parts: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        for part in parts:
            x = part(x)
        return x

    return run


def open_clip_rest(visual: Any) -> Towers:
    """What turns a map of `open_clip_maps` into the vector that the tower makes of the same images; none where unknown.

    Args:
        visual: open_clip's image tower.
    """
    if not all(hasattr(visual, name) for name in ("stem", *STAGES, "attnpool")):
        return {}
    stages = [getattr(visual, name) for name in STAGES]
    return {name: _in_turn([*stages[i:], visual.attnpool]) for i, name in enumerate(STAGES, start=1)}


def transformers_maps(network: nn.Module) -> Towers:
    """The patches of a transformers image tower, from its last block but one; none where they form no grid.

    Args:
        network: the model.
    """
    tower = getattr(network, "vision_model", network)
    config: Any = getattr(tower, "config", None)
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if not isinstance(size, int) or not isinstance(patch, int):
        return {}

    def patches(images: Tensor) -> Tensor:
        states = tower(pixel_values=images, output_hidden_states=True).hidden_states
        tokens = states[-2]  # the first is the embedding, the last the last block's
        height, width = images.shape[-2] // patch, images.shape[-1] // patch
        grid = tokens[:, tokens.shape[1] - height * width :]  # class and register tokens come first
        return grid.transpose(1, 2).unflatten(-1, (height, width))

    return {VIT: patches}
