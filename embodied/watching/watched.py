"""One moment of a watched camera, and what such moments are written to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from embodied.cameras.camera import Frame
from embodied.scoring.streaming import Reading


@dataclass(frozen=True, kw_only=True)
class Watched:
    """One line of output; what every sink gets. Nobody writes to its images any more.

    Attributes:
        frames: view -> its frame; empty where none has come yet.
        reading: what the moment is worth; None where it is stale, could not be scored, or the server is away.
        at_s: when this line was made, monotonic clock; of a recorded source its position, seconds. Never falls
            within a run.
        time: when this line was made, wall clock, seconds since 1970; for records alone, it may jump.
        normalised: head -> its potential in [0, 1], by its known range or by the extremes seen so far.
        success: by hysteresis on `smoothed`; None where nothing tells.
        smoothed: what `success` is read from, after smoothing; None where nothing tells.
        stale: whether the frames are old and the reading therefore missing.
        age_s: of the oldest frame, when this line was made; 0 for recorded sources.
        latency_s: from capture to reward; None where there is no reading, or the source is recorded.
        latencies_s: more of them by name: stages ("encode", "score") and figures so far ("p50", "p95", "p99").
        dropped: frames of the source that were never scored, so far.
        model_hz: readings a second, lately.
        goal: the goal's text, where the reward has one.
        event: what happened just before, in words: a camera lost, a new goal, a mark.
    """

    frames: Mapping[str, Frame]
    reading: Reading | None
    at_s: float
    time: float
    normalised: Mapping[str, float] = field(default_factory=dict)
    success: bool | None = None
    smoothed: float | None = None
    stale: bool = False
    age_s: float = 0.0
    latency_s: float | None = None
    latencies_s: Mapping[str, float] = field(default_factory=dict)
    dropped: int = 0
    model_hz: float = 0.0
    goal: str | None = None
    event: str | None = None


@runtime_checkable
class Sink(Protocol):
    """Something that keeps or shows what is watched.

    Whoever writes stops at the first OSError (a full disk, a reader that went away), says so, and still calls
    `close`; what was written before stays readable. Any other error is a fault of ours.
    """

    name: str  # what messages call it: "overlay.mp4"

    def write(self, watched: Watched) -> None:
        """Take one moment. Returns at once where the source is live; a recorded one may wait.

        Raises:
            OSError: it cannot be kept, now or from now on.
        """
        ...

    def close(self) -> None:
        """Finish the file or the view; may be called twice.

        Raises:
            OSError: it cannot be finished; what was written before stays readable.
        """
        ...


def line(watched: Watched) -> dict[str, Any]:
    """Everything but the images, as JSON holds it: what standard output, `readings.jsonl` and the rest agree on."""
    reading = watched.reading
    return {
        "time": round(watched.time, 6),
        "at_s": round(watched.at_s, 6),
        "episode": reading.episode if reading else None,
        "row": reading.row if reading else None,
        "frame_index": {view: frame.index for view, frame in watched.frames.items()},
        "captured_s": {view: round(frame.captured_s, 6) for view, frame in watched.frames.items()},
        "potentials": _finite(reading.potentials) if reading else {},
        "combined": _number(reading.combined) if reading else None,
        "reward": _number(reading.reward) if reading else None,
        "normalised": _finite(watched.normalised),
        "success": watched.success,
        "smoothed": _number(watched.smoothed),
        "stale": watched.stale,
        "age_s": _number(watched.age_s),
        "latency_s": _number(watched.latency_s),
        "latencies_s": _finite(watched.latencies_s),
        "dropped": watched.dropped,
        "model_hz": _number(watched.model_hz),
        "goal": watched.goal,
        "event": watched.event,
    }


def _number(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if value is not None and math.isfinite(value) else None


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}
