"""Rollouts to rewards, before any update reads them; it knows neither learners nor buffers.

Heads that can go on row by row see each row once; others are given the whole episode so far. Features stay beside the
replay, so that another run can pay for the same steps by another goal without encoding (`experience`).

Shape letters: T steps, E worlds, V views, W row width.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from embodied import scoring
from embodied.scoring import Layout, Track
from embodied.training.collector import Collected, below
from embodied.training.divergence import DivergenceWatch
from embodied.training.worth import Ended, RolloutLabels, ended_of
from rewards.combine import LagrangianConstraints
from rewards.core import Scorer

POTENTIALS = 1000  # of a head, behind the logged statistics
EPISODES = 100  # ended ones behind a firing rate, as many as behind the mean return


class Labeller:
    """Gives rollouts the rewards of a scorer.

    Constraints (`LagrangianConstraints`) move after each rollout, a step for every episode that ended in it, by the sum
    of each head's potentials after its actions: so a rollout's rewards are of one μ, and a replay's each of their time.

    Args:
        scorer: rows to rewards; it encodes nothing here.
        layout: what a row holds.
        num_worlds: E.
        env_weight: of the task's own reward, added to the scorer's: 0 unless a learner shall have it.
        watches: whether constraints move and divergence is noted; an evaluation only looks on.
    """

    def __init__(
        self, scorer: Scorer, layout: Layout, num_worlds: int, *, env_weight: float = 0.0, watches: bool = True
    ) -> None:
        self.scorer, self.layout, self.env_weight, self._watches = scorer, layout, env_weight, watches
        self.watch = DivergenceWatch()
        self._steps = 0
        self._episodes: list[_Episode | None] = [None] * num_worlds
        self._potentials: dict[str, deque[float]] = {name: deque(maxlen=POTENTIALS) for name in scorer.heads}
        self._parts: dict[str, deque[float]] = {}
        self._firing: dict[str, deque[float]] = {name: deque(maxlen=EPISODES) for name in scorer.heads}
        self._divergence: float | None = None

    @property
    def _constraints(self) -> LagrangianConstraints | None:
        combine = self.scorer.combine
        return combine if isinstance(combine, LagrangianConstraints) else None

    # Labelling ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def label(self, collected: Collected) -> RolloutLabels:
        """The rewards of a rollout; rollouts must come in order, none left out.

        Raises:
            FloatingPointError: a head, the combination or the shaping gave NaN or infinity; names it.
        """
        rollout = collected.rollout
        reward, ended = self.env_weight * rollout.env_reward, list[Ended]()
        finished: list[tuple[int, int, _Episode]] = []
        pieces = list(self._pieces(collected))
        for group in self._groups(pieces):
            for piece, new in zip(group, self._score(group), strict=True):
                reward[piece.steps, piece.world] += new
        for piece in pieces:
            episode, last = piece.episode, piece.steps.stop - 1
            episode.rewards.extend(reward[piece.steps, piece.world].tolist())
            self._steps += piece.steps.stop - piece.steps.start
            for name, values in episode.potentials.items():
                self._potentials[name].extend(values[-(piece.steps.stop - piece.steps.start) :])
            if rollout.ended[last, piece.world]:
                finished.append((last, piece.world, episode))
        returns = []
        for t, e, episode in sorted(finished, key=lambda each: each[:2]):
            ended.append(ended_of(e, episode.rewards, collected.infos[t][e]))
            if self._watches:
                returns.append(self._finish(episode, ended[-1]))
        for each in returns if self._constraints is not None else ():
            self._constraints.update(each)  # pyright: ignore[reportOptionalMemberAccess]
        return RolloutLabels(reward, ended)

    def _pieces(self, collected: Collected) -> Iterator[_Piece]:
        """The stretches of a rollout that lie in one episode each, world by world; notes the episodes that run on."""
        rollout, moments = collected.rollout, collected.moments
        assert moments is not None
        count, worlds = rollout.env_reward.shape
        for e in range(worlds):
            begin = 0
            while begin < count:
                if rollout.first[begin, e] or self._episodes[e] is None:
                    frames, depth = moments.starts.get((begin, e), (None, None))
                    self._episodes[e] = _Episode(moments.rows[begin, e], frames, depth)
                episode, ended = self._episodes[e], np.flatnonzero(rollout.ended[begin:, e])
                assert episode is not None
                stop = begin + int(ended[0]) + 1 if len(ended) else count
                rows = moments.next_rows[begin:stop, e]
                frames = None if moments.next_frames is None else moments.next_frames[begin:stop, e]
                terminated = rollout.terminated[begin:stop, e]
                episode.add(rows, terminated, frames)
                yield _Piece(e, slice(begin, stop), episode)
                begin = stop

    def _groups(self, pieces: Sequence[_Piece]) -> list[list[_Piece]]:
        """Pieces that are scored together: all of them, those of one length, or each alone where heads remember."""
        if not pieces or not self.scorer.advances:
            return [list(pieces)] if pieces else []
        if not self.scorer.pointwise:
            return [[piece] for piece in pieces]
        groups: dict[int, list[_Piece]] = {}
        for piece in pieces:
            groups.setdefault(len(piece), []).append(piece)
        return list(groups.values())

    def _score(self, group: Sequence[_Piece]) -> list[np.ndarray]:
        """The rewards of the new steps of some pieces."""
        if not self.scorer.advances:
            labels = scoring.label(self.scorer, [piece.episode.track for piece in group], self.layout)
            for piece, (_, potentials) in zip(group, labels, strict=True):
                piece.episode.potentials = {name: values.tolist() for name, values in potentials.items()}
            return [rewards[-len(piece) :] for piece, (rewards, _) in zip(group, labels, strict=True)]
        for piece in group:
            if not piece.episode.potentials:
                self._advance([piece.episode], 1)  # the episode's first row
        self._advance([piece.episode for piece in group], len(group[0]))
        count = len(group[0]) + 1
        tracks = [piece.episode.track for piece in group]
        features = scoring.batch(self.scorer, [Track(track.rows[-count:]) for track in tracks], self.layout)
        potentials = {
            name: torch.tensor([piece.episode.potentials[name][-count:] for piece in group])
            for name in self.scorer.heads
        }
        combined = self.scorer.combined(potentials, features)
        for name, values in self.scorer.parts(potentials, features).items():
            self._parts.setdefault(name, deque(maxlen=POTENTIALS)).extend(values[:, 1:].flatten().tolist())
        terminated = torch.tensor([track.terminated[-(count - 1) :] for track in tracks], dtype=torch.bool)
        rewards = self.scorer.shaping(combined[:, :-1], combined[:, 1:], terminated)
        if not torch.isfinite(rewards).all():
            raise FloatingPointError(f"shaping {type(self.scorer.shaping).__name__} gave NaN or infinity.")
        return list(rewards.float().cpu().numpy())

    def _advance(self, episodes: Sequence[_Episode], count: int) -> None:
        """Let heads see the next `count` rows of some episodes: more than one only where no head remembers."""
        for episode in episodes:
            episode.cuts.append(count)
        self._see(episodes, [(episode.seen, episode.seen + count) for episode in episodes])

    def _see(self, episodes: Sequence[_Episode], spans: Sequence[tuple[int, int]]) -> None:
        parts = []
        for episode, (begin, end) in zip(episodes, spans, strict=True):
            track = episode.track
            frames = track.frames[begin:end] if self.scorer.frames_read == "all" else track.frames
            parts.append(Track(track.rows[begin:end], frames=frames, depth=track.depth))
        features = scoring.batch(self.scorer, parts, self.layout)
        potentials, memories = self.scorer.advance(features, episodes[0].memories)
        for k, (episode, (_, end)) in enumerate(zip(episodes, spans, strict=True)):
            episode.memories, episode.seen = memories, end
            for name, values in potentials.items():
                episode.potentials.setdefault(name, []).extend(values[k].float().tolist())

    def _finish(self, episode: _Episode, ended: Ended) -> dict[str, float]:
        """Note an ended episode for the log; returns the sum of each head's potentials after its actions."""
        truths = {"env return": ended.env_return}
        if ended.success is not None:
            truths["success"] = float(ended.success)
        self._divergence = self.watch.add(float(ended.rewards.sum(dtype=np.float64)), truths, self._steps)
        returns = {}
        for name, values in episode.potentials.items():
            after = np.array(values[1:], np.float64)
            returns[name] = float(after.sum())
            self._firing[name].append(float((after > 0).mean()))
        return returns

    # What is logged -------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """`reward/<head>_{mean,std}` (potentials), `reward/part_<name>_mean` (of what the combination is made of, such
        as the synthesis's speed term), `reward/<head>_firing_rate` (of heads that say only 0 and 1: the
        share of an episode's steps with 1, mean of the last 100), `reward/lambda_<head>` (μ of a constrained one) and
        `reward/divergence` (see `DivergenceWatch`)."""
        found: dict[str, float] = {}
        for name, values in self._potentials.items():
            if values:
                found[f"reward/{log_key(name)}_mean"] = float(np.mean(values))
                found[f"reward/{log_key(name)}_std"] = float(np.std(values))
            if self._firing[name] and set(values) <= {0.0, 1.0}:
                found[f"reward/{log_key(name)}_firing_rate"] = float(np.mean(self._firing[name]))
        for name, values in self._parts.items():
            found[f"reward/part_{log_key(name)}_mean"] = float(np.mean(values))
        for name, multiplier in (self._constraints.multipliers if self._constraints else {}).items():
            found[f"reward/lambda_{log_key(name)}"] = multiplier
        return found | ({} if self._divergence is None else {"reward/divergence": self._divergence})

    # Resume ---------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values, between rollouts."""
        arrays = {f"potentials/{name}": np.array(values) for name, values in self._potentials.items()}
        arrays |= {f"parts/{name}": np.array(values) for name, values in self._parts.items()}
        episodes = []
        for e, episode in enumerate(self._episodes):
            episodes.append(None if episode is None else {"rewards": episode.rewards, "cuts": episode.cuts})
            if episode is not None:
                arrays |= {f"episode/{e}/{name}": value for name, value in episode.arrays().items()}
        values = {"views": self.layout.views, "signals": self.layout.signals, "watch": self.watch.get_state()}
        values |= {"firing": {name: list(rates) for name, rates in self._firing.items()}, "episodes": episodes}
        values |= {"steps": self._steps, "divergence": self._divergence}
        return arrays, values | {"multipliers": self._constraints.state_dict() if self._constraints else {}}

    @torch.inference_mode()
    def load_state(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any], *, episodes: bool) -> None:
        """Undo of `state`; without `episodes`, the worlds begin new ones."""
        self.watch.set_state(values["watch"])
        self._steps, self._divergence = values["steps"], values["divergence"]
        for name in self._potentials:
            self._potentials[name].extend(arrays[f"potentials/{name}"].tolist())
            self._firing[name].extend(values["firing"].get(name, ()))
        for name, kept in below(dict(arrays), "parts").items():
            self._parts[name] = deque(kept.tolist(), maxlen=POTENTIALS)
        restore_constraints(self.scorer, values)
        for e, told in enumerate(values["episodes"] if episodes else ()):
            if told is not None:
                self._episodes[e] = episode = _Episode.loaded(below(dict(arrays), f"episode/{e}"), told)
                begin = 0
                for count in told["cuts"] if not self.scorer.pointwise else ():  # as before, so that what heads
                    self._see([episode], [(begin, begin + count)])  # remember is the same to the bit
                    begin += count
                episode.seen, said = sum(told["cuts"]), below(dict(arrays), f"episode/{e}/said")
                episode.potentials = {name: values.tolist() for name, values in said.items()}


class _Episode:
    """One world's running episode: its rows, the rewards so far, and what heads said and remember of them."""

    def __init__(self, row: np.ndarray, frames: np.ndarray | None, depth: np.ndarray | None) -> None:
        self.track = Track([row], frames=[] if frames is None else [frames], depth=depth)
        self.rewards: list[float] = []
        self.potentials: dict[str, list[float]] = {}
        self.memories: dict[str, Any] | None = None
        self.seen = 0  # rows that heads which go on have seen
        self.cuts: list[int] = []  # how many of them at a time

    def add(self, rows: np.ndarray, terminated: np.ndarray, frames: np.ndarray | None) -> None:
        for k, row in enumerate(rows):
            self.track.add(row, bool(terminated[k]), None if frames is None else frames[k])

    def arrays(self) -> dict[str, np.ndarray]:
        track = self.track
        arrays = {"rows": np.stack(track.rows), "terminated": np.array(track.terminated, dtype=bool)}
        arrays |= {"frames": np.stack(track.frames)} if track.frames else {}
        arrays |= {f"said/{name}": np.array(values) for name, values in self.potentials.items()}
        return arrays | ({} if track.depth is None else {"depth": track.depth})

    @classmethod
    def loaded(cls, arrays: Mapping[str, np.ndarray], told: Mapping[str, Any]) -> _Episode:
        made = cls(arrays["rows"][0], None, arrays.get("depth"))
        made.track.rows, made.track.frames = list(arrays["rows"]), list(arrays.get("frames", ()))
        made.track.terminated, made.rewards = arrays["terminated"].astype(bool).tolist(), list(told["rewards"])
        made.cuts = list(told["cuts"])
        return made


@dataclass(frozen=True)
class _Piece:
    """The steps of a rollout that one world spent in one episode."""

    world: int
    steps: slice
    episode: _Episode

    def __len__(self) -> int:
        return self.steps.stop - self.steps.start


def restore_constraints(scorer: Scorer, values: Mapping[str, Any]) -> None:
    """Give a scorer's constraints the multipliers of a labeller's state; what has none is left as it is."""
    if isinstance(scorer.combine, LagrangianConstraints) and values.get("multipliers"):
        scorer.combine.load_state_dict(values["multipliers"])


def log_key(name: str) -> str:
    """A head's name in the log: a goal's text may be one, and a comma would break progress.csv."""
    return re.sub(r"[^\w.-]+", "-", name)
