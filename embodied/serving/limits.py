"""What the server lets one client ask of it, and the counting that holds clients to it."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on every request; a request beyond one is refused by name, before it costs memory or time.

    Attributes:
        body_bytes: of one HTTP body or WebSocket message.
        json_bytes: of one JSON body; msgpack is for anything large.
        elements: list items and map entries of one message, all levels together.
        image_pixels: of one image; read from its header, before anything is decoded.
        message_pixels: of all images of one message.
        message_frames: images of one message.
        text_chars: of a goal or any other text.
        texts: of one message.
        sessions: open at once.
        session_idle_s: without a message, after which a session is closed.
        rows: of one episode, for heads that read the past.
        requests_per_s: of one connection, on average; `burst` of them at once.
        burst: see `requests_per_s`.
        header_s: from a connection's first byte, or its opening, to the end of a request's header.
        body_s: from a request's header to the end of its body.
        answer_s: from a request's body to its answer.
        connections: open at once; beyond it, those that have sent no whole request yet are closed, oldest first.
        queue_frames: waiting to be encoded, of all clients.
        goals: texts whose scorers are kept ready.
        drain_s: for what is queued to finish at shutdown.

    Raises:
        ValueError: one that is not positive; names it.
    """

    body_bytes: int = 32 << 20
    json_bytes: int = 4 << 20
    elements: int = 20_000
    image_pixels: int = 16_000_000
    message_pixels: int = 64_000_000
    message_frames: int = 1024
    text_chars: int = 1000
    texts: int = 64
    sessions: int = 64
    session_idle_s: float = 60.0
    rows: int = 3000
    requests_per_s: float = 200.0
    burst: int = 200
    header_s: float = 10.0
    body_s: float = 30.0
    answer_s: float = 60.0
    connections: int = 256
    queue_frames: int = 4096
    goals: int = 16
    drain_s: float = 10.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) > 0:
                raise ValueError(f"Limits: {each.name} must be above 0; got {getattr(self, each.name)}.")


class Rate:
    """A bucket of requests that refills by the second.

    Args:
        per_s: that come back in a second.
        burst: that it holds.
        now: seconds, monotonic.
    """

    def __init__(self, per_s: float, burst: int, now: float) -> None:
        self._per_s, self._burst, self._left, self._seen = per_s, burst, float(burst), now

    def take(self, now: float, cost: float = 1.0) -> float:
        """Take one request out.

        Returns:
            0 where there was one; else the seconds until there is.
        """
        self._left = min(self._burst, self._left + (now - self._seen) * self._per_s)
        self._seen = now
        if self._left >= cost:
            self._left -= cost
            return 0.0
        return (cost - self._left) / self._per_s
