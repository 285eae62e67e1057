"""What the server does, whatever way a request came: decode, encode, score, describe, drain.

Three kinds of thread work beside the event loop: one encodes (and scores heads that read one row alone), one runs all
other heads, a few decode JPEG and PNG. The event loop itself computes nothing.

Shape letters: B episodes, T time, V views, D feature width, S signals; H, W image.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from embodied.errors import UserError
from embodied.serving.batching import Batcher
from embodied.serving.gate import Gate
from embodied.serving.limits import RequestLimits
from embodied.serving.protocol import RefusedError
from embodied.serving.streams import UNSCORABLE, push_all, reason
from rewards.core import Features, Scorer


class Service(Gate):
    """One reward model and everyone's claims on it.

    Args:
        scorer: what is served.
        model_id: in every answer.
        limits: on every request.
        token: that every request must bear; None: none, and only this machine's names are answered to.
        goal_scorer: text -> a scorer of the same encoder with that goal; None: the goal is fixed.
        max_batch, max_wait_ms: see `Batcher`.
    """

    paths = "/healthz, /docs, /metrics, /v1/model, /v1/encode, /v1/potentials, /v1/score, /v1/stream (WebSocket)"

    def __init__(
        self,
        scorer: Scorer,
        *,
        model_id: str,
        limits: RequestLimits,
        token: str | None,
        goal_scorer: Callable[[str], Scorer] | None,
        max_batch: int,
        max_wait_ms: float,
    ) -> None:
        super().__init__(model_id=model_id, limits=limits, token=token)
        self.scorer = scorer
        self._goal_scorer = goal_scorer
        self._goals: OrderedDict[str, Scorer] = OrderedDict()
        self.batcher = Batcher(
            scorer,
            limits,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
            clients=lambda: max(1, len(self.sessions)),
            finish=lambda jobs: push_all([(job.stream, job.features) for job in jobs]),
            encoded=self.metrics.encoded,
        )

    @property
    def queued(self) -> int:
        return self.batcher.queued

    # What is served ----------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What /v1/model says."""
        scorer, encoder = self.scorer, self.scorer.encoder
        shaping = scorer.shaping
        return {
            "heads": list(scorer.heads),
            "encoder": {"name": encoder.name, "dim": encoder.dim, "image_size": list(encoder.image_size)},
            "pointwise": scorer.pointwise,
            "frames_read": scorer.frames_read,
            "shaping": _plain(shaping) if dataclasses.is_dataclass(shaping) else None,
            "goals": self._goal_scorer is not None,
            "limits": dataclasses.asdict(self.limits),
            **self.stamp,
        }

    async def encode(self, client: Any, frames: Sequence[np.ndarray]) -> np.ndarray:
        """(N, D) float32."""
        return await self.batcher.submit(client, frames)

    async def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(M, D) float32.

        Raises:
            RefusedError: a text the encoder cannot read.
        """

        @torch.inference_mode()
        def embed() -> np.ndarray:
            return self.scorer.encoder.encode_texts(list(texts)).float().cpu().numpy()

        try:
            return await self.on_heads(embed)
        except ValueError as error:
            raise RefusedError("bad_text", str(error), expected="shorter texts") from error

    async def with_goal(self, goal: str | None) -> Scorer:
        """The scorer with another goal; the last ones are kept.

        Raises:
            RefusedError: this reward has no goal, or its encoder cannot read the text.
        """
        if goal is None:
            return self.scorer
        if self._goal_scorer is None:
            raise RefusedError("bad_text", "This reward takes no goal.", expected="no goal", got=goal)
        if goal not in self._goals:
            try:
                self._goals[goal] = await self.on_heads(self._goal_scorer, goal)
            except (ValueError, UserError) as error:
                raise RefusedError("bad_text", str(error), expected="another goal", got=goal) from error
            if len(self._goals) > self.limits.goals:
                self._goals.popitem(last=False)
        self._goals.move_to_end(goal)
        return self._goals[goal]

    async def potentials(self, features: Features, goal: str | None) -> tuple[dict[str, np.ndarray], np.ndarray, Any]:
        """Heads' potentials and the combined one, (B, T) float32 each, and rewards (B, T - 1) of no termination.

        Raises:
            RefusedError: NaN or infinity, or features that a head cannot read.
        """
        scorer = await self.with_goal(goal)

        @torch.inference_mode()
        def score() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
            each = scorer.potentials(features)
            combined = scorer.combined(each, features)
            ended = torch.zeros_like(combined[:, 1:], dtype=torch.bool)
            rewards = scorer.shaping(combined[:, :-1], combined[:, 1:], ended)
            return {name: _numbers(values) for name, values in each.items()}, _numbers(combined), _numbers(rewards)

        try:
            return await self.on_heads(score)
        except UNSCORABLE as error:
            raise RefusedError("unscorable", reason(error), expected="what the heads read", status=422) from error

    def close(self) -> None:
        """End the threads, once they have done what they are at."""
        self.batcher.close()
        super().close()


def _plain(shaping: Any) -> dict[str, Any]:
    made = dataclasses.asdict(shaping)
    return {
        key: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for key, value in made.items()
    }


def _numbers(values: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.float().cpu().numpy())
