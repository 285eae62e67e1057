"""How well a learned world tells the truth, before anyone practises in it; on episodes that it was not taught.

UNIVERSE judges world models by questions about their rollouts: did the action happen, is it the same character. Here
they are measured without a language model:

    error      of maps after 8 and 16 actions, as a share of that of "nothing changed"; and of an action-blind world
    happened   the action, read back from an imagined pair of moments by an inverse model taught on real pairs
    same       of a few true moments, is the imagined one nearest to its own: among other scenes, and among other
               moments of its own episode
    reflector  the success that it reads in imagined moments against the recorded success of what truly came

Shape letters: n windows, U model steps, L tokens of D, A action.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor

from policies.core import Batch
from policies.inverse import inverse, r_squared
from policies.vla.world import Reflector, Segment, Tracks, WorldEnsemble, error
from rewards.metrics import auroc

STEPS = (8, 16)  # actions after which it is asked
WINDOWS = 400  # at most, spread over the held-out episodes
OTHERS = 7  # moments that a true one is hidden among
WIDTH, UPDATES = 48, 400  # of the inverse model: principal directions of what changes, and updates


@dataclass(frozen=True)
class Rolled:
    """What three foretell of the same windows.

    Attributes:
        segment: the truth.
        found: "world", "blind" and "copy" (nothing changed) -> (n, U, L, D).
    """

    segment: Segment
    found: Mapping[str, Float[Tensor, "n U L D"]]

    def before(self, who: str, u: int) -> Float[Tensor, "n L D"]:
        """The moment from which the u-th model step leads, as that one sees it."""
        return self.found[who][:, u - 1] if u else self.segment.tokens[:, 0]


def windows(tracks: Tracks, held_out: np.ndarray) -> np.ndarray:
    """Rows of held-out episodes with the longest of `STEPS` after them."""
    rows = tracks.starts(max(STEPS), held_out)
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), WINDOWS)).astype(int))] if len(rows) else rows


def roll(world: WorldEnsemble, blind: WorldEnsemble, tracks: Tracks, rows: np.ndarray) -> Rolled:
    """Foretell windows from their first moments."""
    segment = tracks.segment(rows, world.spec.stride, max(STEPS) // world.spec.stride)
    still = segment.tokens[:, :1].expand(-1, segment.actions.shape[1], -1, -1)
    return Rolled(segment, {"world": world.roll(segment)[0], "blind": blind.roll(segment)[0], "copy": still})


def errors(rolled: Rolled, stride: int) -> dict[str, dict[str, float]]:
    """After each of `STEPS` actions: `world` and `blind`, as shares of `copy`, which is in squared units of tokens."""
    told = {}
    for steps in STEPS:
        u = steps // stride - 1
        truth = rolled.segment.tokens[:, u + 1]
        found = {who: error(each[:, u], truth) for who, each in rolled.found.items()}
        told[str(steps)] = {who: found[who] / max(found["copy"], 1e-12) for who in ("world", "blind")}
        told[str(steps)]["copy"] = found["copy"]
    return told


def same(rolled: Rolled, episode: np.ndarray, seed: int) -> dict[str, Any]:
    """Share of windows whose imagined end is nearest to its own true one.

    Returns:
        `scene`: among the ends of `OTHERS` windows of other episodes; `moment`: among its own episode's moments of
        every model step before, where it changed more than the median. Each by who foretold; and `scene_chance`,
        `moment_chance`.
    """
    ends, count = rolled.segment.tokens[:, -1].flatten(1), len(episode)
    rng = np.random.default_rng(seed)
    others = [np.flatnonzero(episode != each) for each in episode]
    shown = np.array([rng.choice(each, OTHERS) for each in others]) if all(map(len, others)) else None
    moved = (rolled.segment.tokens[:, -1] - rolled.segment.tokens[:, 0]).square().mean((1, 2))
    moving = moved >= moved.median()
    told: dict[str, Any] = {"scene": {}, "moment": {}, "scene_chance": 1 / (OTHERS + 1)}
    told["moment_chance"] = 1 / rolled.segment.tokens.shape[1]
    for who, each in rolled.found.items():
        end = each[:, -1].flatten(1)
        own = (end - ends).square().mean(1)
        if shown is not None:
            far = torch.stack([(end[i] - ends[shown[i]]).square().mean(1) for i in range(count)])
            told["scene"][who] = float((own[:, None] < far).all(1).float().mean())
        earlier = (each[:, -1:] - rolled.segment.tokens[:, :-1]).square().mean((2, 3))
        told["moment"][who] = float((own[:, None] < earlier).all(1)[moving].float().mean())
    return told


def happened(
    world: WorldEnsemble, tracks: Tracks, taught: np.ndarray, rolled: Rolled, *, seed: int
) -> dict[str, dict[str, float]]:
    """The mean action of the last model step, read back by an inverse model that knows real pairs alone.

    Args:
        world: its limits of actions.
        tracks: episodes.
        taught: rows that have a model step after them, not of held-out episodes.
        rolled: the windows.
        seed: of the inverse model.

    Returns:
        "real" and who foretold -> `r_squared` and `choice`, how often the true action is nearer to what was read than
        another window's (chance 0.5).
    """
    stride = world.spec.stride
    pairs = tracks.segment(taught, stride, 1)
    low, high = world.action.forward(torch.stack([world.low, world.high]))

    def scaled(actions: Tensor) -> Tensor:
        return 2 * (actions.mean(1) - low) / (high - low).clamp_min(1e-6) - 1

    directions = _directions((pairs.tokens[:, 1] - pairs.tokens[:, 0]).flatten(1))  # scenes differ more than they move

    def short(tokens: Tensor) -> Tensor:
        return tokens.flatten(1) @ directions

    before, after, did = short(pairs.tokens[:, 0]), short(pairs.tokens[:, 1]), scaled(pairs.actions[:, 0])
    box = spaces.Box(-np.inf, np.inf, (directions.shape[1],)), spaces.Box(-1, 1, (did.shape[1],))
    model = inverse(*box, seed=seed, device="cpu")

    def batches() -> Iterator[Batch]:
        random = np.random.default_rng(seed)
        while True:
            rows = torch.from_numpy(random.integers(len(did), size=model.sampling.batch_size))
            flags = torch.zeros(1, len(rows), dtype=torch.bool)
            obs = torch.stack([before[rows], after[rows]])
            yield Batch(obs, did[rows][None], flags.float(), flags, ~flags, flags)

    model.update(batches(), UPDATES)
    last = rolled.segment.actions.shape[1] - 1
    truth = scaled(rolled.segment.actions[:, last]).numpy()
    other = np.roll(truth, len(truth) // 2, 0)
    shown = {who: (rolled.before(who, last), each[:, last]) for who, each in rolled.found.items()}
    shown["real"] = (rolled.segment.tokens[:, last], rolled.segment.tokens[:, last + 1])
    told = {}
    for who, (first, then) in shown.items():
        ends = torch.stack([short(first), short(then)])
        said = np.concatenate([model.label(ends[:, i]) for i in range(ends.shape[1])])
        nearer = np.square(said - truth).sum(1) < np.square(said - other).sum(1)
        told[who] = {"r_squared": r_squared(said, truth), "choice": float(nearer.mean())}
    return told


def _directions(values: Float[Tensor, "N F"]) -> Float[Tensor, "F W"]:
    """Principal directions of some rows, by their products with each other: there are fewer of them than entries."""
    some = values[:: -(-len(values) // 1000)].double()
    some = some - some.mean(0)
    spread, vectors = torch.linalg.eigh(some @ some.T)
    order = spread.argsort(descending=True)[:WIDTH]
    order = order[spread[order] > 1e-4 * spread.max()]  # what is left is rounding
    return (some.T @ vectors[:, order] / spread[order].sqrt()).float()


def reflected(
    reflector: Reflector, rolled: Rolled, text: Float[Tensor, "n T"], success: Float[np.ndarray, " n"]
) -> dict[str, float | None]:
    """AUROC of the success that the reflector reads in windows' ends against the recorded one; None of one kind alone.

    Args:
        reflector: judges.
        rolled: the windows.
        text: of each.
        success: what was recorded of the true end, NaN where nothing was.
    """
    known = ~np.isnan(success)
    labels = success[known] > 0.5
    shown = {who: each[:, -1] for who, each in rolled.found.items()} | {"real": rolled.segment.tokens[:, -1]}
    if not labels.any() or labels.all():
        return dict.fromkeys(shown)
    return {who: auroc(reflector.judge(each, text)[known, 1].numpy(), labels) for who, each in shown.items()}
