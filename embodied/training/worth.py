"""What rollouts are worth: who gives them their rewards, and what ended in them; the task's own reward.

Shape letters: T steps, E worlds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from embodied.envs.spaces import told_success
from embodied.training.collector import Collected

LIMIT = "_limit_passed"  # ends the names of what a world counts of the robot's limits in an episode's infos
JUDGED = "judge/"  # begins the names of what else it tells of an episode so far, for judging alone


@dataclass(frozen=True)
class Ended:
    """An episode that ended in a rollout.

    Attributes:
        world: which of the E.
        rewards: (T,) float32 of its actions, as learned from.
        env_return: its return under the task's own reward.
        success: at its last step; None where the world does not tell.
        limits: actions that passed a limit of the robot, by the world's names for them, which end in `LIMIT`; and what
            else the world tells for judging alone, by its names without `JUDGED`.
        interventions: steps in which a person acted.
    """

    world: int
    rewards: np.ndarray
    env_return: float
    success: bool | None
    limits: dict[str, float] = field(default_factory=dict)
    interventions: int = 0

    @property
    def own_success(self) -> bool | None:
        """The policy's success: none where a person acted; None where the world does not tell."""
        return None if self.success is None else self.success and not self.interventions


class RolloutLabels(NamedTuple):
    """What a rollout is worth.

    Attributes:
        reward: (T, E) float32, to learn from.
        ended: the episodes that ended in it, in order.
    """

    reward: np.ndarray
    ended: list[Ended]


@runtime_checkable
class Rewards(Protocol):
    """Gives rollouts their rewards."""

    def label(self, collected: Collected) -> RolloutLabels: ...

    def metrics(self) -> dict[str, float]: ...

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]: ...

    def load_state(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any], *, episodes: bool) -> None: ...


class OwnReward:
    """The task's own reward, to learn from for comparison."""

    def __init__(self, num_worlds: int) -> None:
        self._rewards: list[list[float]] = [[] for _ in range(num_worlds)]

    def label(self, collected: Collected) -> RolloutLabels:
        rollout, ended = collected.rollout, []
        for t, e in np.ndindex(*rollout.env_reward.shape):
            self._rewards[e].append(float(rollout.env_reward[t, e]))
            if rollout.terminated[t, e] or rollout.truncated[t, e]:
                ended.append(ended_of(e, self._rewards[e], collected.infos[t][e]))
                self._rewards[e] = []
        return RolloutLabels(rollout.env_reward, ended)

    def metrics(self) -> dict[str, float]:
        return {}

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {}, {"rewards": self._rewards}

    def load_state(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any], *, episodes: bool) -> None:
        if episodes:
            self._rewards = [list(each) for each in values["rewards"]]


def ended_of(world: int, rewards: Sequence[float], info: Mapping[str, Any]) -> Ended:
    """An episode from its last step's info.

    Args:
        world: whose it is.
        rewards: of its actions, as learned from.
        info: of its last step.
    """
    limits: dict[str, float] = {name: float(value) for name, value in info.items() if name.endswith(LIMIT)}
    limits |= {name.removeprefix(JUDGED): float(told) for name, told in info.items() if name.startswith(JUDGED)}
    success, person = told_success(dict(info)), int(info.get("env_interventions", 0))
    return Ended(world, np.array(rewards, np.float32), float(info["env_episode"][0]), success, limits, person)
