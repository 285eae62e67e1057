"""The parts learners are made of. Nothing here draws from torch's global generator: whoever builds gives one.

Shape letters: B batch, K critics, I and O features in and out, S flat observation, A action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from policies.core import leaves

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0
CLIP = 10.0  # standard deviations; what lies further off is an accident
DORMANT = 0.025  # τ, DrM's threshold

T = TypeVar("T")


class Linear(nn.Module):
    """K linear layers side by side, as one batched product; K = 1 drops the axis.

    Weights begin uniform in ±1/√I, as torch's own do.

    Args:
        inputs, outputs: widths.
        generator: of the weights.
        count: K.

    Raises:
        ValueError: a width below 1.
    """

    def __init__(self, inputs: int, outputs: int, *, generator: torch.Generator, count: int = 1) -> None:
        super().__init__()
        if min(inputs, outputs) < 1:
            raise ValueError(f"Linear: widths must be at least 1; got {inputs} and {outputs}.")
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(count, inputs, outputs).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(count, 1, outputs).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Float[Tensor, "*K B I"]) -> Tensor:
        if len(self.weight) == 1:
            return torch.addmm(self.bias[0], x, self.weight[0])
        if x.dim() == 2:  # the same input for all: one wide product
            return (x @ self.weight.transpose(0, 1).flatten(1)).unflatten(1, (len(self.weight), -1)).transpose(
                0, 1
            ) + self.bias
        return torch.baddbmm(self.bias, x, self.weight)


class LayerNorm(nn.Module):
    """K layer norms side by side, each with its own scale and offset.

    Args:
        width: of the last axis.
        count: K.
    """

    def __init__(self, width: int, *, count: int = 1) -> None:
        super().__init__()
        shape = (width,) if count == 1 else (count, 1, width)
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1:]
        if self.weight.dim() == 1:
            return nn.functional.layer_norm(x, width, self.weight, self.bias)
        return torch.addcmul(self.bias, nn.functional.layer_norm(x, width), self.weight)


class MLP(nn.Module):
    """Linear → LayerNorm → ReLU for each width, then a linear head; K of them side by side.

    Args:
        inputs: I.
        widths: of the hidden layers.
        outputs: O.
        generator: of the first weights.
        norm: whether with LayerNorm.
        count: K.
        activation: in place of ReLU.
    """

    def __init__(
        self, inputs: int, widths: Sequence[int], outputs: int, *, generator: torch.Generator, norm: bool = True,
        count: int = 1, activation: Callable[[Tensor], Tensor] = torch.relu,
    ) -> None:  # fmt: skip
        super().__init__()
        self._activation = activation
        sizes = [inputs, *widths]
        self.layers = nn.ModuleList(Linear(i, o, generator=generator, count=count) for i, o in pairwise(sizes))
        self.norms = nn.ModuleList(LayerNorm(o, count=count) for o in widths if norm)
        self.head = Linear(sizes[-1], outputs, generator=generator, count=count)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x)[-1] if len(self.layers) else x)

    def hidden(self, x: Tensor) -> list[Tensor]:
        """The hidden layers after their activation, first to last."""
        out = []
        for k, layer in enumerate(self.layers):
            x = layer(x)
            x = self._activation(self.norms[k](x) if len(self.norms) else x)
            out.append(x)
        return out


class Critics(nn.Module):
    """K action values as one batched product.

    Args:
        observation: S.
        action: A.
        widths: of hidden layers.
        generator: of the weights.
        count: K.
    """

    def __init__(
        self, observation: int, action: int, widths: Sequence[int], *, generator: torch.Generator, count: int = 2
    ) -> None:
        super().__init__()
        self.mlp = MLP(observation + action, widths, 1, generator=generator, count=count)

    def forward(self, obs: Float[Tensor, "B S"], action: Float[Tensor, "B A"]) -> Float[Tensor, "K B"]:
        values = self.mlp(torch.cat([obs, action], -1))
        return values[..., 0] if values.dim() == 3 else values[None, :, 0]


class Sample(NamedTuple):
    """An action drawn, (B, A) in (-1, 1), its log-density, (B,), and what would be done without noise, (B, A).

    Attributes:
        action: (B, A).
        log_prob: (B,).
        best: (B, A).
    """

    action: Tensor
    log_prob: Tensor
    best: Tensor


def squashed(mean: Tensor, log_std: Tensor, noise: Tensor) -> Sample:
    """An action of a Gaussian squashed by tanh, from standard normal noise, differentiable; (…, A) each.

    log π = Σ log N(u; μ, σ) − log(1 − tanh² u), the latter as 2 (log 2 − u − softplus(−2u)), which never overflows.

    Args:
        mean, log_std: of the Gaussian.
        noise: standard normal.
    """
    u = mean + log_std.exp() * noise
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_prob = log_prob - 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))
    return Sample(torch.tanh(u), log_prob.sum(-1), torch.tanh(mean))


class GaussianActor(nn.Module):
    """A Gaussian squashed by tanh.

    Args:
        observation: S.
        action: A.
        widths: of the hidden layers.
        generator: of the first weights.
        norm: whether with LayerNorm.
        log_std: where the width of the Gaussian begins; None: wherever the weights put it, about 0.
    """

    def __init__(
        self, observation: int, action: int, widths: Sequence[int], *, generator: torch.Generator, norm: bool = False,
        log_std: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.mlp = MLP(observation, widths, 2 * action, generator=generator, norm=norm)
        if log_std is not None:
            self.narrow(log_std)

    def narrow(self, log_std: float) -> None:
        """Let the width be about the same everywhere."""
        half = self.mlp.head.bias.shape[-1] // 2
        with torch.no_grad():
            self.mlp.head.weight[..., half:] *= 0.1
            self.mlp.head.bias[..., half:] = log_std

    def forward(self, obs: Float[Tensor, "B S"]) -> tuple[Tensor, Tensor]:
        """Mean and log of the standard deviation before the squashing, (B, A) each."""
        mean, log_std = self.mlp(obs).chunk(2, -1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def best(self, obs: Float[Tensor, "B S"]) -> Float[Tensor, "B A"]:
        """The squashed mean."""
        return torch.tanh(self(obs)[0])

    def sample(self, obs: Float[Tensor, "B S"], noise: Float[Tensor, "B A"]) -> Sample:
        """An action from standard normal noise, differentiable."""
        mean, log_std = self(obs)
        return squashed(mean, log_std, noise)


class Running(nn.Module):
    """Welford's sums of what was seen: in float64, but on Apple's GPU, which has none, in float32.

    Args:
        mean: of so many numbers as are averaged; zeros.
        square: of the summed squared deviations; zeros.
    """

    def __init__(self, mean: Tensor, square: Tensor) -> None:
        super().__init__()
        for name, value in {"mean": mean, "square": square, "count": torch.zeros(())}.items():
            self.register_buffer(name, value.double())

    mean: Tensor
    square: Tensor
    count: Tensor

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Running:
        try:
            return super()._apply(fn, recurse)
        except TypeError:  # as torch refuses float64 there
            for name in ("mean", "square", "count"):
                setattr(self, name, getattr(self, name).float())
            return super()._apply(fn, recurse)


class Standardise(Running):
    """Observations as standard deviations from their running mean.

    An entry that has not changed yet is left at its scale: its deviation counts as 1.

    Args:
        width: S.
    """

    def __init__(self, width: int) -> None:
        super().__init__(torch.zeros(width), torch.zeros(width))
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    shift: Tensor
    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.shift) * self.scale).clamp(-CLIP, CLIP)

    @torch.no_grad()
    def add(self, x: Float[Tensor, "B S"]) -> None:
        """Count more observations in."""
        x, number = x.to(self.mean.dtype), len(x)
        if not number:
            return
        mean, total = x.mean(0), self.count + number
        away = mean - self.mean
        self.square += (x - mean).square().sum(0) + away.square() * self.count * number / total
        self.mean += away * number / total
        self.count.copy_(total)
        std = (self.square / self.count).sqrt()
        self.scale.copy_(torch.where(std > 1e-4, 1 / std.clamp(min=1e-4), torch.ones_like(std)))
        self.shift.copy_(self.mean)


def flat_size(space: spaces.Space, who: str) -> int:
    """S of an observation of flat vectors.

    Args:
        space: of observations.
        who: the learner, for errors.

    Raises:
        ValueError: something in it is no vector.
    """
    size = 0
    for name, box in leaves(space.spaces if isinstance(space, spaces.Dict) else space).items():
        if not isinstance(box, spaces.Box) or len(box.shape) != 1:
            what = f"observation {name!r}" if name else "observations"
            hint = "Take env.obs=points, features or state; for pictures, policy=drqv2."
            raise ValueError(f"{who}: {what} must be a vector; got {box}. {hint}")
        size += box.shape[0]
    return size


def action_size(space: spaces.Space, who: str) -> int:
    """A of continuous actions.

    Args:
        space: of actions.
        who: the learner, for errors.

    Raises:
        ValueError: they are discrete.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        instead = "policy=dqn or policy=ppo" if isinstance(space, spaces.Discrete) else "policy=ppo"
        raise ValueError(f"{who}: actions must be a Box of one axis; got {space}. Use {instead}.")
    return space.shape[0]


def flat(obs: Any) -> Tensor:
    """(…, S) float32 from an observation of vectors; entries in the order of their names.

    Args:
        obs: an array, or a dictionary of some.
    """
    parts = leaves(obs)
    tensors = [torch.as_tensor(parts[name]) for name in sorted(parts)]
    return (tensors[0] if len(tensors) == 1 else torch.cat(tensors, -1)).float()


def dormant_ratio(layers: Iterable[Float[Tensor, "... B _"]]) -> float:
    """Share of units that hardly act: mean |h| of a unit below τ of its layer's (DrM, arXiv 2310.19668, eq. 3).

    Args:
        layers: what comes out of each after its activation.
    """
    dormant = units = 0
    for layer in layers:
        size = layer.detach().abs().flatten(0, -2).mean(0) if layer.dim() == 2 else layer.detach().abs().mean(-2)
        score = size / size.mean(-1, keepdim=True).clamp(min=1e-9)
        dormant += int((score < DORMANT).sum())
        units += score.numel()
    return dormant / max(units, 1)


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Move a target network a step towards its source.

    Args:
        target: is changed.
        source: stays.
        tau: length of the step, in [0, 1].
    """
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)  # pyright: ignore


def adam(modules: Iterable[nn.Module] | nn.Module, learning_rate: float, **settings: Any) -> torch.optim.Adam:
    """Adam over the weights of some modules, one fused step where the device has it.

    Args:
        modules: one or several.
        learning_rate: α.
        settings: other ones of torch's Adam.
    """
    modules = [modules] if isinstance(modules, nn.Module) else modules
    weights = [weight for module in modules for weight in module.parameters()]
    fused = all(weight.device.type in ("cpu", "cuda", "mps") for weight in weights)
    return torch.optim.Adam(weights, lr=learning_rate, fused=fused, **settings)


def choose_device(device: str) -> str:
    """ "auto" becomes CUDA, else Apple's GPU, else the CPU.

    Args:
        device: "auto", or a torch device.
    """
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def averages(told: list[dict[str, Tensor]]) -> dict[str, float]:
    """The mean of each metric over the updates that told it."""
    names = {name for each in told for name in each}
    return {name: float(torch.stack([each[name] for each in told if name in each]).mean()) for name in sorted(names)}
