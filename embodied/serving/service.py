"""What the server does, whatever way a request came: decode, encode, score, describe, drain.

Three kinds of thread work beside the event loop: one encodes (and scores heads that read one row alone), one runs all
other heads, a few decode JPEG and PNG. The event loop itself computes nothing.

Shape letters: B episodes, T time, V views, D feature width, S signals; H, W image.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from embodied.errors import UserError
from embodied.serving import protocol
from embodied.serving.batching import Batcher
from embodied.serving.connections import Guard
from embodied.serving.images import Chunk
from embodied.serving.limits import Limits, Rate, Rates
from embodied.serving.metrics import Metrics
from embodied.serving.peer import is_loopback
from embodied.serving.protocol import RefusedError
from embodied.serving.streams import UNSCORABLE, push_all, reason
from rewards.core import Features, Scorer

VERSION = metadata.version("embodied-rewards")
DECODERS = 2  # threads for messages of few pixels, which never wait for those of many: these have one of their own
FEW_PIXELS = 2_000_000
BYTES_PER_REQUEST = 256 << 10  # of a body: what more there is counts as more requests
BAD_COST = 20.0  # requests that a bad one counts as
LONGEST_DEBT_S = 5.0  # of one connection, whatever it did: after that it is served as ever


class Service:
    """One reward model and everyone's claims on it.

    Args:
        scorer: what is served.
        model_id: in every answer.
        limits: on every request.
        token: that every request must bear; None: none, and only this machine's names are answered to.
        goal_scorer: text -> a scorer of the same encoder with that goal; None: the goal is fixed.
        max_batch, max_wait_ms: see `Batcher`.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        model_id: str,
        limits: Limits,
        token: str | None = None,
        goal_scorer: Callable[[str], Scorer] | None = None,
        max_batch: int = 64,
        max_wait_ms: float = 2.0,
    ) -> None:
        self.scorer, self.limits = scorer, limits
        self.stamp = {"model_id": model_id, "version": VERSION}
        self.metrics, self.guard = Metrics(model_id, VERSION), Guard(limits)
        self.bodies = self.guard.bodies
        self.sessions: set[Any] = set()
        self.draining = False
        self.answering = 0  # HTTP requests and session messages in hand
        self._token = None if token is None else token.encode()
        self._goal_scorer = goal_scorer
        self._goals: OrderedDict[str, Scorer] = OrderedDict()
        self._rates = Rates(limits.requests_per_s, limits.burst, most=4 * limits.connections, debt_s=LONGEST_DEBT_S)
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoder")
        self._large_decoder = ThreadPoolExecutor(1, thread_name_prefix="large decoder")
        self._heads = ThreadPoolExecutor(1, thread_name_prefix="heads")
        self.batcher = Batcher(
            scorer,
            limits,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
            clients=lambda: max(1, len(self.sessions)),
            finish=lambda jobs: push_all([(job.stream, job.features) for job in jobs]),
            encoded=self.metrics.encoded,
        )

    # Who may come in ---------------------------------------------------------------------------------

    def check_caller(self, headers: Mapping[str, str]) -> None:
        """Refuse a wrong token, a web page of another site, and without a token every name but this machine's.

        Raises:
            RefusedError: 401 or 403.
        """
        scheme, _, given = headers.get("authorization", "").partition(" ")  # a scheme's case says nothing
        known = scheme.lower() == "bearer" and hmac.compare_digest(
            given.strip().encode("utf-8", "replace"), self._token or b""
        )
        if self._token is not None and not known:
            wanted = "Authorization: Bearer TOKEN"
            got = "another token" if given else "none" if not scheme else "another scheme"
            raise RefusedError("unauthorised", "The token is wrong or missing.", expected=wanted, got=got, status=401)
        try:
            host = urlsplit(f"//{headers.get('host', '')}")
            origin = headers.get("origin")
            foreign = origin is not None and urlsplit(origin).netloc != host.netloc
            elsewhere = self._token is None and not is_loopback(host.hostname or "")
        except ValueError:
            foreign = elsewhere = True
        if foreign or elsewhere:
            wanted = "no Origin of another site, and without a token a Host of this machine"
            got = headers.get("origin") if foreign else headers.get("host")
            raise RefusedError("forbidden", "Web pages may not ask.", expected=wanted, got=got, status=403)

    def check_open(self) -> None:
        """Refuse while the server stops."""
        if self.draining:
            raise RefusedError("draining", "The server is stopping.", status=503, retry_after_s=5.0)

    def make_room(self, host: str = "") -> None:
        """For one more session of a host, by closing the one idle longest if need be; else one of a host that has more.

        Raises:
            RefusedError: all are in use.
        """
        most = self.limits.sessions
        if len(self.sessions) < most:
            return
        idlest = max(self.sessions, key=lambda session: session.idle_s())
        if idlest.idle_s() < self.limits.spare_s:
            held = Counter(session.host for session in self.sessions)
            greedy, count = held.most_common(1)[0]
            if count <= held[host] + 1:
                wanted = f"at most {most} sessions"
                raise RefusedError(
                    "busy", "No room for another session.", expected=wanted, status=503, retry_after_s=2.0
                )
            theirs = [session for session in self.sessions if session.host == greedy]
            idlest = max(theirs, key=lambda session: session.idle_s())
        self.sessions.discard(idlest)
        idlest.leave(protocol.IDLE, "others wait")

    def rate(self, client: Any) -> Rate:
        """The bucket of one connection."""
        return self._rates.of(client, time.monotonic())

    def refused(self, error: RefusedError, rate: Rate, host: str) -> None:
        """Count it against the connection that asked; against its host only once for each connection."""
        self.metrics.refused.labels(error.code).inc()
        if error.status >= 500 or error.code in ("unscorable", "rate"):
            return
        rate.take(time.monotonic(), BAD_COST)
        if not rate.bad and error.code != "timeout":  # slow is not rubbish
            rate.bad = True
            self.guard.bad(host)

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

    async def decode(self, chunks: Sequence[Chunk]) -> list[np.ndarray]:
        """Single images (H, W, 3) uint8; raw ones are views of what came, others are decoded by threads."""
        if all(chunk.kind == "raw" for chunk in chunks):
            arrays = [chunk.decode() for chunk in chunks]
        else:
            loop, few = asyncio.get_running_loop(), sum(chunk.pixels for chunk in chunks) <= FEW_PIXELS
            decoder = self._decoders if few else self._large_decoder
            arrays = await loop.run_in_executor(decoder, lambda: [chunk.decode() for chunk in chunks])
        return [frame for array in arrays for frame in array]

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

    async def on_heads(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Run on the heads' thread."""
        return await asyncio.get_running_loop().run_in_executor(self._heads, call, *arguments)

    # The end -----------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Take nothing new, finish what is in hand, and close the sessions with 1001."""
        self.draining = True
        for session in list(self.sessions):
            session.leave()
        ends = time.monotonic() + self.limits.drain_s
        while (self.answering or self.sessions) and time.monotonic() < ends:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """End the threads, once they have done what they are at; what waits for one after the drain is given up."""
        self.batcher.close()
        for pool in (self._heads, self._decoders, self._large_decoder):
            pool.shutdown(cancel_futures=True)


def _plain(shaping: Any) -> dict[str, Any]:
    made = dataclasses.asdict(shaping)
    return {
        key: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for key, value in made.items()
    }


def _numbers(values: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.float().cpu().numpy())
