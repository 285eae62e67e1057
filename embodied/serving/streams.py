"""Many sessions' rows scored together, where the heads read one row alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied import scoring
from embodied.scoring import Track
from embodied.scoring.streaming import EpisodeStream, Reading
from rewards.chat import VLMError

UNSCORABLE = (FloatingPointError, VLMError, ValueError, KeyError)  # what heads raise of rows they cannot score
Outcome = Reading | FloatingPointError | VLMError | ValueError | KeyError  # of one row


class SessionStream(EpisodeStream):
    """An episode stream whose next reading can be worked out with those of other streams.

    `signals` of the moments that are being encoded wait here for their features.
    """

    moments: Sequence[dict[str, float]] = ()

    @property
    def alone(self) -> bool:
        """Whether its rows are scored one by one, whatever came before."""
        return self.scorer.pointwise and self.scorer.frames_read == "none"

    @property
    def before(self) -> Tensor | None:
        """(1, 1), the combined potential of the row before."""
        return self._before


@torch.inference_mode()
def push_all(rows: Sequence[tuple[SessionStream, Sequence[np.ndarray]]]) -> list[list[Outcome]]:
    """The readings of several streams' next moments, those with one scorer and layout worked out together.

    Args:
        rows: streams that are `alone`, each once, and the features of their moments, (D,) a view.

    Returns:
        A list per stream, an outcome per moment; as pushing each row by itself would give.
    """
    items = [(i, stream, row) for i, (stream, features) in enumerate(rows) for row in _rows(stream, features)]
    groups: dict[Any, list[tuple[int, SessionStream, np.ndarray]]] = {}
    for item in items:
        groups.setdefault((id(item[1].scorer), item[1].layout, item[2].shape), []).append(item)
    outcomes: list[list[Outcome]] = [[] for _ in rows]
    for members in groups.values():
        for (i, _, _), outcome in zip(members, _push_group(members), strict=True):
            outcomes[i].append(outcome)
    return outcomes


def push_each(stream: EpisodeStream, rows: Sequence[np.ndarray], frames: Sequence[np.ndarray] | None) -> list[Outcome]:
    """The readings of one stream's next moments, one by one; `frames` (V, H, W, 3) each, where heads read images."""
    outcomes: list[Outcome] = []
    for k, row in enumerate(rows):
        try:
            outcomes.append(stream.push(row, None if frames is None else frames[k]))
        except UNSCORABLE as error:
            outcomes.append(error)
    return outcomes


def reason(error: Exception) -> str:
    """Why there is no score, for the client."""
    return f"missing: {error}" if isinstance(error, KeyError) else str(error)


def _rows(stream: SessionStream, features: Sequence[np.ndarray]) -> list[np.ndarray]:
    return stream.layout.rows(np.stack(features), stream.moments)


def _push_group(members: Sequence[tuple[int, SessionStream, np.ndarray]]) -> list[Outcome]:
    if len(members) == 1:
        return push_each(members[0][1], [members[0][2]], None)
    stream = members[0][1]
    scorer = stream.scorer
    features = scoring.batch(scorer, [Track([row]) for _, _, row in members], stream.layout)
    try:
        potentials = scorer.potentials(features)
        combined = scorer.combined(potentials, features)
    except UNSCORABLE:  # one row's fault is not the others'
        return [outcome for _, each, row in members for outcome in push_each(each, [row], None)]
    before: list[Tensor | None] = []
    latest: dict[int, Tensor] = {}
    for k, (i, each, _) in enumerate(members):
        before.append(latest.get(i, each.before))
        latest[i] = combined[k : k + 1]
    filled = torch.cat([combined[:1] if each is None else each for each in before])
    rewards = scorer.shaping(filled, combined, torch.zeros_like(combined, dtype=torch.bool))[:, 0].tolist()
    names, columns = list(potentials), [values[:, 0].tolist() for values in potentials.values()]
    return [
        each.take(
            row,
            dict(zip(names, values, strict=True)),
            combined[k : k + 1],
            None if before[k] is None else rewards[k],
        )
        for k, ((_, each, row), values) in enumerate(zip(members, zip(*columns, strict=True), strict=True))
    ]
