"""Actions for films: read off play, which has them, and given to episodes of the same robot and cameras that lack them.

Shape letters: T rows of an episode, N pairs of moments, B batch, A action, S own readings; P channels, h, w of a map; F
numbers that the network reads of a moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from embodied.datasets import layout
from embodied.datasets.maps import Eye, check_maps, fit_eye
from embodied.datasets.reader import Dataset
from embodied.datasets.windows import ACTION, STATE
from embodied.errors import UserError, nearest
from policies.inverse import r_squared
from policies.vla.inverse import Change, SeenInverse, SeenInverses, moved, teach
from policies.vla.stats import Normaliser
from rewards.progress import tqdm

READ = ("auto", "state", "pictures", "both")
LEAST_STEPS = 100  # of play, below which nothing is learned from it
OUTLYING = 0.99  # quantile of held-out play, beyond which a change is told to lie outside
SHRINK = 0.01  # of the covariance towards a sphere


@dataclass(frozen=True)
class Common:
    """What both datasets have, and the model reads.

    Attributes:
        cameras: short names, in the order of play; () where no pictures are read.
        states: own readings, in the order of play; () where none are read.
        actions: entries of play's action.
    """

    cameras: tuple[str, ...]
    states: tuple[str, ...]
    actions: tuple[str, ...]

    def told(self) -> str:
        """In words."""
        seen = [f"cameras {', '.join(self.cameras)}"] if self.cameras else []
        return "; ".join([*seen, *([f"own readings {', '.join(self.states)}"] if self.states else [])])


def in_common(films: Dataset, play: Dataset, *, read: str = READ[0], cameras: Sequence[str] | None = None) -> Common:
    """What an inverse model can read of both.

    Args:
        films: whose actions are wanted.
        play: that has them.
        read: one of `READ`; "auto": all that both have.
        cameras: to look at; None: all that both have.

    Raises:
        UserError: play has no actions; another rate; nothing in common, or not what `read` and `cameras` ask for.
    """
    if read not in READ:
        raise UserError(f"read must be one of {', '.join(READ)}; got {read!r}. {nearest(str(read), READ)}")
    feature = play.features.get(ACTION)
    if feature is None or not str(feature["dtype"]).startswith("float") or len(feature["shape"]) != 1:
        got = "no action" if feature is None else f"{feature['dtype']} of shape {feature['shape']}"
        raise UserError(f"play: {play.root} must have actions, floats of one axis; it has {got}. Collect some: "
                        "embodied collect policy=random.")  # fmt: skip
    if films.fps != play.fps:
        raise UserError(
            f"play must have the rate of data: a change is what one action makes of it; got {play.fps:g} and "
            f"{films.fps:g} fps."
        )
    both = tuple(name for name in play.cameras if name in films.cameras)
    has = {"data": films, "play": play}
    told = "; ".join(f"{key} has {', '.join(each.cameras) or 'none'}" for key, each in has.items())
    for name in cameras or ():
        if name not in both:
            raise UserError(f"cameras: {name!r} must be in data and in play; {told}. {nearest(str(name), both)}")
    seen = both if cameras is None else tuple(cameras)
    if read in ("pictures", "both") and not seen:
        raise UserError(f"read={read} needs a camera that data and play share; {told}.")
    names = {key: tuple(layout.column_names(each.features[STATE], "state")) if STATE in each.features else ()
             for key, each in has.items()}  # fmt: skip
    same = bool(names["play"]) and sorted(names["data"]) == sorted(names["play"])
    states = f"data has {', '.join(names['data']) or 'none'}; play has {', '.join(names['play']) or 'none'}"
    if read in ("state", "both") and not same:
        raise UserError(f"read={read} needs the same own readings ({STATE}) in data and play; {states}.")
    if not seen and not same:
        raise UserError(f"data and play must share a camera or own readings. Cameras: {told}. Readings: {states}.")
    return Common(
        () if read == "state" else seen,
        names["play"] if same and read != "pictures" else (),
        tuple(layout.column_names(feature, "action")),
    )


@dataclass(frozen=True)
class SeenEpisode:
    """One episode, as an inverse model reads it.

    Attributes:
        maps: camera -> (T, P, h, w) half precision.
        ending: camera -> (1, P, h, w), after the last action; nothing where it was not kept.
        state: (T, S), or (T + 1, S) where what came last was kept.
        actions: (T, A); (T, 0) where there are none.
        closed: whether what was there after the last action was kept.
    """

    maps: Mapping[str, Tensor]
    ending: Mapping[str, Tensor]
    state: Float[Tensor, "_ S"]
    actions: Float[np.ndarray, "T A"]
    closed: bool

    def __len__(self) -> int:
        """Pairs of moments."""
        return len(self.actions) - (not self.closed)

    def maps_at(self, camera: str, t: int) -> Float[Tensor, "P h w"]:
        """A moment's, that after the last action too."""
        maps = self.maps[camera]
        return maps[t] if t < len(maps) else self.ending[camera][0]

    @cached_property
    def moved(self) -> dict[str, Float[Tensor, "N 3 h w"]]:
        """Of every pair, by camera."""
        found = {}
        for name, maps in self.maps.items():
            whole = torch.cat([maps, self.ending[name]]) if self.closed else maps
            found[name] = moved(whole[:-1], whole[1:])
        return found


def read_episode(dataset: Dataset, i: int, common: Common, eyes: Mapping[str, Eye]) -> SeenEpisode:
    """Episode i; its maps are kept for the next time.

    Args:
        dataset: films or play.
        i: from 0.
        common: what is read.
        eyes: camera -> frames to maps.

    Raises:
        UserError: a damaged file.
    """
    length, order = dataset.length(i), ()
    state, actions = (np.zeros((length, 0), np.float32) for _ in range(2))
    if common.states:
        names = layout.column_names(dataset.features[STATE], "state")
        order = [names.index(name) for name in common.states]
        state = dataset.columns(i, [STATE])[STATE].reshape(length, -1).astype(np.float32)[:, order]
    if dataset.features.get(ACTION, {"dtype": "string"})["dtype"] != "string":
        actions = dataset.columns(i, [ACTION], nulls=True)[ACTION].reshape(length, -1).astype(np.float32)
    frames, values = dataset.last(i)
    closed = set(common.cameras) <= set(frames) and (not common.states or STATE in values)
    if closed:
        last = np.asarray(values[STATE] if common.states else (), np.float32).reshape(-1)[list(order)]
        state = np.concatenate([state, last[None]])
    maps = {name: eyes[name].of(dataset, i, name) for name in common.cameras}
    ending = {name: eyes[name](np.array(frames[name])[None]) for name in common.cameras} if closed else {}
    return SeenEpisode(maps, ending, torch.from_numpy(state), actions, closed)


def changes(episodes: Sequence[SeenEpisode], places: Sequence[tuple[int, int]]) -> Change:
    """The pairs of moments at some (episode, row).

    Args:
        episodes: those that are meant.
        places: at least one.
    """
    cameras = episodes[places[0][0]].maps

    def at(name: str, later: int) -> Tensor:
        return torch.stack([episodes[e].maps_at(name, t + later) for e, t in places])

    return Change(
        before={name: at(name, 0) for name in cameras},
        after={name: at(name, 1) for name in cameras},
        moved={name: torch.stack([episodes[e].moved[name][t] for e, t in places]) for name in cameras},
        state=torch.stack([episodes[e].state[[max(t - 1, 0), t, t + 1]] for e, t in places]),
    )


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
            known = np.flatnonzero(np.isfinite(episode.actions).all(1))
            parts[e % every == every - 1] += [(e, int(t)) for t in known if t < len(episode)]
        self.held, self.taught = parts[True], parts[False]
        if len(self.episodes) < 2 or len(self.taught) < LEAST_STEPS or not self.held:
            raise UserError(
                f"play must hold two episodes or more, and {LEAST_STEPS} steps with actions beside those that are held "
                f"out; {where} has {len(self.episodes)} episodes and {len(self.taught)} such steps. Collect more."
            )

    def actions(self, places: Sequence[tuple[int, int]]) -> Float[np.ndarray, "N A"]:
        """That were done at some (episode, row)."""
        return np.stack([self.episodes[e].actions[t] for e, t in places])


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
        """Of every row; where nobody kept what followed the last one, it goes on as before."""
        length = len(episode.actions)
        if not len(episode):  # one moment, and nothing after it: the world is taken to stay as it is
            episode = SeenEpisode(episode.maps, episode.maps, episode.state[[0, 0]], episode.actions, True)
        said = self.model.act(changes([episode], [(0, t) for t in range(len(episode))]))
        return np.concatenate([said, said[-1:]])[:length]

    def outside(self, episode: SeenEpisode) -> Float[np.ndarray, " N"]:
        """(N,) 1 where a change lies further out than `OUTLYING` of held-out play's, else 0."""
        if not len(episode):
            return np.zeros(0)
        found = self.model.changes(changes([episode], [(0, t) for t in range(len(episode))]))
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


def read_all(dataset: Dataset, common: Common, eyes: Mapping[str, Eye], desc: str) -> Iterator[SeenEpisode]:
    """Every episode, one after another.

    Args:
        dataset: films or play.
        common: what is read.
        eyes: camera -> frames to maps.
        desc: for the bar.
    """
    for i in tqdm(range(len(dataset)), desc=desc, unit="episode", leave=False, delay=2):
        yield read_episode(dataset, i, common, eyes)
