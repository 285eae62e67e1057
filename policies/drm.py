"""DrM: DrQ-v2 that watches how much of its actor is dormant, and explores, exploits and renews itself by that.

Xu et al., "DrM: mastering visual reinforcement learning through dormant ratio minimization", arXiv 2310.19668.

    β     share of units whose mean |h| is below 0.025 of their layer's, over every linear layer of the actor
    σ     1 / (1 + exp(−10 (β − 0.2))) until β < 0.2 for the first time; then the larger of that and DrQ-v2's schedule,
          which begins there
    V     L_V = mean |τ_e − 1{u < 0}| u²,  u = min_k Q_k(s, a) − V(s)
    y     n-step reward + γ^n (λ V(s') + (1 − λ) min_k Q̄_k(s', a')),  λ = λ̂ / (1 + exp(50 (β − 0.2)))
    θ     α θ + (1 − α) φ every so often, φ drawn anew as at the beginning,  α = clip(1 − 2β, 0.2, α_max)

Each of the last three parts can be switched off; without them all it is DrQ-v2, bit for bit.

Departures. As DrQ-v2's. Perturbed are the linear layers of actor, critics, their target and V, each by a φ of its own,
and all optimisers begin anew, as in the official code; encoder and normalisations stay as they are.

Shape letters: B batch, N encoded observation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from policies import drqv2
from policies.core import Batch
from policies.networks import MLP, Linear, adam
from policies.pixels import Trunk, orthogonal
from policies.saving import State
from policies.settings import maker

AWAKE = 0.2  # β below which an actor is awake
LEAST = 0.2  # of α


@dataclass(frozen=True, kw_only=True)
class DrMSettings(drqv2.DrQv2Settings):
    """What can be set, beside DrQ-v2's.

    Attributes:
        awaken: whether σ follows β.
        exploitation: λ̂, the share of V in the critics' targets; 0: no V.
        expectile: τ_e of V.
        perturb_every: transitions between two perturbations; 0: none.
        perturb_max: α_max.
    """

    awaken: bool = True
    exploitation: float = 0.6
    expectile: float = 0.9
    perturb_every: int = 100_000
    perturb_max: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("exploitation", 0 <= self.exploitation <= 1, "in [0, 1]")
        self._check("expectile", 0 < self.expectile < 1, "between 0 and 1")
        self._check("perturb_every", self.perturb_every >= 0, "at least 0")
        self._check("perturb_max", LEAST <= self.perturb_max <= 1, f"in [{LEAST}, 1]")


class Value(nn.Module):
    """Encoded observations to what they are worth, (B,).

    Args:
        trunk: reads encoded pictures.
        widths: of hidden layers.
        generator: of the weights.
    """

    def __init__(self, trunk: Trunk, widths: tuple[int, ...], *, generator: torch.Generator) -> None:
        super().__init__()
        self.trunk = trunk
        self.mlp = MLP(trunk.width, widths, 1, generator=generator, norm=False)

    def forward(self, x: Float[Tensor, "B N"]) -> Float[Tensor, " B"]:
        return self.mlp(self.trunk(x))[..., 0]


class DrM(drqv2.DrQv2):
    """The learner; see the module.

    Attributes:
        beta: β of the last update's batch; 1 at first.
        awakened: transitions there were when β fell below 0.2; None: it has not yet.

    Args:
        observation_space, action_space, total_steps, seed, device, settings: as of `policies.drqv2.DrQv2`.
    """

    name = "drm"
    settings: DrMSettings

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, *, total_steps: int, seed: int, device: str,
        settings: DrMSettings,
    ) -> None:  # fmt: skip
        self._renewing = torch.Generator().manual_seed(seed + 4)  # apart, so that without V the rest is DrQ-v2's
        self._value: Value | None = None
        super().__init__(
            observation_space, action_space, total_steps=total_steps, seed=seed, device=device, settings=settings
        )
        if settings.exploitation:
            value = Value(self._trunk(self._renewing), settings.hidden, generator=self._renewing)
            self._value = orthogonal(value, self._renewing).to(self.device)
        self._make_optimisers()
        self.beta, self.perturbed = 1.0, 0
        self.awakened: int | None = None

    def _make_optimisers(self) -> None:
        super()._make_optimisers()
        self._value_adam = None if self._value is None else adam(self._value, self.settings.learning_rate)

    @property
    def sigma(self) -> float:
        """σ of now."""
        if not self.settings.awaken:
            return super().sigma
        dormant = dormant_noise(self.beta)
        return dormant if self.awakened is None else max(dormant, self._scheduled(self.steps - self.awakened))

    def update(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """As DrQ-v2's; first a perturbation, where one is due."""
        every = self.settings.perturb_every
        out = {}
        if every and self.steps // every > self.perturbed:
            self.perturbed = self.steps // every
            out["perturb_alpha"] = kept_share(self.beta, self.settings.perturb_max)
            for module in (self.actor, self.critic, self.target, self._value):
                if module is not None:
                    perturb(module, out["perturb_alpha"], self._renewing)
            self._make_optimisers()
        return out | super().update(batches, count)

    def _before(self, x: Tensor, action: Tensor, *, last: bool) -> dict[str, Tensor]:
        out = super()._before(x, action, last=last)
        self.beta = float(out["dormant_actor"] if last else self._dormant_actor(x))
        if self.awakened is None and self.beta < AWAKE:
            self.awakened = self.steps
        if self._value is None or self._value_adam is None:
            return out
        with torch.no_grad():
            q = self.critic(x, action).min(0).values
        loss = expectile_loss(q - self._value(x), self.settings.expectile)
        self._value_adam.zero_grad()
        loss.backward()
        self._value_adam.step()
        return out | {"value_loss": loss.detach()}

    def _worth(self, x: Tensor) -> Tensor:
        worth = super()._worth(x)
        if self._value is None:
            return worth
        share = value_share(self.beta, self.settings.exploitation)
        return share * self._value(x) + (1 - share) * worth

    @property
    def _parts(self) -> dict[str, Any]:
        own = {"renewing": self._renewing, "value": self._value, "value_adam": self._value_adam}
        return super()._parts | {name: part for name, part in own.items() if part is not None}

    def state(self) -> State:
        """Everything that continuing needs."""
        tensors, values = super().state()
        return tensors, values | {"beta": self.beta, "awakened": self.awakened, "perturbed": self.perturbed}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        super().load_state(tensors, values)
        self.beta, self.awakened, self.perturbed = values["beta"], values["awakened"], values["perturbed"]


def dormant_noise(beta: float) -> float:
    """σ of a dormant ratio: near 1 for a dormant actor, 0.12 for a fully awake one.

    Args:
        beta: dormant ratio, in [0, 1].
    """
    return 1 / (1 + math.exp(-10 * (beta - AWAKE)))


def value_share(beta: float, most: float) -> float:
    """λ of a dormant ratio: nearly `most` for an awake actor, nearly 0 for a dormant one.

    Args:
        beta: dormant ratio, in [0, 1].
        most: λ at most.
    """
    return most / (1 + math.exp(50 * (beta - AWAKE)))


def kept_share(beta: float, most: float) -> float:
    """α of a dormant ratio: how much of the weights a perturbation keeps.

    Args:
        beta: dormant ratio, in [0, 1].
        most: α at most.
    """
    return min(max(1 - 2 * beta, LEAST), most)


def expectile_loss(u: Float[Tensor, " B"], expectile: float) -> Tensor:
    """mean |τ − 1{u < 0}| u²: above ½ it draws V towards the better of the actions seen.

    Args:
        u: target less V.
        expectile: τ, in (0, 1).
    """
    return ((u < 0).float().sub(expectile).abs() * u.square()).mean()


@torch.no_grad()
def perturb(module: nn.Module, kept: float, generator: torch.Generator) -> None:
    """θ ← α θ + (1 − α) φ for every linear layer; φ is orthogonal, its offsets 0, as at the beginning.

    Args:
        module: changed in place.
        kept: α.
        generator: of φ.
    """
    for layer in module.modules():
        if isinstance(layer, Linear):
            for weight in layer.weight:
                fresh = nn.init.orthogonal_(torch.empty(weight.shape), generator=generator)
                weight.mul_(kept).add_(fresh.to(weight.device), alpha=1 - kept)
            layer.bias.mul_(kept)


drm = maker(DrM, DrMSettings, scheduled=True)
