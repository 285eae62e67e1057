"""Actor and critic that are learned from what a world model imagines, by λ-returns and through the model.

Dreamer (Hafner et al., arXiv 1912.01603), §3.

Departures. Returns are bootstrapped from a slow copy of the critic, and scaled by their 5–95 percentile range (at least
1; DreamerV3's, 2301.04104), so that the weight of entropy means the same for any reward.

Shape letters: P steps imagined from each of N states, A action, F features.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.networks import MLP, GaussianActor, adam, follow

CLIP = 100.0  # of a gradient's norm
SCALE_RATE = 0.01  # of the running range of returns
LOG_STD = -0.7  # with which the actor begins: 0.5 before the squashing


class Imagined(NamedTuple):
    """P steps from each of N states, step after step.

    Attributes:
        before: (P·N, F) the state that each begins in.
        log_prob: (P·N,) of the action that was drawn there.
        after: (P·N, F) the state that it leads to.
        reward: (P·N,).
        goes_on: (P·N,) how likely the world has not ended there.
        horizon: P.
    """

    before: Tensor
    log_prob: Tensor
    after: Tensor
    reward: Tensor
    goes_on: Tensor
    horizon: int


class Behaviour:
    """The actor, what it climbs, and their optimisers.

    Args:
        features: F.
        actions: A.
        widths: of the hidden layers.
        generator: of the first weights.
        device: where they lie.
        rate: Adam's.
        gamma: discount.
        lambda_: of the λ-returns.
        entropy: weight of the actor's, beside returns of range 1.
        tau: step of the slow critic.

    Attributes:
        actor, critic: the networks.
        scale: running range of returns.
    """

    def __init__(
        self, features: int, actions: int, widths: Sequence[int], *, generator: torch.Generator, device: torch.device,
        rate: float, gamma: float, lambda_: float, entropy: float, tau: float,
    ) -> None:  # fmt: skip
        actor = GaussianActor(features, actions, widths, generator=generator, norm=True, log_std=LOG_STD)
        self.actor = actor.to(device)
        self.critic = MLP(features, widths, 1, generator=generator).to(device)
        self._slow = copy.deepcopy(self.critic).requires_grad_(False)
        self.scale = torch.ones((), device=device)
        self._actor_adam, self._critic_adam = adam(self.actor, rate), adam(self.critic, rate)
        self._gamma, self._lambda, self._entropy, self._tau = gamma, lambda_, entropy, tau

    def frozen(self) -> Behaviour:
        """One with the weights of now, to act with."""
        other = copy.copy(self)
        other.actor = copy.deepcopy(self.actor)
        return other

    def learn(self, imagined: Imagined, *, first: bool) -> dict[str, Tensor]:
        """One step of actor and critic.

        Args:
            imagined: through the actor's actions, with their gradient.
            first: whether nothing was learned before: the range of returns begins there.
        """
        rows = (imagined.horizon, -1)
        reward = imagined.reward.unflatten(0, rows)
        discount = self._gamma * imagined.goes_on.unflatten(0, rows)
        after = self._slow(imagined.after)[:, 0].unflatten(0, rows)
        returns = lambda_returns(reward, discount, after, self._lambda)
        with torch.no_grad():
            weight = torch.cat([torch.ones_like(discount[:1]), discount[:-1]]).cumprod(0)  # still there
            low, high = torch.quantile(returns, torch.tensor([0.05, 0.95], device=returns.device))
            self.scale.lerp_(high - low, 1.0 if first else SCALE_RATE)
        entropy = -imagined.log_prob.unflatten(0, rows)
        aims = returns / self.scale.clamp(min=1) + self._entropy * entropy
        step(self._actor_adam, -(weight * aims).mean(), (self.actor,))
        said = self.critic(imagined.before.detach())[:, 0].unflatten(0, rows)
        error = 0.5 * (weight * (said - returns.detach()).square()).mean()
        step(self._critic_adam, error, (self.critic,))
        follow(self._slow, self.critic, self._tau)
        return {
            "critic_loss": error.detach(), "value": said.detach().mean(), "entropy": entropy.detach().mean(),
            "imagined_reward": reward.detach().mean(), "return_range": self.scale.clone(),
        }  # fmt: skip

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "actor": self.actor, "critic": self.critic, "slow": self._slow, "scale": self.scale,
            "actor_adam": self._actor_adam, "critic_adam": self._critic_adam,
        }  # fmt: skip


def step(optimiser: torch.optim.Optimizer, loss: Tensor, modules: Sequence[nn.Module]) -> None:
    """One step of these modules' weights alone, by a clipped gradient.

    Args:
        optimiser: theirs.
        loss: may depend on others' weights.
        modules: whose weights move.
    """
    weights = [weight for module in modules for weight in module.parameters()]
    optimiser.zero_grad()
    loss.backward(inputs=weights)
    nn.utils.clip_grad_norm_(weights, CLIP)
    optimiser.step()


def lambda_returns(
    reward: Float[Tensor, "P N"], discount: Float[Tensor, "P N"], value: Float[Tensor, "P N"], lambda_: float
) -> Float[Tensor, "P N"]:
    """Returns of P imagined steps: R_k = r_k + d_k ((1 − λ) v_k + λ R_{k+1}), with R_P = v of the last.

    Args:
        reward: of step k.
        discount: d_k, of what follows it: γ times the chance that the world goes on.
        value: v_k, of the state that step k leads to.
        lambda_: λ, in [0, 1]; 0 bootstraps at once, 1 only at the end.

    Source: Dreamer, arXiv 1912.01603, eq. 5 and 6, in its recursive form.
    """
    out, after = [], value[-1]
    for k in reversed(range(len(reward))):
        after = reward[k] + discount[k] * ((1 - lambda_) * value[k] + lambda_ * after)
        out.append(after)
    return torch.stack(out[::-1])
