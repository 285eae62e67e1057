"""Files that are whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from embodied.errors import UserError

KEPT = 2  # checkpoints of a run


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A place beside `file` to write to, which takes its place at the end of the block; an error leaves what was.

    The place has the file's own suffix, so that writers which go by it do what they should.
    """
    part = file.with_name(f".{file.stem}.part{os.getpid()}{file.suffix}")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def check_place(place: Path, setting: str) -> None:
    """Refuse a file or folder that could not be made, before anything is computed for it.

    Args:
        place: it need not be there, nor its folder.
        setting: what errors call it.

    Raises:
        UserError: it lies below a file, or in a folder that may not be written to.
    """
    above = next(each for each in place.absolute().parents if each.exists())
    if not above.is_dir():
        raise UserError(f"{setting} must lie in a folder; got {place}, and {above} is a file.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{setting} must be where you may write; got {place}, and {above} is not.")


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text; a reader sees the old file or the new one, never half."""
    with whole(file) as part:
        part.write_text(text, "utf-8")


def sync(path: Path) -> None:
    """Have the disk keep a file, or a folder's entries, through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_checkpoint(folder: Path, steps: int, write: Callable[[Path], None]) -> Path:
    """Write `checkpoints/<steps>/` of a run folder, whole or not at all, and remove all but the last `KEPT`.

    Args:
        folder: the run folder.
        steps: done so far; one that is there already is replaced.
        write: puts the files into an empty folder.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: it cannot be written, as when the disk is full; the former checkpoint is whole.
    """
    root = folder / "checkpoints"
    root.mkdir(exist_ok=True)
    final, part = root / f"{steps:010d}", root / ".part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        write(part)
        for path in (*part.iterdir(), part):
            sync(path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        last = latest_checkpoint(folder)
        raise UserError(
            f"checkpoint: {root} must take {final.name}; got {error}. "
            + (f"The checkpoint {last.name} is whole; go on from it with resume=true." if last else "")
        ) from error
    former = root / ".former"  # a kill in the middle of its removal must leave no half of it under its name
    shutil.rmtree(former, ignore_errors=True)
    if final.exists():
        final.rename(former)
    part.rename(final)
    sync(root)
    shutil.rmtree(former, ignore_errors=True)
    for old in sorted(path for path in root.iterdir() if path.name.isdigit())[:-KEPT]:
        shutil.rmtree(old)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    found = sorted(path for path in (folder / "checkpoints").glob("[0-9]*") if path.is_dir())
    return found[-1] if found else None
