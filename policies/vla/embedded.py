"""The embedded policy's network: where things are in each camera, a sentence and own readings to a chunk of actions.

Shape letters: B batch, V cameras, C channels of a map, h, w its sides, K places of a camera, L tokens, H actions of a
chunk, A action, S own readings, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

SPREAD = 4.0  # of coordinates, which move little of their whole range


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
    """K places of a camera that matter for the sentence, each a token: what is seen there, and where it is.

        p_k = softmax over h·w of q_k·f / √W;   token_k = Linear([Σ p_k f, Σ p_k (x, y)]),   f = γ(text)·map + β(text)

    Spatial softmax (Levine et al., arXiv 1504.00702), with the features at each place and OFT's FiLM of the sentence.

    Args:
        channels: C.
        text: width of the sentence's vector.
        width: W of the tokens.
        places: K.
    """

    def __init__(self, channels: int, text: int, width: int, places: int) -> None:
        super().__init__()
        inner = width // 2  # the one part that is computed at every pixel
        self.inner = nn.Conv2d(channels, inner, 1)
        self.film = nn.Linear(text, 2 * inner)
        self.query = nn.Conv2d(inner, places, 1)
        self.out = nn.Linear(inner + 2, width)
        self.which = nn.Parameter(0.02 * torch.randn(places, width))
        nn.init.zeros_(self.film.bias)

    def forward(
        self, maps: Float[Tensor, "B C h w"], text: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B K W"], Float[Tensor, "B K 2"]]:
        """The tokens, and where they are, x and y in [-1, 1]."""
        gamma, beta = self.film(text)[..., None, None].chunk(2, 1)
        features = nn.functional.relu(self.inner(maps.float()) * (1 + gamma) + beta)
        height, width = features.shape[-2:]
        weights = self.query(features).flatten(2).softmax(-1)  # (B, K, h*w)
        found = weights @ features.flatten(2).transpose(1, 2)
        y = torch.linspace(-1, 1, height, device=maps.device)
        x = torch.linspace(-1, 1, width, device=maps.device)
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).view(-1, 2)
        where = weights @ grid
        return self.out(torch.cat([found, where], -1)) + self.which, where


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
    """Tokens of all cameras, of where they are, of the sentence and own readings, mixed; then H slots that read them.

    Every slot sees every other (parallel decoding): nothing is causal.

    Args:
        cameras: names in order, each with C of its maps.
        text: width of the sentence's vector.
        state: S; 0: no own readings.
        actions: A.
        horizon: H.
        width: W.
        places: K of each camera; 0: the cameras are not looked at (a control).
        layers: of the context, and of the slots.
        heads: of attention.
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
        places: int = 16,
        layers: Sequence[int] = (2, 2),
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.width, self.horizon = width, horizon
        chosen = cameras if places else {}
        self.places = nn.ModuleDict({_key(name): Places(c, text, width, places) for name, c in chosen.items()})
        self.cameras = tuple(chosen)
        self.camera = nn.Parameter(0.02 * torch.randn(len(chosen), width))
        self.text = nn.Linear(text, width)
        self.state = nn.Sequential(nn.Linear(state, width), nn.GELU(), nn.Linear(width, width)) if state else None
        # All places at once: attention mixes tokens one by one, and is slow to learn where one thing is beside another.
        found = 2 * places * len(chosen)
        self.layout: nn.Module | None = None
        if found:
            self.layout = nn.Sequential(nn.Linear(found, width), nn.ReLU(), nn.Linear(width, width))
        self.kinds = nn.Parameter(0.02 * torch.randn(3, width))
        self.slots = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.noisy = nn.Linear(actions, width)  # of heads that start from noise
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.context = nn.ModuleList(Block(width, heads) for _ in range(layers[0]))
        self.decoder = nn.ModuleList(Block(width, heads) for _ in range(layers[1]))
        self.norm = nn.LayerNorm(width)

    def look(self, obs: ChunkObservation) -> tuple[Float[Tensor, "B L W"], Bool[Tensor, "B L"]]:
        """The context, and which of its tokens exist."""
        count, device = len(obs), obs.text.device
        tokens, there = [self.text(obs.text)[:, None] + self.kinds[0]], [torch.ones(count, 1, device=device).bool()]
        if self.state is not None:
            tokens.append(self.state(obs.state)[:, None] + self.kinds[1])
            there.append(there[0])
        everywhere = []
        for index, name in enumerate(self.cameras):
            found, where = self.places[_key(name)](obs.maps[name], obs.text)
            seen = obs.seen[name][:, None]
            tokens.append(torch.where(seen[..., None], found + self.camera[index], 0.0))
            there.append(seen.expand(-1, found.shape[1]))
            everywhere.append(torch.where(seen, SPREAD * where.flatten(1), 0.0))
        if self.layout is not None:
            tokens.append(self.layout(torch.cat(everywhere, 1))[:, None] + self.kinds[2])
            there.append(there[0])
        mixed, mask = torch.cat(tokens, 1), torch.cat(there, 1)
        for block in self.context:
            mixed = block(mixed, None, mask[:, None, None])
        return self.norm(mixed), mask

    def slot(
        self,
        context: tuple[Float[Tensor, "B L W"], Bool[Tensor, "B L"]],
        noisy: Float[Tensor, "B H A"] | None = None,
        time: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B H W"]:
        """What each slot knows at the end.

        Args:
            context: of `look`.
            noisy: actions to mend, of heads that start from noise.
            time: how noisy they are, in [0, 1].
        """
        tokens, there = context
        slots = self.slots.expand(len(tokens), -1, -1)
        if noisy is not None and time is not None:
            slots = slots + self.noisy(noisy) + self.time(sinusoid(time, self.width))[:, None]
        mask = torch.cat([there, torch.ones(slots.shape[:2], device=there.device).bool()], 1)
        for block in self.decoder:
            slots = block(slots, tokens, mask[:, None, None])
        return slots


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
