"""A world model that is learned from what was seen, and an actor that is learned from what the model imagines.

Hafner et al., Dreamer (arXiv 1912.01603), as RePo has it (2309.00082): λ-returns of imagined states, an actor that
climbs them through the model, no planning. What the latent must know is the learner's own: see `policies.repo` and
`policies.infopower`.

Departures, beside those of `policies.behaviour`. Where worlds end is learned by a head of its own. A part of a batch's
states is imagined from, not all.

Shape letters: E worlds, T moments, B windows, N imagined rows, P steps imagined, A action, F features.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from policies.behaviour import Behaviour, Imagined, step
from policies.core import Batch, ImaginedEpisode, Memory, Obs, Pace, Rollout, Sampling, map_leaves
from policies.embedding import Decoder, ObservationEncoder
from policies.networks import MLP, Sample, action_size, adam, averages, dormant_ratio
from policies.rssm import RSSM, SIZES, Observed, State
from policies.saving import State as Saved
from policies.saving import pack, unpack
from policies.settings import check


@dataclass(frozen=True, kw_only=True)
class DreamingSettings:
    """What can be set of every learner that imagines.

    Attributes:
        size: of the networks, one of `policies.rssm.SIZES`; "paper" wants a GPU.
        length: steps of a window that the model is learned from.
        batch_size: windows an update.
        learning_rate: Adam's, of the model.
        behaviour_rate: Adam's, of actor and critic.
        imagined: states of a batch to imagine from, at most.
        horizon: P, steps imagined.
        gamma: discount.
        lambda_: of the λ-returns.
        entropy: weight of the actor's entropy, beside returns of range 1.
        tau: step of the slow critic.
        noise: standard deviation of what is added to actions in training.
        reconstruct: also learn to draw what is seen: the control.
        learning_starts: transitions by random actions, before the first update.
        rollout_steps: steps of every world between rounds of updates.
        updates_per_step: updates for each transition.
        demo_share: of each batch, where there are demonstrations.
    """

    size: str = "small"
    length: int = 16
    batch_size: int = 16
    learning_rate: float = 6e-4
    behaviour_rate: float = 3e-4
    imagined: int = 128
    horizon: int = 10
    gamma: float = 0.95
    lambda_: float = 0.95
    entropy: float = 3e-3
    tau: float = 0.02
    noise: float = 0.3
    reconstruct: bool = False
    learning_starts: int = 1000
    rollout_steps: int = 4
    updates_per_step: float = 0.2
    demo_share: float = 0.5

    def __post_init__(self) -> None:
        who = type(self).__module__.rpartition(".")[2]
        if self.size not in SIZES:
            raise ValueError(f"{who}: size must be one of {', '.join(SIZES)}; got {self.size!r}.")
        check(
            self,
            counts=("length", "batch_size", "imagined", "horizon", "rollout_steps"),
            shares=("gamma", "lambda_", "tau", "demo_share"),
            positive=("learning_rate", "behaviour_rate", "updates_per_step"),
        )


class LatentWorld(nn.Module):
    """Encoder, dynamics and the heads of a world model; a decoder where it is the control.

    Args:
        space: of observations.
        actions: A.
        settings: sizes among them.
        who: the learner, for errors.
        generator: of the weights.
    """

    def __init__(
        self, space: spaces.Space, actions: int, settings: DreamingSettings, who: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        sizes = SIZES[settings.size]
        self.encoder = ObservationEncoder(space, sizes, who, generator=generator)
        self.rssm = RSSM(sizes, actions, generator=generator)
        self.features = sizes.deterministic + sizes.stochastic
        self.reward = MLP(self.features, [sizes.hidden], 1, generator=generator)
        self.ends = MLP(self.features, [sizes.hidden], 1, generator=generator)
        self.decoder = (
            Decoder(self.encoder, self.features, sizes, generator=generator) if settings.reconstruct else None
        )


class Seen(NamedTuple):
    """A batch as the model sees it.

    Attributes:
        batch: what was drawn.
        embedding: (T + 1, B, D).
        inside: T + 1 moments.
        there: (T + 1, B) bool, the moment is no padding.
        error: −log p of the rewards by the reward head, a scalar with a gradient.
        ends: −log p of where the world ends.
    """

    batch: Batch
    embedding: Tensor
    inside: Observed
    there: Bool[Tensor, "T B"]
    error: Tensor
    ends: Tensor

    def mean(self, values: Float[Tensor, "T B"]) -> Tensor:
        """Over what is no padding."""
        return (values * self.there).sum() / self.there.sum()


class Dreaming(ABC):
    """The learner, but for what its latent must know.

    Args:
        observation_space: images, vectors, or a Dict of both.
        action_space: a Box.
        seed: of weights, exploration and updates.
        device: where the networks live.
        settings: see `DreamingSettings`.

    Raises:
        ValueError: observations of another kind, or discrete actions.
    """

    name: ClassVar[str]

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, *, seed: int, device: str,
        settings: DreamingSettings,
    ) -> None:  # fmt: skip
        s, build = settings, torch.Generator().manual_seed(seed)
        self.num_actions, self.device = action_size(action_space, self.name), torch.device(device)
        self.settings = s
        self.pace = Pace(
            rollout_steps=s.rollout_steps, updates_per_step=s.updates_per_step, learning_starts=s.learning_starts
        )
        self.sampling: Sampling | None = Sampling(length=s.length, batch_size=s.batch_size, demo_share=s.demo_share)
        self.world = LatentWorld(observation_space, self.num_actions, s, self.name, build).to(self.device)
        self.behaviour = Behaviour(
            self.world.features, self.num_actions, [SIZES[s.size].hidden] * 2, generator=build, device=self.device,
            rate=s.behaviour_rate, gamma=s.gamma, lambda_=s.lambda_, entropy=s.entropy, tau=s.tau,
        )  # fmt: skip
        self._modules = (self.world, *self._make_beside(build))
        self._model_adam = adam(self._modules, s.learning_rate)
        self._updating = torch.Generator(self.device).manual_seed(seed + 2)
        self._acting = torch.Generator().manual_seed(seed + 1)  # apart: acting may go on while updates run
        self.steps, self.updates = 0, 0

    def _make_beside(self, generator: torch.Generator) -> Sequence[nn.Module]:
        """Make what else the learner has; returns those networks that the model's optimiser moves."""
        return ()

    # What a learner gives -------------------------------------------------------------------------------

    @abstractmethod
    def _objective(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """What the model minimises, and metrics; multipliers take their step here."""

    def _bonus(self, before: State, drawn: Sample, after: State) -> Tensor | None:
        """(N,) added to an imagined step's reward."""
        return None

    # Acting ---------------------------------------------------------------------------------------------

    def begin(self, count: int) -> Memory:
        """Of each world, the state it is believed to be in and the action that was done there."""
        state = self.world.rssm.begin(count)
        action = np.zeros((count, self.num_actions), np.float32)
        return {"h": state.h.detach().cpu().numpy(), "s": state.s.detach().cpu().numpy(), "action": action}

    @torch.no_grad()
    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        """(E, A) in [-1, 1]; exploring, drawn and noisy, at first random; else the best of the likeliest state."""
        h, s, before = (torch.as_tensor(memory[name], device=self.device) for name in ("h", "s", "action"))
        embedding = self.world.encoder(map_leaves(lambda leaf: torch.as_tensor(leaf, device=self.device), obs))
        noise = torch.zeros(len(s), s.shape[1])
        if explore:
            noise = torch.randn(noise.shape, generator=self._acting)
        began = torch.as_tensor(first, device=self.device)[None]
        inside = self.world.rssm.observe(embedding[None], before[None], began, noise[None].to(self.device), State(h, s))
        state = State(inside.states.h[0], inside.states.s[0])
        if not explore:
            action = self.behaviour.actor.best(state.features).cpu()
        elif self.steps < self.settings.learning_starts:
            action = torch.rand(len(s), self.num_actions, generator=self._acting).mul(2).sub(1)
        else:
            drawn, beside = torch.randn(2, len(s), self.num_actions, generator=self._acting)
            action = self.behaviour.actor.sample(state.features, drawn.to(self.device)).action.cpu()
            action = (action + self.settings.noise * beside).clamp(-1, 1)
        kept = {"h": state.h.cpu().numpy(), "s": state.s.cpu().numpy(), "action": action.numpy()}
        return action.numpy(), kept

    def executed(self, memory: Memory, action: np.ndarray, intervened: np.ndarray, *, explore: bool) -> Memory:
        """What was done goes into the next belief, whoever did it."""
        return memory | {"action": action.astype(np.float32)}

    def acting(self) -> Dreaming:
        """An actor with the weights of now, which stay; what acting itself changes is shared."""
        actor = copy.copy(self)
        actor.world, actor.behaviour = copy.deepcopy(self.world), self.behaviour.frozen()
        return actor

    def observe(self, rollout: Rollout, reward: np.ndarray) -> None:
        """Count steps; take the observations into their means and deviations."""
        self.steps += reward.size
        self.world.encoder.add(map_leaves(lambda leaf: torch.as_tensor(leaf, device=self.device), rollout.obs))

    # Learning -------------------------------------------------------------------------------------------

    def update(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """So many updates, each of the model first and then of the behaviour in it."""
        told, out = list[dict[str, Tensor]](), dict[str, float]()
        for k in range(count):
            starts, model = self.learn_world(next(batches).to(self.device))
            told.append(model | self._learn_behaviour(starts))
            self.updates += 1
            if k == count - 1:
                out |= self._dormant(starts)
        return out | averages(told)

    @torch.no_grad()
    def _dormant(self, state: State) -> dict[str, float]:
        """DrM's ratio of actor and critic in these states, for the log."""
        x = state.features
        actor, critic = self.behaviour.actor.mlp.hidden(x), self.behaviour.critic.hidden(x)
        return {"dormant_actor": dormant_ratio(actor), "dormant_critic": dormant_ratio(critic)}

    def see(self, batch: Batch, encoder: ObservationEncoder | None = None) -> Seen:
        """A batch through the model, states drawn; `encoder` in place of its own."""
        embedding = (encoder or self.world.encoder)(batch.obs)
        before = torch.cat([torch.zeros_like(batch.action[:1]), batch.action])
        there = torch.cat([torch.ones_like(batch.valid[:1]), batch.valid])
        first = torch.zeros_like(there)
        first[0] = True  # a window never goes beyond its episode
        shape = (*there.shape, SIZES[self.settings.size].stochastic)
        noise = torch.randn(shape, generator=self._updating, device=self.device)
        inside = self.world.rssm.observe(embedding, before, first, noise)
        arrived = inside.states.rows(there & ~first).features
        reward, ended = batch.reward[batch.valid], batch.terminated[batch.valid].float()
        error = 0.5 * (self.world.reward(arrived)[:, 0] - reward).square().mean()
        ends = nn.functional.binary_cross_entropy_with_logits(self.world.ends(arrived)[:, 0], ended)
        return Seen(batch, embedding, inside, there, error, ends)

    def learn_world(self, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        """One step of the model alone; the states to imagine from, and metrics."""
        seen = self.see(batch)
        loss, told = self._objective(seen)
        if self.world.decoder is not None:
            rows = map_leaves(lambda leaf: leaf[seen.there], batch.obs)
            features = seen.inside.states.rows(seen.there).features
            drawn = self.world.decoder.error(features, rows, self.world.encoder).mean()
            loss, told = loss + drawn, told | {"reconstruction_error": drawn.detach()}
        step(self._model_adam, loss, self._modules)
        places = seen.there.flatten().nonzero()[:, 0]
        order = torch.randperm(len(places), generator=self._updating, device=self.device)
        states = State(seen.inside.states.h.detach(), seen.inside.states.s.detach())
        return states.rows(places[order[: self.settings.imagined]]), told | {
            "head_error": (seen.error + seen.ends).detach()
        }

    def _learn_behaviour(self, state: State) -> dict[str, Tensor]:
        """One step of actor and critic, on what the model imagines from these states."""
        s, world = self.settings, self.world
        states, actions = [state], []
        for _ in range(s.horizon):
            drawn = self.behaviour.actor.sample(state.features.detach(), self._noise(len(state.h), self.num_actions))
            state = world.rssm.imagine(state, drawn.action, self._noise(*state.s.shape))
            states.append(state)
            actions.append(drawn)
        before, after = State.joined(states[:-1]), State.joined(states[1:])
        drawn = Sample(*(torch.cat(parts) for parts in zip(*actions, strict=True)))
        features = after.features
        reward, bonus = world.reward(features)[:, 0], self._bonus(before, drawn, after)
        imagined = Imagined(
            before=before.features,
            log_prob=drawn.log_prob,
            after=features,
            reward=reward if bonus is None else reward + bonus,
            goes_on=torch.sigmoid(-world.ends(features)[:, 0]),
            horizon=s.horizon,
        )
        return self.behaviour.learn(imagined, first=not self.updates)

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._updating, device=self.device)

    def value(self, obs: Obs) -> np.ndarray:
        """(B,) what episodes that begin with these observations, (B, …), are worth."""
        with torch.no_grad():
            count = len(next(iter(obs.values())) if isinstance(obs, Mapping) else obs)
            _, memory = self.act(obs, self.begin(count), np.ones(count, bool), explore=False)
            state = State(*(torch.as_tensor(memory[name], device=self.device) for name in ("h", "s")))
            return self.behaviour.critic(state.features)[:, 0].cpu().numpy()

    @torch.no_grad()
    def imagine(self, obs: Obs, action: np.ndarray, horizon: int) -> ImaginedEpisode:
        """See `policies.core.Imagines`; nothing is drawn."""
        done = torch.as_tensor(action, dtype=torch.float32, device=self.device)
        embedding = self.world.encoder(map_leaves(lambda leaf: torch.as_tensor(leaf, device=self.device), obs))
        before, none = torch.cat([torch.zeros_like(done[:1]), done]), torch.zeros(1, 1, device=self.device)
        first = torch.arange(len(before), device=self.device)[:, None] == 0
        still = none.expand(len(before), 1, SIZES[self.settings.size].stochastic)
        inside = self.world.rssm.observe(embedding[:, None], before[:, None], first, still)
        count = len(done) - horizon + 1
        state = State(inside.states.h[:count, 0], inside.states.s[:count, 0])
        ahead, rewards = [], []
        for k in range(horizon):
            state = self.world.rssm.imagine(state, done[k : k + count], torch.zeros_like(state.s))
            ahead.append(state.features)
            rewards.append(self.world.reward(state.features)[:, 0])
        seen = inside.states.features[:, 0]
        return ImaginedEpisode(seen.cpu(), torch.stack(ahead, 1).cpu(), torch.stack(rewards, 1).cpu())

    # Resume ---------------------------------------------------------------------------------------------

    @property
    def _parts(self) -> dict[str, Any]:
        return {
            "world": self.world, "model_adam": self._model_adam, "acting": self._acting, "updating": self._updating,
        } | self.behaviour.parts  # fmt: skip

    def state(self) -> Saved:
        """Everything that continuing needs."""
        return pack(self._parts), {"steps": self.steps, "updates": self.updates}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        unpack(f"{type(self).__name__}.load_state", self._parts, tensors)
        self.steps, self.updates = values["steps"], values["updates"]
