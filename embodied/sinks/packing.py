"""Journals of watched episodes into episodes of a LeRobot dataset.

Encoding a video takes memory of which C libraries do not give everything back, and time of which Python's lock takes a
part. So a camera that is watched has it done in another process, `python -m embodied.sinks.packing ROOT [JOURNAL]`,
which gives way to the camera and ends with it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from embodied.datasets import Writer
from embodied.datasets import layout as files
from embodied.errors import BusyError, UserError
from embodied.files import write_text
from embodied.paths import python_path
from embodied.sinks.files import read_lines

JOURNAL = ".journal"
ABOUT, ROWS = "about.json", "rows.jsonl"
WRITER = "writer.json"  # with what the dataset was opened
NICENESS = 10
BOOL = {"dtype": "bool", "shape": [1], "names": None}
FLOAT = {"dtype": "float32", "shape": [1], "names": None}
CLOCK = {"dtype": "float64", "shape": [1], "names": None}


def pack_elsewhere(root: Path, folder: Path | None = None) -> None:
    """Pack in another process, and wait for it.

    Args:
        root: the record's folder.
        folder: one journal, whose episode is then staged; without it, all that are left, and the dataset is finished.

    Raises:
        OSError: it could not be written, or the other process failed; the journal stays.
    """
    arguments = [str(root)] if folder is None else [str(root), str(folder)]
    command = [sys.executable, "-P", "-m", "embodied.sinks.packing", *arguments]
    # A process group of its own, for Ctrl-C is not meant for it; a pipe, whose end tells it that we are gone.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stderr is not None
    with process.stdin, process.stderr as told:
        error = told.read().decode(errors="replace").strip()
        status = process.wait()
    if status:
        raise OSError(error or f"packing {folder or root} ended with exit status {status}")


class Packer:
    """Journals into the episodes of a dataset.

    Args:
        root: the record's folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._writer: Writer | None = None
        self._packed: set[str] = set()  # names of the journals that are episodes of it already

    def pack(self, folder: Path) -> None:
        """One journal into one episode; then it goes. One that is packed already, or holds no row, only goes.

        Raises:
            OSError: it could not be written; the journal stays.
        """
        try:
            about = files.read_json(folder / ABOUT)
            columns, frames = _read(folder, about)
            if columns is not None:
                features = _features(about["heads"], tells="success.predicted" in columns)
                self._open(about["fps"], features, about["views"])
                assert self._writer is not None
                if folder.name not in self._packed:
                    self._writer.add(
                        columns, frames, instruction=about["instruction"], kind="watched", journal=folder.name,
                        started=about["started"],
                    )  # fmt: skip
                    self._packed.add(folder.name)
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
        """Finish the dataset, whose journals are all packed; without `whole`, what is not stays for `recover`."""
        writer, self._writer = self._writer, None
        if not whole:
            if writer is not None:
                writer.__exit__(OSError, None, None)
            return
        if writer is not None:
            writer.close()
        shutil.rmtree(self._root / JOURNAL)

    def _open(self, fps: int | float, features: Mapping[str, Any], views: Mapping[str, Any]) -> None:
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
            except BusyError as error:  # it may be the one these episodes belong to
                raise OSError(str(error)) from error
            except UserError:
                if there:
                    continue
                raise
            self._packed = {each.get("journal", "") for each in self._writer.notes}
            write_text(about, json.dumps(wanted))
            return


def _features(heads: list[str], *, tells: bool) -> dict[str, Any]:
    """The dataset's columns; of a stream that does not tell success there is none of it: unknown is not no."""
    names = [f"potential.{plain(head)}" for head in heads] + ["potential.combined"]
    flags: dict[str, Any] = dict.fromkeys(("next.done", "success.predicted", "scored", "stale"), BOOL)
    if not tells:
        del flags["success.predicted"]
    return {"reward.combined": FLOAT, **flags, **dict.fromkeys(names, FLOAT), "captured_s": CLOCK}


def _read(folder: Path, about: Mapping[str, Any]) -> tuple[dict[str, np.ndarray] | None, dict[str, np.ndarray]]:
    """A journal's whole rows, as `Writer.add` takes them; None where there is none. Images stay on the disk."""
    rows = list(read_lines(folder / ROWS)) if (folder / ROWS).is_file() else []
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
        **_said([row["next_success"] for row in rows]),
        "scored": np.array([row["scored"] for row in rows]),
        "stale": np.array([row["stale"] for row in rows]),
        "potential.combined": np.array([row["combined"] for row in rows], np.float32),
        "captured_s": np.array([row["captured_s"] for row in rows], np.float64),
    }
    for head in about["heads"]:
        columns[f"potential.{plain(head)}"] = np.array([row["potentials"][head] for row in rows], np.float32)
    frames = {
        view: np.memmap(folder / f"{view}.rgb", np.uint8, "r", shape=(count, height, width, 3))
        for view, (height, width) in about["views"].items()
    }
    return columns, frames  # pyright: ignore[reportReturnType]


def _said(told: list[bool | None]) -> dict[str, np.ndarray]:
    """The column of success, if any row tells it; a row without a reading keeps what the last one said."""
    if all(each is None for each in told):
        return {}
    known, last = [], False
    for each in told:
        last = last if each is None else each
        known.append(last)
    return {"success.predicted": np.array(known)}


def _stage(root: Path, folder: Path) -> None:
    """One journal, into the dataset as the journals before it left it."""
    packer = Packer(root)
    try:
        packer.open_again()
        packer.pack(folder)
    finally:
        packer.close(whole=False)


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


def plain(name: str) -> str:
    """A name as LeRobot allows it."""
    return name.replace("/", "_")


def main(arguments: list[str]) -> int:
    """The other process; its exit status."""
    for each in (signal.SIGINT, signal.SIGTERM):  # sent to all of a service, of which this is the one to finish
        signal.signal(each, signal.SIG_IGN)
    os.nice(NICENESS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    root, *folders = map(Path, arguments)
    try:
        if folders:
            _stage(root, folders[0])
        else:
            recover(root)
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _end_with_parent() -> None:
    os.read(0, 1)  # unbuffered: a buffer's lock, held here, would stop the interpreter's own end
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
