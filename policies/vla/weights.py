"""How much each row of the demonstrations is imitated, from what a reward model says of it.

Shape letters: T rows of an episode.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

KAPPA = 0.01  # progress within a chunk from which a row counts in full


def progress_weights(
    progress: Sequence[Float[np.ndarray, " _"]], horizon: int, *, kappa: float = KAPPA
) -> list[Float[np.ndarray, " _"]]:
    """LeRobot's reward-aligned behaviour cloning: rows that lead forward count, rows that lead back do not.

        δ_t = progress(t + H) − progress(t);   w = 1 where δ > κ, clip((δ − (μ − 2σ)) / (4σ + ε), 0, 1) where
        0 ≤ δ ≤ κ, else 0;   μ, σ over all rows

    Args:
        progress: of each episode, in [0, 1]; what follows its last row is taken to stay there.
        horizon: H.
        kappa: κ. LeRobot's 0.01 gives nearly every moving row weight 1; see its own warning.

    Returns:
        The weights of each episode, in [0, 1].

    Raises:
        ValueError: a horizon of less than 1.

    Source: LeRobot's `sample_weighting.type=rabc`. Departs: not rescaled to sum to the batch, for rows are drawn with
        chances in proportion to them.
    """
    if horizon < 1:
        raise ValueError(f"progress_weights: horizon must be at least 1; got {horizon}.")
    gains = [each[np.minimum(np.arange(len(each)) + horizon, len(each) - 1)] - each for each in progress]
    everything = np.concatenate(gains).astype(np.float64)
    mean, spread = everything.mean(), everything.std()

    def weigh(gain: np.ndarray) -> np.ndarray:
        middle = np.clip((gain - (mean - 2 * spread)) / (4 * spread + 1e-8), 0, 1)
        return np.where(gain > kappa, 1.0, np.where(gain >= 0, middle, 0.0))

    return [weigh(gain.astype(np.float64)) for gain in gains]
