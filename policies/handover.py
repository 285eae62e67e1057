"""Which of two policies plays an episode, imitation or the one that learns, decided by what each was seen to earn.

After MoDem-V2's hand-over (Lancaster et al., arXiv 2309.14236, §4.3), which raises the learned policy's share by a
schedule; here it rises only while that policy earns no less. It knows learned returns alone, never success.

When it counts, the learned policy plays once it is a standard error ahead, and until it falls behind.

An episode that a person took over counts for whoever played it by what it had earned until then, as if it had ended
there: people take over where a policy fails, so leaving such episodes out would praise the policy that needs them most,
and one that is helped in every episode would never be measured. It cannot tell policies apart whose rewards come at the
end alone, and favours being taken over early where every step costs.

Shape letters: T steps, E worlds.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from policies.core import Rollout

IMITATION, LEARNED = 0, 1
NOBODY = -1  # known to have played: someone else acted
WINDOW = 16  # newest episodes of the learned policy that are compared with imitation's, of which four windows count
FIRST, MOST, RISE = 0.5, 0.75, 0.05  # the learned policy's share once it may play, the most, and an episode's change


def warn_of_failures_alone(learner: str) -> None:
    """Say that demonstrations hold nothing to imitate, so that there is no imitation to hand over from.

    Args:
        learner: its name.
    """
    warnings.warn(
        f"{learner}: demonstrations that succeed must be given for imitation; got failures alone. They are learned "
        "from like any other steps.",
        stacklevel=2,
    )


class HandOver:
    """Who plays, in training and when it counts.

    Attributes:
        open: whether the learned policy may play at all.
        share: of episodes that it plays; the rest goes on measuring imitation.
        best: who plays when it counts, `IMITATION` or `LEARNED`.
    """

    def __init__(self) -> None:
        self.open, self.share, self.best = False, FIRST, IMITATION
        self._owed = 0.0
        self._played: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=4096)  # who, and which began; not yet seen
        self._running: list[tuple[int, float]] = []  # who plays in each world, what it has earned
        self._returns = (deque[float](maxlen=4 * WINDOW), deque[float](maxlen=WINDOW))  # imitation's, the learned one's

    @property
    def bar(self) -> float | None:
        """What imitation earns in an episode, on average; None: not measured enough."""
        shown = self._returns[IMITATION]
        return float(np.mean(shown)) if len(shown) >= WINDOW // 2 else None

    def choose(self, count: int) -> np.ndarray:
        """(count,) int8, who plays the episodes that begin: the share, as evenly as it goes."""
        out = np.zeros(count, np.int8)
        for k in range(count if self.open else 0):
            self._owed += self.share
            if self._owed >= 1:
                self._owed -= 1
                out[k] = LEARNED
        return out

    def acted(self, players: np.ndarray, first: np.ndarray) -> None:
        """Remember who acted in a step of training, until `observe` tells what came of it."""
        self._played.append((players.copy(), first.copy()))

    def replaced(self, intervened: np.ndarray) -> None:
        """Somebody else acted in that step, in these worlds (E,): their episodes count as far as they had come."""
        if self._played:
            self._played[-1][0][intervened] = NOBODY

    def observe(self, rollout: Rollout, reward: np.ndarray) -> np.ndarray:
        """Count what each episode earned, until someone else acted in it.

        Returns:
            (T, E) int8, who has played each episode until then; `NOBODY` where someone else acted in it.
        """
        out = np.full(reward.shape, NOBODY, np.int8)
        count, num_worlds = reward.shape
        if len(self._running) != num_worlds:
            self._running = [(NOBODY, 0.0)] * num_worlds
        for t in range(count):
            known = bool(self._played) and np.array_equal(self._played[0][1], rollout.first[t])
            players = self._played.popleft()[0] if known else np.full(num_worlds, NOBODY)
            if not known:
                self._played.clear()
            for e in range(num_worlds):
                player, earned = self._running[e]
                if rollout.first[t, e]:
                    player, earned = int(players[e]), 0.0
                elif players[e] != player:
                    if known:  # taken over; what was forgotten on the way is not measured
                        self._record(player, earned)
                    player = NOBODY
                out[t, e] = player
                earned += float(reward[t, e])
                self._running[e] = (player, earned)
                if rollout.terminated[t, e] or rollout.truncated[t, e]:
                    self._record(player, earned)
        return out

    def _record(self, player: int, earned: float) -> None:
        if player == NOBODY:
            return
        self._returns[player].append(earned)
        shown, learned = self._returns
        if player != LEARNED or len(learned) < WINDOW // 2 or len(shown) < WINDOW // 2:
            return
        ahead = float(np.mean(learned) - np.mean(shown))
        change = RISE if ahead >= 0 else -RISE
        self.share = min(max(self.share + change, FIRST), MOST)
        if len(learned) == WINDOW:
            error = float(np.sqrt(np.var(learned) / len(learned) + np.var(shown) / len(shown)))
            held = self.best == LEARNED and ahead >= 0
            self.best = LEARNED if held or ahead > error else IMITATION

    def metrics(self) -> dict[str, float]:
        """For the log; a policy that has not been measured yet is left out."""
        out = {"handover/share": self.share if self.open else 0.0, "handover/best": float(self.best)}
        for name, returns in zip(("imitation", "learned"), self._returns, strict=True):
            if returns:
                out[f"handover/{name}_return"] = float(np.mean(returns))
        return out

    def state(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "open": self.open,
            "share": self.share,
            "best": self.best,
            "owed": self._owed,
            "returns": [list(each) for each in self._returns],
            "running": [list(each) for each in self._running],
            "played": [[players.tolist(), first.tolist()] for players, first in self._played],
        }

    def load_state(self, values: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        self.open, self.share, self.best = bool(values["open"]), float(values["share"]), int(values["best"])
        self._owed = float(values["owed"])
        for returns, former in zip(self._returns, values["returns"], strict=True):
            returns.clear()
            returns.extend(former)
        self._running = [(int(player), float(earned)) for player, earned in values["running"]]
        self._played.clear()
        self._played.extend((np.array(p, np.int8), np.array(f, bool)) for p, f in values["played"])
