"""A trained policy learns to see again after its camera, light or background has changed, without rewards.

It steps the world as it was and the world as it is now by the same random actions, from the same starts, so that what
is seen differs by the change alone.
"""

from __future__ import annotations

import numpy as np

from embodied.training.collector import Collector
from embodied.training.stage import Stage
from policies.core import Learner, Memory, Obs
from policies.replay import Mix, Replay
from policies.repo import RePo

STEPS_PER_UPDATE = 4


class RandomActor:
    """Uniform actions of so many numbers.

    Args:
        actions: A.
        seed: of the draws.
    """

    def __init__(self, actions: int, seed: int) -> None:
        self._actions, self._rng = actions, np.random.default_rng(seed)

    def begin(self, count: int) -> Memory:
        """Nothing."""
        return {}

    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        """(E, A) in [-1, 1]."""
        return self._rng.uniform(-1, 1, (len(first), self._actions)).astype(np.float32), memory


def align(learner: Learner, before: Stage, now: Stage, *, steps: int, num_worlds: int, seed: int) -> dict[str, float]:
    """Adapt the encoder of a trained `policies.repo`.

    Args:
        learner: changed in place.
        before: the worlds that it was trained in.
        now: those that it is to act in.
        steps: transitions in each; a quarter as many updates.
        num_worlds: E.
        seed: of starts, actions and draws; none that an evaluation plays.

    Returns:
        See `RePo.align`.

    Raises:
        ValueError: another learner.
    """
    if not isinstance(learner, RePo):
        raise ValueError(f"align must be 0 but for policy=repo; got {type(learner).__name__}.")
    sampling = learner.sampling
    assert sampling is not None
    sources = []
    for stage in (before, now):
        collector = stage.collector(num_worlds, seed=seed)
        try:
            sources.append(Mix(_wandered(collector, learner, steps, seed)).batches(sampling))
        finally:
            collector.close()
    source, target = sources
    return learner.align(source, target, max(steps // STEPS_PER_UPDATE, 1))


def _wandered(collector: Collector, learner: RePo, steps: int, seed: int) -> Replay:
    """What random actions lead to; every reward is 0."""
    count = collector.worlds.num_envs
    each = -(-steps // count)
    space = collector.worlds.action_space
    replay = Replay(collector.observation_space, space, capacity=each * count, num_worlds=count, seed=seed)
    rollout = collector.collect(RandomActor(learner.num_actions, seed), each).rollout
    replay.add(rollout, np.zeros_like(rollout.env_reward))
    return replay
