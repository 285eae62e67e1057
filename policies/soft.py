"""Soft actor-critic's networks and its update, for the learners that are made of it.

Haarnoja et al., arXiv 1812.05905, with layer-normed critics as one batched product, and an actor that moves only every
few updates. The entropies of the steps inside an n-step sum are left out, as everywhere.

Shape letters: B batch, K critics, S flat observation, A action.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from policies.chunks import chunks_of
from policies.core import Actor, Batch, Memory, Obs, Pace, Rollout, Sampling, map_leaves
from policies.networks import (
    Critics,
    GaussianActor,
    Sample,
    Standardise,
    action_size,
    adam,
    averages,
    dormant_ratio,
    flat,
    flat_size,
    follow,
)  # fmt: skip
from policies.replay import n_step
from policies.saving import State, pack, unpack
from policies.settings import check

Extra = Callable[[Batch, Tensor, Tensor], Tensor]  # (batch, x (B, S), q (K, B) or the actor's mean (B, A)) -> a loss


@dataclass(frozen=True, kw_only=True)
class SoftSettings:
    """What can be set of every learner that is a soft actor-critic.

    Attributes:
        learning_rate: Adam's, of actor, critics and temperature.
        batch_size: windows an update.
        gamma: discount.
        tau: step of the target critics.
        n_steps: rewards summed before bootstrapping.
        critic: widths of the critics' hidden layers.
        actor: of the actor's.
        critics: how many.
        actor_delay: updates of the critics for one of the actor.
        standardise: observations by their running mean and deviation.
        demo_share: of each batch, where there are demonstrations.
        learning_starts: transitions before the first update.
        rollout_steps: steps of every world between rounds of updates.
        updates_per_step: updates for each transition.
        pretraining: updates before the first step.
        temperature: with which the search begins, > 0; None: 0.1.
        target_entropy: of the policy, in units of −A; None: 1.
    """

    learning_rate: float = 7e-4
    batch_size: int = 128
    gamma: float = 0.95
    tau: float = 0.01
    n_steps: int = 1
    critic: tuple[int, ...] = (256, 256)
    actor: tuple[int, ...] = (128, 128)
    critics: int = 2
    actor_delay: int = 2
    standardise: bool = True
    demo_share: float = 0.5
    learning_starts: int = 500
    rollout_steps: int = 4
    updates_per_step: float = 1.0
    pretraining: int = 2000
    temperature: float | None = None
    target_entropy: float | None = None

    def __post_init__(self) -> None:
        check(
            self,
            counts=("n_steps", "batch_size", "critics", "actor_delay", "rollout_steps"),
            shares=("gamma", "tau", "demo_share"),
            positive=("learning_rate", "updates_per_step"),
        )
        if self.temperature is not None:
            check(self, positive=["temperature"])


class Policy(nn.Module):
    """Standardised observations to a Gaussian over actions.

    Args:
        norm: standardises observations.
        actor: gives the Gaussian.
    """

    def __init__(self, norm: Standardise, actor: GaussianActor) -> None:
        super().__init__()
        self.norm, self.actor = norm, actor

    def best(self, obs: Tensor) -> Tensor:
        return self.actor.best(self.norm(obs))


class Soft:
    """Networks, optimisers, and one update.

    Args:
        observation: S.
        action: A.
        settings: see `SoftSettings`.
        seed: of weights and of the actions drawn in updates.
        device: where it lives.
        beside: numbers that the networks read beside the standardised observation.
        chunk: actions decided together, H; A is of all of them, and H rewards are summed.
    """

    def __init__(
        self, observation: int, action: int, *, settings: SoftSettings, seed: int, device: torch.device,
        beside: int = 0, chunk: int = 1,
    ) -> None:  # fmt: skip
        s, build = settings, torch.Generator().manual_seed(seed)
        self.settings, self.device, self.num_actions, self.chunk = s, device, action, chunk
        self.target_entropy = -action * (1.0 if s.target_entropy is None else s.target_entropy)
        self.updates = 0
        self.policy = Policy(
            Standardise(observation), GaussianActor(observation + beside, action, s.actor, generator=build)
        ).to(device)
        self.critics = Critics(observation + beside, action, s.critic, generator=build, count=s.critics).to(device)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = torch.tensor(math.log(s.temperature or 0.1), device=device, requires_grad=True)
        self.actor_adam = adam(self.policy.actor, s.learning_rate)
        self._critic_adam = adam(self.critics, s.learning_rate)
        self._alpha_adam = torch.optim.Adam([self.log_alpha], lr=s.learning_rate)
        self.generator = torch.Generator(device).manual_seed(seed + 2)

    def sample(self, x: Tensor, noise: Tensor) -> Sample:
        """An action of the policy from standardised observations."""
        return self.policy.actor.sample(x, noise)

    def inputs(self, obs: Any) -> Tensor:
        """(B, S) standardised."""
        return self.policy.norm(flat(obs))

    def noise(self, *shape: int) -> Tensor:
        """Standard normal, for an update."""
        return torch.randn(*shape, self.num_actions, generator=self.generator, device=self.device)

    def update(
        self, batch: Batch, *, move_actor: bool = True, on_critics: Extra | None = None, on_actor: Extra | None = None,
        q_weight: Callable[[Tensor], Tensor | float] = lambda q: 1.0,
    ) -> dict[str, Tensor]:  # fmt: skip
        """One step of the critics and their targets; every few, one of the actor and the temperature.

        Args:
            batch: windows of at least n_steps, and of at least a chunk.
            move_actor: whether the actor's turn counts.
            on_critics: adds to the critics' loss.
            on_actor: adds to the actor's.
            q_weight: of the actor's own loss, from the values (B,) of its actions.
        """
        s = self.settings
        x = self.inputs(map_leaves(lambda leaf: leaf[0], batch.obs))
        step = n_step(batch, s.gamma, max(s.n_steps, self.chunk))
        action, known = chunks_of(batch, self.chunk, self.generator)
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            after = self.inputs(step.next_obs)
            drawn = self.sample(after, self.noise(len(after)))
            target = step.reward + step.discount * (self._least(self.targets, after, drawn) - alpha * drawn.log_prob)
        q = self.critics(x, action)
        loss = 0.5 * ((q - target).square() * known).sum() / known.sum().clamp(min=1)
        out = {"critic_loss": loss.detach(), "q": q.detach().mean(), "temperature": alpha}
        if on_critics is not None:
            loss = loss + on_critics(batch, x, q)
        self._critic_adam.zero_grad()
        loss.backward()
        self._critic_adam.step()
        follow(self.targets, self.critics, s.tau)
        self.updates += 1
        if self.updates % s.actor_delay or not move_actor:
            return out
        drawn = self.sample(x, self.noise(len(x)))
        value = self._least(self.critics, x, drawn)
        loss = ((alpha * drawn.log_prob - value) * q_weight(value.detach())).mean()
        if on_actor is not None:
            loss = loss + on_actor(batch, x, drawn.best)
        self.actor_adam.zero_grad()
        loss.backward(inputs=list(self.policy.actor.parameters()))  # the critics' gradients would be thrown away
        self.actor_adam.step()
        self._alpha_adam.zero_grad()
        (-self.log_alpha * (drawn.log_prob.detach() + self.target_entropy).mean()).backward()
        self._alpha_adam.step()
        return out | {"actor_loss": loss.detach(), "entropy": -drawn.log_prob.detach().mean()}

    @staticmethod
    def _least(critics: Critics, x: Tensor, drawn: Sample) -> Tensor:
        return critics(x, drawn.action).min(0).values

    @torch.no_grad()
    def value(self, obs: Any, action: Any) -> Tensor:
        """(B,) what follows these actions, (B, A) or whole chunks, is worth: the least of the critics."""
        x = self.inputs(map_leaves(lambda leaf: torch.as_tensor(leaf, device=self.device), obs))
        return self.critics(x, torch.as_tensor(action, device=self.device)).min(0).values

    @torch.no_grad()
    def dormant(self, batch: Batch) -> dict[str, float]:
        """DrM's ratio of both networks, for the log."""
        x = self.inputs(map_leaves(lambda leaf: leaf[0], batch.obs))
        action, _ = chunks_of(batch, self.chunk, torch.Generator(self.device))
        critics = self.critics.mlp.hidden(torch.cat([x, action], -1))
        actor = self.policy.actor.mlp.hidden(x)
        return {"dormant_actor": dormant_ratio(actor), "dormant_critic": dormant_ratio(critics)}

    @property
    def parts(self) -> dict[str, Any]:
        """What a state holds."""
        return {
            "policy": self.policy, "critics": self.critics, "targets": self.targets, "log_alpha": self.log_alpha,
            "actor_adam": self.actor_adam, "critic_adam": self._critic_adam, "alpha_adam": self._alpha_adam,
            "updating": self.generator,
        }  # fmt: skip


S = TypeVar("S", bound=SoftSettings)


class SoftLearner(ABC, Generic[S]):
    """What the learners made of `Soft` have in common; each adds how it acts and what else moves its networks.

    Args:
        observation_space: vectors.
        action_space: a Box.
        seed: of weights, exploration and updates.
        device: where the networks live.
        settings: see the learner's own.
        length: steps of a window; None: n_steps.
        returns: whether batches hold returns.

    Raises:
        ValueError: observations are no vectors, or actions discrete.
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, *, seed: int, device: str, settings: S,
        length: int | None = None, returns: bool = False,
    ) -> None:  # fmt: skip
        who, s = type(self).__name__.lower(), settings
        size, self.num_actions = flat_size(observation_space, who), action_size(action_space, who)
        self.settings, self.device = s, torch.device(device)
        self.pace = Pace(
            rollout_steps=s.rollout_steps, updates_per_step=s.updates_per_step, learning_starts=s.learning_starts,
            pretraining=s.pretraining,
        )  # fmt: skip
        self.sampling: Sampling | None = Sampling(
            length=length or s.n_steps, batch_size=s.batch_size, demo_share=s.demo_share, returns=returns, gamma=s.gamma
        )
        self._soft = self._networks(size, seed)
        self._acting = torch.Generator().manual_seed(seed + 1)  # apart: acting may go on while updates run
        self.steps = 0

    def _networks(self, size: int, seed: int) -> Soft:
        return Soft(size, self.num_actions, settings=self.settings, seed=seed, device=self.device)

    def begin(self, count: int) -> Memory:
        """Nothing to remember."""
        return {}

    @abstractmethod
    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        """(E, A) in [-1, 1], and the next memory."""

    def acting(self) -> Actor:
        """An actor with the weights of now, which stay; what acting itself changes is shared."""
        actor = copy.copy(self)
        actor._soft = copy.copy(self._soft)
        actor._soft.policy = copy.deepcopy(self._soft.policy)
        return actor

    def observe(self, rollout: Rollout, reward: np.ndarray) -> None:
        """Count steps, take the observations into their mean and deviation."""
        self.steps += reward.size
        if self.settings.standardise:
            self._soft.policy.norm.add(flat(rollout.obs).flatten(0, 1).to(self.device))

    def value(self, obs: Obs, action: np.ndarray) -> np.ndarray:
        """(B,) what follows these actions, (B, A) or whole chunks, is worth: the least of the critics."""
        return self._soft.value(obs, action).cpu().numpy()

    def update(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """So many updates."""
        told, out = [], {}
        for k in range(count):
            batch = next(batches).to(self.device)
            told.append(self._update(batch))
            if k == count - 1:
                out |= self._soft.dormant(batch)
        return out | averages(told)

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        return self._soft.update(batch)

    @property
    def _parts(self) -> dict[str, Any]:
        return self._soft.parts | {"acting": self._acting}

    def state(self) -> State:
        """Everything that continuing needs."""
        return pack(self._parts), {"steps": self.steps, "updates": self._soft.updates}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        unpack(f"{type(self).__name__}.load_state", self._parts, tensors)
        self.steps, self._soft.updates = values["steps"], values["updates"]
