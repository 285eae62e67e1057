"""The embedded policy's network: where things are in each camera, a sentence and own readings to a chunk of actions.

Shape letters: B batch, V cameras, C channels of a map, h, w its sides, K places of a camera, L tokens, H actions of a
chunk, A action, S own readings, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

SPREAD = 4.0  # of coordinates, which move little of their whole range
INNER = 64  # channels of what is computed at every pixel of a map


@dataclass(frozen=True)
class ChunkObservation:
    """What a policy is told at one moment.

    Attributes:
        maps: camera -> (B, C, h, w), what an encoder sees where, in any precision; or pictures, uint8 RGB, for a
            pretrained body.
        seen: camera -> (B,) bool, whether there was a picture; where not, its map is never looked at.
        text: (B, D), the sentence's vector; or its tokens, for a pretrained body.
        state: (B, S), own readings, normalised.
    """

    maps: Mapping[str, Shaped[Tensor, "B C h w"]]
    seen: Mapping[str, Bool[Tensor, " B"]]
    text: Shaped[Tensor, "B D"]
    state: Float[Tensor, "B S"]

    def __len__(self) -> int:
        return len(self.text)


class Places(nn.Module):
    """K places of a camera that matter for the sentence: where they are, and one number of what is seen there.

        p_k = softmax over h·w of q_k(f);   (Σ p_k (x, y), Σ p_k v_k(f));   f = relu(γ(text)·inner(map) + β(text))

    Spatial softmax (Levine et al., arXiv 1504.00702), with a value of each place, and OFT's FiLM of the sentence.

    Args:
        channels: C.
        text: width of the sentence's vector.
        inner: channels of f.
        places: K.
    """

    def __init__(self, channels: int, text: int, inner: int, places: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, inner, 1)
        self.film = nn.Linear(text, 2 * inner)
        self.read = nn.Conv2d(inner, 2 * places, 1)  # q and v
        nn.init.zeros_(self.film.bias)

    def forward(
        self, maps: Float[Tensor, "B C h w"], text: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B K 2"], Float[Tensor, "B K"]]:
        """Where they are, x and y in [-1, 1], and what is there."""
        gamma, beta = self.film(text)[..., None].chunk(2, 1)
        # The sentence scales the convolution's own weights, not its result at every pixel: the same numbers, sooner.
        weight = self.inner.weight[:, :, 0, 0] * (1 + gamma)
        bias = _bias(self.inner) * (1 + gamma) + beta
        features = torch.baddbmm(bias, weight, maps.float().flatten(2)).relu()
        read = self.read.weight[:, :, 0, 0].expand(len(text), -1, -1)
        found = torch.baddbmm(_bias(self.read).expand(len(text), -1, -1), read, features)
        query, value = found.chunk(2, 1)  # (B, K, h*w)
        weights = query.softmax(-1)
        height, width = maps.shape[-2:]
        y = torch.linspace(-1, 1, height, device=maps.device)
        x = torch.linspace(-1, 1, width, device=maps.device)
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).view(-1, 2)
        return weights @ grid, (weights * value).sum(-1)


def _bias(layer: nn.Conv2d) -> Float[Tensor, "C 1"]:
    assert layer.bias is not None, "it was made with one"
    return layer.bias[:, None]


class Block(nn.Module):
    """Pre-norm attention of some tokens to themselves and a context, and an MLP; every mask is given, none implied.

    Args:
        width: of a token.
        heads: of attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, tokens: Float[Tensor, "B L W"], context: Float[Tensor, "B M W"] | None, mask: Bool[Tensor, "B 1 _ N"]
    ) -> Float[Tensor, "B L W"]:
        """`mask` tells which of [context, tokens] may be attended to, by all tokens or by each of the L."""
        normed = self.norm(tokens)
        read = normed if context is None else torch.cat([context, normed], 1)

        parts = (self.query(normed), *self.key_value(read).chunk(2, -1))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mask = mask.expand(-1, 1, query.shape[2], -1)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        tokens = tokens + self.out(mixed.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm_mlp(tokens))


class Fusion(nn.Module):
    """The places of all cameras and own readings as one vector, which a perceptron turns into H slots at once.

    One vector, since what decides is where one thing is beside another, in one camera and between them: attention
    among tokens of places learned that far more slowly. Nothing is causal: every slot knows all that is given.

    Args:
        cameras: names in order, each with C of its maps.
        text: width of the sentence's vector.
        state: S; 0: no own readings.
        actions: A.
        horizon: H.
        width: W.
        places: K of each camera; 0: the cameras are not looked at (a control).
        mend: whether slots begin as noisy actions (flow, diffusion).
    """

    def __init__(
        self,
        *,
        cameras: Mapping[str, int],
        text: int,
        state: int,
        actions: int,
        horizon: int,
        width: int = 128,
        places: int = 24,
        mend: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.horizon = width, horizon
        chosen = cameras if places else {}
        self.cameras = tuple(chosen)
        self.places = nn.ModuleDict({_key(name): Places(c, text, INNER, places) for name, c in chosen.items()})
        self.text = nn.Linear(text, width)
        self.given = nn.Linear(3 * places * len(chosen) + state, width)
        self.mixed = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        if mend:
            self.noisy = nn.Linear(horizon * actions, width)
            self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            self.mended = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.slots = nn.Linear(width, horizon * width)

    def find(self, camera: str, maps: Float[Tensor, "B C h w"], text: Float[Tensor, "B D"]) -> Float[Tensor, "B P"]:
        """A camera's K places as P = 3 K numbers: x and y of each, spread, then what is seen at each."""
        where, what = self.places[_key(camera)](maps, text)
        return torch.cat([SPREAD * where.flatten(1), what], 1)

    def look(self, obs: ChunkObservation) -> tuple[Float[Tensor, "B 1 W"], Bool[Tensor, "B 1"]]:
        """The context, one token, and that it exists."""
        found = {
            name: torch.where(obs.seen[name][:, None], self.find(name, obs.maps[name], obs.text), 0.0)
            for name in self.cameras
        }
        return self.mix(obs.state, found, obs.text)

    def mix(
        self, state: Float[Tensor, "B S"], found: Mapping[str, Float[Tensor, "B P"]], text: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B 1 W"], Bool[Tensor, "B 1"]]:
        """The context of places that `find` gave, by camera: all of them, zeros where a camera was not seen."""
        given = torch.cat([state, *(found[name] for name in self.cameras)], 1)
        mixed = self.mixed(self.given(given) + self.text(text))
        return mixed[:, None], torch.ones(len(state), 1, device=mixed.device).bool()

    def slot(
        self,
        context: tuple[Float[Tensor, "B 1 W"], Bool[Tensor, "B 1"]],
        noisy: Float[Tensor, "B H A"] | None = None,
        time: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H W"]:
        """What each slot knows at the end.

        Args:
            context: of `look`.
            noisy: actions to mend, of heads that start from noise.
            time: how noisy they are, in [0, 1].
        """
        known = context[0][:, 0]
        if noisy is not None and time is not None:
            known = self.mended(known + self.noisy(noisy.flatten(1)) + self.time(sinusoid(time, self.width)))
        return self.slots(known).unflatten(-1, (self.horizon, self.width))


def sinusoid(time: Float[Tensor, " B"], width: int) -> Float[Tensor, "B W"]:
    """Sines and cosines of a time in [0, 1], periods from 4e-3 to 4 as in π0.

    Args:
        time: in [0, 1].
        width: W, even.
    """
    half = width // 2
    periods = 4e-3 * (4 / 4e-3) ** torch.linspace(0, 1, half, device=time.device)
    angles = 2 * math.pi * time[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], -1)


def _key(camera: str) -> str:
    """A camera's name as a module's, which may hold no dot."""
    return camera.replace(".", "/")
