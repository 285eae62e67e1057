"""Features beside a replay ring, so that another goal relabels it without encoding.

Shape letters: E worlds, V views, D feature width, S signals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np


class FeatureMemory:
    """Half-precision rows beside a replay ring: 1M steps of 512 features are 1.02 GB.

    Slot t holds the row *after* its action. The row before is slot t − 1's, or the episode's first, kept apart
    (one more per episode), or for the oldest slot of a full ring the one that was overwritten last.

    Args:
        capacity: slots per world.
        num_worlds: E.
        width: V·D + S.
    """

    def __init__(self, capacity: int, num_worlds: int, width: int) -> None:
        self.rows = np.zeros((capacity, num_worlds, width), np.float16)
        self.before = np.zeros((num_worlds, width), np.float16)
        self.starts: dict[tuple[int, int], np.ndarray] = {}

    def put(self, slot: int, world: int, row: np.ndarray, *, start: np.ndarray | None) -> None:
        """Store one row; `start` is the episode's first where this is its second."""
        self.before[world] = self.rows[slot, world]
        self.rows[slot, world] = row
        self.starts.pop((slot, world), None)
        if start is not None:
            self.starts[slot, world] = start.astype(np.float16)

    def stretches(self, pos: int, full: bool) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """Pieces of one episode each: slots (T,), world, rows (T + 1, V·D + S); oldest first within a world."""
        capacity, num_worlds, _ = self.rows.shape
        order = (np.arange(capacity) + pos) % capacity if full else np.arange(pos)
        for e in range(num_worlds):
            begins = [i for i, slot in enumerate(order) if (int(slot), e) in self.starts]
            for i, j in zip([0, *(b for b in begins if b)], [*(b for b in begins if b), len(order)], strict=True):
                slots = order[i:j]
                if len(slots):
                    key = (int(slots[0]), e)
                    first = self.starts[key] if key in self.starts else self.before[e]
                    yield slots, e, np.concatenate([first[None], self.rows[slots, e]])

    def arrays(self, size: int) -> dict[str, np.ndarray]:
        """All of it, for a checkpoint, of a ring that holds so many slots."""
        keys = np.array(list(self.starts), dtype=np.int64).reshape(-1, 2)
        starts = np.array(list(self.starts.values()), dtype=np.float16).reshape(len(keys), -1)
        return {"rows": self.rows[:size], "before": self.before, "start_slots": keys, "starts": starts}

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], capacity: int) -> FeatureMemory:
        """Undo of `arrays`."""
        rows = arrays["rows"]
        memory = cls(capacity, rows.shape[1], rows.shape[2])
        memory.rows[: len(rows)] = rows
        memory.before[:] = arrays["before"]
        keys = arrays["start_slots"].tolist()
        memory.starts = {(slot, e): row for (slot, e), row in zip(keys, arrays["starts"], strict=True)}
        return memory
