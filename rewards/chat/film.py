"""Heads that judge an episode by its film so far: asked about every few rows, once each, as the rows come.

The film is every `stride`-th frame of an episode, from the reset's on; what is asked at a row depends on its number and
on frames up to it alone, so a frame has the same progress at every door. Shape letters: B episodes, T rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rewards.chat.reading import check_reading, images, thinned, toward
from rewards.core import Features

Moment = tuple[np.ndarray, ...]  # one frame a view, (H, W, 3) uint8


@dataclass(frozen=True)
class Film:
    """One episode so far.

    Attributes:
        rows: how many there were.
        moments: of the rows asked about, oldest first; the newest is judged.
        value: the last progress that is known; 0 before the first.
    """

    rows: int = 0
    moments: tuple[Moment, ...] = ()
    value: float = 0.0


class FilmHead(ABC):
    """Progress from the film so far; a subclass says how one film is judged.

    A row that is not asked about, or whose answer is missing, has the last known progress.

    Args:
        instruction: the task.
        views: cameras to show, in this order; None: all there are. A head that shows one takes the first.
        stride: every so many rows are asked about, from 0.

    Raises:
        ValueError: no instruction, or stride < 1; (score) frames missing.
    """

    name: str
    frames_read = "all"
    advances = True

    def __init__(self, instruction: str, *, views: Sequence[str] | None = None, stride: int = 5) -> None:
        check_reading(type(self).__name__, instruction, stride, "hold")
        self._instruction, self.views, self.stride = instruction, views, stride

    def toward(self, goal: str) -> FilmHead:
        """The same model, judging another task."""
        return toward(self, goal)

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """Progress of each row."""
        return self.advance(features)[0]

    def advance(
        self, features: Features, memory: Sequence[Film] | None = None
    ) -> tuple[Float[Tensor, "B T"], list[Film]]:
        """See `rewards.core.Head`; what is kept is the frames of the rows asked about, one in `stride`."""
        shown = images(features, self.name, self.views)
        films = list(memory or [Film()] * features.main.shape[0])
        scored = np.zeros(features.main.shape[:2], np.float32)
        for b in range(len(films)):
            for t in range(scored.shape[1]):
                films[b] = self._next(films[b], tuple(episodes[b][t] for episodes in shown.values()))
                scored[b, t] = films[b].value
        return torch.from_numpy(scored).to(features.main.device), films

    def _next(self, film: Film, moment: Moment) -> Film:
        film, asked = self.seen(film, moment)
        value = self.judge(film) if asked else math.nan
        return film if math.isnan(value) else replace(film, value=value)

    def seen(self, film: Film, moment: Moment) -> tuple[Film, bool]:
        """The film with one more row, and whether that row is asked about."""
        if film.rows % self.stride:
            return replace(film, rows=film.rows + 1), False
        return replace(film, rows=film.rows + 1, moments=self.kept((*film.moments, moment))), True

    def kept(self, moments: tuple[Moment, ...]) -> tuple[Moment, ...]:
        """Those that later rows may still be judged by."""
        return moments

    @abstractmethod
    def judge(self, film: Film) -> float:
        """Progress at the newest moment of a film; NaN where the answer is missing."""


def first_view(film: Film, count: int) -> list[np.ndarray]:
    """At most `count` ≥ 2 frames of the first view, evenly spread, the first and the newest among them.

    Args:
        film: what was seen so far.
        count: frames at most.
    """
    return [film.moments[k][0] for k in thinned(range(len(film.moments)), count)]
