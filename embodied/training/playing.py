"""One world and one actor, moment by moment: for films, datasets, sheets and robots.

Shape letters: V views; H, W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np

from embodied.envs.worker import frames_of
from embodied.training.collector import in_units
from embodied.training.perception import Perception
from policies.core import Actor, map_leaves


@dataclass(frozen=True)
class PlayedMoment:
    """What one time showed, and what led to it.

    Attributes:
        obs: the policy's observation, without a batch axis.
        info: the world's.
        action: that led here, in the world's units; None at the reset.
        reward: of that action, the task's own.
        terminated, truncated: whether the episode ended here.
        frames: (V, H, W, 3) uint8 of the perception's views; None without one.
        row: what a reward model reads; None without a perception.
        depth: (V, H, W) metres, at the reset, where asked for and measured.
    """

    obs: Any
    info: dict[str, Any]
    action: Any = None
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    frames: np.ndarray | None = None
    row: np.ndarray | None = None
    depth: np.ndarray | None = None


class Solo:
    """An actor in one world: called with what the world returned, it says what to do next.

    Args:
        actor: of `perception`'s observations.
        env: the world; stays open.
        perception: None: the actor reads the world's own observation and nothing is rendered.
        explore: see `Actor.act`.
    """

    def __init__(
        self, actor: Actor, env: gymnasium.Env, perception: Perception | None = None, *, explore: bool = False
    ) -> None:
        self._actor, self._env, self._perception, self._explore = actor, env, perception, explore
        self.restart()

    def restart(self) -> None:
        """An episode begins."""
        self._memory, self._first = self._actor.begin(1), np.ones(1, dtype=bool)
        self._points = None if self._perception is None else self._perception.remember()

    def see(self, obs: Any) -> tuple[Any, np.ndarray | None, np.ndarray | None]:
        """The policy's observation of now, the frames (V, H, W, 3) and the row; once a step."""
        perception, env = self._perception, self._env
        if perception is None:
            return obs, None, None
        frames = frames_of(env, perception.layout.views, int(perception.encoder.image_size[0]))
        signals = env.get_wrapper_attr("signals")() if env.has_wrapper_attr("signals") else {}
        seen = perception.see(frames[None], [signals])
        if perception.makes_observations:
            obs = perception.observe(seen, self._first, self._points)[0]
        return obs, frames, seen.rows[0]

    def act(self, obs: Any) -> np.ndarray:
        """What to do, in the world's units, given the policy's observation."""
        batch = map_leaves(lambda leaf: np.asarray(leaf)[None], obs)
        actions, self._memory = self._actor.act(batch, self._memory, self._first, explore=self._explore)
        self._first = np.zeros(1, dtype=bool)
        return in_units(self._env.action_space, actions)[0]

    def __call__(self, obs: Any) -> np.ndarray:
        """What to do, given what the world returned."""
        return self.act(self.see(obs)[0])


def play(
    actor: Actor,
    env: gymnasium.Env,
    perception: Perception | None = None,
    *,
    seed: int | None = None,
    explore: bool = False,
    depth: bool = False,
) -> Iterator[PlayedMoment]:
    """One episode from its reset to its end.

    Args:
        actor, env, perception, explore: see `Solo`.
        seed: of the reset.
        depth: whether it is wanted at the reset.
    """
    obs, info = env.reset(seed=seed)
    solo, moment = Solo(actor, env, perception, explore=explore), PlayedMoment(obs, info)
    while True:
        obs, frames, row = solo.see(moment.obs)
        measured = None
        if depth and frames is not None and moment.action is None and env.has_wrapper_attr("depth"):
            assert perception is not None
            measured = frames_of(env, perception.layout.views, frames.shape[1], kind="depth")
        yield replace(moment, obs=obs, frames=frames, row=row, depth=measured)
        if moment.terminated or moment.truncated:
            return
        action = solo.act(obs)
        obs, reward, terminated, truncated, info = env.step(action)
        moment = PlayedMoment(obs, info, action, float(reward), bool(terminated), bool(truncated))
