"""Perceptual rewards, XIRL and RAPL as heads: order, causality, lost views, disk, errors."""

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from rewards import xirl
from rewards.core import Episode, Features
from rewards.demonstration import Demonstration, demonstration_scorer
from rewards.metrics import value_order_correlation
from rewards.rapl import RAPL, rapl_scorer
from rewards.views import trimmed
from rewards.xirl import XIRL, xirl_scorer
from tests.advancing import check_advance
from tests.fakes import FakeEncoder

ENCODER = FakeEncoder(dim=24)
HEADS = {"demonstration": Demonstration, "xirl": XIRL, "rapl": RAPL}
SCORERS = {"demonstration": demonstration_scorer, "xirl": xirl_scorer, "rapl": rapl_scorer}
both = pytest.mark.parametrize("family", HEADS)


def path(length: int, seed: int, *, until: float = 1.0) -> Tensor:
    """(1, T, D) unit vectors along one bent path, each start and pace its own."""
    shape = np.random.default_rng(7).normal(size=(4, 24))
    rng = np.random.default_rng(seed)
    time = np.sort(np.append(rng.random(length - 2), [0, 1])) * until
    knots = np.linspace(0, 1, 4)
    rows = np.stack([np.interp(time, knots, shape[:, d]) for d in range(24)], 1) + 0.1 * rng.normal(size=24)
    rows += 0.02 * rng.normal(size=rows.shape)
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=-1, keepdims=True)).float()[None]


def demo(seed: int, *, success: bool | None = True, until: float = 1.0, views: tuple[str, ...] = ("front",)) -> Episode:
    length = 18 + seed % 5
    return Episode(
        features=Features(views={name: path(length, seed + 100 * k, until=until) for k, name in enumerate(views)}),
        success=success,
    )


@functools.cache
def fitted(family: str, count: int = 4, **options):
    return HEADS[family].fit([demo(seed) for seed in range(count)], **options)


@both
@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_one_to_ten_demonstrations_order_a_new_one_and_tell_its_end(family, count):
    head = fitted(family, count)
    whole, half = demo(50), demo(51, until=0.5)
    score = head.score(whole.features)[0]
    assert score.shape == (len(whole),)
    assert score.dtype == torch.float32
    assert 0 <= score.min() <= score.max() <= 1
    assert value_order_correlation(score) > 0.9
    assert score[-1] > head.score(half.features)[0, -1] + 0.2
    assert score[0] < 0.3
    if family != "rapl":  # RAPL's knows which way it came
        rewound = Features(views={"front": whole.features.main.flip(1)})
        assert value_order_correlation(head.score(rewound)[0], rewound=True) > 0.9


@pytest.mark.parametrize("count", [1, 4])
def test_rapl_rises_evenly_on_a_way_like_the_demonstrations(count):
    score = fitted("rapl", count).score(demo(50).features)[0]
    assert score.diff().max() < 0.25  # no place where it wakes up
    assert score[len(score) // 2] > 0.3


@both
def test_nothing_after_a_step_is_read_and_a_batch_is_its_episodes(family):
    head = fitted(family, **({"sequenced": True} if family == "demonstration" else {}))
    state = torch.cat([path(20, 60), path(20, 61)])
    whole = head.score(Features(views={"front": state}))
    for t in (1, 7, 20):
        torch.testing.assert_close(head.score(Features(views={"front": state[:, :t]})), whole[:, :t])
    torch.testing.assert_close(head.score(Features(views={"front": state[1:]})), whole[1:], rtol=1e-4, atol=1e-5)


@both
def test_rows_can_come_one_by_one(family):
    state = torch.cat([path(20, 60), path(20, 61)])
    for options in ({"sequenced": True}, {}) if family == "demonstration" else ({},):
        head = fitted(family, **options)
        if not getattr(head, "pointwise", False):
            check_advance(head, Features(views={"front": state}))
        else:
            alone = [head.score(Features(views={"front": state[:, t : t + 1]})) for t in range(20)]
            torch.testing.assert_close(torch.cat(alone, 1), head.score(Features(views={"front": state})))


@both
def test_a_lost_view_never_raises_progress(family):
    demos = [demo(seed, views=("front", "side")) for seed in range(4)]
    head = HEADS[family].fit(demos)
    views = demo(70, views=("front", "side")).features.views
    whole = head.score(Features(views=views))
    for name in views:
        left = head.score(Features(views={name: views[name]}))
        assert (left <= whole + 1e-6).all()
        assert left[0, -1] < whole[0, -1]
    torch.testing.assert_close(head.score(Features(views={**views, "wrist": views["side"]})), whole)
    with pytest.raises(ValueError, match="one of the views it was fitted on, front, side; got wrist"):
        head.score(Features(views={"wrist": views["side"]}))


@both
def test_one_view_serves_under_any_name(family):
    head, state = fitted(family), path(20, 60)
    torch.testing.assert_close(
        head.score(Features(views={"main": state})), head.score(Features(views={"front": state}))
    )


@both
def test_saved_and_loaded_it_scores_the_same(family, tmp_path):
    options = {"demonstration": {"form": "gaussian", "sequenced": True}, "xirl": {"readout": "distance"}}
    head = fitted(family, **options.get(family, {"readout": "episode"}))
    head.save(tmp_path / "head", ENCODER)
    features = demo(60).features
    scorer = SCORERS[family](encoder=ENCODER, model=str(tmp_path / "head"))
    assert torch.equal(scorer.potentials(features)[family], head.score(features))
    other = FakeEncoder(dim=24)
    other.name = "other"
    with pytest.raises(ValueError, match=f"must be a {family} head on other features of width 24"):
        HEADS[family].load(tmp_path / "head", other)


@both
def test_a_scorer_fits_the_same_head_again_and_shapes_it(family):
    demos = [demo(seed) for seed in range(4)]
    scorer = SCORERS[family](encoder=ENCODER, demos=demos, shaping={"kind": "difference", "discount": 0.9})
    features = demo(60).features
    score = fitted(family).score(features)
    torch.testing.assert_close(scorer.potentials(features)[family], score)
    rewards = scorer.rewards(features, torch.zeros(1, len(demo(60)) - 1, dtype=torch.bool))
    torch.testing.assert_close(rewards, 0.9 * score[:, 1:] - score[:, :-1])


@both
def test_demonstrations_are_needed_and_must_have_succeeded(family):
    with pytest.raises(ValueError, match=r"demos must hold at least one (demonstration|success); got"):
        SCORERS[family](encoder=ENCODER)
    only_failure = [demo(0, success=False)]
    with pytest.raises(ValueError, match=r"must have succeeded; those at \[0\] failed|one success; got 1 failures"):
        SCORERS[family](encoder=ENCODER, demos=only_failure)
    with pytest.raises(ValueError, match="must have a view in common"):
        SCORERS[family](encoder=ENCODER, demos=[demo(0), demo(1, views=("side",))])
    short = Episode(features=Features(views={"front": path(2, 0)[:, :1]}), success=True)
    with pytest.raises(ValueError, match=r"must have at least (two steps|2 rows)"):
        SCORERS[family](encoder=ENCODER, demos=[short])


def test_unknown_forms_are_refused():
    with pytest.raises(ValueError, match="form must be one of onward, gaussian, literal, logistic; got 'svm'"):
        fitted("demonstration", form="svm")
    with pytest.raises(
        ValueError,
        match="regression_mse, regression_mse_var; got 'triplet'",
    ):
        fitted("xirl", loss="triplet")
    with pytest.raises(ValueError, match="readout must be one of time, distance; got 'goal'"):
        fitted("xirl", readout="goal")
    with pytest.raises(ValueError, match="readout must be one of causal, episode; got 'online'"):
        fitted("rapl", readout="online")


def test_the_rest_at_the_end_of_a_recording_teaches_nothing():
    state = path(20, 3)
    resting = torch.cat([state, state[:, -1:].expand(-1, 30, -1)], 1)
    kept = trimmed({"front": resting[0]})["front"]
    assert 17 <= len(kept) <= 22
    assert torch.equal(kept, resting[0, : len(kept)])
    still = state[0, :1].expand(9, -1)
    assert len(trimmed({"front": still})["front"]) == 9  # nothing moves: nothing to cut by
    paths = [path(20, seed) for seed in range(4)]
    views = [{"front": torch.cat([each, each[:, -1:].expand(-1, 30, -1)], 1)} for each in paths]
    overrun = [Episode(features=Features(views=each), success=True) for each in views]
    score = XIRL.fit(overrun).score(demo(60).features)[0]
    assert score[-1] > 0.85


def test_sequenced_steps_wait_for_the_ones_before():
    head = fitted("demonstration", num_steps=3, sequenced=True, form="gaussian")
    free = fitted("demonstration", num_steps=3, form="gaussian")
    last = path(20, 60)[:, -1:].expand(-1, 5, -1)  # the end, from the first frame on
    features = Features(views={"front": last})
    assert free.score(features).min() > 0.5
    assert head.score(features).max() < 0.2
    whole = demo(60).features
    torch.testing.assert_close(head.score(whole)[0, -1], free.score(whole)[0, -1], rtol=0.2, atol=0.05)


def test_other_forms_and_steps_per_demonstration_rank_the_end_above_the_start():
    for form in ("literal", "logistic"):
        score = fitted("demonstration", form=form, num_steps=3, joint=False).score(demo(60).features)[0]
        assert score[-1] > score[0] + 0.1


def test_rapl_over_whole_episodes_prefers_what_went_the_demonstrations_way():
    head = fitted("rapl", readout="episode")
    assert not head.advances
    assert fitted("rapl").advances
    good, half = demo(60).features, demo(61, until=0.4).features
    back = Features(views={"front": good.main.flip(1)})
    means = [head.score(each).mean().item() for each in (good, half, back)]
    assert means[0] > means[1]
    assert means[0] > means[2]
    assert max(means) <= 0


def test_two_futures_of_one_past_stay_apart():
    head, past, futures = fitted("rapl"), demo(60).features.main[:, :20], (demo(61), demo(62, until=0.4))
    _, memory = head.advance(Features(views={"front": past[:, :-1]}))
    _, memory = head.advance(Features(views={"front": past[:, -1:]}), memory)
    went = []
    for future in futures:
        _, on = head.advance(Features(views={"front": future.features.main[:, :1]}), memory)
        went.append(on)
    for future, on in zip(futures, went, strict=True):
        state = future.features.main
        said, _ = head.advance(Features(views={"front": state[:, 1:]}), on)
        whole = head.score(Features(views={"front": torch.cat([past, state], 1)}))
        torch.testing.assert_close(said, whole[:, past.shape[1] + 1 :], atol=1e-5, rtol=0)


def test_failures_align_the_representation():
    demos = [demo(seed) for seed in range(4)]
    failures = [demo(seed, success=False, until=0.6) for seed in range(10, 14)]
    plain, aligned = RAPL.fit(demos), RAPL.fit([*demos, *failures], updates=40)
    assert not torch.equal(plain.models["front"].layer.weight, aligned.models["front"].layer.weight)

    def gap(head: RAPL) -> float:
        head.readout = "episode"
        near, far = (head.score(demo(60, until=until).features).mean().item() for until in (1.0, 0.6))
        return near - far

    assert gap(aligned) > gap(plain) > 0


def test_xirl_s_official_default_loss_is_the_squared_error_of_time():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 6, 3))
    times = np.sort(rng.uniform(size=(2, 5)))
    by_hand = []
    for one, other, time in zip(first, second, times, strict=True):
        there = np.exp(-((one[:, None] - other[None]) ** 2).sum(-1) / (3 * 0.1))
        neighbour = there / there.sum(1, keepdims=True) @ other
        back = np.exp(-((neighbour[:, None] - one[None]) ** 2).sum(-1) / (3 * 0.1))
        by_hand.append((time - back / back.sum(1, keepdims=True) @ time) ** 2)
    given = [torch.from_numpy(each) for each in (first, second, times)]
    assert float(xirl.cycle_loss(*given, loss="regression_mse")) == pytest.approx(np.mean(by_hand), rel=1e-9)
    var = [float(xirl.cycle_loss(*given, loss=name)) for name in ("regression", "regression_mse_var")]
    assert var[0] == var[1]
