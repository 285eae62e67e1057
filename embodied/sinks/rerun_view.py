"""Rerun: the frames and every number, in an `.rrd` file or a live view (`embodied.sinks.rerun_live`).

Timelines and entity paths are LeRobot's (`frame_index`, `timestamp`, `observation.images.<view>`); ours are added:
`reward/<head>` (potentials), `reward/combined`, `reward/step`, `normalised/<head>`, `success`, `smoothed`,
`latency_ms/<stage>`, `age_ms`, `model_hz`, `dropped`, `stale`, `events`, `goal`.

The SDK may wait for good where it writes itself: to a file on a disk that became full, to a viewer that hangs. So it
only makes the bytes, and they are written here.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from embodied.errors import UserError
from embodied.sinks.files import Appended
from embodied.watching.watched import Watched

APPLICATION = "embodied_watch"
JPEG_QUALITY = 80
FLUSH_S, FLUSH_WAIT_S = 0.5, 5.0
MAGIC, HEADER, MESSAGE = b"RRF2", 12, struct.Struct("<QQ")  # of a stream


def sdk() -> Any:
    """The package `rerun`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import rerun
        import rerun.blueprint
    except ImportError as error:
        raise UserError('Rerun is not installed. pip install "embodied-rewards[rerun]".') from error
    return rerun


class Stream:
    """Moments in, Rerun's bytes out; together they are one `.rrd`.

    Args:
        live: `timestamp` is then the wall clock of the first moment and what passed since, which never jumps; else
            the position in the source.

    Raises:
        UserError: the package `rerun` is not installed.
    """

    def __init__(self, *, live: bool) -> None:
        self._rr, self._live = sdk(), live
        self._to = self._rr.RecordingStream(APPLICATION)
        self._bytes = self._to.binary_stream()
        self._begun = False
        self._clock_s: float | None = None
        self._views: tuple[str, ...] | None = None
        self._shown: dict[str, int] = {}
        self._known: set[tuple[str, ...]] = set()  # what had a value in the last moment
        self._index, self._goal = 0, None

    def add(self, watched: Watched) -> None:
        rr, to = self._rr, self._to
        if self._clock_s is None:
            self._clock_s = watched.time - watched.at_s if self._live else 0.0
        self._index = max((frame.index for frame in watched.frames.values()), default=self._index)
        to.set_time("frame_index", sequence=self._index)
        to.set_time("timestamp", timestamp=watched.at_s + self._clock_s)
        if watched.frames and self._views != tuple(watched.frames):
            self._views = tuple(watched.frames)
            to.send_blueprint(blueprint(rr, self._views))
        for view, frame in watched.frames.items():
            if self._shown.get(view) != frame.index:  # an old frame is not sent again as if it were new
                self._shown[view] = frame.index
                image = rr.Image(frame.image).compress(jpeg_quality=JPEG_QUALITY)
                to.log(f"observation.images.{view}", image)
        values = _scalars(watched)
        for path in self._known - values.keys():  # its curve ends here; else a line would span the gap
            to.log(list(path), rr.Clear(recursive=False))
        self._known = set(values)
        for path, value in values.items():
            to.log(list(path), rr.Scalars(value))
        if watched.event:
            level = rr.TextLogLevel.WARN if watched.stale else rr.TextLogLevel.INFO
            to.log("events", rr.TextLog(watched.event, level=level))
        if watched.goal != self._goal:
            self._goal = watched.goal
            to.log("goal", rr.TextDocument(watched.goal or ""))

    def take(self) -> bytes:
        """What was added since.

        Raises:
            OSError: the SDK does not give it.
        """
        try:
            data = self._bytes.read(flush_timeout_sec=FLUSH_WAIT_S) or b""
        except RuntimeError as error:
            raise OSError(f"Rerun does not give what it was given: {error}") from error
        if not data:
            return b""
        begin, self._begun = HEADER if self._begun else 0, True
        return data[begin : _messages_end(data)]

    def close(self) -> None:
        self._to.disconnect()


class RerunFile:
    """Writes `….rrd`; as a constructor, raises what `Stream` does."""

    def __init__(self, path: Path, *, live: bool) -> None:
        self.name = path.name
        self._stream, self._file = Stream(live=live), Appended(path)
        self._flushed_s: float | None = None
        self._closed = False

    def write(self, watched: Watched) -> None:
        self._stream.add(watched)
        if self._flushed_s is None or watched.at_s - self._flushed_s >= FLUSH_S:
            self._flushed_s = watched.at_s
            self._file.write(self._stream.take())

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._file.write(self._stream.take())
        finally:
            self._file.close()
            self._stream.close()


def blueprint(rerun: Any, views: tuple[str, ...]) -> Any:
    """The views above, what they are worth below, how old and how fast beside it."""
    rrb = rerun.blueprint
    images = [rrb.Spatial2DView(origin=f"observation.images.{view}", name=view) for view in views]
    recent = rrb.VisibleTimeRange(
        "timestamp",
        start=rrb.TimeRangeBoundary.cursor_relative(seconds=-30),
        end=rrb.TimeRangeBoundary.cursor_relative(),
    )

    def curves(name: str, *paths: str) -> Any:
        return rrb.TimeSeriesView(name=name, origin="/", contents=[f"+ /{path}" for path in paths], time_ranges=recent)

    below = [
        curves("reward", "reward/**"),
        curves("normalised, success", "normalised/**", "smoothed", "success", "stale"),
        rrb.Vertical(
            curves("latency, ms", "latency_ms/**"), curves("age, ms", "age_ms"), curves("model, Hz", "model_hz")
        ),
        rrb.Vertical(rrb.TextDocumentView(name="goal", origin="goal"), rrb.TextLogView(name="events", origin="events")),
    ]
    return rrb.Blueprint(
        rrb.Vertical(rrb.Horizontal(*images), rrb.Horizontal(*below), row_shares=[3, 2]),
        rrb.TimePanel(timeline="timestamp", state="collapsed"),
        rrb.BlueprintPanel(state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
    )


def _scalars(watched: Watched) -> dict[tuple[str, ...], float]:
    """Parts of an entity path (heads are named by anything, goals too) -> value; what is not known is left out."""
    values: dict[tuple[str, ...], float | None] = {
        ("smoothed",): watched.smoothed,
        ("success",): watched.success,
        ("stale",): watched.stale,
        ("age_ms",): watched.age_s * 1000,
        ("model_hz",): watched.model_hz,
        ("dropped",): watched.dropped,
        ("latency_ms", "total"): None if watched.latency_s is None else watched.latency_s * 1000,
        **{("latency_ms", name): seconds * 1000 for name, seconds in watched.latencies_s.items()},
    }
    if watched.reading is not None:
        values |= {("reward", name): value for name, value in watched.reading.potentials.items()}
        values |= {("normalised", name): value for name, value in watched.normalised.items()}
        values |= {("reward", "combined"): watched.reading.combined, ("reward", "step"): watched.reading.reward}
    return {path: float(value) for path, value in values.items() if value is not None}


def _messages_end(data: bytes) -> int:
    """Where the messages of a stream end: each reading of one closes it with a footer, which a file has but once.

    A stream is a header, messages (a kind and a length, 8 bytes each, then so many bytes), one of kind 0, its footer.

    Raises:
        OSError: it is no such stream.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise OSError(f"Rerun's stream begins with {data[:8]!r}; {MAGIC!r} is what can be written here.")
    at = HEADER
    while at + MESSAGE.size <= len(data):
        kind, length = MESSAGE.unpack_from(data, at)
        if kind == 0:
            break
        at += MESSAGE.size + length
    return at
