"""RLPD: soft actor-critic with layer-normed critics, that learns from demonstrations beside its own steps.

Ball et al., "Efficient online reinforcement learning with offline data", arXiv 2302.02948. Without demonstrations it is
SAC with layer-normed critics and a delayed actor.

Departures. Two critics, one update a step, an actor every second update, small batches (a CPU's time goes into
products, so batch, width and delay decide); the minimum of the critics for the actor. With demonstrations moreover:

- the actor begins as imitation, with a cold temperature, and waits until the critics are warm;
- it explores by its best action with a little noise, as imitation does: where many demonstrated actions are at ±1, a
  temperature that is right on average leaves the others so wide that grasps fail;
- episodes are handed over from imitation by what each earns (`policies.handover`);
- own episodes that earned more than imitation does on average are imitated too (`policies.keeping`).

With `chunk` it is Q-chunking (Li et al., arXiv 2507.07969): actor and critics decide on H actions together, which are
played one after the other, so that a sum of H rewards is of just these actions and H-step returns have no bias:

    y = Σ_{k<H} γ^k r_{t+k} + γ^H min_j Q_j(s_{t+H}, a'),    a' ~ π(·|s_{t+H}), H actions

Departures: a Gaussian actor held near the demonstrations as above, in place of a flow model's best of many; and windows
in which the task ended count (`policies.chunks`), not only those of H steps.

Shape letters: E worlds, B batch, S flat observation, A action, H actions of a chunk.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from policies.chunks import forget_plans, imitation_error, nothing_planned, play
from policies.core import Batch, Memory, Obs, Rollout, map_leaves
from policies.handover import LEARNED, NOBODY, HandOver, warn_of_failures_alone
from policies.keeping import Keeping
from policies.networks import adam, flat
from policies.saving import State
from policies.settings import check, maker
from policies.soft import Soft, SoftLearner, SoftSettings

WIDTH = -2.0  # log of the standard deviation with which an actor that imitates begins to explore
KEEPING = "keeping/"  # the kept episodes, in a state


@dataclass(frozen=True, kw_only=True)
class RLPDSettings(SoftSettings):
    """What can be set, beside `SoftSettings`; all of it matters with demonstrations alone but the first three.

    Attributes:
        chunk: H, actions decided together; 1: none wait.
        temperature: with which the search begins; None: 0.003 with demonstrations, 0.1 without.
        target_entropy: in units of −A; None: 2 with demonstrations, 1 without.
        pretraining: updates of imitation before the first step; 0: no imitation and no hand-over.
        warmup: updates of the critics alone before the actor leaves imitation.
        imitation_weight: of the imitated actions' squared error in the actor's loss.
        q_scale: of the rest of that loss, in units of 1 / mean |Q|; None: as it is.
        keep: whether own episodes that earn more than imitation's mean are imitated too; needs `handover`.
        noise: standard deviation of what is added to the actions in training, imitation's and the actor's.
        handover: whether episodes are handed over by what each policy earns; else the actor plays all from the first.
    """

    chunk: int = 1
    warmup: int = 1000
    imitation_weight: float = 20.0
    q_scale: float | None = 1.0
    keep: bool = True
    noise: float = 0.1
    handover: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, counts=["chunk"])
        if self.chunk > 1 and self.n_steps > 1:
            raise ValueError(
                f"rlpd: n_steps must be 1 where chunk is more, whose rewards are summed anyway; got {self.n_steps}."
            )


class RLPD(SoftLearner[RLPDSettings]):
    """The learner; see the module.

    Args:
        observation_space: vectors.
        action_space: a Box.
        seed: of weights, exploration and updates.
        device: where the networks live.
        settings: see `RLPDSettings`.

    Raises:
        ValueError: observations are no vectors, or actions discrete.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        seed: int,
        device: str,
        settings: RLPDSettings,
    ) -> None:
        super().__init__(
            observation_space, action_space, seed=seed, device=device, settings=settings,
            length=max(settings.n_steps, settings.chunk),
        )  # fmt: skip
        self._imitation = copy.deepcopy(self._soft.policy)
        self._imitation_adam = adam(self._imitation.actor, settings.learning_rate)
        self.handover = HandOver()
        self._keeping = Keeping(observation_space, action_space, seed=seed + 3)
        self.imitates = False  # whether there was something to imitate

    def _networks(self, size: int, seed: int) -> Soft:
        chunk = self.settings.chunk
        return Soft(size, chunk * self.num_actions, settings=self.settings, seed=seed, device=self.device, chunk=chunk)

    # Acting ---------------------------------------------------------------------------------------------

    @property
    def _hands_over(self) -> bool:
        return self.imitates and self.settings.handover

    @property
    def _best(self) -> int:
        return self.handover.best if self._hands_over else LEARNED

    def begin(self, count: int) -> Memory:
        """Who plays the running episode of each world, and its chunk."""
        planned = nothing_planned(count, self.settings.chunk, self.num_actions)
        return planned | {"player": np.full(count, self._best, np.int8)}

    @torch.no_grad()
    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        """(E, A) in [-1, 1]; exploring, imitation or the actor by the hand-over, else the better of both."""
        player = memory["player"].copy()
        if first.any():
            chosen = explore and self._hands_over
            player[first] = self.handover.choose(int(first.sum())) if chosen else self._best
        if explore and self._hands_over:
            self.handover.acted(player, first)

        def plan(new: np.ndarray) -> np.ndarray:
            x = flat(map_leaves(lambda leaf: leaf[new], obs)).to(self.device)
            chunks = self._chunks(x, torch.from_numpy(player[new] == LEARNED)[:, None].to(self.device), explore)
            return chunks.unflatten(-1, (self.settings.chunk, self.num_actions)).cpu().numpy()

        action, memory = play(memory, first, self.settings.chunk, plan)
        return action, memory | {"player": player}

    def executed(self, memory: Memory, action: np.ndarray, intervened: np.ndarray, *, explore: bool) -> Memory:
        """Where a person acted there is a new chunk next, and the episode counts for neither policy."""
        if explore and self._hands_over:
            self.handover.replaced(intervened)
        return forget_plans(memory, intervened)

    def _chunks(self, x: Tensor, learns: Tensor, explore: bool) -> Tensor:
        """(E, H·A): the actor's where it plays, (E, 1), else imitation's; exploring, drawn or with noise."""
        if not explore:
            return torch.where(learns, self._soft.policy.best(x), self._imitation.best(x))
        noise = torch.randn(len(x), self._soft.num_actions, generator=self._acting)
        if not self.imitates and self.steps < self.settings.learning_starts:
            return torch.rand(noise.shape, generator=self._acting).mul(2).sub(1)
        noise = noise.to(self.device)
        if not self.imitates:
            return self._soft.sample(self._soft.policy.norm(x), noise).action
        best = torch.where(learns, self._soft.policy.best(x), self._imitation.best(x))
        return (best + self.settings.noise * noise).clamp(-1, 1)

    def observe(self, rollout: Rollout, reward: np.ndarray) -> None:
        """Count steps and earnings, keep what earned much, take the observations into their mean and deviation."""
        super().observe(rollout, reward)
        self.handover.open = self._soft.updates >= self.settings.warmup
        if self._hands_over:
            players = self.handover.observe(rollout, reward)
            if self.settings.keep:
                self._keeping.observe(rollout, reward, above=self.handover.bar, own=players != NOBODY)

    # Learning -------------------------------------------------------------------------------------------

    def update(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """So many updates; before the first observed step, of imitation alone."""
        if not self.steps:
            return self._pretrain(batches, count)
        out = super().update(batches, count)
        return out | (self.handover.metrics() | self._keeping.metrics() if self._hands_over else {})

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        warm = not self.imitates or self._soft.updates >= self.settings.warmup
        on_actor = self._imitate if self.imitates and self.settings.imitation_weight else None
        return self._soft.update(batch, move_actor=warm, on_actor=on_actor, q_weight=self._q_weight)

    def _q_weight(self, q: Tensor) -> Tensor | float:
        scale = self.settings.q_scale
        return scale / q.abs().mean().clamp(min=1e-6) if self.imitates and scale is not None else 1.0

    def _imitate(self, batch: Batch, x: Tensor, best: Tensor) -> Tensor:
        """The error of what is shown, and of as much of what was kept."""
        error = imitation_error(best, batch)
        kept = self._keeping.sample(self.settings.batch_size // 2, self.settings.chunk)
        if kept is not None:
            kept = kept.to(self.device)
            again = self._soft.policy.actor.best(self._soft.inputs(map_leaves(lambda leaf: leaf[0], kept.obs)))
            error = (error + imitation_error(again, kept)) / 2
        return self.settings.imitation_weight * error

    def _pretrain(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """Imitate; then begin the actor as imitation, cold and narrow."""
        errors = []
        for _ in range(count):
            batch = next(batches).to(self.device)
            x = flat(map_leaves(lambda leaf: leaf[0], batch.obs))
            if self.settings.standardise:
                self._imitation.norm.add(x)
            error = imitation_error(self._imitation.best(x), batch)
            self._imitation_adam.zero_grad()
            error.backward()
            self._imitation_adam.step()
            errors.append(error.detach())
            self.imitates |= bool((batch.valid & batch.imitate).any())
        if not self.imitates:
            warn_of_failures_alone(type(self).__name__.lower())
            return {}
        s, soft = self.settings, self._soft
        soft.policy.load_state_dict(self._imitation.state_dict())
        soft.policy.actor.narrow(WIDTH)
        soft.target_entropy = -soft.num_actions * (2.0 if s.target_entropy is None else s.target_entropy)
        with torch.no_grad():
            soft.log_alpha.fill_(math.log(0.003 if s.temperature is None else s.temperature))
        return {"imitation_error": float(torch.stack(errors).mean())} if errors else {}

    # Resume ---------------------------------------------------------------------------------------------

    @property
    def _parts(self) -> dict[str, Any]:
        own = {"imitation": self._imitation, "imitation_adam": self._imitation_adam}
        return super()._parts | own

    def state(self) -> State:
        """Everything that continuing needs."""
        tensors, values = super().state()
        kept, keeping = self._keeping.state()
        values |= {"imitates": self.imitates, "target_entropy": self._soft.target_entropy}
        values |= {"handover": self.handover.state(), "keeping": keeping}
        return tensors | {KEEPING + name: tensor for name, tensor in kept.items()}, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        kept = {name.removeprefix(KEEPING): each for name, each in tensors.items() if name.startswith(KEEPING)}
        super().load_state({name: each for name, each in tensors.items() if not name.startswith(KEEPING)}, values)
        self.imitates, self._soft.target_entropy = values["imitates"], values["target_entropy"]
        self.handover.load_state(values["handover"])
        self._keeping.load_state(kept, values["keeping"])


rlpd = maker(RLPD, RLPDSettings)
