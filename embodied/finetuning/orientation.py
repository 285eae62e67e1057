"""Whether recorded pictures are upright beside the world's own: policies fail without a word where they are not.

Published LIBERO datasets, for one, are mirrored beside what their worlds show.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

_SIDE = 24  # pixels to which pictures are reduced
_ALIKE, _CLEARLY = 0.5, 0.2  # correlation from which two pictures are of one view, and by how much it must be higher
_WAYS = {"mirrored": np.s_[:, ::-1], "upside down": np.s_[::-1], "turned by 180°": np.s_[::-1, ::-1]}


def misplaced(recorded: Sequence[np.ndarray], shown: Sequence[np.ndarray]) -> str | None:
    """How recorded pictures are turned beside the world's: mirrored, upside down or turned by 180°; None: not at all.

    Args:
        recorded: (H, W, 3) uint8 each, of any sizes: first frames of episodes; at least one.
        shown: the same camera's frames of the world after resets; at least one.

    Returns:
        None also where no way of turning them makes them alike, so that nothing can be told.
    """
    first, second = _reduced(recorded), _reduced(shown)
    upright = _correlation(first, second)
    found = {word: _correlation(first[way], second) for word, way in _WAYS.items()}
    best = max(found, key=lambda word: found[word])
    return best if found[best] >= _ALIKE and found[best] >= upright + _CLEARLY else None


def _reduced(frames: Sequence[np.ndarray]) -> np.ndarray:
    """(S, S, 3) the mean picture, small."""
    small = [Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.BOX) for frame in frames]
    return np.mean([np.asarray(each, np.float32) for each in small], 0)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Of each colour apart, so that a scene of one hue is not alike whatever its places are."""
    first, second = (each - each.mean((0, 1)) for each in (first, second))
    norm = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / norm) if norm > 0 else 0.0
