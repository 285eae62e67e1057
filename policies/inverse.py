"""An inverse model: which action led from one observation to the next. It gives videos the actions they lack.

As in video pretraining (Baker et al., arXiv 2206.11795, §3.1) and "Bootstrapping world models from dynamics models in
multimodal foundation models" (arXiv 2506.06006): that is far easier to learn than what an action will lead to. Here an
MLP reads an observation and its change, each standardised, so that small changes count.

Shape letters: B batch, T steps, S flat observation, A action.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from policies.core import Batch, Obs, Sampling, map_leaves
from policies.networks import MLP, Standardise, action_size, adam, choose_device, flat, flat_size
from policies.saving import State, pack, unpack
from policies.settings import settings_of


@dataclass(frozen=True, kw_only=True)
class InverseSettings:
    """What can be set.

    Attributes:
        learning_rate: Adam's.
        batch_size: steps an update.
        network: widths of the hidden layers.
        norm: whether with LayerNorm.
    """

    learning_rate: float = 1e-3
    batch_size: int = 256
    network: tuple[int, ...] = (256, 256)
    norm: bool = True


class ActionNet(nn.Module):
    """What stood before and how it changed, each standardised, to the action between.

    Args:
        size: S, of what stands before and after.
        actions: A.
        widths: of the hidden layers.
        generator: of the first weights.
        norm: whether with LayerNorm.
    """

    def __init__(
        self, size: int, actions: int, widths: Sequence[int], *, generator: torch.Generator, norm: bool = True
    ) -> None:
        super().__init__()
        self.mlp = MLP(2 * size, widths, actions, generator=generator, norm=norm)
        self.norm, self.change = Standardise(size), Standardise(size)

    def forward(self, before: Float[Tensor, "B S"], after: Float[Tensor, "B S"]) -> Float[Tensor, "B A"]:
        """Not bounded, so that its gradient never dies."""
        return self.mlp(torch.cat([self.norm(before), self.change(after - before)], -1))

    def add(self, before: Float[Tensor, "B S"], after: Float[Tensor, "B S"]) -> None:
        """Count more pairs into the means and deviations."""
        self.norm.add(before)
        self.change.add(after - before)


class Inverse:
    """The model; see the module.

    Args:
        observation_space: vectors.
        action_space: a Box.
        seed: of the weights.
        device: where the network lives.
        settings: see `InverseSettings`.

    Attributes:
        sampling: the batches that `update` wants; every step counts, whoever did it.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        seed: int,
        device: str,
        settings: InverseSettings,
    ) -> None:
        size, actions = flat_size(observation_space, "inverse"), action_size(action_space, "inverse")
        self.device = torch.device(device)
        self.sampling = Sampling(length=1, batch_size=settings.batch_size)
        build = torch.Generator().manual_seed(seed)
        self.net = ActionNet(size, actions, settings.network, generator=build, norm=settings.norm).to(self.device)
        self._adam = adam(self.net, settings.learning_rate)

    def update(self, batches: Iterator[Batch], count: int) -> dict[str, float]:
        """So many steps towards the actions that were done."""
        errors = []
        for _ in range(count):
            batch = next(batches).to(self.device)
            before, after = (flat(map_leaves(lambda leaf, k=k: leaf[k], batch.obs)) for k in (0, 1))
            self.net.add(before, after)
            error = (self.net(before, after) - batch.action[0]).square().mean()
            self._adam.zero_grad()
            error.backward()
            self._adam.step()
            errors.append(error.detach())
        return {"inverse_error": float(torch.stack(errors).mean())} if errors else {}

    @torch.no_grad()
    def label(self, obs: Obs) -> np.ndarray:
        """(T, A) float32 in [-1, 1]: the actions of an episode of T + 1 observations."""
        x = flat(obs).to(self.device)
        return self.net(x[:-1], x[1:]).clamp(-1, 1).cpu().numpy()

    def state(self) -> State:
        """Everything that continuing needs."""
        return pack({"net": self.net, "adam": self._adam}), {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Undo of `state`."""
        unpack("Inverse.load_state", {"net": self.net, "adam": self._adam}, tensors)


def r_squared(said: np.ndarray, done: np.ndarray) -> float:
    """Share of the actions' variance that is explained, over all of (T, A); 1 is perfect, 0 as good as their mean,
    and where they never vary.

    Args:
        said: (T, A) what was inferred.
        done: (T, A).
    """
    rest = np.square(done - said).sum(dtype=np.float64)
    variance = np.square(done - done.mean(0)).sum(dtype=np.float64)
    return float(1 - rest / variance) if variance else 0.0


def inverse(
    observation_space: spaces.Space, action_space: spaces.Space, *, seed: int, device: str = "auto", **settings: Any
) -> Inverse:
    """An inverse model for vectors and continuous actions.

    Args:
        observation_space: vectors.
        action_space: a Box.
        seed: of the weights.
        device: "auto", "cuda", "mps" or "cpu".
        settings: see `InverseSettings`.
    """
    made = settings_of(InverseSettings, settings)
    return Inverse(observation_space, action_space, seed=seed, device=choose_device(device), settings=made)
