"""RLPD: soft actor-critic with layer-normed critics, that learns from demonstrations beside its own steps.

Ball et al., "Efficient online reinforcement learning with offline data", arXiv 2302.02948. Without demonstrations it is
SAC with layer-normed critics and a delayed actor.

Departures. Two critics, half an update a step, an actor every second update, small batches (a CPU's time goes into
products, so batch, width and delay decide); the minimum of the critics for the actor. With demonstrations moreover: the
actor begins as imitation, critics are warmed up before it moves, the temperature begins cold, and episodes are handed
over from imitation by what each earns (`policies.handover`).

Shape letters: E worlds, B batch, S flat observation, A action.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from policies.core import Batch, Memory, Obs, Pace, Rollout, Sampling, map_leaves
from policies.handover import LEARNED, HandOver
from policies.networks import (
    Critics,
    GaussianActor,
    Standardise,
    adam,
    choose_device,
    dormant_ratio,
    flat,
    flat_size,
    follow,
)  # fmt: skip
from policies.replay import n_step
from policies.saving import State, pack, unpack

WIDTH = -2.0  # log of the standard deviation with which an actor that imitates begins to explore


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be set.

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
        temperature: with which the search begins; None: 0.003 with demonstrations, 0.1 without.
        target_entropy: in units of −A; None: 2 with demonstrations, 1 without.
        demo_share: of each batch, where there are demonstrations.
        pretraining: updates of imitation before the first step, where there are demonstrations; 0: no imitation and
            no hand-over.
        warmup: updates of the critics alone before the actor leaves imitation.
        imitation_weight: of the imitated actions' squared error in the actor's loss.
        noise: standard deviation of what is added to imitation's actions in training.
        handover: whether episodes are handed over by what each policy earns; else the actor plays all after warm-up.
        learning_starts: transitions before the first update.
        rollout_steps: steps of every world between rounds of updates.
        updates_per_step: updates for each transition.
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
    temperature: float | None = None
    target_entropy: float | None = None
    demo_share: float = 0.5
    pretraining: int = 2000
    warmup: int = 1000
    imitation_weight: float = 0.1
    noise: float = 0.1
    handover: bool = True
    learning_starts: int = 500
    rollout_steps: int = 4
    updates_per_step: float = 0.5

    def __post_init__(self) -> None:
        least = {"n_steps": 1, "batch_size": 1, "critics": 1, "actor_delay": 1, "rollout_steps": 1, "pretraining": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"rlpd: {name} must be at least {value}; got {getattr(self, name)}.")
        for name in ("gamma", "tau", "demo_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"rlpd: {name} must be in [0, 1]; got {getattr(self, name)}.")
        for name in ("learning_rate", "updates_per_step"):
            if not getattr(self, name) > 0:
                raise ValueError(f"rlpd: {name} must be > 0; got {getattr(self, name)}.")


class Policy(nn.Module):
    """Standardised observations to a Gaussian over actions."""

    def __init__(self, norm: Standardise, actor: GaussianActor) -> None:
        super().__init__()
        self.norm, self.actor = norm, actor

    def best(self, obs: Tensor) -> Tensor:
        return self.actor.best(self.norm(obs))


class RLPD:
    """The learner; see the module.

    Args:
        observation_space: vectors.
        action_space: a Box.
        seed: of weights, exploration and updates.
        device: where the networks live.
        settings: see `Settings`.

    Raises:
        ValueError: observations are no vectors, or actions discrete.
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, *, seed: int, device: str, settings: Settings
    ) -> None:
        size = flat_size(observation_space, "rlpd")
        if not isinstance(action_space, spaces.Box) or len(action_space.shape) != 1:
            raise ValueError(
                f"rlpd: actions must be a Box of one axis; got {action_space}. Use policy=dqn or policy=ppo."
            )
        self.settings, self.device, self.num_actions = settings, torch.device(device), action_space.shape[0]
        s, A = settings, self.num_actions
        self.pace = Pace(
            rollout_steps=s.rollout_steps,
            updates_per_step=s.updates_per_step,
            learning_starts=s.learning_starts,
            pretraining=s.pretraining,
        )
        self.sampling: Sampling | None = Sampling(
            length=s.n_steps, batch_size=s.batch_size, demo_share=s.demo_share, gamma=s.gamma
        )
        build = torch.Generator().manual_seed(seed)
        self._acting = torch.Generator().manual_seed(seed + 1)  # apart: acting may go on while updates run
        self._updating = torch.Generator(self.device).manual_seed(seed + 2)
        self.policy = Policy(Standardise(size), GaussianActor(size, A, s.actor, generator=build)).to(self.device)
        self.imitation = copy.deepcopy(self.policy)
        self.critics = Critics(size, A, s.critic, generator=build, count=s.critics).to(self.device)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = torch.tensor(math.log(s.temperature or 0.1), device=self.device, requires_grad=True)
        self._actor_adam = adam(self.policy.actor, s.learning_rate)
        self._critic_adam = adam(self.critics, s.learning_rate)
        self._alpha_adam = torch.optim.Adam([self.log_alpha], lr=s.learning_rate)
        self._imitation_adam = adam(self.imitation.actor, s.learning_rate)
        self.handover = HandOver()
        self.steps = self.updates = 0
        self.imitates = False  # whether there was something to imitate

    # Acting ---------------------------------------------------------------------------------------------

    def begin(self, count: int) -> Memory:
        """Who plays the running episode of each world."""
        return {"player": np.full(count, self._default, np.int8)}

    @property
    def _default(self) -> int:
        return self.handover.best if self._hands_over else LEARNED

    @property
    def _hands_over(self) -> bool:
        return self.imitates and self.settings.handover

    @torch.no_grad()
    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        """(E, A) in [-1, 1]; exploring, imitation or the actor by the hand-over, else the better of both."""
        player = memory["player"].copy()
        if first.any():
            chooses = explore and self._hands_over
            player[first] = self.handover.choose(int(first.sum())) if chooses else self._default
        x = flat(obs).to(self.device)
        if not explore:
            action = torch.where(self._column(player), self.policy.best(x), self.imitation.best(x))
            return action.cpu().numpy(), {"player": player}
        self.handover.acted(player, first)
        noise = torch.randn(len(x), self.num_actions, generator=self._acting)
        if not self.imitates and self.steps < self.settings.learning_starts:
            return torch.rand(noise.shape, generator=self._acting).mul(2).sub(1).numpy(), {"player": player}
        noise = noise.to(self.device)
        learned = self.policy.actor.sample(self.policy.norm(x), noise).action
        shown = (self.imitation.best(x) + self.settings.noise * noise).clamp(-1, 1)
        return torch.where(self._column(player), learned, shown).cpu().numpy(), {"player": player}

    def _column(self, player: np.ndarray) -> Tensor:
        return torch.from_numpy(player == LEARNED)[:, None].to(self.device)

    def observe(self, rollout: Rollout, reward: np.ndarray) -> None:
        """Count steps and earnings; take the observations into their mean and deviation."""
        self.steps += reward.size
        if self._hands_over:
            self.handover.observe(rollout, reward)
        if self.settings.standardise:
            self.policy.norm.add(flat(rollout.obs).flatten(0, 1).to(self.device))

    @torch.no_grad()
    def value(self, obs: Obs, action: np.ndarray) -> np.ndarray:
        """(B,) what follows these actions (B, A) is worth: the least of the critics."""
        x = self.policy.norm(flat(obs).to(self.device))
        return self.critics(x, torch.as_tensor(action, device=self.device)).min(0).values.cpu().numpy()

    # Learning -------------------------------------------------------------------------------------------

    def update(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """So many updates; before the first observed step, of imitation alone."""
        if not self.steps:
            return self._pretrain(batches, count)
        told: dict[str, list[Tensor]] = {}
        out: dict[str, float] = {}
        for k in range(count):
            batch = next(batches).to(self.device)
            for name, value in self._update(batch).items():
                told.setdefault(name, []).append(value)
            if k == count - 1:
                out |= self._dormant(batch)
        out |= {name: float(torch.stack(values).mean()) for name, values in told.items()}
        return out | (self.handover.metrics() if self._hands_over else {})

    def _pretrain(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """Imitate; then begin the actor as imitation, cold and narrow."""
        errors = []
        for _ in range(count):
            batch = next(batches).to(self.device)
            x = flat(map_leaves(lambda leaf: leaf[0], batch.obs))
            if self.settings.standardise:
                self.imitation.norm.add(x)
            error = _error(self.imitation.actor.best(self.imitation.norm(x)), batch)
            self._imitation_adam.zero_grad()
            error.backward()
            self._imitation_adam.step()
            errors.append(error.detach())
        self.imitates = True
        self.policy.load_state_dict(self.imitation.state_dict())
        self.policy.actor.narrow(WIDTH)
        self._actor_adam.state.clear()
        with torch.no_grad():
            self.log_alpha.fill_(math.log(self.settings.temperature or 0.003))
        return {"imitation_error": float(torch.stack(errors).mean())}

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        s, norm, actor = self.settings, self.policy.norm, self.policy.actor
        x = norm(flat(map_leaves(lambda leaf: leaf[0], batch.obs)))
        step = n_step(batch, s.gamma, s.n_steps)
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            after = norm(flat(step.next_obs))
            drawn = actor.sample(after, self._noise(len(after)))
            value = self.targets(after, drawn.action).min(0).values - alpha * drawn.log_prob
            target = step.reward + step.discount * value
        q = self.critics(x, batch.action[0])
        loss = 0.5 * (q - target).square().mean(1).sum()
        self._critic_adam.zero_grad()
        loss.backward()
        self._critic_adam.step()
        follow(self.targets, self.critics, s.tau)
        self.updates += 1
        self.handover.open = self.updates >= s.warmup
        out = {"critic_loss": loss.detach(), "q": q.detach().mean(), "temperature": alpha}
        if self.updates % s.actor_delay or (self.imitates and self.updates <= s.warmup):
            return out
        drawn = actor.sample(x, self._noise(len(x)))
        loss = (alpha * drawn.log_prob - self.critics(x, drawn.action).min(0).values).mean()
        if s.imitation_weight and self.imitates:
            loss = loss + s.imitation_weight * _error(actor.best(x), batch)
        self._actor_adam.zero_grad()
        loss.backward(inputs=list(actor.parameters()))  # none for the critics' weights: nobody would use them
        self._actor_adam.step()
        wanted = -self.num_actions * (s.target_entropy or (2.0 if self.imitates else 1.0))
        self._alpha_adam.zero_grad()
        (-self.log_alpha * (drawn.log_prob.detach() + wanted).mean()).backward()
        self._alpha_adam.step()
        return out | {"actor_loss": loss.detach(), "entropy": -drawn.log_prob.detach().mean()}

    def _noise(self, count: int) -> Tensor:
        return torch.randn(count, self.num_actions, generator=self._updating, device=self.device)

    @torch.no_grad()
    def _dormant(self, batch: Batch) -> dict[str, float]:
        x = self.policy.norm(flat(map_leaves(lambda leaf: leaf[0], batch.obs)))
        critics = self.critics.mlp.hidden(torch.cat([x, batch.action[0]], -1))
        actor = self.policy.actor.mlp.hidden(x)
        return {"dormant_actor": dormant_ratio(actor), "dormant_critic": dormant_ratio(critics)}

    def relabelled(self) -> None:
        """Other rewards: what either policy earned counts no more."""
        self.handover.forget()

    # Resume ---------------------------------------------------------------------------------------------

    @property
    def _parts(self) -> dict[str, Any]:
        return {
            "policy": self.policy, "imitation": self.imitation, "critics": self.critics, "targets": self.targets,
            "log_alpha": self.log_alpha, "actor_adam": self._actor_adam, "critic_adam": self._critic_adam,
            "alpha_adam": self._alpha_adam, "imitation_adam": self._imitation_adam,
            "acting": self._acting, "updating": self._updating,
        }  # fmt: skip

    def state(self) -> State:
        """Everything that continuing needs."""
        values = {"steps": self.steps, "updates": self.updates, "imitates": self.imitates}
        return pack(self._parts), values | {"handover": self.handover.state()}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        unpack("RLPD.load_state", self._parts, tensors)
        self.steps, self.updates, self.imitates = values["steps"], values["updates"], values["imitates"]
        self.handover.load_state(values["handover"])


def _error(mean: Tensor, batch: Batch) -> Tensor:
    """Mean squared error of the actions that are to be imitated; 0 where there are none."""
    shown = batch.imitate[0].float()
    return ((mean - batch.action[0]).square().mean(-1) * shown).sum() / shown.sum().clamp(min=1)


def rlpd(
    observation_space: spaces.Space,
    action_space: spaces.Space,
    *,
    num_worlds: int,
    total_steps: int,
    seed: int,
    device: str = "auto",
    **settings: Any,
) -> RLPD:
    """The default learner, for continuous actions.

    Args:
        observation_space: vectors.
        action_space: a Box.
        num_worlds: E; it learns from any number alike.
        total_steps: transitions of the whole run; it has no schedule that needs them.
        seed: of everything random.
        device: "auto", "cuda", "mps" or "cpu".
        settings: see `Settings`.

    Raises:
        TypeError: a setting that there is not.
        ValueError: a setting out of range, or spaces that do not fit.
    """
    for name in fields(Settings):  # a config's lists are tuples here
        if isinstance(settings.get(name.name), list):
            settings[name.name] = tuple(settings[name.name])
    return RLPD(observation_space, action_space, seed=seed, device=choose_device(device), settings=Settings(**settings))
