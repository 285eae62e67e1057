"""Finishing, on reading, what a killed writer left: whole episodes that no meta data name yet are packed.

A writer that is at work holds the folder's lock, and is left alone; so is a folder that cannot be written.
"""

from __future__ import annotations

from pathlib import Path

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
    from embodied.datasets.writer import Writer

    try:
        writer = Writer.again(root)
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
