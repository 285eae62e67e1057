"""Other goals while a stream runs, of every kind of reward; and smoothed success."""

import numpy as np
import pytest
import torch

from embodied.cameras.camera import Frame
from embodied.errors import UserError
from embodied.serving.client import RemoteStream
from embodied.serving.limits import RequestLimits
from embodied.serving.peer import ServerLostError
from embodied.sinks.files import read_lines
from embodied.sinks.jsonl import ReadingsFile
from embodied.watching.live_scoring import (
    MAX_GOAL,
    LocalScoring,
    RemoteScoring,
    UnscorableError,
    check_goal,
    toward,
)
from embodied.watching.pipeline import Pipeline
from embodied.watching.smoothing import PotentialRanges, SuccessSmoothing
from embodied.watching.summary import Latencies
from rewards.clip_goal import clip_scorer
from rewards.combine import WeightedSum
from rewards.compose import composed_scorer
from rewards.core import Features, Scorer
from rewards.shaping import PotentialShaping
from tests.fakes import FakeEncoder
from tests.reward_server import serving
from tests.unit.test_watching import FakeSource, Kept, PastHead, images, past_scorer, up, watch

# Asking -------------------------------------------------------------------------------------------------


def clip_config(**more):
    return {"_target_": "rewards.clip_goal.clip_scorer", "goal": "up", "goals": None, **more}


def test_another_goal_counts_from_the_next_moment_and_encodes_nothing_again():
    encoder, kept, shown = FakeEncoder(), Kept(), images(5)
    pipeline = Pipeline(FakeSource(shown), LocalScoring(up(encoder), reward=clip_config()), [kept])
    for _ in range(3):
        pipeline.step()
    answer = pipeline.ask("goal", "down")
    pipeline.run()
    assert "3 past moments" in answer.result(0)
    assert encoder.encoded == 5
    assert [w.goal for w in kept.lines] == ["up"] * 3 + ["down"] * 2
    assert "goal: down" in kept.lines[3].event
    expected = clip_scorer(encoder=FakeEncoder(), goal="down").score(torch.from_numpy(shown))
    np.testing.assert_allclose([w.reading.combined for w in kept.lines[3:]], expected[3:], atol=1e-5)
    assert kept.lines[3].reading.row == 3


@pytest.mark.parametrize(("text", "told"), [("x" * 10_000, "1000 characters; got 10000"), ("  ", "line of text")])
def test_a_goal_that_cannot_be_is_refused_and_the_run_goes_on(text, told):
    kept = Kept()
    pipeline = Pipeline(FakeSource(images(2)), LocalScoring(up(), reward=clip_config()), [kept])
    answer = pipeline.ask("goal", text)
    pipeline.run()
    assert told in str(answer.exception(0))
    assert len(str(answer.exception(0))) < 200
    assert [w.goal for w in kept.lines] == ["up", "up"]
    assert "goal refused" in kept.lines[0].event


@pytest.mark.parametrize("error", [FloatingPointError("head 'clip' gave NaN"), KeyError("front")])
def test_a_goal_by_which_the_past_cannot_be_scored_is_refused_and_the_run_goes_on(error):
    class Unscorable(LocalScoring):
        def change_goal(self, goal):
            raise error

    pipeline = Pipeline(FakeSource(images(3)), Unscorable(up()))
    wish = pipeline.ask("goal", "down")
    assert pipeline.run().scored == 3
    assert wish.exception() is error


def test_an_episode_begins_when_asked_and_when_the_old_is_full():
    kept = Kept()
    pipeline = Pipeline(FakeSource(images(8)), LocalScoring(past_scorer(), max_rows=3), [kept])
    pipeline.step()
    pipeline.ask("episode")
    summary = pipeline.run()
    assert [w.reading.episode for w in kept.lines] == [0, 1, 1, 1, 2, 2, 2, 3]
    assert "new episode" in kept.lines[1].event
    assert kept.lines[2].event is None
    assert kept.lines[4].event == "episode 2 began"
    assert summary.episodes == 4


def test_marks_quitting_and_a_run_that_is_over():
    kept = Kept()
    pipeline = Pipeline(FakeSource(images(8)), LocalScoring(up()), [kept])
    pipeline.ask("mark", "here")
    assert pipeline.step().event == "mark: here"
    pipeline.ask("quit")
    pipeline.run()
    assert len(kept.lines) == 2
    assert pipeline.ask("mark").cancelled()
    assert kept.closed == 1
    with pytest.raises(ValueError, match="goal, episode, mark or quit"):
        pipeline.ask("dance")


def test_a_mark_of_half_a_character_ends_no_run(tmp_path):
    source = FakeSource(images(2))
    pipeline = Pipeline(source, LocalScoring(up()), [ReadingsFile(tmp_path / "readings.jsonl", parquet=True)])
    pipeline.ask("mark", "here \ud800")
    assert pipeline.run().scored == 2
    assert next(read_lines(tmp_path / "readings.jsonl"))["event"] == "mark: here ?"


def test_status_is_what_the_run_came_to():
    pipeline = Pipeline(FakeSource(images(3)), LocalScoring(up(), reward=clip_config()), [Kept()])
    assert pipeline.status()["scored"] == 0
    pipeline.run()
    assert {k: pipeline.status()[k] for k in ("goal", "scored", "stale")} == {"goal": "up", "scored": 3, "stale": 0}


# Goals of every kind of reward --------------------------------------------------------------------------


def test_of_a_composition_every_part_with_a_goal_follows():
    encoder = FakeEncoder()
    parts = {"clip": up(encoder), "past": Scorer(encoder, {"past": PastHead()}, WeightedSum(), PotentialShaping())}
    scorer = composed_scorer(encoder=encoder, parts=parts)
    config = {
        "_target_": "rewards.compose.composed_scorer",
        "parts": {"clip": clip_config(), "past": {"_target_": "x.past_scorer", "model": "a"}},
    }
    other, made = toward(scorer, config, "down")
    assert made["parts"]["clip"]["goal"] == "down"
    assert config["parts"]["clip"]["goal"] == "up"
    shown = torch.from_numpy(images(3))
    expected = clip_scorer(encoder=encoder, goal="down").score(shown)
    features = Features(views={"main": scorer.encode(shown)[None]})
    np.testing.assert_allclose(other.potentials(features)["clip"][0], expected, atol=1e-6)
    np.testing.assert_allclose(other.potentials(features)["past"], scorer.potentials(features)["past"])


def test_a_head_that_can_judge_another_task_does():
    class Tasked(PastHead):
        def toward(self, goal):
            made = Tasked()
            made.name = goal
            return made

    scorer = Scorer(FakeEncoder(), {"process": Tasked()}, WeightedSum(), PotentialShaping())
    other, _ = toward(scorer, {"_target_": "x.process_scorer", "goal": "a", "model": "m"}, "b")
    assert other.heads["process"].name == "b"


def test_what_was_fitted_keeps_its_goal_and_says_so():
    fitted = {"_target_": "rewards.success.success_scorer", "goal": None, "model": "folder"}
    with pytest.raises(UserError, match="goal of success must stay: it was fitted"):
        toward(past_scorer(), fitted, "b")


def test_goal_texts_are_lines_of_a_bounded_length():
    assert check_goal("  the drawer is open ") == "the drawer is open"
    for bad in ("a\x1b[2Jb", "a\nb", "", 3, "x" * (MAX_GOAL + 1)):
        with pytest.raises(UserError, match="goal must be"):
            check_goal(bad)


def test_images_of_several_sizes_for_a_reward_that_reads_them_are_refused():
    class Looks(PastHead):
        frames_read = "all"

    scorer = Scorer(FakeEncoder(), {"looks": Looks()}, WeightedSum(), PotentialShaping())
    frames = {n: Frame(image=np.zeros((s, s, 3), np.uint8), captured_s=0.0, index=0) for n, s in (("a", 8), ("b", 4))}
    with pytest.raises(UserError, match="a 8 x 8, b 4 x 4"):
        LocalScoring(scorer, ("a", "b")).score(frames)


def test_an_unscorable_moment_says_why():
    class Broken(PastHead):
        def score(self, features):
            return super().score(features) / 0

    scorer = Scorer(FakeEncoder(), {"broken": Broken()}, WeightedSum(), PotentialShaping())
    frame = Frame(image=images(1)[0], captured_s=0.0, index=0)
    with pytest.raises(UnscorableError, match="head 'broken'"):
        LocalScoring(scorer).score({"main": frame})


def test_an_encoder_whose_server_is_away_leaves_moments_without_a_reading():
    class Away(FakeEncoder):
        def encode_images(self, frames):
            found = super().encode_images(frames)
            if 4 <= self.encoded <= 5:
                raise ServerLostError("http://gpu:8765 is lost.")
            return found

    lines, summary = watch(FakeSource(images(7)), LocalScoring(up(Away())))
    assert [line.reading is None for line in lines] == [False] * 3 + [True] * 2 + [False] * 2
    assert (summary.unscorable, summary.events) == (2, {"unscorable": 1, "scored again": 1})


class WholeFilm:
    """Reads every image of the episode so far."""

    name, frames_read = "whole", "all"

    def score(self, features: Features) -> torch.Tensor:
        return features.frames["main"].float().mean((-1, -2, -3)) / 255


def test_an_episode_ends_where_a_server_keeps_no_more_images_of_it():
    scorer = Scorer(FakeEncoder(), {"whole": WholeFilm()}, WeightedSum(), PotentialShaping())
    with serving(scorer, limits=RequestLimits(episode_pixels=3 * 64)) as server:
        lines, summary = watch(FakeSource(images(7)), RemoteScoring(RemoteStream(server.url)))
    assert [line.reading[:2] for line in lines] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert summary.episodes == 3


def test_an_episode_ends_where_its_images_would_fill_the_memory():
    whole = Scorer(FakeEncoder(), {"whole": WholeFilm()}, WeightedSum(), PotentialShaping())
    lines, _ = watch(FakeSource(images(5)), LocalScoring(whole, max_pixels=3 * 64))
    assert [line.reading[:2] for line in lines] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    lines, _ = watch(FakeSource(images(5)), LocalScoring(up(), max_pixels=3 * 64))  # reads no image again
    assert [line.reading.row for line in lines] == [0, 1, 2, 3, 4]


def test_a_moment_that_is_too_large_for_a_server_is_refused():
    scorer = Scorer(FakeEncoder(), {"whole": WholeFilm()}, WeightedSum(), PotentialShaping())
    with (
        serving(scorer, limits=RequestLimits(episode_pixels=63)) as server,
        pytest.raises(UserError, match="pixels in one episode"),
    ):
        watch(FakeSource(images(1)), RemoteScoring(RemoteStream(server.url)))


# Smoothing ----------------------------------------------------------------------------------------------


def test_smoothing_follows_its_formula_at_any_rate():
    smooth = SuccessSmoothing(time_constant_s=0.5)
    times, values = [0.0, 0.1, 0.4, 0.45], [1.0, 0.0, 1.0, 0.5]
    expected = values[0]
    for k, (at, value) in enumerate(zip(times, values, strict=True)):
        if k:
            expected += (1 - np.exp(-(at - times[k - 1]) / 0.5)) * (value - expected)
        assert smooth.update(value, at) == (None, pytest.approx(expected, abs=1e-12))


def test_success_does_not_flicker_within_the_hysteresis():
    smooth = SuccessSmoothing(0.5, hysteresis=0.2, time_constant_s=0.0)
    said = [smooth.update(value, float(t))[0] for t, value in enumerate([0.4, 0.5, 0.45, 0.31, 0.29, 0.45, 0.5])]
    assert said == [False, True, True, True, False, False, True]
    smooth.restart()
    assert smooth.update(0.4, 9.0)[0] is False


def test_a_clock_that_falls_stands_still():
    smooth = SuccessSmoothing(time_constant_s=1.0)
    smooth.update(1.0, 10.0)
    assert smooth.update(0.0, 5.0)[1] == 1.0
    assert 0 < smooth.update(0.0, 6.0)[1] < 1


def test_the_success_head_decides_where_there_is_one():
    class Success(PastHead):
        name, pointwise = "success", True

        def score(self, features):
            return torch.ones(features.main.shape[:2])

    encoder = FakeEncoder()
    heads = {"success": Success(), "past": PastHead()}
    scorer = Scorer(encoder, heads, WeightedSum(), PotentialShaping())
    lines, _ = watch(FakeSource(images(3)), LocalScoring(scorer), smoothing=SuccessSmoothing(0.9))
    assert [w.success for w in lines] == [True] * 3
    assert [w.smoothed for w in lines] == [1.0] * 3


def test_normalised_by_known_range_or_by_what_was_seen():
    normalise = PotentialRanges({"mine": (-1.0, 1.0)})
    assert normalise({"success": 0.3, "mine": 0.0, "clip": 0.2}) == {"success": 0.3, "mine": 0.5, "clip": 0.5}
    assert normalise({"success": 1.2, "clip": 0.4}) == {"success": 1.0, "clip": 1.0}
    assert normalise({"clip": 0.3})["clip"] == pytest.approx(0.5)
    normalise.restart()
    assert normalise({"clip": 0.9}) == {"clip": 0.5}


def test_settings_that_are_none_are_refused():
    with pytest.raises(ValueError, match="hysteresis"):
        SuccessSmoothing(hysteresis=-1.0)
    with pytest.raises(ValueError, match="threshold"):
        SuccessSmoothing(float("nan"))
    with pytest.raises(ValueError, match="low < high"):
        PotentialRanges({"a": (1.0, 1.0)})


def test_latencies_keep_the_last_of_them():
    latencies = Latencies(size=4)
    assert latencies.percentiles() == {}
    for value in (100.0, 100.0, 1.0, 2.0, 3.0, 4.0):
        latencies.add(value)
    assert latencies.percentiles()["p50"] == pytest.approx(2.5)
