"""One running episode, scored as its frames arrive: the same numbers as scoring it whole, afterwards.

A row is encoded by whoever holds the frames (one stream, or many clients' in one batch); an `EpisodeStream` keeps the
rows of one episode and says what each new one is worth.

Shape letters: T rows so far, V views, D feature width, S signals; H, W image.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch

from embodied import scoring
from embodied.scoring import Layout, Track
from rewards.core import Scorer

# Of one episode: where the past is read whole each time, where heads remember it (10 min at 30 frames/s), and where
# none reads it and only a new goal is told of it (5 min).
MAX_ROWS, MAX_REMEMBERED, MAX_TOLD = 3000, 18_000, 9000


class Reading(NamedTuple):
    """What one moment of a stream is worth.

    Attributes:
        episode: of the stream, from 0.
        row: within the episode, from 0.
        potentials: head name -> φ, in the head's own units.
        combined: the one potential that is shaped.
        reward: of the transition that led here, as if it did not terminate; None at an episode's first row.
    """

    episode: int
    row: int
    potentials: dict[str, float]
    combined: float
    reward: float | None


class EpisodeStream:
    """Rows in, readings out; one episode after another.

    Heads that can (`Scorer.advances`) see one row at a time, so the cost of a reading does not grow; others are given
    the whole episode so far. An episode whose past is read has at most `max_rows`; the row after begins a new one by
    itself, which `Reading.episode` tells.

    Args:
        scorer: its heads score; it encodes only in `encode`.
        layout: what a row holds.
        max_rows: of one episode that is kept, ≥ 2: for heads that read the past, and for `rescored`; None:
            `MAX_TOLD` where no head reads the past, `MAX_REMEMBERED` where all can go on row by row, else `MAX_ROWS`.

    Raises:
        ValueError: fewer than two rows, or a head that reads later ones.
    """

    def __init__(self, scorer: Scorer, layout: Layout | None = None, *, max_rows: int | None = None) -> None:
        scorer.check_causal("EpisodeStream")
        if max_rows is None:
            max_rows = MAX_TOLD if scorer.pointwise else MAX_REMEMBERED if scorer.advances else MAX_ROWS
        if max_rows < 2:
            raise ValueError(f"EpisodeStream: max_rows must be at least 2; got {max_rows}.")
        self.scorer, self.layout, self._max_rows = scorer, layout or Layout(), max_rows
        self.episode, self._index = 0, 0
        self._rows: deque[np.ndarray] = deque(maxlen=max_rows)
        self._frames: list[np.ndarray] = []  # as many as the next row is scored with
        self._memories: dict[str, Any] | None = None  # of the heads; None at the reset
        self._before: torch.Tensor | None = None  # (1, 1), the combined potential of the row before

    def encode(self, frames: np.ndarray, signals: dict[str, float] | None = None) -> np.ndarray:
        """One moment's row, (V, H, W, 3) uint8 -> (V·D + S,) float32."""
        return self.layout.rows(scoring.encode(self.scorer, frames), [signals or {}])[0]

    def restart(self) -> None:
        """The next row begins a new episode."""
        if self._index:
            self.episode += 1
        self._index, self._before, self._frames, self._memories = 0, None, [], None
        self._rows.clear()

    @torch.inference_mode()
    def push(self, row: np.ndarray, frames: np.ndarray | None = None) -> Reading:
        """The reading of one more row.

        Args:
            row: (V·D + S,) float32.
            frames: (V, H, W, 3) uint8, where the scorer reads images (`Scorer.frames_read`).

        Raises:
            FloatingPointError: a head or the combination gave NaN or infinity; the stream is as before.
            ValueError: the scorer reads images and there are none.
        """
        reads = self.scorer.frames_read
        if reads != "none" and frames is None:
            raise ValueError(f"EpisodeStream.push: frames must be given: the scorer reads {reads} of them; got None.")
        if not self.scorer.pointwise and self._index >= self._max_rows:
            self.restart()
        advances, memories, images = self.scorer.advances, None, self._frames
        if frames is not None and (reads == "all" or (reads == "first" and not images)):
            images = [frames] if advances else [*images, frames]
        track = Track([row] if advances else [*self._rows, row], frames=images)
        features = scoring.batch(self.scorer, [track], self.layout)
        if advances:
            potentials, memories = self.scorer.advance(features, self._memories)
        else:
            potentials = self.scorer.potentials(features)
        combined = self.scorer.combined(potentials, features)[:, -1:]
        reward = None
        if self._before is not None:
            reward = float(self.scorer.shaping(self._before, combined, torch.zeros(1, 1, dtype=torch.bool)))
        last = {name: float(values[0, -1]) for name, values in potentials.items()}
        self._frames, self._memories = images, memories
        return self.take(row, last, combined, reward)

    def take(
        self, row: np.ndarray, potentials: dict[str, float], combined: torch.Tensor, reward: float | None
    ) -> Reading:
        """Go on by one row that has been scored; `combined` (1, 1)."""
        reading = Reading(self.episode, self._index, potentials, float(combined), reward)
        self._rows.append(row)
        self._before = combined
        self._index += 1
        return reading

    @torch.inference_mode()
    def rescored(self, scorer: Scorer) -> list[dict[str, float]]:
        """Go on with another scorer of the same encoder; nothing is encoded again.

        Returns:
            What its heads say of the rows that are kept, oldest first: the last `max_rows` of this episode. None where
            they would look into images that are gone; then the next row begins a new episode.

        Raises:
            ValueError: another encoder, or one that reads images the stream was not given.
        """
        if scorer.encoder is not self.scorer.encoder:
            raise ValueError("EpisodeStream.rescored: scorer must have the encoder of the rows; got another.")
        if scorer.frames_read != "none" and scorer.frames_read != self.scorer.frames_read and self._index:
            raise ValueError(
                f"EpisodeStream.rescored: the scorer reads {scorer.frames_read} images, which were not kept. Restart."
            )
        if scorer.frames_read == "all" and scorer.advances:
            self.restart()
        past: list[dict[str, float]] = []
        before = memories = None
        if self._rows:
            features = scoring.batch(scorer, [Track(list(self._rows), frames=self._frames)], self.layout)
            if scorer.advances:
                potentials, memories = scorer.advance(features)
            else:
                potentials = scorer.potentials(features)
            before = scorer.combined(potentials, features)[:, -1:]
            past = [{name: float(values[0, t]) for name, values in potentials.items()} for t in range(len(self._rows))]
        self.scorer, self._before, self._memories = scorer, before, memories
        return past
