"""A LeRobot dataset of what was watched: one episode for each of the stream's.

While an episode runs, its images lie in a journal, raw and one after another, with a line of numbers for each row; a
killed process loses nothing of it. When the episode ends the journal becomes an episode of the dataset, in another
process (`embodied.sinks.packing`).

A dataset's frames are 1 / fps apart. A recorded source's moments are its rows; a live source's come when they come, so
a row holds the newest moment at its time. An episode ends with the stream's, where the goal changes, where the pictures
are stale for over a second (then time would not be even), after a minute without a moment, and when its journal grows
too large.

Features: `potential.<head>` and `potential.combined` of the row; `reward.combined`, the sum of the rewards until the
next row; `success.predicted`, where the stream tells success, and `next.done` then; `scored` tells where a row had a
reading (else the last known potentials stand), `stale` where its pictures are old, `captured_s` is the clock of the
capture. `next.reward` and `next.success` are the task's own in our datasets, and a camera knows neither.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from embodied.sinks.files import Appended
from embodied.sinks.packing import ABOUT, JOURNAL, ROWS, pack_elsewhere, plain
from embodied.watching.watched import Watched

MAX_BYTES = 512_000_000  # of one journal's images
STALE_S = 1.0  # of old pictures that an episode may hold at a time
GAP_S = 60.0  # between moments of one episode, whose rows in between repeat the first
TASK = "watch"  # of an episode without a goal


class DatasetSink:
    """Writes `dataset/` below a record's folder.

    Args:
        root: the record's folder; nobody else writes there.
        live: whether moments come when they come.
        fps: of the dataset.
    """

    name = "dataset"

    def __init__(self, root: Path, *, live: bool, fps: int | float) -> None:
        self._root, self._live, self._fps = root, live, fps
        self._journal: _Journal | None = None
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
            if self._journal is not None:
                self._journal.close(whole=not self._failed)
        finally:
            self._thread.shutdown(cancel_futures=self._failed)
        if not self._failed:
            self._collect()
            if self._number:
                pack_elsewhere(self._root)

    def _write(self, watched: Watched) -> None:
        journal = self._journal
        if journal is not None and journal.ended_by(watched):
            self._end()
            journal = None
        if journal is None:
            if watched.reading is None or watched.stale or not watched.frames:
                return  # an episode begins with a reading
            for view, frame in watched.frames.items():
                if not all(_even(frame.image.shape)):
                    height, width = frame.image.shape[:2]
                    raise OSError(f"{view}: a dataset's pictures have 2 x 2 pixels or more; got {height} x {width}")
            folder = self._root / JOURNAL / f"{self._started}-{self._number:06d}"
            self._number += 1
            journal = self._journal = _Journal(folder, watched, live=self._live, fps=self._fps)
        journal.add(watched)

    def _end(self) -> None:
        journal = self._journal
        assert journal is not None
        journal.close()  # its last row is written here: it may fail, and the journal is then still ours
        self._journal = None
        self._packing.append(self._thread.submit(pack_elsewhere, self._root, journal.folder))

    def _collect(self) -> None:
        """Raise what packing met."""
        while self._packing and self._packing[0].done():
            self._packing.pop(0).result()


class _Journal:
    """One episode as it comes."""

    def __init__(self, folder: Path, first: Watched, *, live: bool, fps: int | float) -> None:
        assert first.reading is not None
        folder.mkdir(parents=True)
        self.folder, self._live, self._fps = folder, live, fps
        self._sizes = {view: _even(frame.image.shape) for view, frame in first.frames.items()}
        self._heads = tuple(first.reading.potentials)
        self._goal, self._episode = first.goal, first.reading.episode
        about = {
            "fps": fps, "views": {plain(view): size for view, size in self._sizes.items()}, "heads": self._heads,
            "instruction": first.goal or TASK, "started": first.time,
        }  # fmt: skip
        (folder / ABOUT).write_text(json.dumps(about), "utf-8")
        self._images = {view: Appended(folder / f"{plain(view)}.rgb") for view in self._sizes}
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
            "success": watched.success,
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
        self._rows.write(json.dumps(row | {"next_reward": reward, "next_success": success}).encode() + b"\n")


def _even(shape: tuple[int, ...]) -> tuple[int, int]:
    """(H, W) that H.264 takes; an odd image loses its last row or column."""
    return shape[0] // 2 * 2, shape[1] // 2 * 2
