"""A policy in worlds, one episode a start: what it did, how long it took, and what it looked like.

Frames are rendered where the policy looks, and not at every step. Shape letters: E worlds; V views; T actions of an
episode, A action, S own readings; H, W image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium import spaces

from embodied.collecting.episodes import own_readings
from embodied.envs.spaces import told_success
from embodied.errors import UserError, nearest


@runtime_checkable
class ChunkPlayer(Protocol):
    """What plays: see `policies.vla.actor.ChunkActor`."""

    def begin(self, count: int) -> Any: ...

    def act(self, obs: Mapping[str, Any], memory: Any, first: np.ndarray, *, explore: bool) -> tuple[Any, Any]: ...


@dataclass
class Played:
    """One episode from one start.

    Attributes:
        success: at its last step; None where the world does not tell.
        env_return: under the task's own reward.
        rewards: (T,) the task's own.
        seed: of the reset.
        ever: whether it was solved at any step; None where the world does not tell.
        steps: to the first step of the success that lasted to the end; None where it did not.
        states: (T, S) own readings before each action.
        actions: (T, A) in the world's units.
        frames: camera -> (T + 1, H, W, 3), while it is shown to `play`'s `ended`; the last is what it led to.
        last: (S,) own readings after the last action.
        pictures: (T + 1) of what all its cameras see, side by side, where they were asked for.
        world: the name of the world, where there are several.
    """

    success: bool | None
    env_return: float
    rewards: np.ndarray
    seed: int = 0
    ever: bool | None = None
    steps: int | None = None
    states: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    actions: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    frames: dict[str, np.ndarray] = field(default_factory=dict)
    last: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    pictures: list[np.ndarray] = field(default_factory=list)
    world: str = ""


class RolloutWorlds:
    """Worlds to play in, with what the policy is shown of them.

    Args:
        make: makes one world.
        count: how many play at once.
        cameras: the policy's name -> [H, W] of the pictures it wants.
        states: own readings it wants, in order.
        actions: how many numbers its actions have.
        instruction: the sentence; None: the world's own.

    Raises:
        UserError: a camera or a reading that the world lacks, or actions that are not as many numbers in a box.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        count: int,
        *,
        cameras: Mapping[str, tuple[int, int]],
        states: Sequence[str],
        actions: int,
        instruction: str | None = None,
    ) -> None:
        self.cameras, self.states = dict(cameras), tuple(states)
        self.envs = [make() for _ in range(count)]
        try:
            first = self.envs[0]
            known = first.get_wrapper_attr("cameras")
            for name in cameras:
                if name not in known:
                    raise UserError(
                        f"env must have the camera {name!r}, which the policy reads. {nearest(name, known)} "
                        "Map it when training: policy.names={observation.images.WORLD: DATASET}."
                    )
            if not isinstance(first.action_space, spaces.Box) or len(first.action_space.shape) != 1:
                raise UserError(f"env must take actions that are vectors in a box; got {first.action_space}.")
            if first.action_space.shape[0] != actions:
                raise UserError(f"env must take the policy's {actions} numbers as actions; got {first.action_space}.")
            self.low, self.high = first.action_space.low, first.action_space.high
            if not np.isfinite([self.low, self.high]).all():
                raise UserError(f"env must take actions within limits; got {first.action_space}.")
            told = getattr(first.unwrapped, "instruction", "")
            self.instruction = str(told if instruction is None else instruction)
            obs, _ = first.reset(seed=0)
            have, values = own_readings(first, obs)
            if len(values) < len(self.states) or not set(self.states) <= set(have):
                missing = next((name for name in self.states if name not in have), "")
                raise UserError(f"env must tell {missing!r}, which the policy reads. {nearest(missing, have)}")
            self._order = [list(have).index(name) for name in self.states]
        except BaseException:
            self.close()
            raise

    def readings(self, e: int, obs: Any) -> np.ndarray:
        """(S,) own readings of world e, as the policy wants them."""
        return own_readings(self.envs[e], obs)[1][self._order].astype(np.float32)

    def images(self, e: int) -> dict[str, np.ndarray]:
        """Every camera's picture of world e, now."""
        found = {}
        for name, (height, _) in self.cameras.items():
            found[name] = self.envs[e].get_wrapper_attr("frame")(camera=name, image_size=height)
        return found

    def close(self) -> None:
        """Close every world."""
        for env in self.envs:
            env.close()


def play(
    actor: ChunkPlayer,
    stage: RolloutWorlds,
    seeds: Sequence[int],
    *,
    explore: bool = False,
    ended: Callable[[Played], object] | None = None,
    film: Sequence[int] = (),
    tick: Callable[[], object] = lambda: None,
) -> list[Played]:
    """One episode from each start; the same seed gives the same start, whoever plays.

    Args:
        actor: acts.
        stage: the worlds.
        seeds: of the resets.
        explore: whether the actor adds noise.
        ended: is called with every episode as it ends, and is shown all its frames; nobody holds them afterwards, so
            that many episodes take no more memory than those under way.
        film: seeds whose pictures are kept.
        tick: called after every episode.

    Returns:
        The episodes, in the order of `seeds`.
    """
    waiting, done = list(enumerate(seeds))[::-1], dict[int, Played]()
    count = min(len(stage.envs), len(waiting))
    running: list[_Run] = []
    first = np.ones(count, bool)
    for e in range(count):
        running.append(_begin(stage, e, *waiting.pop(), ended is not None, film))
    memory = actor.begin(count)
    while any(run.live for run in running):

        def images(worlds: np.ndarray) -> dict[str, np.ndarray]:
            looked = [running[e].looked or stage.images(e) for e in worlds.tolist()]
            return {name: np.stack([each[name] for each in looked]) for name in stage.cameras}

        obs = {
            "images": images,
            "state": np.stack([run.readings for run in running]),
            "instruction": [stage.instruction] * count,
        }
        actions, memory = actor.act(obs, memory, first, explore=explore)
        scaled = stage.low + (np.asarray(actions, np.float64) + 1) / 2 * (stage.high - stage.low)
        first = np.zeros(count, bool)
        for e, run in enumerate(running):
            if not run.live:
                continue
            if run.step(stage, scaled[e].astype(np.float32)):
                played = run.finished()
                if ended is not None:
                    ended(played)
                done[run.place] = replace(played, frames={})
                tick()
                if waiting:
                    running[e], first[e] = _begin(stage, e, *waiting.pop(), ended is not None, film), True
                else:
                    run.live = False
    return [done[k] for k in range(len(seeds))]


@dataclass
class _Run:
    """One world's episode so far."""

    e: int
    place: int
    seed: int
    readings: np.ndarray
    keep: bool
    film: bool
    live: bool = True
    looked: dict[str, np.ndarray] | None = None
    frames: dict[str, list[np.ndarray]] = field(default_factory=dict)
    pictures: list[np.ndarray] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    success: list[bool] = field(default_factory=list)

    def look(self, stage: RolloutWorlds) -> None:
        """Keep what there is to see, where it is wanted."""
        if not self.keep and not self.film:
            return
        self.looked = stage.images(self.e)
        if self.keep:
            for name, image in self.looked.items():
                self.frames.setdefault(name, []).append(image)
        if self.film:
            heights = [len(image) for image in self.looked.values()]
            shown = [
                np.repeat(np.repeat(i, k, 0), k, 1) for i in self.looked.values() for k in [max(heights) // len(i)]
            ]
            room = [np.pad(i, ((0, max(heights) - len(i)), (0, 0), (0, 0))) for i in shown]
            self.pictures.append(np.concatenate(room, 1))

    def step(self, stage: RolloutWorlds, action: np.ndarray) -> bool:
        """Act; whether the episode is over."""
        obs, reward, terminated, truncated, info = stage.envs[self.e].step(action)
        self.states.append(self.readings)
        self.actions.append(action)
        self.rewards.append(float(reward))
        told = told_success(info)
        if told is not None:
            self.success.append(told)
        self.readings = stage.readings(self.e, obs)
        self.look(stage)
        return bool(terminated or truncated)

    def finished(self) -> Played:
        """The episode."""
        told, solved = bool(self.success), np.array(self.success, bool)
        steps = None
        if told and solved[-1]:
            undone = np.flatnonzero(~solved)
            steps = int(undone[-1]) + 2 if len(undone) else 1
        return Played(
            success=bool(solved[-1]) if told else None,
            env_return=sum(self.rewards),
            rewards=np.array(self.rewards, np.float32),
            seed=self.seed,
            ever=bool(solved.any()) if told else None,
            steps=steps,
            states=np.stack(self.states).astype(np.float32),
            actions=np.stack(self.actions),
            frames={name: np.stack(images) for name, images in self.frames.items()},
            last=self.readings,
            pictures=self.pictures,
        )


def _begin(stage: RolloutWorlds, e: int, place: int, seed: int, keep: bool, film: Sequence[int]) -> _Run:
    obs, _ = stage.envs[e].reset(seed=int(seed))
    run = _Run(e, place, int(seed), stage.readings(e, obs), keep, seed in film)
    run.look(stage)
    return run
