"""LeRobot folders as anybody's tools may write them, drawn from a seed, and what is in them, frame by frame.

    made = folder(root, seed)
    Dataset(made.root)  # must tell made.episodes, and nothing else

Every picture carries a number of its own: `number_of(picture(n)) == n`, after any codec.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZE = 32
CODECS = (  # codec, pixel format, options
    ("libx264", "yuv420p", {"preset": "ultrafast"}),
    ("libx264", "yuv420p", {"preset": "ultrafast", "g": "2", "bf": "0"}),
    ("libx264", "yuv420p", {"preset": "veryfast", "g": "50", "bf": "3"}),
    ("libx264", "yuv444p", {"preset": "ultrafast"}),
    ("libx264", "yuvj420p", {"preset": "ultrafast"}),
    ("mpeg4", "yuv420p", {}),
    ("libx265", "yuv420p", {"preset": "ultrafast", "x265-params": "log-level=none:ctu=16:crf=10:bframes=0"}),
    ("libx265", "yuv420p10le", {"preset": "ultrafast", "x265-params": "log-level=none:ctu=16:crf=10:bframes=0"}),
    ("libvpx-vp9", "yuv420p", {"cpu-used": "8", "deadline": "realtime"}),
    ("libsvtav1", "yuv420p", {"preset": "10", "crf": "20", "g": "2"}),  # LeRobot's own
    ("png", "rgb24", {}),
)
RATES: tuple[tuple[float, Fraction], ...] = (  # of the rows, of the film
    (10, Fraction(10)), (30, Fraction(30)), (50, Fraction(50)), (29.97, Fraction(30000, 1001)),
    (29.97, Fraction(2997, 100)), (23.976, Fraction(24000, 1001)), (0.5, Fraction(1, 2)), (12.5, Fraction(25, 2)),
    (15, Fraction(30)),
)  # fmt: skip
TASKS = (
    "open the drawer",
    "抽屉开着",
    "${oc.env:HOME} {0} {task} %s",
    "توقف",
    "🦾\nup",
    "a" * 400,
    "<b>'\"&\\",
    "é\u0301",
)


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """The thread's scheduling as it was, afterwards: run by root, SVT-AV1 makes its thread real-time."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def picture(number: int) -> np.ndarray:
    """(32, 32, 3) uint8: a number's 16 bits as blocks."""
    bits = np.array([number >> k & 1 for k in range(16)]).reshape(4, 4)
    return np.repeat(np.kron(np.where(bits, 225, 30), np.ones((8, 8)))[:, :, None], 3, 2).astype(np.uint8)


def number_of(image: np.ndarray) -> int:
    bits = image.reshape(4, 8, 4, 8, 3)[:, 2:6, :, 2:6].mean((1, 3, 4)).reshape(-1) > 127
    return int(sum(1 << k for k, bit in enumerate(bits) if bit))


@dataclass
class Made:
    """What a folder holds.

    Attributes:
        root: the folder.
        fps: of its rows.
        cameras: short names that must be told, in any order.
        episodes: of those with rows, in order: the numbers in the files, and for every camera its pictures' numbers
            (None: it saw nothing of it), for every row its task, time, action and success (None: unknown).
    """

    root: Path
    fps: float
    cameras: set[str] = field(default_factory=set)
    episodes: list[dict[str, Any]] = field(default_factory=list)


def folder(root: Path, seed: int) -> Made:
    """A folder drawn from a seed."""
    return _Maker(root, np.random.default_rng(seed)).made


class _Maker:
    def __init__(self, root: Path, rng: np.random.Generator) -> None:
        self.rng, self.root = rng, root
        self.new = rng.random() < 0.65
        self.fps, self.rate = RATES[rng.integers(len(RATES))]
        self.step = round(float(self.rate) / self.fps)  # pictures a row
        self.made = Made(root, self.fps)
        self.numbers = 0
        count = int(rng.integers(1, 5))
        self.lengths = [int(rng.integers(1, 8)) for _ in range(count)]
        if self.chance(0.15):
            self.lengths[rng.integers(count)] = 0
        if not any(self.lengths):
            self.lengths[0] = 3
        self.indices = list(range(count))
        if not self.new and self.chance(0.3):  # one was taken out
            self.indices = [index + (index >= count // 2) for index in self.indices]
        self.keys = self.names()
        self.rows: list[dict[str, Any]] = [{} for _ in self.indices]
        self.columns: list[dict[str, Any]] = [{} for _ in self.indices]
        self.features: dict[str, Any] = {}
        self.episodes = [
            {"index": i, "length": n, "pictures": {}} for i, n in zip(self.indices, self.lengths, strict=True)
        ]
        self.plain()
        self.tasks()
        for key in self.keys:
            self.camera(key)
        if self.chance(0.3):
            self.depth()
        self.files()
        self.links()
        self.made.episodes = [each for each in self.episodes if each["length"]]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def names(self) -> list[str]:
        pool = ["front", "wrist", "камера", "cam 1", "top.left"]
        chosen = self.rng.choice(len(pool), int(self.rng.integers(1, 3)), replace=False)
        return [f"observation.images.{pool[k]}" for k in chosen]

    # Columns --------------------------------------------------------------------------------------------

    def plain(self) -> None:
        one = {"shape": [1], "names": None}
        stamped, jitter = self.chance(0.85), self.rng.choice([0, 0, 1e-4, 1e-3])
        whole = {name: {"dtype": "int64", **one} for name in ("frame_index", "episode_index", "index")}
        self.features |= {"action": {"dtype": "float32", "shape": [2], "names": None}, **whole}
        if stamped:
            self.features["timestamp"] = {"dtype": "float32", **one}
        succeeds = self.chance(0.5)
        if succeeds:
            self.features["next.success"] = {"dtype": "bool", **one}
        start = 0
        for episode, columns in zip(self.episodes, self.columns, strict=True):
            n = episode["length"]
            noise = self.rng.uniform(-1, 1, n) * min(float(jitter), 0.2 / self.fps)
            episode["times"] = (np.arange(n) / self.fps + (noise if stamped else 0)).astype(np.float32)
            episode["action"] = self.rng.normal(size=(n, 2)).astype(np.float32)
            columns["action"] = pa.array(episode["action"].tolist(), pa.list_(pa.float32()))
            columns["frame_index"] = pa.array(np.arange(n))
            columns["episode_index"] = pa.array(np.full(n, episode["index"]))
            columns["index"] = pa.array(start + np.arange(n))
            if stamped:
                columns["timestamp"] = pa.array(episode["times"])
            if succeeds:
                values = [bool(value) for value in self.rng.random(n) < 0.5]
                unknown = n and self.chance(0.2)
                episode["success"] = None if unknown else values
                columns["next.success"] = pa.array([*values[:-1], None] if unknown else values, pa.bool_())
            else:
                episode["success"] = None
            start += n

    def tasks(self) -> None:
        texts = [TASKS[k] for k in self.rng.choice(len(TASKS), 3, replace=False)]
        self.texts, each_frame, told = texts, self.chance(0.3), self.chance(0.85)
        if told:
            self.features["task_index"] = {"dtype": "int64", "shape": [1], "names": None}
        for episode, columns, row in zip(self.episodes, self.columns, self.rows, strict=True):
            n = episode["length"]
            same = np.full(n, self.rng.integers(3))
            indices = self.rng.integers(0, 3, n) if each_frame and told else same
            episode["tasks"] = [texts[k] for k in indices]
            if told:
                columns["task_index"] = pa.array(indices.astype(np.int64))
            row["tasks"] = sorted(set(episode["tasks"])) or None
        self.told = told

    # Pictures -------------------------------------------------------------------------------------------

    def fresh(self, n: int) -> list[int]:
        self.numbers += n
        return [(k * 40503) % 65536 for k in range(self.numbers - n, self.numbers)]

    def camera(self, key: str) -> None:
        short = key.removeprefix("observation.images.")
        self.made.cameras.add(short)
        kind = "video" if self.chance(0.75) else "image"
        shape, names = [SIZE, SIZE, 3], ["height", "width", "channels"]
        if self.chance(0.3):
            shape, names = [3, SIZE, SIZE], ["channels", "height", "width"]
        self.features[key] = {"dtype": kind, "shape": shape, "names": names if self.chance(0.8) else None}
        (self.films if kind == "video" else self.stills)(key, short)

    def stills(self, key: str, short: str) -> None:
        form, outside = self.rng.choice(["PNG", "JPEG", "WEBP"]), self.chance(0.3)
        mode = "L" if self.chance(0.2) else "RGB"
        if mode == "L" and self.chance(0.5):
            self.features[key] |= {"shape": [SIZE, SIZE, 1], "names": ["height", "width", "channels"]}
        for k, (episode, columns) in enumerate(zip(self.episodes, self.columns, strict=True)):
            numbers = episode["pictures"][short] = self.fresh(episode["length"])
            cells = []
            for row, number in enumerate(numbers):
                buffer = io.BytesIO()
                Image.fromarray(picture(number)).convert(mode).save(buffer, str(form), quality=95)
                path = f"images/{k}-{row}-{short}.{form}".replace(" ", "_")
                if outside:
                    (self.root / "images").mkdir(parents=True, exist_ok=True)
                    (self.root / path).write_bytes(buffer.getvalue())
                cells.append({"bytes": None if outside else buffer.getvalue(), "path": path})
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            columns[key] = pa.array(cells, kind)

    def films(self, key: str, short: str) -> None:
        codec, pix_fmt, options = CODECS[self.rng.integers(len(CODECS))]
        if self.chance(0.5):
            self.features[key]["info"] = {"video.pix_fmt": pix_fmt, "video.codec": codec, "video.is_depth_map": False}
        drift = self.rng.choice([0, 0, 1.5e-4]) if self.fps < 100 else 0
        group: list[int] = []
        number = 0
        for k, episode in enumerate(self.episodes):
            if self.new and episode["length"] and self.chance(0.08):  # this camera saw nothing of it
                episode["pictures"][short] = None
                for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp"):
                    self.rows[k][f"videos/{key}/{name}"] = None
                continue
            if not self.new:
                chunk = episode["index"] // 2
                file = self.root / f"videos/chunk-{chunk:03d}/{key}/episode_{episode['index']:06d}.mp4"
                if episode["length"]:
                    self.film(file, [k], short, codec, pix_fmt, options)
                continue
            group.append(k)
            if k == len(self.episodes) - 1 or self.chance(0.4):
                number += self.flush(group, number, key, short, codec, pix_fmt, options, float(drift))
                group = []
        if group:
            self.flush(group, number, key, short, codec, pix_fmt, options, float(drift))

    def flush(
        self, group: list[int], number: int, key: str, short: str, codec: str, pix_fmt: str, options: Any, drift: float
    ) -> int:
        file = self.root / f"videos/{key}/chunk-{number // 2:03d}/file-{number % 2:03d}.mp4"
        begin, told = 0.0, self.chance(0.7)
        for k in group:
            length = self.lengths[k] / self.fps
            self.rows[k] |= {
                f"videos/{key}/chunk_index": number // 2, f"videos/{key}/file_index": number % 2,
                f"videos/{key}/from_timestamp": begin + (drift if begin else 0),
                f"videos/{key}/to_timestamp": begin + length if told else None,
            }  # fmt: skip
            begin += length
        if any(self.lengths[k] for k in group):
            self.film(file, group, short, codec, pix_fmt, options)
        return 1

    def film(self, file: Path, group: list[int], short: str, codec: str, pix_fmt: str, options: Any) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with unhurried(), av.open(str(file), "w") as out:
            stream: Any = out.add_stream(codec, rate=self.rate, options=options)
            stream.width = stream.height = SIZE
            stream.pix_fmt = pix_fmt
            stream.codec_context.thread_count = 1
            at = 0
            for k in group:
                numbers = self.episodes[k]["pictures"][short] = self.fresh(self.lengths[k])
                for number in np.repeat(numbers, self.step) if self.step > 1 else numbers:
                    frame = av.VideoFrame.from_ndarray(picture(int(number)), format="rgb24")
                    frame.pts, frame.time_base = at, 1 / self.rate
                    out.mux(stream.encode(frame))
                    at += 1
            out.mux(stream.encode())

    def depth(self) -> None:
        """A camera that no colour reader may take, first in the list, and flagged or not."""
        key, flagged = "observation.images.depth", self.chance(0.5)
        about = {"info": {"is_depth_map": True}} if flagged else {}
        shape = [SIZE, SIZE, 1 if self.chance(0.5) else 3]
        self.features = {key: {"dtype": "image", "shape": shape, "names": None, **about}, **self.features}
        buffer = io.BytesIO()
        Image.fromarray(np.full((SIZE, SIZE), 900, np.uint16)).save(buffer, "PNG")
        for episode, columns in zip(self.episodes, self.columns, strict=True):
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            columns[key] = pa.array([{"bytes": buffer.getvalue(), "path": None}] * episode["length"], kind)

    # Files ----------------------------------------------------------------------------------------------

    def files(self) -> None:
        meta = self.root / "meta"
        meta.mkdir(parents=True, exist_ok=True)
        info = {
            "codebase_version": "v3.0" if self.new else "v2.1", "fps": self.fps, "features": self.features,
            "total_episodes": len(self.indices), "chunks_size": 2,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet" if self.new
            else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4" if self.new
            else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        }  # fmt: skip
        (meta / "info.json").write_text(json.dumps(info, ensure_ascii=self.chance(0.5)), "utf-8")
        parts: dict[Path, list[pa.Table]] = {}
        number = 0
        for k, episode in enumerate(self.episodes):
            row = self.rows[k] | {"episode_index": episode["index"], "length": episode["length"]}
            if self.new:
                number += int(k > 0 and self.chance(0.4))
                file = self.root / f"data/chunk-{number // 2:03d}/file-{number % 2:03d}.parquet"
                row |= {"data/chunk_index": number // 2, "data/file_index": number % 2}
            else:
                file = self.root / f"data/chunk-{episode['index'] // 2:03d}/episode_{episode['index']:06d}.parquet"
            self.rows[k] = row
            parts.setdefault(file, []).append(pa.table(self.columns[k]))
        for file, tables in parts.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            table = pa.concat_tables(tables)
            if self.chance(0.2):
                table = table.take(pa.array(self.rng.permutation(len(table))))
            pq.write_table(table, file, row_group_size=int(self.rng.integers(1, 20)))
        if self.new:
            self.write_v3(meta)
        else:
            lines = [json.dumps(row, ensure_ascii=False) for row in self.rows]
            (meta / "episodes.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
            tasks = [json.dumps({"task_index": k, "task": text}) for k, text in enumerate(self.texts)]
            if self.told:
                (meta / "tasks.jsonl").write_text("\n".join(tasks) + "\n", "utf-8")

    def write_v3(self, meta: Path) -> None:
        tasks = {"task_index": list(range(3)), ["task", "__index_level_0__"][int(self.chance(0.3))]: self.texts}
        if self.told:
            pq.write_table(pa.table(tasks), meta / "tasks.parquet")
        half = int(self.rng.integers(1, len(self.rows) + 1))
        for number, rows in enumerate((self.rows[:half], self.rows[half:])):
            file = meta / f"episodes/chunk-000/file-{number:03d}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            names = list(dict.fromkeys(name for row in self.rows for name in row))
            if rows:
                pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), file)

    def links(self) -> None:
        disk = self.root.with_name(f"{self.root.name} disk")
        for part in ("data", "videos"):
            if (self.root / part).is_dir() and self.chance(0.15):
                disk.mkdir(exist_ok=True)
                (self.root / part).rename(disk / part)
                (self.root / part).symlink_to(disk / part)
        if self.chance(0.15):  # as a cache of the Hub lays them out
            for k, file in enumerate(sorted(self.root.rglob("*.parquet"))):
                disk.mkdir(exist_ok=True)
                file.rename(disk / f"blob{k}")
                file.symlink_to(disk / f"blob{k}")


def add_column(data: Path, name: str, dtype: str, values: list) -> None:
    """A column of one value an episode."""
    file, info = data / "data/chunk-000/file-000.parquet", data / "meta/info.json"
    rows = pq.read_table(file)
    pq.write_table(rows.append_column(name, [[values[i] for i in rows["episode_index"].to_pylist()]]), file)
    about = json.loads(info.read_text())
    about["features"][name] = {"dtype": dtype, "shape": [1], "names": None}
    info.write_text(json.dumps(about))
