"""A bounded correction, learned by RL, on top of a policy that stays as it is.

    action = clip(base(o) + scale · tanh(u), −1, 1),    u ~ N(μ(o, base(o)), σ)

ResFiT (Ankile et al., arXiv 2509.19301): critics of the whole action, a long warm-up of the critics, then an actor that
begins at no correction; half of every batch from demonstrations. Departures: soft actor-critic (the entropy is that of
tanh u) in place of their TD3 with ten critics, one action at a time in place of chunks, vectors in place of images, and
a hand-over, so that it does not end below its base.

For updates the base is asked anew about each observation, as if an episode began there: right for a base that remembers
nothing, near enough for one that plays chunks.

Shape letters: E worlds, B batch, S flat observation, A action.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from policies import imitation
from policies.core import Actor, Batch, Learner, Memory, Obs, Rollout, map_leaves
from policies.handover import LEARNED, HandOver
from policies.networks import Sample, flat
from policies.saving import State
from policies.settings import maker
from policies.soft import Soft, SoftLearner, SoftSettings

BASE = "base/"  # what the base remembers, in this one's memory


@dataclass(frozen=True, kw_only=True)
class ResidualSettings(SoftSettings):
    """What can be set, beside `SoftSettings`.

    Attributes:
        scale: of the correction, > 0.
        warmup: updates of the critics before the correction is learned.
        noise: standard deviation of what is added to the actions in training, corrected or not, so that the hand-over
            compares like with like.
        temperature: see `SoftSettings`.
        handover: whether the correction is played only while it earns no less; else from the end of the warm-up.
    """

    scale: float = 0.2
    warmup: int = 5000
    noise: float = 0.1
    temperature: float | None = 0.003
    handover: bool = True


class _Corrected(Soft):
    """Soft actor-critic that reads the base's action and adds to it."""

    base: Actor
    scale: float

    def inputs(self, obs: Any) -> Tensor:
        x = super().inputs(obs)
        asked = map_leaves(lambda leaf: leaf.cpu().numpy(), obs)
        action, _ = self.base.act(asked, self.base.begin(len(x)), np.ones(len(x), bool), explore=False)
        return torch.cat([x, torch.from_numpy(action).to(x)], -1)

    def sample(self, x: Tensor, noise: Tensor) -> Sample:
        drawn, base = super().sample(x, noise), x[:, -self.num_actions :]
        whole, best = ((base + self.scale * part).clamp(-1, 1) for part in (drawn.action, drawn.best))
        return Sample(whole, drawn.log_prob, best)


class Residual(SoftLearner[ResidualSettings]):
    """The learner; see the module.

    Args:
        observation_space: vectors.
        action_space: a Box.
        seed: of weights, exploration and updates.
        device: where the networks live.
        settings: see `ResidualSettings`.
        base: what is corrected, for instance a finetuned VLA, which draws nothing where it does not explore; a learner
            is pretrained on demonstrations first, and saved with this one's state. None: imitation.
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, *, seed: int, device: str,
        settings: ResidualSettings, base: Actor | None = None,
    ) -> None:  # fmt: skip
        if base is None:
            base = imitation.Imitation(
                observation_space, action_space, seed=seed + 10, device=device, settings=imitation.ImitationSettings()
            )
        self.base = base
        super().__init__(observation_space, action_space, seed=seed, device=device, settings=settings)
        self.pace = replace(self.pace, pretraining=settings.pretraining if isinstance(base, Learner) else 0)
        head = self._soft.policy.actor.mlp.head
        with torch.no_grad():  # no correction at first, in the mean
            head.weight[..., : self.num_actions] = 0
            head.bias[..., : self.num_actions] = 0
        self.handover = HandOver()

    def _networks(self, size: int, seed: int) -> Soft:
        soft = _Corrected(
            size, self.num_actions, settings=self.settings, seed=seed, device=self.device, beside=self.num_actions
        )
        soft.base, soft.scale = self.base, self.settings.scale
        return soft

    # Acting ---------------------------------------------------------------------------------------------

    @property
    def _best(self) -> int:
        warm = self._soft.updates >= self.settings.warmup
        return self.handover.best if self.settings.handover else int(warm)

    def begin(self, count: int) -> Memory:
        """Who plays each world's running episode, and what the base remembers."""
        base = {BASE + name: value for name, value in self.base.begin(count).items()}
        return base | {"player": np.full(count, self._best, np.int8)}

    @torch.no_grad()
    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        """(E, A) in [-1, 1]: the base's action, corrected in the episodes that were handed over."""
        player = memory["player"].copy()
        if first.any():
            chosen = explore and self.settings.handover
            player[first] = self.handover.choose(int(first.sum())) if chosen else self._best
        own = {name.removeprefix(BASE): value for name, value in memory.items() if name.startswith(BASE)}
        base, own = self.base.act(obs, own, first, explore=False)
        x = torch.cat([self._soft.policy.norm(flat(obs).to(self.device)), torch.from_numpy(base).to(self.device)], -1)
        noise = torch.randn(len(x), self.num_actions, generator=self._acting) if explore else torch.zeros(base.shape)
        corrected = self._soft.sample(x, noise.to(self.device)).best.cpu().numpy()
        if explore and self.settings.handover:
            self.handover.acted(player, first)
        best = np.where((player == LEARNED)[:, None], corrected, base)
        action = np.clip(best + np.float32(self.settings.noise) * noise.numpy(), -1, 1)
        return action, {BASE + name: value for name, value in own.items()} | {"player": player}

    def executed(self, memory: Memory, action: np.ndarray, intervened: np.ndarray, *, explore: bool) -> Memory:
        """An episode in which a person acted counts for neither policy; the base is told."""
        if explore and self.settings.handover:
            self.handover.replaced(intervened)
        if not hasattr(self.base, "executed"):
            return memory
        own = {name.removeprefix(BASE): value for name, value in memory.items() if name.startswith(BASE)}
        own = self.base.executed(own, action, intervened, explore=explore)  # pyright: ignore[reportAttributeAccessIssue]
        return memory | {BASE + name: value for name, value in own.items()}

    def observe(self, rollout: Rollout, reward: np.ndarray) -> None:
        """Count steps and earnings, take the observations into their mean and deviation."""
        super().observe(rollout, reward)
        self.handover.open = self._soft.updates >= self.settings.warmup
        if self.settings.handover:
            self.handover.observe(rollout, reward)

    # Learning -------------------------------------------------------------------------------------------

    def update(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """So many updates; before the first observed step, of the base."""
        if not self.steps:
            return self.base.update(batches, count) if isinstance(self.base, Learner) else {}
        if isinstance(self.base, imitation.Imitation) and not self.base.taught:
            raise ValueError("residual: demonstrations must be given, as they make its base; got none. Set demos=….")
        out = super().update(batches, count)
        return out | (self.handover.metrics() if self.settings.handover else {})

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        return self._soft.update(batch, move_actor=self._soft.updates >= self.settings.warmup)

    # Resume ---------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Everything that continuing needs; of a base only where it is a learner."""
        tensors, values = super().state()
        shown, base = self.base.state() if isinstance(self.base, Learner) else ({}, {})
        values |= {"handover": self.handover.state(), "base": base}
        return tensors | {BASE + name: tensor for name, tensor in shown.items()}, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(BASE)}
        base = {name.removeprefix(BASE): tensor for name, tensor in tensors.items() if name.startswith(BASE)}
        super().load_state(own, values)
        if isinstance(self.base, Learner):
            self.base.load_state(base, values["base"])
        self.handover.load_state(values["handover"])


def residual(
    observation_space: spaces.Space, action_space: spaces.Space, *, base: Actor | None = None, **given: Any
) -> Residual:
    """How configs make it.

    Args:
        observation_space, action_space, given: see `policies.settings.maker`.
        base: what is corrected; None: imitation.

    Raises:
        TypeError, ValueError: as there.
    """
    return maker(partial(Residual, base=base), ResidualSettings)(observation_space, action_space, **given)
