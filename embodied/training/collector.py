"""Worlds and an actor to rollouts; every frame is rendered once and encoded once.

Where the policy reads the world's own observation, frames are encoded in batches on threads of their own while the
worlds step on; where it reads what the encoder sees, each step waits for its frames.

Shape letters: T steps, E worlds, V views, W row width; H, W image.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from embodied.envs.interventions import INTERVENE_ACTION, IS_INTERVENTION
from embodied.envs.vector import WorldVecEnv
from embodied.scoring import Layout
from embodied.training.perception import Perceived, Perception
from policies.core import Actor, Memory, Obs, Rollout, leaves, map_leaves

LATENCIES = 1000  # encoder calls behind the logged statistics


@dataclass
class RolloutMoments:
    """What a reward model reads of a rollout.

    Attributes:
        rows: (T, E, W) float32 before each action; an episode's first where `Rollout.first` says so.
        next_rows: (T, E, W) float32 after it: at an episode's end its own last.
        next_frames: (T, E, V, H, W, 3) uint8 after it, where a head reads every image; else None.
        starts: (t, world) -> first frames (V, H, W, 3) and depth (V, H, W) or None of the episode that begins at step
            t, where a head reads images.
    """

    rows: np.ndarray
    next_rows: np.ndarray
    next_frames: np.ndarray | None = None
    starts: dict[tuple[int, int], tuple[np.ndarray, np.ndarray | None]] = field(default_factory=dict)


@dataclass
class Collected:
    """A rollout with what only labels and logs read of it.

    Attributes:
        rollout: what the learner may see; its actions are those that were executed.
        moments: what the reward model reads; None where nothing is rendered.
        infos: T lists of E infos, `is_success` and `env_episode` (return, length) among them: for judging only.
        intervened: (T, E) bool, a person acted in the actor's place; None: nobody looked.
    """

    rollout: Rollout
    moments: RolloutMoments | None
    infos: list[list[dict[str, Any]]]
    intervened: np.ndarray | None = None

    @property
    def look(self) -> np.ndarray | None:
        """(T, E) int16, which of their varied looks the worlds had; None where it is always their own."""
        if "look" not in self.infos[0][0]:
            return None
        return np.array([[info["look"] for info in told] for told in self.infos], np.int16)


class Collector:
    """Steps worlds as an actor says.

    Args:
        worlds: reset at once; closed with the collector.
        perceive: from the layout of a row, frames to rows and observations; None: the worlds render nothing.
        frames_read: which images the reward model reads beside rows: "none", "first" of an episode, or "all".
        batch_size: frames per encoder call where nobody waits for them.
        encode_threads: encoder calls at once, there.

    Attributes:
        layout: what a row holds.
        observation_space: of the policy.
        latencies: seconds of the last encoder calls.

    Raises:
        ValueError: a number below 1, or worlds that render nothing though there is a perception.
    """

    def __init__(
        self,
        worlds: WorldVecEnv,
        perceive: Callable[[Layout], Perception] | None = None,
        *,
        frames_read: str = "none",
        batch_size: int = 32,
        encode_threads: int = 1,
    ) -> None:
        if perceive is not None and worlds.frame_size is None:
            raise ValueError("Collector: worlds must render frames; got frame_size None. Set it to the encoder's.")
        obs, own = worlds.reset(), worlds.observation_space
        signals = tuple(sorted(worlds.reset_infos[0].get("signals", {})))
        self.layout = Layout(worlds.views, signals, worlds.policy_views)
        perception = None if perceive is None else perceive(self.layout)
        self.worlds, self.perception, self._frames_read = worlds, perception, frames_read
        self.observation_space = own if perception is None else perception.observation_space(own)
        self.latencies: deque[float] = deque(maxlen=LATENCIES)
        self._queue = None
        if perception is not None and not perception.makes_observations:
            self._queue = EncodingQueue(perception, batch_size, encode_threads, self.latencies)
        self._actor: Actor | None = None
        self._memory: Memory = {}
        self._points = None if perception is None else perception.remember()
        self._first = np.ones(worlds.num_envs, dtype=bool)
        self._starts: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}  # of episodes that begin with the next step
        self._row: np.ndarray | None = None  # (E, W) of now; None while it waits in the queue
        self._obs = obs if perception is None else self._begin(obs)

    def _begin(self, obs: Obs) -> Obs:
        everywhere = np.arange(self.worlds.num_envs)
        self._note_starts(everywhere)
        signals = self._signals(everywhere)
        if self._queue is not None:
            self._queue.put(self.worlds.reset_frames, signals)
            return obs
        seen = self._see(self.worlds.reset_frames, signals)
        self._row = seen.rows
        assert self.perception is not None
        return self.perception.observe(seen, self._first, self._points)

    def collect(self, actor: Actor, steps: int, *, explore: bool = True) -> Collected:
        """So many steps of every world; the next call goes on from there.

        Where a world executed another action than the actor's (`embodied.envs.interventions`), that one is stored, and
        an actor that remembers what it did is told (`policies.core.Actor`).

        Args:
            actor: one and the same from call to call, or one that has the same memory.
            steps: T ≥ 1.
            explore: see `Actor.act`.
        """
        if self._actor is None:
            self._memory = self._memory or actor.begin(self.worlds.num_envs)
        self._actor = actor
        columns: dict[str, list[Any]] = {name: [] for name in Rollout._fields}
        infos, intervened = list[list[dict[str, Any]]](), list[np.ndarray]()
        rows: list[np.ndarray | None] = [self._row]
        next_rows: list[np.ndarray] = []
        frames: list[np.ndarray] = []
        starts: dict[tuple[int, int], tuple[np.ndarray, np.ndarray | None]] = {}
        for t in range(steps):
            starts |= {(t, e): start for e, start in self._starts.items()}
            self._starts = {}
            action, self._memory = actor.act(self._obs, self._memory, self._first, explore=explore)
            obs, env_reward, terminated, truncated, told = self.worlds.step(in_units(self.worlds.action_space, action))
            intervened.append(np.array([info.pop(IS_INTERVENTION, False) for info in told]))
            replaced = {e: info.pop(INTERVENE_ACTION) for e, info in enumerate(told) if INTERVENE_ACTION in info}
            if replaced:
                action = with_replaced(self.worlds.action_space, action, replaced)
                if hasattr(actor, "executed"):
                    self._memory = actor.executed(self._memory, action, intervened[-1], explore=explore)  # pyright: ignore[reportAttributeAccessIssue]
            ended = terminated | truncated
            worlds = np.flatnonzero(ended)
            next_obs = _where(ended, self.worlds.last_obs(), obs) if len(worlds) else obs
            if self.perception is not None:
                if self._frames_read == "all":
                    frames.append(self.worlds.frames.copy())
                self._note_starts(worlds)
                after, begun = [info.get("signals", {}) for info in told], self._signals(worlds)
                if self._queue is not None:
                    self._queue.put(self.worlds.frames, after)
                    if len(worlds):
                        self._queue.put(self.worlds.reset_frames[worlds], begun)
                else:
                    next_obs, obs, row = self._perceive(ended, after, begun)
                    next_rows.append(row)
                    rows.append(self._row)
            values = (self._obs, action, next_obs, env_reward, terminated, truncated, self._first)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
            infos.append(told)
            self._obs, self._first = obs, ended
        rollout = Rollout(*(_stack(column) for column in columns.values()))
        if self.perception is None:
            return Collected(rollout, None, infos, np.stack(intervened))
        if self._queue is not None:
            encoded, next_rows = self._encoded(rollout)
            rows = [*encoded]
        moments = RolloutMoments(np.stack(rows[:-1]), np.stack(next_rows), np.stack(frames) if frames else None, starts)  # pyright: ignore
        return Collected(rollout, moments, infos, np.stack(intervened))

    # What is seen ---------------------------------------------------------------------------------------

    def _perceive(
        self, ended: np.ndarray, after: list[dict[str, float]], begun: list[dict[str, float]]
    ) -> tuple[Obs, Obs, np.ndarray]:
        """The observations after a step and at the next one, and the rows after the step; sets the row of now."""
        assert self.perception is not None
        count, worlds = len(ended), np.flatnonzero(ended)
        seen = self._see(np.concatenate([self.worlds.frames, self.worlds.reset_frames[worlds]]), [*after, *begun])
        now = np.arange(count)
        now[worlds] = count + np.arange(len(worlds))
        one, two = seen.take(np.arange(count)), seen.take(now)
        next_obs = obs = self.perception.observe(one, np.zeros(count, bool), self._points)
        if len(worlds):
            obs = self.perception.observe(two, ended, self._points)
        self._row = two.rows
        return next_obs, obs, one.rows

    def _see(self, frames: np.ndarray, signals: list[dict[str, float]]) -> Perceived:
        assert self.perception is not None
        begun = time.perf_counter()
        seen = self.perception.see(frames, signals)
        self.latencies.append(time.perf_counter() - begun)
        return seen

    def _signals(self, worlds: np.ndarray) -> list[dict[str, float]]:
        return [self.worlds.reset_infos[e].get("signals", {}) for e in worlds]

    def _note_starts(self, worlds: np.ndarray) -> None:
        """Keep what heads read of the images that begin these worlds' episodes."""
        if self._frames_read == "none":
            return
        depth = self.worlds.reset_depth
        for e in worlds.tolist():
            self._starts[e] = (self.worlds.reset_frames[e].copy(), None if depth is None else depth[e].copy())

    def _encoded(self, rollout: Rollout) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The rows before each step and at the end, and after each step, from the queue's."""
        assert self._queue is not None
        found, at, count = self._queue.collect(), 0, self.worlds.num_envs
        if self._row is None:
            self._row, at = found[:count], count
        rows, next_rows = [self._row], []
        for ended in rollout.ended:
            after, at = found[at : at + count], at + count
            begun = int(ended.sum())
            now = after.copy()
            now[ended], at = found[at : at + begun], at + begun
            next_rows.append(after)
            rows.append(now)
        assert at == len(found), "frames and steps must match"
        self._row = rows[-1]
        return rows, next_rows

    def close(self) -> None:
        """End the encoding threads and the worlds."""
        if self._queue is not None:
            self._queue.close()
        self.worlds.close()

    # Resume ---------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values, between rollouts; "worlds" is None where a world cannot tell its state."""
        if self._queue is not None and self._row is None:  # nothing was collected yet
            self._row = self._queue.collect()
        worlds = self.worlds.get_states()
        saved = [state.pop("world") for state in worlds]
        arrays = {f"world/{e}/{name}": value for e, each in enumerate(saved) for name, value in (each or {}).items()}
        arrays |= {f"obs/{name}": leaf for name, leaf in leaves(self._obs).items()}
        arrays |= {f"memory/{name}": value for name, value in self._memory.items()}
        arrays |= {"first": self._first} | ({} if self._row is None else {"row": self._row})
        if self._points is not None:
            arrays |= {f"points/{name}": value for name, value in self._points.get_state().items()}
        for e, (frames, depth) in self._starts.items():
            arrays |= {f"start/{e}/frames": frames} | ({} if depth is None else {f"start/{e}/depth": depth})
        return arrays, {"worlds": None if any(each is None for each in saved) else worlds}

    def load_state(self, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> bool:
        """Undo of `state` on a fresh collector; False: the worlds cannot, and begin new episodes."""
        if values["worlds"] is None:
            return False
        states = [state | {"world": below(arrays, f"world/{e}")} for e, state in enumerate(values["worlds"])]
        self.worlds.set_states(states)
        obs = below(arrays, "obs")
        self._obs = obs[""] if set(obs) == {""} else obs
        self._memory, self._first, self._row = below(arrays, "memory"), arrays["first"].astype(bool), arrays.get("row")
        if self._points is not None:
            self._points.set_state(below(arrays, "points"))
        if self._queue is not None:
            self._queue.collect()  # of the episodes that the reset began
        self._starts = {
            e: (arrays[f"start/{e}/frames"], arrays.get(f"start/{e}/depth"))
            for e in range(self.worlds.num_envs)
            if f"start/{e}/frames" in arrays
        }
        return True


class EncodingQueue:
    """Frames in, rows out in the same order, encoded in batches on background threads; `seconds` gets each call's."""

    def __init__(self, perception: Perception, batch_size: int, threads: int, seconds: deque[float]) -> None:
        for name, value in {"batch_size": batch_size, "encode_threads": threads}.items():
            if value < 1:
                raise ValueError(f"Collector: {name} must be at least 1; got {value}.")
        self._perception, self._seconds = perception, seconds
        self._batch_size = max(1, batch_size // len(perception.layout.views))  # moments
        share = max(1, torch.get_num_threads() // threads)  # torch counts threads for each caller apart
        self._pool = ThreadPoolExecutor(threads, "encoder", torch.set_num_threads, (share,))
        self._frames: list[np.ndarray] = []
        self._signals: list[dict[str, float]] = []
        self._results: list[Future[np.ndarray]] = []

    def put(self, frames: np.ndarray, signals: list[dict[str, float]]) -> None:
        """(N, V, H, W, 3) uint8 of N moments; copied, as the worlds will draw over it."""
        self._frames.extend(frames.copy())
        self._signals.extend(signals)
        while len(self._frames) >= self._batch_size:
            self._send(self._batch_size)

    def _send(self, count: int) -> None:
        frames, signals = np.stack(self._frames[:count]), self._signals[:count]
        del self._frames[:count], self._signals[:count]
        self._results.append(self._pool.submit(self._encode, frames, signals))

    def collect(self) -> np.ndarray:
        """(N, W) float32 of every moment put since the last call."""
        if self._frames:
            self._send(len(self._frames))
        results, self._results = self._results, []
        return np.concatenate([result.result() for result in results])

    def _encode(self, frames: np.ndarray, signals: list[dict[str, float]]) -> np.ndarray:
        begun = time.perf_counter()
        rows = self._perception.see(frames, signals).rows
        self._seconds.append(time.perf_counter() - begun)
        return rows

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def in_units(space: spaces.Space, actions: np.ndarray) -> np.ndarray:
    """Actions (E, …) of an actor, in [-1, 1], as worlds want them; discrete ones as they are."""
    if not isinstance(space, spaces.Box):
        return actions
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    scaled = low + (actions.astype(np.float64).reshape(len(actions), *space.shape) + 1) * 0.5 * (high - low)
    return np.clip(scaled, low, high).astype(space.dtype)


def to_unit(space: spaces.Space, actions: np.ndarray) -> np.ndarray:
    """Actions (T, …), in the worlds' units, as a learner sees them: in [-1, 1], or integers."""
    if not isinstance(space, spaces.Box):
        return actions.reshape(len(actions)).astype(np.int64)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    shaped = actions.reshape(len(actions), *space.shape)
    return np.clip(2 * (shaped - low) / (high - low) - 1, -1, 1).astype(np.float32)


def with_replaced(space: spaces.Space, action: np.ndarray, replaced: dict[int, np.ndarray]) -> np.ndarray:
    """An actor's actions (E, …) with what was executed in their place, by world, in the worlds' units."""
    done = to_unit(space, np.stack(list(replaced.values())))
    action = action.copy()
    action[list(replaced)] = done.reshape(len(done), *action.shape[1:])
    return action


def below(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The arrays whose names begin with a prefix and a slash, by the rest of their names."""
    return {name[len(prefix) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{prefix}/")}


def _stack(parts: list[Any]) -> Any:
    return map_leaves(lambda *leaf: np.stack(leaf), *parts)


def _where(mask: np.ndarray, one: Obs, other: Obs) -> Obs:
    """Leaf by leaf, `one` in the worlds of the mask and `other` elsewhere."""
    return map_leaves(lambda a, b: np.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other)
