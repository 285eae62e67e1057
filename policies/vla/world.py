"""A learned world for chunks: what an encoder's maps and own readings will be after the next few actions.

Maps are cut into patches, each a token of a few principal directions, so that a moment is some dozens of short vectors
and comes back as maps that a policy can read. Several small transformers predict how the tokens change; where they
disagree, they were not taught. World-Env (arXiv 2509.24948) predicts pictures by diffusion from a rendered path of the
hand, with the hand moved by the robot's own kinematics; here maps and own readings are both learned.

Shape letters: N moments of all episodes, B batch, U model steps, K actions of one, A action, S own readings; C, h, w a
camera's map; L tokens of all cameras, D of one; M members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from policies.vla.embedded import Block
from policies.vla.stats import Normaliser

TRUST = 0.95  # quantile of the disagreement on held-out moments, beyond which a rollout is stopped


@dataclass(frozen=True, kw_only=True)
class WorldSpec:
    """What a world reads and how large it is; JSON values alone.

    Attributes:
        cameras: name -> (C, h, w) of its maps.
        stride: K, actions of one model step.
        patch: side of a patch, in pixels of a map.
        tokens: D, at most.
        members: M.
        width, layers, heads: of each member.
        blind: whether actions are hidden from it; a control.
    """

    cameras: Mapping[str, tuple[int, int, int]]
    stride: int = 4
    patch: int = 3
    tokens: int = 96
    members: int = 3
    width: int = 96
    layers: int = 3
    heads: int = 4
    blind: bool = False

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in asdict(self).items() if isinstance(value, int) and name != "blind"}
        if wrong := [name for name, value in sizes.items() if value < 1]:
            raise ValueError(f"WorldSpec: {', '.join(wrong)} must be at least 1.")
        if self.width % self.heads:
            raise ValueError(f"WorldSpec: width must be a multiple of heads ({self.heads}); got {self.width}.")


# Maps and tokens ------------------------------------------------------------------------------------------


class Codec(nn.Module):
    """Maps to tokens and back: of each patch, its principal directions over many frames.

    Args:
        cameras: name -> (C, h, w).
        patch: side of a patch; maps are padded to whole patches.
        tokens: D, at most; what a patch has fewer of is 0.
    """

    def __init__(self, cameras: Mapping[str, tuple[int, int, int]], patch: int, tokens: int) -> None:
        super().__init__()
        self.cameras, self.patch, self.tokens = dict(cameras), patch, tokens
        self._grid = {name: (-(-h // patch), -(-w // patch)) for name, (_, h, w) in self.cameras.items()}
        self.count = sum(rows * columns for rows, columns in self._grid.values())
        for k, (channels, _, _) in enumerate(self.cameras.values()):
            self.register_buffer(f"weight{k}", torch.zeros(channels * patch * patch, tokens))
            self.register_buffer(f"mean{k}", torch.zeros(channels * patch * patch))
            self.register_buffer(f"scale{k}", torch.ones(()))

    def fit(self, maps: Mapping[str, Float[Tensor, "N C h w"]]) -> dict[str, float]:
        """Find the directions; returns the share of each camera's variance that they keep."""
        kept = {}
        for k, name in enumerate(self.cameras):
            patches = self._cut(name, maps[name]).flatten(0, 1).cpu().double()
            mean = patches.mean(0)
            spread, directions = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
            order = spread.argsort(descending=True)[: self.tokens]
            found = directions[:, order]
            found = found * found[found.abs().argmax(0), torch.arange(found.shape[1])].sign()  # the same everywhere
            weight = getattr(self, f"weight{k}")
            weight.zero_()[:, : found.shape[1]] = found.float()
            getattr(self, f"mean{k}").copy_(mean)
            getattr(self, f"scale{k}").copy_(spread[order].mean().sqrt().clamp_min(1e-6))
            kept[name] = float(spread[order].sum() / spread.sum().clamp_min(1e-12))
        return kept

    def encode(self, maps: Mapping[str, Float[Tensor, "B C h w"]]) -> Float[Tensor, "B L D"]:
        """Tokens of all cameras, in their order."""
        parts = []
        for k, name in enumerate(self.cameras):
            weight, mean, scale = (getattr(self, f"{part}{k}") for part in ("weight", "mean", "scale"))
            parts.append((self._cut(name, maps[name]) - mean) @ weight / scale)
        return torch.cat(parts, 1)

    def decode(self, tokens: Float[Tensor, "B L D"]) -> dict[str, Float[Tensor, "B C h w"]]:
        """The maps that tokens stand for."""
        maps, first = {}, 0
        for k, (name, (channels, height, width)) in enumerate(self.cameras.items()):
            weight, mean, scale = (getattr(self, f"{part}{k}") for part in ("weight", "mean", "scale"))
            rows, columns = self._grid[name]
            part = tokens[:, first : first + rows * columns] * scale @ weight.T + mean
            first += rows * columns
            part = part.view(-1, rows, columns, channels, self.patch, self.patch).permute(0, 3, 1, 4, 2, 5)
            maps[name] = part.flatten(4, 5).flatten(2, 3)[..., :height, :width]
        return maps

    def _cut(self, name: str, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B n F"]:
        """A camera's patches, row by row."""
        channels, height, width = self.cameras[name]
        if tuple(maps.shape[1:]) != (channels, height, width):
            raise ValueError(f"Codec: maps of {name} must be {(channels, height, width)}; got {tuple(maps.shape[1:])}.")
        rows, columns = self._grid[name]
        side = self.patch
        padded = nn.functional.pad(maps.float(), (0, columns * side - width, 0, rows * side - height), mode="replicate")
        cut = padded.view(-1, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
        return cut.flatten(3).flatten(1, 2)


# What is known --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """Moments K actions apart, and what was done between them.

    Attributes:
        tokens: (B, U + 1, L, D).
        state: (B, U + 1, S), normalised.
        actions: (B, U, K, A), normalised.
        real: (B, U) bool, whether the episode goes so far.
    """

    tokens: Float[Tensor, "B U1 L D"]
    state: Float[Tensor, "B U1 S"]
    actions: Float[Tensor, "B U K A"]
    real: Bool[Tensor, "B U"]


@dataclass(frozen=True)
class Tracks:
    """Episodes as tokens, one after another.

    Attributes:
        tokens: (N, L, D) half precision.
        state: (N, S), normalised.
        actions: (N, A), normalised; row n led from n to n + 1.
        episode: (N,) of each row.
        targets: (N, 2) what a reward model said of each row, in [0, 1]: the reward, and that the task is done.
        text: (N, T) the sentence's vector.
    """

    tokens: Float[Tensor, "N L D"]
    state: Float[Tensor, "N S"]
    actions: Float[Tensor, "N A"]
    episode: Int64[np.ndarray, " N"]
    targets: Float[Tensor, "N 2"]
    text: Float[Tensor, "N T"]

    def starts(self, steps: int, episodes: Bool[np.ndarray, " E"]) -> Int64[np.ndarray, " n"]:
        """Rows of some episodes that have so many rows after them."""
        last = np.searchsorted(self.episode, self.episode, side="right") - 1
        return np.flatnonzero((np.arange(len(last)) + steps <= last) & episodes[self.episode])

    def segment(self, rows: Int64[np.ndarray, " B"], stride: int, steps: int) -> Segment:
        """What followed some rows; after an episode's end its last row again, which is not real."""
        last = np.searchsorted(self.episode, self.episode[rows], side="right") - 1
        wanted = rows[:, None] + stride * np.arange(steps + 1)
        inside = torch.from_numpy(np.minimum(wanted, last[:, None]))
        did = np.minimum(rows[:, None] + np.arange(stride * steps), last[:, None])
        actions = self.actions[torch.from_numpy(did)].unflatten(1, (steps, stride))
        return Segment(
            self.tokens[inside].float(), self.state[inside], actions, torch.from_numpy(wanted[:, 1:] <= last[:, None])
        )


# The members ----------------------------------------------------------------------------------------------


class Dynamics(nn.Module):
    """One member: tokens, own readings and K actions to tokens and own readings K actions later.

        z' = z + W·transformer(z + E(a, s)),   s' = s + w·(the token of E)

    The last layers begin at 0, so that it begins as "nothing changes".

    Args:
        spec: its size.
        count: L.
        state, actions: S and A.
    """

    def __init__(self, spec: WorldSpec, count: int, state: int, actions: int) -> None:
        super().__init__()
        self.blind = spec.blind
        self.read = nn.Linear(spec.tokens, spec.width)
        self.place = nn.Parameter(0.02 * torch.randn(count + 1, spec.width))
        inputs = spec.stride * actions + state
        self.told = nn.Sequential(nn.Linear(inputs, spec.width), nn.GELU(), nn.Linear(spec.width, spec.width))
        self.blocks = nn.ModuleList(Block(spec.width, spec.heads) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width)
        self.change, self.move = nn.Linear(spec.width, spec.tokens), nn.Linear(spec.width, state)
        for layer in (self.change, self.move):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, tokens: Float[Tensor, "B L D"], state: Float[Tensor, "B S"], actions: Float[Tensor, "B K A"]
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B S"]]:
        """Both, K actions later."""
        did = torch.zeros_like(actions) if self.blind else actions
        told = self.told(torch.cat([did.flatten(1), state], 1))[:, None]
        mixed = torch.cat([self.read(tokens), torch.zeros_like(told)], 1) + self.place + told
        mask = torch.ones(len(mixed), 1, 1, mixed.shape[1], dtype=torch.bool, device=mixed.device)
        for block in self.blocks:
            mixed = block(mixed, None, mask)
        mixed = self.norm(mixed)
        return tokens + self.change(mixed[:, :-1]), state + self.move(mixed[:, -1])


class WorldEnsemble(nn.Module):
    """M members with one way to cut maps into tokens; they are asked together.

    Args:
        spec: its size.
        state, action: normalise own readings and actions.

    Attributes:
        limit: disagreement beyond which it is not to be trusted; infinite until `calibrate`.
    """

    limit: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, spec: WorldSpec, state: Normaliser, action: Normaliser) -> None:
        super().__init__()
        self.spec, self.state, self.action = spec, state, action
        self.codec = Codec(spec.cameras, spec.patch, spec.tokens)
        sizes = (self.codec.count, len(state.names), len(action.names))
        self.members = nn.ModuleList(Dynamics(spec, *sizes) for _ in range(spec.members))
        self.register_buffer("limit", torch.tensor(math.inf))
        self.register_buffer("low", torch.full((sizes[2],), -math.inf))
        self.register_buffer("high", torch.full((sizes[2],), math.inf))

    def within(self, actions: Float[np.ndarray, "N A"]) -> None:
        """Remember between what limits actions were seen; `step` keeps to them."""
        self.low.copy_(torch.from_numpy(np.nanmin(actions, 0)))
        self.high.copy_(torch.from_numpy(np.nanmax(actions, 0)))

    def normal(self, actions: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
        """Actions in the robot's units as members read them, kept within what was seen."""
        return self.action.forward(actions.clamp(self.low, self.high))

    @torch.no_grad()
    def step(
        self, tokens: Float[Tensor, "B L D"], state: Float[Tensor, "B S"], actions: Float[Tensor, "B K A"]
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B S"], Float[Tensor, " B"]]:
        """The members' mean K actions later, and how far they disagree: the root mean square, over a moment's tokens,
        of their standard deviation.

        Args:
            tokens, state: of now; `state` normalised.
            actions: normalised.
        """
        found = [member(tokens, state, actions) for member in self.members]
        after, moved = (torch.stack([each[k] for each in found]) for k in (0, 1))
        return after.mean(0), moved.mean(0), after.var(0, correction=0).mean((1, 2)).sqrt()

    def roll(self, segment: Segment) -> tuple[Float[Tensor, "B U L D"], Float[Tensor, "B U"]]:
        """Tokens and disagreement after each model step of a segment, from its first moment and its actions alone."""
        tokens, state = segment.tokens[:, 0], segment.state[:, 0]
        rolled, apart = [], []
        for u in range(segment.actions.shape[1]):
            tokens, state, disagreement = self.step(tokens, state, segment.actions[:, u])
            rolled.append(tokens)
            apart.append(disagreement)
        return torch.stack(rolled, 1), torch.stack(apart, 1)

    def calibrate(self, segment: Segment) -> float:
        """Set `limit` to the `TRUST` quantile of the disagreement along held-out actions."""
        _, apart = self.roll(segment)
        self.limit.copy_(torch.quantile(apart[segment.real], TRUST))
        return float(self.limit)


class Reflector(nn.Module):
    """What a reward model would say of maps, real or imagined: a reward, and whether the task is done.

    World-Env's reflector is a frozen language model with a trained head; this one is taught, by binary cross-entropy,
    what our reward models said of every frame of the data.

    Args:
        count: L.
        tokens: D.
        text: width of the sentence's vector.
    """

    def __init__(self, count: int, tokens: int, text: int) -> None:
        super().__init__()
        self.read = nn.Linear(tokens, 8)
        self.net = nn.Sequential(nn.Linear(8 * count + text, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, tokens: Float[Tensor, "B L D"], text: Float[Tensor, "B T"]) -> Float[Tensor, "B 2"]:
        """Log-odds of both."""
        return self.net(torch.cat([self.read(tokens).flatten(1), text], 1))

    @torch.no_grad()
    def judge(self, tokens: Float[Tensor, "B L D"], text: Float[Tensor, "B T"]) -> Float[Tensor, "B 2"]:
        """Both, in [0, 1]."""
        return self(tokens, text).sigmoid()


def build_world(
    spec: WorldSpec, state: Normaliser, action: Normaliser, *, text: int, seed: int
) -> tuple[WorldEnsemble, WorldEnsemble, Reflector]:
    """An untaught world, its action-blind control of one member, and a reflector; the same for one seed.

    Args:
        spec: its size.
        state, action: normalise own readings and actions.
        text: width of the sentence's vector.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        world = WorldEnsemble(spec, state, action)
        control = WorldSpec(**{**asdict(spec), "members": 1, "blind": True})
        return world, WorldEnsemble(control, state, action), Reflector(world.codec.count, spec.tokens, text)


def error(found: Float[Tensor, "B L D"], truth: Float[Tensor, "B L D"]) -> float:
    """Mean squared error of tokens.

    Args:
        found, truth: L tokens of B moments.
    """
    return float((found - truth).square().mean())
