"""A dataset copied file by file, whether its folders and files are links or not, and compared with what it was.

Nothing of the old one may be deleted before the copy is known to hold everything.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from embodied.datasets import layout
from embodied.datasets.reader import Dataset
from embodied.errors import UserError


def files(root: Path) -> list[Path]:
    """Every file of a dataset, relative to its folder, links followed; what a killed writer left is no part of it.

    Raises:
        UserError: a link that leads nowhere, or back to a folder above it.
    """
    found: list[Path] = []
    for place, folders, names in os.walk(root, followlinks=True, onerror=_refuse):
        here = Path(place)
        above = {here.resolve(), *here.resolve().parents}
        if here == root:
            folders[:] = [name for name in folders if name != layout.STAGING]
        for name in (*folders, *names):
            path = here / name
            if not path.exists():
                raise UserError(f"{path}: is a link to nothing. Mend or remove it.")
            if name in folders and path.is_symlink() and path.resolve() in above:
                raise UserError(f"{path}: is a link to a folder above it. Remove it.")
        found += [(here / name).relative_to(root) for name in names if (here / name).is_file()]
    return sorted(found)


def copy(root: Path, part: Path, change: Callable[[Path, Path], None]) -> None:
    """A whole copy, its films linked to the same bytes where the disk can.

    Args:
        root: of the dataset.
        part: the new folder.
        change: writes a data file (of rows) again, from its place to its new one.

    Raises:
        UserError: it cannot be copied, or the copy lacks something; `part` is gone then.
    """
    try:
        part.mkdir(parents=True)
        for file in files(root):
            source, target = root / file, part / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if is_data(file):
                change(source, target)
            elif file.suffix == ".mp4":
                _link(source, target)
            else:
                shutil.copy2(source, target)
        compare(root, part)
    except (OSError, pa.ArrowException) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"{part.parent}: must take a copy of {root}; got {getattr(error, 'strerror', None) or error}. "
            "Make room, or give another folder with out=. The dataset is as it was."
        ) from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def compare(root: Path, part: Path) -> None:
    """UserError where a copy lacks a file, a byte of a film or a row that the dataset has."""
    had, has = files(root), files(part)
    if missing := sorted(set(had) - set(has)):
        raise UserError(f"{part}: must hold what {root} holds; {missing[0]} is missing. The dataset is as it was.")
    for file in had:
        if is_data(file):
            same = pq.read_metadata(root / file).num_rows == pq.read_metadata(part / file).num_rows
        else:
            same = file.parts[0] == "meta" or (root / file).stat().st_size == (part / file).stat().st_size
        if not same:
            raise UserError(f"{part}: must hold what {root} holds; {file} differs. The dataset is as it was.")
    old, new = Dataset(root), Dataset(part)
    for before, after in zip(old.spans, new.spans, strict=True):
        places = [before.data, *(clip.file for clip in before.videos.values())]
        copies = [after.data, *(clip.file for clip in after.videos.values())]
        if any(place.is_file() and not twin.is_file() for place, twin in zip(places, copies, strict=True)):
            raise UserError(f"{part}: must hold episode {before.index}, and lacks files. The dataset is as it was.")


def is_data(file: Path) -> bool:
    """Whether a file, relative to its dataset, holds rows."""
    return file.suffix == ".parquet" and file.parts[0] == "data"


def _link(source: Path, target: Path) -> None:
    """A film takes no more room in a copy: nobody changes one in place."""
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror}).") from error
