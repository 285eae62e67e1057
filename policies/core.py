"""What the commands ask of a policy and of a learner; stable-baselines3's algorithms have it as they are.

Shape letters: E parallel worlds, A action.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Policy(Protocol):
    """Observations in, actions out."""

    def predict(self, observation: Any, *, deterministic: bool) -> tuple[np.ndarray, Any]:
        """Actions (E, A) in the units of the action space for E observations, and a state nobody reads."""
        ...


@runtime_checkable
class Learner(Policy, Protocol):
    """A policy that improves by stepping worlds whose rewards a callback writes."""

    num_timesteps: int

    def learn(self, total_timesteps: int, *, callback: Any, reset_num_timesteps: bool, log_interval: Any) -> Any: ...

    def save(self, path: str | Path) -> None: ...
