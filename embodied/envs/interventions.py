"""A person's hand in a world: how an environment tells it, and the wrappers by which one comes in.

An environment tells in a step's `info` that another action than the policy's was executed:

| key | what |
|---|---|
| `intervene_action` | the executed action, in the shape and units of `action_space`; None or missing: the policy's |
| `is_intervention` | whether a person gave it; False: something else did, such as a robot's limits |

Where `is_intervention` is missing, a person gave it if it is another than the policy's. The first name is SERL's and
HIL-SERL's (`info["intervene_action"]` of `SpacemouseIntervention` in their `franka_env/envs/wrappers.py`: every step's
action in SERL, only a person's in HIL-SERL, and both are read right), the second LeRobot's (`TeleopEvents`, and
`info["is_intervention"]` of `gym_hil/wrappers/hil_wrappers.py`, which calls the action `teleop_action`: rename it).

Wherever episodes are collected (`embodied.training.collector`, `embodied.practice`), what was executed is what is
learned from. This module stays clear of torch: workers import it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from embodied.envs.spaces import Actions, world_name
from embodied.errors import UserError

INTERVENE_ACTION = "intervene_action"
IS_INTERVENTION = "is_intervention"


def executed(info: Mapping[str, Any], actions: Actions, asked: Any) -> tuple[np.ndarray | None, bool]:
    """What a step's info tells of the action that was executed.

    Args:
        info: of the step.
        actions: of the world.
        asked: what the policy sent, of the agent's space.

    Returns:
        The executed action, of the agent's space, None where it was the policy's own; and whether a person gave it.

    Raises:
        UserError: an action of another shape, not finite or out of range; or a person acted, and not told how.
    """
    given, person = info.get(INTERVENE_ACTION), info.get(IS_INTERVENTION)
    if given is None:
        if person:
            raise UserError(
                f"info[{IS_INTERVENTION!r}] is true, so info[{INTERVENE_ACTION!r}] must hold the action that was "
                f"executed; got None. It has {', '.join(map(str, info))}."
            )
        return None, False
    action = actions.agents(given)
    if person is None:
        person = not np.allclose(action, np.asarray(asked).reshape(action.shape), rtol=1e-5, atol=1e-6)
    return action, bool(person)


class Intervened(gymnasium.Wrapper):
    """A world in which a person may act in the policy's place; `info` tells it as this module says.

    Args:
        env: any world. One that tells itself what was executed (a robot's limits) is believed.
        takeover: asked before every step, as `RobotEnv`'s is: an action in the units of `action_space`, which goes in
            place of the policy's, or None, which leaves the policy's.
    """

    def __init__(self, env: gymnasium.Env, takeover: Callable[[], Any]) -> None:
        super().__init__(env)
        self.takeover = takeover
        self._actions = Actions(env.action_space, world_name(env))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step, by whoever acts.

        Raises:
            UserError: the person's action has another shape, is not finite or out of range; the world has not moved.
        """
        given = self.takeover()
        if given is not None:
            action = self._actions(self._actions.agents(given))
        obs, reward, terminated, truncated, info = self.env.step(action)
        told = {} if given is None else {INTERVENE_ACTION: np.array(action)}
        person = given is not None or bool(info.get(IS_INTERVENTION))
        return obs, reward, bool(terminated), bool(truncated), told | info | {IS_INTERVENTION: person}


class Rescued(Intervened):
    """A world whose scripted expert stands for a person: for tests and benchmarks, as it reads privileged state.

    It takes over where the task's own reward has not risen for a while, and hands back after some steps, or once the
    task is solved. A checkpoint keeps its counts; an expert in the middle of its turn starts its script again.

    Args:
        env: a world with an expert (`embodied.envs.experts`).
        patience: steps without a rise of the task's own reward after which it takes over, ≥ 1.
        turn: steps until it hands back, ≥ 1.
        most: steps of an episode that it may act in.
        rise: of the task's own reward that counts, > 0.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self, env: gymnasium.Env, *, patience: int = 10, turn: int = 20, most: int = 20, rise: float = 0.01
    ) -> None:
        if min(patience, turn) < 1 or most < 0 or not rise > 0:
            raise ValueError(
                f"Rescued: patience and turn must be at least 1, most at least 0 and rise above 0; "
                f"got {patience}, {turn}, {most}, {rise}."
            )
        super().__init__(env, self._rescue)
        self._patience, self._turn, self._most, self._rise = patience, turn, most, rise
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
        if reward >= self._best + self._rise:
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
            from embodied.envs.experts import expert  # MuJoCo, which other worlds do without

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
