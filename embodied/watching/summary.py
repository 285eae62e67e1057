"""What a watch came to: counts, latencies, and what went wrong, in memory that does not grow."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

PERCENTILES = ("p50", "p95", "p99")


@dataclass
class Summary:
    """What a run came to.

    Attributes:
        seconds: of the run.
        scored: moments with a reading.
        stale: lines without one because nothing new came.
        unscorable: moments without one because the model had none (NaN, a server that was away).
        dropped: frames of the source that were never scored, since the first that was.
        episodes: that were begun.
        events: kind -> how many ("lost", "back", "goal" …).
        latencies_s: p50, p95 and p99 from capture to reward; empty for recorded sources.
        model_hz: readings a second, over the whole run.
        sinks: name -> what went wrong with it: moments it missed, or the error that ended it.
        lost: names of those that an error ended; not one whose reader has had enough.
    """

    seconds: float = 0.0
    scored: int = 0
    stale: int = 0
    unscorable: int = 0
    dropped: int = 0
    episodes: int = 0
    events: Counter[str] = field(default_factory=Counter)
    latencies_s: dict[str, float] = field(default_factory=dict)
    model_hz: float = 0.0
    sinks: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    @property
    def told(self) -> bool:
        """Whether there was a moment to tell of."""
        return self.scored + self.stale + self.unscorable > 0

    def text(self) -> str:
        """For a person, a few lines."""
        told = [
            f"Watched {self.seconds:.1f} s: {self.scored} moments scored in {self.episodes} "
            f"episode{'s' * (self.episodes != 1)} ({self.model_hz:.1f} a second), {self.dropped} frames dropped, "
            f"{self.stale} stale lines, {self.unscorable} unscorable."
        ]
        if self.latencies_s:
            shown = ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in self.latencies_s.items())
            told.append(f"Capture to reward: {shown}.")
        if self.events:
            told.append("Events: " + ", ".join(f"{kind} {count}" for kind, count in sorted(self.events.items())) + ".")
        told += [f"{name}: {what}" for name, what in self.sinks.items()]
        return "\n".join(told)


class Latencies:
    """The last `size` of them, in memory that does not grow."""

    def __init__(self, size: int = 100_000) -> None:
        self._values, self._count = np.zeros(size, np.float32), 0

    def add(self, seconds: float) -> None:
        self._values[self._count % len(self._values)] = seconds
        self._count += 1

    def percentiles(self) -> dict[str, float]:
        """p50, p95 and p99, seconds; empty before the first."""
        seen = self._values[: self._count]
        if not len(seen):
            return {}
        return dict(zip(PERCENTILES, map(float, np.percentile(seen, [50, 95, 99])), strict=True))
