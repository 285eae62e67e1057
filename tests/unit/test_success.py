"""Success heads: fitted to episodes' labels, calibrated, unsure where they should be, latched."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from embodied.scoring import Layout
from embodied.scoring.streaming import EpisodeStream
from rewards.calibration import Decision, Latch, Quality, precision_threshold, quality
from rewards.chat.asking import VLMError
from rewards.combine import WeightedSum
from rewards.core import Episode, Features, Scorer
from rewards.members import check_episodes
from rewards.shaping import PotentialShaping
from rewards.success import SuccessClassifier, SuccessVLM, fit_success, success_scorer
from tests.advancing import check_advance
from tests.fakes import FakeEncoder

ENCODER = FakeEncoder(dim=8)


def episode(success: bool, seed: int, cameras=("front", "side"), length: int = 30, onset: int = 20) -> Episode:
    """Success is a direction, in which rows move from `onset` on; a failure comes half way."""
    rng = torch.Generator().manual_seed(seed)
    done = torch.zeros(length)
    done[onset:] = 1.0 if success else 0.4
    views = {}
    for k, camera in enumerate(cameras):
        rows = 0.12 * torch.randn(length, 8, generator=rng)
        rows[:, k] += done
        views[camera] = rows[None]
    return Episode(features=Features(views=views), success=success)


def episodes(first: int = 0, **how) -> list[Episode]:
    return [episode(k % 2 == 0, first + k, **how) for k in range(12)]


@pytest.fixture(scope="module")
def head() -> SuccessClassifier:
    return fit_success(episodes(), encoder=ENCODER, goal="done")


def test_it_finds_the_onset_nobody_marked(head):
    for each in episodes(100):
        sure = head.verdicts(each.features)[0]
        truth = torch.zeros(30, dtype=torch.bool)
        truth[20:] = bool(each.success)
        assert ((sure == 1) & ~truth).sum() == 0
        assert ((sure == 1) & truth).sum() >= (8 if each.success else 0)
    assert head.quality.precision >= 0.95
    assert head.quality.episodes == 12


def test_a_missing_view_never_raises_it_and_an_unknown_one_is_ignored(head):
    whole = episode(True, 7).features
    part = Features(views={"side": whole.views["side"]})
    assert (head.logits(part) <= head.logits(whole) + 1e-6).all()
    more = Features(views={**whole.views, "wrist": whole.views["side"]})
    assert_close(head.score(more), head.score(whole))
    with pytest.raises(ValueError, match="views must hold one of front, side"):
        head.score(Features(views={"top": whole.main, "wrist": whole.main}))


def test_a_lone_view_may_have_any_name():
    one = fit_success(episodes(cameras=("front",)), encoder=ENCODER)
    rows = episode(True, 7, cameras=("front",)).features.main
    assert_close(one.score(Features(views={"main": rows})), one.score(Features(views={"front": rows})))


def test_save_and_load(head, tmp_path):
    head.save(tmp_path / "head", ENCODER)
    again = SuccessClassifier.load(tmp_path / "head", ENCODER)
    features = episode(True, 9).features
    assert_close(again.probability(features), head.probability(features), rtol=0, atol=0)
    assert (again.decision, again.quality) == (head.decision, head.quality)
    scorer = success_scorer(encoder=ENCODER, model=str(tmp_path / "head"), output="probability", hold=2)
    assert_close(scorer.potentials(features)["success"], head.probability(features))


def test_fitting_repeats_and_the_seed_matters_only_to_the_folds():
    one, two = (fit_success(episodes(), encoder=ENCODER, seed=3) for _ in range(2))
    features = episode(True, 9).features
    assert_close(one.logits(features), two.logits(features), rtol=0, atol=0)


def test_what_cannot_be_fitted_says_why():
    with pytest.raises(ValueError, match="at least two successes"):
        fit_success([episode(True, 0), episode(False, 1)], encoder=ENCODER)
    unsaid = Episode(features=episode(True, 0).features)
    with pytest.raises(ValueError, match="1 of 3 are unlabelled"):
        fit_success([unsaid, episode(True, 1), episode(True, 2)], encoder=ENCODER)
    with pytest.raises(TypeError, match="demos must be recorded episodes"):
        check_episodes(5, "success")
    with pytest.raises(ValueError, match="got neither"):
        success_scorer(encoder=ENCODER)
    with pytest.raises(ValueError, match=r"the best from 0\.50 on is 0\.50"):
        precision_threshold([0.9, 0.9, 0.1], [True, False, True], 0.95)


def test_unsure_between_the_thresholds_and_where_members_disagree():
    decision = Decision(yes=0.7, no=0.3, spread=0.2)
    logits = torch.tensor([[3.0, 0.0, -3.0, 4.0], [3.0, 0.0, -3.0, 0.2]])[:, None]
    assert decision.verdicts(logits).tolist() == [[1, -1, 0, -1]]
    with pytest.raises(ValueError, match=r"must hold; got no=0\.8, yes=0\.7"):
        Decision(yes=0.7, no=0.8)


def test_the_latch():
    said = [1, 1, 0, 1, -1, 1, 0, 0, 1]
    latch = Latch(2)
    on = [bool(latch.step(torch.tensor([v], dtype=torch.int8))) for v in said]
    assert on == [False, True, True, True, False, True, True, False, False]
    assert latch.counts == {"yes": 5, "no": 3, "unsure": 1}
    rewards, _ = Decision(hold=2).rewards(torch.tensor([said], dtype=torch.int8))
    assert rewards[0].tolist() == [float(each) for each in on]  # the same at every door
    rewards, _ = Decision(hold=1).rewards(torch.tensor([said], dtype=torch.int8))
    assert rewards[0].tolist() == [float(v == 1) for v in said]


def test_quality_counts_frames_and_trusts_episodes():
    found = quality([1, 1, 0, -1, 1, 0], [True, False, True, True, True, False], [0, 0, 0, 1, 1, 1])
    assert (found.precision, found.recall, found.unsure) == (2 / 3, 0.5, 1 / 6)
    assert found.precision_interval[0] < 0.25  # two episodes are few
    nothing = quality([0, 0], [False, False], [0, 1])
    assert math.isnan(nothing.precision)
    assert str(Quality.from_dict(found.as_dict())) == str(found)


class Asked:
    """A chat model that says yes of bright images."""

    name = "asked"

    def __init__(self):
        self.count = 0

    def ask(self, messages):
        return "no words"

    def logprobs(self, messages, answers):
        self.count += 1
        assert answers == ["Yes", "No"]
        assert "open the drawer" in messages[0].text
        bright = float(messages[0].images[0].mean()) / 255
        if bright > 0.99:
            raise VLMError("asked", "an answer", "a refusal", refused=True)
        return [float(np.log(bright + 1e-3)), float(np.log(1 - bright + 1e-3))]


def filmed(levels, success=None) -> Episode:
    frames = torch.stack([torch.full((4, 4, 3), v, dtype=torch.uint8) for v in levels])[None]
    features = Features(views={"front": torch.zeros(1, len(levels), 8)}, frames={"front": frames})
    return Episode(features=features, success=success)


def test_a_chat_model_s_yes():
    model = Asked()
    scorer = success_scorer(encoder=ENCODER, vlm=model, goal="open the drawer")
    assert scorer.frames_read == "all"
    features = filmed([10, 200, 100, 220]).features
    assert scorer.potentials(features)["success"].tolist() == [[0, 1, 0, 1]]  # RoboFuME: yes above no
    scorer.potentials(features)
    assert model.count == 4  # each image once
    sparse = SuccessVLM(model, "open the drawer", every=2)
    assert sparse.score(filmed([10, 200, 220, 10]).features).tolist() == [[0, 0, 1, 1]]
    with pytest.raises(VLMError, match="a refusal"):
        sparse.score(filmed([255]).features)
    with pytest.raises(ValueError, match="features must hold frames"):
        sparse.score(Features(views={"front": torch.zeros(1, 2, 8)}))


def test_a_chat_model_that_says_yes_too_easily_is_calibrated():
    head = SuccessVLM(Asked(), "open the drawer")
    films = [filmed([140] * 10 + [200] * 10, True) for _ in range(6)] + [filmed([150] * 20, False) for _ in range(6)]
    assert head.score(films[-1].features).sum() == 20
    head.calibrate(films)
    assert head.score(films[-1].features).sum() == 0
    assert head.score(films[0].features)[0, -3:].sum() == 3
    assert head.quality.precision == 1
    with pytest.raises(ValueError, match="success of every episode must be known; 2 of 14 are unlabelled"):
        head.calibrate([*films, filmed([200] * 20), filmed([200] * 20)])


def test_success_that_is_held_is_held_in_a_stream_too():
    """It reads the past, so a stream must not give it one row alone."""
    head = fit_success(episodes(), encoder=ENCODER, hold=3)
    assert not head.pointwise
    assert fit_success(episodes(), encoder=ENCODER, hold=3, output="probability").pointwise
    scorer = Scorer(ENCODER, {"success": head}, WeightedSum(), PotentialShaping())
    features = episode(True, 7).features
    stream = EpisodeStream(scorer, Layout(tuple(features.views)))
    rows = torch.cat([view[0] for view in features.views.values()], -1).numpy()
    readings = [stream.push(row).combined for row in rows]
    assert readings == head.score(features)[0].tolist()
    assert max(readings) == 1
    check_advance(head, features)


def test_other_tasks_successes_are_none_of_this_goal_s():
    """A dataset of many tasks was taken for successes of each."""
    own = [replace(each, instruction="open it") for each in episodes()]
    other = [replace(episode(True, 50 + k, onset=5), instruction="lift it") for k in range(6)]
    (mixed,), (alone,), (unsaid,) = (
        success_scorer(encoder=ENCODER, goal=goal, demos=demos).heads.values()
        for goal, demos in (("open it", [*own, *other]), ("open it", own), ("done", [*own, *other]))
    )
    assert_close(mixed.bias, alone.bias, rtol=0, atol=0)
    assert not torch.equal(unsaid.bias, alone.bias)  # in other words it is all of them
    with pytest.raises(ValueError, match="at least two successes"):
        success_scorer(encoder=ENCODER, goal="lift it", demos=[*own, *other[:1]])
