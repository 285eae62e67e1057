"""A dataset's episodes as features, each frame encoded once in its life: they are kept under `runs/cache/features`.

Shape letters: T frames of an episode; D feature width; H, W image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from embodied.datasets.reader import Dataset
from embodied.errors import UserError
from embodied.files import whole
from rewards.core import FRAMES_READ, Encoder, Episode, Features

CACHE = Path("runs", "cache", "features")


@torch.inference_mode()
def encode(
    dataset: Dataset,
    encoder: Encoder,
    *,
    cameras: Sequence[str] | None = None,
    indices: Iterable[int] | None = None,
    frames_read: str = "none",
    cache: Path | None = None,
) -> list[Episode]:
    """Episodes for heads to be fitted to, judged on or scored.

    Features are kept by what they were made of (the file's path, size and time, the episode's place in it, the
    encoder's name, settings and weights), so a changed dataset or encoder never meets old ones.

    Args:
        dataset: whose episodes.
        encoder: frames to features.
        cameras: short names, the first of which is the main view; None: all.
        indices: of episodes; None: all.
        frames_read: which images to keep beside the features: "none", "first" (of each episode) or "all".
        cache: the folder of kept features; None: `CACHE`.

    Returns:
        One `Episode` an index, in that order; `success` is that of its last row, None where the dataset does not tell.

    Raises:
        UserError: no such camera or episode, or a damaged file.
        ValueError: `frames_read` is none of those.
    """
    if frames_read not in FRAMES_READ:
        raise ValueError(f"encode: frames_read must be one of {', '.join(FRAMES_READ)}; got {frames_read!r}.")
    chosen = list(range(len(dataset)) if indices is None else indices)
    names = list(dataset.cameras if cameras is None else cameras)
    if not names:
        raise UserError(f"{dataset.root}: must have a camera to encode; it has none.")
    mark = fingerprint(encoder)
    total = sum(dataset.length(i) for i in chosen) * len(names)
    episodes = []
    with tqdm(total=total, desc="encoding", unit="frame", leave=False, delay=2) as bar:
        for i in chosen:
            recording = dataset.recording(i, cameras=())
            views, frames = {}, {}
            for name in names:
                views[name], images = _view(dataset, i, name, encoder, mark, cache or CACHE, frames_read == "all")
                if frames_read == "first":
                    images = dataset.frames(i, name, [0]) if images is None else images[:1]
                if images is not None and frames_read != "none":
                    frames[name] = torch.from_numpy(images)[None]
                bar.update(len(recording))
            signals = {name: torch.from_numpy(values)[None] for name, values in recording.signals.items()}
            features = Features(views={k: v[None] for k, v in views.items()}, signals=signals, frames=frames)
            success = None if recording.success is None else bool(recording.success[-1])
            episodes.append(
                Episode(features=features, instruction=recording.instruction, success=success, steps=recording.steps)
            )
    return episodes


def fingerprint(encoder: Encoder) -> str:
    """A hash of everything an encoder's features depend on: name, settings and weights."""
    found = hashlib.sha256(json.dumps([encoder.name, encoder.dim, list(encoder.image_size)]).encode())
    for name, value in sorted(vars(encoder).items()):
        if isinstance(value, nn.Module):
            tensors: dict[str, Any] = dict(value.state_dict())
        elif isinstance(value, Tensor):
            tensors = {"": value}
        else:
            tensors = {}
            if name in ("precision", "model"):
                found.update(f"{name}={value}".encode())
        for key, tensor in tensors.items():
            if isinstance(tensor, Tensor):
                found.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                flat = tensor.detach().cpu().contiguous().flatten()
                found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return found.hexdigest()


def _view(
    dataset: Dataset, i: int, camera: str, encoder: Encoder, mark: str, cache: Path, want_frames: bool
) -> tuple[Tensor, np.ndarray | None]:
    """(T, D) float32 features of one camera of one episode, kept or made now, and its frames if they were read."""
    key = place_key(dataset, i, camera, mark)
    file = cache / key[:2] / f"{key}.safetensors"
    frames = dataset.frames(i, camera) if want_frames else None
    try:
        return load_file(file)["features"], frames
    except (FileNotFoundError, SafetensorError, KeyError):  # not yet there, or damaged: made again
        pass
    if frames is None:
        frames = dataset.frames(i, camera)
    features = encoder.encode_images(torch.from_numpy(frames)).float().cpu().contiguous()
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as part:
        save_file({"features": features.clone()}, part)
    return features, frames


def place_key(dataset: Dataset, i: int, camera: str, mark: str) -> str:
    """What the features of one camera of one episode are made of."""
    file, start = dataset.place(i, camera)
    if not file.is_file():
        raise UserError(f"episode {i}, camera {camera}: {file}: the file is missing.")
    state = file.stat()
    made_of = [str(file.resolve()), state.st_size, state.st_mtime_ns, start, i, dataset.length(i), camera, mark]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
