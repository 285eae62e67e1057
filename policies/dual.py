"""A constraint's multiplier that follows it while training moves both."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Dual:
    """A Lagrange multiplier, learned by ascent on its logarithm.

        log m ← log m + rate · clip(violation, −1, 1)

    so that it doubles or halves within ln 2 / rate updates whatever its size, and follows a constraint that training
    keeps moving. RePo's official code lets Adam climb at 10⁻⁴ from 10⁻⁵, which bounds the multiplier by the number of
    updates; see `docs/methods/world-models.md`.

    Args:
        value: with which it begins, > 0.
        rate: of the ascent; 0 leaves it as it is.
        device: where it lies.
    """

    LOW, HIGH = 1e-8, 1e4  # a multiplier out there has lost its constraint

    def __init__(self, value: float, rate: float, device: torch.device) -> None:
        self.rate = rate
        self.log = torch.tensor(float(np.log(value)), device=device)

    @property
    def value(self) -> Tensor:
        """m."""
        return self.log.exp()

    @torch.no_grad()
    def step(self, violation: Tensor) -> None:
        """Rise where the constraint is broken (> 0), fall where there is slack."""
        moved = self.log + self.rate * violation.clamp(-1, 1)
        self.log.copy_(moved.clamp(float(np.log(self.LOW)), float(np.log(self.HIGH))))
