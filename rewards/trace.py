"""What a curve of progress says of the episode it is of: how far it came, by what way, and what it lost and won back.

For auditing a policy with a reward model instead of with one bit an episode. All in float64 NumPy.

Shape letters: T rows of an episode.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

STALL = 0.005  # a step that changes progress by less is none
EPSILON = 1e-6  # of the share that is won back
NOISE = 1e-12  # a fall below this is a rounding


class Trace(NamedTuple):
    """Figures of one episode.

    Attributes:
        reached: MP, the greatest progress; in [0, 1].
        path_efficiency: PPL, reached² over the whole way that progress went, up and down from 0; 1 is straight there.
        regression: CRA, how far progress lies below its highest so far, on the mean, as a share of `reached`; 0 is
            none, lower is better.
        stalls: STR, the share of steps that change progress by less than `STALL`.
        recovery: DRR, the share of the largest fall that is won back after it; 1 where progress never fell.
        fell: whether it ever did: means of `recovery` are of such episodes alone.
    """

    reached: float
    path_efficiency: float
    regression: float
    stalls: float
    recovery: float
    fell: bool


def trace(progress: ArrayLike, *, stall: float = STALL) -> Trace:
    """The figures of a curve.

    Args:
        progress: (T,) in [0, 1], T ≥ 1; an episode starts from 0 before its first row.
        stall: a change below this is none.

    Raises:
        ValueError: no curve, or one that leaves [0, 1].
    Source: PRM-as-a-Judge, arXiv 2608.14284 (MP, PPL, CRA, STR, DRR) and its code. Departs: the curve is taken as it
        is, without removing outliers or smoothing first.
    """
    values = np.asarray(progress, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise ValueError(f"trace: progress must be (T,), T ≥ 1, in [0, 1]; got shape {values.shape}.")
    steps = np.abs(np.diff(values, prepend=0.0))
    highest, way = np.maximum.accumulate(values), float(steps.sum())
    reached = float(values.max())
    falls = highest - values
    worst = int(np.argmax(falls))
    fell = bool(falls[worst] > NOISE)
    won = float(values[worst:].max() - values[worst])
    return Trace(
        reached=reached,
        path_efficiency=min(1.0, reached**2 / way) if way > 1e-9 else 0.0,
        regression=float(falls.mean()) / reached if reached > 0 else 0.0,
        stalls=float((steps < stall).mean()),
        recovery=min(1.0, (won + EPSILON) / (float(falls[worst]) + EPSILON)) if fell else 1.0,
        fell=fell,
    )
