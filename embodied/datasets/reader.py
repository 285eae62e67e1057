"""Episodes from a LeRobot dataset, v3.0 or v2.x, with pyarrow and PyAV alone.

Shape letters: T frames of an episode; A action; H, W image.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from embodied.datasets import layout
from embodied.datasets.video import VideoError, read_frames
from embodied.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One episode. Row t is what was there before action t; what was there after the last one is in `Dataset.last`.

    Attributes:
        frames: camera -> (T, H, W, 3) uint8 RGB; the cameras that were asked for.
        actions: (T, A) float32; (T, 0) where the dataset has none.
        signals: name -> (T,) float32, the robot's own readings (`observation.state`).
        env_rewards: (T,) float32, the task's own reward after action t; None where there is none.
        success: (T,) bool, whether the task was solved after action t; None where the dataset does not tell.
        terminated: (T,) bool, whether the task itself ended after action t; all False where the dataset does not
            tell endings from cuts (`next.truncated`).
        instruction: the task in words; "" where there are none.
        index: of the episode.
        kind: which policy acted ("expert", "noisy", "near_miss", "failure", "random", …); "" where unknown.
        steps: rows at which the task's steps end, ascending, the last row included; () where they are not marked.
    """

    frames: Mapping[str, np.ndarray]
    actions: np.ndarray
    signals: Mapping[str, np.ndarray]
    env_rewards: np.ndarray | None
    success: np.ndarray | None
    terminated: np.ndarray
    instruction: str
    index: int
    kind: str
    steps: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Span:
    """Where an episode lies.

    Attributes:
        length: T.
        tasks: its texts.
        data: the parquet file.
        videos: image key -> (mp4 file, second at which the episode begins in it).
    """

    length: int
    tasks: tuple[str, ...]
    data: Path
    videos: Mapping[str, tuple[Path, float]] = field(default_factory=dict)


class Dataset:
    """A LeRobot folder, opened for reading; nothing in it is ever written.

    Attributes:
        root: the folder.
        fps: frames a second.
        features: the entries of `info.json`.
        cameras: short names of colour cameras, in the dataset's order; depth videos are left out.
        env: the `env` config of the world it was collected in; {} elsewhere.
        env_id: that world's id, or None.

    Raises:
        UserError: no dataset, a damaged one, or a version other than 2 or 3.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        meta = self.root / "meta"
        if not (meta / layout.INFO).is_file():
            raise UserError(_nothing_there(self.root))
        self._info = layout.read_json(meta / layout.INFO)
        self._check_info(meta / layout.INFO)
        self.features: dict[str, dict[str, Any]] = self._info["features"]
        self.fps = int(self._info["fps"])
        keys = [k for k, f in self.features.items() if f["dtype"] in layout.IMAGES and not _is_depth(f)]
        short = [layout.short_name(key) for key in keys]
        self._keys = {name if short.count(name) == 1 else key: key for name, key in zip(short, keys, strict=True)}
        self.cameras = tuple(self._keys)
        self.spans = self._spans_v3(meta) if self._info["codebase_version"].startswith("v3") else self._spans_v2(meta)
        own = layout.read_json(meta / layout.OWN) if (meta / layout.OWN).is_file() else {}
        self.env: dict[str, Any] = own.get("env") or {}
        self.env_id: str | None = self.env.get("id")
        self._own: dict[str, dict[str, Any]] = own.get("episodes", {})

    def __len__(self) -> int:
        return len(self.spans)

    def length(self, i: int) -> int:
        """T of episode i."""
        return self._span(i).length

    def instruction(self, i: int) -> str:
        """The task of episode i in words; "" where there are none."""
        return next(iter(self._span(i).tasks), "")

    def kind(self, i: int) -> str:
        """Which policy acted in episode i; "" where unknown."""
        return str(self._own.get(str(i), {}).get("kind", ""))

    def steps(self, i: int) -> tuple[int, ...]:
        """Rows at which the steps of episode i's task end; () where they are not marked."""
        return tuple(int(row) for row in self._own.get(str(i), {}).get("steps", ()))

    def recording(self, i: int, cameras: Sequence[str] | None = None) -> Recording:
        """Episode i with its frames.

        Args:
            i: from 0.
            cameras: those to decode, short names; None: all; (): none.

        Raises:
            UserError: no such episode or camera; a broken or truncated file, named with the episode.
        """
        wanted = [n for n in ("action", "next.reward", "next.success", "next.truncated", "next.done",
                              "observation.state") if n in self.features]  # fmt: skip
        rows = self.columns(i, wanted)
        count = self.length(i)
        state = rows.get("observation.state", np.zeros((count, 0), np.float32)).reshape(count, -1).astype(np.float32)
        names = layout.column_names(self.features["observation.state"], "state") if state.shape[1] else []
        done, cut = (rows.get(name, np.zeros(count, bool)).reshape(count).astype(bool) for name in
                     ("next.done", "next.truncated"))  # fmt: skip
        reward, success = rows.get("next.reward"), rows.get("next.success")
        return Recording(
            frames={name: self.frames(i, name) for name in (self.cameras if cameras is None else cameras)},
            actions=rows.get("action", np.zeros((count, 0), np.float32)).reshape(count, -1).astype(np.float32),
            signals={name: state[:, k] for k, name in enumerate(names)},
            env_rewards=None if reward is None else reward.reshape(count).astype(np.float32),
            success=None if success is None else success.reshape(count).astype(bool),
            terminated=done & ~cut if "next.truncated" in rows else np.zeros(count, bool),
            instruction=self.instruction(i),
            index=i,
            kind=self.kind(i),
            steps=self.steps(i),
        )

    def columns(self, i: int, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Any numeric features of episode i: name -> (T, *shape), (T,) for shape [1]."""
        table = self._table(i, list(names))
        return {
            name: np.array(table[name].to_pylist()) if self.features[name]["dtype"] == "string" else
            np.array(table[name].to_pylist(), dtype=self.features[name]["dtype"])
            for name in table.column_names
        }  # fmt: skip

    def frames(self, i: int, camera: str, rows: Sequence[int] | None = None) -> np.ndarray:
        """Frames of one camera: (T, H, W, 3) uint8 RGB, or those of some rows, ascending."""
        if camera not in self._keys:
            raise UserError(f"{self.root}: no camera {camera!r}. {nearest(camera, self.cameras)}")
        key = self._keys[camera]
        chosen = list(range(self.length(i))) if rows is None else list(rows)
        if self.features[key]["dtype"] == "image":
            frames = self._images(i, key, chosen)
        else:
            times = self.columns(i, ["timestamp"])["timestamp"].astype(np.float64).reshape(-1)[chosen]
            file, start = self._span(i).videos[key]
            try:
                frames = read_frames(file, start + times)
            except (VideoError, FileNotFoundError) as error:
                raise UserError(f"episode {i}, camera {camera}: {error}") from error
        declared = layout.image_shape(self.features[key])
        if frames.shape[1:3] != declared:
            got = "x".join(map(str, frames.shape[1:3]))
            raise UserError(f"episode {i}, camera {camera}: frames must be {declared} by info.json; got {got}.")
        return frames

    def last(self, i: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What was there after the last action of episode i, where the dataset holds it; nothing elsewhere.

        Returns:
            Camera -> (H, W, 3) uint8 RGB, and feature -> its values.
        """
        kept = self._own.get(str(i), {}).get(layout.LAST, {})
        files = {name: layout.last_file(self.root, name, i) for name in self.cameras}
        frames = {}
        for name, file in files.items():
            if file.is_file():
                try:
                    frames[name] = np.asarray(Image.open(file).convert("RGB"))
                except (OSError, UnidentifiedImageError) as error:
                    raise UserError(f"episode {i}, camera {name}: {file} is damaged: {error}.") from error
        return frames, {name: np.asarray(values, self.features[name]["dtype"]) for name, values in kept.items()}

    def place(self, i: int, camera: str) -> tuple[Path, float]:
        """The file that holds a camera's frames of episode i, and the second at which they begin in it."""
        return self._span(i).videos.get(self._keys[camera], (self._span(i).data, 0.0))

    # Inside ---------------------------------------------------------------------------------------------

    def _span(self, i: int) -> Span:
        if not 0 <= i < len(self.spans):
            raise UserError(f"{self.root}: episode must be from 0 to {len(self.spans) - 1}; got {i}.")
        return self.spans[i]

    def _table(self, i: int, names: list[str]) -> pa.Table:
        span = self._span(i)
        for name in names:
            if name not in self.features:
                raise UserError(f"{self.root}: no feature {name!r}. {nearest(name, self.features)}")
        wanted = list(dict.fromkeys([*names, "frame_index"]))
        table = layout.read_parquet(span.data, f"episode {i}", columns=wanted, filters=[("episode_index", "=", i)])
        if missing := [name for name in wanted if name not in table.column_names]:
            raise UserError(f"{span.data} (episode {i}): column {missing[0]} is missing, which info.json declares.")
        order = np.asarray(table["frame_index"])
        if not np.array_equal(order, np.arange(span.length)):
            raise UserError(
                f"{span.data} (episode {i}): must hold frames 0 to {span.length - 1}; got {len(order)} rows."
            )
        return table.select(names)

    def _images(self, i: int, key: str, rows: list[int]) -> np.ndarray:
        cells = self._table(i, [key])[key].take(rows).to_pylist()
        frames = []
        for row, cell in zip(rows, cells, strict=True):
            try:
                data = cell["bytes"] if cell["bytes"] is not None else self._below(cell["path"]).read_bytes()
                frames.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
            except (OSError, UnidentifiedImageError, TypeError, KeyError) as error:
                raise UserError(
                    f"{self._span(i).data} (episode {i}): image {row} of {key} is damaged: {error}."
                ) from error
        return np.stack(frames)

    def _check_info(self, file: Path) -> None:
        info = self._info
        version = str(info.get("codebase_version", "")) if isinstance(info, dict) else ""
        if not version.startswith(("v3.", "v2.")):
            raise UserError(f"{file}: codebase_version must be v2.x or v3.x; got {version or 'none'!r}.")
        if missing := [key for key in ("fps", "features", "data_path") if key not in info]:
            raise UserError(f"{file}: {', '.join(missing)} must be there. The file is not LeRobot's, or damaged.")

    def _below(self, path: str) -> Path:
        """A path of the dataset's own; templates must not lead out of it."""
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts:
            raise UserError(f"{self.root}: paths must stay inside the dataset; got {path!r}.")
        return self.root / pure

    def _path(self, template: str, **values: Any) -> Path:
        try:
            return self._below(self._info[template].format(**values))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise UserError(f"{self.root}/meta/info.json: {template} must be a path template; {error!r}.") from error

    def _video_keys(self) -> list[str]:
        return [key for key, feature in self.features.items() if feature["dtype"] == "video"]

    def _spans_v3(self, meta: Path) -> list[Span]:
        files = sorted((meta / layout.EPISODES).glob("*/*.parquet"))
        if not files:
            raise UserError(f"{meta / layout.EPISODES}: must hold the episodes' parquet files; there are none.")
        spans: dict[int, Span] = {}
        for file in files:
            table = layout.read_parquet(file, "episodes")
            names = [name for name in table.column_names if not name.startswith("stats/")]
            for row in table.select(names).to_pylist():
                try:
                    spans[row["episode_index"]] = self._span_v3(row)
                except KeyError as error:
                    raise UserError(f"{file}: column {error} is missing.") from error
        if sorted(spans) != list(range(len(spans))):
            raise UserError(f"{meta / layout.EPISODES}: must hold episodes 0 to {len(spans) - 1}; some are missing.")
        return [spans[i] for i in range(len(spans))]

    def _span_v3(self, row: dict[str, Any]) -> Span:
        def place(prefix: str) -> dict[str, int]:
            return {name: row[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}

        videos = {
            key: (self._path("video_path", video_key=key, **place(f"videos/{key}")),
                  float(row[f"videos/{key}/from_timestamp"]))
            for key in self._video_keys()
        }  # fmt: skip
        return Span(row["length"], tuple(row["tasks"]), self._path("data_path", **place("data")), videos)

    def _spans_v2(self, meta: Path) -> list[Span]:
        file, spans = meta / "episodes.jsonl", []
        chunk = int(self._info.get("chunks_size", layout.CHUNK))
        if not file.is_file():
            raise UserError(f"{file}: the file is missing.")
        for number, line in enumerate(file.read_text("utf-8").splitlines()):
            try:
                row = json.loads(line)
                index, length, tasks = int(row["episode_index"]), int(row["length"]), tuple(row.get("tasks", ()))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise UserError(f"{file}: line {number + 1} (episode {number}) is damaged: {error!r}.") from error
            if index != number:
                raise UserError(f"{file}: line {number + 1} must be episode {number}; got {index}.")
            place = {"episode_chunk": index // chunk, "episode_index": index}
            videos = {key: (self._path("video_path", video_key=key, **place), 0.0) for key in self._video_keys()}
            spans.append(Span(length, tasks, self._path("data_path", **place), videos))
        return spans


def _is_depth(feature: Mapping[str, Any]) -> bool:
    about = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(about.get("video.is_depth_map") or about.get("is_depth_map"))


def _nothing_there(root: Path) -> str:
    staged = len(list((root / layout.STAGING).glob("episode-*")))
    if staged:
        return f"{root}: was being written and is not finished; {staged} episodes are kept. Run the same collect again."
    lack = "has none" if root.is_dir() else "is not there"
    return f"{root}: must be a LeRobot dataset (with meta/info.json); it {lack}."
