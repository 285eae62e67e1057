"""TD-MPC2: plans in a latent world model, whose plans end in a learned value.

Hansen et al., "TD-MPC2: Scalable, robust world models for continuous control", arXiv 2310.16828. Per window of P steps,
with z_0 = h(o_0), z_{t+1} = d(z_t, a_t), z'_t = h(o_{t+1}) without gradient, and Q̄ following Q:

    y_t = r_t + γ (1 − ended_t) min(Q̄_k, Q̄_{k+1})(z'_t, π(z'_t))
    L   = Σ_t ρ^t [20 |z_{t+1} − z'_t|² + 0.1 CE(R(z_t, a_t), r_t) + 0.1 mean_k CE(Q_k(z_t, a_t), y_t)]
          (+ Σ_t ρ^t BCE of endings)
    L_π = −Σ_t ρ^t [mean_k Q_k(z_t, π) / S + η A · entropy]

S is the running range of the first step's values between the 5th and the 95th percentile, at least 1.

Departures, beside those of `policies.latent` and `policies.planning`. Sizes below 1M, batches of 128 windows, 51 bins,
the policy's loss on every fourth window: a CPU's time goes into products. Each head takes the lesser of itself and its
neighbour for its target, where the source draws two heads for all. The entropy is that of the squashed action. Worlds
may terminate and be many at once: windows end where episodes do, and every world's plan is made
in one batch. Demonstrations, where there are any, are a share of each batch.

`alignment` is after BOOM (arXiv 2511.00423): the policy is made likelier to do what the planner did, most so where that
is worth much, −λ Σ_b softmax_b(Q / S) log π(a_b). Its code keeps the planner's mean with each step, has λ = A / 1000
and begins once S > 2; here a_b is the action that the replay holds, whoever chose it.

Shape letters: E worlds, B windows, T = P steps, K value heads, N policies, L latent, A action.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from policies.core import Batch, ImaginedEpisode, Memory, Obs, Pace, Rollout, Sampling, map_leaves
from policies.latent import SIZES, WorldModel, flatten
from policies.latent_losses import Wish, misalignment, model_loss, policy_loss, spread, targets, wish
from policies.networks import action_size, averages, dormant_ratio, follow
from policies.planning import Noise, Plan, PlanSettings, plan
from policies.saving import State, pack, unpack
from policies.settings import check, maker

ENCODER_RATE = 0.3  # of the learning rate
CLIP = 20.0  # of the gradient's norm
SCALE_RATE = 0.01


@dataclass(frozen=True, kw_only=True)
class TDMPC2Settings(PlanSettings):
    """What can be set, beside `PlanSettings`.

    Attributes:
        size: of the networks, one of `policies.latent.SIZES`.
        critics: K, value heads; None: the size's.
        ensemble: whether each value head has a policy of its own, and its own target; else one policy serves all.
        bins: X, of rewards and values, odd.
        terminations: whether the model predicts where the task ends; for tasks that end.
        planning: whether plans are played; False: the policy.
        noise: standard deviation of what is added to the policy's actions in training where no plan is played.
        learning_rate: Adam's; the encoder's is 0.3 of it.
        batch_size: windows an update.
        gamma: discount.
        tau: step of the target critics.
        consistency: weight of the predicted latents' error; 0: the model learns from rewards and values alone.
        learn_dynamics: whether d is learned; False: it stays as it began, a control.
        rho: weight of a step in a window, to the power of its place.
        policy_stride: of the windows, every so many are the policy's.
        entropy: η, weight of the policy's entropy, times A.
        alignment: λ, weight of BOOM's term; 0: without.
        standardise: observations by their running mean and deviation.
        demo_share: of each batch, where there are demonstrations.
        learning_starts: transitions before the first update, by random actions.
        rollout_steps: steps of every world between rounds of updates.
        updates_per_step: updates for each transition.
        burst: updates that the first round makes beside its own.
    """

    size: str = "0.1M"
    critics: int | None = None
    ensemble: bool = False
    bins: int = 51
    terminations: bool = False
    planning: bool = True
    noise: float = 0.3
    learning_rate: float = 7e-4
    batch_size: int = 128
    gamma: float = 0.95
    tau: float = 0.01
    consistency: float = 20.0
    learn_dynamics: bool = True
    rho: float = 0.5
    policy_stride: int = 4
    entropy: float = 1e-4
    alignment: float = 0.0
    standardise: bool = True
    demo_share: float = 0.5
    learning_starts: int = 500
    rollout_steps: int = 4
    updates_per_step: float = 1.0
    burst: int = 500

    def __post_init__(self) -> None:
        who = type(self).__module__.rpartition(".")[2]
        if self.size not in SIZES:
            raise ValueError(f"{who}: size must be one of {', '.join(SIZES)}; got {self.size!r}.")
        self.check(who)
        check(
            self,
            counts=("batch_size", "policy_stride", "rollout_steps"),
            shares=("gamma", "tau", "rho", "demo_share"),
            positive=("learning_rate", "updates_per_step"),
        )
        if self.policy_stride > self.batch_size:
            raise ValueError(f"{who}: policy_stride must be at most batch_size; got {self.policy_stride}.")
        if self.ensemble and self.heads < 2:
            raise ValueError(f"{who}: critics must be at least 2 for an ensemble; got {self.heads}.")
        if self.policies > self.policy_samples:
            raise ValueError(f"{who}: policy_samples must be one for each policy; got {self.policy_samples}.")

    @property
    def heads(self) -> int:
        """K."""
        return SIZES[self.size].critics if self.critics is None else self.critics

    @property
    def policies(self) -> int:
        """N."""
        return self.heads if self.ensemble else 1


class TDMPC2:
    """The learner; see the module.

    Args:
        observation_space: vectors, uint8 images (H, W, channels), or a Dict of them.
        action_space: a Box.
        seed: of weights, plans and updates.
        device: where the networks live.
        settings: see `TDMPC2Settings`.

    Raises:
        ValueError: observations of another kind, or actions discrete.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        seed: int,
        device: str,
        settings: TDMPC2Settings,
    ) -> None:
        s, self.settings, self.device = settings, settings, torch.device(device)
        self.num_actions = action_size(action_space, "tdmpc2")
        build = torch.Generator().manual_seed(seed)
        size = SIZES[s.size]._replace(critics=s.heads)
        self.model = WorldModel(
            observation_space, self.num_actions, size=size, bins=s.bins, policies=s.policies,
            terminations=s.terminations, generator=build,
        ).to(self.device)  # fmt: skip
        self._targets = copy.deepcopy(self.model.critics).requires_grad_(False)
        self._scale = torch.ones((), device=self.device)
        self._make_optimisers()
        self._acting = torch.Generator().manual_seed(seed + 1)  # apart: acting may go on while updates run
        self._updating = torch.Generator(self.device).manual_seed(seed + 2)
        self._judging = Noise.draw(1, self.num_actions, s, torch.Generator().manual_seed(seed + 3)).to(self.device)
        self.pace = self._pace()
        self.sampling: Sampling | None = Sampling(
            length=s.horizon, batch_size=s.batch_size, demo_share=s.demo_share, gamma=s.gamma
        )
        self.steps = self.updates = 0
        self._warned = False

    def _pace(self) -> Pace:
        s = self.settings
        return Pace(
            rollout_steps=s.rollout_steps, updates_per_step=s.updates_per_step, learning_starts=s.learning_starts,
            burst=s.burst,
        )  # fmt: skip

    def _make_optimisers(self) -> None:
        model, rate = self.model, self.settings.learning_rate
        fused = self.device.type in ("cpu", "cuda", "mps")
        slow = set(model.encoder.parameters())
        own = set(model.policies.parameters())
        for weight in (*model.dynamics.parameters(), *model.out.parameters()):
            weight.requires_grad_(self.settings.learn_dynamics)
        rest = [each for each in model.parameters() if each.requires_grad and each not in slow and each not in own]
        groups = [{"params": list(model.encoder.parameters()), "lr": ENCODER_RATE * rate}, {"params": rest}]
        self._model_adam = torch.optim.Adam(groups, lr=rate, fused=fused)
        self._policy_adam = torch.optim.Adam(model.policies.parameters(), lr=rate, eps=1e-5, fused=fused)

    # Acting ---------------------------------------------------------------------------------------------

    def begin(self, count: int) -> Memory:
        """Each world's last plan, shifted by a step."""
        return {"plan": np.zeros((count, self.settings.horizon, self.num_actions), np.float32)}

    @torch.no_grad()
    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        """(E, A) in [-1, 1]; exploring, random before learning starts, then one of a plan's elites with noise, else the
        plan's mean. What it does when it counts depends on observation and memory alone."""
        z = self._encode(obs)
        if explore and self.steps < self.settings.learning_starts:
            action = torch.rand(len(z), self.num_actions, generator=self._acting).mul(2).sub(1)
            return action.numpy(), self.begin(len(z))
        if not self.settings.planning:
            return self._by_policy(z, explore=explore), memory
        found = self._plan(z, memory["plan"], first, explore=explore)
        action = found.explored if explore else found.mean[:, 0]
        return action.cpu().numpy(), {"plan": _shifted(found)}

    def executed(self, memory: Memory, action: np.ndarray, intervened: np.ndarray, *, explore: bool) -> Memory:
        """Where a person acted planning begins anew, as at an episode's start."""
        return memory | {"plan": np.where(intervened[:, None, None], np.float32(0), memory["plan"])}

    def _encode(self, obs: Obs) -> Tensor:
        return self.model.encoder(map_leaves(lambda leaf: torch.as_tensor(leaf, device=self.device), obs))

    def _plan(self, z: Tensor, last: np.ndarray, first: np.ndarray, *, explore: bool) -> Plan:
        s, noise = self.settings, self._judging
        if explore:
            noise = Noise.draw(len(z), self.num_actions, s, self._acting).to(self.device)
        before = torch.from_numpy(last).to(self.device)
        begins = torch.from_numpy(np.asarray(first)).to(self.device)
        return plan(self.model, z, before, begins, noise, gamma=s.gamma, settings=s)

    def _by_policy(self, z: Tensor, *, explore: bool) -> np.ndarray:
        """The policies' mean action, with noise where it explores."""
        action = torch.tanh(self.model.gaussian(z)[0]).mean(0)
        if explore:
            noise = torch.randn(action.shape, generator=self._acting).to(self.device)
            action = (action + self.settings.noise * noise).clamp(-1, 1)
        return action.cpu().numpy()

    def acting(self) -> TDMPC2:
        """An actor with the weights of now, which stay; what acting itself changes is shared."""
        actor = copy.copy(self)
        actor.model = copy.deepcopy(self.model)
        return actor

    def observe(self, rollout: Rollout, reward: np.ndarray) -> None:
        """Count steps, take the observations into their mean and deviation."""
        self.steps += reward.size
        if self.settings.standardise:
            self._standardise(map_leaves(lambda leaf: torch.as_tensor(leaf, device=self.device), rollout.obs))
        if rollout.terminated.any() and not self.settings.terminations and not self._warned:
            self._warned = True
            warnings.warn(
                "tdmpc2: this task ends by itself; set policy.terminations=true, or plans look beyond its end.",
                stacklevel=2,
            )

    def _standardise(self, obs: Any) -> None:
        encoder = self.model.encoder
        encoder.norm.add(encoder.vector(obs).flatten(0, -2))

    @torch.no_grad()
    def value(self, obs: Obs, action: np.ndarray) -> np.ndarray:
        """(B,) what follows these actions, (B, A), is worth: the mean of the value heads."""
        taken = torch.as_tensor(action, device=self.device)
        return self.model.values(self.model.critics, self._encode(obs), taken).mean(0).cpu().numpy()

    @torch.no_grad()
    def imagine(self, obs: Obs, action: np.ndarray, horizon: int) -> ImaginedEpisode:
        """One episode as the model sees and imagines it; see `policies.core.Imagines`."""
        seen = self._encode(obs)
        taken = torch.as_tensor(action, device=self.device)
        starts = len(taken) - horizon + 1
        z, ahead, rewards = seen[:starts], [], []
        for k in range(horizon):
            now = taken[k : k + starts]
            rewards.append(self.model.reward(z, now))
            z = self.model.next(z, now)
            ahead.append(z)
        return ImaginedEpisode(seen.cpu(), torch.stack(ahead, 1).cpu(), torch.stack(rewards, 1).cpu())

    # Learning -------------------------------------------------------------------------------------------

    def update(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """So many updates of model and policy."""
        told: list[dict[str, Tensor]] = []
        out: dict[str, float] = {}
        for k in range(count):
            batch = next(batches).to(self.device)
            told.append(self._learn(batch))
            if k == count - 1:
                out = self._dormant(batch)
        return out | averages(told)

    def _learn(self, batch: Batch, *, move_policy: bool = True) -> dict[str, Tensor]:
        """One update of the model and, unless that stays with its encoder, of the policy."""
        model, s = self.model, self.settings
        T, B = batch.reward.shape
        batch = batch._replace(obs=self._augmented(batch.obs))
        with torch.no_grad():
            after = model.encoder(flatten(map_leaves(lambda leaf: leaf[1:], batch.obs)))
            target = targets(model, self._targets, after, batch, self._noise(len(after)), gamma=s.gamma)
        with torch.set_grad_enabled(move_policy):
            z = model.encoder(map_leaves(lambda leaf: leaf[0], batch.obs))
        latents = [z]
        for t in range(T):
            latents.append(model.next(latents[-1], batch.action[t]))
        seen = after.unflatten(0, (T, B))
        loss, out = model_loss(model, batch, torch.stack(latents), seen, target, rho=s.rho, consistency=s.consistency)
        self._model_adam.zero_grad()
        loss.backward()
        weights = [each for group in self._model_adam.param_groups for each in group["params"]]
        out["grad_norm"] = torch.nn.utils.clip_grad_norm_(weights, CLIP)
        self._model_adam.step()
        if move_policy:
            out |= self._move_policy(torch.stack(latents).detach(), batch)
        follow(self._targets, model.critics, s.tau)
        self.updates += 1
        return out

    def _augmented(self, obs: Any) -> Any:
        encoder = self.model.encoder
        if not encoder.images:
            return obs
        shape = next(iter(obs.values())).shape[:2] if isinstance(obs, dict) else obs.shape[:2]
        moved = encoder.shifted(flatten(obs), self._updating)
        return map_leaves(lambda leaf: leaf.unflatten(0, shape), moved)

    def _noise(self, count: int) -> Tensor:
        """Standard normal, for so many actions of each policy."""
        shape = (self.settings.policies, count, self.num_actions)
        return torch.randn(shape, generator=self._updating, device=self.device)

    def _move_policy(self, latents: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Towards what the value heads think best, from latents (T + 1, B, L)."""
        model, s, stride = self.model, self.settings, self.settings.policy_stride
        steps = ("action", "valid", "imitate")
        batch = batch._replace(**{name: getattr(batch, name)[:, ::stride] for name in steps})
        wished = wish(model, latents[:, ::stride], batch.valid, self._noise(latents[:, ::stride, 0].numel()), rho=s.rho)
        self._scale.lerp_(spread(wished.q[:, 0].detach()).clamp(min=1), SCALE_RATE)
        scale = self._scale.clone()
        loss = policy_loss(wished, scale, entropy=s.entropy * self.num_actions)
        out = {"q": wished.q.detach().mean(), "entropy": -wished.log_prob.detach().mean(), "q_scale": scale}
        for name, (weight, error) in self._pulls(wished, batch, scale).items():
            loss, out[name] = loss + weight * error, error.detach()
        self._policy_adam.zero_grad()
        loss.backward(inputs=list(model.policies.parameters()))
        torch.nn.utils.clip_grad_norm_(model.policies.parameters(), CLIP)
        self._policy_adam.step()
        return out | {"policy_loss": loss.detach()}

    def _pulls(self, wished: Wish, batch: Batch, scale: Tensor) -> dict[str, tuple[float, Tensor]]:
        """What draws the policies beside their values, by name: its weight and its error."""
        if not self.settings.alignment:
            return {}
        return {"alignment_loss": (self.settings.alignment, misalignment(self.model, wished, batch, scale))}

    @torch.no_grad()
    def _dormant(self, batch: Batch) -> dict[str, float]:
        """DrM's ratio of policy and value heads, for the log."""
        z = self.model.encoder(map_leaves(lambda leaf: leaf[0], batch.obs))
        critics = self.model.critics.hidden(torch.cat([z, batch.action[0]], -1))
        return {"dormant_actor": dormant_ratio(self.model.policies.hidden(z)), "dormant_critic": dormant_ratio(critics)}

    # Resume ---------------------------------------------------------------------------------------------

    @property
    def _parts(self) -> dict[str, Any]:
        return {
            "model": self.model, "targets": self._targets, "scale": self._scale, "model_adam": self._model_adam,
            "policy_adam": self._policy_adam, "acting": self._acting, "updating": self._updating,
        }  # fmt: skip

    def state(self) -> State:
        """Everything that continuing needs; the plans are the actor's memory."""
        return pack(self._parts), {"steps": self.steps, "updates": self.updates}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        unpack(f"{type(self).__name__}.load_state", self._parts, tensors)
        self.steps, self.updates = values["steps"], values["updates"]


def _shifted(found: Plan) -> np.ndarray:
    """(E, P, A) what is left of the plans after their first step, and 0 at the end."""
    return torch.cat([found.mean[:, 1:], torch.zeros_like(found.mean[:, :1])], 1).cpu().numpy()


tdmpc2 = maker(TDMPC2, TDMPC2Settings)
