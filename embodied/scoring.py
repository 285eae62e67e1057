"""Episodes to rewards, the same way at every door: per step, per rollout, in evaluation and when relabelling.

A *row* is what the scorer reads of one moment: the frame's features, then the world's signals, (D + S,) float32.
An episode of T actions has T + 1 rows, the first from its reset frame.

Shape letters: B episodes, T time, D feature width, S signals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from rewards.core import Features, Scorer


class Labels(NamedTuple):
    """What one episode so far is worth.

    Attributes:
        rewards: (T,) float32, one per action.
        potentials: head name -> (T + 1,) float32, one per row.
    """

    rewards: np.ndarray
    potentials: dict[str, np.ndarray]


def encode(scorer: Scorer, frames: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 -> (N, D) float32, on the CPU."""
    return scorer.encode(torch.from_numpy(frames)).float().cpu().numpy()


def row(features: np.ndarray, signals: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
    """One row of a frame's features (D,) and the signals of that moment."""
    if not names:
        return features
    return np.concatenate([features, np.array([signals[name] for name in names], np.float32)])


@torch.inference_mode()
def label(
    scorer: Scorer, rows: Sequence[np.ndarray], terminated: Sequence[np.ndarray], names: Sequence[str] = ()
) -> list[Labels]:
    """Rewards of episodes of any lengths; those of one length are scored together.

    Args:
        scorer: encodes nothing here.
        rows: per episode (T + 1, D + S).
        terminated: per episode (T,) bool; a time limit is not a termination.
        names: the S signals.

    Raises:
        FloatingPointError: a head, the combination or the shaping gave NaN or infinity; names it.
    """
    by_length: dict[int, list[int]] = {}
    for i, episode in enumerate(rows):
        by_length.setdefault(len(episode), []).append(i)
    labels: dict[int, Labels] = {}
    for members in by_length.values():
        batch = torch.from_numpy(np.stack([rows[i] for i in members]).astype(np.float32, copy=False))
        width = batch.shape[-1] - len(names)
        signals = {name: batch[..., width + k] for k, name in enumerate(names)}
        features = Features(views={"main": batch[..., :width]}, signals=signals)
        potentials = scorer.potentials(features)
        combined = scorer.combined(potentials, features)
        ended = torch.from_numpy(np.stack([terminated[i] for i in members]))
        rewards = scorer.shaping(combined[:, :-1], combined[:, 1:], ended)
        if not torch.isfinite(rewards).all():
            raise FloatingPointError(f"shaping {type(scorer.shaping).__name__} gave NaN or infinity.")
        for k, i in enumerate(members):
            each = {name: score[k].float().cpu().numpy() for name, score in potentials.items()}
            labels[i] = Labels(rewards[k].float().cpu().numpy(), each)
    return [labels[i] for i in range(len(rows))]
