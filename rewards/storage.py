"""Fitted heads on disk: a folder of one safetensors file and one JSON file; nothing is unpickled or imported.

And small networks beside the weights of the one encoder that they were trained for.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewards.core import Encoder

CONFIG, WEIGHTS = "head.json", "head.safetensors"
PROBE = "probe"  # the features of one picture, which tell an encoder's weights apart
SAME = 0.99  # cosine of one picture's features by the same weights, in any precision


def save_fitted(
    folder: Path, *, kind: str, encoder: Encoder, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a fitted head into `folder`, whole or not at all.

    Args:
        folder: must not exist, or hold an older head, which is replaced.
        kind: the family ("process", "success"…), checked on loading.
        encoder: whose features it was fitted to; its name, width and weights are checked on loading.
        config: JSON values that make the head again.
        tensors: its weights.

    Raises:
        FileExistsError: the folder holds something else.
    """
    if folder.exists() and not (folder / CONFIG).is_file() and any(folder.iterdir()):
        raise FileExistsError(f"save_fitted: {folder} must be new or hold a fitted head; it holds something else.")
    part = folder.with_name(f".{folder.name}.part{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    about = {"kind": kind, "encoder": encoder.name, "dim": encoder.dim, "config": dict(config)}
    (part / CONFIG).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(kept | {PROBE: picture_probe(encoder)}, part / WEIGHTS)
    replace_folder(part, folder)


def replace_folder(part: Path, folder: Path) -> None:
    """Put a folder in another's place in one step: whoever reads, and whatever a kill leaves, is the old or the new.

    Args:
        part: the new one, beside its place.
        folder: its place; what is there goes.
    """
    if not folder.exists():
        part.rename(folder)
        return
    former = former_of(folder)
    if former.exists():
        shutil.rmtree(former)
    if _exchanged(part, folder):
        part.rename(former)
    else:
        folder.rename(former)
        part.rename(folder)
    shutil.rmtree(former)


def former_of(folder: Path) -> Path:
    """Where what a folder held lies until it is removed; there alone, after a kill where the change takes two steps."""
    return folder.with_name(f".{folder.name}.old")


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two folders changed places; False where the system or the disk cannot."""
    try:
        exchange = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # no Linux, or an old one
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return exchange(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def load_fitted(folder: str | Path, *, kind: str, encoder: Encoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and weights that `save_fitted` wrote.

    Args:
        folder: that `embodied fit` wrote.
        kind: of head that is wanted.

    Raises:
        FileNotFoundError: no such head.
        ValueError: another family, another encoder or other weights of it, or a damaged file.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{kind}: model must be a folder with {CONFIG} and {WEIGHTS}; got {folder}.")
    try:
        text, tensors = _read(folder)
        about = json.loads(text)
        found = (about["kind"], about["encoder"], about["dim"])
        tensors[PROBE]
        config = dict(about["config"])
    except (json.JSONDecodeError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{kind}: {folder} is damaged ({error}). Fit it again.") from error
    if found != (kind, encoder.name, encoder.dim):
        raise ValueError(
            f"{kind}: model must be a {kind} head on {encoder.name} features of width {encoder.dim}; "
            f"{folder} holds a {found[0]} head on {found[1]} features of width {found[2]}. Fit it again."
        )
    if float(tensors.pop(PROBE) @ picture_probe(encoder)) < SAME:
        raise ValueError(
            f"{kind}: model must be a head on this encoder's features; {folder} was fitted to those of {encoder.name} "
            "with other weights. Fit it again."
        )
    return config, tensors


def _read(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """The files of one head, whatever takes its place while they are read."""
    while True:
        place = folder.stat()
        try:
            found = (folder / CONFIG).read_text("utf-8"), load_file(folder / WEIGHTS)
        except FileNotFoundError:
            if os.path.samestat(folder.stat(), place):
                raise
            continue
        if os.path.samestat(folder.stat(), place):
            return found


def joined(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Several groups of tensors as one, by "group/name".

    Args:
        groups: name -> the tensors of a module, or others by name.
    """
    return {f"{group}/{name}": each for group, tensors in groups.items() for name, each in tensors.items()}


def group_of(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    """One group of what `joined` gave.

    Args:
        tensors: of all groups.
        group: its name.
    """
    return {name.removeprefix(f"{group}/"): each for name, each in tensors.items() if name.startswith(f"{group}/")}


def picture_probe(encoder: Encoder) -> Tensor:
    """(D,) float32, unit length: how the encoder sees a picture of smooth colours."""
    height, width = encoder.image_size
    down, across = torch.linspace(0, 255, height)[:, None], torch.linspace(0, 255, width)[None]
    picture = torch.stack([down.expand(height, width), across.expand(height, width), (down + across) / 2], -1)
    features = encoder.encode_images(picture.to(torch.uint8)[None])[0].detach().float().cpu()
    return features / features.norm()


def weights_folder(encoder: Encoder) -> Path | None:
    """Where an encoder's own weights lie, and what was trained for them beside; None where not in a folder.

    Args:
        encoder: the embedded one, or one that is named `local-dir:FOLDER`; others lie in some library's cache.
    """
    if encoder.name == "embedded":
        root = Path(__file__).resolve().parent.parent
        folders = [root / "sim_assets" / "encoder", root / "embodied" / "sim_assets" / "encoder"]  # checkout, wheel
        return next((each for each in folders if each.is_dir()), None)
    schema, _, path = encoder.name.partition(":")
    return Path(path).expanduser() if schema == "local-dir" else None


def save_half(file: Path, module: nn.Module, probe: Float[Tensor, " D"]) -> None:
    """Write a network's weights in half precision, whole or not at all.

    Args:
        file: beside the weights of the encoder that it was trained for.
        probe: unit length; what that encoder makes of something known, checked on loading.
        file: is written.
        module: whose weights.
    """
    tensors = {name: value.detach().half().contiguous().cpu() for name, value in module.state_dict().items()}
    part = file.with_name(f"{file.name}.part")
    save_file(tensors | {PROBE: probe.half()}, part)
    part.replace(file)


def load_half(
    file: Path, probe: Float[Tensor, " D"], encoder: str, *, same: float = SAME, by: str = "pointing"
) -> dict[str, Tensor]:
    """The weights that `save_half` wrote, float32, if the kept probe and this one have a cosine of at least `same`.

    Args:
        file: that `save_half` wrote.
        probe: what this encoder makes of the same known thing.
        encoder: its name, for errors.
        same: the least cosine.
        by: the module of `embodied.pretraining` that makes such a file, for errors.

    Raises:
        ValueError: they were trained for other weights than the encoder of this name has, or the file is damaged.
    """
    again = f"Run: python -m embodied.pretraining.{by} encoder={file.parent}"
    try:
        tensors = {name: value.float() for name, value in load_file(file).items()}
        kept = tensors.pop(PROBE)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error}). {again}") from error
    if kept.shape != probe.shape or float(kept @ probe) < same:
        raise ValueError(
            f"{file} must be trained for this encoder, {encoder}; it was trained for other weights. {again}"
        )
    return tensors
