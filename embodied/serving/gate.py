"""What every server here has, whatever it serves: who may come in, threads, and an end in order."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from embodied.serving import protocol
from embodied.serving.connections import Guard
from embodied.serving.images import Chunk
from embodied.serving.limits import Rate, Rates, RequestLimits
from embodied.serving.metrics import Metrics
from embodied.serving.peer import is_loopback
from embodied.serving.protocol import RefusedError

VERSION = metadata.version("embodied-rewards")
DECODERS = 2  # threads for messages of few pixels, which never wait for those of many: these have one of their own
FEW_PIXELS = 2_000_000
BYTES_PER_REQUEST = 256 << 10  # of a body: what more there is counts as more requests
BAD_COST = 20.0  # requests that a bad one counts as
LONGEST_DEBT_S = 5.0  # of one connection, whatever it did: after that it is served as ever


class Gate:
    """Everyone's claims on one model.

    Args:
        model_id: in every answer.
        limits: on every request.
        token: that every request must bear; None: none, and only this machine's names are answered to.
    """

    paths = ""  # that it answers to, for an error's text

    def __init__(self, *, model_id: str, limits: RequestLimits, token: str | None = None) -> None:
        self.limits = limits
        self.stamp = {"model_id": model_id, "version": VERSION}
        self.metrics, self.guard = Metrics(model_id, VERSION), Guard(limits)
        self.bodies = self.guard.bodies
        self.sessions: set[Any] = set()
        self.draining = False
        self.answering = 0  # HTTP requests and session messages in hand
        self._token = None if token is None else token.encode()
        self._rates = Rates(limits.requests_per_s, limits.burst, most=4 * limits.connections, debt_s=LONGEST_DEBT_S)
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoder")
        self._large_decoder = ThreadPoolExecutor(1, thread_name_prefix="large decoder")
        self._heads = ThreadPoolExecutor(1, thread_name_prefix="heads")

    @property
    def queued(self) -> int:
        """Frames that wait."""
        return 0

    def describe(self) -> dict[str, Any]:
        """What /v1/model says."""
        raise NotImplementedError

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
            bearer = scheme.lower() == "bearer"
            got = ("another token" if given.strip() else "an empty token") if bearer else "another scheme"
            got = got if scheme else "none"
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

    # Threads -------------------------------------------------------------------------------------------

    async def decode(self, chunks: Sequence[Chunk]) -> list[np.ndarray]:
        """Single images (H, W, 3) uint8; raw ones are views of what came, others are decoded by threads."""
        if all(chunk.kind == "raw" for chunk in chunks):
            arrays = [chunk.decode() for chunk in chunks]
        else:
            loop, few = asyncio.get_running_loop(), sum(chunk.pixels for chunk in chunks) <= FEW_PIXELS
            decoder = self._decoders if few else self._large_decoder
            arrays = await loop.run_in_executor(decoder, lambda: [chunk.decode() for chunk in chunks])
        return [frame for array in arrays for frame in array]

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
        for pool in (self._heads, self._decoders, self._large_decoder):
            pool.shutdown(cancel_futures=True)
