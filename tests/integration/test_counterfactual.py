"""Counterfactual episodes are what their kinds say, and tell a reward of the outcome from one of the pose."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from embodied import cli
from embodied.collecting.counterfactual import KINDS, kinds_of
from embodied.datasets import Dataset
from embodied.datasets.kinds import RIGHT, WRONG
from embodied.errors import UserError
from embodied.judging.cases import counterfactuals_for, in_memory, read_cases
from embodied.judging.judgement import divide, judge
from embodied.judging.verdicts import verdict
from rewards.combine import WeightedSum
from rewards.core import Features, Scorer
from rewards.shaping import PotentialShaping
from tests.fakes import FakeEncoder

DRAWER = -3  # of the state: how far it is out
SMALL = ["image_size=32", "env.image_size=32", "cameras=[front]"]


@pytest.fixture(scope="module")
def drawer(tmp_path_factory):
    root = tmp_path_factory.mktemp("counterfactual") / "drawer"
    words = ["collect", "env=desk-drawer", "policy=counterfactual", "episodes=9", f"out={root}"]
    assert cli.main([*words, *SMALL]) == 0
    return Dataset(root)


def state(dataset, i):
    return dataset.columns(i, ["observation.environment_state"])["observation.environment_state"]


def test_kinds_end_as_they_say_and_mix_what_was_seen(drawer):
    assert [drawer.kind(i) for i in range(len(drawer))] == [*KINDS, "expert"]
    of = {kind: drawer.recording(i, cameras=()) for i, kind in enumerate(KINDS)}
    out = {kind: state(drawer, i)[:, DRAWER] for i, kind in enumerate(KINDS)}
    assert {kind for kind in KINDS if of[kind].success[-1]} == {"expert", *RIGHT}
    for name in of["expert"].signals:
        np.testing.assert_array_equal(of["mimed"].signals[name], of["expert"].signals[name])
        assert np.ptp(of["other_way"].signals[name]) == 0
    ends = [[of[kind].signals[f"gripper_{axis}"][row] for axis in "xyz"] for kind, row in (("left", -1), ("expert", 0))]
    np.testing.assert_allclose(*ends, atol=0.06)
    np.testing.assert_array_equal(out["other_way"], out["expert"])
    assert np.ptp(out["mimed"]) == np.ptp(out["still"]) == 0
    assert out["solved"].min() == out["solved"].max()
    assert out["solved"][0] == pytest.approx(out["expert"][-1], abs=0.01)
    assert np.ptp(out["reached"]) < 0.1 < np.ptp(out["expert"])
    tip = [np.stack([r.signals[f"gripper_{axis}"] for axis in "xyz"], 1) for r in (of["expert"], of["reached"])]
    assert np.linalg.norm(tip[0] - tip[1], axis=1)[:10].max() == 0  # the same way there
    assert np.linalg.norm(tip[1][-1] - tip[1][25]) == 0


def test_last_frames_are_those_of_the_states(drawer):
    at = {kind: drawer.last(i)[0]["front"].astype(int) for i, kind in enumerate(KINDS)}
    np.testing.assert_array_equal(at["other_way"], at["solved"])
    for one, other in (("mimed", "still"), ("mimed", "expert"), ("solved", "still"), ("reached", "mimed")):
        assert (np.abs(at[one] - at[other]).max(-1) > 30).any(), (one, other)


def test_where_the_robot_must_stay_only_the_goal_that_is_missed_is_asked_about():
    assert set(kinds_of("press")) == {"expert", "still", *WRONG}
    assert kinds_of("reach") == ("expert", "still", "wrong_object")


class Reads:
    """A head that is one signal."""

    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, features: Features) -> torch.Tensor:
        return features.signals[self.name]


def test_the_gripper_alone_gets_the_worst_verdict_and_the_drawer_the_best(drawer):
    """Of rewards on our own counterfactual episodes: the pose of a success against what is achieved in it."""
    cases = []
    encoder = FakeEncoder(size=32)
    for case in read_cases(drawer, encoder, ["front"], unlabelled="skip"):
        signals = case.episode.features.signals
        target = (0.07, 0.05, 0.03)  # about where an open drawer's handle is
        away = sum((signals[f"gripper_{axis}"] - at) ** 2 for axis, at in zip("xyz", target, strict=True)) ** 0.5
        more = {"pose": -away, "drawer": torch.from_numpy(state(drawer, case.index)[:, DRAWER])[None]}
        features = replace(case.episode.features, signals={**signals, **more})
        cases.append(replace(case, episode=replace(in_memory(case.episode), features=features)))
    experts = [case for case in cases if case.kind == "expert"]
    start = [
        replace(case, kind="", episode=replace(case.episode, success=False)) for case in cases if case.kind == "still"
    ]
    division = divide([*experts, *start], share=0.0)
    division.counterfactual.extend(cases)
    said = {}
    for name in ("pose", "drawer"):
        scorer = Scorer(encoder, {name: Reads(name)}, WeightedSum(), PotentialShaping())
        said[name] = judge(name, scorer, division, resamples=50)
    assert said["drawer"].figures["margin"].value == pytest.approx(1, abs=0.1)
    assert verdict(said["drawer"]).level in ("trust", "care")
    assert said["pose"].figures["margin"].value < 0
    given = verdict(said["pose"])
    assert given.level == "avoid"
    assert "pays for poses" in given.text
    assert "moving as in a success while nothing else moves" in given.text


def test_judge_collects_them_for_its_own_worlds(monkeypatch, drawer):
    asked = []

    def opened(name, *, setting, episodes=None):
        asked.append((name, episodes))
        return drawer

    monkeypatch.setattr("embodied.judging.cases.open_dataset", opened)
    assert counterfactuals_for(drawer, None, ["front"], []) is drawer
    assert asked == [("desk-drawer-counterfactual", 64)]
    assert counterfactuals_for(drawer, False, ["front"], []) is None
    marked = read_cases(drawer, FakeEncoder(size=32), ["front"], unlabelled="skip")
    assert counterfactuals_for(drawer, None, ["front"], marked) is None
    assert counterfactuals_for(drawer, None, ["wrist"], []) is None
    with pytest.raises(UserError, match="it lacks wrist"):
        counterfactuals_for(drawer, "somewhere", ["front", "wrist"], [])


def test_a_refused_policy_names_the_choices(capsys):
    assert cli.main(["collect", "env=reacher-red", "policy=counterfactual"]) == 2
    assert "needs one of the desk's worlds" in capsys.readouterr().err
    assert cli.main(["collect", "env=desk-drawer", "policy=counterfactuel"]) == 2
    assert "did you mean counterfactual" in capsys.readouterr().err


def test_the_seed_of_a_start_is_the_same_for_all_its_kinds(drawer):
    notes = json.loads((drawer.root / "meta/embodied.json").read_text())["episodes"]
    seeds = [notes[str(i)]["seed"] for i in range(9)]
    assert len(set(seeds[:8])) == 1
    assert seeds[0] != seeds[8]
