"""One episode: an expert's, a near miss, a failure, a counterfactual path or a policy's, as it will be written."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from omegaconf import DictConfig

from embodied.collecting.counterfactual import Path, put
from embodied.envs.bridge import Bridged
from embodied.envs.desk import Desk
from embodied.envs.drive import Drive
from embodied.envs.drivers import CarDriver
from embodied.envs.experts import Expert, expert
from embodied.envs.spaces import told_success
from embodied.envs.world import World
from embodied.errors import UserError

TRIES = 25  # starts drawn until an episode is what its kind says
BRAKE = np.array([0.0, -1.0], np.float32)  # of the car
Act = Callable[[Any], Any]  # observation -> action
Player = Callable[[gymnasium.Env], Act]  # what acts in a world, made anew for each episode


@dataclass
class Take:
    """One episode as it was played; every list has one entry an action.

    Attributes:
        seed: of the reset.
        success: after each action; None where the world does not tell.
        phases: the expert's phase when it was asked for each action; [] without an expert.
        last: frames, own readings and state after the last action, as the dataset's features.
    """

    seed: int
    frames: dict[str, list[np.ndarray]] = field(default_factory=dict)
    own: list[np.ndarray] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    success: list[bool | None] = field(default_factory=list)
    terminated: list[bool] = field(default_factory=list)
    phases: list[int] = field(default_factory=list)
    last: dict[str, np.ndarray] = field(default_factory=dict)

    def columns(self, env: gymnasium.Env) -> dict[str, np.ndarray]:
        """As the dataset's features."""
        ended = np.zeros(len(self.actions), bool)
        ended[-1] = True
        whole = np.dtype(env.action_space.dtype).kind in "iu"  # choices and switches
        found = {
            "observation.state": np.array(self.own, np.float32),
            "observation.environment_state": np.array(self.states, np.float32),
            "action": np.array(self.actions, np.int64 if whole else np.float32),
            "next.reward": np.array(self.rewards, np.float32),
            "next.success": self._success(),
            "next.done": ended,
            "next.truncated": ended & ~np.array(self.terminated),
        }
        return {name: values for name, values in found.items() if values.size}

    def _success(self) -> np.ndarray:
        """(T,) bool; (0,) of a world that does not tell: unknown is not no, so such datasets have no column of it.

        Raises:
            UserError: it tells at some steps only.
        """
        told = [each for each in self.success if each is not None]
        if told and len(told) < len(self.success):
            raise UserError(
                f"collect: is_success must be told at every step, or at none; this world told {len(told)} of "
                f"{len(self.success)}. Make its step() tell it always."
            )
        return np.array(told, bool)

    def steps(self) -> list[int]:
        """Rows at which the steps of the last, uninterrupted pass through the task end, the last row included."""
        if not self.phases or self.success[-1] is not True:
            return []
        phases = np.array(self.phases)
        begun = int(np.flatnonzero(np.diff(phases) < 0)[-1]) + 1 if (np.diff(phases) < 0).any() else 0
        ends = [int(np.argmax(phases[begun:] >= k)) + begun for k in range(1, int(phases[-1]))]
        return [*sorted({end for end in ends if 0 < end < len(phases) - 1}), len(phases) - 1]


def play(
    env: gymnasium.Env, seed: int, act: Act, *, look: tuple[Mapping[str, str], int] | None = None, stop: int = 0
) -> Take:
    """An episode from its reset to its end (or `stop` steps), with frames of `look`'s cameras at its size."""
    obs, _ = env.reset(seed=seed)
    take, over = Take(seed), False
    for short in look[0] if look else ():
        take.frames[short] = []
    while not over:
        for short, images in take.frames.items():
            assert look is not None
            images.append(env.get_wrapper_attr("frame")(camera=look[0][short], image_size=look[1]))
        own, state = readings(env, obs)
        action = act(obs)
        obs, reward, terminated, truncated, info = env.step(action)
        take.own.append(own)
        take.states.append(state)
        take.actions.append(np.asarray(action) if np.ndim(action) == 0 else np.ravel(action))
        take.rewards.append(float(reward))
        take.success.append(told_success(info))
        take.terminated.append(bool(terminated))
        over = terminated or truncated or len(take.actions) == stop
    _end(env, take, obs, look)
    return take


def show(env: gymnasium.Env, path: Path, seed: int, look: tuple[Mapping[str, str], int]) -> Take:
    """A path of states as it would have been recorded, had it been played."""
    world = env.unwrapped
    assert isinstance(world, Desk)
    env.reset(seed=seed)
    take, (cameras, size) = Take(seed), look
    for short in cameras:
        take.frames[short] = []
    put(world, path.rows[0])
    changed = True
    for action, before, after in zip(path.actions, path.rows[:-1], path.rows[1:], strict=True):
        for short, images in take.frames.items():
            images.append(world.frame(camera=cameras[short], image_size=size) if changed else images[-1])
        own, state = readings(env, None)
        put(world, after)
        changed = not np.array_equal(before, after)
        take.own.append(own)
        take.states.append(state)
        take.actions.append(action)
        take.rewards.append(world.env_reward())
        take.success.append(world.success())
        take.terminated.append(False)
    _end(env, take, None, look)
    return take


def _end(env: gymnasium.Env, take: Take, obs: Any, look: tuple[Mapping[str, str], int] | None) -> None:
    """Keep what is there after the last action."""
    own, state = readings(env, obs)
    told = {"observation.state": own, "observation.environment_state": state}
    take.last = {name: np.asarray(values, np.float32) for name, values in told.items() if values.size}
    for short in take.frames:
        assert look is not None
        take.last[short] = env.get_wrapper_attr("frame")(camera=look[0][short], image_size=look[1])


def episode(
    env: gymnasium.Env, kind: str, config: DictConfig, i: int, learner: Player | None, cameras: Mapping[str, str]
) -> Take:
    """Episode i: rehearsed without frames until it is what its kind says, then played for the camera.

    Its starts are drawn from the seed, the policy and i alone, so they do not depend on what was collected before.
    """
    look = (cameras, int(config.image_size))
    for attempt in range(TRIES):
        entropy = (config.seed, zlib.crc32(config.policy.encode()), i, attempt)
        rng = np.random.default_rng(entropy)
        seed = int(rng.integers(2**31))
        if learner is not None:
            return play(env, seed, learner(env), look=look)
        if kind == "random":
            return play(env, seed, _Held(env, int(config.hold), seed), look=look)
        rehearsed = _rehearse(env, kind, seed, rng, config.noise)
        if rehearsed is not None:
            actions, phases = rehearsed
            take = play(env, seed, _Replay(actions), look=look)
            take.phases = phases
            return take
    raise UserError(f"collect: {TRIES} starts of {config.env.id} gave no {kind} episode. Lower noise, or its share.")


class _Replay:
    """Actions that were rehearsed, one after another."""

    def __init__(self, actions: list[np.ndarray]) -> None:
        self._actions = iter(actions)

    def __call__(self, obs: Any) -> np.ndarray:
        return next(self._actions)


class _Held:
    """Random actions, each repeated for 1 to `most` steps: they travel further than white noise, and still vary."""

    def __init__(self, env: gymnasium.Env, most: int, seed: int) -> None:
        self._space, self._most, self._left = env.action_space, most, 0
        self._space.seed(seed)
        self._rng = np.random.default_rng(seed)

    def __call__(self, obs: Any) -> Any:  # a choice is a whole number
        if not self._left:
            self._action = self._space.sample()
            self._left = int(self._rng.integers(1, self._most + 1))
        self._left -= 1
        return self._action


class _Expert:
    """The scripted expert as a policy, made at the first observation after a reset.

    Attributes:
        phases: the expert's when it was asked for each action; [] of one that has none.
    """

    def __init__(self, world: gymnasium.Env, noise: float, rng: np.random.Generator) -> None:
        self._make: Callable[[], Any] = lambda: expert(world, noise=noise, rng=rng)
        self._world, self._expert = world, None
        self.phases: list[int] = []

    def __call__(self, obs: Any) -> np.ndarray:
        if self._expert is None:
            self._expert = self._make()
        action = self._expert(self._world)
        if isinstance(self._expert, Expert | CarDriver):
            self.phases.append(self._expert.phase)
        return action


def _rehearse(
    env: gymnasium.Env, kind: str, seed: int, rng: np.random.Generator, noise: float
) -> tuple[list[np.ndarray], list[int]] | None:
    """Actions of one kind of episode, and the expert's phases; None where this start does not give one."""
    act = _Expert(env.unwrapped, noise if kind == "noisy" else 0.0, rng)
    take = play(env, seed, act)
    solved = take.success[-1]
    if kind == "noisy":
        return take.actions, act.phases
    if not solved:
        return None
    if kind == "expert":
        return take.actions, act.phases
    first, length = take.success.index(True), len(take.actions)
    if kind == "failure":
        leave = int(rng.integers(1, max(int(0.7 * first), 2)))
        actions = [*take.actions[:leave], *_wander(env, length - leave, rng)]
        return None if any(play(env, seed, _Replay(actions)).success) else (actions, [])
    if isinstance(env.unwrapped, Drive):  # it stops before the end
        for cut in range(first - 2, max(first - 30, 0), -1):
            actions = [*take.actions[:cut], *[BRAKE] * (length - cut)]
            if not any(play(env, seed, _Replay(actions)).success):
                return actions, []
        return None
    undoes = rng.random() < 0.5
    for cut in range(first, max(first - 8, 0), -1):  # as late as it may be without ever being solved
        for share in (0.75, 0.5, 0.25, 0.0):  # of one more action
            partly = np.append(share * take.actions[cut][:-1], take.actions[cut][-1]).astype(np.float32)
            # Of the phase alone: what went before it (the way down to a cube) would lift when undone.
            undo = sum(each == act.phases[cut] for each in act.phases[: cut + 1]) if undoes and act.phases else 0
            actions = _stopped([*take.actions[:cut], partly], length, undo)
            if not any(play(env, seed, _Replay(actions)).success):
                return actions, []
    return None


def _stopped(done: list[np.ndarray], length: int, undo: int) -> list[np.ndarray]:
    """What was done, then the last `undo` moves backwards, then rest, with the gripper as it was last."""
    grip = done[-1][-1]
    back = [np.append(-action[:-1], grip).astype(np.float32) for action in reversed(done[len(done) - undo :])]
    rest = np.append(np.zeros(len(done[-1]) - 1), grip).astype(np.float32)
    return [*done, *back, *[rest] * length][:length]


def _wander(env: gymnasium.Env, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random actions held for five steps each: they travel further than white noise."""
    shape = env.action_space.shape or ()
    held = [rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(-(-count // 5))]
    return [held[k // 5] for k in range(count)]


def readings(env: gymnasium.Env, obs: Any) -> tuple[np.ndarray, np.ndarray]:
    """The robot's own readings and the whole state, before an action; empty where the world tells none."""
    world, nothing = env.unwrapped, np.zeros(0, np.float32)
    if isinstance(world, World):
        state = world._state()
        own = list(env.get_wrapper_attr("signals")().values()) if env.has_wrapper_attr("signals") else world._proprio()
        return np.asarray(own, np.float32), state
    if isinstance(world, Bridged):
        own = np.asarray(world.own, np.float32)
        return (own if isinstance(obs, dict) or world.tells_own else nothing), world.flat.copy()
    return nothing, obs if obs.ndim == 1 else nothing


def own_readings(env: gymnasium.Env, obs: Any) -> tuple[list[str], np.ndarray]:
    """The robot's own readings before an action: their names, as datasets collected here have them, and (S,) values."""
    values, _ = readings(env, obs)
    if hasattr(env.unwrapped, "signals"):
        return list(env.get_wrapper_attr("signals")()), values
    return [f"state_{k}" for k in range(len(values))], values
