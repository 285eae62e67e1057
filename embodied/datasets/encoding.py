"""A dataset's episodes as features, each frame encoded once in its life: they are kept under `runs/cache/features`.

Shape letters: T frames of an episode; D feature width; H, W image.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embodied.datasets.reader import Dataset
from embodied.errors import UserError
from embodied.files import whole
from rewards.core import FRAMES_READ, Encoder, Episode, Features
from rewards.progress import tqdm

CACHE = Path("runs", "cache", "features")
BATCH = 64  # frames that are held and encoded at a time


@torch.inference_mode()
def encode(
    dataset: Dataset,
    encoder: Encoder,
    *,
    cameras: Sequence[str] | None = None,
    indices: Iterable[int] | None = None,
    frames_read: str = "none",
    cache: Path | None = None,
    goal: str = "",
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
        goal: the instruction of episodes whose frames have several tasks.

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
                views[name] = _view(dataset, i, name, encoder, mark, cache or CACHE)
                if frames_read == "first":
                    frames[name] = torch.from_numpy(dataset.frames(i, name, [0]))[None]
                elif frames_read == "all":
                    frames[name] = _mapped(dataset, i, name, cache or CACHE)[None]
                bar.update(len(recording))
            signals = {name: torch.from_numpy(values)[None] for name, values in recording.signals.items()}
            features = Features(views={k: v[None] for k, v in views.items()}, signals=signals, frames=frames)
            success = None if recording.success is None else bool(recording.success[-1])
            episodes.append(
                Episode(
                    features=features, instruction=recording.instruction or goal, success=success, steps=recording.steps
                )
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
            if name in ("precision", "model", "_preprocess"):
                found.update(f"{name}={value}".encode())
        for key, tensor in tensors.items():
            if isinstance(tensor, Tensor):
                found.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                flat = tensor.detach().cpu().contiguous().flatten()
                found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return found.hexdigest()


def _view(dataset: Dataset, i: int, camera: str, encoder: Encoder, mark: str, cache: Path) -> Tensor:
    """(T, D) float32 features of one camera of one episode, kept or made now, `BATCH` frames in memory at a time."""
    key = _key(dataset, i, camera, mark)
    file = cache / key[:2] / f"{key}.safetensors"
    try:
        return load_file(file)["features"]
    except (FileNotFoundError, SafetensorError, KeyError):  # not yet there, or damaged: made again
        pass
    parts = [
        encoder.encode_images(torch.from_numpy(frames)).float().cpu() for frames in dataset.batches(i, camera, BATCH)
    ]
    features = torch.cat(parts).contiguous()
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as part:
        save_file({"features": features.clone()}, part)
    return features


def _mapped(dataset: Dataset, i: int, camera: str, cache: Path) -> Tensor:
    """(T, H, W, 3) uint8 frames of one camera of one episode, in a file without a name that the system pages in.

    A dataset's frames do not fit into memory; these take it only while they are read. The file goes with the tensor.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=cache) as file:
        shape: tuple[int, ...] = ()
        for frames in dataset.batches(i, camera, BATCH):
            file.write(frames.data)
            shape = frames.shape[1:]
        file.flush()
        # Copy on write, so that the tensor may be taken for an ordinary one.
        pixels = np.memmap(file, np.uint8, "c", shape=(dataset.length(i), *shape))
    return torch.from_numpy(np.asarray(pixels))


def _key(dataset: Dataset, i: int, camera: str, mark: str) -> str:
    """What the features of one camera of one episode are made of."""
    file, start = dataset.place(i, camera)
    for each in (file, dataset.span(i).data):
        if not each.is_file():
            raise UserError(f"episode {dataset.span(i).index}, camera {camera}: {each}: the file is missing.")
    made_of: list[Any] = [start, i, dataset.length(i), dataset.tolerance, dataset.surplus, camera, mark]
    for each in dict.fromkeys((file, dataset.span(i).data)):  # the rows say at which times their frames lie
        state = each.stat()
        made_of += [str(each.resolve()), state.st_size, state.st_mtime_ns]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
