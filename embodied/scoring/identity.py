"""What a scorer and a dataset are, by what is in them: so that numbers that were kept never meet another model's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embodied.datasets import Dataset
from embodied.datasets.encoding import fingerprint
from rewards.core import Scorer

OURS = ("embodied", "rewards", "policies")
WHOLE_BYTES, EDGE_BYTES = 64 * 2**20, 2**20  # files up to this size are hashed whole; of larger ones, both ends
OF_MODULES = frozenset(vars(nn.Module()))  # what every module holds: its weights are told by themselves


def scorer_identity(scorer: Scorer) -> str:
    """A hash of the encoder and of all that the heads, their combination and the shaping hold: weights, texts, values.

    Wherever a head came from, a folder or a fit, it is the head itself that counts: a folder whose weights have changed
    since makes another scorer.
    """
    digest = hashlib.sha256(fingerprint(scorer.encoder).encode())
    seen: set[int] = {id(scorer.encoder)}
    for part in (scorer.heads, scorer.combine, scorer.shaping):
        _add(digest, part, seen)
    return digest.hexdigest()


def dataset_identity(dataset: Dataset, cameras: Sequence[str]) -> str:
    """A hash of what a dataset's files hold, wherever it lies: its tables, and the pictures of these cameras."""
    files = {file for file in (dataset.root / "meta").rglob("*") if file.is_file()}
    for i, span in enumerate(dataset.spans):
        files |= {span.data, *(dataset.place(i, camera)[0] for camera in cameras)}
    digest = hashlib.sha256()
    for file in sorted(files):
        name = file.relative_to(dataset.root).as_posix() if file.is_relative_to(dataset.root) else file.name
        digest.update(name.encode())
        if file.is_file():
            _add_file(digest, file)
    return digest.hexdigest()


def _add_file(digest: Any, file: Path) -> None:
    state = file.stat()
    digest.update(f" {state.st_size} ".encode())
    with file.open("rb") as stream:
        if state.st_size <= WHOLE_BYTES:
            while block := stream.read(EDGE_BYTES):
                digest.update(block)
            return
        digest.update(f"{state.st_mtime_ns} ".encode() + stream.read(EDGE_BYTES))
        stream.seek(-EDGE_BYTES, 2)
        digest.update(stream.read(EDGE_BYTES))


def _add(digest: Any, value: Any, seen: set[int]) -> None:
    """Everything that a value holds, in an order that is always the same; of other people's objects, their kind."""
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().contiguous() if isinstance(value, Tensor) else torch.from_numpy(value.copy())
        digest.update(f"{array.dtype} {tuple(array.shape)} ".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    elif value is None or isinstance(value, bool | int | float | str | bytes | Path | np.generic):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    elif isinstance(value, set | frozenset):
        _add(digest, sorted(value, key=repr), seen)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            digest.update(f"{key!r}:".encode())
            _add(digest, value[key], seen)
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)}[".encode())
        for each in value:
            _add(digest, each, seen)
    elif id(value) not in seen:
        seen.add(id(value))
        digest.update(f"{type(value).__module__}.{type(value).__qualname__}".encode())
        if isinstance(value, nn.Module):
            _add(digest, value.state_dict(), seen)
            for each in filter(_is_ours, value.modules()):  # settings that are no weights
                _add(digest, {name: held for name, held in vars(each).items() if name not in OF_MODULES}, seen)
        elif _is_ours(value) and hasattr(value, "__dict__"):
            _add(digest, vars(value), seen)


def _is_ours(value: Any) -> bool:
    return type(value).__module__.split(".")[0] in OURS
