"""SGFD: samples weighted so that the features that a policy reads vary independently, what its looks change first.

Huang et al., "Learning generalizable agents via saliency-guided features decorrelation", arXiv 2310.05086. A policy
that is trained on such samples cannot lean on what merely goes together in its training worlds. A classifier of the
worlds' looks tells which features those change (guided backpropagation); random Fourier features make more than linear
dependence count. Only the actor's loss is weighted.

Departures. The looks are our worlds' varied ones (`env.looks`), any number of them. The classifier has one hidden
layer and learns from the first update on, not from the 100,000th step; features and weights of former batches are
remembered from the first batch on, not mixed with zeros.

Shape letters: B batch, N samples with the remembered ones, F features, L looks, M Fourier maps, G hidden units.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int16
from torch import Tensor, nn

from policies.networks import MLP

MAPS = 5
STEPS, RATES, MOMENTUM = 20, (1.0, 0.1), 0.9  # of the descent on the weights, the rates half of the steps each
EVENNESS = 5.0  # weight of Σ w²
KEEP, MEAN_OF = 0.9, 10  # of what is remembered; the first ten batches are averaged
SHARPNESS = 7.0  # of the saliency
HIDDEN, RATE, DECAY, ACCURACY = 256, 0.01, 1e-4, 0.8  # of the classifier, which learns while it is no better than this
EVERY = 10  # weightings for one step of the classifier


class Decorrelation(nn.Module):
    """The weights of a batch's samples, and what they are found with.

    Args:
        features: F.
        looks: L, of the classifier.
        batch_size: B.
        generator: of the classifier's first weights.
    """

    def __init__(self, features: int, looks: int, batch_size: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.classifier = MLP(features, (HIDDEN,), looks, generator=generator, norm=False)
        self.register_buffer("past", torch.zeros(batch_size, features))
        self.register_buffer("past_logits", torch.zeros(batch_size))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    past: Tensor
    past_logits: Tensor
    count: Tensor

    def weights(
        self, features: Float[Tensor, "B F"], look: Int16[Tensor, " B"], generator: torch.Generator
    ) -> tuple[Float[Tensor, " B"], dict[str, Tensor]]:
        """Weights of a batch, which sum to 1; and metrics.

        Args:
            features: what the policy reads.
            look: of each sample, −1 where it is not known.
            generator: of the Fourier maps.

        Raises:
            ValueError: a look that the classifier has no place for, or none known at all.
        """
        features = features.detach()
        out = self._learn(features, look) if not int(self.count) % EVERY else {}
        importance = saliency(self.classifier, features)
        logits = self._descend(features, importance, generator)
        seen = int(self.count)
        keep = seen / (seen + 1) if seen < MEAN_OF else KEEP
        self.past.mul_(keep).add_(features, alpha=1 - keep)
        self.past_logits.mul_(keep).add_(logits, alpha=1 - keep)
        self.count += 1
        weights = logits.softmax(0)
        return weights, out | {"effective_samples": 1 / weights.square().sum()}

    def _descend(self, features: Tensor, importance: Tensor, generator: torch.Generator) -> Tensor:
        """(B,) logits of the weights: 20 steps with momentum, each on Fourier maps of its own."""
        known = bool(self.count)
        everything = torch.cat([features, self.past]) if known else features
        logits, velocity = torch.zeros_like(self.past_logits), torch.zeros_like(self.past_logits)
        for step in range(STEPS):
            logits.requires_grad_()
            every = torch.cat([logits, self.past_logits]) if known else logits
            slope = torch.randn(MAPS, generator=generator, device=generator.device)
            phase = 2 * math.pi * torch.rand(features.shape[1], MAPS, generator=generator, device=generator.device)
            apart = dependence(fourier(everything, slope, phase), every.softmax(0), importance)
            uneven = logits.softmax(0).square().sum()
            loss = apart / apart.detach().clamp(min=1e-12) + EVENNESS * uneven / uneven.detach()
            (slope_of,) = torch.autograd.grad(loss, logits)
            velocity = MOMENTUM * velocity + slope_of
            logits = (logits - RATES[step >= STEPS // 2] * velocity).detach()
        return logits

    def _learn(self, features: Tensor, look: Tensor) -> dict[str, Tensor]:
        """A step of the classifier, unless it tells the looks well enough."""
        known, looks = look >= 0, self.classifier.head.bias.shape[-1]
        if not known.any():
            raise ValueError("sgfd: looks must be told apart, but no look is known. Vary them: env.looks=4.")
        if int(look.max()) >= looks:
            raise ValueError(f"sgfd: looks must be as many as the worlds show; got {looks} for look {int(look.max())}.")
        told = self.classifier(features[known])
        accuracy = (told.argmax(-1) == look[known]).float().mean()
        if accuracy < ACCURACY:
            weights = list(self.classifier.parameters())
            slopes = torch.autograd.grad(nn.functional.cross_entropy(told, look[known].long()), weights)
            with torch.no_grad():
                for weight, slope in zip(weights, slopes, strict=True):
                    weight -= RATE * (slope + DECAY * weight)
        return {"look_accuracy": accuracy}


@torch.no_grad()
def saliency(classifier: MLP, features: Float[Tensor, "B F"]) -> Float[Tensor, "F F"]:
    """S = p pᵀ,  p = 7 · softmax(mean_b |a_b|): how much the looks change each pair of features.

    a_b is the guided backpropagation of the logits' mean: gradients pass a hidden unit where both it and they are
    positive. One hidden layer: a_b = W₁ (1{h_b > 0} ⊙ relu(mean of W₂'s columns, each before the mean)).

    Args:
        classifier: of looks.
        features: of one batch.
    """
    (hidden,) = classifier.hidden(features)
    down = torch.relu(classifier.head.weight[0]).mean(-1)  # (G,), each look's gradient is rectified by itself
    through = ((hidden > 0).float() * down) @ classifier.layers[0].weight[0].T  # pyright: ignore
    p = SHARPNESS * through.abs().mean(0).softmax(0)
    return torch.outer(p, p)


def fourier(
    features: Float[Tensor, "N F"], slope: Float[Tensor, " M"], phase: Float[Tensor, "F M"]
) -> Float[Tensor, "N F 2*M"]:
    """√(2/M) · [cos, sin] of slope · feature + phase, which for each map spreads a sample's features over [0, π/2]."""
    angle = features[..., None] * slope + phase
    angle = angle - angle.amin(1, keepdim=True)
    angle = angle / angle.amax(1, keepdim=True).clamp(min=1e-9) * (math.pi / 2)
    return math.sqrt(2 / len(slope)) * torch.cat([angle.cos(), angle.sin()], -1)


def dependence(waves: Float[Tensor, "N F C"], weights: Float[Tensor, " N"], importance: Float[Tensor, "F F"]) -> Tensor:
    """Σ_c Σ_{i≠j} S_ij Cov_w(x_ic, x_jc)², the covariances under the weights, which sum to 1.

    Args:
        waves: random Fourier features.
        importance: S of `saliency`.
    """
    weighted = waves * weights[:, None, None]
    mean = weighted.sum(0).T  # (C, F)
    covariance = weighted.permute(2, 1, 0) @ waves.permute(2, 0, 1) - mean[:, :, None] * mean[:, None, :]
    total = covariance.square() * importance
    return total.sum() - total.diagonal(dim1=1, dim2=2).sum()
