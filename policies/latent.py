"""The parts of a world model that predicts in a latent space: TD-MPC2's (Hansen et al., arXiv 2310.16828).

    z = h(o)    z' = d(z, a)    r = R(z, a)    q = Q(z, a)    a ~ π(z)

Departures. SiLU in place of Mish, no dropout, this package's first weights, and a standardised observation before h.

Shape letters: B batch, K value heads, N policies (1 or K), X bins, L latent, A action; `…` any shape; H, W image.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from policies.core import leaves, map_leaves
from policies.networks import MLP, LayerNorm, Sample, Standardise, squashed
from policies.pixels import random_shift

GROUP = 8  # entries of a latent that sum to 1
LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0
STRIDES = ((7, 2), (5, 2), (3, 2), (3, 1))  # kernels and strides of the convolutions
CHANNELS = 32


# Numbers as weights of bins --------------------------------------------------------------------------------


def symlog(x: Tensor) -> Tensor:
    """sign(x) · log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Undo of `symlog`.

    Args:
        x: any shape.
    """
    return x.sign() * x.abs().expm1()


class TwoHot(nn.Module):
    """Numbers as weights of two neighbouring bins, evenly apart in symlog's units, in which their mean is taken.

    Args:
        bins: X, odd, so that one of them is 0.
        bound: of the outermost bins, in symlog's units; what lies beyond is told as it.

    Raises:
        ValueError: `bins` is even or below 3.
    """

    def __init__(self, bins: int, bound: float = 10.0) -> None:
        super().__init__()
        if bins < 3 or bins % 2 == 0:
            raise ValueError(f"TwoHot: bins must be odd and at least 3; got {bins}.")
        self.side, self.bound = bins // 2, bound
        self.register_buffer("positive", torch.arange(1, self.side + 1) * (bound / self.side), persistent=False)

    positive: Tensor

    def _place(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The lower of the two bins, and the weight of the upper one."""
        place = symlog(x).clamp(-self.bound, self.bound) * (self.side / self.bound) + self.side
        low = place.floor().clamp(max=2 * self.side - 1)
        return low.long(), place - low

    def encode(self, x: Float[Tensor, "*S"]) -> Float[Tensor, "*S X"]:
        """Weights that sum to 1."""
        low, upper = self._place(x)
        out = x.new_zeros(*x.shape, 2 * self.side + 1)
        out.scatter_(-1, low[..., None], 1 - upper[..., None])
        return out.scatter_(-1, low[..., None] + 1, upper[..., None])

    def decode(self, weights: Float[Tensor, "*S X"]) -> Float[Tensor, "*S"]:
        """The number; weights alike on both sides of 0 give exactly 0."""
        above, below = weights[..., self.side + 1 :], weights[..., : self.side].flip(-1)
        return symexp((above - below) @ self.positive)

    def expected(self, logits: Float[Tensor, "*S X"]) -> Float[Tensor, "*S"]:
        """The number that logits tell."""
        return self.decode(logits.softmax(-1))

    def loss(self, logits: Float[Tensor, "*S X"], x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
        """Cross-entropy of the logits to a number's weights."""
        low, upper = self._place(x)
        log_probs = logits.log_softmax(-1)
        one, two = (log_probs.gather(-1, low[..., None] + k)[..., 0] for k in (0, 1))
        return -((1 - upper) * one + upper * two)


def simnorm(x: Float[Tensor, "*S L"]) -> Float[Tensor, "*S L"]:
    """A softmax within each group of eight entries.

    Args:
        x: L is a multiple of eight.
    """
    return x.unflatten(-1, (-1, GROUP)).softmax(-1).flatten(-2)


# Networks --------------------------------------------------------------------------------------------------


class Size(NamedTuple):
    """Widths: of the encoder and how many layers, of all other networks, of the latent; and how many value heads.

    Attributes:
        encoder, width, latent: units.
        layers: of the encoder.
        critics: value heads.
    """

    encoder: int
    layers: int
    width: int
    latent: int
    critics: int


SIZES = {  # those below 1M are ours, the others the paper's
    "0.1M": Size(64, 1, 96, 48, 2),
    "0.3M": Size(128, 1, 192, 64, 2),
    "1M": Size(256, 2, 384, 128, 2),
    "5M": Size(256, 2, 512, 512, 5),
    "19M": Size(1024, 3, 1024, 768, 5),
    "48M": Size(1792, 4, 1792, 768, 5),
    "317M": Size(4096, 5, 4096, 1376, 8),
}


class LatentEncoder(nn.Module):
    """Vectors, images, or dictionaries of both to a latent.

    Args:
        space: of the observations; images are uint8 (H, W, channels).
        size: see `Size`.
        generator: of the first weights.

    Raises:
        ValueError: an observation that is neither, or an image too small for the convolutions.
    """

    def __init__(self, space: spaces.Space, size: Size, *, generator: torch.Generator) -> None:
        super().__init__()
        boxes = leaves(space.spaces if isinstance(space, spaces.Dict) else space)
        self.images = sorted(name for name, box in boxes.items() if _is_image(box))
        self.vectors = sorted(set(boxes) - set(self.images))
        for name in self.vectors:
            box = boxes[name]
            if not isinstance(box, spaces.Box) or len(box.shape) != 1:
                what = f"observation {name!r}" if name else "observations"
                raise ValueError(f"tdmpc2: {what} must be a vector or a uint8 image (H, W, channels); got {box}.")
        self.norm = Standardise(sum(boxes[name].shape[0] for name in self.vectors))
        self.convs = nn.ModuleList(_Pixels(boxes[name].shape, generator=generator) for name in self.images)
        inputs = len(self.norm.shift) + sum(conv.outputs for conv in self.convs)  # pyright: ignore
        widths = (size.encoder,) * size.layers
        self.mlp = MLP(inputs, widths, size.latent, generator=generator, activation=nn.functional.silu)
        self.out = LayerNorm(size.latent)

    def vector(self, obs: Any) -> Tensor:
        """(…, S) float32, all vectors of an observation."""
        parts = leaves(obs)
        first = next(iter(parts.values()))
        if not self.vectors:
            return first.new_zeros(*first.shape[:-3], 0, dtype=torch.float32)
        return torch.cat([parts[name].float() for name in self.vectors], -1)

    def forward(self, obs: Any) -> Float[Tensor, "B L"]:
        parts = leaves(obs)
        seen = [conv(parts[name]) for name, conv in zip(self.images, self.convs, strict=True)]
        return simnorm(self.out(self.mlp(torch.cat([self.norm(self.vector(obs)), *seen], -1))))

    def shifted(self, obs: Any, generator: torch.Generator) -> Any:
        """The observations (B, …), each image moved at random (`policies.pixels.random_shift`)."""
        if not self.images:
            return obs
        out = {
            name: random_shift(leaf, generator) if name in self.images else leaf for name, leaf in leaves(obs).items()
        }
        return out if isinstance(obs, dict) else out[""]


class _Pixels(nn.Module):
    """(B, H, W, C) uint8 to (B, outputs)."""

    def __init__(self, shape: tuple[int, ...], *, generator: torch.Generator) -> None:
        super().__init__()
        height, width, channels = shape
        layers: list[nn.Module] = []
        for kernel, stride in STRIDES:
            conv = nn.utils.skip_init(nn.Conv2d, channels, CHANNELS, kernel, stride)  # it would draw from torch's own
            bound = 1 / math.sqrt(channels * kernel * kernel)
            for weight in conv.parameters():
                nn.init.uniform_(weight, -bound, bound, generator=generator)
            layers += [conv, nn.ReLU()]
            channels = CHANNELS
            height, width = ((side - kernel) // stride + 1 for side in (height, width))
        if min(height, width) < 1:
            raise ValueError(f"tdmpc2: images must be at least 45 pixels high and wide; got {shape[:2]}.")
        self.layers = nn.Sequential(*layers)
        self.outputs = CHANNELS * height * width

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image.movedim(-1, -3) / 255 - 0.5).flatten(1)


def _is_image(box: spaces.Space) -> bool:
    return isinstance(box, spaces.Box) and len(box.shape) == 3 and box.dtype == torch.empty(0).byte().numpy().dtype


class WorldModel(nn.Module):
    """Encoder, dynamics, reward, values and policies.

    Args:
        space: of the observations.
        num_actions: A.
        size: see `Size`.
        bins: X, of rewards and values.
        policies: N: 1, or one for each value head.
        terminations: whether it predicts where the task ends.
        generator: of the first weights.
    """

    def __init__(
        self, space: spaces.Space, num_actions: int, *, size: Size, bins: int, policies: int, terminations: bool,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        super().__init__()

        def network(inputs: int, outputs: int, count: int = 1) -> MLP:
            widths = (size.width, size.width)
            return MLP(inputs, widths, outputs, generator=generator, count=count, activation=nn.functional.silu)

        both = size.latent + num_actions
        self.encoder = LatentEncoder(space, size, generator=generator)
        self.dynamics, self.out = network(both, size.latent), LayerNorm(size.latent)
        self.rewards = network(both, bins)
        self.critics = network(both, bins, size.critics)
        self.policies = network(size.latent, 2 * num_actions, policies)
        self.ends = network(size.latent, 1) if terminations else None
        self.two_hot = TwoHot(bins)
        for head in (self.rewards.head, self.critics.head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def next(self, z: Float[Tensor, "B L"], action: Float[Tensor, "B A"]) -> Float[Tensor, "B L"]:
        """The latent after an action."""
        return simnorm(self.out(self.dynamics(torch.cat([z, action], -1))))

    def reward(self, z: Float[Tensor, "B L"], action: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """Of an action."""
        return self.two_hot.expected(self.rewards(torch.cat([z, action], -1)))

    def ending(self, z: Float[Tensor, "B L"]) -> Float[Tensor, " B"] | float:
        """How likely the task has ended in a latent; 0 where that is not predicted."""
        return 0.0 if self.ends is None else self.ends(z)[:, 0].sigmoid()

    def logits(self, critics: MLP, z: Float[Tensor, "*K B L"], action: Tensor) -> Float[Tensor, "K B X"]:
        """What the value heads say of actions: (B, A) for all, or (K, B, A), each head its own."""
        if action.dim() > z.dim():
            z = z.expand(*action.shape[:-1], -1)
        out = critics(torch.cat([z, action], -1))
        return out if out.dim() == 3 else out[None]

    def values(self, critics: MLP, z: Tensor, action: Tensor) -> Float[Tensor, "K B"]:
        """The same as numbers."""
        return self.two_hot.expected(self.logits(critics, z, action))

    def gaussian(self, z: Float[Tensor, "*N B L"]) -> tuple[Float[Tensor, "N B A"], Float[Tensor, "N B A"]]:
        """Means and logs of the standard deviations of the policies, before the squashing.

        Args:
            z: for all policies, or each policy its own.
        """
        single = len(self.policies.head.weight) == 1
        out = self.policies(z[0] if single and z.dim() == 3 else z)
        mean, raw = (out[None] if single else out).chunk(2, -1)
        return mean, LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(raw) + 1)

    def policy(self, z: Float[Tensor, "*N B L"], noise: Float[Tensor, "N B A"]) -> Sample:
        """Actions of the policies, (N, B, A), and their log-densities."""
        mean, log_std = self.gaussian(z)
        return squashed(mean, log_std, noise)


def log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """(…) log-density of actions (…, A) in [-1, 1] under squashed Gaussians; at ±1 as at ±0.999, where it is finite.

    Args:
        mean, log_std: (…, A) of the Gaussian before tanh.
        action: (…, A).
    """
    u = torch.atanh(action.clamp(-0.999, 0.999))
    return squashed(mean, log_std, (u - mean) * (-log_std).exp()).log_prob


def flatten(obs: Any) -> Any:
    """(T, B, …) as (T·B, …).

    Args:
        obs: an array, or a dictionary of some.
    """
    return map_leaves(lambda leaf: leaf.flatten(0, 1), obs)
