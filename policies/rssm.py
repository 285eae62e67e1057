"""A recurrent state-space model: what is remembered, what is guessed before looking, what is known after it.

    h_t = GRU(h_{t−1}, s_{t−1}, a_{t−1})        deterministic
    p(s_t | h_t)                                prior: guessed
    q(s_t | h_t, e_t), e_t = encoder(o_t)       posterior: looked

Hafner et al., PlaNet (arXiv 1811.04551, §3) and Dreamer (1912.01603), as RePo has it (2309.00082): diagonal Gaussians.

Departures. Latents begin with a deviation of 0.3. The GRU is layer-normed, with an update gate that begins nearly
shut. Both h and s begin anew with an episode, where RePo's official code masks s alone. The encoder is
`policies.embedding`'s.

Shape letters: T moments, B windows, N rows of any kind, H deterministic, Z stochastic, D embedding, A action; `…` any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from policies.networks import MLP, LayerNorm, Linear

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
