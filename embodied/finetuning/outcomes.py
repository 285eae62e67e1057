"""What every row led to, as a learner may know it: from the success reward's answers, or from the dataset's own word.

Shape letters: N rows of all episodes, T of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from embodied.finetuning.inputs import DataSource
from embodied.finetuning.labels import ABSTAINED, NOT, SOLVED, Label, Teacher, encoded
from policies.vla.critic import Outcomes

ENDS = {SOLVED: 1.0, NOT: 0.0, ABSTAINED: float("nan")}


def outcomes(
    sources: Sequence[DataSource], words: Sequence[Label], teacher: Teacher | None, encoder: Any, cameras: Sequence[str]
) -> Outcomes:
    """Of the episodes of some datasets, one after the other.

    Args:
        sources: the datasets.
        words: what is said of each episode; more episodes than words: the teacher says it.
        teacher: the success reward; None: the datasets' next.success, and where there is none nothing is known.
        encoder: of frames, for the teacher.
        cameras: that the policy reads.
    """
    solved: list[np.ndarray] = []
    said = list(words)
    for source in sources:
        shown = iter(encoded(source, encoder, cameras)) if teacher is not None else None
        for i in range(len(source.dataset)):
            if teacher is not None and shown is not None:
                episode = next(shown)
                if len(solved) == len(said):
                    said += teacher.words([episode])
                solved.append(after_each(teacher.rewards(episode), said[len(solved)]))
                continue
            flags = np.zeros(source.dataset.length(i), np.float32)
            known = "next.success" in source.dataset.features
            if known:
                flags += source.dataset.columns(i, ["next.success"])["next.success"].reshape(-1)
            if len(solved) == len(said):
                said.append(ABSTAINED if not known else SOLVED if flags[-1] else NOT)
            solved.append(flags)
    lengths = np.array([len(each) for each in solved])
    last = np.repeat(np.cumsum(lengths) - 1, lengths)
    end = np.repeat(np.array([ENDS[word] for word in said], np.float32), lengths)
    return Outcomes(torch.from_numpy(np.concatenate(solved)), torch.from_numpy(last), torch.from_numpy(end))


def after_each(rewards: np.ndarray, word: Label) -> np.ndarray:
    """(T,) whether the task was solved after each action, from the answers about each frame before one.

    The last word counts more than what was answered of frames: an episode that ends solved is solved after its last
    action, and in one that does not, what was taken for success up to the end was none.
    """
    after = np.append(rewards[1:], 1.0 if word == SOLVED else 0.0).astype(np.float32)
    if word == NOT:
        undone = np.flatnonzero(rewards[1:] == 0)
        after[int(undone[-1]) + 1 if len(undone) else 0 :] = 0
    return after
