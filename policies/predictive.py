"""A predictive auxiliary loss: the latents of the next steps from the latent of now and the actions done.

As in SPR (Schwarzer et al., arXiv 2007.05929, §2.2) and MR.Q (Fujimoto et al., arXiv 2501.16142, §4.1): the model is
unrolled over its own predictions, towards latents of a target network, which get no gradient.

Departures. Squared errors, as in MR.Q, without its rewards and endings and without SPR's projections: the latents are
those that the critic reads, so its own loss keeps them from collapsing. What a window does not hold is left out, which
is what comes after a termination or a cut too; the observation that an episode ends with is predicted.

Shape letters: K steps ahead, B batch, W latent, A action.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from policies.networks import MLP

WIDTH = 256


class Predictor(nn.Module):
    """(latent, action) -> the next latent, as a change of this one.

    Args:
        latent: W.
        action: A.
        generator: of the first weights.
    """

    def __init__(self, latent: int, action: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.mlp = MLP(latent + action, (WIDTH,), latent, generator=generator)

    def forward(self, latent: Float[Tensor, "B W"], action: Float[Tensor, "B A"]) -> Float[Tensor, "B W"]:
        return latent + self.mlp(torch.cat([latent, action], -1))


def prediction_error(
    predictor: nn.Module, latent: Float[Tensor, "B W"], action: Float[Tensor, "K B A"],
    target: Float[Tensor, "K B W"], valid: Bool[Tensor, "K B"],
) -> Tensor:  # fmt: skip
    """Mean squared error of the steps ahead that were really done.

        ẑ₀ = z₀,  ẑ_{k+1} = T(ẑ_k, a_k),  L = Σ_{k,b} m_{k,b} ‖ẑ_{k+1,b} − z̄_{k+1,b}‖² / (W · Σ m)

    Args:
        predictor: T.
        latent: z₀, of now.
        action: a₀ to a_{K−1}.
        target: z̄₁ to z̄_K; no gradient goes there.
        valid: m, whether step k was done; a window's valid steps come first.
    """
    errors = []
    for k in range(len(action)):
        latent = predictor(latent, action[k])
        errors.append((latent - target[k].detach()).square().mean(-1))
    return (torch.stack(errors) * valid).sum() / valid.sum().clamp(min=1)
