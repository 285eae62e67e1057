"""Films that must not pay, and episodes in which robot and outcome differ."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from embodied.datasets.kinds import RIGHT, WRONG
from embodied.judging.figures import Case, Sheet
from embodied.judging.judgement import (
    Division,
    cut,
    divide,
    frozen,
    judge,
    reversed_film,
)
from embodied.judging.outcome import outcome
from embodied.judging.verdicts import verdict
from rewards.core import Episode, Features
from tests.judged_cases import T, case, scorer


def test_canaries_change_time_everywhere_but_keep_what_a_plan_was_made_from():
    rng = torch.Generator().manual_seed(0)
    features = Features(
        views={"a": torch.rand(1, 5, 3, generator=rng), "b": torch.rand(1, 5, 3, generator=rng)},
        signals={"x": torch.arange(5.0)[None]},
        frames={"a": torch.arange(5, dtype=torch.uint8).view(1, 5, 1, 1, 1).expand(1, 5, 2, 2, 3),
                "b": torch.zeros(1, 1, 2, 2, 3, dtype=torch.uint8)},
    )  # fmt: skip
    backward = reversed_film(features, 4)
    assert backward.signals["x"].tolist() == [[3, 2, 1, 0]]
    assert backward.frames["a"][0, :, 0, 0, 0].tolist() == [3, 2, 1, 0]
    assert torch.equal(backward.views["b"], features.views["b"][:, :4].flip(1))
    assert torch.equal(backward.frames["b"], features.frames["b"])
    assert frozen(features).signals["x"].tolist() == [[0] * 5]
    assert torch.equal(frozen(features).views["a"][0, 4], features.views["a"][0, 0])
    assert cut(features, 2).views["a"].shape == (1, 2, 3)


def test_a_reversed_success_may_fire_where_it_starts_but_not_where_it_ends():
    rng = np.random.default_rng(0)
    division = Division(judged=[case(0, "expert", rng=rng), case(1, "random", rng=rng)])
    said = [np.linspace(0, 1, T), np.zeros(T)]
    shown = {"frozen": [], "reversed": [np.array([1.0, 0.5, 0.0])], "rewound": [], "wrong instruction": []}
    sheet = Sheet(division, [], said, shown, 10, 0)
    sheet.threshold = 0.4
    assert sheet.canaries()["reversed"].fires.value == 0
    sheet.films["reversed"] = [np.array([0.0, 0.5, 1.0])]
    assert sheet.canaries()["reversed"].fires.value == 1


def counterfactual(index: int, kind: str) -> Case:
    """The outcome is the first feature, the robot's pose the second; both end where the kind says."""
    ends = {"expert": (1, 1), "still": (0, 0), "mimed": (0, 1), "reached": (0, 0.5), "wrong_object": (0.0, 0.2),
            "left": (1, 0), "other_way": (1, 0), "solved": (1, 0)}  # fmt: skip
    way = np.clip(np.arange(T) / 18, 0, 1)[:, None]
    view = torch.tensor(way * ends[kind], dtype=torch.float32)[None]
    episode = Episode(features=Features(views={"main": view}), success=ends[kind][0] == 1)
    return Case(episode=episode, index=index, kind=kind, solved=view[0, :, 0].numpy() >= 1)


def test_credit_and_margin_by_hand():
    ends = {"success": [3.0, 5.0], "still": [1.0, 1.0], "mimed": [2.0, 2.5], "reached": [1.0], "other_way": [4.0, 3.1]}
    found = outcome(ends, resamples=50)
    assert {kind: figure.value for kind, figure in found.credit.items()} == pytest.approx(
        {"mimed": 1.25 / 3, "reached": 0, "other_way": 2.55 / 3}
    )
    assert found.margin.value == pytest.approx(2.55 / 3 - 1.25 / 3)
    assert found.margin.low < found.margin.value < found.margin.high
    assert outcome({**ends, "other_way": [9.0]}, resamples=50).margin.value == pytest.approx(1 - 1.25 / 3)  # at most 1
    assert math.isnan(outcome({k: v for k, v in ends.items() if k not in WRONG}, resamples=50).margin.value)
    for lacks in ("success", "still"):
        assert outcome({**ends, lacks: []}).credit == {}
    falling = outcome({**ends, "success": [0.5]}, resamples=50)
    assert math.isnan(falling.margin.value)
    assert math.isnan(falling.credit["mimed"].value)


@pytest.mark.parametrize(
    ("pays", "level", "words"),
    [
        (lambda done, pose: done, "trust", "Trust it for a dense reward"),
        (lambda done, pose: pose, "avoid", "pays 100% for moving as in a success while nothing else moves and"),
        (lambda done, pose: 0.6 * done + 0.4 * pose, "avoid", "outcome margin 0.20"),
        (lambda done, pose: done + 0.25 * pose * (1 - done), "care", "Beware: it pays 25% for moving as in a success"),
        (lambda done, pose: torch.zeros_like(done) + 1e-9 * done, "avoid", "the same of every frame"),
    ],
)  # fmt: skip
def test_a_reward_of_the_pose_is_not_trusted_however_well_it_orders(pays, level, words):
    kinds = ["expert"] * 14 + ["random"] * 14
    plain = [replace(counterfactual(i, {"random": "still"}.get(kind, kind)), kind=kind) for i, kind in enumerate(kinds)]
    asked = [counterfactual(i, kind) for i, kind in enumerate(["expert", "still", *WRONG, *RIGHT] * 3)]
    division = divide(plain)
    division.counterfactual.extend(asked)
    found = judge("it", scorer(pays), division, resamples=20)
    given = verdict(found)
    assert given.level == level, given
    assert words in given.text
    ordered = divide(plain)  # without them nobody can tell
    assert (level == "avoid" and "same" in words) or verdict(
        judge("it", scorer(pays), ordered, resamples=20)
    ).level == "trust"


def test_counterfactual_cases_serve_nothing_else():
    cases_ = [counterfactual(i, kind) for i, kind in enumerate([*["expert"] * 6, *WRONG, *RIGHT, "still"])]
    division = divide(cases_, demos=2)
    assert {case.kind for case in division.counterfactual} == {*WRONG, *RIGHT, "still"}
    assert {case.kind for case in [*division.demos, *division.fit, *division.judged]} == {"expert"}
    found = judge("it", scorer(lambda done, pose: done), division, resamples=20)  # its own successes stand beside them
    assert found.figures["margin"].value == pytest.approx(1)
