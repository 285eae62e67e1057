"""A LeRobot dataset of what was watched: one episode for each of the stream's.

While an episode runs, its images lie in a journal, raw and one after another, with a line of numbers for each row; a
killed process loses nothing of it. When the episode ends the journal becomes an episode of the dataset, on a thread of
its own, since encoding its video takes a while.

A dataset's frames are 1 / fps apart. A recorded source's moments are its rows; a live source's come when they come, so
a row holds the newest moment at its time. An episode ends with the stream's, where the goal changes, where the pictures
are stale for over a second (then time would not be even), after a minute without a moment, and when its journal grows
too large.

Features: `potential.<head>` and `potential.combined` of the row; `reward.combined`, the sum of the rewards until the
next row; `success.predicted` and `next.done` then; `scored` tells where a row had a reading (else the last known
potentials stand), `stale` where its pictures are old, `captured_s` is the clock of the capture. `next.reward` and
`next.success` are the task's own in our datasets, and a camera knows neither.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from embodied.datasets import Writer
from embodied.datasets import layout as files
from embodied.errors import UserError
from embodied.files import write_text
from embodied.sinks.files import Appended
from embodied.watching.watched import Watched

JOURNAL = ".journal"
ABOUT, ROWS = "about.json", "rows.jsonl"
WRITER = "writer.json"  # with what the dataset was opened
MAX_BYTES = 512_000_000  # of one journal's images
STALE_S = 1.0  # of old pictures that an episode may hold at a time
GAP_S = 60.0  # between moments of one episode, whose rows in between repeat the first
TASK = "watch"  # of an episode without a goal
BOOL = {"dtype": "bool", "shape": [1], "names": None}
FLOAT = {"dtype": "float32", "shape": [1], "names": None}
CLOCK = {"dtype": "float64", "shape": [1], "names": None}


class Episodes:
    """Writes `dataset/` below a record's folder.

    Args:
        root: the record's folder; nobody else writes there.
        live: whether moments come when they come.
        fps: of the dataset.
    """

    name = "dataset"

    def __init__(self, root: Path, *, live: bool, fps: int) -> None:
        self._root, self._live, self._fps = root, live, fps
        self._journal: _Journal | None = None
        self._packer: Packer | None = None
        self._thread = ThreadPoolExecutor(1, "packing")
        self._packing: list[Future[None]] = []
        self._number, self._failed, self._closed = 0, False, False
        self._started = time.time_ns()  # makes the journals' names their own among all runs

    def write(self, watched: Watched) -> None:
        try:
            self._collect()
            self._write(watched)
        except OSError:
            self._failed = True
            raise

    def close(self) -> None:
        """The last episode, and all that are not packed yet; after a failure they stay journals, for `recover`."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._journal is not None and not self._failed:
                self._end()
        finally:
            if self._journal is not None:
                self._journal.close(whole=False)
            self._thread.shutdown(cancel_futures=self._failed)
        if not self._failed:
            self._collect()
        if self._packer is not None:
            self._packer.close(whole=not self._failed)

    def _write(self, watched: Watched) -> None:
        journal = self._journal
        if journal is not None and journal.ended_by(watched):
            self._end()
            journal = None
        if journal is None:
            if watched.reading is None or watched.stale or not watched.frames:
                return  # an episode begins with a reading
            folder = self._root / JOURNAL / f"{self._started}-{self._number:06d}"
            self._number += 1
            journal = self._journal = _Journal(folder, watched, live=self._live, fps=self._fps)
        journal.add(watched)

    def _end(self) -> None:
        journal = self._journal
        assert journal is not None
        journal.close()  # its last row is written here: it may fail, and the journal is then still ours
        self._journal = None
        self._packing.append(self._thread.submit(self._pack, journal.folder))

    def _pack(self, folder: Path) -> None:
        if self._packer is None:
            self._packer = Packer(self._root)
        self._packer.pack(folder)

    def _collect(self) -> None:
        """Raise what packing met."""
        while self._packing and self._packing[0].done():
            self._packing.pop(0).result()


class _Journal:
    """One episode as it comes."""

    def __init__(self, folder: Path, first: Watched, *, live: bool, fps: int) -> None:
        assert first.reading is not None
        folder.mkdir(parents=True)
        self.folder, self._live, self._fps = folder, live, fps
        self._sizes = {view: _even(frame.image.shape) for view, frame in first.frames.items()}
        self._heads = tuple(first.reading.potentials)
        self._goal, self._episode = first.goal, first.reading.episode
        about = {
            "fps": fps, "views": {_plain(view): size for view, size in self._sizes.items()}, "heads": self._heads,
            "instruction": first.goal or TASK, "started": first.time,
        }  # fmt: skip
        (folder / ABOUT).write_text(json.dumps(about), "utf-8")
        self._images = {view: Appended(folder / f"{_plain(view)}.rgb") for view in self._sizes}
        self._rows = Appended(folder / ROWS)
        self._waiting: tuple[dict[str, Any], dict[str, np.ndarray]] | None = None  # a row whose reward is yet to come
        self._row, self._reward = -1, 0.0
        self._start_s = self._last_s = first.at_s
        self._stale_since: float | None = None
        self._closed = False

    def ended_by(self, watched: Watched) -> bool:
        """Whether this moment belongs to another episode, or to none."""
        if watched.stale:
            if self._stale_since is None:
                self._stale_since = watched.at_s
            return watched.at_s - self._stale_since > STALE_S
        if self._stale_since is not None and watched.at_s - self._stale_since > STALE_S:
            return True
        self._stale_since = None
        other = watched.reading is not None and watched.reading.episode != self._episode
        sizes = {view: _even(frame.image.shape) for view, frame in watched.frames.items()}
        held = sum(file.size for file in self._images.values())
        gap = watched.at_s - self._last_s > GAP_S
        return other or gap or watched.goal != self._goal or sizes != self._sizes or held > MAX_BYTES

    def add(self, watched: Watched) -> None:
        """A moment at its place in time: a new row, after copies of the last one where some were passed over."""
        place = round((watched.at_s - self._start_s) * self._fps) if self._live else self._row + 1
        reading, self._last_s = watched.reading, watched.at_s
        if reading is not None and reading.reward is not None and self._waiting is not None:
            self._reward += reading.reward
        if self._waiting is not None and place <= self._row:
            return  # this row has its moment; what came with a later one is what followed it
        former = self._waiting[0] if self._waiting is not None else None
        if former is not None:
            for _ in range(self._row, place - 1):
                self._flush(0.0, former["success"])
            self._flush(self._reward, watched.success)
            self._reward = 0.0
        known = reading.potentials if reading else former["potentials"] if former else {}
        row = {
            "potentials": {name: known.get(name, 0.0) for name in self._heads},
            "combined": reading.combined if reading else former["combined"] if former else 0.0,
            "scored": reading is not None,
            "stale": watched.stale,
            "success": bool(watched.success),
            "captured_s": next(iter(watched.frames.values())).captured_s,
        }
        self._row, self._waiting = place, (row, {view: frame.image for view, frame in watched.frames.items()})

    def close(self, *, whole: bool = True) -> None:
        """Write the last row, if it is to be `whole`."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._waiting is not None and whole:
                self._flush(self._reward, self._waiting[0]["success"])
        finally:
            for file in (*self._images.values(), self._rows):
                file.close()

    def _flush(self, reward: float, success: bool | None) -> None:
        """The waiting row, images first: rows without all their images are none."""
        assert self._waiting is not None
        row, images = self._waiting
        for view, (height, width) in self._sizes.items():
            self._images[view].write(np.ascontiguousarray(images[view][:height, :width]).data)
        self._rows.write(json.dumps(row | {"next_reward": reward, "next_success": bool(success)}).encode() + b"\n")


class Packer:
    """Journals into the episodes of a dataset.

    Args:
        root: the record's folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._writer: Writer | None = None

    def pack(self, folder: Path) -> None:
        """One journal into one episode; then it goes. One that is packed already, or holds no row, only goes.

        Raises:
            OSError: it could not be written; the journal stays.
        """
        try:
            about = files.read_json(folder / ABOUT)
            columns, frames = _read(folder, about)
            if columns is not None:
                features = _features(about["heads"])
                self._open(about["fps"], features, about["views"])
                assert self._writer is not None
                if folder.name not in _journals(self._writer.root):
                    self._writer.add(
                        columns, frames, instruction=about["instruction"], kind="watched", journal=folder.name,
                        started=about["started"],
                    )  # fmt: skip
        except UserError as error:
            raise OSError(f"the episode in {folder} cannot be packed: {error}") from error
        shutil.rmtree(folder)

    def open_again(self) -> None:
        """The dataset as a killed run had it, with its whole episodes that it had not packed yet."""
        about = self._root / JOURNAL / WRITER
        if about.is_file():
            was = files.read_json(about)
            self._open(was["fps"], was["features"], was["views"])

    def close(self, *, whole: bool) -> None:
        """Finish the dataset; without `whole`, what is not packed stays for `recover`."""
        writer, self._writer = self._writer, None
        journal = self._root / JOURNAL
        if writer is not None:
            if not whole:
                writer.__exit__(OSError, None, None)
                return
            writer.close()
        (journal / WRITER).unlink(missing_ok=True)
        if journal.is_dir() and not any(journal.iterdir()):
            journal.rmdir()

    def _open(self, fps: int, features: Mapping[str, Any], views: Mapping[str, Any]) -> None:
        """The dataset these episodes fit: the one open, an earlier one, or a new one."""
        wanted = {"fps": fps, "features": features, "views": {view: list(size) for view, size in views.items()}}
        about = self._root / JOURNAL / WRITER
        if self._writer is not None:
            if files.read_json(about) == json.loads(json.dumps(wanted)):
                return
            self._writer.close()
            self._writer = None
        for number in range(1, 1000):
            root = self._root / ("dataset" if number == 1 else f"dataset-{number:03d}")
            there = root.exists()
            try:
                self._writer = Writer(root, fps=fps, features=features, cameras={v: tuple(s) for v, s in views.items()})
            except UserError:
                if there:
                    continue
                raise
            write_text(about, json.dumps(wanted))
            return


def _features(heads: list[str]) -> dict[str, Any]:
    names = [f"potential.{_plain(head)}" for head in heads] + ["potential.combined"]
    flags = dict.fromkeys(("next.done", "success.predicted", "scored", "stale"), BOOL)
    return {"reward.combined": FLOAT, **flags, **dict.fromkeys(names, FLOAT), "captured_s": CLOCK}


def _read(folder: Path, about: Mapping[str, Any]) -> tuple[dict[str, np.ndarray] | None, dict[str, np.ndarray]]:
    """A journal's whole rows, as `Writer.add` takes them; None where there is none. Images stay on the disk."""
    rows: list[dict[str, Any]] = []
    path = folder / ROWS
    if path.is_file():
        rows = [json.loads(each) for each in path.read_bytes().split(b"\n")[:-1]]
    count = len(rows)
    for view, (height, width) in about["views"].items():
        image = folder / f"{view}.rgb"
        count = min(count, image.stat().st_size // (height * width * 3) if image.is_file() else 0)
    if not count:
        return None, {}
    rows = rows[:count]
    columns = {
        "reward.combined": np.array([row["next_reward"] for row in rows], np.float32),
        "next.done": np.arange(count) == count - 1,
        "success.predicted": np.array([row["next_success"] for row in rows]),
        "scored": np.array([row["scored"] for row in rows]),
        "stale": np.array([row["stale"] for row in rows]),
        "potential.combined": np.array([row["combined"] for row in rows], np.float32),
        "captured_s": np.array([row["captured_s"] for row in rows], np.float64),
    }
    for head in about["heads"]:
        columns[f"potential.{_plain(head)}"] = np.array([row["potentials"][head] for row in rows], np.float32)
    frames = {
        view: np.memmap(folder / f"{view}.rgb", np.uint8, "r", shape=(count, height, width, 3))
        for view, (height, width) in about["views"].items()
    }
    return columns, frames  # pyright: ignore[reportReturnType]


def _journals(root: Path) -> set[str]:
    """Names of the journals that are episodes of a dataset already."""
    found: set[str] = set()
    for staged in (root / files.STAGING).glob("episode-*/episode.json"):
        found.add(files.read_json(staged)["own"].get("journal", ""))
    own = root / "meta" / files.OWN
    if own.is_file():
        found.update(each.get("journal", "") for each in files.read_json(own)["episodes"].values())
    return found


def recover(root: Path) -> list[str]:
    """Make episodes of the journals that a killed run left, and pack its dataset; what was done, in words.

    Raises:
        OSError: one could not be packed; it stays.
    """
    journal = root / JOURNAL
    if not journal.is_dir():
        return []
    left = sorted(each for each in journal.iterdir() if each.is_dir())
    packer = Packer(root)
    whole = False
    try:
        packer.open_again()
        for folder in left:
            if (folder / ABOUT).is_file() and (folder / ABOUT).stat().st_size:
                packer.pack(folder)
            else:  # killed at its very start
                shutil.rmtree(folder)
        whole = True
    finally:
        packer.close(whole=whole)
    return [f"dataset: {len(left)} episodes of a run that was killed"] if left else ["dataset: packed"]


def _plain(name: str) -> str:
    """A name as LeRobot allows it."""
    return name.replace("/", "_")


def _even(shape: tuple[int, ...]) -> tuple[int, int]:
    """(H, W) that H.264 takes; an odd image loses its last row or column."""
    return shape[0] // 2 * 2, shape[1] // 2 * 2
