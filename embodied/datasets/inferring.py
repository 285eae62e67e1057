"""Actions for films: read off play, which has them, and given to episodes of the same robot and cameras that lack them.

Shape letters: T rows of an episode, N pairs of moments, B batch, A action, S own readings, F numbers that the network
reads of a moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from embodied.datasets.maps import Eye, check_maps, fit_eye
from embodied.datasets.reader import Dataset
from embodied.datasets.seen import Common, SeenEpisode, changes, read_all
from embodied.errors import UserError
from policies.inverse import r_squared
from policies.vla.inverse import Change, SeenInverse, SeenInverses, teach
from policies.vla.stats import Normaliser
from rewards.progress import tqdm

LEAST_STEPS = 100  # of play, below which nothing is learned from it
OUTLYING = 0.99  # quantile of held-out play, beyond which a change is told to lie outside
SHRINK = 0.01  # of the covariance towards a sphere


class Play:
    """Episodes with actions, of which every so many-th is held out.

    Args:
        episodes: of the dataset.
        every: the last of each so many is held out.
        where: for errors.

    Attributes:
        taught, held: (episode, row) of the pairs that are learned from, and of those that are not.

    Raises:
        UserError: too few episodes to hold one out, or too few steps.
    """

    def __init__(self, episodes: Sequence[SeenEpisode], *, every: int, where: str) -> None:
        self.episodes = list(episodes)
        every = min(every, len(self.episodes))
        parts: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        for e, episode in enumerate(self.episodes):
            known = np.isfinite(episode.actions[: len(episode)]).all(1) & episode.readable
            parts[e % every == every - 1] += [(e, int(t)) for t in np.flatnonzero(known)]
        self.held, self.taught = parts[True], parts[False]
        _check_enough(where, len(self.episodes), len(self.taught) if self.held else 0)

    def actions(self, places: Sequence[tuple[int, int]]) -> Float[np.ndarray, "N A"]:
        """That were done at some (episode, row)."""
        return np.stack([self.episodes[e].actions[t] for e, t in places])


def _check_enough(where: str, episodes: int, steps: int) -> None:
    if episodes < 2 or steps < LEAST_STEPS:
        raise UserError(
            f"play must hold two episodes or more, and {LEAST_STEPS} steps with actions beside those that are held "
            f"out; {where} has {episodes} episodes and {steps} such steps. Collect more."
        )


@dataclass(frozen=True)
class Agreement:
    """How well inferred actions meet those that were done.

    Attributes:
        overall: R² over all entries.
        entries: R² of each; NaN where it never changed.
        count: steps.
    """

    overall: float
    entries: tuple[float, ...]
    count: int

    @classmethod
    def of(cls, said: Float[np.ndarray, "N A"], done: Float[np.ndarray, "N A"]) -> Agreement:
        """Of some rows; those whose action is not finite are left out.

        Args:
            said: what was inferred.
            done: what was done.
        """
        known = np.isfinite(done).all(1)
        said, done = said[known], done[known]
        varied = [len(done) > 0 and bool(np.ptp(done[:, k]) > 0) for k in range(done.shape[1])]
        each = [r_squared(said[:, [k]], done[:, [k]]) if varied[k] else float("nan") for k in range(done.shape[1])]
        return cls(r_squared(said, done) if any(varied) else float("nan"), tuple(each), len(done))

    def told(self, names: Sequence[str]) -> str:
        """In words, with the names of the entries."""
        each = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, self.entries, strict=True))
        return f"R² {self.overall:.3f} over {self.count} steps ({each})"


@dataclass(frozen=True)
class Inferrer:
    """What was learned from play.

    Attributes:
        common: what it reads.
        eyes: camera -> frames to maps.
        model: changes to actions.
        held_out: how well it does on play that it did not learn from.
        centre, spread: (F,) and (F, F), mean and inverse covariance of the changes that it learned from.
        limit: distance below which `OUTLYING` of the changes of held-out play lie.
    """

    common: Common
    eyes: Mapping[str, Eye]
    model: SeenInverses
    held_out: Agreement
    centre: Float[np.ndarray, " F"]
    spread: Float[np.ndarray, "F F"]
    limit: float

    def actions(self, episode: SeenEpisode) -> Float[np.ndarray, "T A"]:
        """Of every row; it goes on as before where nobody kept what followed, and where a reading is no number.

        Raises:
            UserError: no two moments one after the other can be read.
        """
        length = len(episode.actions)
        if not len(episode):  # one moment, and nothing after it: the world is taken to stay as it is
            episode = SeenEpisode(episode.maps, episode.maps, episode.state[[0, 0]], episode.actions, True)
        read = np.flatnonzero(episode.readable)
        if not len(read):
            raise UserError(
                f"data must have own readings that are numbers; an episode of {length} rows has none in three rows one "
                "after another. Use read=pictures."
            )
        said = self.model.act(changes([episode], [(0, int(t)) for t in read]))
        before = np.searchsorted(read, np.arange(length), side="right") - 1
        return said[before.clip(min=0)]

    def outside(self, episode: SeenEpisode) -> Float[np.ndarray, " N"]:
        """1 where a change that can be read lies further out than `OUTLYING` of held-out play's, else 0."""
        read = np.flatnonzero(episode.readable)
        if not len(read):
            return np.zeros(0)
        found = self.model.changes(changes([episode], [(0, int(t)) for t in read]))
        return (distances(found, self.centre, self.spread) > self.limit).astype(float)


def distances(
    found: Float[np.ndarray, "N F"], centre: Float[np.ndarray, " F"], spread: Float[np.ndarray, "F F"]
) -> Float[np.ndarray, " N"]:
    """Mahalanobis's, in float64.

    Args:
        found: changes.
        centre: their mean in play.
        spread: the inverse of their covariance there.
    """
    away = found.astype(np.float64) - centre
    return np.sqrt(np.einsum("nf,fg,ng->n", away, spread, away).clip(0))


def infer(
    films: Dataset, play: Dataset, common: Common, encoder: Any, *, layer: str | None, channels: int, held_out: int,
    steps: int, batch_size: int, learning_rate: float, members: int, seed: int, **network: Any,
) -> Inferrer:  # fmt: skip
    """Learn from play.

    Args:
        films: whose frames only tell which directions of the maps are kept.
        play: that has actions.
        common: what is read.
        encoder: gives maps; not asked where no pictures are read.
        layer, channels: of its maps, see `fit_eye`.
        held_out: every so many-th episode of play is not learned from.
        steps, batch_size, learning_rate: see `teach`.
        members: networks whose mean counts.
        seed: of weights and batches.
        network: `places`, `inner`, `grid` and `widths` of `SeenInverse`.

    Raises:
        UserError: an encoder without maps, a damaged file, or too little play.
    """
    _check_enough(str(play.root), len(play), sum(span.length for span in play.spans))  # before a frame is decoded
    eyes: dict[str, Eye] = {}
    if common.cameras:
        check_maps(encoder, layer)
    for name in common.cameras:
        sources = [(dataset, name, range(len(dataset))) for dataset in (play, films)]
        eyes[name] = fit_eye(sources, encoder, layer=layer, channels=channels)
    known = Play(list(read_all(play, common, eyes, "play")), every=held_out, where=str(play.root))
    done = known.actions(known.taught)
    action = Normaliser.fit(done, "mean_std", names=common.actions)
    targets = action.forward(torch.from_numpy(done))

    def rows(chosen: Int64[np.ndarray, " B"]) -> tuple[Change, Float[Tensor, "B A"]]:
        return changes(known.episodes, [known.taught[k] for k in chosen]), targets[torch.from_numpy(chosen)]

    sizes = {name: len(eye.offset) for name, eye in eyes.items()}
    networks = []
    with tqdm(total=members * steps, desc="inverse model", unit="update", smoothing=0.05) as bar:

        def tell(error: float) -> None:
            bar.update()
            if bar.n % 50 == 0:
                bar.set_postfix(error=f"{error:.4f}")

        for member in range(members):
            own = seed * 1000 + member
            net = SeenInverse(sizes, len(common.states), len(common.actions), seed=own, **network)
            teach(
                net, rows, len(targets), steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=own,
                told=tell,
            )  # fmt: skip
            networks.append(net.eval())
    model = SeenInverses(networks, action, done.min(0), done.max(0))
    said = np.concatenate([model.act(each) for each in batches(known, known.held)])
    far = np.concatenate([model.changes(each) for each in batches(known, known.taught)]).astype(np.float64)
    cov = np.cov(far, rowvar=False).reshape(far.shape[1], far.shape[1])
    cov = (1 - SHRINK) * cov + SHRINK * np.trace(cov) / len(cov) * np.eye(len(cov))
    centre, spread = far.mean(0), np.linalg.inv(cov)
    apart = np.concatenate([distances(model.changes(each), centre, spread) for each in batches(known, known.held)])
    return Inferrer(
        common, eyes, model, Agreement.of(said, known.actions(known.held)), centre, spread,
        float(np.quantile(apart, OUTLYING)),
    )  # fmt: skip


def batches(play: Play, places: Sequence[tuple[int, int]], size: int = 256) -> Iterator[Change]:
    """The changes at many (episode, row), some at a time.

    Args:
        play: whose.
        places: in their order.
        size: of a batch, at most.
    """
    for start in range(0, len(places), size):
        yield changes(play.episodes, places[start : start + size])
