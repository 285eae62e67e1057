"""Episodes to rewards, the same way at every door: per step, per rollout, in evaluation and when relabelling.

A *row* is what the scorer reads of one moment: every view's features, then the world's signals, (V·D + S,) float32.
An episode of T actions has T + 1 rows, the first from its reset frame. Where a head reads images too, the episode's
first frames, or all of them, are kept beside its rows.

Shape letters: B episodes, T time, V views, D feature width, S signals; H, W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rewards.core import Features, Scorer


class Labels(NamedTuple):
    """What one episode so far is worth.

    Attributes:
        rewards: (T,) float32, one per action.
        potentials: head name -> (T + 1,) float32, one per row.
    """

    rewards: np.ndarray
    potentials: dict[str, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """What a row holds, in order.

    Attributes:
        views: names of the V cameras.
        signals: names of the S signals.
        policy_views: those of the cameras that only the policy sees; no reward reads them.
    """

    views: tuple[str, ...] = ("main",)
    signals: tuple[str, ...] = ()
    policy_views: tuple[str, ...] = ()

    @property
    def reward_views(self) -> dict[str, int]:
        """The cameras that rewards read, by name, and where among the views each is."""
        return {name: v for v, name in enumerate(self.views) if name not in self.policy_views}

    def rows(self, features: np.ndarray, signals: Sequence[Mapping[str, float]]) -> list[np.ndarray]:
        """The rows of N moments.

        Args:
            features: (N·V, D), view by view within a moment.
            signals: N readings by name; others than the layout's are left out.
        """
        moments = features.reshape(len(signals), -1)
        if not self.signals:
            return list(moments)
        readings = np.array([[each[name] for name in self.signals] for each in signals], np.float32)
        return list(np.concatenate([moments, readings], axis=1))


@dataclass
class Track:
    """One episode so far: what is needed to score it.

    Attributes:
        rows: T + 1 of (V·D + S,) float32.
        terminated: T, whether the task itself ended there; a time limit is not a termination.
        frames: of (V, H, W, 3) uint8: none, the first or all T + 1, as the scorer's `frames_read` asks.
        depth: (V, H, W) float32, metres, in the first frame; None where nothing measures it.
    """

    rows: list[np.ndarray] = field(default_factory=list)
    terminated: list[bool] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    depth: np.ndarray | None = None

    def add(self, row: np.ndarray, terminated: bool, frames: np.ndarray | None) -> None:
        """One action later; `frames` (V, H, W, 3) is None unless the scorer reads all of them."""
        self.rows.append(row)
        self.terminated.append(terminated)
        if frames is not None:
            self.frames.append(frames)


def encode(scorer: Scorer, frames: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 -> (N, D) float32, on the CPU."""
    return scorer.encode(torch.from_numpy(frames)).float().cpu().numpy()


@torch.inference_mode()
def label(scorer: Scorer, episodes: Sequence[Track], layout: Layout) -> list[Labels]:
    """Rewards of episodes of any lengths; those of one length are scored together.

    Args:
        scorer: encodes nothing here.
        episodes: at least two rows each.
        layout: what their rows hold.

    Raises:
        FloatingPointError: a head, the combination or the shaping gave NaN or infinity; names it.
    """
    by_length: dict[int, list[int]] = {}
    for i, episode in enumerate(episodes):
        by_length.setdefault(len(episode.rows), []).append(i)
    labels: dict[int, Labels] = {}
    for members in by_length.values():
        features = batch(scorer, [episodes[i] for i in members], layout)
        potentials = scorer.potentials(features)
        combined = scorer.combined(potentials, features)
        ended = torch.tensor([episodes[i].terminated for i in members], dtype=torch.bool)
        rewards = scorer.shaping(combined[:, :-1], combined[:, 1:], ended)
        if not torch.isfinite(rewards).all():
            raise FloatingPointError(f"shaping {type(scorer.shaping).__name__} gave NaN or infinity.")
        for k, i in enumerate(members):
            each = {name: score[k].float().cpu().numpy() for name, score in potentials.items()}
            labels[i] = Labels(rewards[k].float().cpu().numpy(), each)
    return [labels[i] for i in range(len(episodes))]


def batch(scorer: Scorer, episodes: Sequence[Track], layout: Layout) -> Features:
    """The features of B episodes of one length."""
    rows = torch.from_numpy(np.stack([np.stack(each.rows) for each in episodes]).astype(np.float32, copy=False))
    width = (rows.shape[-1] - len(layout.signals)) // len(layout.views)
    images: dict[str, Tensor] = {}
    depth: dict[str, Tensor] = {}
    if scorer.frames_read != "none" and episodes[0].frames:
        seen = torch.from_numpy(np.stack([np.stack(each.frames) for each in episodes]))  # (B, N, V, H, W, 3)
        images = {name: seen[:, :, v] for name, v in layout.reward_views.items()}
        measured = [each.depth for each in episodes if each.depth is not None]
        if len(measured) == len(episodes):
            stacked = torch.from_numpy(np.stack(measured))  # (B, V, H, W)
            depth = {name: stacked[:, v] for name, v in layout.reward_views.items()}
    first_signal = width * len(layout.views)
    return Features(
        views={name: rows[..., v * width : (v + 1) * width] for name, v in layout.reward_views.items()},
        signals={name: rows[..., first_signal + k] for k, name in enumerate(layout.signals)},
        frames=images,
        depth=depth,
    )
