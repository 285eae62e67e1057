"""How the scene comes back between episodes, and how a person stops the robot."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from embodied.robots.env import RobotEnv


def by_hand(ask: Callable[[str], Any] = input, text: str = "Put the scene back, then press Enter: ") -> Any:
    """A reset that waits for a person; the robot is stopped meanwhile.

    Args:
        ask: returns when the person is done: `input`, or anything else that takes the text.
        text: what to ask.

    Returns:
        For `RobotEnv(reset=…)`.
    """

    def reset(env: RobotEnv) -> None:
        ask(text)

    return reset


def by_policy(policy: Callable[[Any], np.ndarray], steps: int) -> Callable[[RobotEnv], None]:
    """A reset that a policy makes, under the same limits and watchdogs as any episode.

    Args:
        policy: observation -> action.
        steps: control periods it is given.

    Returns:
        For `RobotEnv(reset=…)`.

    Raises:
        ValueError: no step.
    """
    if steps < 1:
        raise ValueError(f"by_policy: steps must be at least 1; got {steps}.")

    def reset(env: RobotEnv) -> None:
        env.drive(policy, steps)

    return reset


def enter_pressed() -> bool:
    """Whether a line waits on the standard input: an operator's stop by the Enter key, taken by asking."""
    readable, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(readable) and bool(sys.stdin.readline())
