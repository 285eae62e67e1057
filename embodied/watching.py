"""A camera's moments, scored as they come: capture, score and write side by side, the newest moment always next.

The source captures on threads of its own, whoever calls `Pipeline.step` encodes and scores, and sinks that are slow
write on threads of their own (`embodied.sinks.background`). Of a live source the newest moment is scored and those
missed meanwhile are counted, so latency stays one camera period and one encode however slow the model is. Of a
recorded source every moment is scored, and written, in turn.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from embodied.cameras.camera import CameraEvent, Frame
from embodied.errors import UserError
from embodied.live_scoring import LiveScoring, UnscorableError
from embodied.smoothing import Normaliser, SuccessSmoothing
from embodied.streaming import Reading
from embodied.watched import Sink, Watched

WAIT_S = 0.25  # for a frame, before the lack of one is said
RATE_OVER = 64  # readings, and
RATE_OVER_S = 5.0  # seconds, over which the model's rate is measured
PERCENTILES = ("p50", "p95", "p99")


class MomentSource(Protocol):
    """What a pipeline asks of `embodied.cameras.source.Source`."""

    live: bool
    names: tuple[str, ...]
    dropped: int
    events: Sequence[CameraEvent]

    def next(self, timeout_s: float) -> Mapping[str, Frame] | None: ...

    def close(self) -> None: ...


@dataclass
class Summary:
    """What a run came to.

    Attributes:
        seconds: of the run.
        scored: moments with a reading.
        stale: lines without one because nothing new came.
        unscorable: moments without one because the model had none (NaN, a server that was away).
        dropped: frames of the source that were never scored.
        episodes: that were begun.
        events: kind -> how many ("lost", "back", "goal" …).
        latencies_s: p50, p95 and p99 from capture to reward; empty for recorded sources.
        model_hz: readings a second, over the whole run.
        sinks: name -> what went wrong with it: moments it missed, or the error that ended it.
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


class Pipeline:
    """One source, one scoring, any number of sinks.

    Only the thread that steps touches the source and the scoring; `ask`, `stop` and `status` may be called from any.

    Args:
        source: moments; closed with the pipeline.
        scoring: their worth; closed with the pipeline.
        sinks: closed with the pipeline. One that raises OSError is closed, said and done without; one whose reader
            went away (BrokenPipeError) ends the run.
        smoothing: of the head called "success" where there is one, else of the combined potential.
        normaliser: potentials to [0, 1].
        tell: is given what a person should know at once, a line at a time.
        clock: monotonic seconds, for ages and rates.
        wall: seconds since 1970, for records alone; it may jump.
    """

    def __init__(
        self,
        source: MomentSource,
        scoring: LiveScoring,
        sinks: Sequence[Sink] = (),
        *,
        smoothing: SuccessSmoothing | None = None,
        normaliser: Normaliser | None = None,
        tell: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.source, self.scoring = source, scoring
        self._sinks = list(sinks)
        self._smoothing, self._normaliser = smoothing or SuccessSmoothing(), normaliser or Normaliser()
        self._tell, self._clock, self._wall = tell, clock, wall
        self.ended = False  # nothing more will come
        self._stop = threading.Event()
        self._asked: queue.SimpleQueue[tuple[Future[str], str, str]] = queue.SimpleQueue()
        self._said: list[str] = []  # events that the next line carries
        self._heard = 0  # of the source's events
        self._last: tuple[int, ...] | None = None  # indices of the moment scored last
        self._trouble: str | None = None  # why the last moment had no reading
        self._begin_s, self._at_s = clock(), -np.inf
        self._latencies, self._percentiles, self._percentiles_s = Latencies(), {}, -np.inf
        self._readings_s: deque[float] = deque(maxlen=RATE_OVER)
        self._episode: int | None = None
        self._summary = Summary()
        self._closed = False

    # Running --------------------------------------------------------------------------------------------

    def step(self, timeout_s: float = WAIT_S) -> Watched | None:
        """The next line, written to every sink; None where there is nothing to say yet, or (`ended`) any more."""
        self._obey()
        try:
            frames = self.source.next(timeout_s)
        except EOFError:
            self.ended = True
            return None
        self._hear()
        if not frames:
            return self._write({}, None, stale=True) if self._said else None
        indices = tuple(frame.index for frame in frames.values())
        if any(frame.stale for frame in frames.values()):
            return self._write(frames, None, stale=True)
        if self.source.live and indices == self._last:
            return None  # nothing new, and not old enough to be called stale
        self._last = indices
        return self._score(frames)

    def run(self, duration_s: float | None = None) -> Summary:
        """Step until the source ends, `stop` is called or the time is over; then close.

        Args:
            duration_s: since the pipeline was made; None: for ever.
        """
        try:
            while not (self.ended or self._stop.is_set()):
                if duration_s is not None and self._clock() - self._begin_s >= duration_s:
                    break
                self.step()
        finally:
            self.close()
        return self.summary()

    def stop(self) -> None:
        """Let `run` end after the moment in hand."""
        self._stop.set()

    def close(self) -> None:
        """Close the source, then every sink with what it still has to write; may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._summary.seconds = self._clock() - self._begin_s
        self._summary.dropped = self.source.dropped
        while not self._asked.empty():
            self._asked.get()[0].cancel()
        with ExitStack() as closing:  # all of them, whatever happens to one
            for sink in reversed(self._sinks):
                closing.callback(self._close_sink, sink)
            closing.callback(self.scoring.close)
            closing.callback(self.source.close)

    # Asking ---------------------------------------------------------------------------------------------

    def ask(self, what: str, text: str = "") -> Future[str]:
        """Something to be done before the next moment; the future holds what came of it, in words.

        Args:
            what: "goal" (text: the new goal), "episode", "mark" (text: what to call it) or "quit".
            text: see there.

        Raises:
            ValueError: another `what`.
        """
        if what not in ("goal", "episode", "mark", "quit"):
            raise ValueError(f"Pipeline.ask: what must be goal, episode, mark or quit; got {what!r}.")
        future: Future[str] = Future()
        if self._closed:
            future.cancel()
        else:
            self._asked.put((future, what, text))
        return future

    def status(self) -> dict[str, Any]:
        """The run so far, as JSON holds it."""
        summary = self.summary()
        return {
            "seconds": round(summary.seconds, 3),
            "goal": self.scoring.goal,
            "scored": summary.scored,
            "stale": summary.stale,
            "unscorable": summary.unscorable,
            "dropped": summary.dropped,
            "episodes": summary.episodes,
            "events": dict(summary.events),
            "latencies_s": summary.latencies_s,
            "model_hz": round(self._model_hz(), 3),
            "sinks": summary.sinks,
        }

    def summary(self) -> Summary:
        """The run so far, or as it ended."""
        made = self._summary
        if not self._closed:
            made.seconds, made.dropped = self._clock() - self._begin_s, self.source.dropped
        for sink in list(self._sinks):
            if skipped := getattr(sink, "skipped", 0):
                made.sinks[sink.name] = f"left out {skipped} moments: it is slower than the camera."
        made.model_hz = made.scored / made.seconds if made.seconds > 0 else 0.0
        made.latencies_s = self._latencies.percentiles()
        return made

    # What a step is made of -----------------------------------------------------------------------------

    def _score(self, frames: Mapping[str, Frame]) -> Watched:
        begun = self._clock()
        try:
            reading, stages = self.scoring.score(frames)
        except UnscorableError as error:
            self._summary.unscorable += 1
            if self._trouble != str(error):
                self._say("unscorable", f"no reading: {error}", aloud=True)
            self._trouble = str(error)
            return self._write(frames, None)
        now = self._clock()
        if self._trouble is not None:
            self._say("scored again", "readings are back", aloud=True)
            self._trouble = None
        if reading.episode != self._episode:
            if self._episode is not None and reading.row == 0:
                self._said.append(f"episode {reading.episode} began")
                self._smoothing.restart()
            self._episode = reading.episode
            self._summary.episodes += 1
        self._summary.scored += 1
        self._readings_s.append(now)
        captured_s = min(frame.captured_s for frame in frames.values())
        latency_s = None
        if self.source.live:
            latency_s = max(now - captured_s, 0.0)
            self._latencies.add(latency_s)
            if now - self._percentiles_s >= 1:
                self._percentiles, self._percentiles_s = self._latencies.percentiles(), now
        stages = {**stages, "model": now - begun, **self._percentiles}
        return self._write(frames, reading, latency_s=latency_s, latencies_s=stages)

    def _write(
        self,
        frames: Mapping[str, Frame],
        reading: Reading | None,
        *,
        stale: bool = False,
        latency_s: float | None = None,
        latencies_s: Mapping[str, float] | None = None,
    ) -> Watched:
        """One line, to every sink."""
        now, captured = self._clock(), [frame.captured_s for frame in frames.values()]
        at_s = now if self.source.live or not captured else min(captured)
        self._at_s = max(self._at_s, at_s)
        success, smoothed = None, None
        if reading is not None:
            value = reading.potentials.get("success", reading.combined)
            success, smoothed = self._smoothing.update(value, min(captured))
        self._summary.stale += stale
        watched = Watched(
            frames=frames,
            reading=reading,
            at_s=self._at_s,
            time=self._wall(),
            normalised=self._normaliser(reading.potentials) if reading is not None else {},
            success=success,
            smoothed=smoothed,
            stale=stale,
            age_s=max(now - min(captured), 0.0) if self.source.live and captured else 0.0,
            latency_s=latency_s,
            latencies_s=latencies_s or {},
            dropped=self.source.dropped,
            model_hz=self._model_hz(),
            goal=self.scoring.goal,
            event="; ".join(self._said) or None,
        )
        self._said = []
        for sink in list(self._sinks):
            try:
                sink.write(watched)
            except OSError as error:
                self._give_up(sink, error)
        return watched

    def _give_up(self, sink: Sink, error: OSError) -> None:
        """Go on without a sink; the next line says so."""
        self._sinks.remove(sink)
        self._summary.sinks[sink.name] = f"given up: {_reason(error)}"
        self._say("sink given up", f"{sink.name} given up: {_reason(error)}", aloud=True)
        self._close_sink(sink)
        if isinstance(error, BrokenPipeError):  # `| head`: whoever read has had enough
            self.stop()

    def _close_sink(self, sink: Sink) -> None:
        try:
            sink.close()
        except OSError as error:
            self._summary.sinks.setdefault(sink.name, f"not finished: {_reason(error)}")

    def _model_hz(self) -> float:
        recent = [at for at in self._readings_s.copy() if self._clock() - at <= RATE_OVER_S]
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 and recent[-1] > recent[0] else 0.0

    def _hear(self) -> None:
        """What the source has to tell."""
        events = self.source.events
        for event in list(events)[self._heard :]:
            self._say(event.kind, f"{event.camera} {event.kind}: {event.text}", aloud=True)
        self._heard = len(events)

    def _say(self, kind: str, text: str, *, aloud: bool = False) -> None:
        self._summary.events[kind] += 1
        self._said.append(text)
        if aloud:
            self._tell(text)

    def _obey(self) -> None:
        """Do what was asked since the last moment. A wish that cannot be met never ends the run."""
        while not self._asked.empty():
            future, what, text = self._asked.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._do(what, text))
            except (UserError, ValueError, TypeError, RuntimeError, OSError) as error:
                self._say("refused", f"{what} refused: {error}", aloud=True)
                future.set_exception(error)

    def _do(self, what: str, text: str) -> str:
        if what == "goal":
            past = self.scoring.change_goal(text)
            self._normaliser.restart()
            self._smoothing.restart()
            told = f"goal: {self.scoring.goal} ({past} past moments rescored)"
        elif what == "episode":
            self.scoring.restart()
            told = "a new episode begins"
        elif what == "quit":
            self.stop()
            told = "quit"
        else:
            told = f"mark: {text}" if text else "mark"
        self._say(what, told)
        return told


def _reason(error: OSError) -> str:
    """Without the number."""
    return error.strerror or str(error)
