"""Episodes of films and of play as an inverse model reads them: what both have, and pairs of moments.

Shape letters: T rows of an episode, N pairs of moments, B batch, A action, S own readings; P channels, h, w of a map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from embodied.datasets import layout
from embodied.datasets.maps import Eye
from embodied.datasets.reader import Dataset
from embodied.datasets.windows import ACTION, STATE
from embodied.errors import UserError, nearest
from policies.vla.inverse import Change, moved
from rewards.progress import tqdm

READ = ("auto", "state", "pictures", "both")


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
    for name in seen if read != "state" else ():
        (height, width), (high, wide) = (_shape(each, name) for each in (films, play))
        if height * wide != high * width:
            raise UserError(
                f"data and play must show {name} in one shape, as one camera does; got {height} x {width} and {high} x "
                f"{wide} pixels. Leave it out with cameras=[…]."
            )
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


def _shape(dataset: Dataset, camera: str) -> tuple[int, int]:
    """(H, W) of its pictures."""
    feature = next(f for key, f in dataset.features.items() if camera in (key, layout.short_name(key)))
    return layout.image_shape(feature)


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

    @property
    def readable(self) -> Bool[np.ndarray, " N"]:
        """Of every pair of moments, whether all readings that `changes` takes of it are numbers."""
        fine = np.asarray(np.isfinite(self.state.numpy()).all(1))
        return np.array([fine[max(t - 1, 0) : t + 2].all() for t in range(len(self))], bool)

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
