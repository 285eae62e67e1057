"""A stream's readings are the numbers of its episode scored whole."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from embodied import scoring
from embodied.scoring import Layout, Track
from embodied.scoring.streaming import EpisodeStream
from rewards.clip_goal import clip_scorer, softmax_scorer
from rewards.combine import WeightedSum
from rewards.core import Features, Scorer
from rewards.shaping import PotentialShaping
from tests.fakes import FakeEncoder


class RisingHead:
    """Reads the past: how far the main view has come from the first row."""

    name = "rising"

    def score(self, features: Features) -> torch.Tensor:
        return 1 - (features.main * features.main[:, :1]).sum(-1)


class GoingHead(RisingHead):
    """The same, row by row."""

    name, advances = "going", True

    def advance(self, features: Features, memory: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        self.given = features.main.shape[1]
        first = features.main[:, :1] if memory is None else memory
        return 1 - (features.main * first).sum(-1), first


class SeeingHead:
    """Reads every image, row by row."""

    name, frames_read, advances = "seeing", "all", True

    def score(self, features: Features) -> torch.Tensor:
        return self.advance(features)[0]

    def advance(self, features: Features, memory: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        total = next(iter(features.frames.values())).float().mean((2, 3, 4)).cumsum(1) / 255 + (memory or 0.0)
        return total, total[:, -1:]


class BrightHead:
    """Reads every image."""

    name, frames_read = "bright", "all"

    def score(self, features: Features) -> torch.Tensor:
        return next(iter(features.frames.values())).float().mean((2, 3, 4)).cumsum(1) / 255


def make(*heads, kind="difference") -> Scorer:
    return Scorer(FakeEncoder(), {h.name: h for h in heads}, WeightedSum(), PotentialShaping(kind=kind))


SCORERS = {
    "pointwise": lambda: clip_scorer(encoder=FakeEncoder(), goal="up", shaping={"kind": "difference"}),
    "past": lambda: make(RisingHead()),
    "images": lambda: make(RisingHead(), BrightHead()),
    "row by row": lambda: make(GoingHead()),
    "images row by row": lambda: make(GoingHead(), SeeingHead()),
    "one that cannot": lambda: make(GoingHead(), BrightHead()),
}


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 2, 8, 8, 3), dtype=np.uint8)  # T, V


@pytest.mark.parametrize("name", SCORERS)
def test_a_stream_says_what_the_whole_episode_says(name, frames):
    scorer, layout = SCORERS[name](), Layout(("front", "side"))
    stream = EpisodeStream(scorer, layout)
    rows = [stream.encode(moment) for moment in frames]
    readings = [stream.push(row, moment) for row, moment in zip(rows, frames, strict=True)]
    (whole,) = scoring.label(scorer, [Track(rows, [False] * 6, frames=list(frames))], layout)
    for head, values in whole.potentials.items():
        assert_close(np.array([r.potentials[head] for r in readings], np.float32), values, rtol=1e-5, atol=1e-5)
    assert readings[0].reward is None
    assert_close(np.array([r.reward for r in readings[1:]], np.float32), whole.rewards, rtol=1e-5, atol=1e-5)
    assert [r.row for r in readings] == list(range(7))


def test_a_new_episode_forgets_the_old(frames):
    stream = EpisodeStream(make(RisingHead()), Layout(("front", "side")))
    rows = [stream.encode(moment) for moment in frames]
    first = [stream.push(row) for row in rows]
    stream.restart()
    again = [stream.push(row) for row in rows]
    assert [r.combined for r in again] == [r.combined for r in first]
    assert {r.episode for r in again} == {1}


def test_an_episode_longer_than_it_may_be_ends_and_says_so(frames):
    stream = EpisodeStream(make(RisingHead()), Layout(("front", "side")), max_rows=3)
    readings = [stream.push(stream.encode(moment)) for moment in frames]
    assert [(r.episode, r.row) for r in readings] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_a_pointwise_stream_goes_on_for_ever(frames):
    stream = EpisodeStream(SCORERS["pointwise"](), Layout(("front", "side")), max_rows=3)
    readings = [stream.push(stream.encode(moment)) for moment in frames]
    assert [(r.episode, r.row) for r in readings] == [(0, t) for t in range(7)]


def test_another_goal_rescores_what_is_kept_and_encodes_nothing(frames):
    encoder = FakeEncoder()
    stream = EpisodeStream(clip_scorer(encoder=encoder, goal="up"), Layout(("front", "side")))
    rows = [stream.encode(moment) for moment in frames]
    for row in rows[:-1]:
        stream.push(row)
    encoded = encoder.encoded
    other = softmax_scorer(encoder=encoder, goal="down", negatives=["left"], shaping={"kind": "difference"})
    past = stream.rescored(other)
    reading = stream.push(rows[-1])
    (whole,) = scoring.label(other, [Track(rows, [False] * 6)], Layout(("front", "side")))
    assert encoder.encoded == encoded
    (name,) = other.heads
    seen = [each[name] for each in [*past, reading.potentials]]
    assert_close(np.array(seen, np.float32), whole.potentials[name], rtol=1e-5, atol=1e-5)
    assert reading.reward == pytest.approx(whole.rewards[-1], abs=1e-5)


def test_another_goal_of_a_head_that_goes_on(frames):
    encoder = FakeEncoder()
    scorers = [
        Scorer(encoder, {"going": GoingHead()}, WeightedSum({"going": w}), PotentialShaping()) for w in (1.0, 2.0)
    ]
    stream = EpisodeStream(scorers[0], Layout(("front", "side")))
    rows = [stream.encode(moment) for moment in frames]
    (whole,) = scoring.label(scorers[1], [Track(rows, [False] * 6)], Layout(("front", "side")))
    for row in rows[:-1]:
        stream.push(row)
    assert len(stream.rescored(scorers[1])) == 6
    reading = stream.push(rows[-1])
    assert scorers[1].heads["going"].given == 1
    assert reading.potentials["going"] == pytest.approx(whole.potentials["going"][-1], abs=1e-5)
    seeing = Scorer(encoder, {"seeing": SeeingHead()}, WeightedSum(), PotentialShaping())
    stream = EpisodeStream(seeing, Layout(("front", "side")))
    stream.push(rows[0], frames[0])
    assert stream.rescored(seeing) == []  # its images are gone
    assert stream.push(rows[1], frames[1])[:2] == (1, 0)


def test_a_bad_number_leaves_the_stream_as_it_was(frames):
    stream = EpisodeStream(SCORERS["pointwise"](), Layout(("front", "side")))
    row = stream.encode(frames[0])
    with pytest.raises(FloatingPointError, match="'clip'"):
        stream.push(np.full_like(row, np.nan))
    assert stream.push(row).row == 0


def test_what_it_refuses(frames):
    with pytest.raises(ValueError, match="max_rows must be at least 2; got 1"):
        EpisodeStream(make(RisingHead()), max_rows=1)
    stream = EpisodeStream(make(BrightHead()), Layout(("front", "side")))
    with pytest.raises(ValueError, match="frames must be given: the scorer reads all"):
        stream.push(stream.encode(frames[0]))
    with pytest.raises(ValueError, match="another"):
        stream.rescored(make(RisingHead()))
