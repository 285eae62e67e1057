"""A folder of what was watched: one run's files beside those of earlier runs, held by one writer at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from embodied.errors import UserError
from embodied.locks import hold
from embodied.sinks.background import Background
from embodied.watching.watched import Sink, Watched

LOCK = ".lock"
FILES = ("readings.jsonl", "readings.parquet", "overlay.mp4", "watch.rrd", "watch.mcap")
ROOM, LINES_ROOM = 8, 64  # moments that may wait for one of its files, with their images


class Folder:
    """The folder itself; closed after what is written in it. As a sink it only keeps others out.

    Finishes what a killed run left unfinished; `recovered` says what.

    Args:
        root: made where there is none.
        new: whether it may be new.

    Raises:
        UserError: it cannot be made or written, or another process records there.
    """

    name = "record"

    def __init__(self, root: Path, *, new: bool = True) -> None:
        self.root = root
        if not new and not root.is_dir():
            raise UserError(f"{root}: there is no such folder.")
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = (root / LOCK).open("w")
        except OSError as error:
            raise UserError(f"record={root}: cannot be written ({error.strerror}). Choose another folder.") from error
        try:
            try:
                hold(self._lock)
            except OSError as error:
                raise UserError(f"record={root}: another process records there. Choose another folder.") from error
            try:
                self.recovered = recover(root)
            except OSError as error:
                reason = f"what an earlier run left there cannot be finished ({error})"
                raise UserError(f"record={root}: {reason}. Make room, or choose another folder.") from error
            self._number = next(n for n in range(1, 1_000_000) if not any(self._path(f, n).exists() for f in FILES))
        except BaseException:
            self._lock.close()
            raise

    def path(self, name: str) -> Path:
        """Of this run's file: `overlay.mp4`, or `overlay-002.mp4` in the second run."""
        return self._path(name, self._number)

    def _path(self, name: str, number: int) -> Path:
        path = self.root / name
        return path if number == 1 else path.with_stem(f"{path.stem}-{number:03d}")

    def write(self, watched: Watched) -> None:
        """Nothing: others write here."""

    def close(self) -> None:
        self._lock.close()


def recover(root: Path) -> list[str]:
    """Finish what a killed run left unfinished. Nothing that was recorded is lost or recorded twice.

    Args:
        root: of a record nobody is writing.

    Returns:
        What was done, in words; nothing where all is whole.

    Raises:
        OSError: something could not be finished, for want of room; what was recorded is still there.
    """
    done: list[str] = []
    for part in _ours(root, "readings.parquet.part"):
        part.unlink()
    for lines in _ours(root, "readings.jsonl"):
        if not lines.with_suffix(".parquet").exists():
            from embodied.sinks.jsonl import make_parquet

            done.append(f"{make_parquet(lines).name}: made from {lines.name}")
    for log in _ours(root, "watch.mcap"):
        from embodied.sinks.mcap_file import finish

        if finish(log):
            done.append(f"{log.name}: finished")
    from embodied.sinks import packing

    return [*done, *packing.recover(root)]


def _ours(root: Path, name: str) -> list[Path]:
    """Every run's file of this name; others in the folder, however alike, are somebody else's."""
    stem, suffixes = name.split(".", 1)
    named = re.compile(rf"{re.escape(stem)}(-\d{{3,}})?\.{re.escape(suffixes)}")
    return sorted(each for each in root.iterdir() if named.fullmatch(each.name))


def recording(folder: Folder, formats: Sequence[str], *, live: bool, fps: int | float) -> Iterator[Sink]:
    """The sinks of one run, one a format, each on a thread of its own."""
    from embodied.sinks.jsonl import ReadingsFile

    readings = ReadingsFile(folder.path("readings.jsonl"), parquet="parquet" in formats)
    yield Background(readings, live=live, room=LINES_ROOM)
    if "overlay" in formats:
        from embodied.sinks.overlay import Overlay

        yield Background(Overlay(folder.path("overlay.mp4")), live=live, room=ROOM)
    if "lerobot" in formats:
        from embodied.sinks.dataset import DatasetSink

        yield Background(DatasetSink(folder.root, live=live, fps=fps), live=live, room=ROOM)
    if "rerun" in formats:
        from embodied.sinks.rerun_view import RerunFile

        yield Background(RerunFile(folder.path("watch.rrd"), live=live), live=live, room=ROOM)
    if "mcap" in formats:
        from embodied.sinks.mcap_file import McapFile

        yield Background(McapFile(folder.path("watch.mcap")), live=live, room=ROOM)
