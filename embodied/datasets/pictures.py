"""The pictures of a dataset's episodes: which of its image features are cameras, and their frames by rows.

Shape letters: T frames of an episode; H, W image.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from embodied.datasets import layout
from embodied.datasets.places import EpisodePlaces, Span
from embodied.datasets.rows import Rows
from embodied.datasets.video import MAX_PIXELS, FilmInfo, VideoError, film, frames_at, read_frames
from embodied.errors import UserError, nearest
from embodied.pixels import lack_of_colours
from rewards import pictures as stills

# What pillow raises on what is no picture, and what its cells may be instead.
_RUBBISH = (OSError, SyntaxError, ValueError, TypeError, KeyError, Image.DecompressionBombError,
            Image.DecompressionBombWarning)  # fmt: skip


@runtime_checkable
class _Owner(Protocol):
    root: Path
    fps: float
    features: dict[str, dict[str, Any]]
    spans: Sequence[Span]
    tolerance: float
    surplus: str


class Pictures:
    """Reads films and pictures in parquet files.

    Args:
        dataset: whose pictures; its settings say how its films are read.
        places: checks paths.
        rows: of its data files.

    Attributes:
        keys: short name of a camera -> feature; those with colours first, then grey ones.
    """

    def __init__(self, dataset: _Owner, places: EpisodePlaces, rows: Rows) -> None:
        self._of, self._places, self._rows = dataset, places, rows
        self._films: dict[Path, FilmInfo] = {}
        self._told: dict[str, dict[Path, tuple[int, float]]] = {}
        features = dataset.features
        keys = [key for key, feature in features.items() if feature["dtype"] in layout.IMAGES]
        keys = [key for key in keys if not _is_depth(features[key]) and not self._looks_deep(key)]
        keys.sort(key=lambda key: layout.channels(features[key]) == 1)
        short = [layout.short_name(key) for key in keys]
        self.keys = {name if short.count(name) == 1 else key: key for name, key in zip(short, keys, strict=True)}

    def frames(self, span: Span, camera: str, rows: Sequence[int] | None) -> np.ndarray:
        """(N, H, W, 3) uint8 RGB of some rows, in their order; None: of all."""
        key = self._key(camera)
        chosen = self._chosen(span, rows)
        if not len(chosen):
            return np.zeros((0, *layout.image_shape(self._of.features[key]), 3), np.uint8)
        if self._of.features[key]["dtype"] == "image":
            cells = self._rows.table(span, [key])[key]
            frames = self._stacked(span, camera, [self._picture(span, key, row, cells) for row in chosen.tolist()])
        else:
            file, times = self._times(span, camera, key)
            try:
                frames = read_frames(file, times[chosen], self._of.tolerance / self._of.fps)
            except (VideoError, FileNotFoundError) as error:
                raise UserError(f"episode {span.index}, camera {camera}: {error}") from error
        self._check_shape(span, camera, frames)
        return frames

    def batches(self, span: Span, camera: str, size: int) -> Iterator[np.ndarray]:
        """As `frames` of all rows, at most `size` at a time; the file is read once."""
        key = self._key(camera)
        part: list[np.ndarray] = []
        for image in self._each(span, camera, key):
            part.append(image)
            if len(part) == size:
                yield self._stacked(span, camera, part)
                part = []
        if part:
            yield self._stacked(span, camera, part)

    def place(self, span: Span, camera: str) -> tuple[Path, float]:
        """The file of a camera's frames, and the second at which they begin in it."""
        key = self._key(camera)
        if self._of.features[key]["dtype"] == "image":
            return span.data, 0.0
        clip = self._clip(span, camera, key)
        return clip.file, clip.start_s

    # Inside ---------------------------------------------------------------------------------------------

    def _key(self, camera: str) -> str:
        if camera not in self.keys:
            hidden = [key for key, f in self._of.features.items() if f["dtype"] in layout.IMAGES]
            deep = [key for key in hidden if key not in self.keys.values() and layout.short_name(key) == camera]
            why = "It is depth or infrared, which has no colours. " if deep else ""
            raise UserError(f"{self._of.root}: no camera {camera!r}. {why}{nearest(camera, self.keys)}")
        return self.keys[camera]

    def _chosen(self, span: Span, rows: Sequence[int] | None) -> np.ndarray:
        """Rows as whole numbers. The data file is asked first: what it does not hold makes no list."""
        self._rows.table(span, ["frame_index"])
        if rows is None:
            return np.arange(span.length)
        chosen = np.asarray(rows, np.int64).reshape(-1)
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < span.length:
            got = f"{chosen.min()} to {chosen.max()}"
            raise UserError(f"episode {span.index}: rows must be from 0 to {span.length - 1}; got {got}.")
        return chosen

    def _each(self, span: Span, camera: str, key: str) -> Iterator[np.ndarray]:
        if self._of.features[key]["dtype"] == "image":
            cells = self._rows.table(span, [key])[key]
            for row in range(span.length):
                yield self._picture(span, key, row, cells)
            return
        file, times = self._times(span, camera, key)
        order = np.argsort(times, kind="stable")
        if not np.array_equal(order, np.arange(len(times))):
            yield from self.frames(span, camera, None)
            return
        try:
            yield from frames_at(file, times, self._of.tolerance / self._of.fps)
        except (VideoError, FileNotFoundError) as error:
            raise UserError(f"episode {span.index}, camera {camera}: {error}") from error

    def _stacked(self, span: Span, camera: str, part: list[np.ndarray]) -> np.ndarray:
        if len({image.shape for image in part}) > 1:
            raise UserError(f"episode {span.index}, camera {camera}: frames must be of one size.")
        frames = np.stack(part)
        self._check_shape(span, camera, frames)
        return frames

    def _check_shape(self, span: Span, camera: str, frames: np.ndarray) -> None:
        declared = layout.image_shape(self._of.features[self.keys[camera]])
        if frames.shape[1:3] != declared:
            got = "x".join(map(str, frames.shape[1:3]))
            raise UserError(
                f"episode {span.index}, camera {camera}: frames must be {declared} by info.json; got {got}."
            )

    def _picture(self, span: Span, key: str, row: int, cells: pa.ChunkedArray) -> np.ndarray:
        """One picture of a parquet file, or of the file that it names."""
        try:
            cell = cells[row].as_py()
            data = cell["bytes"] if cell["bytes"] is not None else self._places.below(cell["path"]).read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                if not 0 < image.width * image.height <= MAX_PIXELS:
                    raise ValueError(
                        f"it must have at most {MAX_PIXELS:,} pixels; it has {image.width} x {image.height}"
                    )
                return stills.rgb(image)
        except _RUBBISH as error:
            told = "it is missing" if isinstance(error, TypeError) else error
            raise UserError(f"{span.data} (episode {span.index}): image {row} of {key} is damaged: {told}.") from error

    # Films ----------------------------------------------------------------------------------------------

    def _clip(self, span: Span, camera: str, key: str) -> Any:
        if key not in span.videos:
            raise UserError(f"episode {span.index} of {self._of.root} has no film of the camera {camera}.")
        return span.videos[key]

    def _times(self, span: Span, camera: str, key: str) -> tuple[Path, np.ndarray]:
        """A film, and the seconds in it at which the rows of an episode lie."""
        clip, fps = self._clip(span, camera, key), self._of.fps
        if "timestamp" in self._of.features:
            times = self._rows.columns(span, ["timestamp"])["timestamp"].astype(np.float64).reshape(-1)
            if len(times) != span.length or not np.isfinite(times).all():
                raise UserError(f"{span.data} (episode {span.index}): timestamp must be one time a row, in seconds.")
        else:
            self._rows.table(span, ["frame_index"])
            times = np.arange(span.length) / fps
        if times[0] < 0.5 / fps and self._of.surplus != "after":  # otherwise its times say where its rows lie
            beyond = self._surplus(span, clip, key)
            if beyond and self._of.surplus == "refuse":
                raise UserError(
                    f"episode {span.index}, camera {camera}: {clip.file} has {beyond} pictures more than its episodes "
                    "have rows, and nothing says which belong to them. If they come after the last row add "
                    "surplus=after; if they come before the first, surplus=before."
                )
            times = times + beyond / fps
        return clip.file, clip.start_s + times

    def _surplus(self, span: Span, clip: Any, key: str) -> int:
        """Pictures that an episode's film has beyond its rows; 0 where the film's head does not say."""
        fps = self._of.fps
        head = self._film(clip.file)
        if head is None or not head.frames:
            return 0
        rows, end = self._ends(key)[clip.file]
        # By the count and by the clock: a film at twice the rate has more pictures, and no surplus.
        whole = min(head.frames - rows, round((head.length_s - end) * fps))
        own = 0 if clip.end_s is None else round((clip.end_s - clip.start_s) * fps) - span.length
        return max(whole, own, 0)

    def _ends(self, key: str) -> dict[Path, tuple[int, float]]:
        """Of each film of a camera: how many rows its episodes have, and when the last of them ends in it."""
        if key not in self._told:
            found: dict[Path, tuple[int, float]] = {}
            for span in self._of.spans:
                if key in span.videos:
                    clip = span.videos[key]
                    rows, end = found.get(clip.file, (0, 0.0))
                    own = clip.start_s + span.length / self._of.fps if clip.end_s is None else clip.end_s
                    found[clip.file] = (rows + span.length, max(end, own))
            self._told[key] = found
        return self._told[key]

    def _film(self, file: Path) -> FilmInfo | None:
        """The head of a film; None where it cannot be read, which reading its frames will tell."""
        if file not in self._films:
            try:
                self._films[file] = film(file)
            except (VideoError, OSError):
                return None
        return self._films[file]

    def _looks_deep(self, key: str) -> bool:
        """Whether a feature that nothing declares to be depth is it, by the pixels of its first picture."""
        spans = self._of.spans
        if self._of.features[key]["dtype"] == "video":
            said = str(_about(self._of.features[key]).get("video.pix_fmt") or "")
            head = next((self._film(span.videos[key].file) for span in spans if key in span.videos), None)
            return any(lack_of_colours(pix_fmt) for pix_fmt in (said, head.pix_fmt if head else ""))
        data = _first_cell(spans[0].data, key) if spans else None
        if not isinstance(data, dict):
            return False
        try:
            raw = data["bytes"] if data["bytes"] is not None else self._places.below(data["path"]).read_bytes()
            with Image.open(io.BytesIO(raw)) as image:
                return bool(stills.lack_of_colours(image))
        except (UserError, *_RUBBISH):
            return False


def _first_cell(file: Path, key: str) -> Any:
    """A column's first value; None where it cannot be read, which reading its rows will tell."""
    try:
        with pq.ParquetFile(file) as opened:
            batch = next(opened.iter_batches(1, row_groups=[0], columns=[key]), None)
            return batch.column(0)[0].as_py() if batch is not None and len(batch) else None
    except (pa.ArrowException, OSError, ValueError, IndexError):
        return None


def _about(feature: Mapping[str, Any]) -> dict[str, Any]:
    return {**(feature.get("video_info") or {}), **(feature.get("info") or {})}


def _is_depth(feature: Mapping[str, Any]) -> bool:
    about = _about(feature)
    return bool(about.get("video.is_depth_map") or about.get("is_depth_map"))
