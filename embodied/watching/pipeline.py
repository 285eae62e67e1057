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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, Protocol, runtime_checkable

import numpy as np

from embodied.cameras.camera import CameraEvent, Frame
from embodied.errors import UserError
from embodied.scoring.streaming import Reading
from embodied.watching.live_scoring import LiveScoring, UnscorableError
from embodied.watching.smoothing import PotentialRanges, SuccessSmoothing
from embodied.watching.summary import Latencies, Summary
from embodied.watching.watched import Sink, Watched

WAIT_S = 0.25  # for a frame, before looking whether there is something else to do
MAX_AGE_S = 0.5  # of frames, until the lack of newer ones is said; the sources' own default
SUCCESS = "success"  # the head whose potential tells success, where there is one
RATE_OVER = 64  # readings, and
RATE_OVER_S = 5.0  # seconds, over which the model's rate is measured


@runtime_checkable
class MomentSource(Protocol):
    """What a pipeline asks of `embodied.cameras.source.Source`."""

    live: bool
    names: tuple[str, ...]
    dropped: int

    def next(self, timeout_s: float) -> Mapping[str, Frame] | None: ...

    def news(self) -> Sequence[CameraEvent]: ...

    def close(self) -> None: ...


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
        max_age_s: that a live source's frames may have before a line says that they are stale.
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
        normaliser: PotentialRanges | None = None,
        tell: Callable[[str], None] = lambda text: None,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.source, self.scoring = source, scoring
        self._sinks = list(sinks)
        self._smoothing, self._normaliser = smoothing or SuccessSmoothing(), normaliser or PotentialRanges()
        self._tell, self._max_age_s, self._clock, self._wall = tell, max_age_s, clock, wall
        self.ended = False  # nothing more will come
        self._stop = threading.Event()
        self._asked: queue.SimpleQueue[tuple[Future[str], str, str]] = queue.SimpleQueue()
        self._said: list[str] = []  # events that the next line carries
        self._last: tuple[int, ...] | None = None  # indices of the moment scored last
        self._dropped_before: int | None = None  # by the source, while the model was being loaded
        self._trouble: str | None = None  # the kind of it that left the last moment without a reading
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
        if frames and self._dropped_before is None:
            self._dropped_before = self.source.dropped
        if not frames:
            return self._write({}, None, stale=True) if self._said else None
        indices = tuple(frame.index for frame in frames.values())
        stale, known = any(frame.stale for frame in frames.values()), indices == self._last
        again = known or all(frame.stale for frame in frames.values())  # no moment: the slowest view has no news yet
        if self.source.live and again and self._age_s(frames) <= self._max_age_s:
            return None  # not old enough to be called stale
        if stale or (self.source.live and known):
            return self._write(frames, None, stale=True)
        self._last = indices
        return self._score(frames)

    def run(self, duration_s: float | None = None, each_step: Callable[[], None] = lambda: None) -> Summary:
        """Step until the source ends, `stop` is called or the time is over; then close.

        Args:
            duration_s: since the pipeline was made; None: for ever.
            each_step: called before every step, such as to look at the keyboard.
        """
        try:
            while not (self.ended or self._stop.is_set()):
                if duration_s is not None and self._clock() - self._begin_s >= duration_s:
                    break
                each_step()
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
        self._summary.dropped = self._dropped()
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
            made.seconds, made.dropped = self._clock() - self._begin_s, self._dropped()
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
            if self._trouble != error.kind:
                self._say("unscorable", f"no reading: {error}", aloud=True)
            self._trouble = error.kind
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
        return self._write(frames, reading, latency_s=latency_s, stages_s={**stages, "model": now - begun})

    def _write(
        self,
        frames: Mapping[str, Frame],
        reading: Reading | None,
        *,
        stale: bool = False,
        latency_s: float | None = None,
        stages_s: Mapping[str, float] | None = None,
    ) -> Watched:
        """One line, to every sink."""
        now, captured = self._clock(), [frame.captured_s for frame in frames.values()]
        at_s = now if self.source.live or not captured else min(captured)
        self._at_s = max(self._at_s, at_s)
        success, smoothed = None, None
        if reading is not None:
            value = reading.potentials.get(SUCCESS, reading.combined)
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
            age_s=self._age_s(frames),
            latency_s=latency_s,
            latencies_s={**(stages_s or {}), **self._percentiles},
            dropped=self._dropped(),
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
        if not isinstance(error, BrokenPipeError):
            self._summary.lost.append(sink.name)
        self._say("sink given up", f"{sink.name} given up: {_reason(error)}", aloud=True)
        self._close_sink(sink)
        if isinstance(error, BrokenPipeError):  # `| head`: whoever read has had enough
            self.stop()

    def _close_sink(self, sink: Sink) -> None:
        try:
            sink.close()
        except OSError as error:
            self._summary.sinks.setdefault(sink.name, f"not finished: {_reason(error)}")
            if not isinstance(error, BrokenPipeError) and sink.name not in self._summary.lost:
                self._summary.lost.append(sink.name)

    def _age_s(self, frames: Mapping[str, Frame]) -> float:
        """Of the oldest; a record has no age."""
        captured = [frame.captured_s for frame in frames.values()]
        return max(self._clock() - min(captured), 0.0) if self.source.live and captured else 0.0

    def _dropped(self) -> int:
        """Since the first moment."""
        return 0 if self._dropped_before is None else self.source.dropped - self._dropped_before

    def _model_hz(self) -> float:
        now = self._clock()
        recent = [at for at in self._readings_s.copy() if now - at <= RATE_OVER_S]
        return (len(recent) - 1) / (now - recent[0]) if len(recent) > 1 and now > recent[0] else 0.0

    def _hear(self) -> None:
        """What the source has to tell."""
        for event in self.source.news():
            self._say(event.kind, f"{event.camera} {event.kind}: {event.text}", aloud=True)

    def _say(self, kind: str, text: str, *, aloud: bool = False) -> None:
        text = text.encode("utf-8", "replace").decode()  # half a character, as JSON may hold, is in no file's text
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
            except (UserError, ValueError, TypeError, RuntimeError, OSError, FloatingPointError, KeyError) as error:
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
            self._smoothing.restart()
            self._episode = None  # so that it is not announced twice
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
