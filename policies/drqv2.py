"""DrQ-v2: a deterministic actor and two critics from pictures that are shifted at random.

Yarats et al., "Mastering visual continuous control: improved data-augmented reinforcement learning", arXiv 2107.09645.

    a' = clamp(π(o_{t+n}) + clip(σ ε, −c, c), −1, 1)
    y = Σ_{i<n} γ^i r_{t+i} + γ^n · min_k Q̄_k(o_{t+n}, a'),   0 after a termination
    L_Q = Σ_k mean (Q_k(o_t, a_t) − y)²,   L_π = −mean min_k Q_k(o_t, π(o_t) + clip(σ ε, −c, c)) + w · mean z²

Here π = tanh z. The last term is not DrQ-v2's: without it the actor runs to where tanh passes no gradient before the
critics know better, and stays there. It is from Fujimoto et al., MR.Q, arXiv 2501.16142 (pre-activation loss); w is
relative to mean |min_k Q_k|, so that it means the same for any reward.

Only the critics' loss trains the encoder, which has no target of its own. σ goes down linearly; actions in training
have that noise unclipped, and are uniform at first.

Departures. Pictures of any size, standardised vectors beside them or alone; own readings join after the trunk.
Terminations count (the official code ignores them); n-step sums end where an episode is cut and bootstrap there. No
action repeat beyond the world's own. By default σ is at its end after a fifth of the run. Demonstrations are a share of
each batch, as in RLPD (arXiv 2302.02948). Switches: a predictive auxiliary loss on what the critics read
(`policies.predictive`), and SGFD's weights in the actor's loss (`policies.sgfd`).

Shape letters: E worlds, B batch, N encoded observation, W what a head reads, A action.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from policies.core import Batch, Memory, Obs, Pace, Rollout, Sampling
from policies.mixing import n_step
from policies.networks import MLP, action_size, adam, averages, dormant_ratio, follow
from policies.pixels import Frames, PixelEncoder, Sight, Trunk, orthogonal, random_shift
from policies.predictive import Predictor, prediction_error
from policies.saving import State, pack, unpack
from policies.settings import check, maker
from policies.sgfd import Decorrelation

EDGE = 1 - 1e-6  # of actions, so that tanh has reached none


@dataclass(frozen=True, kw_only=True)
class DrQv2Settings:
    """What can be set.

    Attributes:
        learning_rate: Adam's, of everything.
        batch_size: windows an update.
        gamma: discount.
        tau: step of the target critics.
        n_steps: rewards summed before bootstrapping.
        stack: frames that are read at once.
        features: what a trunk makes of the encoded pictures.
        hidden: widths of the hidden layers of actor and critics.
        noise: σ at first, in units of actions.
        noise_end: σ in the end.
        noise_steps: transitions until then; None: a fifth of the run as it was begun.
        noise_clip: c.
        pre_activation: w, relative to the values; 0: DrQ-v2 as published.
        demo_share: of each batch, where there are demonstrations.
        capacity: transitions kept.
        learning_starts: transitions before the first update, of uniform actions.
        rollout_steps: steps of every world between rounds of updates.
        updates_per_step: updates for each transition.
        prediction: weight of the predictive loss; 0: none.
        horizon: steps that it looks ahead.
        looks: so many looks of the worlds (`env.looks`) decorrelate the actor's features; 0: none do.
    """

    learning_rate: float = 1e-4
    batch_size: int = 256
    gamma: float = 0.99
    tau: float = 0.01
    n_steps: int = 3
    stack: int = 3
    features: int = 50
    hidden: tuple[int, ...] = (1024, 1024)
    noise: float = 1.0
    noise_end: float = 0.1
    noise_steps: int | None = None
    noise_clip: float = 0.3
    pre_activation: float = 3e-3
    demo_share: float = 0.5
    capacity: int = 1_000_000
    learning_starts: int = 2000
    rollout_steps: int = 4
    updates_per_step: float = 0.5
    prediction: float = 0.0
    horizon: int = 3
    looks: int = 0

    def __post_init__(self) -> None:
        check(
            self,
            counts=("batch_size", "n_steps", "stack", "features", "capacity", "rollout_steps", "horizon"),
            shares=("gamma", "tau", "demo_share"),
            positive=("learning_rate", "updates_per_step"),
            least_zero=("noise", "noise_end", "noise_clip", "pre_activation", "learning_starts", "prediction"),
        )
        self._check("noise_steps", self.noise_steps is None or self.noise_steps >= 1, "at least 1, or null")
        self._check("hidden", len(self.hidden) > 0 and min(self.hidden) >= 1, "one width or more, each at least 1")
        self._check("looks", self.looks == 0 or self.looks >= 2, "at least 2, or 0")

    def _check(self, name: str, fine: bool, expected: str) -> None:
        if not fine:
            who = type(self).__module__.rpartition(".")[2]
            raise ValueError(f"{who}: {name} must be {expected}; got {getattr(self, name)}.")


class PixelActor(nn.Module):
    """Encoded observations to actions: trunk, hidden layers, tanh.

    Args:
        trunk: reads encoded pictures.
        widths: of hidden layers.
        action: A.
        generator: of the weights.
    """

    def __init__(self, trunk: Trunk, widths: tuple[int, ...], action: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.trunk = trunk
        self.mlp = MLP(trunk.width, widths, action, generator=generator, norm=False)

    def forward(self, x: Float[Tensor, "B N"]) -> Float[Tensor, "B A"]:
        return torch.tanh(self.mlp(self.trunk(x)))

    def layers(self, x: Float[Tensor, "B N"]) -> list[Tensor]:
        """What DrM's dormant ratio counts: out of every linear layer, after its ReLU where it has one."""
        hidden = self.mlp.hidden(self.trunk(x))
        return [*self.trunk.before(x), *hidden, self.mlp.head(hidden[-1])]


class Critic(nn.Module):
    """K = 2 action values that share a trunk.

    Args:
        trunk: reads encoded pictures.
        widths: of hidden layers.
        action: A.
        generator: of the weights.
    """

    def __init__(self, trunk: Trunk, widths: tuple[int, ...], action: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.trunk = trunk
        self.mlp = MLP(trunk.width + action, widths, 1, generator=generator, norm=False, count=2)

    def forward(self, x: Float[Tensor, "B N"], action: Float[Tensor, "B A"]) -> Float[Tensor, "K B"]:
        return self.values(self.trunk(x), action)

    def values(self, z: Float[Tensor, "B W"], action: Float[Tensor, "B A"]) -> Float[Tensor, "K B"]:
        """From what the trunk gives."""
        return self.mlp(torch.cat([z, action], -1))[..., 0]


class DrQv2:
    """The learner; see the module.

    Args:
        observation_space: pictures, vectors, or both.
        action_space: a Box.
        total_steps: transitions of the run, for the noise.
        seed: of weights, shifts, exploration and updates.
        device: where the networks live.
        settings: see `DrQv2Settings`.

    Raises:
        ValueError: other spaces, or a prediction without pictures.
    """

    name = "drqv2"

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, *, total_steps: int, seed: int, device: str,
        settings: DrQv2Settings,
    ) -> None:  # fmt: skip
        s, self.settings, self.device = settings, settings, torch.device(device)
        self.sight = Sight(observation_space, s.stack, self.name)
        self.num_actions = action_size(action_space, self.name)
        self.pace = Pace(
            rollout_steps=s.rollout_steps, updates_per_step=s.updates_per_step, learning_starts=s.learning_starts
        )
        length = max(s.n_steps, s.horizon if s.prediction else 1)
        self.sampling: Sampling | None = Sampling(
            length=length, batch_size=s.batch_size, stack=self.sight.stack, demo_share=s.demo_share, gamma=s.gamma,
            capacity=s.capacity,
        )  # fmt: skip
        build = torch.Generator().manual_seed(seed)
        self.encoder = PixelEncoder(self.sight, generator=build).to(self.device)
        self.actor = PixelActor(self._trunk(build), s.hidden, self.num_actions, generator=build)
        self.critic = Critic(self._trunk(build), s.hidden, self.num_actions, generator=build)
        for part in (self.actor, self.critic):
            orthogonal(part, build).to(self.device)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        width = self.critic.trunk.width
        if s.prediction and self.sight.size is None:
            raise ValueError(f"{self.name}: prediction shapes the encoder of pictures; there are none. Set it to 0.")
        self._predictor = Predictor(width, self.num_actions, generator=build).to(self.device) if s.prediction else None
        self._sgfd = Decorrelation(width, s.looks, s.batch_size, generator=build).to(self.device) if s.looks else None
        self._make_optimisers()
        self._acting = torch.Generator().manual_seed(seed + 1)  # apart: acting may go on while updates run
        self._updating = torch.Generator(device).manual_seed(seed + 2)
        self._shifting = torch.Generator(device).manual_seed(seed + 3)
        self.noise_steps = s.noise_steps or max(total_steps // 5, 1)
        self.steps = 0

    def _trunk(self, generator: torch.Generator) -> Trunk:
        return Trunk(self.encoder, self.settings.features, generator=generator)

    def _make_optimisers(self) -> None:
        seen = [self.encoder, self.critic, *([] if self._predictor is None else [self._predictor])]
        self._critic_adam = adam(seen, self.settings.learning_rate)
        self._actor_adam = adam(self.actor, self.settings.learning_rate)

    # Acting ---------------------------------------------------------------------------------------------

    @property
    def sigma(self) -> float:
        """σ of now."""
        return self._scheduled(self.steps)

    def _scheduled(self, steps: int) -> float:
        s = self.settings
        return s.noise + (s.noise_end - s.noise) * min(steps / self.noise_steps, 1.0)

    def begin(self, count: int) -> Memory:
        """The frames before now."""
        return self.sight.begin(count)

    @torch.no_grad()
    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        """(E, A) in [-1, 1]; exploring, uniform before learning starts, then with noise."""
        frames, memory = self.sight.now(obs, memory, first)
        shape = (len(first), self.num_actions)
        if explore and self.steps < self.settings.learning_starts:
            return torch.rand(shape, generator=self._acting).mul(2).sub(1).numpy(), memory
        action = self.actor(self.encoder(self._contrasted(frames))).cpu()
        if explore:
            action = (action + self.sigma * torch.randn(shape, generator=self._acting)).clamp(-1, 1)
        return action.numpy(), memory

    def acting(self) -> DrQv2:
        """An actor with the weights and the noise of now, which stay; what acting itself changes is shared."""
        actor = copy.copy(self)
        actor.encoder, actor.actor = copy.deepcopy(self.encoder), copy.deepcopy(self.actor)
        return actor

    def observe(self, rollout: Rollout, reward: np.ndarray) -> None:
        """Count steps; take observations into their means and deviations."""
        self.steps += reward.size
        self.encoder.add(rollout.obs)

    @torch.no_grad()
    def value(self, obs: Obs, action: np.ndarray) -> np.ndarray:
        """(B,) what follows these actions, (B, A), at an episode's begin is worth: the least of the critics."""
        count = len(action)
        frames, _ = self.sight.now(obs, self.begin(count), np.ones(count, bool))
        given = torch.as_tensor(action, device=self.device)
        return self.critic(self.encoder(self._contrasted(frames)), given).min(0).values.cpu().numpy()

    # Learning -------------------------------------------------------------------------------------------

    def update(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """So many steps of the critics with the encoder, of the actor, and of the targets."""
        told = [self._learn(next(batches).to(self.device), last=k == count - 1) for k in range(count)]
        return averages(told) | {"sigma": self.sigma}

    def _learn(self, batch: Batch, *, last: bool) -> dict[str, Tensor]:
        s = self.settings
        start, done = torch.zeros_like(batch.valid[0], dtype=torch.int64), batch.valid[: s.n_steps].sum(0)
        x = self.encoder(self._seen(batch, start))
        step = n_step(batch, s.gamma, s.n_steps)
        out = self._before(x.detach(), batch.action[0], last=last)
        with torch.no_grad():
            target = step.reward + step.discount * self._worth(self.encoder(self._seen(batch, done)))
        z = self.critic.trunk(x)
        q = self.critic.values(z, batch.action[0])
        loss = (q - target).square().mean(1).sum()
        out |= {"critic_loss": loss.detach(), "q": q.detach().mean()}
        if self._predictor is not None:
            error = self._prediction(batch, z)
            out["prediction_error"] = error.detach()
            loss = loss + s.prediction * error
        self._critic_adam.zero_grad()
        loss.backward()
        self._critic_adam.step()
        out |= self._move_actor(x.detach(), batch)
        follow(self.target, self.critic, s.tau)
        return out

    def _before(self, x: Tensor, action: Tensor, *, last: bool) -> dict[str, Tensor]:
        """What comes before an update, from its encoded observations: in a round's last DrM's ratios, for the log."""
        return (
            {"dormant_actor": self._dormant_actor(x), "dormant_critic": self._dormant_critic(x, action)} if last else {}
        )

    @torch.no_grad()
    def _dormant_actor(self, x: Tensor) -> Tensor:
        return torch.tensor(dormant_ratio(self.actor.layers(x)))

    @torch.no_grad()
    def _dormant_critic(self, x: Tensor, action: Tensor) -> Tensor:
        hidden = self.critic.mlp.hidden(torch.cat([self.critic.trunk(x), action], -1))
        return torch.tensor(dormant_ratio(hidden))

    def _worth(self, x: Tensor) -> Tensor:
        """(B,) what the state after the summed rewards is worth."""
        return self.target(x, self._explored(self.actor(x))).min(0).values

    def _move_actor(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        out, weights = {}, None
        z = self.actor.trunk(x)
        if self._sgfd is not None:
            assert batch.look is not None
            weights, out = self._sgfd.weights(z, batch.look[0], self._updating)
        raw = self.actor.mlp(z)
        q = self.critic(x, self._explored(torch.tanh(raw))).min(0).values
        held = self.settings.pre_activation * q.detach().abs().mean() * raw.square().mean()
        loss = held - (q.mean() if weights is None else (weights * q).sum())
        self._actor_adam.zero_grad()
        loss.backward(inputs=list(self.actor.parameters()))
        self._actor_adam.step()
        return out | {"actor_loss": loss.detach()}

    def _explored(self, action: Tensor) -> Tensor:
        """Actions with clipped noise; the gradient passes the clamp as if it were not there."""
        noise = torch.randn(action.shape, generator=self._updating, device=self.device) * self.sigma
        moved = action + noise.clamp(-self.settings.noise_clip, self.settings.noise_clip)
        return moved + (moved.clamp(-EDGE, EDGE) - moved).detach()

    def _prediction(self, batch: Batch, z: Tensor) -> Tensor:
        """The predictive loss, towards the target critic's latents of the online encoder."""
        assert self._predictor is not None
        steps = range(1, self.settings.horizon + 1)
        at = torch.zeros_like(batch.valid[0], dtype=torch.int64)
        with torch.no_grad():
            after = [self.target.trunk(self.encoder(self._seen(batch, at + k))) for k in steps]
        action, valid = batch.action[: len(steps)], batch.valid[: len(steps)]
        return prediction_error(self._predictor, z, action, torch.stack(after), valid)

    def _seen(self, batch: Batch, at: Tensor) -> Frames:
        """What the windows show at a moment, shifted at random."""
        pictures, vectors = self._contrasted(self.sight.moment(batch, at))
        return random_shift(pictures, self._shifting), vectors

    def _contrasted(self, frames: Frames) -> Frames:
        pictures, vectors = frames
        return self.encoder.contrasted(pictures.to(self.device)), vectors.to(self.device)

    # Resume ---------------------------------------------------------------------------------------------

    @property
    def _parts(self) -> dict[str, Any]:
        parts = {
            "encoder": self.encoder, "actor": self.actor, "critic": self.critic, "target": self.target,
            "predictor": self._predictor, "sgfd": self._sgfd, "critic_adam": self._critic_adam,
            "actor_adam": self._actor_adam, "acting": self._acting, "updating": self._updating,
            "shifting": self._shifting,
        }  # fmt: skip
        return {name: part for name, part in parts.items() if part is not None}

    def state(self) -> State:
        """Everything that continuing needs."""
        return pack(self._parts), {"steps": self.steps, "noise_steps": self.noise_steps}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        unpack(f"{type(self).__name__}.load_state", self._parts, tensors)
        self.steps, self.noise_steps = values["steps"], values["noise_steps"]


drqv2 = maker(DrQv2, DrQv2Settings, scheduled=True)
