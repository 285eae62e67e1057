"""Episodes on disk: LeRobot datasets, read (v2.x and v3.0) and written (v3.0) with pyarrow and PyAV.

dataset = open_dataset("desk-drawer-mixed")      # or a LeRobot folder
dataset.recording(0).frames["front"]             # (T, H, W, 3) uint8
encode(dataset, encoder)                         # features of all episodes, made once
"""

from __future__ import annotations

from pathlib import Path

from embodied.datasets.encoding import encode
from embodied.datasets.reader import Dataset, Recording
from embodied.datasets.writer import Writer
from embodied.envs import WORLDS
from embodied.errors import UserError, nearest

__all__ = ["COLLECTED", "Dataset", "Recording", "Writer", "encode", "open_dataset"]

COLLECTED = Path("runs", "collect")
POLICIES = ("expert", "mixed", "random")


def open_dataset(source: str | Path) -> Dataset:
    """A dataset by folder or by name.

    Args:
        source: a LeRobot folder; or `<world>-<policy>` (policy one of `POLICIES`), a dataset below `COLLECTED`, which
            is collected first if it is not there.

    Raises:
        UserError: neither; or a damaged dataset.
    """
    root, name = Path(source), str(source)
    if root.exists() or len(root.parts) > 1:
        return Dataset(root)
    if (COLLECTED / name / "meta").is_dir():
        return Dataset(COLLECTED / name)
    world, _, policy = name.rpartition("-")
    if world not in WORLDS or policy not in POLICIES:
        known = [f"{each}-{kind}" for each in WORLDS for kind in POLICIES]
        raise UserError(
            f"data must be a LeRobot folder or a name such as desk-drawer-mixed; got {name!r}. {nearest(name, known)}"
        )
    from embodied.cli import compose
    from embodied.commands import collect

    return collect.collect(compose("collect", [f"env={world}", f"policy={policy}"]))
