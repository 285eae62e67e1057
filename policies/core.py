"""What the training loop asks of a learner, and what whoever acts asks of an actor.

    worlds ──► Rollout ──► labeller ──► replay ──► Batch ──► learner.update
      ▲                                                        │
      └───────────────── actor.act(obs, memory, first) ◄───────┘

A learner gets its rewards as numbers, already given; it never sees success or the task's own reward. An observation is
one array or a dictionary of arrays; `leaves` and `map_leaves` treat both alike.

Shape letters: E worlds, T steps, B windows of a batch, A action; `…` the shape of one observation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int16
from torch import Tensor

Obs = Any  # an array or a dictionary of arrays, (E, …) where someone acts, (T, E, …) in a rollout
Memory = dict[str, np.ndarray]  # what an actor remembers between steps, (E, …) each; a checkpoint holds it


class Rollout(NamedTuple):
    """T steps of E worlds, in order; what a collector returns.

    Attributes:
        obs: (T, E, …) before the action.
        action: (T, E, A) float32 in [-1, 1], or (T, E) int64 where actions are discrete; what was executed, also where
            that is not what the actor said.
        next_obs: (T, E, …) after it: at an episode's end its own last one, never the next one's first.
        env_reward: (T, E) float32, the task's own. For judging; a learner gets it only where it was asked for.
        terminated: (T, E) bool, the task ended there.
        truncated: (T, E) bool, the time was over there, or the episode was cut; never both.
        first: (T, E) bool, `obs` is an episode's first.
    """

    obs: Obs
    action: np.ndarray
    next_obs: Obs
    env_reward: Float32[np.ndarray, "T E"]
    terminated: Bool[np.ndarray, "T E"]
    truncated: Bool[np.ndarray, "T E"]
    first: Bool[np.ndarray, "T E"]

    @property
    def ended(self) -> Bool[np.ndarray, "T E"]:
        """An episode's last step, for either reason."""
        return self.terminated | self.truncated


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a learner wants a batch to be.

    Attributes:
        length: T, steps of a window, ≥ 1.
        batch_size: B, windows, ≥ 1.
        stack: observations that the learner reads at once, the newest of them last, ≥ 1; see `Batch.history`.
        demo_share: share of the windows that come from demonstrations, in [0, 1]; where there are none, all are the
            learner's own, and where there is nothing of its own yet, all are demonstrations.
        demo_share_last: what that share goes to in a straight line while the learner collects `demo_share_over`
            transitions; None: it stays.
        returns: whether `Batch.returns` is wanted.
        gamma: discount of those returns.
        capacity: transitions of its own that are kept; the oldest are overwritten.
    """

    length: int = 1
    batch_size: int = 256
    stack: int = 1
    demo_share: float = 0.0
    demo_share_last: float | None = None
    demo_share_over: int = 1
    returns: bool = False
    gamma: float = 0.99
    capacity: int = 1_000_000


class Batch(NamedTuple):
    """B windows of T steps; a window ends early where its episode does, and is padded.

    Attributes:
        obs: (T + 1, B, …), before each action and after the last; padding repeats the last real one.
        action: (T, B, A) float32 in [-1, 1], or (T, B) int64; 0 in padding.
        reward: (T, B) float32; 0 in padding.
        terminated: (T, B) bool; False in padding.
        valid: (T, B) bool, False in padding. `valid[0]` is always True.
        imitate: (T, B) bool, the action is one that a demonstration, or a person's intervention, shows as good.
        returns: (T, B) float32, discounted sum of the rewards from there to the episode's end, where asked for and
            known; NaN where the episode was cut or still runs.
        history: (stack − 1, B, …), the observations before `obs[0]`, oldest first. Before its episode's first one that
            one is repeated; before the oldest one that is still stored, that. None where `Sampling.stack` is 1.
        look: (T, B) int16, which of the worlds' varied looks the episode had; −1 where it is not known, 0 in padding.
            For learning what does not depend on it: an actor never sees it.
    """

    obs: Any
    action: Tensor
    reward: Float[Tensor, "T B"]
    terminated: Bool[Tensor, "T B"]
    valid: Bool[Tensor, "T B"]
    imitate: Bool[Tensor, "T B"]
    returns: Float[Tensor, "T B"] | None = None
    history: Any = None
    look: Int16[Tensor, "T B"] | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        parts: list[Any] = [None if part is None else map_leaves(lambda leaf: leaf.to(device), part) for part in self]
        return Batch(*parts)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How collecting and updating take turns.

    Attributes:
        rollout_steps: steps of every world between two rounds of updates, ≥ 1.
        updates_per_step: updates for each transition collected, > 0, over all rounds together.
        learning_starts: transitions before the first update.
        pretraining: updates on demonstrations alone, before the first step; 0 without demonstrations.
        burst: updates that the first round makes beside its own.
    """

    rollout_steps: int = 4
    updates_per_step: float = 1.0
    learning_starts: int = 500
    pretraining: int = 0
    burst: int = 0

    def updates(self, collected: int, total: int) -> int:
        """Updates after a rollout of so many transitions, `total` of them in the whole run."""
        if total <= self.learning_starts:
            return 0
        before = total - collected
        count = math.floor(total * self.updates_per_step) - math.floor(before * self.updates_per_step)
        return count + (self.burst if before <= self.learning_starts else 0)


@runtime_checkable
class Actor(Protocol):
    """Observations in, actions out. Evaluation, films, collecting, watching and robots ask no more."""

    # One more, where an actor remembers what it did or will do, or counts it: executed(memory, action, intervened, *,
    # explore) -> Memory, after a step in which worlds executed other actions than it said. `action` (E, …) is what was
    # executed everywhere, in its own units, `intervened` (E,) where a person gave it; `memory` is not changed.

    def begin(self, count: int) -> Memory:
        """The memory with which `count` worlds start; {} where there is nothing to remember."""
        ...

    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        """Actions for E worlds.

        Args:
            obs: (E, …).
            memory: what the last call returned, or `begin` gave; not changed.
            first: (E,) bool, the worlds whose episode begins with this observation: what was remembered of them counts
                no more.
            explore: for training; False acts as well as it can.

        Returns:
            (E, A) float32 in [-1, 1], or (E,) int64 where actions are discrete; and the next memory.
        """
        ...


@runtime_checkable
class Learner(Actor, Protocol):
    """An actor that improves.

    Attributes:
        pace: how often the loop asks it to.
        sampling: the batches it wants; None: it keeps what it needs from `observe` (on-policy).
    """

    pace: Pace
    sampling: Sampling | None

    # One more, where a learner can: acting() -> Actor, with the weights of now, to act with while `update` runs on
    # another thread. It shares what acting changes (generators, who plays), and `update` must change none of that.

    def observe(self, rollout: Rollout, reward: Float32[np.ndarray, "T E"]) -> None:
        """The newest steps, with the rewards to learn from: for counters, hand-over and on-policy learning."""
        ...

    def update(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """So many updates, each with the next batch or batches; returns flat metrics for the log."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that continuing needs, as tensors (safetensors) and JSON values, generators among it."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo of `state`, on a learner made with the same settings.

        Raises:
            ValueError: the state is another learner's, or of other shapes.
        """
        ...


class ImaginedEpisode(NamedTuple):
    """An episode of T actions as a model sees it, and as it imagines it from each of N = T − P + 1 of its moments.

    Attributes:
        seen: (T + 1, L) float32, the model's own state at each moment, from what was really observed.
        ahead: (N, P, L), the states imagined 1 to P steps after each moment, under the actions that were taken.
        reward: (N, P), the rewards imagined for those steps.
    """

    seen: Float32[Tensor, "M L"]
    ahead: Float32[Tensor, "N P L"]
    reward: Float32[Tensor, "N P"]


@runtime_checkable
class Imagines(Protocol):
    """A learner whose model can be held against what really happened."""

    def imagine(self, obs: Obs, action: np.ndarray, horizon: int) -> ImaginedEpisode:
        """Imagine one episode from each of its moments that `horizon` actions follow.

        Args:
            obs: (T + 1, …).
            action: (T, A) in [-1, 1], T ≥ horizon.
            horizon: P ≥ 1.
        """
        ...


# Observations of either form --------------------------------------------------------------------------------


def leaves(obs: Obs) -> dict[str, Any]:
    """The arrays of an observation by name; one array has the name "".

    Args:
        obs: an array, or a dictionary of some.
    """
    return dict(obs) if isinstance(obs, Mapping) else {"": obs}


def map_leaves(function: Callable[..., Any], *parts: Any) -> Any:
    """A function of corresponding arrays, in the form of the first.

    Args:
        function: of as many arrays as there are parts.
        parts: of one form.
    """
    if isinstance(parts[0], Mapping):
        return {name: function(*(part[name] for part in parts)) for name in parts[0]}
    return function(*parts)
