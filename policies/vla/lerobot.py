"""A policy of chunks under LeRobot's signatures: `select_action`, `predict_action_chunk`, `reset`.

Shape letters: B batch, H actions of a chunk, A action, S own readings; h, w image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from policies.vla.actor import Deciding, Say
from policies.vla.embedded import ChunkObservation

IMAGES, STATE, TASK = "observation.images.", "observation.state", "task"


class LeRobotPolicy:
    """See the module. A batch is a mapping with LeRobot's keys.

        observation.images.NAME   (B, 3, h, w) float in [0, 1], or uint8
        observation.state         (B, S), not normalised
        task                      B sentences

    Args:
        policy: what acts.
        see: camera -> frames (n, H, W, 3) uint8 to what the policy reads.
        say: sentences to what it reads.
        execute: how many actions of a chunk `select_action` gives before it looks again, 1 to H.

    Raises:
        ValueError: execute beyond the chunk.

    Departs: actions come in the robot's units and own readings go in so, where LeRobot leaves both to its processors.
    """

    def __init__(
        self, policy: Deciding, see: Mapping[str, Callable[[np.ndarray], Tensor]], say: Say, *, execute: int
    ) -> None:
        if not 1 <= execute <= policy.spec.horizon:
            raise ValueError(f"LeRobotPolicy: execute must be from 1 to {policy.spec.horizon}; got {execute}.")
        self.policy, self.execute = policy, execute
        self._see, self._say = see, say
        self._queue: deque[Tensor] = deque()

    def reset(self) -> None:
        """An episode begins: what was planned is forgotten."""
        self._queue.clear()

    def select_action(self, batch: Mapping[str, Any]) -> Float[Tensor, "B A"]:
        """The next action of each row; the policy looks when the last chunk has been used up."""
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch)[:, : self.execute].unbind(1))
        return self._queue.popleft()

    def predict_action_chunk(self, batch: Mapping[str, Any]) -> Float[Tensor, "B H A"]:
        """The chunk of each row.

        Raises:
            KeyError: a camera, own readings or the sentence is missing.
        """
        spec = self.policy.spec
        for key in (*(IMAGES + name for name in spec.cameras), *([STATE] if spec.states else []), TASK):
            if key not in batch:
                raise KeyError(f"LeRobotPolicy: the batch must have {key!r}; it has {', '.join(batch)}.")
        said: Sequence[str] = [batch[TASK]] if isinstance(batch[TASK], str) else list(batch[TASK])
        count = len(said)
        state = batch[STATE].float().cpu() if spec.states else torch.zeros(count, 0)
        obs = ChunkObservation(
            {name: self._see[name](_frames(batch[IMAGES + name])) for name in spec.cameras},
            {name: torch.ones(count, dtype=torch.bool) for name in spec.cameras},
            self._say(said),
            state,
        )
        return self.policy.predict_chunk(obs)


def _frames(images: Tensor) -> np.ndarray:
    """LeRobot's pictures as frames (B, h, w, 3) uint8."""
    if images.is_floating_point():
        images = (255 * images).round().clamp(0, 255).to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
