"""Episodes and streams to rewards: one way, for every door."""

from embodied.scoring.episodes import Labels, Layout, Track, batch, encode, label

__all__ = ["Labels", "Layout", "Track", "batch", "encode", "label"]
