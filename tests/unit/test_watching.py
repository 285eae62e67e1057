"""The watch pipeline on a source made by hand: what is scored, what is said, and what goes wrong without harm."""

import errno
import io
import itertools
import os
import threading
import time
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch

from embodied import scoring
from embodied.cameras.camera import CameraEvent, Frame
from embodied.scoring import Layout, Track
from embodied.sinks.background import Background
from embodied.sinks.jsonl import LinesOut
from embodied.watching.live_scoring import LocalScoring
from embodied.watching.pipeline import Pipeline
from embodied.watching.smoothing import SuccessSmoothing
from embodied.watching.terminal_view import TerminalView
from rewards.clip_goal import clip_scorer
from rewards.combine import WeightedSum
from rewards.core import Features, Scorer
from rewards.shaping import PotentialShaping
from tests.fakes import FakeEncoder

SIZE = (8, 8, 3)


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE), dtype=np.uint8)


class FakeSource:
    """Moments from a list: images, "stale", "none" or a CameraEvent that comes before the next of them."""

    def __init__(self, moments, *, live=False, names=("main",), clock=time.monotonic):
        self.live, self.names, self.dropped, self.closed = live, names, 0, False
        self._moments, self._clock, self._last, self._index = deque(moments), clock, None, -1
        self._events = []

    def next(self, timeout_s):
        while self._moments and isinstance(self._moments[0], CameraEvent):
            self._events.append(self._moments.popleft())
        if not self._moments:
            raise EOFError
        moment = self._moments.popleft()
        if isinstance(moment, str):
            if moment == "none" or self._last is None:
                return None
            return {n: Frame(image=f.image, captured_s=f.captured_s, index=f.index, stale=True)
                    for n, f in self._last.items()}  # fmt: skip
        self._index += 1
        at = self._clock() if self.live else self._index / 10
        self._last = {name: Frame(image=moment, captured_s=at, index=self._index) for name in self.names}
        return self._last

    def news(self):
        told, self._events = self._events, []
        return told

    def close(self):
        self.closed = True


class LiveCamera:
    """A live camera by a clock of the test's: numbered images every `period_s`; only the newest is kept."""

    live, names = True, ("main",)

    def __init__(self, period_s, clock):
        self.dropped, self._handed = 0, -1
        self._period_s, self._clock, self._begin_s = period_s, clock, clock()

    def next(self, timeout_s):
        newest = int((self._clock() - self._begin_s) / self._period_s)
        if newest <= self._handed:  # it takes until the next one is there
            newest = self._handed + 1
            self._clock.now = self._begin_s + newest * self._period_s + 1e-6
        self.dropped += newest - self._handed - 1
        self._handed = newest
        return {"main": Frame(image=images(1, newest)[0], captured_s=self._begin_s + newest * self._period_s,
                              index=newest)}  # fmt: skip

    def news(self):
        return []

    def close(self):
        pass


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self, name="kept"):
        self.name, self.lines, self.closed = name, [], 0

    def write(self, watched):
        self.lines.append(watched)

    def close(self):
        self.closed += 1


class Clock:
    """Seconds that pass when told."""

    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now


def up(encoder=None, **options):
    return clip_scorer(encoder=encoder or FakeEncoder(), goal="up", **options)


def watch(source, scoring_=None, **options):
    """Run to the end; (lines, summary)."""
    kept = Kept()
    pipeline = Pipeline(source, scoring_ or LocalScoring(up(), source.names), [kept], **options)
    return kept.lines, pipeline.run()


class PastHead:
    """Reads the past: how far the main view has come from the first row."""

    name = "past"

    def score(self, features: Features) -> torch.Tensor:
        return 1 - (features.main * features.main[:, :1]).sum(-1)


def past_scorer():
    return Scorer(FakeEncoder(), {"past": PastHead()}, WeightedSum(), PotentialShaping(kind="difference"))


# Scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [up, past_scorer])
def test_every_recorded_moment_gets_the_number_of_its_episode_scored_whole(make):
    shown, scorer = images(12), make()
    lines, summary = watch(FakeSource(shown), LocalScoring(scorer))
    rows = Layout().rows(scoring.encode(scorer, shown), [{}] * 12)
    (whole,) = scoring.label(scorer, [Track(rows, [False] * 11)], Layout())
    (name,) = scorer.heads
    np.testing.assert_allclose([w.reading.potentials[name] for w in lines], whole.potentials[name], atol=1e-5)
    np.testing.assert_allclose([w.reading.reward for w in lines[1:]], whole.rewards, atol=1e-5)
    assert (summary.scored, summary.dropped, summary.episodes) == (12, 0, 1)
    assert [w.at_s for w in lines] == [i / 10 for i in range(12)]
    assert {w.latency_s for w in lines} == {None}
    assert {w.age_s for w in lines} == {0.0}


def test_views_of_several_sizes_are_encoded_each_by_itself():
    class AnySize(FakeEncoder):
        def encode_images(self, frames):
            small = torch.nn.functional.interpolate(frames.permute(0, 3, 1, 2).float(), (8, 8)).permute(0, 2, 3, 1)
            return super().encode_images(small)

    a, b = images(1)[0], np.repeat(np.repeat(images(1, 1)[0], 2, 0), 2, 1)
    scorer = up(AnySize())
    frames = {"front": Frame(image=a, captured_s=0.0, index=0), "side": Frame(image=b, captured_s=0.0, index=0)}
    reading = LocalScoring(scorer, ("front", "side")).score(frames).reading
    views = {
        "front": scorer.encode(torch.from_numpy(a)[None])[None],
        "side": scorer.encode(torch.from_numpy(b)[None])[None],
    }
    assert reading.combined == pytest.approx(
        float(scorer.combined(scorer.potentials(Features(views=views)), Features(views=views))), abs=1e-6
    )


def test_latency_is_flat_when_the_model_is_slower_than_the_camera():
    clock = Clock()

    class Slow(FakeEncoder):
        def encode_images(self, frames):
            clock.now += 0.05
            return super().encode_images(frames)

    kept = Kept()
    pipeline = Pipeline(LiveCamera(0.01, clock), LocalScoring(up(Slow())), [kept], clock=clock)
    summary = pipeline.run(1.5)
    latencies = [w.latency_s for w in kept.lines]
    assert len(latencies) == pytest.approx(30, abs=1)
    assert max(latencies) < 0.05 + 0.0101  # one period and one encode; a queue would grow by 40 ms a reading
    assert summary.dropped == pytest.approx(4 * summary.scored, abs=5)
    assert summary.latencies_s["p50"] == pytest.approx(np.median(latencies), abs=1e-3)


def test_the_same_frame_is_never_scored_twice():
    class Repeating(FakeSource):
        def next(self, timeout_s):
            return super().next(timeout_s) if self._last is None else self._last

    clock = Clock()
    source = Repeating(images(1), live=True, clock=clock)
    pipeline = Pipeline(source, LocalScoring(up()), clock=clock)
    assert pipeline.step().reading is not None
    assert pipeline.step() is None
    clock.now += 2
    old = pipeline.step()
    assert (old.stale, old.reading, old.age_s) == (True, None, 2.0)
    pipeline.close()


# Gaps ---------------------------------------------------------------------------------------------------


def event(kind, text="the cable was pulled"):
    return CameraEvent(at_s=0.0, camera="main", kind=kind, text=text)


def test_a_camera_that_goes_away_is_said_and_its_last_frame_never_passed_off_as_fresh():
    told, clock = [], Clock()

    class Passing(FakeSource):
        def next(self, timeout_s):
            clock.now += 1
            return super().next(timeout_s)

    moments = [*images(2), event("lost"), "stale", "stale", event("back", "again"), *images(1, 5)]
    lines, summary = watch(Passing(moments, live=True, clock=clock), clock=clock, tell=told.append)
    assert [w.stale for w in lines] == [False, False, True, True, False]
    assert [w.reading is None for w in lines] == [False, False, True, True, False]
    assert [w.success for w in lines[2:4]] == [w.smoothed for w in lines[2:4]] == [None, None]
    assert [w.age_s for w in lines[2:4]] == [1.0, 2.0]
    assert "lost: the cable was pulled" in lines[2].event
    assert lines[3].event is None
    assert "back: again" in lines[4].event
    assert told == ["main lost: the cable was pulled", "main back: again"]
    assert (summary.stale, summary.scored, summary.events) == (2, 3, {"lost": 1, "back": 1})


def test_a_camera_that_never_gave_a_frame_is_said_too():
    lines, summary = watch(FakeSource(["none", event("lost"), "none", "none"], live=True))
    assert len(lines) == 1
    assert (lines[0].frames, lines[0].reading, lines[0].stale) == ({}, None, True)
    assert "lost" in lines[0].event
    assert summary.scored == 0


def test_the_pause_of_a_slow_view_is_not_called_stale():
    clock = Clock()

    class Rig(FakeSource):
        """Between images of the slow view the fast one is handed out as no moment, all stale, as by `Source`."""

        def next(self, timeout_s):
            clock.now += 0.25
            if not self._last or self._last["front"].stale:
                return super().next(timeout_s)
            front, side = self._last.values()
            front = replace(front, index=front.index + 100, captured_s=clock.now, stale=True)
            self._last = {"front": front, "side": replace(side, stale=True)}
            return self._last

    lines, summary = watch(Rig(images(4), live=True, names=("front", "side"), clock=clock), clock=clock)
    assert [line.stale for line in lines] == [False] * 4
    assert (summary.stale, summary.scored) == (0, 4)


def test_one_stale_view_makes_the_moment_stale():
    class HalfStale(FakeSource):
        def next(self, timeout_s):
            frames = super().next(timeout_s)
            old = Frame(image=frames["side"].image, captured_s=frames["side"].captured_s, index=0, stale=True)
            return frames | {"side": old}

    lines, _ = watch(HalfStale(images(1), live=True, names=("front", "side")))
    assert (lines[0].stale, lines[0].reading) == (True, None)


def test_a_nan_reward_is_marked_counted_and_survived():
    class Sometimes(FakeEncoder):
        def encode_images(self, frames):
            found = super().encode_images(frames)
            return found * float("nan") if 4 <= self.encoded <= 5 else found

    told = []
    lines, summary = watch(FakeSource(images(7)), LocalScoring(up(Sometimes())), tell=told.append)
    assert [w.reading is None for w in lines] == [False] * 3 + [True] * 2 + [False] * 2
    assert not any(w.stale for w in lines)
    assert "finite" in lines[3].event
    assert lines[4].event is None  # said once
    assert "back" in lines[5].event
    assert [w.reading.row for w in lines if w.reading] == [0, 1, 2, 3, 4]
    assert (summary.unscorable, summary.scored) == (2, 5)
    assert len(told) == 2


def test_clocks_that_jump_change_no_age_and_no_latency():
    steady, wall = Clock(), iter([1e9, 1e9 - 3600, 2e9, 1e9])
    source = FakeSource(images(4), live=True, clock=steady)
    lines, _ = watch(source, clock=steady, wall=lambda: next(wall), smoothing=SuccessSmoothing(-1.0))
    assert [w.time for w in lines] == [1e9, 1e9 - 3600, 2e9, 1e9]
    assert {w.latency_s for w in lines} == {0.0}
    assert {w.age_s for w in lines} == {0.0}
    assert {w.success for w in lines} == {True}


def test_a_capture_time_of_the_future_or_the_past_is_no_negative_age():
    clock = Clock()
    ahead = FakeSource(images(3), live=True, clock=iter([150.0, 20.0, 100.0]).__next__)
    lines, _ = watch(ahead, clock=clock)
    assert [w.latency_s for w in lines] == [0.0, 80.0, 0.0]
    assert all(a.at_s <= b.at_s for a, b in itertools.pairwise(lines))
    assert all(np.isfinite(w.smoothed) for w in lines)


# Sinks --------------------------------------------------------------------------------------------------


class Full(Kept):
    def write(self, watched):
        if len(self.lines) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(watched)


def test_a_full_disk_ends_one_sink_and_nothing_else():
    told, kept, full = [], Kept(), Full("overlay.mp4")
    pipeline = Pipeline(FakeSource(images(6)), LocalScoring(up()), [full, kept], tell=told.append)
    summary = pipeline.run()
    assert len(full.lines) == 2
    assert full.closed == 1
    assert len(kept.lines) == 6
    assert [w.event for w in kept.lines].count(None) == 5
    assert "overlay.mp4 given up: No space left" in kept.lines[3].event
    assert told == ["overlay.mp4 given up: No space left on device"]
    assert "No space left" in summary.text()
    assert summary.lost == ["overlay.mp4"]


def test_a_log_on_a_full_disk_ends_no_run():
    class Log(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    view, full, kept = TerminalView(Log()), Full("overlay.mp4"), Kept()
    summary = Pipeline(FakeSource(images(6)), LocalScoring(up()), [view, full, kept], tell=view.tell).run()
    assert len(kept.lines) == 6
    assert summary.lost == ["terminal", "overlay.mp4"]


def test_a_disk_that_is_full_at_the_end_is_said():
    class Unfinished(Kept):
        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    last = Kept()
    pipeline = Pipeline(FakeSource(images(2)), LocalScoring(up()), [Unfinished("a.parquet"), last])
    summary = pipeline.run()
    assert summary.sinks == {"a.parquet": "not finished: No space left on device"}
    assert summary.lost == ["a.parquet"]
    assert last.closed == 1


def test_a_reader_that_went_away_ends_the_run():
    class Gone(Kept):
        def write(self, watched):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    summary = Pipeline(FakeSource(images(9)), LocalScoring(up()), [Gone("standard output")]).run()
    assert summary.scored == 1
    assert summary.lost == []  # it has had enough


@pytest.mark.parametrize("live", [False, True])
def test_a_reader_of_lines_that_has_had_enough_is_no_loss(live):
    reads, writes = os.pipe()
    os.close(reads)
    try:
        source = FakeSource(images(9), live=live)
        summary = Pipeline(source, LocalScoring(up()), [LinesOut(writes, live=live)]).run()
    finally:
        os.close(writes)
    assert (summary.scored, summary.lost) == (1, [])
    assert summary.sinks == {"standard output": "given up: Broken pipe"}


def test_a_fault_in_a_sink_is_raised_and_all_are_closed():
    class Faulty(Kept):
        def write(self, watched):
            raise ZeroDivisionError

    faulty, other, source = Faulty(), Kept(), FakeSource(images(3))
    with pytest.raises(ZeroDivisionError):
        Pipeline(source, LocalScoring(up()), [faulty, other]).run()
    assert (faulty.closed, other.closed, source.closed) == (1, 1, True)


def test_a_slow_consumer_costs_neither_rate_nor_latency():
    clock, free = Clock(), threading.Event()

    class Stuck(Kept):
        def write(self, watched):
            assert free.wait(30)
            super().write(watched)

    stuck, kept = Stuck("slow"), Kept()
    pipeline = Pipeline(
        LiveCamera(0.01, clock), LocalScoring(up()), [Background(stuck, live=True, room=2), kept], clock=clock
    )
    for _ in range(50):
        pipeline.step()
    assert len(kept.lines) == 50  # while the other has not taken one
    assert stuck.lines == []
    assert max(w.latency_s for w in kept.lines) < 0.0101
    free.set()
    pipeline.close()
    assert len(stuck.lines) <= 3
    assert f"left out {50 - len(stuck.lines)} moments" in pipeline.summary().sinks["slow"]
