"""A dataset's episodes as features, each frame encoded once in its life: they are kept under `runs/cache/features`.

Shape letters: T frames of an episode; D feature width; H, W image.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from embodied.datasets.reader import Dataset, Recording
from embodied.errors import UserError
from embodied.files import whole
from rewards.core import FRAMES_READ, Encoder, Episode, Features
from rewards.progress import tqdm

CACHE = Path("runs", "cache", "features")
BATCH = 64  # frames that are held and encoded at a time
NAME, KIND = "features", "F32"  # of the one tensor in a file, and its kind as safetensors calls it
_KNOWN: dict[int, tuple[list[Any], list[Tensor], str]] = {}  # id of an encoder -> marks of its tensors, those, its hash


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
    """Episodes for heads to be fitted to, judged on or scored, all of them in memory; see `Encoded` for one at a time.

    Args:
        dataset, encoder, cameras, frames_read, cache, goal: see `Encoded`.
        indices: of episodes; None: all.

    Returns:
        One `Episode` an index, in that order; `success` is that of its last row, None where the dataset does not tell.

    Raises:
        UserError: no such camera or episode, or a damaged file.
        ValueError: `frames_read` is none of those.
    """
    encoded = Encoded(dataset, encoder, cameras=cameras, frames_read=frames_read, cache=cache, goal=goal)
    chosen = list(range(len(dataset)) if indices is None else indices)
    total = sum(dataset.length(i) for i in chosen) * len(encoded.cameras)
    episodes = []
    with tqdm(total=total, desc="encoding", unit="frame", leave=False, delay=2) as bar:
        for i in chosen:
            episodes.append(encoded[i])
            bar.update(dataset.length(i) * len(encoded.cameras))
    return episodes


class Encoded:
    """A dataset's episodes as features, each made or read when it is asked for.

    Features are kept by what they were made of (the file's path, size and time, the episode's place in it, the
    encoder's name, settings and weights), so a changed dataset or encoder never meets old ones.

    Args:
        dataset: whose episodes.
        encoder: frames to features.
        cameras: short names, the first of which is the main view; None: all.
        frames_read: which images to keep beside the features: "none", "first" (of each episode) or "all".
        cache: the folder of kept features; None: `CACHE`.
        goal: the instruction of episodes whose frames have several tasks.

    Raises:
        UserError: the dataset has no camera.
        ValueError: `frames_read` is none of those.
    """

    def __init__(
        self,
        dataset: Dataset,
        encoder: Encoder,
        *,
        cameras: Sequence[str] | None = None,
        frames_read: str = "none",
        cache: Path | None = None,
        goal: str = "",
    ) -> None:
        if frames_read not in FRAMES_READ:
            raise ValueError(f"encode: frames_read must be one of {', '.join(FRAMES_READ)}; got {frames_read!r}.")
        self.dataset, self.encoder, self.frames_read = dataset, encoder, frames_read
        self.cameras = list(dataset.cameras if cameras is None else cameras)
        if not self.cameras:
            raise UserError(f"{dataset.root}: must have a camera to encode; it has none.")
        self._cache, self._goal, self._mark = cache or CACHE, goal, fingerprint(encoder)

    def __getitem__(self, i: int) -> Episode:
        """Episode i, in memory.

        Raises:
            UserError: no such camera or episode, or a damaged file.
        """
        recording = self.dataset.recording(i, cameras=())
        return Episode(features=self.features(i, recording), **self._told(recording))

    def later(self, i: int, recording: Recording | None = None) -> LaterEpisode:
        """Episode i, whose features are read each time they are asked for; for datasets that do not fit into memory.

        Args:
            i: from 0.
            recording: its rows, where they have been read.
        """
        return LaterEpisode(encoded=self, index=i, **self._told(recording or self.dataset.recording(i, cameras=())))

    def make(self, i: int) -> None:
        """Encode episode i now, where it has not been.

        Raises:
            UserError: no such camera or episode, or a damaged file.
        """
        for name in self.cameras:
            self._file(i, name)

    def reading(self, frames_read: str) -> Encoded:
        """The same with other images beside the features."""
        return Encoded(
            self.dataset, self.encoder, cameras=self.cameras, frames_read=frames_read, cache=self._cache,
            goal=self._goal,
        )  # fmt: skip

    @torch.inference_mode()
    def features(self, i: int, recording: Recording | None = None) -> Features:
        """The features of the whole of episode i, B = 1; `recording` is its rows, where they have been read."""
        views, frames = {}, {}
        for name in self.cameras:
            views[name] = load_file(self._file(i, name))[NAME][None]
            if self.frames_read == "first":
                frames[name] = torch.from_numpy(self.dataset.frames(i, name, [0]))[None]
            elif self.frames_read == "all":
                frames[name] = _mapped(self.dataset, i, name, self._cache)[None]
        return Features(views=views, signals=self._signals(i, recording), frames=frames)

    def windows(self, i: int, rows: int) -> Iterator[Features]:
        """The features of episode i, so many rows at a time: a long episode is never in memory.

        Images that a head reads come with each window: those of its rows, or the episode's first.
        """
        length, signals = self.dataset.length(i), self._signals(i)
        files = {name: self._file(i, name) for name in self.cameras}
        first = {}
        if self.frames_read == "first":
            first = {name: torch.from_numpy(self.dataset.frames(i, name, [0]))[None] for name in self.cameras}
        seen = {}
        if self.frames_read == "all":
            seen = {name: self.dataset.batches(i, name, rows) for name in self.cameras}
        for start in range(0, length, rows):
            views = {}
            for name, file in files.items():
                with safe_open(file, "pt") as tensors:
                    views[name] = tensors.get_slice(NAME)[start : start + rows][None]
            yield Features(
                views=views,
                signals={name: values[:, start : start + rows] for name, values in signals.items()},
                frames=first or {name: torch.from_numpy(next(batches))[None] for name, batches in seen.items()},
            )

    def _told(self, recording: Recording) -> dict[str, Any]:
        """What is known of an episode beside its features."""
        success = None if recording.success is None else bool(recording.success[-1])
        return {"instruction": recording.instruction or self._goal, "success": success, "steps": recording.steps}

    def _signals(self, i: int, recording: Recording | None = None) -> dict[str, Tensor]:
        recording = recording or self.dataset.recording(i, cameras=())
        return {name: torch.from_numpy(values)[None] for name, values in recording.signals.items()}

    @torch.inference_mode()
    def _file(self, i: int, camera: str) -> Path:
        """The (T, D) float32 features of one camera of one episode, kept or made now, `BATCH` frames at a time."""
        key = place_key(self.dataset, i, camera, self._mark)
        file = self._cache / key[:2] / f"{key}.safetensors"
        try:
            with safe_open(file, "pt") as tensors:
                tensors.get_slice(NAME)
            return file
        except (FileNotFoundError, SafetensorError):  # not yet there, or damaged: made again
            pass
        _make(file.parent)
        batches = self.dataset.batches(i, camera, BATCH)
        with whole(file) as part, part.open("wb") as out:
            size = 0
            for frames in batches:
                features = self.encoder.encode_images(torch.from_numpy(frames)).float().cpu().contiguous().numpy()
                if not size:
                    out.write(_header(self.dataset.length(i), features.shape[1]))
                size += out.write(features.tobytes())
        return file


@dataclass(frozen=True, kw_only=True, slots=True)
class LaterEpisode:
    """An `Episode` whose features are read each time they are asked for.

    Attributes:
        encoded: reads them.
        index: of the episode in its dataset.
        instruction, success, steps: see `Episode`.
    """

    encoded: Encoded
    index: int
    instruction: str = ""
    success: bool | None = None
    steps: tuple[int, ...] = ()

    @property
    def features(self) -> Features:
        """Of the whole episode, B = 1; read now."""
        return self.encoded.features(self.index)

    def __len__(self) -> int:
        return self.encoded.dataset.length(self.index)

    def now(self) -> Episode:
        """The same, in memory."""
        return Episode(features=self.features, instruction=self.instruction, success=self.success, steps=self.steps)


def _header(rows: int, width: int) -> bytes:
    """What a safetensors file of one (rows, width) float32 tensor begins with: so it is written as it is made."""
    about = {NAME: {"dtype": KIND, "shape": [rows, width], "data_offsets": [0, rows * width * 4]}}
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def fingerprint(encoder: Encoder) -> str:
    """A hash of everything an encoder's features depend on: name, settings and weights.

    Weights are large, and asked after for every goal and dataset: they are read again only where one has changed.
    """
    parts: list[tuple[str, Tensor | None]] = []
    for name, value in sorted(vars(encoder).items()):
        if isinstance(value, nn.Module):
            held: dict[str, Any] = dict(value.state_dict(keep_vars=True))
        elif isinstance(value, Tensor):
            held = {"": value}
        else:
            held = {}
            if name in ("precision", "model", "_preprocess"):
                parts.append((f"{name}={value}", None))
        for key, tensor in held.items():
            if isinstance(tensor, Tensor):
                parts.append((f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}", tensor))
    about = json.dumps([encoder.name, encoder.dim, list(encoder.image_size)])
    tensors = [tensor for _, tensor in parts if tensor is not None]
    counted = not any(tensor.is_inference() for tensor in tensors)  # such keep no count of their changes
    marks = [about, *(text for text, _ in parts)]
    marks += [(id(each), each.data_ptr(), each._version) for each in tensors if counted]
    if counted and id(encoder) in _KNOWN and _KNOWN[id(encoder)][0] == marks:
        return _KNOWN[id(encoder)][2]
    found = hashlib.sha256(about.encode())
    for text, tensor in parts:
        found.update(text.encode())
        if tensor is not None:
            flat = tensor.detach().cpu().contiguous().flatten()
            found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    if id(encoder) not in _KNOWN:  # an encoder need not be hashable
        weakref.finalize(encoder, _KNOWN.pop, id(encoder), None)
    _KNOWN[id(encoder)] = marks, tensors, found.hexdigest()
    return found.hexdigest()


def _mapped(dataset: Dataset, i: int, camera: str, cache: Path) -> Tensor:
    """(T, H, W, 3) uint8 frames of one camera of one episode, in a file without a name that the system pages in.

    A dataset's frames do not fit into memory; these take it only while they are read. The file goes with the tensor.
    """
    _make(cache)
    with tempfile.TemporaryFile(dir=cache) as file:
        shape: tuple[int, ...] = ()
        for frames in dataset.batches(i, camera, BATCH):
            file.write(frames.data)
            shape = frames.shape[1:]
        file.flush()
        # Copy on write, so that the tensor may be taken for an ordinary one.
        pixels = np.memmap(file, np.uint8, "c", shape=(dataset.length(i), *shape))
    return torch.from_numpy(np.asarray(pixels))


def _make(folder: Path) -> None:
    """Make a folder of the cache.

    Raises:
        UserError: it cannot be made, as in a working directory that is somebody else's, wherever the results go.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"what was read of the frames is kept in {folder}, which cannot be made: {error.strerror}. "
            "Change to a folder that you may write into, and give data and results by their whole paths."
        ) from error


def place_key(dataset: Dataset, i: int, camera: str, mark: str) -> str:
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
