"""What a latent world model and its policies minimise: TD-MPC2's losses (Hansen et al., arXiv 2310.16828).

The sums are told by `policies.tdmpc2`; here they are functions of a model and a batch, which move no weight.

Shape letters: B windows, T steps, K value heads, N policies, X bins, L latent, A action.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from policies.core import Batch
from policies.latent import WorldModel, log_prob
from policies.networks import MLP

REWARD, VALUE, ENDING = 0.1, 0.1, 1.0  # weights of the model's losses


def powers(rho: float, count: int, device: torch.device) -> Float[Tensor, "T 1"]:
    """ρ^t of so many steps.

    Args:
        rho: ρ.
        count: T.
        device: where to.
    """
    return (rho ** torch.arange(count, device=device))[:, None]


def targets(
    model: WorldModel, slow: MLP, after: Float[Tensor, "TB L"], batch: Batch, noise: Float[Tensor, "N TB A"],
    *, gamma: float,
) -> Float[Tensor, "K T B"]:  # fmt: skip
    """y of each value head: the reward, and what the lesser of itself and its neighbour thinks of what follows.

    Args:
        model: with one policy, whose action all heads judge, or one for each head, which judges its own policy's.
        slow: the target heads.
        after: latents after each step.
        batch: T·B steps.
        noise: standard normal, of the policies' actions.
        gamma: γ.
    """
    actions = model.policy(after, noise).action
    if len(actions) > 1:  # head k and its neighbour on policy k's action
        own = model.values(slow, after, actions)
        other = model.values(slow, after, actions.roll(1, 0)).roll(-1, 0)
    else:
        own = model.values(slow, after, actions[0])
        other = own.roll(-1, 0)
    least = torch.minimum(own, other).unflatten(1, batch.reward.shape)
    return batch.reward + gamma * ~batch.terminated * least


def model_loss(
    model: WorldModel, batch: Batch, latents: Float[Tensor, "T1 B L"], after: Float[Tensor, "T B L"],
    target: Float[Tensor, "K T B"], *, rho: float, consistency: float,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The loss, and its parts without their weights.

    Args:
        model: the world model.
        batch: T steps of B windows.
        latents: imagined, the first of them seen.
        after: what was really seen after each step.
        target: y.
        rho: ρ.
        consistency: weight of the imagined latents' error.
    """
    count = batch.valid.sum()
    weight = powers(rho, len(batch.valid), after.device) * batch.valid
    z, action = latents[:-1].flatten(0, 1), batch.action.flatten(0, 1)

    def mean(each: Tensor) -> Tensor:
        return (weight * each).sum() / count

    away = mean((latents[1:] - after).square().mean(-1))
    logits = model.rewards(torch.cat([z, action], -1))
    reward = mean(model.two_hot.loss(logits, batch.reward.flatten()).unflatten(0, weight.shape))
    logits = model.logits(model.critics, z, action)
    value = mean(model.two_hot.loss(logits, target.flatten(1)).mean(0).unflatten(0, weight.shape))
    loss = consistency * away + REWARD * reward + VALUE * value
    out = {"consistency_loss": away, "reward_loss": reward, "value_loss": value}
    if model.ends is not None:
        said = model.ends(latents[1:].flatten(0, 1))[:, 0].unflatten(0, weight.shape)
        ending = mean(binary_cross_entropy_with_logits(said, batch.terminated.float(), reduction="none"))
        loss, out["ending_loss"] = loss + ENDING * ending, ending
    return loss, {name: each.detach() for name, each in out.items()}


class Wish(NamedTuple):
    """What policies would do in some windows, and what it is thought worth.

    Attributes:
        z: (T1·B, L), T1 = T + 1.
        q: (N, T1, B) of each policy's drawn actions, by its own head, or the mean of all where there is one policy.
        log_prob: (N, T1, B) of those actions.
        weight: (T1, B) ρ^t, 0 in padding.
        reached: (T1, B) bool, no padding.
    """

    z: Tensor
    q: Tensor
    log_prob: Tensor
    weight: Tensor
    reached: Tensor


def wish(
    model: WorldModel, latents: Float[Tensor, "T1 B L"], valid: Tensor, noise: Float[Tensor, "N TB A"], *, rho: float
) -> Wish:
    """Draw the policies' actions, and ask the value heads.

    Args:
        model: the world model.
        latents: of T + 1 moments, without gradient.
        valid: (T, B) bool.
        noise: standard normal, for T + 1 times B.
        rho: ρ.
    """
    reached = torch.cat([torch.ones_like(valid[:1]), valid])
    weight, z = powers(rho, len(reached), latents.device) * reached, latents.flatten(0, 1)
    drawn = model.policy(z, noise)
    if len(noise) > 1:
        q = model.values(model.critics, z, drawn.action)
    else:
        q = model.values(model.critics, z, drawn.action[0]).mean(0, keepdim=True)
    return Wish(z, q.unflatten(1, weight.shape), drawn.log_prob.unflatten(1, weight.shape), weight, reached)


def policy_loss(wished: Wish, scale: Tensor, *, entropy: float) -> Tensor:
    """−Q / S less what an action's entropy is worth, each policy's own, summed.

    Args:
        wished: the policies' actions.
        scale: S, > 0.
        entropy: weight of −log π.
    """
    gain = wished.q / scale - entropy * wished.log_prob
    return -(wished.weight * gain).sum() / wished.reached.sum()


def misalignment(model: WorldModel, wished: Wish, batch: Batch, scale: Tensor) -> Tensor:
    """BOOM's −Σ_b softmax_b(Q / S) log π(a_b) of the planner's actions, a mean over the steps that have one.

    Args:
        model: the world model.
        wished: the policies' own actions, from the same latents.
        batch: what was done there.
        scale: S, > 0.
    """
    T, B = batch.valid.shape
    mean, log_std = model.gaussian(wished.z[: T * B])
    density = log_prob(mean, log_std, batch.action.flatten(0, 1)).unflatten(1, (T, B))
    q = (wished.q / scale).detach()
    share = q[:, :T].masked_fill(~batch.valid, -torch.inf).softmax(-1).nan_to_num(0)
    return -(share * density * wished.weight[:T]).sum((0, 2)).mean()


def imitation(model: WorldModel, z: Float[Tensor, "TB L"], batch: Batch) -> Float[Tensor, " N"]:
    """Each policy's mean squared error of the actions that are to be imitated; 0 where there are none.

    Args:
        model: the world model.
        z: latents of T·B steps, or of more, of which the first count.
        batch: what was done there.
    """
    counts = (batch.imitate & batch.valid).flatten().float()
    best = torch.tanh(model.gaussian(z[: len(counts)])[0])
    error = (best - batch.action.flatten(0, 1)).square().mean(-1)
    return (error * counts).sum(-1) / counts.sum().clamp(min=1)


def spread(values: Tensor) -> Tensor:
    """From the 5th to the 95th percentile.

    Args:
        values: any shape.
    """
    low, high = torch.quantile(values.flatten(), torch.tensor([0.05, 0.95], device=values.device))
    return high - low
