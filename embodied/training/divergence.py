"""Reward hacking made visible: the learned-from reward rises while what it stands for falls."""

from __future__ import annotations

import math
import warnings
from collections import deque
from typing import Any

import numpy as np

WINDOW = 40  # episodes in one mean
ALARM = 3.0  # standard errors; two independent windows differ by this much once in 700
CALM = 1.5  # below this the next rise is a new occurrence


class RewardDivergenceWarning(UserWarning):
    """The reward learned from goes up while the true result goes down."""


class DivergenceWatch:
    """Compares the newest `WINDOW` episodes with the `WINDOW` that had the best true result so far.

    divergence = min(rise of the learned return, fall of the truth), both in standard errors of the difference of two
    means, at least 0; the larger over success and env return.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[float, dict[str, float]]] = deque(maxlen=WINDOW)
        self._best: dict[str, tuple[float, float, float, float]] = {}  # truth's mean and variance, learned's
        self._alarmed = False
        self.messages: list[str] = []  # every warning so far, for the report

    def add(self, learned: float, truths: dict[str, float], steps: int) -> float:
        """Take in one finished episode.

        Args:
            learned: its return under the reward learned from.
            truths: "success" (0 or 1) and "env return", as far as the world tells them.
            steps: of training so far, for the text.

        Returns:
            The divergence now, in standard errors.
        """
        self._recent.append((learned, truths))
        if len(self._recent) < WINDOW:
            return 0.0
        returns = np.array([episode[0] for episode in self._recent])
        divergence, worst = 0.0, ""
        for name in truths:
            if any(name not in episode[1] for episode in self._recent):
                continue  # a world that tells it of some episodes only gives no mean of them all
            values = np.array([episode[1][name] for episode in self._recent])
            now = (float(values.mean()), float(values.var()), float(returns.mean()), float(returns.var()))
            if name not in self._best or now[0] >= self._best[name][0]:
                self._best[name] = now
                continue
            best = self._best[name]
            fall = (best[0] - now[0]) / _standard_error(best[1], now[1])
            rise = (now[2] - best[2]) / _standard_error(best[3], now[3])
            if min(fall, rise) > divergence:
                divergence = min(fall, rise)
                worst = (
                    f"{name} fell from {best[0]:.3g} to {now[0]:.3g} while the learned return "
                    f"rose from {best[2]:.3g} to {now[2]:.3g}"
                )
        if divergence > ALARM and not self._alarmed:
            self._alarmed = True
            self.messages.append(
                f"Reward and success part ways at step {steps}: {worst}. "
                "The policy may be exploiting the reward; look at the videos, and try other wordings of the goal."
            )
            warnings.warn(self.messages[-1], RewardDivergenceWarning, stacklevel=2)
        elif divergence < CALM:
            self._alarmed = False
        return divergence

    def get_state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON values."""
        recent = [list(episode) for episode in self._recent]
        return {"recent": recent, "best": self._best, "alarmed": self._alarmed, "messages": self.messages}

    def set_state(self, state: dict[str, Any]) -> None:
        """Undo of `get_state`."""
        self._recent = deque(((learned, truths) for learned, truths in state["recent"]), maxlen=WINDOW)
        self._best = {name: tuple(values) for name, values in state["best"].items()}
        self._alarmed, self.messages = state["alarmed"], state["messages"]


def _standard_error(one: float, two: float) -> float:
    """Of the difference of two means over `WINDOW` episodes each, from their variances."""
    return math.sqrt((one + two) / WINDOW) or 1e-9
