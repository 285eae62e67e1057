"""A dataset's episodes to potentials and rewards, kept episode by episode: nothing is made twice, wherever it is made.

Each episode's labels are one small file, named by all that they depend on. Episodes are scored in batches that follow
from the dataset alone, and a batch is scored as a whole or not at all; so a run that was killed, and shards that other
machines make, give the same bits as one run. Labels are read from those files one episode at a time: memory does not
grow with the dataset, nor, where the heads read row by row, with an episode's length.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from embodied.building.goals import any_open
from embodied.building.scorers import Shared, make_scorer
from embodied.datasets import Dataset
from embodied.datasets.encoding import Encoded
from embodied.errors import UserError, nearest
from embodied.files import whole
from embodied.literal import resolved
from embodied.scoring.identity import dataset_identity, scorer_identity
from rewards.core import Encoder, Episode, Features, Scorer
from rewards.progress import tqdm

LONG = 1024  # rows from which an episode is scored in pieces, of so many, where the heads can
Labels = dict[str, np.ndarray]  # "potential" and "reward" of an episode, (T,) float32


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of the work, from 1; every `count`-th batch is its.

    Raises:
        UserError: no such part.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UserError(f"shard must be i/n with i from 1 to n; got {self.number}/{self.count}.")

    @classmethod
    def read(cls, text: object) -> Shard:
        """From "3/16"; None is all of the work."""
        if text is None:
            return cls()
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(text))
        if not found:
            raise UserError(f"shard must be i/n, as 3/16; got {text!r}.")
        return cls(int(found[1]), int(found[2]))

    def has(self, batch: int) -> bool:
        """Whether a batch, from 0, is its."""
        return batch % self.count == self.number - 1


def chosen_cameras(dataset: Dataset, wanted: Any) -> list[str]:
    """The views that a config names, or all.

    Raises:
        UserError: the dataset has not one of them.
    """
    names = list(dataset.cameras) if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in dataset.cameras:
            raise UserError(f"cameras: {dataset.root} has no {name!r}. {nearest(str(name), dataset.cameras)}")
    return names


def instructions(dataset: Dataset) -> Iterator[str]:
    """The instruction of every episode that has one; frames of several tasks have none."""
    for i in range(len(dataset)):
        with suppress(UserError):
            yield dataset.instruction(i)


def by_goal(config: DictConfig, dataset: Dataset) -> dict[str | None, list[int]]:
    """Which episodes are scored with which goal; None: as the reward's own config says.

    Raises:
        UserError: a goal is open, and an episode has no instruction.
    """
    everything = list(range(len(dataset)))
    if not any_open(resolved(config)["reward"]):
        return {None: everything}
    groups: dict[str | None, list[int]] = {}
    for i in everything:
        instruction = dataset.instruction(i)
        if not instruction:
            number = dataset.span(i).index
            raise UserError(f"goal must be given: episode {number} of {dataset.root} has no instruction. Add goal=…")
        groups.setdefault(instruction, []).append(i)
    return groups


def scorer_for(
    config: DictConfig,
    goal: str | None,
    dataset: Dataset,
    cameras: Sequence[str] | None = None,
    encoder: Encoder | None = None,
    shared: Shared | None = None,
) -> Scorer:
    """The reward model, its open goals filled in; where the data are of a world of ours, by that world."""
    scorer = make_scorer(config, env=dataset.env, goal=goal, views=cameras, encoder=encoder, shared=shared)
    assert scorer is not None
    return scorer


def label_all(
    config: DictConfig,
    labels: KeptLabels,
    cameras: Sequence[str],
    groups: Mapping[str | None, Sequence[int]],
    *,
    shard: Shard | None = None,
    only_see: bool = False,
    told: Callable[[Scorer, Sequence[int]], None] = lambda scorer, members: None,
    encoder: Encoder | None = None,
) -> None:
    """Label every episode of a verb's config, or those of a shard.

    Args:
        config: with `reward`, `encoder` and `batch`.
        labels: where they go.
        cameras: the views that the reward reads.
        groups: see `by_goal`.
        shard: what is labelled here; None: everything.
        only_see: label nothing, but see that all are labelled.
        told: is given each goal's reward and its episodes, once they are labelled.
        encoder: where the config's is there already; None: made here.

    Raises:
        UserError: labels are not there that should be.
    """
    dataset, shared = labels.dataset, Shared()
    total = len(dataset) if shard is None or shard.count == 1 else None
    with tqdm(total=total, desc="labelling", unit="episode", disable=only_see) as bar:
        for goal, members in groups.items():
            scorer = scorer_for(config, goal, dataset, cameras, encoder, shared)
            encoder = scorer.encoder
            if only_see:
                labels.expect(scorer, members, cameras, batch=config.batch)
                continue
            for done in labels.make(scorer, members, cameras, goal=goal or "", batch=config.batch, shard=shard):
                bar.update(done)
            told(scorer, members)
    if only_see and (missing := [i for i in range(len(dataset)) if not labels.has(i)]):
        some = ", ".join(str(dataset.span(i).index) for i in missing[:8]) + (", …" if len(missing) > 8 else "")
        raise UserError(
            f"merge: {labels.root} must hold labels of all {len(dataset)} episodes by this reward, encoder and batch; "
            f"{len(missing)} lack: {some}. Run the shards that have them again."
        )


class KeptLabels:
    """The labels of a dataset, each episode's in a file of its own.

    Args:
        dataset: whose episodes.
        root: the folder of all such files of what is written.
    """

    def __init__(self, dataset: Dataset, root: Path) -> None:
        self.dataset, self.root = dataset, root
        self._folders: list[Path] = []
        self._folder_of = np.zeros(len(dataset), np.int32)  # which of them each episode's is
        self._contents: str | None = None
        self._batches = 0  # so far, of all goals

    def expect(self, scorer: Scorer, indices: Sequence[int], cameras: Sequence[str], *, batch: int = 16) -> None:
        """Say of what the labels of some episodes are to be: those of another scorer are not taken for them.

        Args:
            scorer: of their goal.
            indices: the episodes.
            cameras: the views that it reads.
            batch: episodes that are scored together.
        """
        if self._contents is None:
            self._contents = dataset_identity(self.dataset, cameras)
        made_of = f"{scorer_identity(scorer)} {self._contents} {json.dumps(list(cameras))} {batch}"
        folder = self.root / hashlib.sha256(made_of.encode()).hexdigest()[:24]
        self._folder_of[np.asarray(indices)] = len(self._folders)
        self._folders.append(folder)

    def make(
        self,
        scorer: Scorer,
        indices: Sequence[int],
        cameras: Sequence[str],
        *,
        goal: str = "",
        batch: int = 16,
        shard: Shard | None = None,
    ) -> Iterator[int]:
        """Label episodes of one goal, those that are labelled already left out.

        Args:
            scorer, indices, cameras, batch: see `expect`.
            goal: the instruction of episodes whose frames have several tasks.
            shard: of the batches of all goals, those that are made here; None: all.

        Yields:
            How many episodes are done, batch by batch.
        """
        self.expect(scorer, indices, cameras, batch=batch)
        encoded = Encoded(self.dataset, scorer.encoder, cameras=cameras, frames_read=scorer.frames_read, goal=goal)
        for members in batches(self.dataset, scorer, indices, batch):
            self._batches += 1
            if shard is not None and not shard.has(self._batches - 1):
                continue
            missing = [i for i in members if not self.has(i)]
            labels = _labels(scorer, encoded, members) if missing else {}
            for i in missing:
                file = self._file(i)
                file.parent.mkdir(parents=True, exist_ok=True)
                with whole(file) as part:
                    save_file(labels[i], part)
            yield len(members)

    def has(self, i: int) -> bool:
        """Whether episode i is labelled."""
        try:
            with safe_open(self._file(i), "np") as tensors:
                return set(tensors.keys()) == {"potential", "reward"}
        except (FileNotFoundError, SafetensorError):
            return False

    def __getitem__(self, i: int) -> Labels:
        return load_file(self._file(i))

    def __iter__(self) -> Iterator[Labels]:
        """Of every episode, in order."""
        return (self[i] for i in range(len(self.dataset)))

    def extremes(self) -> tuple[float, float]:
        """The least and the greatest potential."""
        low, high = np.inf, -np.inf
        for labels in self:
            low, high = min(low, float(labels["potential"].min())), max(high, float(labels["potential"].max()))
        return low, high

    def _file(self, i: int) -> Path:
        return self._folders[self._folder_of[i]] / f"{i:06d}.safetensors"


def progress_range(low: float, high: float) -> tuple[float, float]:
    """What becomes progress 0 and 1: potentials that all lie in [0, 1] stay as they are."""
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def batches(dataset: Dataset, scorer: Scorer, indices: Sequence[int], size: int) -> Iterator[list[int]]:
    """Episodes that are scored together: in order, so many; one by one where frames or an episode's rows are many."""
    held: list[int] = []
    for i in indices:
        if scorer.frames_read == "all" or dataset.length(i) > LONG:
            yield [i]
            continue
        held.append(i)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


@torch.inference_mode()
def _labels(scorer: Scorer, encoded: Encoded, members: Sequence[int]) -> dict[int, Labels]:
    """The labels of one batch."""
    endings = [encoded.dataset.recording(i, cameras=()).terminated for i in members]
    if len(members) == 1 and scorer.advances and encoded.dataset.length(members[0]) > LONG:
        potential = _in_pieces(scorer, encoded, members[0])
        return {members[0]: _rewarded(scorer, potential, endings)[0]}
    return dict(zip(members, score(scorer, [encoded[i] for i in members], endings), strict=True))


def _in_pieces(scorer: Scorer, encoded: Encoded, i: int) -> torch.Tensor:
    """(1, T): the potential of a long episode, of which `LONG` rows are in memory at a time."""
    parts, memories = [], None
    for features in encoded.windows(i, LONG):
        potentials, memories = scorer.advance(features, memories)
        parts.append(scorer.combined(potentials, features))
    return torch.cat(parts, 1)


@torch.inference_mode()
def score(scorer: Scorer, episodes: Sequence[Episode], terminated: Sequence[np.ndarray]) -> list[Labels]:
    """Potentials and rewards of encoded episodes; those of one length are scored together.

    Args:
        scorer: encodes nothing here.
        episodes: T rows each, row t before action t.
        terminated: per episode (T,) bool, whether the task itself ended after action t.
    """
    by_length: dict[int, list[int]] = {}
    for k, episode in enumerate(episodes):
        by_length.setdefault(len(episode), []).append(k)
    labels: dict[int, Labels] = {}
    for members in by_length.values():
        features = _stack([episodes[k].features for k in members])
        potential = scorer.combined(scorer.potentials(features), features)
        labels |= zip(members, _rewarded(scorer, potential, [terminated[k] for k in members]), strict=True)
    return [labels[k] for k in range(len(episodes))]


def _rewarded(scorer: Scorer, potential: torch.Tensor, terminated: Sequence[np.ndarray]) -> list[Labels]:
    """The labels of B episodes; the frame after the last one, which no dataset holds, is taken to stay."""
    following = torch.cat([potential[:, 1:], potential[:, -1:]], 1)
    rewards = scorer.shaping(potential, following, torch.from_numpy(np.stack(terminated)))
    return [
        {"potential": _numbers(said), "reward": _numbers(paid)} for said, paid in zip(potential, rewards, strict=True)
    ]


def _numbers(values: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.float().cpu().numpy())


def _stack(parts: Sequence[Features]) -> Features:
    """Features of episodes of one length as a batch."""
    if len(parts) == 1:
        return parts[0]

    def join(name: str) -> Mapping[str, torch.Tensor]:
        return {key: torch.cat([getattr(part, name)[key] for part in parts]) for key in getattr(parts[0], name)}

    return Features(views=join("views"), signals=join("signals"), frames=join("frames"), depth=join("depth"))
