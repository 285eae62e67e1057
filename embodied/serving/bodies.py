"""Bodies of requests as they come: how fast they must, how many of one host, and how much of all of them.

A body that has come is counted until it is answered, and so is a session's message: what waits for a decoder is memory
as much as what is still on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from embodied.serving.limits import BODY_GRACE_S, RequestLimits
from embodied.serving.protocol import JSON, RefusedError, too_large

CRAWL = 16  # times the least pace: slower ones make room where connections run out
FEW_BYTES = 1 << 20  # that every connection may bring, however much the others hold
LINGER_S = 1.0  # for the rest of a body that is refused, so that its sender reads the answer


@dataclass(eq=False)
class _Coming:
    """One unfinished body.

    Attributes:
        since_s: when it began, on the event loop's clock.
        patience: what gives it up.
        size: bytes so far.
        given_up: for others' sake.
    """

    since_s: float
    patience: asyncio.Timeout
    size: int = 0
    given_up: bool = False

    def pace(self, now: float) -> float:
        """Bytes a second; the newest are not called slow at once."""
        return (self.size + 1) / (now - self.since_s + 0.1)


class Bodies:
    """All unfinished bodies, and the bytes that are held.

    Args:
        limits: on each.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._coming: dict[str, dict[_Coming, None]] = {}  # host -> its unfinished ones
        self.held = 0  # bytes

    @contextlib.asynccontextmanager
    async def of(self, request: Any, host: str) -> AsyncIterator[bytes]:
        """A request's body, counted as long as it is used.

        Args:
            request: Starlette's.
            host: that it is counted against.

        Raises:
            RefusedError: too large, too slow, or more than there is room for.
        """
        limits, body, size = self._limits, bytearray(), 0
        most = limits.json_bytes if media(request) == JSON else limits.body_bytes
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > most:
            raise too_large("bytes in the body", most, int(declared))
        try:
            await self._read(request, host, body, most)
            size, whole = len(body), bytes(body)
            body.clear()
            yield whole
        finally:
            self.held -= size or len(body)

    @contextlib.contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Bytes of a session's message, in use.

        Raises:
            RefusedError: there is no room for them.
        """
        self.held += size
        try:
            self._check_room(size)
            yield
        finally:
            self.held -= size

    def make_room(self) -> bool:
        """Give up the slowest body of all, if its pace is that of one who only holds a connection; whether it was."""
        return self._give_up(
            [each for group in self._coming.values() for each in group], below=CRAWL * self._limits.body_bytes_per_s
        )

    def _give_up(self, bodies: Iterable[_Coming], *, below: float = math.inf) -> bool:
        """Give up the slowest that brings less than `below` bytes a second; whether there was one."""
        now = asyncio.get_running_loop().time()
        coming = [each for each in bodies if not (each.given_up or each.patience.expired())]
        slowest = min(coming, key=lambda each: each.pace(now), default=None)
        if slowest is None or slowest.pace(now) >= below:
            return False
        slowest.given_up = True
        slowest.patience.reschedule(now)
        return True

    async def _read(self, request: Any, host: str, body: bytearray, most: int) -> None:
        loop, limits = asyncio.get_running_loop(), self._limits
        coming: _Coming | None = None
        try:
            async with asyncio.timeout(min(limits.body_s, BODY_GRACE_S)) as patience:
                coming = self._enter(host, _Coming(loop.time(), patience))
                async for part in request.stream():
                    body += part
                    self.held += len(part)
                    coming.size = len(body)
                    if len(body) > most:
                        raise too_large("bytes in the body", most, len(body))
                    self._check_room(len(body))
                    if not coming.given_up:
                        allowed = min(limits.body_s, BODY_GRACE_S + len(body) / limits.body_bytes_per_s)
                        patience.reschedule(coming.since_s + allowed)
        except TimeoutError as error:
            got = f"{len(body)} bytes"
            if coming is not None and coming.given_up:
                wanted = f"at most {limits.bodies_per_host} unfinished bodies of one host"
                told = "This body was the slowest of too many."
                raise RefusedError("crowded", told, expected=wanted, got=got, status=408) from error
            wanted = f"{limits.body_bytes_per_s:g} bytes a second and a whole body within {limits.body_s:g} s"
            raise RefusedError("timeout", "The body is slow.", expected=wanted, got=got, status=408) from error
        finally:
            if coming is not None:
                self._leave(host, coming)

    def _enter(self, host: str, coming: _Coming) -> _Coming:
        if len(self._coming.get(host, ())) >= self._limits.bodies_per_host:
            self._give_up(self._coming[host])
        self._coming.setdefault(host, {})[coming] = None
        return coming

    def _leave(self, host: str, coming: _Coming) -> None:
        group = self._coming[host]
        del group[coming]
        if not group:
            del self._coming[host]

    def full(self, size: int) -> bool:
        """Whether there is no room for so many bytes; for a few there always is, whoever holds the rest."""
        return size > FEW_BYTES and self.held > self._limits.body_total_bytes

    def _check_room(self, size: int) -> None:
        if self.full(size):
            raise RefusedError("busy", "Too many bodies at once.", status=503, retry_after_s=1.0)


async def linger(request: Any, limits: RequestLimits) -> bool:
    """Read what is left of a body, up to as much as is allowed: a sender that is cut off reads no answer.

    Returns:
        Whether it has ended.
    """
    declared = request.headers.get("content-length", "0")
    if "expect" in request.headers or not declared.isdecimal() or int(declared) > 2 * limits.body_bytes:
        return False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (message := await request.receive())["type"] == "http.request":
                if not message.get("more_body"):
                    return True
    return False


def media(request: Any) -> str:
    """A request's media type, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
