"""Whether recorded pictures are upright beside the world's own: policies fail without a word where they are not.

Published LIBERO datasets, for one, are mirrored beside what their worlds show.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_SIDE = 24  # pixels to which pictures are reduced
_ALIKE, _CLEARLY = 0.5, 0.2  # correlation from which two pictures are of one view, and by how much it must be higher
_WAYS = {"mirrored": np.s_[:, ::-1], "upside down": np.s_[::-1], "turned by 180°": np.s_[::-1, ::-1]}


def misplaced(recorded: np.ndarray, shown: np.ndarray) -> str | None:
    """How recorded pictures are turned beside the world's: mirrored, upside down or turned by 180°; None: not at all.

    Args:
        recorded: (N, H, W, 3) uint8, first frames of episodes.
        shown: (M, H', W', 3) uint8, the same camera's frames of the world after resets.

    Returns:
        None also where no way of turning them makes them alike, so that nothing can be told.
    """
    first, second = _reduced(recorded), _reduced(shown)
    upright = _correlation(first, second)
    found = {word: _correlation(first[way], second) for word, way in _WAYS.items()}
    best = max(found, key=lambda word: found[word])
    return best if found[best] >= _ALIKE and found[best] >= upright + _CLEARLY else None


def _reduced(frames: np.ndarray) -> np.ndarray:
    """(S, S, 3) the mean picture, small."""
    mean = Image.fromarray(np.round(frames.mean(0)).astype(np.uint8))
    return np.asarray(mean.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Of each colour apart, so that a scene of one hue is not alike whatever its places are."""
    first, second = (each - each.mean((0, 1)) for each in (first, second))
    norm = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / norm) if norm > 0 else 0.0
