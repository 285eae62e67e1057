"""Somebody's checkpoint read as data: a folder or a hub id, configs as JSON or YAML, weights as safetensors.

Nothing in it is run: no code beside the weights, no object that YAML names, no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rewards.encoders.loading import explain_missing

FILES = ("*.json", "*.jinja", "*.txt", "*.yaml", "*.safetensors")


def fetched(weights: str) -> Path:
    """The folder of a checkpoint; one of the hub is downloaded, but for what is not safetensors or words.

    Args:
        weights: a folder, or a hub id.

    Raises:
        FileNotFoundError: it is neither here nor to be had.
    """
    folder = Path(weights).expanduser()
    if (folder / "config.json").is_file():
        return folder
    put = f"Run `hf download {weights} --local-dir FOLDER` where there is a network, and give reward.weights=FOLDER."
    if folder.exists() or weights.startswith((".", "/", "~")) or weights.count("/") != 1:
        raise FileNotFoundError(
            f"weights must be a hub id (OWNER/NAME), or a folder with config.json; got {weights!r}. {put}"
        )
    from huggingface_hub import snapshot_download

    with explain_missing("weights", weights, put):
        return Path(snapshot_download(weights, allow_patterns=list(FILES)))


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`config.json`, and `config.yaml` where there is one, both plain.

    Args:
        folder: of the checkpoint.

    Raises:
        ValueError: one that is damaged, or no names and values.
    """
    said: Any = {}
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        if (folder / "config.yaml").is_file():
            said = yaml.load((folder / "config.yaml").read_text("utf-8"), Loader=_Plain)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"weights: {folder} must hold a readable config; got one that is damaged.") from error
    if not isinstance(config, dict) or not isinstance(said, dict):
        raise ValueError(f"weights: {folder} must hold configs of names and values; got another form.")
    return config, said


def whole_number(values: Mapping[str, Any], name: str, least: int, folder: Path, *, default: int) -> int:
    """A count that a config gives, from `least` to 10,000; ValueError where it is none.

    Args:
        values: the config.
        name: the key.
        least: smallest number that is taken.
        folder: named in the error.
        default: where the key is missing.

    Raises:
        ValueError: no whole number from `least` to 10,000.
    """
    value = values.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 10_000:
        raise ValueError(f"weights: {name} in {folder} must be a number from {least} to 10,000; got {value!r}.")
    return value


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every weight of a checkpoint by name, on the CPU.

    Args:
        folder: of the checkpoint.

    Raises:
        ValueError: none, a damaged file, or an adapter alone.
    """
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if file.name.startswith("adapter_"):
            raise ValueError(f"weights: {folder} must hold whole weights; it holds an adapter. Merge it first.")
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"weights: {file} must be a safetensors file; it is damaged ({error}).") from error
    if not tensors:
        raise ValueError(f"weights: {folder} must hold weights as safetensors; it holds none.")
    return tensors


def prediction_head(tensors: Mapping[str, Tensor], name: str, source: str) -> tuple[nn.Sequential, int]:
    """A head and the number of its outputs: linear to half the width, LayerNorm, GELU, linear.

    Its weights' names are the places in the authors' sequence, whose third is dropout.

    Args:
        tensors: all weights of the checkpoint, by name.
        name: prefix of the head's.
        source: named in errors.

    Raises:
        ValueError: no such head, or one of another form.
    """
    prefix = f"{name}_head."
    found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    (half, width), (outputs, _) = (_sides(found.get(key)) for key in ("0.weight", "4.weight"))
    if 0 in (half, width, outputs):
        raise ValueError(f"weights: {source} must hold a {name} head of two layers; got {sorted(found) or 'none'}.")
    head = nn.Sequential(nn.Linear(width, half), nn.LayerNorm(half), nn.GELU(), nn.Identity(), nn.Linear(half, outputs))
    wanted = {key: tuple(value.shape) for key, value in head.state_dict().items()}
    got = {key: tuple(value.shape) for key, value in found.items()}
    if wanted != got:
        raise ValueError(f"weights: {source} must hold a {name} head of two layers; got {got}.")
    head.load_state_dict(found)
    return head.eval().requires_grad_(False), outputs


def _sides(weight: Tensor | None) -> tuple[int, int]:
    return (int(weight.shape[0]), int(weight.shape[1])) if weight is not None and weight.ndim == 2 else (0, 0)


def from_logits(progress: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
    """Progress in [0, 1]: the mean of K bins, evenly spaced from 0 to 1; a sigmoid where K is 1.

    Args:
        progress: logits of K bins.
    """
    if progress.shape[1] == 1:
        return progress[:, 0].sigmoid()
    return progress.softmax(-1) @ torch.linspace(0, 1, progress.shape[1], device=progress.device)


def mapping(value: Any) -> dict[str, Any]:
    """What a config holds there, if it is names and values.

    Args:
        value: anything.
    """
    return dict(value) if isinstance(value, Mapping) else {}


class _Plain(yaml.SafeLoader):
    """YAML as data: an object of somebody's class is the mapping that it is written as."""


def _as_mapping(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None


_Plain.add_multi_constructor("tag:yaml.org,2002:python/", _as_mapping)
