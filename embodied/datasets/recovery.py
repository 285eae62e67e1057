"""Finishing, on reading, what a killed writer left: whole episodes that no meta data name yet are packed.

A writer that is at work holds the folder's lock, and is left alone; so is a folder that cannot be written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embodied.datasets import layout
from embodied.errors import BusyError, UserError


def finish(root: Path) -> int:
    """Pack the episodes that a killed writer staged.

    Args:
        root: of a dataset, or of what was to become one.

    Returns:
        How many were packed; 0 where nothing was left, someone is writing, or nobody may write.

    Raises:
        UserError: what is there cannot be packed.
    """
    staging = root / layout.STAGING
    if not any(staging.glob("episode-*")) and not ((root / ".meta.old").is_dir() and not (root / "meta").is_dir()):
        return 0
    try:
        writer = _again(root)
    except (BusyError, OSError):
        return 0
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # none of ours, or damaged
        raise UserError(
            f"{staging}: cannot be finished ({error!r}). It is damaged; remove it to read the rest."
        ) from error
    if writer is None:
        return 0
    kept = writer.staged
    try:
        writer.close()
    except OSError as error:
        raise UserError(f"{root}: what a killed run left cannot be packed ({error}). Make room on the disk.") from error
    return kept


def _again(root: Path) -> Any:
    """The `Writer` as it was opened before it was killed; None where nobody knows how."""
    from embodied.datasets.writer import Writer

    opened, info = root / layout.STAGING / layout.OPENED, root / "meta" / layout.INFO
    if opened.is_file():
        about = layout.read_json(opened)
    elif info.is_file() and (root / "meta" / layout.OWN).is_file():
        was, own = layout.read_json(info), layout.read_json(root / "meta" / layout.OWN)
        films = {key: feature for key, feature in was["features"].items() if feature["dtype"] == "video"}
        plain = {k: f for k, f in was["features"].items() if k not in films and k not in layout.COUNTERS}
        cameras = {layout.short_name(key): layout.image_shape(feature) for key, feature in films.items()}
        about = {"fps": was["fps"], "features": plain, "cameras": cameras, "env": own.get("env")}
    else:
        return None
    cameras = {name: tuple(size) for name, size in about.pop("cameras").items()}
    return Writer(root, cameras=cameras, **about)
