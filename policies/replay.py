"""What a learner has seen: a ring of steps, sampled as windows, paid anew without being collected again.

A sample is one draw and one gather, whatever the size. Rewards stay raw: n-step sums, masks and returns are made at
sampling, so that new rewards need nothing else.

Shape letters: S slots, E worlds, T steps, B windows, W width of a row; `…` the shape of one observation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Float32, Int16

from policies.core import Batch, Obs, Rollout, Sampling, leaves, map_leaves
from policies.mixing import Mix, NStep, n_step
from policies.moments import Moments, Stretch

__all__ = ["Mix", "NStep", "Replay", "Stretch", "n_step"]

ROWS = "rows"
UNKNOWN = -1  # look


class Replay:
    """Steps of E worlds; the oldest are overwritten, unless it grows.

    Args:
        observation_space: a Box, or a Dict of them; images stay uint8.
        action_space: a Box, or a Discrete.
        capacity: steps kept, of all worlds together; where it grows, at first.
        num_worlds: E.
        seed: of the draws.
        grows: never overwrite: double the capacity when it is full. For demonstrations.
        row_leaf: the entry of the observation that is the feature row itself ("" where the observation is one array);
            `add` then needs no rows.
        folder: where files of columns above 2 GB lie; None: the system's folder for such files.

    Attributes:
        total: transitions ever added.
        generator: of the draws.

    Raises:
        ValueError: no room for one step of every world, or spaces of other kinds.
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, *, capacity: int, num_worlds: int, seed: int,
        grows: bool = False, row_leaf: str | None = None, folder: Path | None = None,
    ) -> None:  # fmt: skip
        if num_worlds < 1 or capacity < num_worlds:
            raise ValueError(
                f"Replay: capacity must be at least num_worlds, and that at least 1; got {capacity} and {num_worlds}."
            )
        self.slots, self.num_worlds, self._grows, self._folder = capacity // num_worlds, num_worlds, grows, folder
        self._row_leaf = row_leaf
        self.generator = np.random.default_rng(seed)
        self.pos, self.full, self.total = 0, False, 0
        boxes = leaves(observation_space.spaces if isinstance(observation_space, spaces.Dict) else observation_space)
        self._flat = list(boxes) == [""]
        if row_leaf is not None and row_leaf not in boxes:
            raise ValueError(f"Replay: row_leaf must be one of {', '.join(boxes)}; got {row_leaf!r}.")
        kinds = {}
        for name, box in boxes.items():
            if not isinstance(box, spaces.Box):
                raise ValueError(f"Replay: observations must be a Box or a Dict of them; got {observation_space}.")
            kinds[_key(name)] = (box.shape, np.float32 if box.dtype == np.float64 else box.dtype)
        self._moments = Moments(kinds, self.slots, num_worlds, folder)
        shape = (self.slots, num_worlds)
        if isinstance(action_space, spaces.Discrete):
            action = np.zeros(shape, np.int64)
        elif isinstance(action_space, spaces.Box):
            action = np.zeros((*shape, *action_space.shape), np.float32)
        else:
            raise ValueError(f"Replay: actions must be a Box or a Discrete; got {action_space}.")
        self._columns = {"action": action, "reward": np.zeros(shape, np.float32)}
        self._columns |= {"env_reward": np.zeros(shape, np.float32)}
        self._columns |= {name: np.zeros(shape, bool) for name in ("terminated", "truncated", "imitate")}
        self._columns["look"] = np.full(shape, UNKNOWN, np.int16)
        self._lengths = np.zeros(num_worlds, np.int64)  # steps so far of each running episode
        self._returns: np.ndarray | None = None  # (S, E) float64, kept up once someone asked
        self._gamma = math.nan

    def __len__(self) -> int:
        """Transitions that can be drawn."""
        return self._size * self.num_worlds

    @property
    def _size(self) -> int:
        return self.slots if self.full else self.pos

    @property
    def reward(self) -> Float32[np.ndarray, "S E"]:
        """What was learned from, by slot and world; a view of what is stored."""
        return self._columns["reward"][: self._size]

    @property
    def env_reward(self) -> Float32[np.ndarray, "S E"]:
        """The task's own, for judging; a view."""
        return self._columns["env_reward"][: self._size]

    @property
    def running(self) -> Bool[np.ndarray, " E"]:
        """The worlds whose newest step did not end its episode."""
        return self._lengths > 0

    # Storing --------------------------------------------------------------------------------------------

    def add(
        self,
        rollout: Rollout,
        reward: Float32[np.ndarray, "T E"],
        imitate: Bool[np.ndarray, "T E"] | None = None,
        *,
        rows: tuple[np.ndarray, np.ndarray] | None = None,
        look: Int16[np.ndarray, "T E"] | None = None,
    ) -> None:
        """Store T steps of every world.

        A world whose episode begins anew while its last one had no end has that one cut there.

        Args:
            rollout: (T, E, …), T at most the slots of the ring.
            reward: what to learn from.
            imitate: which actions are to be imitated; None: none.
            rows: (T, E, W) before each action and after it, to relabel from; always or never.
            look: which of the worlds' varied looks each episode has; None: not known.

        Raises:
            ValueError: a reward is no number, an episode goes on after its end, or shapes do not fit.
        """
        count = self._check(rollout, reward)
        if self._grows:
            self._make_room(count)
        if count > self.slots:
            raise ValueError(
                f"Replay.add: a rollout must have at most {self.slots} steps; got {count}. Raise capacity."
            )
        at = (self.pos + np.arange(count)) % self.slots
        before, after = self._states(rollout, rows)
        if self.total:
            newest = (self.pos - 1) % self.slots
            cut = self._moments.join(newest, rollout.first[0])
            self._columns["truncated"][newest, cut] = True
            self._lengths[cut] = 0
        ended = rollout.ended
        values = {"action": rollout.action, "reward": reward, "env_reward": rollout.env_reward}
        values |= {"terminated": rollout.terminated, "truncated": rollout.truncated}
        values["imitate"] = np.zeros_like(ended) if imitate is None else imitate
        values["look"] = np.full(ended.shape, UNKNOWN) if look is None else look
        for name, value in values.items():
            self._columns[name][at] = value
        self._moments.write(at, before, after, ended)
        self._count_returns(at, rollout)
        self.full = self.full or self.pos + count >= self.slots
        self.pos = (self.pos + count) % self.slots
        self.total += count * self.num_worlds

    def add_episode(
        self,
        obs: Obs,
        action: np.ndarray,
        reward: np.ndarray,
        *,
        terminated: bool,
        imitate: np.ndarray | bool = True,
        env_reward: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        """Store a whole episode of one world.

        Args:
            obs: (T + 1, …), the last one after the last action.
            action: (T, A) in [-1, 1], or (T,) integers.
            reward: (T,) what to learn from.
            terminated: whether the task ended at the last step; else the time was over.
            imitate: (T,) or one for all, whether the actions are to be imitated.
            env_reward: (T,) the task's own; None: zeros.
            rows: (T + 1, W), to relabel from.
        """
        steps = len(reward)
        last = np.zeros((steps, 1), bool)
        last[-1] = True
        own = np.zeros(steps) if env_reward is None else env_reward
        rollout = Rollout(
            obs=map_leaves(lambda leaf: leaf[:-1, None], obs),
            action=action[:, None],
            next_obs=map_leaves(lambda leaf: leaf[1:, None], obs),
            env_reward=np.asarray(own, np.float32)[:, None],
            terminated=last & terminated,
            truncated=last & (not terminated),
            first=np.roll(last, 1, 0),
        )
        shown = np.broadcast_to(imitate, steps)[:, None]
        pair = None if rows is None else (rows[:-1, None], rows[1:, None])
        self.add(rollout, np.asarray(reward, np.float32)[:, None], shown, rows=pair)

    def _check(self, rollout: Rollout, reward: np.ndarray) -> int:
        shape = rollout.first.shape
        if reward.shape != shape or shape[1:] != (self.num_worlds,) or not len(reward):
            expected = f"(T, {self.num_worlds}) with T ≥ 1, for every step"
            raise ValueError(f"Replay.add: reward must be {expected}; got {reward.shape} for {shape} steps.")
        if not np.isfinite(reward).all():
            raise ValueError(f"Replay.add: reward must be finite; got {reward[~np.isfinite(reward)][0]}.")
        if (rollout.terminated & rollout.truncated).any():
            raise ValueError("Replay.add: a step must be terminated or truncated, never both.")
        if (rollout.first[1:] != rollout.ended[:-1]).any():
            raise ValueError("Replay.add: first must be True after an episode's end and nowhere else in a rollout.")
        return len(reward)

    def _states(self, rollout: Rollout, rows: tuple[np.ndarray, np.ndarray] | None) -> tuple[dict, dict]:
        """What `_moments` holds, before and after, by column."""
        before = {_key(name): leaf for name, leaf in leaves(rollout.obs).items()}
        after = {_key(name): leaf for name, leaf in leaves(rollout.next_obs).items()}
        if rows is not None:
            if not self.total and ROWS not in self._moments.rings:
                self._moments.add_column(ROWS, rows[0].shape[2:], np.float16)
            before[ROWS], after[ROWS] = rows
        if set(before) != set(self._moments.rings):
            raise ValueError(f"Replay.add: columns must be {', '.join(self._moments.rings)}; got {', '.join(before)}.")
        return before, after

    def _make_room(self, count: int) -> None:
        """More slots, so that nothing is overwritten."""
        if self._size + count > self.slots:
            self._grow(max(self._size + count, 2 * self.slots))

    def _grow(self, slots: int) -> None:
        if self.full:
            self.pos, self.full = self.slots, False
        self._moments.grow(slots)
        for name, column in self._columns.items():
            more = np.zeros((slots - self.slots, *column.shape[1:]), column.dtype)
            self._columns[name] = np.concatenate([column, more])
        self.slots, self._returns = slots, None

    # Drawing --------------------------------------------------------------------------------------------

    def sample(self, sampling: Sampling) -> Batch:
        """Windows that begin at any stored step, each as likely; they end with their episode or at the newest step."""
        if not self._size:
            raise ValueError("Replay.sample: there must be a step to draw; got none.")
        starts, worlds = np.divmod(self._draw(sampling.batch_size), self.num_worlds)
        k = np.arange(sampling.length + 1)[:, None]
        slots = (starts + k) % self.slots
        steps = slots[:-1]
        stops = self._columns["terminated"][steps, worlds] | self._columns["truncated"][steps, worlds]
        stops |= k[:-1] == (self.pos - 1 - starts) % self.slots  # nothing comes after the newest
        count = np.where(stops.any(0), stops.argmax(0) + 1, sampling.length)
        valid = k[:-1] < count
        observed = {
            name.removeprefix("obs").removeprefix("/"): torch.from_numpy(
                self._moments.windows(name, slots, worlds, count)
            )
            for name in self._moments.rings
            if name != ROWS
        }
        parts = {}
        for name in ("action", "reward", "terminated", "imitate", "look"):
            values = self._columns[name][steps, worlds]
            values[~valid] = 0
            parts[name] = torch.from_numpy(values)
        returns = None
        if sampling.returns:
            values = self._returns_of(sampling.gamma)[steps, worlds].astype(np.float32)
            values[~valid] = np.nan
            returns = torch.from_numpy(values)
        history = None
        if sampling.stack > 1:
            before = self._before(starts, worlds, sampling.stack - 1)
            rings = self._moments.rings
            history = {name: torch.from_numpy(rings[_key(name)][before, worlds]) for name in observed}
        return Batch(
            obs=self._formed(observed), **parts, valid=torch.from_numpy(valid), returns=returns,
            history=None if history is None else self._formed(history),
        )  # fmt: skip

    def _draw(self, count: int) -> np.ndarray:
        """(count,) steps, slot · E + world."""
        return self.generator.integers(len(self), size=count)

    def _formed(self, parts: dict[str, Any]) -> Any:
        return parts[""] if self._flat else parts

    def _before(self, starts: np.ndarray, worlds: np.ndarray, count: int) -> np.ndarray:
        """(count, B) slots before each start, oldest first; none before its episode's first, or the oldest stored."""
        age = (starts - (self.pos if self.full else 0)) % self.slots
        back = np.arange(1, count + 1)[:, None]
        slots = (starts - back) % self.slots
        stops = self._columns["terminated"][slots, worlds] | self._columns["truncated"][slots, worlds] | (back > age)
        reach = np.where(stops.any(0), stops.argmax(0), count)
        return (starts - np.minimum(back[::-1], reach)) % self.slots

    # Returns --------------------------------------------------------------------------------------------

    def _returns_of(self, gamma: float) -> np.ndarray:
        if self._returns is None or self._gamma != gamma:
            self._gamma, self._returns = gamma, np.full((self.slots, self.num_worlds), np.nan)
            after = np.full(self.num_worlds, np.nan)
            for slot in (self.pos - 1 - np.arange(self._size)) % self.slots:
                after[self._columns["truncated"][slot]] = np.nan
                after[self._columns["terminated"][slot]] = 0.0
                after = self._returns[slot] = self._columns["reward"][slot] + gamma * after
        return self._returns

    def _count_returns(self, at: np.ndarray, rollout: Rollout) -> None:
        """Lengths of the running episodes; and the returns of those that ended, where someone has asked for them."""
        if self._returns is not None:
            self._returns[at] = np.nan
        for e in range(self.num_worlds):
            begin = -int(self._lengths[e])
            for t in np.flatnonzero(rollout.ended[:, e]):
                length, begin = min(int(t) + 1 - begin, self.slots - (len(at) - 1 - int(t))), int(t) + 1
                if self._returns is not None and rollout.terminated[t, e]:
                    back = (at[t] - np.arange(length)) % self.slots
                    rewards = self._columns["reward"][back, e].astype(np.float64).tolist()
                    self._returns[back, e] = list(accumulate(rewards, lambda after, r: r + self._gamma * after))
            self._lengths[e] = len(at) - begin

    # Other rewards --------------------------------------------------------------------------------------

    def rollouts(self, steps: int) -> Iterator[tuple[Rollout, Float32[np.ndarray, "T E"]]]:
        """Every stored step as rollouts of at most so many, oldest first, each with its rewards.

        A world's first step counts as its episode's first, which the ring may have overwritten.
        """
        order = (np.arange(self._size) + (self.pos if self.full else 0)) % self.slots
        names = {name.removeprefix("obs").removeprefix("/"): name for name in self._moments.rings if name != ROWS}
        first = np.ones((1, self.num_worlds), bool)
        for at in (order[begin : begin + steps] for begin in range(0, len(order), steps)):
            columns = {name: column[at] for name, column in self._columns.items()}
            obs = self._formed({name: self._moments.rings[column][at] for name, column in names.items()})
            next_obs = self._formed({name: self._moments.after(column, at) for name, column in names.items()})
            ended = np.concatenate([first, columns["terminated"] | columns["truncated"]])
            own = {name: columns[name] for name in ("action", "env_reward", "terminated", "truncated")}
            yield Rollout(obs=obs, next_obs=next_obs, first=ended[:-1], **own), columns["reward"]
            first = ended[-1:]

    def stretches(self) -> Iterator[Stretch]:
        """Every stored step in pieces of one episode each, oldest first within a world.

        Raises:
            ValueError: it keeps no rows.
        """
        name = ROWS if self._row_leaf is None else _key(self._row_leaf)
        if name not in self._moments.rings:
            raise ValueError("Replay.stretches: there must be rows to relabel from; got none. Add them with the steps.")
        order = (np.arange(self._size) + (self.pos if self.full else 0)) % self.slots
        for e in range(self.num_worlds):
            for slots in self._moments.pieces(order, e):
                rows = self._moments.piece(name, slots, e)
                yield Stretch(slots, e, rows, self._columns["terminated"][slots, e])

    def set_rewards(self, slots: np.ndarray, world: int, rewards: Float[np.ndarray, " T"]) -> None:
        """Give steps their rewards anew.

        Raises:
            ValueError: a reward is no number.
        """
        if not np.isfinite(rewards).all():
            raise ValueError(f"Replay.set_rewards: rewards must be finite; got {rewards[~np.isfinite(rewards)][0]}.")
        self._columns["reward"][slots, world] = rewards
        self._returns = None

    # Checkpoints ----------------------------------------------------------------------------------------

    def arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All that is stored, in the ring's order, as arrays (mostly views) and JSON values."""
        out = {name: column[: self._size] for name, column in self._columns.items()}
        out |= {"lengths": self._lengths.copy()} | self._moments.arrays(self._size)
        values = {"slots": self.slots, "pos": self.pos, "full": self.full}
        return out, values | {"total": self.total, "rng": self.generator.bit_generator.state}

    def load(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Undo of `arrays`, on one made with the same settings.

        Raises:
            ValueError: it was of another capacity, or of other columns.
        """
        if self._grows and values["slots"] > self.slots:
            self._grow(int(values["slots"]))
        if ROWS in arrays and ROWS not in self._moments.rings:
            self._moments.add_column(ROWS, arrays[ROWS].shape[2:], np.float16)
        room = not values["full"] and int(values["pos"]) < self.slots  # nothing was overwritten: it fits a longer ring
        if values["slots"] != self.slots and not room:
            raise ValueError(f"Replay.load: slots of a world must be {self.slots}; got {values['slots']}.")
        for name, column in {**self._columns, **self._moments.rings}.items():
            got = arrays[name].shape[1:] if name in arrays else "none"
            if got != column.shape[1:]:
                raise ValueError(f"Replay.load: {name} must be of {column.shape[1:]} a slot; got {got}.")
        for name, column in self._columns.items():
            column[: len(arrays[name])] = arrays[name]
        self.pos, self.full = int(values["pos"]), bool(values["full"])
        self.total = int(values["total"])
        self.generator.bit_generator.state = dict(values["rng"])
        self._lengths[:] = arrays["lengths"]
        self._moments.load(arrays, (self.pos - 1) % self.slots if self.total else None)
        self._returns = None


def _key(name: str) -> str:
    """An observation's column."""
    return f"obs/{name}" if name else "obs"
