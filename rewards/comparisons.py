"""Which of two moments is better: pairs of segments of recorded episodes, and who says so.

A label is 0 where the first is better, 1 where the second is, −1 where neither is; −1 and identical pairs teach
nothing and are dropped. Judges: a person's file, a chat model, or the encoder with a goal text.

Shape letters: N pairs, L rows of a segment, D feature width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel
from torch import Tensor

from rewards.chat.asking import ChatModel, Message, ask_json, content_key, read_cache, write_cache
from rewards.chat.messages import filled
from rewards.core import Encoder, Episode

Pairs = Int[np.ndarray, "N 2 2"]  # (pair, first or second, (episode, last row of the segment))

COMPARE = (
    "Two images of a robot at work. The goal is: {goal}.\nImage A: <image>\nImage B: <image>\n"
    "1. What does image A show, as far as the goal is concerned?\n2. What does image B show?\n"
    "3. Is the goal better achieved in A or in B? Say so, or that there is no difference or you cannot tell."
)
DECIDE = (
    'Someone compared two images, A and B, by how well this goal is achieved: {goal}. They wrote:\n"""\n{text}\n"""\n'
    "preferred is 0 if they say A achieves it better, 1 if B, -1 if they see no difference or cannot tell."
)


class Preferred(BaseModel):
    """The second stage's answer."""

    preferred: Literal[0, 1, -1]


@dataclass(frozen=True)
class Comparisons:
    """Labelled pairs of segments, as features.

    Attributes:
        first, second: camera -> (N, L, D).
        labels: (N,) float32, 1 where the second is better, 0 where the first is.
        users: (N,) int64, whose opinion each is.
        names: of the users.
    """

    first: Mapping[str, Float[Tensor, "N L D"]]
    second: Mapping[str, Float[Tensor, "N L D"]]
    labels: Float[Tensor, " N"]
    users: Int[Tensor, " N"]
    names: tuple[str, ...] = ("user",)

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, user: str) -> Comparisons:
        """One user's alone.

        Raises:
            ValueError: no such user.
        """
        if user not in self.names:
            raise ValueError(f"comparisons: user must be one of {', '.join(self.names)}; got {user!r}.")
        mine = self.users == self.names.index(user)
        first, second = ({camera: rows[mine] for camera, rows in side.items()} for side in (self.first, self.second))
        return Comparisons(first, second, self.labels[mine], torch.zeros(int(mine.sum()), dtype=torch.long), (user,))


def compare(
    episodes: Sequence[Episode],
    pairs: Pairs,
    labels: Int[np.ndarray, " N"],
    *,
    length: int = 1,
    users: Sequence[str] | None = None,
) -> Comparisons:
    """Labelled pairs as features, without those that teach nothing.

    Args:
        episodes: what the pairs point into.
        pairs: of segments of `length` rows.
        labels: 0, 1 or −1.
        length: L.
        users: whose label each is; None: one user's.

    Raises:
        ValueError: none is left.
    """
    cameras = list(episodes[0].features.views)

    def rows(of: np.ndarray, camera: str) -> Tensor:
        views = [episodes[e].features.views[camera][0, last - length + 1 : last + 1] for e, last in of]
        return torch.stack(views).float().cpu()

    kept = (np.asarray(labels) >= 0) & (pairs[:, 0] != pairs[:, 1]).any(1)
    first = {camera: rows(pairs[kept, 0], camera) for camera in cameras} if kept.any() else {}
    second = {camera: rows(pairs[kept, 1], camera) for camera in cameras} if kept.any() else {}
    differs = torch.zeros(int(kept.sum()), dtype=torch.bool)
    for camera in first:
        differs |= (first[camera] != second[camera]).flatten(1).any(1)
    if not differs.any():
        raise ValueError(
            f"comparisons: pairs must hold some that differ and are told apart; of {len(labels)} none was. "
            "Compare moments further apart, or lower the judge's margin."
        )
    owner = np.array(users if users is not None else ["user"] * len(labels))[kept][differs.numpy()]
    names = tuple(sorted(set(owner.tolist())))
    return Comparisons(
        {camera: side[differs] for camera, side in first.items()},
        {camera: side[differs] for camera, side in second.items()},
        torch.from_numpy(np.asarray(labels)[kept]).float()[differs],
        torch.tensor([names.index(name) for name in owner.tolist()]),
        names,
    )


def draw_pairs(episodes: Sequence[Episode], count: int, *, length: int = 1, seed: int = 0) -> Pairs:
    """Pairs of segments from anywhere in the episodes, uniform over rows.

    Args:
        seed: of the draws.

    Raises:
        ValueError: no episode is `length` rows long, or count < 1.
    """
    rng = np.random.default_rng(seed)
    ends = [(i, t) for i, episode in enumerate(episodes) for t in range(length - 1, len(episode))]
    if len(ends) < 2 or count < 1:
        raise ValueError(
            f"comparisons: episodes must hold two segments of {length} rows, and pairs ≥ 1 be wanted; "
            f"got {len(ends)} and {count}."
        )
    return np.array(ends)[rng.integers(len(ends), size=(count, 2))]


# Judges -----------------------------------------------------------------------------------------------------------


def labels_by_text(
    episodes: Sequence[Episode], pairs: Pairs, goal: str, encoder: Encoder, *, length: int = 1, margin: float = 0.02
) -> Int[np.ndarray, " N"]:
    """The encoder as judge: the segment more similar to the goal text, by more than `margin` of cosine, is better.

    Similarity is the mean over the segment's rows and the episode's cameras.

    Args:
        episodes: encoded.
        pairs: N pairs of segments.
        length: rows of a segment.
    """
    text = encoder.encode_texts([goal])[0]
    value = [
        torch.stack([view[0].float().cpu() @ text.cpu() for view in episode.features.views.values()]).mean(0)
        for episode in episodes
    ]
    mean = np.array([[float(value[e][t - length + 1 : t + 1].mean()) for e, t in pair] for pair in pairs])
    ahead = mean[:, 1] - mean[:, 0]
    return np.where(np.abs(ahead) <= margin, -1, (ahead > 0).astype(np.int64))


def labels_by_vlm(
    episodes: Sequence[Episode], pairs: Pairs, goal: str, model: ChatModel, *, cache: Path | None = None
) -> Int[np.ndarray, " N"]:
    """A chat model as judge of the segments' last frames, in two stages (`ask_preference`); episodes hold frames.

    Args:
        pairs: N pairs of segments, of which the last frames are shown.
        goal: what "better" means.
        cache: a folder that keeps answers; None: none are kept.

    Raises:
        ValueError: the episodes hold no frames of all rows.
        VLMError: an answer is missing or makes no sense.
    """
    frames = []
    for episode in episodes:
        every = next(iter(episode.features.frames.values()), None)
        if every is None or every.shape[1] != len(episode):
            raise ValueError("comparisons: episodes must hold the frames of all rows for a chat model to judge.")
        frames.append(every[0].cpu().numpy())
    return np.array(
        [ask_preference(model, goal, frames[a[0]][a[1]], frames[b[0]][b[1]], cache=cache) for a, b in pairs], np.int64
    )


def ask_preference(
    model: ChatModel, goal: str, first: np.ndarray, second: np.ndarray, *, cache: Path | None = None
) -> int:
    """0, 1 or −1: in which of two frames (H, W, 3) uint8 the goal is better achieved; identical ones are not asked.

    Stage one compares in free words; stage two reads the words, without images, and decides.

    Args:
        model: is asked.
        goal: what "better" means.
        first, second: the two frames.
        cache: a folder that keeps answers; None: none are kept.

    Raises:
        VLMError: a refusal, or no decision.
    Source: RL-VLM-F, arXiv 2402.03681 (two-stage query, −1 and identical pairs dropped). Departs: the wording is ours,
        and the decision is JSON of a schema, asked again if it does not fit, instead of a digit searched in text.
    """
    if np.array_equal(first, second):
        return -1
    question = [Message("user", filled(COMPARE, goal=goal), [first, second])]
    key = content_key(model, question, "comparison")
    text = read_cache(cache, key)
    if not isinstance(text, str):
        text = model.ask(question)
        write_cache(cache, key, text)
    decide = Message("user", filled(DECIDE, goal=goal, text=text))
    return ask_json(model, [decide], Preferred, cache=cache).preferred


def read_labels(path: str | Path, episodes: Sequence[Episode], *, length: int = 1) -> Comparisons:
    """A person's comparisons: one JSON object a line, `{"a": [episode, row], "b": [episode, row], "label": 1}`.

    `row` is the last of a segment's `length` rows; `label` is 0 (a is better), 1 (b is) or −1 (neither); `user`, a
    name, may say whose opinion it is. Empty lines are skipped.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not so, or points outside the episodes; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"comparisons: labels must be a JSON-lines file; there is no {path}.")
    pairs, labels, users = [], [], []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            pair, label = [_place(told[side], episodes, length) for side in ("a", "b")], told["label"]
            if label not in (0, 1, -1) or isinstance(label, bool):
                raise ValueError(f"label must be 0, 1 or -1; got {label!r}")
        except (KeyError, TypeError, ValueError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"comparisons: line {number} of {path}: {problem}.") from error
        pairs.append(pair)
        labels.append(label)
        users.append(str(told.get("user", "user")))
    if not labels:
        raise ValueError(f"comparisons: {path} must hold at least one line; it is empty.")
    return compare(episodes, np.array(pairs), np.array(labels), length=length, users=users)


def _place(told: Any, episodes: Sequence[Episode], length: int) -> tuple[int, int]:
    """(episode, row) of one side, checked."""
    if not (isinstance(told, list) and len(told) == 2 and all(type(each) is int for each in told)):
        raise ValueError(f"a and b must be [episode, row]; got {told!r}")
    episode, row = told
    if not 0 <= episode < len(episodes):
        raise ValueError(f"episode must be in 0 to {len(episodes) - 1}; got {episode}")
    if not length - 1 <= row < len(episodes[episode]):
        raise ValueError(f"row must be in {length - 1} to {len(episodes[episode]) - 1}; got {row}")
    return episode, row
