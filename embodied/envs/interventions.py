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
