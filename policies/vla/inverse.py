"""An inverse model that sees: which action led from what cameras show, and a robot reads, to what follows.

In each camera's map it looks for places, as the embedded policy does (`Places`): where they are, and what is seen
there, at both moments. How far things went is not the difference of two places, which a softmax over a coarse map tells
too roughly, for between two moments a thing moves by a part of a pixel of the map: it is measured (`moved`), as means
over a grid of each camera. Own readings, where there are some, come with their last change before, from which a lag can
be told. All of it is standardised and read by an MLP, or by a linear layer, which goes further beyond what it was
taught (`policies.inverse.ActionNet`). Several such networks, taught alike but for their draws, are averaged.

Source: video pretraining (VPT, Baker et al., arXiv 2206.11795, §3.1) and arXiv 2506.06006 for what it is for. Departs:
VPT reads many frames by a network of its own, taught for two thousand hours; this one two moments, by a frozen encoder,
from minutes of play.

Shape letters: B batch, M networks, C channels of a map, h, w its sides, K places of a camera, A action, S own readings,
F numbers that the MLP reads of a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from policies.inverse import ActionNet
from policies.vla.embedded import SPREAD, Places
from policies.vla.imitation import scheduled
from policies.vla.stats import Normaliser

WINDOW, RIDGE = 3, 0.05  # of `moved`: pixels of a map that share one movement; how far noise is held down
WARMUP = 0.1  # share of the updates in which the learning rate rises


@dataclass(frozen=True)
class Change:
    """Two moments, one after the other, B times.

    Attributes:
        before, after: camera -> (B, C, h, w), in any precision.
        moved: camera -> (B, 3, h, w), of `moved`.
        state: (B, 3, S), own readings at t - 1, t and t + 1; S = 0 where there are none.
    """

    before: Mapping[str, Shaped[Tensor, "B C h w"]]
    after: Mapping[str, Shaped[Tensor, "B C h w"]]
    moved: Mapping[str, Float[Tensor, "B 3 h w"]]
    state: Float[Tensor, "B 3 S"]

    def __len__(self) -> int:
        return len(self.state)


@torch.no_grad()
def moved(before: Shaped[Tensor, "B C h w"], after: Shaped[Tensor, "B C h w"]) -> Float[Tensor, "B 3 h w"]:
    """How far what stands at each pixel of a map went, in its pixels, and how much it changed.

        (u, v) = −(Σ g gᵀ + λ)⁻¹ Σ g d;   g = ∇(before + after)/2, d = after − before;   √(Σ_c d²)

    Σ is over the channels and a window of 3 × 3 pixels; λ is a share of the mean of Σ g².

    Source: Lucas and Kanade, IJCAI 1981. Departs: an encoder's channels in place of brightness, one step without
    iteration, and λ.

    Args:
        before: maps.
        after: those of the next moment.
    """
    first, then = before.float(), after.float()
    mid, change = (first + then) / 2, then - first
    gx = nn.functional.pad((mid[..., 2:] - mid[..., :-2]) / 2, (1, 1, 0, 0))
    gy = nn.functional.pad((mid[..., 2:, :] - mid[..., :-2, :]) / 2, (0, 0, 1, 1))
    pairs = ((gx, gx), (gx, gy), (gy, gy), (gx, change), (gy, change))
    sums = torch.stack([(one * other).sum(1) for one, other in pairs], 1)
    sums = nn.functional.avg_pool2d(sums, WINDOW, 1, WINDOW // 2)
    xx, xy, yy, xd, yd = sums.unbind(1)
    xx, yy = (each + RIDGE * each.mean((1, 2), keepdim=True) + 1e-6 for each in (xx, yy))
    det = xx * yy - xy * xy
    u, v = (xy * yd - yy * xd) / det, (xy * xd - xx * yd) / det
    return torch.stack([u, v, change.square().sum(1).sqrt()], 1)


class SeenInverse(nn.Module):
    """One network; see the module.

    Args:
        cameras: names in order, each with C of its maps.
        state: S.
        actions: A.
        places: K of each camera.
        inner: channels of what is computed at every pixel of a map.
        grid: cells a side, over each of which `moved` is averaged.
        widths: of the hidden layers; (): linear.
        seed: of the first weights.

    Raises:
        ValueError: neither cameras nor own readings.
    """

    def __init__(
        self, cameras: Mapping[str, int], state: int, actions: int, *, places: int = 4, inner: int = 32,
        grid: int = 2, widths: Sequence[int] = (), seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if not cameras and not state:
            raise ValueError("SeenInverse: cameras or own readings must be there; got neither.")
        self.cameras, self.grid = tuple(cameras), grid
        random = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # convolutions take it from there
            made = [Places(channels, 1, inner, places) for channels in cameras.values()]
        self.places = nn.ModuleList(made)
        size = 3 * (places + grid * grid) * len(cameras) + 2 * state
        self.net = ActionNet(size, actions, widths, generator=random)

    def forward(self, change: Change) -> Float[Tensor, "B A"]:
        """Actions as they are normalised."""
        return self.net(*self.read(change))

    def read(self, change: Change) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B F"]]:
        """What stood before and after; what `moved` says stands as what was at 0 before."""
        own, step = change.state, change.state.diff(dim=1)
        before, after = ([torch.cat([own[:, k + 1], step[:, k]], 1)] for k in (0, 1))
        silent = change.state.new_zeros(len(change), 1)  # no sentence
        for name, places in zip(self.cameras, self.places, strict=True):
            for maps, found in ((change.before[name], before), (change.after[name], after)):
                where, what = places(maps, silent)
                found.append(torch.cat([SPREAD * where.flatten(1), what], 1))
            went = nn.functional.adaptive_avg_pool2d(change.moved[name], self.grid).flatten(1)
            before.append(torch.zeros_like(went))
            after.append(went)
        return torch.cat(before, 1), torch.cat(after, 1)

    def error(self, change: Change, actions: Float[Tensor, "B A"]) -> Tensor:
        """Mean squared error in training, after these were counted into the means and deviations."""
        before, after = self.read(change)
        self.net.add(before, after)
        return (self.net(before, after) - actions).square().mean()


class SeenInverses:
    """M networks and what turns their mean into an action.

    Args:
        networks: at least one.
        action: normalises actions; kind `mean_std`.
        low, high: (A,), the least and most of each entry that was done; nothing beyond is ever said.
    """

    def __init__(
        self, networks: Sequence[SeenInverse], action: Normaliser, low: Float[np.ndarray, " A"],
        high: Float[np.ndarray, " A"],
    ) -> None:  # fmt: skip
        self.networks, self.action = list(networks), action
        self._low, self._high = low, high

    @torch.no_grad()
    def act(self, change: Change) -> Float[np.ndarray, "B A"]:
        """Float32, in the robot's units."""
        mean = torch.stack([net(change) for net in self.networks]).mean(0)
        return self.action.backward(mean).numpy().clip(self._low, self._high).astype(np.float32)

    @torch.no_grad()
    def changes(self, change: Change) -> Float[np.ndarray, "B F"]:
        """How what the first network reads changed, as standard deviations from their mean in training."""
        net = self.networks[0]
        before, after = net.read(change)
        return net.net.change(after - before).numpy()


def teach(
    net: SeenInverse, rows: Callable[[Int64[np.ndarray, " B"]], tuple[Change, Float[Tensor, "B A"]]], count: int, *,
    steps: int, batch_size: int, learning_rate: float, seed: int, weight_decay: float = 0.01,
    told: Callable[[float], None] = lambda error: None,
) -> None:  # fmt: skip
    """Teach a network which actions were done.

    Args:
        net: learns in place.
        rows: gives the changes of some row numbers, and their normalised actions.
        count: of the rows.
        steps: updates.
        batch_size: B.
        learning_rate: its highest; it rises over the first tenth and falls by a cosine.
        seed: of the batches.
        weight_decay: of AdamW.
        told: gets the error of each update.

    Raises:
        FloatingPointError: the error is not finite.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=weight_decay)
    random, warmup = np.random.default_rng(seed), max(round(WARMUP * steps), 1)
    for done in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * scheduled(done, steps, warmup)
        error = net.error(*rows(random.integers(count, size=batch_size)))
        if not torch.isfinite(error):
            raise FloatingPointError(f"teach: the error must be finite; got {error.item()} at update {done}.")
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        told(float(error.detach()))
