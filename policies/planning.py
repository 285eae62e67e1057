"""Plans in a latent world model, for all worlds in one batch: model predictive path integrals (MPPI).

Williams et al., arXiv 1509.01149, as in TD-MPC2 (arXiv 2310.16828) and MoDem-V2 (arXiv 2309.14236).

    candidates   policies' roll-outs and draws from N(μ, σ²), sequences of P actions
    worth        Σ_t γ^t alive_t r_t + γ^P alive_P (mean_k V_k − c · std_k V_k)
    weights      exp((worth − its maximum) / its deviation · temperature) over the best candidates
    μ, σ         their weighted mean and deviation; then again

Departures. Weights are in units of the deviation of what the best are worth, so that rewards of any scale plan alike.
The last plan, shifted, is a candidate beside the draws. The terminal value is the mean of all heads at the
policy's best action, where the source takes two random ones at a drawn action. What ends counts by its probability,
where the source cuts at one half. When it counts, the mean is played, where the source plays one of the best. A worth
that is no number is the worst, where the source takes it for 0.

Shape letters: E worlds, C candidates, R policies' roll-outs among them, P steps ahead, I iterations, K value heads, N
policies, L latent, A action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from policies.latent import WorldModel
from policies.settings import check

WORST = -1e30
CENTRES = ("plan", "policy")


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What can be set of a planner.

    Attributes:
        horizon: P, steps ahead; also the length of the windows that the model learns from.
        samples: draws of action sequences, > 0.
        policy_samples: R, roll-outs of the policies beside them, ≥ one for each policy.
        elites: the best candidates, which count.
        iterations: I, how often the draws are made anew.
        temperature: of the elites' weights.
        centre: where the first draws are centred: the last "plan", or what the "policy" would do (MoDem-V2).
        first_std: standard deviation of the first draws.
        min_std: least of the later ones, and of the noise in training.
        policy_std: of the noise in the policies' roll-outs; None: the policies' own.
        uncertainty: c, how much the value heads' disagreement is held against a candidate.
    """

    horizon: int = 3
    samples: int = 48
    policy_samples: int = 16
    elites: int = 12
    iterations: int = 2
    temperature: float = 1.0
    centre: str = "policy"
    first_std: float = 1.0
    min_std: float = 0.05
    policy_std: float | None = None
    uncertainty: float = 0.0

    def check(self, who: str) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: a setting out of range.
        """
        check(self, counts=("horizon", "samples", "policy_samples", "elites", "iterations"))
        if self.elites > self.samples + self.policy_samples + 1:
            most = self.samples + self.policy_samples + 1
            raise ValueError(f"{who}: elites must be at most the candidates ({most}); got {self.elites}.")
        if self.centre not in CENTRES:
            raise ValueError(f"{who}: centre must be one of {', '.join(CENTRES)}; got {self.centre!r}.")
        if not 0 < self.min_std <= self.first_std:
            raise ValueError(f"{who}: min_std must be > 0 and at most first_std; got {self.min_std}.")


class Noise(NamedTuple):
    """All that is random in a plan; E = 1 serves all worlds alike.

    Attributes:
        policy: (E, R, P, A) standard normal, of the policies' roll-outs.
        draws: (I, E, C', P, A) standard normal.
        choice: (E,) uniform, which elite is played.
        action: (E, A) standard normal, added to its first action.
    """

    policy: Tensor
    draws: Tensor
    choice: Tensor
    action: Tensor

    @classmethod
    def draw(cls, count: int, num_actions: int, s: PlanSettings, generator: torch.Generator) -> Noise:
        """Of so many worlds, on the generator's device."""
        device = generator.device
        shape = (s.policy_samples, s.horizon, num_actions)
        policy = torch.randn(count, *shape, generator=generator, device=device)
        shape = (s.iterations, count, s.samples, s.horizon, num_actions)
        draws = torch.randn(shape, generator=generator, device=device)
        choice = torch.rand(count, generator=generator, device=device)
        return cls(policy, draws, choice, torch.randn(count, num_actions, generator=generator, device=device))

    def to(self, device: torch.device) -> Noise:
        """The same there."""
        return Noise(*(part.to(device) for part in self))


class Plan(NamedTuple):
    """What was found.

    Attributes:
        mean: (E, P, A) of the elites.
        explored: (E, A) one elite's first action, by its weight, with noise.
        best: (E,) what the best candidate was thought to be worth.
        std: (E, P, A) of the elites, at least `min_std`.
    """

    mean: Float[Tensor, "E P A"]
    explored: Float[Tensor, "E A"]
    best: Float[Tensor, " E"]
    std: Float[Tensor, "E P A"]


@torch.no_grad()
def plan(
    model: WorldModel, z: Float[Tensor, "E L"], last: Float[Tensor, "E P A"], first: Bool[Tensor, " E"], noise: Noise,
    *, gamma: float, settings: PlanSettings,
) -> Plan:  # fmt: skip
    """The best that was found for each world.

    Args:
        model: predicts.
        z: where each world is.
        last: the last plans, shifted by a step.
        first: the worlds whose episode begins, whose last plan counts no more.
        noise: see `Noise`.
        gamma: γ.
        settings: see `PlanSettings`.
    """
    s, E = settings, len(z)
    last = torch.where(first[:, None, None], torch.zeros_like(last), last)
    shown = rollouts(model, z, noise.policy.expand(E, -1, -1, -1), s)
    N = len(model.policies.head.weight)
    mean = last if s.centre == "plan" else shown[:, :N].mean(1)  # the first of each policy are without noise
    std = torch.full_like(mean, s.first_std)
    fixed = torch.cat([shown, last[:, None]], 1)
    fixed_worth = worth(model, z, fixed, gamma=gamma, settings=s)
    elites = weights = best = torch.empty(0)
    for draws in noise.draws:
        candidates = (mean[:, None] + std[:, None] * draws).clamp(-1, 1)
        values = torch.cat([fixed_worth, worth(model, z, candidates, gamma=gamma, settings=s)], 1)
        candidates = torch.cat([fixed, candidates], 1)
        top, index = values.topk(s.elites, 1)
        elites = candidates.gather(1, index[:, :, None, None].expand(-1, -1, *candidates.shape[2:]))
        away = (top - top[:, :1]) / top.std(1, correction=0, keepdim=True).clamp(min=1e-6)
        weights, best = (s.temperature * away).softmax(1), top[:, 0]
        mean = torch.einsum("ec,ecpa->epa", weights, elites)
        variance = torch.einsum("ec,ecpa->epa", weights, (elites - mean[:, None]).square())
        std = variance.sqrt().clamp(s.min_std, max(s.first_std, s.min_std))
    chosen = (weights.cumsum(1) < noise.choice.expand(E)[:, None]).sum(1).clamp(max=s.elites - 1)
    action = elites[torch.arange(E, device=z.device), chosen, 0]
    explored = (action + std[:, 0] * noise.action).clamp(-1, 1)
    return Plan(mean, explored, best, std)


def rollouts(
    model: WorldModel, z: Float[Tensor, "E L"], noise: Float[Tensor, "E R P A"], settings: PlanSettings
) -> Float[Tensor, "E R2 P A"]:
    """What the policies would do; R2 is R rounded down to as many for each, and the first of each is without noise.

    Args:
        model: the world model.
        z: where each world is.
        noise: of R rollouts of P steps.
        settings: of the planner.
    """
    N, E = len(model.policies.head.weight), len(z)
    each = noise.shape[1] // N
    noise = noise[:, : each * N].unflatten(1, (each, N)).permute(3, 2, 0, 1, 4).clone()  # (P, N, E, each, A)
    noise[:, :, :, 0] = 0
    x = z[None, :, None].expand(N, E, each, -1).flatten(1, 2)  # (N, E·each, L)
    actions = []
    for step in noise.flatten(2, 3):
        mean, log_std = model.gaussian(x)
        if settings.policy_std is None:
            action = torch.tanh(mean + log_std.exp() * step)
        else:
            action = (torch.tanh(mean) + settings.policy_std * step).clamp(-1, 1)
        actions.append(action)
        x = model.next(x.flatten(0, 1), action.flatten(0, 1)).unflatten(0, x.shape[:2])
    found = torch.stack(actions).unflatten(2, (E, each))  # (P, N, E, each, A)
    return found.permute(2, 3, 1, 0, 4).flatten(1, 2)


def worth(
    model: WorldModel, z: Float[Tensor, "E L"], actions: Float[Tensor, "E C P A"], *, gamma: float,
    settings: PlanSettings,
) -> Float[Tensor, "E C"]:  # fmt: skip
    """What sequences of actions are worth from where each world is.

    Args:
        model: the world model.
        z: where each world is.
        actions: C sequences of P steps.
        gamma: γ, in [0, 1].
        settings: of the planner.
    """
    E, C = actions.shape[:2]
    x = z[:, None].expand(E, C, -1).flatten(0, 1)
    total = torch.zeros(E * C, device=z.device)
    weight = torch.ones(E * C, device=z.device)
    for action in actions.flatten(0, 1).unbind(1):
        total = total + weight * model.reward(x, action)
        x = model.next(x, action)
        weight = gamma * weight * (1 - model.ending(x))
    values = terminal(model, x)
    total = total + weight * values.mean(0)
    if settings.uncertainty:
        total = total - settings.uncertainty * weight * values.std(0, correction=0)
    return total.nan_to_num(nan=WORST, posinf=WORST, neginf=WORST).unflatten(0, (E, C))


def terminal(model: WorldModel, z: Float[Tensor, "B L"]) -> Float[Tensor, "K B"]:
    """What each value head thinks of a latent: of the one policy's best action; of several policies', the best of what
    the others would do (MoDem-V2: a head is not asked about the policy that climbed it).

    Args:
        model: the world model.
        z: B latents.
    """
    actions = torch.tanh(model.gaussian(z)[0])
    N, B = actions.shape[:2]
    if N == 1:
        return model.values(model.critics, z, actions[0])
    values = model.values(model.critics, z.repeat(N, 1), actions.flatten(0, 1)).unflatten(1, (N, B))
    own = torch.eye(N, dtype=torch.bool, device=z.device)[:, :, None]
    return values.masked_fill(own, -torch.inf).max(1).values
