"""A recurrent state-space model: what is remembered, what is guessed before looking, what is known after it.

    h_t = GRU(h_{t−1}, s_{t−1}, a_{t−1})        deterministic
    p(s_t | h_t)                                prior: guessed
    q(s_t | h_t, e_t), e_t = encoder(o_t)       posterior: looked

Hafner et al., PlaNet (arXiv 1811.04551, §3) and Dreamer (1912.01603), as RePo has it (2309.00082): diagonal Gaussians.

Departures. Latents begin with a deviation of 0.3. The GRU is layer-normed, with an update gate that begins nearly
shut; embeddings are layer-normed too. Pictures are read less their running mean. Both h and s begin anew with an
episode, where RePo's official code masks s alone.

Shape letters: T moments, B windows, N rows of any kind, H deterministic, Z stochastic, D embedding, A action; `…` any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import skip_init

from policies.core import leaves
from policies.networks import MLP, LayerNorm, Linear, Standardise

MIN_STD = 0.1  # of a latent
SHARP = 1.5  # so that a latent's deviation begins at 0.3, where it can carry something


class Sizes(NamedTuple):
    """Widths of a world model.

    Attributes:
        channels: of the first convolution; they double with each that follows.
        embedding: D.
        deterministic: H.
        stochastic: Z.
        hidden: of every hidden layer.
    """

    channels: int
    embedding: int
    deterministic: int
    stochastic: int
    hidden: int


SIZES = {
    "small": Sizes(8, 64, 64, 16, 64),
    "medium": Sizes(16, 128, 128, 30, 128),
    "paper": Sizes(32, 1024, 200, 30, 200),
}


class State(NamedTuple):
    """Where a world is believed to be.

    Attributes:
        h: (…, H).
        s: (…, Z).
    """

    h: Tensor
    s: Tensor

    @property
    def features(self) -> Tensor:
        """What heads read, (…, H + Z): both, side by side."""
        return torch.cat([self.h, self.s], -1)

    @classmethod
    def joined(cls, states: Sequence[State]) -> State:
        """Rows of several, one after the other."""
        return cls(torch.cat([state.h for state in states]), torch.cat([state.s for state in states]))

    def rows(self, chosen: Tensor) -> State:
        """Some of (T, B, …) as rows, by a mask (T, B) or indices into T·B."""
        if chosen.dtype == torch.bool:
            return State(self.h[chosen], self.s[chosen])
        return State(self.h.flatten(0, 1)[chosen], self.s.flatten(0, 1)[chosen])


class Gaussian(NamedTuple):
    """Independent normals, (…, Z) each.

    Attributes:
        mean, std: (…, Z).
    """

    mean: Tensor
    std: Tensor

    def detach(self) -> Gaussian:
        """The same, without a gradient."""
        return Gaussian(self.mean.detach(), self.std.detach())


def kl(q: Gaussian, p: Gaussian) -> Float[Tensor, " *N"]:
    """KL(q ‖ p) in nats, summed over Z: Σ log σ_p/σ_q + (σ_q² + (μ_q − μ_p)²) / 2σ_p² − ½."""
    ratio = (q.std / p.std).square()
    return 0.5 * (((q.mean - p.mean) / p.std).square() + ratio - 1 - ratio.log()).sum(-1)


class Observed(NamedTuple):
    """What a sequence of T moments looked like from inside.

    Attributes:
        states: (T, B, …), s drawn from the posterior.
        posterior: (T, B, Z).
        prior: (T, B, Z).
    """

    states: State
    posterior: Gaussian
    prior: Gaussian


class RSSM(nn.Module):
    """See the module.

    Args:
        sizes: see `Sizes`.
        action: A.
        generator: of the first weights.
    """

    def __init__(self, sizes: Sizes, action: int, *, generator: torch.Generator) -> None:
        super().__init__()
        h, z, hidden = sizes.deterministic, sizes.stochastic, [sizes.hidden]
        self._h, self._z = h, z
        self.before = Linear(z + action, sizes.hidden, generator=generator)
        self.gates = Linear(sizes.hidden + h, 3 * h, generator=generator)
        self.norm = LayerNorm(3 * h)
        self._prior = MLP(h, hidden, 2 * z, generator=generator)
        self._posterior = MLP(h + sizes.embedding, hidden, 2 * z, generator=generator)

    def begin(self, count: int) -> State:
        """An episode's state before its first observation: zeros."""
        weight = self.before.weight
        return State(weight.new_zeros(count, self._h), weight.new_zeros(count, self._z))

    def advance(self, state: State, action: Tensor) -> Tensor:
        """h, (N, H), after an action, (N, A), from the state before it."""
        x = torch.relu(self.before(torch.cat([state.s, action], -1)))
        reset, candidate, update = self.norm(self.gates(torch.cat([x, state.h], -1))).chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(state.h, candidate, torch.sigmoid(update - 1))

    def prior(self, h: Tensor) -> Gaussian:
        """What s is guessed to be, from h, (N, H)."""
        return _gaussian(self._prior(h))

    def posterior(self, h: Tensor, embedding: Tensor) -> Gaussian:
        """What s is after looking, from h, (N, H), and an embedding, (N, D)."""
        return _gaussian(self._posterior(torch.cat([h, embedding], -1)))

    def observe(
        self,
        embedding: Float[Tensor, "T B D"],
        action: Float[Tensor, "T B A"],
        first: Bool[Tensor, "T B"],
        noise: Float[Tensor, "T B Z"],
        start: State | None = None,
    ) -> Observed:
        """Look at a sequence, moment by moment.

        Args:
            embedding: of each observation.
            action: that led to it; where `first`, it counts for nothing.
            first: an episode's first observation: nothing is remembered there.
            noise: standard normal, of which s is drawn.
            start: the state before the first moment; None: nothing is remembered.
        """
        state = self.begin(embedding.shape[1]) if start is None else start
        h, s, means, stds = [], [], [], []
        for t in range(len(embedding)):
            goes_on = ~first[t, :, None]
            state = State(state.h * goes_on, state.s * goes_on)
            now = self.advance(state, action[t] * goes_on)
            q = self.posterior(now, embedding[t])
            state = State(now, q.mean + q.std * noise[t])
            for parts, part in zip((h, s, means, stds), (*state, *q), strict=True):
                parts.append(part)
        states = State(torch.stack(h), torch.stack(s))
        prior = self.prior(states.h.flatten(0, 1))
        shape = (len(embedding), -1)
        return Observed(
            states,
            Gaussian(torch.stack(means), torch.stack(stds)),
            Gaussian(prior.mean.unflatten(0, shape), prior.std.unflatten(0, shape)),
        )

    def imagine(self, state: State, action: Tensor, noise: Tensor) -> State:
        """What follows an action, (N, A), without looking; s is drawn by standard normal noise, (N, Z)."""
        h = self.advance(state, action)
        p = self.prior(h)
        return State(h, p.mean + p.std * noise)


def _gaussian(x: Tensor) -> Gaussian:
    mean, raw = x.chunk(2, -1)
    return Gaussian(mean, nn.functional.softplus(raw - SHARP) + MIN_STD)


# Observations to embeddings and back ------------------------------------------------------------------------


class Contrast(nn.Module):
    """Pictures less their running mean picture, in running deviations of what is left, so that what moves counts.

    A pole of a few pixels before a wall is then found in a third of the updates. The deviation is one number for all.

    Args:
        shape: (C, H, W).
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        for name, value in {"mean": torch.zeros(shape), "square": torch.zeros(()), "count": torch.zeros(())}.items():
            self.register_buffer(name, value.double())
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(()))

    mean: Tensor
    square: Tensor
    count: Tensor
    shift: Tensor
    scale: Tensor

    def forward(self, planes: Tensor) -> Tensor:
        return (planes - self.shift) * self.scale

    @torch.no_grad()
    def add(self, planes: Float[Tensor, "N C H W"]) -> None:
        """Count more pictures in, by Welford's sums."""
        x, number = planes.double(), len(planes)
        mean, total = x.mean(0), self.count + number
        away = mean - self.mean
        self.square += (x - mean).square().sum(0).mean() + away.square().mean() * self.count * number / total
        self.mean += away * number / total
        self.count.copy_(total)
        self.shift.copy_(self.mean)
        self.scale.copy_(1 / (self.square / self.count).sqrt().clamp(min=1e-2))


class ObservationEncoder(nn.Module):
    """Images and vectors to one embedding: convolutions of stride 2 down to 3 or 4 pixels, an MLP for all vectors.

    Args:
        space: a Box or a Dict of them.
        sizes: see `Sizes`.
        who: the learner, for errors.
        generator: of the first weights.

    Raises:
        ValueError: an entry that is neither a vector nor a uint8 image whose side is 3 or 4 times a power of 2.
    """

    def __init__(self, space: spaces.Space, sizes: Sizes, who: str, *, generator: torch.Generator) -> None:
        super().__init__()
        self.images, self.vectors = images_of(space, who), vectors_of(space)
        self.norm = Standardise(max(sum(self.vectors.values()), 1))
        self.convolutions, self.contrasts = nn.ModuleDict(), nn.ModuleDict()
        width = sizes.hidden if self.vectors else 0
        for name, (side, channels) in self.images.items():
            halvings, last = _halvings(side)
            depths = [channels, *(sizes.channels * 2**k for k in range(halvings))]
            pairs = pairwise(depths)
            stack = [layer for i, o in pairs for layer in (_convolution(nn.Conv2d, i, o, generator), nn.ReLU())]
            self.convolutions[_key(name)] = nn.Sequential(*stack)
            self.contrasts[_key(name)] = Contrast((channels, side, side))
            width += depths[-1] * last * last
        if self.vectors:
            self.mlp = MLP(sum(self.vectors.values()), [sizes.hidden], sizes.hidden, generator=generator)
        self.head = Linear(width, sizes.embedding, generator=generator)
        self.head_norm = LayerNorm(sizes.embedding)

    def forward(self, obs: Any) -> Float[Tensor, "*N D"]:
        """Of (…, one observation), however many axes lead."""
        parts, lead = leaves(obs), ()
        out = []
        for name in self.images:
            lead = parts[name].shape[:-3]
            planes = self.contrasts[_key(name)](as_planes(parts[name]))
            out.append(self.convolutions[_key(name)](planes).flatten(1))
        if self.vectors:
            flat = self.flat(obs)
            lead = flat.shape[:-1]
            out.append(self.mlp(self.norm(flat.flatten(0, -2))))
        return self.head_norm(self.head(torch.cat(out, -1))).reshape(*lead, -1)

    def add(self, obs: Any) -> None:
        """Count observations, (…, one), into means and deviations."""
        parts = leaves(obs)
        for name in self.images:
            contrast = self.contrasts[_key(name)]
            assert isinstance(contrast, Contrast)
            contrast.add(as_planes(parts[name]))
        if self.vectors:
            self.norm.add(self.flat(obs).flatten(0, -2))

    def flat(self, obs: Any) -> Float[Tensor, "*N S"]:
        """Its vectors, side by side in the order of their names."""
        parts = leaves(obs)
        return torch.cat([parts[name].float() for name in self.vectors], -1)


class Decoder(nn.Module):
    """Features to what is seen, for the control that reconstructs.

    Args:
        encoder: whose mirror it is.
        features: width of what it reads.
        sizes: see `Sizes`.
        generator: of the first weights.
    """

    def __init__(self, encoder: ObservationEncoder, features: int, sizes: Sizes, *, generator: torch.Generator) -> None:
        super().__init__()
        self.images, self.vectors = encoder.images, encoder.vectors
        self.starts, self.convolutions = nn.ModuleDict(), nn.ModuleDict()
        for name, (side, channels) in self.images.items():
            halvings, last = _halvings(side)
            depths = [*(sizes.channels * 2**k for k in reversed(range(halvings))), channels]
            self.starts[_key(name)] = Linear(features, depths[0] * last * last, generator=generator)
            layers: list[nn.Module] = [nn.Unflatten(1, (depths[0], last, last))]
            for i, o in pairwise(depths):
                layers += [nn.ReLU(), _convolution(nn.ConvTranspose2d, i, o, generator)]
            self.convolutions[_key(name)] = nn.Sequential(*layers)
        if self.vectors:
            self.mlp = MLP(features, [sizes.hidden], sum(self.vectors.values()), generator=generator)

    def error(self, features: Float[Tensor, "N F"], obs: Any, encoder: ObservationEncoder) -> Float[Tensor, " N"]:
        """−log p(o | features) of N observations, less a constant: ½ Σ (o − ô)², pixels in [−½, ½]."""
        parts = leaves(obs)
        total = features.new_zeros(len(features))
        for name in self.images:
            shown = self.convolutions[_key(name)](self.starts[_key(name)](features))
            total = total + 0.5 * (shown - as_planes(parts[name])).square().flatten(1).sum(1)
        if self.vectors:
            total = total + 0.5 * (self.mlp(features) - encoder.norm(encoder.flat(obs))).square().sum(-1)
        return total


def as_planes(image: Tensor) -> Float[Tensor, "N C H W"]:
    """(…, H, W, C) uint8 as rows in [−½, ½], channels first.

    Args:
        image: frames, stacked or not.
    """
    return image.flatten(0, -4).movedim(-1, 1).float().div(255).sub(0.5)


def images_of(space: spaces.Space, who: str) -> dict[str, tuple[int, int]]:
    """The images of an observation: name -> side in pixels, channels.

    Args:
        space: of observations.
        who: the learner, for errors.

    Raises:
        ValueError: an entry that is neither a vector nor such an image; tells which.
    """
    found = {}
    for name, box in _boxes(space).items():
        if isinstance(box, spaces.Box) and len(box.shape) == 1:
            continue
        what = f"observation {name!r}" if name else "observations"
        if not isinstance(box, spaces.Box) or len(box.shape) != 3 or box.dtype != "uint8":
            raise ValueError(f"{who}: {what} must be a vector or a uint8 image (H, W, C); got {box}.")
        height, width, channels = box.shape
        if height != width or not _halvings(height)[0]:
            raise ValueError(
                f"{who}: {what} must be square with a side of 3 or 4 times a power of 2, such as 32, 64 or 96; "
                f"got {height} x {width}. Set env.image_size."
            )
        found[name] = (height, channels)
    return found


def vectors_of(space: spaces.Space) -> dict[str, int]:
    """The vectors of an observation, in the order of their names: name -> width.

    Args:
        space: of observations.
    """
    boxes = sorted(_boxes(space).items())
    return {name: box.shape[0] for name, box in boxes if isinstance(box, spaces.Box) and len(box.shape) == 1}


def _boxes(space: spaces.Space) -> dict[str, spaces.Space]:
    return leaves(space.spaces if isinstance(space, spaces.Dict) else space)


def _halvings(side: int) -> tuple[int, int]:
    """How often a side can be halved down to 3 or 4, and which of both; (0, 0): it cannot."""
    for last in (4, 3):
        count = math.log2(side / last) if side > last else 0
        if count >= 1 and count == int(count):
            return int(count), last
    return 0, 0


def _key(name: str) -> str:
    """A module's name for an entry."""
    return f"obs_{name}"


def _convolution(kind: type[nn.Module], inputs: int, outputs: int, generator: torch.Generator) -> nn.Module:
    """Kernel 4, stride 2: half, or twice, the side. He's uniform weights and no offsets, so that little is not lost."""
    layer: Any = skip_init(kind, inputs, outputs, 4, stride=2, padding=1)
    fan = inputs * 16 if kind is nn.Conv2d else inputs * 4  # of the outputs, each input pixel reaches a quarter
    with torch.no_grad():
        layer.weight.uniform_(-math.sqrt(6 / fan), math.sqrt(6 / fan), generator=generator)
        layer.bias.zero_()
    return layer
