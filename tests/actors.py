"""Actors whose actions are known."""

import numpy as np


class Wanders:
    """The same actions for the same number of steps, whatever it sees; remembers how many there were."""

    def begin(self, count):
        return {"steps": np.zeros(count)}

    def act(self, obs, memory, first, *, explore):
        steps = np.where(first, 0, memory["steps"])
        return np.sin(steps + np.arange(len(first)))[:, None].astype(np.float32), {"steps": steps + 1}


class Right:
    """Pushes right, always."""

    def begin(self, count):
        return {}

    def act(self, obs, memory, first, *, explore):
        return np.ones((len(first), 1), np.float32), memory
