"""The columns of a replay that have one value a moment: each is stored once, and what follows a step is found.

    slot      0    1    2    3    4 …            one ring for each world
    moment   o₀   o₁   o₂ | p₀   p₁              the value *before* the slot's action
    kept               o₃            p₂          the last one of an episode, and of the newest slot

Shape letters: S slots, E worlds, T steps, B windows, K kept, W width of a row; `…` the shape of one value.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAPPED_BYTES = 1 << 31  # a larger column lies in a file that the system pages, not in memory alone


class Stretch(NamedTuple):
    """A piece of one episode, whole unless the ring has overwritten its beginning or it still runs.

    Attributes:
        slots: (T,) where its steps are.
        world: whose they are.
        rows: (T + 1, W) float16, before each action and after the last.
        terminated: (T,) bool.
    """

    slots: np.ndarray
    world: int
    rows: np.ndarray
    terminated: np.ndarray


class Moments:
    """Rings of values, and the kept ones beside them.

    The first E of the kept are what followed each world's newest step.

    Args:
        kinds: shape and type of one value, by column.
        slots: S.
        num_worlds: E.
        folder: where files of large columns lie; None: the system's folder for such files.
    """

    def __init__(
        self, kinds: Mapping[str, tuple[tuple[int, ...], Any]], slots: int, num_worlds: int, folder: Path | None
    ) -> None:
        self._slots, self._num_worlds, self._folder = slots, num_worlds, folder
        self.rings: dict[str, np.ndarray] = {}
        self._kept: dict[str, np.ndarray] = {}
        self._kept_at = np.full((slots, num_worlds), -1, np.int64)  # -1: what follows is the next slot's moment
        self._free: list[int] = []
        self._num_kept = num_worlds
        for name, (shape, dtype) in kinds.items():
            self.add_column(name, shape, dtype)

    def add_column(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        """One more, before anything is written."""
        self.rings[name] = allocate((self._slots, self._num_worlds, *shape), dtype, self._folder)
        self._kept[name] = allocate((2 * self._num_worlds, *shape), dtype, self._folder)

    def join(self, newest: int, first: np.ndarray) -> np.ndarray:
        """Let the newest step of each world go on in the slot that comes, unless an episode begins there.

        Args:
            newest: its slot.
            first: (E,) where an episode begins.

        Returns:
            The worlds whose running episode is cut by that.

        Raises:
            ValueError: an episode that has ended goes on.
        """
        running = self._kept_at[newest] == np.arange(self._num_worlds)
        if (~running & ~first).any():
            raise ValueError("Replay.add: first must be True after an episode's end; got False.")
        cut = np.flatnonzero(running & first)
        places = self._places(len(cut))
        for kept in self._kept.values():
            kept[places] = kept[cut]
        self._kept_at[newest, running] = -1
        self._kept_at[newest, cut] = places
        return cut

    def write(
        self, at: np.ndarray, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], ended: np.ndarray
    ) -> None:
        """T steps at these slots: (T, E, …) by column, before and after each; `ended` (T, E) an episode's last."""
        former = self._kept_at[at]
        self._free += former[former >= self._num_worlds].tolist()
        self._kept_at[at] = -1
        t, e = np.nonzero(ended)
        places = self._places(len(t))
        self._kept_at[at[t], e] = places
        newest = np.flatnonzero(~ended[-1])
        self._kept_at[at[-1], newest] = newest
        for name, ring in self.rings.items():
            ring[at] = before[name]
            self._kept[name][places] = after[name][t, e]
            self._kept[name][: self._num_worlds] = after[name][-1]

    def windows(self, name: str, slots: np.ndarray, worlds: np.ndarray, count: np.ndarray) -> np.ndarray:
        """(T + 1, B, …) of a column; the moments after a window's `count` steps are all what followed its last."""
        k = np.arange(len(slots))[:, None]
        kept = self._kept_at[slots[count - 1, np.arange(len(worlds))], worlds]
        where = np.nonzero((k >= count) & (kept >= 0))
        values = self.rings[name][slots, worlds]
        values[where] = self._kept[name][kept[where[1]]]
        return values

    def after(self, name: str, order: np.ndarray) -> np.ndarray:
        """(T, E, …) what followed each of these slots' steps, in the order in which they were written."""
        values = self.rings[name][(order + 1) % self._slots]
        kept = self._kept_at[order]
        where = kept >= 0
        values[where] = self._kept[name][kept[where]]
        return values

    def pieces(self, order: np.ndarray, world: int) -> list[np.ndarray]:
        """Slots in their order, cut after each episode's end."""
        ends = np.flatnonzero(self._kept_at[order, world] >= 0) + 1
        return [piece for piece in np.split(order, ends) if len(piece)]

    def piece(self, name: str, slots: np.ndarray, world: int) -> np.ndarray:
        """(T + 1, …) of one of those pieces."""
        last = self._kept[name][self._kept_at[slots[-1], world]]
        return np.concatenate([self.rings[name][slots, world], last[None]])

    def grow(self, slots: int) -> None:
        """More slots."""
        self.rings = {name: _grown(ring, slots, self._folder) for name, ring in self.rings.items()}
        more = np.full((slots - self._slots, self._num_worlds), -1, np.int64)
        self._kept_at, self._slots = np.concatenate([self._kept_at, more]), slots

    def _places(self, count: int) -> np.ndarray:
        """(count,) free places among the kept."""
        places = [self._free.pop() for _ in range(min(count, len(self._free)))]
        new = count - len(places)
        places += range(self._num_kept, self._num_kept + new)
        self._num_kept += new
        for name, kept in self._kept.items():
            if self._num_kept > len(kept):
                self._kept[name] = _grown(kept, max(self._num_kept, 2 * len(kept)), self._folder)
        return np.array(places, np.int64)

    def arrays(self, size: int) -> dict[str, np.ndarray]:
        """All of it, of rings that hold so many slots."""
        slots, worlds = np.nonzero(self._kept_at[:size] >= self._num_worlds)
        out = {"kept_slots": np.stack([slots, worlds], 1)}
        for name, ring in self.rings.items():
            out[name] = ring[:size]
            out[f"kept/{name}"] = self._kept[name][self._kept_at[slots, worlds]]
            out[f"newest/{name}"] = self._kept[name][: self._num_worlds]
        return out

    def load(self, arrays: Mapping[str, np.ndarray], newest: int | None) -> None:
        """Undo of `arrays`; `newest` is the slot of the newest steps, where there are any."""
        self._free, self._num_kept = [], self._num_worlds
        self._kept_at[:] = -1
        if newest is not None:
            self._kept_at[newest] = np.arange(self._num_worlds)
        slots, worlds = arrays["kept_slots"].T
        places = self._places(len(slots))
        self._kept_at[slots, worlds] = places
        for name, ring in self.rings.items():
            ring[: len(arrays[name])] = arrays[name]
            self._kept[name][places] = arrays[f"kept/{name}"]
            self._kept[name][: self._num_worlds] = arrays[f"newest/{name}"]


def allocate(shape: tuple[int, ...], dtype: Any, folder: Path | None) -> np.ndarray:
    """Zeros; in a nameless file where they are large.

    Args:
        shape, dtype: of the array.
        folder: where the file lies; None: the system's folder for such files.
    """
    if math.prod(shape) * np.dtype(dtype).itemsize <= MAPPED_BYTES:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)  # the mapping outlives the file's name


def _grown(array: np.ndarray, length: int, folder: Path | None) -> np.ndarray:
    out = allocate((length, *array.shape[1:]), array.dtype, folder)
    out[: len(array)] = array
    return out
