"""Rows scored as they come have the numbers of the episode scored whole."""

from typing import Any

import torch
from torch.testing import assert_close

from rewards.core import Features


def rows(features: Features, first: int, last: int) -> Features:
    """Rows first to last of the episodes; of their frames the same, or the first row's where only that has some."""
    steps = features.main.shape[1]
    return Features(
        views={name: view[:, first:last] for name, view in features.views.items()},
        signals={name: values[:, first:last] for name, values in features.signals.items()},
        frames={
            name: images[:, first:last] if images.shape[1] == steps else images
            for name, images in features.frames.items()
            if images.shape[1] == steps or first == 0
        },
        depth=features.depth if first == 0 else {},
    )


def check_advance(head: Any, features: Features) -> None:
    """In pieces of several sizes, and twice from every memory: being used must not change it."""
    whole = head.score(features)
    assert whole.std() > 1e-3  # a constant would pass
    steps = whole.shape[1]
    for size in (1, 3, steps):
        memory, found = None, []
        for first in range(0, steps, size):
            part = rows(features, first, min(first + size, steps))
            before = memory
            scores, memory = head.advance(part, before)
            again, _ = head.advance(part, before)
            assert_close(again, scores, rtol=0, atol=0)  # what it was given is as it was
            found.append(scores)
        assert_close(torch.cat(found, 1), whole, rtol=1e-5, atol=1e-5)
