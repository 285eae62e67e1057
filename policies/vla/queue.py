"""Actions of chunks that come from elsewhere: which of them may be done now, whatever the network does to the answers.

Time is given by the caller, in seconds of one monotonic clock. Shape letters: H actions of a chunk, A action.
"""

from __future__ import annotations

import math
from collections import Counter, deque

import numpy as np

TAKEN, DOUBLED, REORDERED, LATE, UNKNOWN, BROKEN = "taken", "doubled", "reordered", "late", "unknown", "broken"
REMEMBERED = 256  # requests; older answers are of an unknown one


class ChunkQueue:
    """The chunk that is followed, and the rules for answers.

    Action k of a chunk is meant for the moment k/fps after its pictures were taken, and is done within half a period of
    it or never: what comes late begins in the middle, and what is too late is thrown away. So no action outlives its
    time limit, `longest_s` after the pictures, and none is done twice for want of a newer one.

    | answer | what is done |
    |---|---|
    | in time | followed from the action of this moment on |
    | late | the same; `late` and thrown away where all its actions are past |
    | lost | asked for again after `patience_s` |
    | doubled | thrown away |
    | reordered: older than the one that is followed | thrown away |
    | of another shape, or not finite | thrown away |

    Args:
        horizon: H.
        actions: A.
        fps: actions a second.
        refill: a new chunk is asked for when at most so many actions are left, 0 to H.
        patience_s: after which a request that is not answered is given up.
        longest_s: age of pictures beyond which no action is done; None: that of a chunk's last action.

    Attributes:
        counts: answers by what was done with them; and "lost" requests, and "empty" moments without an action.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self, horizon: int, actions: int, *, fps: float, refill: int, patience_s: float, longest_s: float | None = None
    ) -> None:
        if horizon < 1 or actions < 1 or not 0 <= refill <= horizon:
            raise ValueError(f"ChunkQueue: refill must be from 0 to the horizon ({horizon}); got {refill}.")
        if not (fps > 0 and patience_s > 0 and (longest_s is None or longest_s > 0)):
            raise ValueError(
                f"ChunkQueue: fps, patience_s and longest_s must be above 0; got {fps}, {patience_s}, {longest_s}."
            )
        self.horizon, self.actions, self.fps, self.refill = horizon, actions, fps, refill
        self.patience_s = patience_s
        self.longest_s = min(horizon / fps, math.inf if longest_s is None else longest_s)
        self.counts: Counter[str] = Counter()
        self._last = 0  # id of the newest request
        self.reset()

    def reset(self) -> None:
        """An episode begins: what was asked for before is not answered any more."""
        self._asked: dict[int, float] = {}  # id -> when its pictures were taken
        self._answered: deque[int] = deque(maxlen=REMEMBERED)
        self._pending: tuple[int, float] | None = None  # the newest request, while it may be answered; when it was sent
        self._chunk = np.zeros((0, self.actions), np.float32)
        self._taken, self._captured_s = 0, 0.0  # id of the chunk that is followed, and when its pictures were taken
        self._done = -1  # the last of its actions that was done

    def ask(self, now_s: float) -> int | None:
        """The id of a new request, for which pictures are taken now; None: there is no need for one yet."""
        if self._pending is not None and now_s - self._pending[1] < self.patience_s:
            return None
        if self._pending is not None:
            self.counts["lost"] += 1
            self._pending = None
        if self.left(now_s) > self.refill:
            return None
        self._last += 1
        self._asked[self._last] = now_s
        if len(self._asked) > REMEMBERED:
            self._asked.pop(next(iter(self._asked)))
        self._pending = (self._last, now_s)
        return self._last

    def answer(self, request: int, chunk: np.ndarray, now_s: float) -> str:
        """Take an answer, or not; returns what was done with it.

        Args:
            request: of `ask`.
            chunk: (H, A), in the robot's units.
            now_s: when it came.
        """
        verdict = self._judged(request, chunk, now_s)
        self.counts[verdict] += 1
        if verdict not in (DOUBLED, UNKNOWN):
            self._answered.append(request)
            if self._pending is not None and request >= self._pending[0]:
                self._pending = None
        if verdict == TAKEN:
            self._chunk, self._taken = np.array(chunk, np.float32), request
            self._captured_s, self._done = self._asked[request], -1
        return verdict

    def act(self, now_s: float) -> np.ndarray | None:
        """The action of this moment (A,); None: there is none in its time, and the robot is to hold still."""
        at = self._at(now_s)
        if at is None or at <= self._done:
            self.counts["empty"] += 1
            return None
        self._done = at
        return self._chunk[at]

    def left(self, now_s: float) -> int:
        """How many actions may still be done from now on."""
        if not len(self._chunk):
            return 0
        last = min(self.horizon, math.floor(self.longest_s * self.fps + 1e-9))
        return max(last - max(self._index(self._captured_s, now_s), self._done + 1), 0)

    def under_way(self, now_s: float) -> np.ndarray:
        """What is left of the chunk that is followed, (n, A), from the action of this moment on."""
        return self._chunk[max(self._index(self._captured_s, now_s), 0) :]

    def _judged(self, request: int, chunk: np.ndarray, now_s: float) -> str:
        if request in self._answered:
            return DOUBLED
        if request not in self._asked:
            return UNKNOWN
        if request < self._taken:
            return REORDERED
        if chunk.shape != (self.horizon, self.actions) or not np.isfinite(chunk).all():
            return BROKEN
        captured_s = self._asked[request]
        if self._index(captured_s, now_s) >= self.horizon or now_s - captured_s > self.longest_s:
            return LATE
        return TAKEN

    def _index(self, captured_s: float, now_s: float) -> int:
        """Which action of a chunk this moment's is."""
        return math.floor((now_s - captured_s) * self.fps + 0.5)

    def _at(self, now_s: float) -> int | None:
        at = self._index(self._captured_s, now_s)
        if not 0 <= at < len(self._chunk) or now_s - self._captured_s > self.longest_s:
            return None
        return at
