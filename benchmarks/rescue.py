"""The scripted expert in the place of a person who helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from embodied.envs.experts import expert
from embodied.envs.interventions import Intervened

RISE = 0.01  # of the task's own reward that counts


class Rescued(Intervened):
    """A world whose scripted expert stands for a person: for tests and benchmarks, as it reads privileged state.

    It takes over where the task's own reward has not risen for a while, and hands back after some steps, or once the
    task is solved. A checkpoint keeps its counts; an expert in the middle of its turn starts its script again.

    Args:
        env: a world with an expert (`embodied.envs.experts`).
        patience: steps without a rise of the task's own reward after which it takes over, ≥ 1.
        turn: steps until it hands back, ≥ 1.
        most: steps of an episode that it may act in.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, env: gymnasium.Env, *, patience: int, turn: int, most: int) -> None:
        if min(patience, turn) < 1 or most < 0:
            raise ValueError(
                f"Rescued: patience and turn must be at least 1 and most at least 0; got {patience}, {turn}, {most}."
            )
        super().__init__(env, self._rescue)
        self._patience, self._turn, self._most = patience, turn, most
        self._expert: Callable[[Any], np.ndarray] | None = None
        self._best, self._waited, self._left, self._acted = -np.inf, 0, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """An episode begins; the policy acts."""
        self._expert, self._best, self._waited, self._left, self._acted = None, -np.inf, 0, 0, 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step, by whoever acts."""
        out = super().step(action)
        reward, info = float(out[1]), out[4]
        if reward >= self._best + RISE:
            self._best, self._waited = reward, 0
        else:
            self._waited += 1
        if self._left and (self._left == 1 or info.get("is_success")):
            self._expert, self._left, self._waited = None, 0, 0
        elif self._left:
            self._left -= 1
        elif self._waited >= self._patience and self._acted < self._most and not info.get("is_success"):
            self._left = min(self._turn, self._most - self._acted)
        return out

    def _rescue(self) -> np.ndarray | None:
        if not self._left:
            return None
        if self._expert is None:
            self._expert = expert(self.env.unwrapped)
        self._acted += 1
        return self._expert(self.env.unwrapped)

    def wrapper_state(self) -> list[float]:
        """Its counts, for a checkpoint; JSON."""
        best = self._best if np.isfinite(self._best) else -1e30
        return [best, float(self._waited), float(self._left), float(self._acted)]

    def set_wrapper_state(self, state: list[float]) -> None:
        """Undo of `wrapper_state`."""
        self._best, self._expert = state[0], None
        self._waited, self._left, self._acted = (int(value) for value in state[1:])
