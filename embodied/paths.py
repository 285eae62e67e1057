"""Where the package's data lies: beside the packages in a checkout, inside `embodied` in a wheel."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _data(folder: str) -> Path:
    inside = _HERE / folder
    return inside if inside.is_dir() else _HERE.parent / folder


def asset(name: str) -> Path:
    """The path of a file or folder below `sim_assets/`."""
    return _data("sim_assets") / name


def configs() -> Path:
    """The folder of Hydra configs."""
    return _data("configs")


def elsewhere(verb: str) -> str:
    """The setting by which a verb writes into another place, as the end of an advice; "" where it has none."""
    file = configs() / f"{verb}.yaml"
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    keys = [key for line in lines if (key := line.partition(":")[0]) in ("run", "out", "record")]
    return f", or write elsewhere with {keys[0]}=…" if keys else ""


def python_path() -> str:
    """PYTHONPATH of another Python, run with -P: it imports what this one does, whatever lies in the working folder."""
    return os.pathsep.join(each or str(Path.cwd()) for each in sys.path)
