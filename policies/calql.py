"""Cal-QL: a critic that is held down where nothing was seen, but never below what the data earned.

Nakamoto et al., arXiv 2303.05479, with CQL's regulariser (arXiv 2006.04779) in its importance-sampled form:

    L = ½ Σ_k (Q_k − y)² + α Σ_k mean(logsumexp over 3·n actions of [Q_k(s, u) − A log ½,
        max(Q_k(s, a), μ) − log π(a|s), max(Q_k(s, b), μ) − log π(b|s')] − Q_k(s, a_data)),
    u uniform, a ~ π(·|s), b ~ π(·|s'), μ the return that was seen

Departures. Where the return is not known, because the episode was cut or still runs, μ = −∞ (plain CQL), not
r / (1 − γ). Targets use one drawn action and its entropy, as in SAC, not the best of ten. Offline updates are the
pretraining, on demonstrations; afterwards batches are mixed. No Lagrange multiplier for α.

Shape letters: B batch, K critics, N actions drawn, A action.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor

from policies.core import Batch, Memory, Obs, map_leaves
from policies.networks import flat
from policies.saving import State
from policies.settings import maker
from policies.soft import SoftLearner, SoftSettings


@dataclass(frozen=True, kw_only=True)
class CalQLSettings(SoftSettings):
    """What can be set, beside `SoftSettings`.

    Attributes:
        conservatism: α of the regulariser.
        drawn: n, actions drawn of each kind.
        calibrated: whether with floors; without, it is CQL.
    """

    conservatism: float = 1.0
    drawn: int = 4
    calibrated: bool = True


class CalQL(SoftLearner[CalQLSettings]):
    """The learner; see the module.

    Args:
        observation_space: vectors.
        action_space: a Box.
        seed: of weights, exploration and updates.
        device: where the networks live.
        settings: see `CalQLSettings`.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        seed: int,
        device: str,
        settings: CalQLSettings,
    ) -> None:
        super().__init__(
            observation_space, action_space, seed=seed, device=device, settings=settings, returns=settings.calibrated
        )
        self.pretrained = False

    @torch.no_grad()
    def act(self, obs: Obs, memory: Memory, first: np.ndarray, *, explore: bool) -> tuple[np.ndarray, Memory]:
        """(E, A) in [-1, 1]; at first random, where nothing was learned before."""
        x = flat(obs).to(self.device)
        if not explore:
            return self._soft.policy.best(x).cpu().numpy(), memory
        noise = torch.randn(len(x), self.num_actions, generator=self._acting)
        if not self.pretrained and self.steps < self.settings.learning_starts:
            return torch.rand(noise.shape, generator=self._acting).mul(2).sub(1).numpy(), memory
        return self._soft.sample(self._soft.policy.norm(x), noise.to(self.device)).action.cpu().numpy(), memory

    def _update(self, batch: Batch) -> dict[str, Tensor]:
        if not self.steps:  # offline
            self.pretrained = True
            if self.settings.standardise:
                self._soft.policy.norm.add(flat(map_leaves(lambda leaf: leaf[0], batch.obs)))
        return self._soft.update(batch, on_critics=self._conserve)

    def _conserve(self, batch: Batch, x: Tensor, q: Tensor) -> Tensor:
        n, A, soft = self.settings.drawn, self.num_actions, self._soft
        wide = x.repeat_interleave(n, 0)
        with torch.no_grad():
            after = soft.inputs(map_leaves(lambda leaf: leaf[1], batch.obs)).repeat_interleave(n, 0)
            here, there = (soft.sample(each, soft.noise(len(wide))) for each in (wide, after))
            uniform = torch.rand(here.action.shape, generator=soft.generator, device=self.device) * 2 - 1
        actions = torch.cat([uniform, here.action, there.action])
        values = soft.critics(wide.repeat(3, 1), actions).unflatten(1, (3, len(x), n)).transpose(1, 2)  # (K, B, 3, n)
        log_probs = torch.stack([torch.full_like(here.log_prob, A * math.log(0.5)), here.log_prob, there.log_prob])
        floor = batch.returns[0] if batch.returns is not None else torch.full_like(batch.reward[0], torch.nan)
        held = conservative(values, log_probs.unflatten(1, (len(x), n)).transpose(0, 1), floor, q)
        return self.settings.conservatism * held

    def state(self) -> State:
        """Everything that continuing needs."""
        tensors, values = super().state()
        return tensors, values | {"pretrained": self.pretrained}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        super().load_state(tensors, values)
        self.pretrained = values["pretrained"]


def conservative(
    values: Float[Tensor, "K B 3 N"], log_probs: Float[Tensor, "B 3 N"], floor: Float[Tensor, " B"],
    q: Float[Tensor, "K B"],
) -> Float[Tensor, ""]:  # fmt: skip
    """Σ_k mean of logsumexp(drawn actions' values − their log-densities) − q.

    Args:
        values: of uniform actions, of the policy's here, and of its next ones.
        log_probs: of the same.
        floor: μ, below which the policy's values (not the uniform ones') count as μ; NaN: no floor.
        q: of the actions in the data.
    """
    floor = floor.nan_to_num(nan=-torch.inf)[None, :, None, None]
    values = torch.cat([values[:, :, :1], values[:, :, 1:].maximum(floor)], 2)
    return ((values - log_probs).flatten(2).logsumexp(-1) - q).mean(1).sum()


calql = maker(CalQL, CalQLSettings)
