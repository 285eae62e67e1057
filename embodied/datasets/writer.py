"""A LeRobot v3 dataset, written an episode at a time.

An episode is first staged: encoded into a folder of its own below `.staging`, which gets its name when it is whole.
When enough are staged, and on closing, they are packed: back to back into data and video files of limited size, then
named by a new `meta` folder that takes the old one's place. So whoever kills the writer finds the dataset as it was
after some episode, or none, and the next writer goes on from the staged episodes.

Shape letters: T frames of an episode; H, W image.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embodied.datasets import layout
from embodied.datasets import staged as staging
from embodied.datasets.places import MAX_FPS
from embodied.datasets.video import concatenate, write_video
from embodied.errors import BusyError, UserError
from embodied.files import sync, whole, write_text
from embodied.locks import hold


class Writer:
    """Appends episodes to a dataset, new or of our own making.

    Args:
        root: the folder; new, empty, or written by this class with the same features and fps.
        fps: frames a second, a whole number or not.
        features: numeric ones by name (LeRobot's counters are added), as {"dtype", "shape", "names"}.
        cameras: short name -> (H, W), both even.
        env: the config of the world, for `Dataset.env`.
        made: settings by which the episodes are made; refused where those there were made by others.
        data_mb, video_mb: size after which a new file begins.

    Raises:
        UserError: the folder holds something else.
        BusyError: another process is writing there.
    """

    def __init__(
        self,
        root: Path,
        *,
        fps: int | float,
        features: Mapping[str, Mapping[str, Any]],
        cameras: Mapping[str, tuple[int, int]],
        env: Mapping[str, Any] | None = None,
        made: Mapping[str, int | float | str] | None = None,
        data_mb: int | float = layout.DATA_MB,
        video_mb: int | float = layout.VIDEO_MB,
    ) -> None:
        if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= MAX_FPS:
            raise UserError(f"Writer: fps must be a number above 0; got {fps!r}.")
        for name, (height, width) in cameras.items():
            if height % 2 or width % 2:
                raise UserError(f"Writer: images must have even sizes for H.264; got {height} x {width} of {name}.")
        if bad := [name for name in (*features, *cameras) if "/" in name]:
            raise UserError(f"Writer: names must have no '/'; got {bad[0]!r}.")
        self.root, self.fps = Path(root), int(fps) if float(fps).is_integer() else float(fps)
        self._limits = {"data": data_mb * 1e6, "video": video_mb * 1e6}
        self._videos = {f"observation.images.{name}": size for name, size in cameras.items()}
        shown = {key: layout.video_feature(*size, fps) for key, size in self._videos.items()}
        plain = {name: {**feature, "shape": list(feature["shape"])} for name, feature in features.items()}
        self.features: dict[str, dict[str, Any]] = {**plain, **shown, **layout.COUNTERS}
        self._env, self._made = dict(env or {}), dict(made or {})
        self._meta, self._staging = self.root / "meta", self.root / layout.STAGING
        self._check_folder()
        self._staging.mkdir(parents=True, exist_ok=True)
        self._lock = (self._staging / "lock").open("w")
        try:
            hold(self._lock)
        except OSError as error:
            self._lock.close()
            raise BusyError(
                f"{self.root}: another process is writing here. Wait for it, or write elsewhere."
            ) from error
        try:
            self._recover()
            self._info, self._tasks, self._own = self._former()
            about = {"fps": self.fps, "features": plain, "cameras": dict(cameras), "env": self._env}
            self._staged = self._kept(about)
            self._held = {
                key: sum(_size(each["folder"] / f"{key}.mp4") for each in self._staged) for key in self._videos
            }
            more = {layout.MADE: self._made, "data_mb": data_mb, "video_mb": video_mb}
            write_text(self._staging / layout.OPENED, json.dumps(about | more))
        except BaseException:
            self._leave()
            raise

    @property
    def staged(self) -> int:
        """Whole episodes that no meta data name yet."""
        return len(self._staged)

    @property
    def notes(self) -> Iterator[Mapping[str, Any]]:
        """Of each whole episode in turn, the `own` values that it was added with, in no order that means anything."""
        yield from self._own["episodes"].values()
        yield from (about["own"] for about in self._staged)

    def __len__(self) -> int:
        """Episodes that are whole, staged ones included."""
        return self._info["total_episodes"] + len(self._staged)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:  # what is staged stays; the next writer goes on from there
            self._leave()

    def add(
        self,
        columns: Mapping[str, np.ndarray],
        frames: Mapping[str, np.ndarray],
        *,
        instruction: str,
        last: Mapping[str, np.ndarray] | None = None,
        **own: Any,
    ) -> None:
        """One whole episode; it survives a kill from the moment this returns.

        Args:
            columns: every feature but the cameras and the counters -> (T, *shape), or (T,) for shape [1].
            frames: camera -> (T, H, W, 3) uint8 RGB.
            instruction: the task in words.
            last: what was there after the last action: camera -> (H, W, 3) uint8 RGB, other features -> their shape.
            own: JSON values that LeRobot has no place for: `kind`, `steps`, `seed`.

        Raises:
            UserError: a feature left out or unknown, of another shape or length, or not finite.
        """
        length = self._check_episode(columns, frames)
        ending = {name: value for name, value in (last or {}).items() if name in frames}
        if rest := {name: np.asarray(v).tolist() for name, v in (last or {}).items() if name not in frames}:
            own[layout.LAST] = rest
        index, start = len(self), self._info["total_frames"] + sum(about["length"] for about in self._staged)
        if instruction not in self._tasks:
            self._tasks.append(instruction)
        rows = np.arange(length)
        everything = {
            **columns,
            "timestamp": (rows / self.fps).astype(np.float32),
            "frame_index": rows,
            "episode_index": np.full(length, index),
            "index": start + rows,
            "task_index": np.full(length, self._tasks.index(instruction)),
        }
        table, stats = {}, {}
        for name, feature in self.features.items():
            if feature["dtype"] == "video":
                stats[name] = layout.statistics(np.asarray(frames[layout.short_name(name)]))
                continue
            values = np.asarray(everything[name]).astype(feature["dtype"]).reshape(_shape(length, feature))
            table[name] = layout.arrow_column(values, feature)
            stats[name] = layout.statistics(values)
        about = {"length": length, "instruction": instruction, "own": own, "stats": stats}
        part, final = self._staging / f".part-{index:06d}", self._staging / f"episode-{index:06d}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for key in self._videos:
            write_video(part / f"{key}.mp4", np.asarray(frames[layout.short_name(key)]), self.fps)
        layout.keep_last(part, ending)
        pq.write_table(pa.table(table), part / "data.parquet", compression="snappy")
        (part / staging.ABOUT).write_text(json.dumps(about), "utf-8")
        part.rename(final)
        self._staged.append(staging.kept(about, final))
        for key in self._videos:
            self._held[key] += _size(final / f"{key}.mp4")
        if max(self._held.values(), default=0) >= self._limits["video"]:
            self._pack()

    def close(self) -> None:
        """Pack what is staged; then the dataset is whole."""
        if self._staged:
            self._pack()
        self._leave()

    def _leave(self) -> None:
        """Give the folder back, without traces where no episode is staged."""
        if not any(self._staging.glob("episode-*")):
            shutil.rmtree(self._staging, ignore_errors=True)
        self._lock.close()
        if not any(self.root.iterdir()):
            self.root.rmdir()

    # Opening --------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Undo a kill between the two renames of `_swap_meta`."""
        old = self.root / ".meta.old"
        if old.is_dir() and not self._meta.is_dir():
            old.rename(self._meta)
        shutil.rmtree(old, ignore_errors=True)

    def _check_folder(self) -> None:
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise UserError(f"{self.root}: must be a folder; it is a file.")
        ours = (self._meta / layout.OWN).is_file() or self._staging.is_dir()
        if any(self.root.iterdir()) and not ours:
            raise UserError(f"{self.root}: must be a new folder or a dataset written here; it holds something else.")

    def _former(self) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
        """info.json, tasks and our own notes, as they stand or fresh."""
        if not self._meta.is_dir():
            info = {
                "codebase_version": layout.VERSION, "robot_type": None, "total_episodes": 0, "total_frames": 0,
                "total_tasks": 0, "chunks_size": layout.CHUNK, "data_files_size_in_mb": layout.DATA_MB,
                "video_files_size_in_mb": layout.VIDEO_MB, "fps": self.fps, "splits": {},
                "data_path": layout.DATA_PATH, "video_path": layout.VIDEO_PATH if self._videos else None,
                "features": self.features,
            }  # fmt: skip
            return info, [], {"env": self._env, "episodes": {}} | ({layout.MADE: self._made} if self._made else {})
        info, own = layout.read_json(self._meta / layout.INFO), layout.read_json(self._meta / layout.OWN)
        theirs = {"fps": info["fps"], "features": info["features"], "env": own.get("env")}
        self._check_same({"fps": self.fps, "features": self.features, "env": self._env}, theirs, own)
        named = layout.read_episodes(self._meta / layout.EPISODES, ["episode_index"])
        numbers = [index for column in named.columns for index in column.to_pylist()]
        if len(numbers) != info["total_episodes"] or set(numbers) != set(range(len(numbers))):
            whole = f"0 to {info['total_episodes'] - 1}, each once, as info.json says"
            raise UserError(
                f"{self.root}: meta/episodes must name episodes {whole}; got {str(numbers)[:80]}. Write elsewhere."
            )
        tasks = layout.read_tasks(self._meta / layout.TASKS)
        return info, [tasks[i] for i in range(len(tasks))], own

    def _check_same(self, mine: Mapping[str, Any], theirs: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Refuse to add episodes of another kind to those there, or made in another way; all as JSON tells it."""
        mine = json.loads(json.dumps(mine))
        for key in (key for key in mine if mine[key] != theirs.get(key)):
            new, old = mine[key], theirs.get(key)
            if isinstance(new, dict) and isinstance(old, dict):
                within = next(name for name in {**old, **new} if old.get(name) != new.get(name))
                key, new, old = f"{key}.{within}", new.get(within), old.get(within)
            raise UserError(
                f"{self.root}: new episodes must have the {key} of those there, {str(old)[:80]}; got {str(new)[:80]}. "
                "Write elsewhere."
            )
        for key, value in (notes.get(layout.MADE) or {}).items():
            if key in self._made and self._made[key] != value:
                raise UserError(
                    f"{key} must be {value}, by which the episodes in {self.root} were made; got {self._made[key]}. "
                    "Write elsewhere."
                )

    def _kept(self, mine: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Staged episodes that no meta data names yet, in order; others are cleared away.

        Until they are packed, the note of whoever staged them is all that tells their rate, sizes and world.
        """
        staged: list[dict[str, Any]] = []
        for folder in sorted(self._staging.glob("episode-*")):
            if int(folder.name.removeprefix("episode-")) < self._info["total_episodes"]:
                shutil.rmtree(folder)
                continue
            about = layout.read_json(folder / staging.ABOUT)
            if sorted(about["stats"]) != sorted(self.features):
                raise UserError(f"{self.root}: new episodes must have the features of those there. Write elsewhere.")
            if about["instruction"] not in self._tasks:
                self._tasks.append(about["instruction"])
            staged.append(staging.kept(about, folder))
        opened = self._staging / layout.OPENED
        if staged and opened.is_file():
            theirs = layout.read_json(opened)
            self._check_same(mine, theirs, theirs)
        return staged

    def _check_episode(self, columns: Mapping[str, np.ndarray], frames: Mapping[str, np.ndarray]) -> int:
        wanted = [name for name in self.features if name not in layout.COUNTERS and name not in self._videos]
        if sorted(columns) != sorted(wanted):
            raise UserError(f"Writer.add: columns must be {', '.join(wanted)}; got {', '.join(columns)}.")
        cameras = [layout.short_name(key) for key in self._videos]
        if sorted(frames) != sorted(cameras):
            raise UserError(f"Writer.add: frames must be of {', '.join(cameras)}; got {', '.join(frames)}.")
        lengths = {name: len(values) for name, values in (*columns.items(), *frames.items())}
        length = next(iter(lengths.values()), 0)
        if not length or set(lengths.values()) != {length}:
            raise UserError(f"Writer.add: all must have one length, 1 or more; got {lengths}.")
        for key, (height, width) in self._videos.items():
            images = frames[layout.short_name(key)]
            if images.dtype != np.uint8 or images.shape != (length, height, width, 3):
                expected = f"uint8 {(length, height, width, 3)}"
                raise UserError(f"Writer.add: {key} must be {expected}; got {images.dtype} {images.shape}.")
        for name, values in columns.items():
            if np.asarray(values).size != np.prod(_shape(length, self.features[name])):
                expected, got = _shape(length, self.features[name]), np.shape(values)
                raise UserError(f"Writer.add: {name} must have the shape {expected}; got {got}.")
            if not np.isfinite(np.asarray(values, np.float64)).all():
                raise UserError(f"Writer.add: {name} must be finite.")
        return length

    # Packing --------------------------------------------------------------------------------------------

    def _pack(self) -> None:
        """Staged episodes into files, then into the meta data, then away."""
        staged, first = self._staged, self._info["total_episodes"]
        table = self._episodes()
        rows: list[dict[str, Any]] = []
        ends: set[Path] = set()  # folders of pictures after the last action
        start = self._info["total_frames"]
        for k, about in enumerate(staged):
            ends |= {file.parent for file in layout.place_last(about["folder"], self.root, first + k)}
            end = start + about["length"]
            rows.append({
                "episode_index": first + k, "tasks": [about["instruction"]], "length": about["length"],
                "dataset_from_index": start, "dataset_to_index": end,
                "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
            })  # fmt: skip
            start = end
        for folder in ends:
            self._keep(folder)
        places: list[dict[str, Any]] = [{} for _ in staged]
        self._pack_files(staged, places, table, "data", layout.DATA_PATH, "data.parquet", staging.join_tables)
        for key in self._videos:
            template = layout.VIDEO_PATH.replace("{video_key}", key)

            def join(parts: list[Path], path: Path, group: list[int]) -> None:
                concatenate(parts, path, [staged[k]["length"] for k in group], self.fps)

            self._pack_files(staged, places, table, f"videos/{key}", template, f"{key}.mp4", join)
        new, notes = staging.told(staged, rows, places)
        everything = new if table is None else pa.concat_tables([table, new], promote_options="permissive")
        stats = layout.pooled(new, layout.read_json(self._meta / layout.STATS) if table is not None else None)
        count = first + len(staged)
        info = self._info | {
            "total_episodes": count, "total_frames": start, "total_tasks": len(self._tasks),
            "splits": {"train": f"0:{count}"},
        }  # fmt: skip
        own = self._own | {"episodes": self._own["episodes"] | notes}
        self._swap_meta(info, stats, own, everything)
        self._info, self._own, self._staged, self._held = info, own, [], dict.fromkeys(self._videos, 0)
        for about in staged:
            shutil.rmtree(about["folder"])

    def _pack_files(
        self,
        staged: list[dict[str, Any]],
        places: list[dict[str, Any]],
        table: pa.Table | None,
        prefix: str,
        template: str,
        name: str,
        join: Callable[[list[Path], Path, list[int]], None],
    ) -> None:
        """Join one kind of staged file into files of limited size, after those there; notes where each episode went."""
        number = 0
        if table is not None:
            chunks, files = (np.asarray(table[f"{prefix}/{part}_index"]) for part in ("chunk", "file"))
            named = chunks * layout.CHUNK + files
            number = int(named[~np.isnan(named)].max(initial=-1)) + 1  # NaN: a camera that saw nothing of an episode
        limit = self._limits["data" if prefix == "data" else "video"]
        for group in staging.groups([_size(about["folder"] / name) for about in staged], limit):
            place = {"chunk_index": number // layout.CHUNK, "file_index": number % layout.CHUNK}
            path = self.root / template.format(**place)
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as part:
                join([staged[k]["folder"] / name for k in group], part, group)
                sync(part)
            self._keep(path.parent)
            begin = 0
            for k in group:
                places[k] |= {f"{prefix}/{key}": value for key, value in place.items()}
                if prefix != "data":
                    end = begin + staged[k]["length"]
                    places[k] |= {
                        f"{prefix}/from_timestamp": begin / self.fps,
                        f"{prefix}/to_timestamp": end / self.fps,
                    }
                    begin = end
            number += 1

    def _keep(self, folder: Path) -> None:
        """Have the disk keep a folder's entries, and those of the folders down to it: meta data will name them."""
        while folder != self.root:
            sync(folder)
            folder = folder.parent

    def _episodes(self) -> pa.Table | None:
        """The rows of meta/episodes as they stand, said to lie in the one file that we write."""
        if not self._meta.is_dir():
            return None
        table = layout.read_episodes(self._meta / layout.EPISODES)
        for name in ("meta/episodes/chunk_index", "meta/episodes/file_index"):
            if name in table.column_names:
                column = pa.array(np.zeros(len(table), np.int64))
                table = table.set_column(table.column_names.index(name), name, column)
        return table

    def _swap_meta(self, info: dict[str, Any], stats: layout.Stats, own: dict[str, Any], episodes: pa.Table) -> None:
        part, old = self.root / ".meta.part", self.root / ".meta.old"
        shutil.rmtree(part, ignore_errors=True)
        folder = part / layout.EPISODES / "chunk-000"
        folder.mkdir(parents=True)
        pq.write_table(episodes, folder / "file-000.parquet", compression="snappy")
        pq.write_table(layout.tasks_table(self._tasks), part / layout.TASKS)
        for name, value in ((layout.INFO, info), (layout.STATS, stats), (layout.OWN, own)):
            (part / name).write_text(json.dumps(value, indent=2) + "\n", "utf-8")
        for path in (*part.rglob("*"), part):
            sync(path)
        if self._meta.is_dir():
            self._meta.rename(old)
        part.rename(self._meta)
        sync(self.root)  # after it the staged copies go
        shutil.rmtree(old, ignore_errors=True)


def _shape(length: int, feature: Mapping[str, Any]) -> tuple[int, ...]:
    """Of a column of numbers: shape [1] is a scalar per row."""
    return (length, *(() if list(feature["shape"]) == [1] else feature["shape"]))


def _size(file: Path) -> int:
    return file.stat().st_size
