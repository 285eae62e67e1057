"""Windows of demonstrations for a policy of chunks, from any LeRobot folder: names mapped, ends masked, all rows used.

A window is a moment of an episode and the H actions that follow it. At an episode's end there are fewer; the slots that
are left are marked, and the last frames are learned from like all others (cut windows would never show a policy how an
episode ends). Slots whose action is not finite are marked too.

Shape letters: N moments of all episodes, T of one; B batch; H actions of a chunk; A action, S own readings; D text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from embodied.datasets import layout
from embodied.datasets.reader import Dataset
from embodied.errors import UserError, nearest
from policies.vla.core import ChunkBatch
from policies.vla.embedded import ChunkObservation

STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."


@dataclass(frozen=True)
class Names:
    """What the policy's names are called in one dataset.

    Attributes:
        cameras: the policy's name -> the dataset's.
        state, action: features; "" where there are no own readings.
        states, actions: their entries, in the dataset's order.
    """

    cameras: Mapping[str, str]
    state: str
    action: str
    states: tuple[str, ...]
    actions: tuple[str, ...]


def names_of(dataset: Dataset, mapping: Mapping[str, str] | None = None) -> Names:
    """The dataset's names, with those that the mapping says are called otherwise.

    Args:
        dataset: any.
        mapping: the policy's feature (`observation.state`, `action`, `observation.images.NAME`) -> the dataset's
            (a camera's short name will do). What is not in it keeps its name.

    Raises:
        UserError: a name that is neither the policy's nor the dataset's, or one dataset's name meant twice.
    """
    mapping = dict(mapping or {})
    for key in mapping:
        if key not in (STATE, ACTION) and not key.startswith(IMAGES):
            known = (STATE, ACTION, *(IMAGES + name for name in dataset.cameras))
            raise UserError(f"policy.names must map {STATE}, {ACTION} or {IMAGES}NAME; got {key!r}. "
                            f"{nearest(key, known)}")  # fmt: skip
    numeric = [n for n, f in dataset.features.items() if f["dtype"] not in (*layout.IMAGES, "string")]
    numeric = [name for name in numeric if name not in layout.COUNTERS]
    found: dict[str, str] = {}
    for key in (STATE, ACTION):
        wanted = mapping.get(key, key)
        if wanted in numeric:
            found[key] = wanted
        elif key in mapping or key == ACTION:
            raise UserError(f"{dataset.root}: {key} must be one of its features; got {wanted!r}. "
                            f"{nearest(wanted, numeric)} Say which: policy.names={{{key}: NAME}}.")  # fmt: skip
    cameras: dict[str, str] = {}
    for key, value in mapping.items():
        if key.startswith(IMAGES):
            short = layout.short_name(value)
            if short not in dataset.cameras:
                raise UserError(f"{dataset.root}: policy.names says {value!r}, which is none of its cameras. "
                                f"{nearest(short, dataset.cameras)}")  # fmt: skip
            cameras[layout.short_name(key)] = short
    if len(set(cameras.values())) < len(cameras):
        raise UserError(f"policy.names must map different cameras to different ones; got {mapping}.")
    for name in dataset.cameras:
        if name not in cameras.values() and name not in cameras:
            cameras[name] = name
    order = {name: k for k, name in enumerate(dataset.cameras)}
    cameras = dict(sorted(cameras.items(), key=lambda item: order[item[1]]))

    def entries(key: str, prefix: str) -> tuple[str, ...]:
        return tuple(layout.column_names(dataset.features[found[key]], prefix)) if key in found else ()

    return Names(cameras, found.get(STATE, ""), found[ACTION], entries(STATE, "state"), entries(ACTION, "action"))


def ordered(have: Sequence[str], want: Sequence[str], what: str) -> list[int]:
    """Where in `have` each of `want` is.

    Raises:
        UserError: one of `want` is missing, with the nearest there is.
    """
    for name in want:
        if name not in have:
            raise UserError(f"{what} must have {name!r}, which the policy reads or gives. {nearest(name, have)}")
    return [list(have).index(name) for name in want]


@dataclass(frozen=True)
class EncodedEpisode:
    """One demonstration, encoded.

    Attributes:
        maps: camera -> (T, P, h, w) half precision, or pictures (T, 3, s, s) uint8; those there are.
        state: (T, S).
        actions: (T, A).
        instruction: "" where there is none.
        ratio: rows of it to one of the policy's actions: its fps over the policy's.
        success: what the dataset says of its last row; for judging and labelling, never read by a policy.
        index: of it in its dataset.
    """

    maps: Mapping[str, Shaped[Tensor, "T P h w"]]
    state: Float[np.ndarray, "T S"]
    actions: Float[np.ndarray, "T A"]
    instruction: str
    ratio: float = 1.0
    success: bool | None = None
    index: int = 0

    def __len__(self) -> int:
        return len(self.actions)


def read_episode(
    dataset: Dataset,
    i: int,
    names: Names,
    *,
    eyes: Mapping[str, Callable[[Dataset, int, str], Tensor]],
    states: Sequence[str],
    actions: Sequence[str],
    fps: float,
) -> EncodedEpisode:
    """Episode i of a dataset, as a policy reads it.

    Args:
        dataset: of any fps.
        i: from 0.
        names: of `names_of`.
        eyes: the policy's camera -> what gives its maps of an episode.
        states, actions: the entries that the policy reads and gives, in its order.
        fps: the policy's.

    Raises:
        UserError: an entry that the dataset lacks; a broken file.
    """
    columns = dataset.columns(i, [name for name in (names.state, names.action) if name])
    length, where = dataset.length(i), f"{dataset.root}"
    state = columns[names.state].reshape(length, -1) if names.state else np.zeros((length, 0))
    action = columns[names.action].reshape(length, -1)
    success = dataset.columns(i, ["next.success"])["next.success"] if "next.success" in dataset.features else None
    return EncodedEpisode(
        {name: eye(dataset, i, names.cameras[name]) for name, eye in eyes.items() if name in names.cameras},
        state[:, ordered(names.states, states, f"{where}: {names.state}")].astype(np.float32),
        action[:, ordered(names.actions, actions, f"{where}: {names.action}")].astype(np.float32),
        dataset.instruction(i),
        dataset.fps / fps,
        None if success is None else bool(np.asarray(success).reshape(-1)[-1]),
        i,
    )


class Windows:
    """The windows of some episodes; row n is one moment.

    Args:
        episodes: at least one.
        horizon: H.
        cameras: those that the policy reads, in order.
        texts: sentence -> (D,), of every instruction.

    Attributes:
        episode: (N,) which episode each row is of.
        moment: (N,) when in it.
        usable: (N,) bool: own readings are finite, and at least one action of the chunk is.
        resting: (N,) bool: every action from the one before on is the episode's last one: all is done, the robot waits.

    Raises:
        UserError: no episode, or no usable row.
    """

    def __init__(
        self, episodes: Sequence[EncodedEpisode], *, horizon: int, cameras: Sequence[str], texts: Mapping[str, Tensor]
    ) -> None:
        if not episodes:
            raise UserError("data must hold at least one episode; it holds none.")
        lengths = np.array([len(episode) for episode in episodes])
        self.episodes, self.horizon, self.cameras = list(episodes), horizon, tuple(cameras)
        self.episode = np.repeat(np.arange(len(lengths)), lengths)
        first = np.cumsum(lengths) - lengths
        self.moment = np.arange(lengths.sum()) - first[self.episode]
        self._last = (first + lengths - 1)[self.episode]
        self._ratio = np.array([episode.ratio for episode in episodes])[self.episode]
        self._state = torch.from_numpy(np.concatenate([episode.state for episode in episodes]))
        self._actions = torch.from_numpy(np.concatenate([episode.actions for episode in episodes]))
        sentences = list(dict.fromkeys(episode.instruction for episode in episodes))
        self._texts = torch.stack([texts[sentence] for sentence in sentences])
        self._sentence = np.array([sentences.index(episode.instruction) for episode in episodes])
        self._maps: dict[str, list[Tensor | None]] = {}  # of each episode, as they lie in their files
        self._blank: dict[str, Tensor] = {}  # in place of a camera that an episode lacks
        self._seen: dict[str, np.ndarray] = {}
        for name in self.cameras:
            there = [name in episode.maps for episode in episodes]
            self._maps[name] = [episode.maps.get(name) for episode in episodes]
            one = next((maps[0] for maps in self._maps[name] if maps is not None), torch.zeros(1, 1, 1).half())
            self._blank[name] = torch.zeros_like(one)
            self._seen[name] = np.array(there)[self.episode]
        finite = torch.isfinite(self._actions).all(1).numpy()
        self._finite = finite
        real = self._real(np.arange(len(self.episode)))[1]
        self.resting = np.concatenate([_resting(episode.actions) for episode in episodes])
        self.usable = torch.isfinite(self._state).all(1).numpy() & real.any(1)
        if not self.usable.any():
            raise UserError("data must hold a row with finite own readings and actions; it holds none.")

    def __len__(self) -> int:
        return len(self.episode)

    def _real(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers (B, H) of the actions of each chunk, kept inside the episode, and which are real."""
        steps = np.floor(np.arange(self.horizon) * self._ratio[rows, None] + 0.5).astype(int)
        wanted, last = rows[:, None] + steps, self._last[rows, None]
        inside = np.minimum(wanted, last)
        return inside, (wanted <= last) & self._finite[inside]

    def batch(self, rows: Int64[np.ndarray, " B"]) -> ChunkBatch:
        """What the policy sees at some rows, and what was done then."""
        inside, real = self._real(rows)
        index = torch.from_numpy(rows)
        obs = ChunkObservation(
            {name: self._shown(name, rows) for name in self.cameras},
            {name: torch.from_numpy(seen[rows]) for name, seen in self._seen.items()},
            self._texts[torch.from_numpy(self._sentence[self.episode[rows]])],
            self._state[index],
        )
        return ChunkBatch(obs, self._actions[torch.from_numpy(inside)], torch.from_numpy(~real))

    def _shown(self, name: str, rows: np.ndarray) -> Tensor:
        """What one camera shows at some rows."""
        episodes, blank = self._maps[name], self._blank[name]
        found = []
        for e, t in zip(self.episode[rows].tolist(), self.moment[rows].tolist(), strict=True):
            maps = episodes[e]
            found.append(blank if maps is None else maps[t])
        return torch.stack(found)

    def actions(self) -> Float[np.ndarray, "N A"]:
        """Every row's action."""
        return self._actions.numpy()

    def states(self) -> Float[np.ndarray, "N S"]:
        """Every row's own readings."""
        return self._state.numpy()

    def rows_of(self, episodes: Bool[np.ndarray, " E"]) -> Int64[np.ndarray, " n"]:
        """The usable rows of some episodes."""
        return np.flatnonzero(episodes[self.episode] & self.usable)


def _resting(actions: Float[np.ndarray, "T A"]) -> Bool[np.ndarray, " T"]:
    """Rows from whose predecessor on every action is the last one, to a thousandth of what the entry varies by."""
    if not np.isfinite(actions).all():
        return np.zeros(len(actions), bool)
    moved = ~(np.abs(actions - actions[-1:]) <= 1e-3 * np.ptp(actions, axis=0)).all(1)
    still = ~np.logical_or.accumulate(moved[::-1])[::-1]
    return np.concatenate([[False], still[:-1]])
