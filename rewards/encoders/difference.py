"""The weights of an open_clip model as their difference from another's: a small file where much stayed the same.

Matrices are kept as differences of eight bits a number with a scale a row, of word embeddings the rows of some words
alone; vectors and single numbers whole, as there are few. What is the same in both is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

EMBEDDINGS = "token_embedding.weight"
SCALE, ROWS = ":scale", ":rows"  # after a tensor's name: numbers of a step, and which rows there are
STEPS = 127


def save_difference(file: Path, base: Mapping[str, Tensor], changed: Mapping[str, Tensor], words: Tensor) -> None:
    """Write what must be added to `base` to have `changed`.

    Args:
        file: where to.
        base: the state of a model.
        changed: that of another of the same shape.
        words: (K,) tokens whose embeddings count; those of others stay `base`'s.

    Raises:
        ValueError: the two are not of one shape.
    """
    if {name: value.shape for name, value in base.items()} != {name: value.shape for name, value in changed.items()}:
        raise ValueError("save_difference: changed must have the tensors of base, in their shapes; it has others.")
    kept: dict[str, Tensor] = {}
    for name, value in changed.items():
        if torch.equal(value, base[name]) or not value.is_floating_point():
            continue
        if value.ndim < 2:
            kept[name] = value.float()
            continue
        step = value.float() - base[name].float()
        if name == EMBEDDINGS:
            rows = torch.unique(words)
            kept[name + ROWS], step = rows.to(torch.int32), step[rows]
        flat = step.flatten(1)
        scale = (flat.abs().amax(1) / STEPS).clamp(min=1e-12)
        kept[name] = (flat / scale[:, None]).round().to(torch.int8).view(step.shape)
        kept[name + SCALE] = scale
    save_file({name: value.contiguous() for name, value in kept.items()}, file)


def add_difference(model: Any, file: Path) -> None:
    """Turn a model with the weights of `base` into the one with those of `changed`, in place.

    Args:
        model: whose state has the names of `base`.
        file: from `save_difference`.

    Raises:
        KeyError: the file is of another model.
    """
    kept, state = load_file(file), model.state_dict()
    with torch.no_grad():
        for name, value in kept.items():
            if ":" in name:
                continue
            if value.dtype != torch.int8:
                state[name].copy_(value)
                continue
            step = (value.flatten(1).float() * kept[name + SCALE][:, None]).view(value.shape)
            rows = kept.get(name + ROWS)
            state[name][slice(None) if rows is None else rows.long()] += step
