"""Episodes on disk: LeRobot datasets, read (v2.x and v3.0) and written (v3.0) with pyarrow and PyAV.

dataset = Dataset("path/to/lerobot")             # embodied.collecting.opening.open_dataset also takes names
dataset.recording(0).frames["front"]             # (T, H, W, 3) uint8
encoding.encode(dataset, encoder)                # features of all episodes, made once; needs torch, unlike the rest
"""

from __future__ import annotations

from embodied.datasets.reader import Dataset, Recording
from embodied.datasets.writer import Writer

__all__ = ["Dataset", "Recording", "Writer"]
