"""One running episode, scored as its frames arrive: the same numbers as scoring it whole, afterwards.

A row is encoded by whoever holds the frames (one stream, or many clients' in one batch); an `EpisodeStream` keeps the
rows of one episode and says what each new one is worth.

Shape letters: T rows so far, V views, D feature width, S signals; H, W image.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import torch

from embodied import scoring
from embodied.scoring import Layout, Track
from rewards.core import Scorer

MAX_ROWS = 3000  # of one episode, where a head reads the past: 100 s at 30 frames/s


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

    Pointwise heads see one row at a time, so the cost of a reading does not grow. Others are given the whole episode
    so far, at most `max_rows` of it; the row after begins a new episode by itself, which `Reading.episode` tells.

    Args:
        scorer: its heads score; it encodes only in `encode`.
        layout: what a row holds.
        max_rows: of one episode that is kept, ≥ 2: for heads that read the past, and for `rescored`.

    Raises:
        ValueError: fewer than two rows.
    """

    def __init__(self, scorer: Scorer, layout: Layout | None = None, *, max_rows: int = MAX_ROWS) -> None:
        if max_rows < 2:
            raise ValueError(f"EpisodeStream: max_rows must be at least 2; got {max_rows}.")
        self.scorer, self.layout, self._max_rows = scorer, layout or Layout(), max_rows
        self.episode, self._index = 0, 0
        self._rows: deque[np.ndarray] = deque(maxlen=max_rows)
        self._frames: list[np.ndarray] = []
        self._before: torch.Tensor | None = None  # (1, 1), the combined potential of the row before

    def encode(self, frames: np.ndarray, signals: dict[str, float] | None = None) -> np.ndarray:
        """One moment's row, (V, H, W, 3) uint8 -> (V·D + S,) float32."""
        return self.layout.rows(scoring.encode(self.scorer, frames), [signals or {}])[0]

    def restart(self) -> None:
        """The next row begins a new episode."""
        if self._index:
            self.episode += 1
        self._index, self._before, self._frames = 0, None, []
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
        pointwise = self.scorer.pointwise and reads == "none"
        if not pointwise and self._index == self._max_rows:
            self.restart()
        images = [*self._frames, frames] if reads == "all" or (reads == "first" and not self._frames) else self._frames
        track = Track([row] if pointwise else [*self._rows, row], frames=images)  # pyright: ignore[reportArgumentType]
        features = scoring.batch(self.scorer, [track], self.layout)
        potentials = self.scorer.potentials(features)
        combined = self.scorer.combined(potentials, features)[:, -1:]
        reward = None
        if self._before is not None:
            reward = float(self.scorer.shaping(self._before, combined, torch.zeros(1, 1, dtype=torch.bool)))
        last = {name: float(values[0, -1]) for name, values in potentials.items()}
        reading = Reading(self.episode, self._index, last, float(combined), reward)
        self._rows.append(row)
        self._frames, self._before = images, combined  # pyright: ignore[reportAttributeAccessIssue]
        self._index += 1
        return reading

    @torch.inference_mode()
    def rescored(self, scorer: Scorer) -> list[dict[str, float]]:
        """Go on with another scorer of the same encoder; nothing is encoded again.

        Returns:
            What its heads say of the rows that are kept, oldest first: the last `max_rows` of this episode.

        Raises:
            ValueError: another encoder, or one that reads images the stream did not keep.
        """
        if scorer.encoder is not self.scorer.encoder:
            raise ValueError("EpisodeStream.rescored: scorer must have the encoder of the rows; got another.")
        if scorer.frames_read != "none" and scorer.frames_read != self.scorer.frames_read and self._index:
            raise ValueError(
                f"EpisodeStream.rescored: the scorer reads {scorer.frames_read} images, which were not kept. Restart."
            )
        past: list[dict[str, float]] = []
        before = None
        if self._rows:
            features = scoring.batch(scorer, [Track(list(self._rows), frames=self._frames)], self.layout)
            potentials = scorer.potentials(features)
            before = scorer.combined(potentials, features)[:, -1:]
            past = [{name: float(values[0, t]) for name, values in potentials.items()} for t in range(len(self._rows))]
        self.scorer, self._before = scorer, before
        return past
