"""What the server lets one client ask of it, and the counting that holds clients to it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, fields

BODY_GRACE_S = 5.0  # in which a body may be as slow as it likes


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Bounds on every request; a request beyond one is refused by name, before it costs memory or time.

    Attributes:
        body_bytes: of one HTTP body or WebSocket message.
        json_bytes: of one JSON body; msgpack is for anything large.
        elements: list items and map entries of one message, all levels together.
        image_pixels: of one image; read from its header, before anything is decoded.
        image_aspect: of one image's long side to its short one; resizing a thread of pixels would make a sheet of it.
        jpeg_scans: of one progressive JPEG, each of which goes through all of its pixels; encoders write 10 to 20.
        message_pixels: of all images of one message.
        message_frames: images of one message.
        text_chars: of a goal or any other text.
        texts: of one message.
        sessions: open at once; beyond it, the one idle longest makes room, if it has been for `spare_s`, or one of a
            host that has more than the newcomer's.
        spare_s: see `sessions`.
        session_idle_s: without a message, after which a session is closed.
        rows: of one episode, for heads that read the past.
        requests_per_s: of one connection, on average; `burst` of them at once.
        burst: see `requests_per_s`.
        header_s: from a connection's first byte, or its opening, to the end of a request's header.
        body_s: from a request's header to the end of its body.
        body_bytes_per_s: that a body brings at least, on average, after `BODY_GRACE_S`.
        bodies_per_host: unfinished at once; beyond it, the slowest of that host is given up.
        answer_s: from a request's body to its answer.
        connections: open at once; beyond it, of those that have sent no whole request yet the oldest is closed, of the
            host that has most of them.
        body_total_bytes: of all bodies and session messages, from their first byte to their answer.
        queue_frames: waiting to be encoded, of all clients.
        queue_pixels: of those frames.
        episode_pixels: that a session keeps where heads read all images of an episode.
        batch_pixels: encoded at once, at least one image.
        goals: texts whose scorers are kept ready.
        drain_s: for what is queued to finish at shutdown.

    Raises:
        ValueError: one that is not positive; names it.
    """

    body_bytes: int = 32 << 20
    json_bytes: int = 4 << 20
    elements: int = 20_000
    image_pixels: int = 16_000_000
    image_aspect: int = 32
    jpeg_scans: int = 32
    message_pixels: int = 64_000_000
    message_frames: int = 1024
    text_chars: int = 1000
    texts: int = 64
    sessions: int = 64
    spare_s: float = 10.0
    session_idle_s: float = 60.0
    rows: int = 3000
    requests_per_s: float = 500.0
    burst: int = 500
    header_s: float = 10.0
    body_s: float = 30.0
    body_bytes_per_s: float = 4096.0
    bodies_per_host: int = 64
    answer_s: float = 60.0
    connections: int = 256
    body_total_bytes: int = 512 << 20
    queue_frames: int = 4096
    queue_pixels: int = 256_000_000
    episode_pixels: int = 128_000_000
    batch_pixels: int = 16_000_000
    goals: int = 16
    drain_s: float = 10.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) > 0:
                raise ValueError(f"RequestLimits: {each.name} must be above 0; got {getattr(self, each.name)}.")


class Rate:
    """A bucket of requests that refills by the second, and can be in debt, up to a ceiling.

    Args:
        per_s: that come back in a second.
        burst: that it holds.
        now: seconds, monotonic.
        debt_s: seconds until the greatest debt is paid, whatever was taken.

    Attributes:
        bad: whether this connection has been held against its host.
    """

    def __init__(self, per_s: float, burst: int, now: float, debt_s: float = math.inf) -> None:
        self._per_s, self._burst, self._left, self._seen = per_s, burst, float(burst), now
        self._least = -debt_s * per_s
        self.bad = False

    def take(self, now: float, cost: float = 1.0) -> float:
        """Take requests out, be they there or not; returns as `wait`."""
        self.wait(now)
        self._left = max(self._left - cost, self._least)
        return max(0.0, -self._left / self._per_s)

    def wait(self, now: float) -> float:
        """Seconds until there is no debt."""
        self._left = min(self._burst, self._left + max(0.0, now - self._seen) * self._per_s)
        self._seen = now
        return max(0.0, -self._left / self._per_s)


class Rates:
    """A bucket each for the most recent clients.

    Args:
        per_s, burst: see `Rate`.
        most: clients that are remembered.
        debt_s: see `Rate`.
    """

    def __init__(self, per_s: float, burst: int, most: int, debt_s: float = math.inf) -> None:
        self._per_s, self._burst, self._most, self._debt_s = per_s, burst, most, debt_s
        self._rates: OrderedDict[Hashable, Rate] = OrderedDict()

    def of(self, client: Hashable, now: float) -> Rate:
        """The client's bucket, full where it is new."""
        rate = self._rates.setdefault(client, Rate(self._per_s, self._burst, now, self._debt_s))
        self._rates.move_to_end(client)
        if len(self._rates) > self._most:
            self._rates.popitem(last=False)
        return rate
