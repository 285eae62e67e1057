"""Progress is held to its outcome: a pose earns little, a goal that is reached all, and heads keep their bounds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from rewards.core import Episode, Features
from rewards.demonstration import Demonstration, demonstration_scorer
from rewards.hop_model import Recipe
from rewards.outcome import BEND, REACHED, GoalDegree, OutcomeBound, bound, held_to_outcome
from rewards.process import ProcessReward, process_scorer
from tests.fakes import FakeEncoder

T, GOAL = 24, "open the drawer"
ENCODER = FakeEncoder()


def rows(goal: np.ndarray, pose: np.ndarray, view: str = "front") -> Features:
    """Frames with a given cosine to the goal's text, the pose along another direction, (T,) each."""
    text = ENCODER.encode_texts([GOAL])[0]
    other, rest = (v - (v @ text) * text for v in torch.eye(len(text))[:2])
    other = other / other.norm()
    rest = rest - (rest @ other) * other
    made = []
    for cosine, at in zip(goal, pose, strict=True):
        left = math.sqrt(1 - cosine**2)
        made.append(cosine * text + left * (math.sin(at) * other + math.cos(at) * rest / rest.norm()))
    return Features(views={view: torch.stack(made)[None].float()})


WAY = np.clip(np.arange(T) / (T - 6), 0, 1)
LATE = np.clip((np.arange(T) - T / 2) / 6, 0, 1)  # the outcome comes when half of the way is done


def demo(seed: int = 0, instruction: str = GOAL) -> Episode:
    shift = 0.01 * np.random.default_rng(seed).normal(size=2)
    return Episode(
        features=rows(0.1 + shift[0] + 0.6 * LATE, 1.2 * WAY + shift[1]), instruction=instruction, success=True
    )


DEMOS = [demo(k) for k in range(4)]


def test_degree_is_the_share_of_the_demonstrations_way_less_its_ends():
    degree = GoalDegree.fit(ENCODER.encode_texts([GOAL])[0], DEMOS)
    assert degree is not None
    start, end = degree.bounds["front"]
    ends = np.array([(each.features.main[0] @ degree.text).numpy()[[0, -1]] for each in DEMOS]).mean(0)
    assert_allclose([start, end], ends, atol=1e-6)
    said = np.linspace(-0.1, 0.9, T)
    share = (said - start) / (end - start)
    expected = np.clip(share / REACHED, 0, 1) ** BEND
    assert_allclose(degree.score(rows(said, WAY))[0].numpy(), expected, atol=1e-5)


def test_a_degree_is_nowhere_flat_before_the_goal():
    """It was 0 until 0.4 of the way: a learner at the drawer's handle, at 0.17, found nothing to climb."""
    degree = GoalDegree.fit(ENCODER.encode_texts([GOAL])[0], DEMOS)
    assert degree is not None
    start, end = degree.bounds["front"]
    ways = np.array([0.0, 0.17, 0.25, 0.33, 0.4, 0.6, 0.9, 1.0])
    found = degree.score(rows(start + ways * (end - start), WAY[: len(ways)]))[0].numpy()
    assert (np.diff(found[:-1]) > 0).all()
    assert found[ways == 0.17] < 0.01  # and near the goal is not the goal
    assert_allclose(found[-2:], 1, atol=1e-5)


def test_a_text_that_does_not_tell_ends_from_starts_bounds_nothing():
    text = ENCODER.encode_texts(["a cat on a sofa"])[0]
    assert GoalDegree.fit(text, []) is None
    worse = [*DEMOS, Episode(features=rows(np.full(T, 0.8), WAY), instruction=GOAL, success=True)]  # starts so
    assert GoalDegree.fit(ENCODER.encode_texts([GOAL])[0], worse) is None
    failed = Episode(features=rows(np.full(T, 0.8), WAY), instruction=GOAL, success=False)
    assert GoalDegree.fit(ENCODER.encode_texts([GOAL])[0], [*DEMOS, failed]) is not None
    head = Demonstration.fit(DEMOS)
    unbound = held_to_outcome(head, {"goal": None}, encoder=ENCODER, demos=worse)
    assert unbound.untold == (GOAL,)
    assert_allclose(unbound.score(DEMOS[0].features), head.score(DEMOS[0].features))


def test_the_bound_by_hand():
    values = bound(torch.tensor([0.0, 1.0, 1.0, 0.5]), torch.tensor([0.0, 0.0, 0.5, 1.0]), 0.25)
    assert values.tolist() == [0.0, 0.25, 0.625, 1.0]


@pytest.fixture(scope="module")
def heads():
    process = ProcessReward.fit(DEMOS, encoder=ENCODER, recipe=Recipe(steps=30), goal=GOAL)
    return {"demonstration": Demonstration.fit(DEMOS), "process": process}


FACTORIES = {"demonstration": demonstration_scorer, "process": process_scorer}


@pytest.mark.parametrize("name", FACTORIES)
def test_a_mime_earns_little_and_the_outcome_alone_earns_all(heads, name):
    held = held_to_outcome(heads[name], {"dense": 0.25}, encoder=ENCODER, demos=DEMOS)
    films = {
        "success": rows(0.1 + 0.6 * LATE, 1.2 * WAY),
        "mimed": rows(np.full(T, 0.1), 1.2 * WAY),
        "other way": rows(0.1 + 0.6 * LATE, 0 * WAY),
    }
    before = {kind: float(heads[name].score(film)[0, -1]) for kind, film in films.items()}
    after = {kind: float(held.score(film)[0, -1]) for kind, film in films.items()}
    assert before["mimed"] > 0.26 or before["other way"] < 0.9  # what is to be mended
    assert after["mimed"] <= 0.25 + 1e-6
    assert after["success"] == pytest.approx(1, abs=1e-6)
    assert after["other way"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_kept_head_keeps_its_bounds_and_an_old_one_has_none(heads, name, tmp_path):
    held = held_to_outcome(heads[name], {}, encoder=ENCODER, demos=DEMOS)
    held.save(tmp_path / "new", ENCODER)
    (again,) = FACTORIES[name](encoder=ENCODER, model=str(tmp_path / "new"), outcome={}).heads.values()
    film = rows(np.full(T, 0.45), 1.2 * WAY)
    assert_allclose(again.score(film), held.score(film), atol=1e-3)
    assert (again.dense, again.goal) == (0.25, GOAL)
    heads[name].save(tmp_path / "old", ENCODER)
    (old,) = FACTORIES[name](encoder=ENCODER, model=str(tmp_path / "old"), outcome={}).heads.values()
    assert not isinstance(old, OutcomeBound)


@pytest.mark.parametrize("sentence", [None, "it stands open"])
def test_a_kept_head_is_held_to_the_sentence_that_it_was_fitted_with_and_to_no_other(heads, sentence, tmp_path):
    held_to_outcome(heads["demonstration"], {"goal": sentence}, encoder=ENCODER, demos=DEMOS).save(tmp_path, ENCODER)

    def load(goal):
        return demonstration_scorer(encoder=ENCODER, model=str(tmp_path), outcome={"goal": goal})

    load(None)
    load(GOAL if sentence is None else sentence)
    with pytest.raises(ValueError, match=f"got 'a cat', and .* has {'none' if sentence is None else repr(sentence)}"):
        load("a cat")
    config = json.loads((tmp_path / "outcome" / "head.json").read_text())
    del config["config"]["sentence"]  # as older heads are kept
    (tmp_path / "outcome" / "head.json").write_text(json.dumps(config))
    load("a cat")


def test_the_factory_binds_what_it_fits():
    (plain,) = demonstration_scorer(encoder=ENCODER, demos=DEMOS).heads.values()
    (held,) = demonstration_scorer(encoder=ENCODER, demos=DEMOS, outcome={"dense": 0.1}).heads.values()
    assert isinstance(plain, Demonstration)
    assert isinstance(held, OutcomeBound)
    assert held.dense == 0.1


def test_rows_that_come_one_by_one_get_the_same(heads):
    head = held_to_outcome(heads["process"], {}, encoder=ENCODER, demos=DEMOS)
    film, memory, said = DEMOS[1].features, None, []
    for t in range(T):
        row = Features(views={name: view[:, t : t + 1] for name, view in film.views.items()})
        score, memory = head.advance(row, memory)
        said.append(float(score))
    assert_allclose(said, head.score(film)[0], atol=1e-5)
    assert head.advances
    assert head.cameras == ("front",)


def test_another_goal_has_its_own_bound_or_none(heads):
    other = [demo(k, "close the drawer") for k in range(2)]
    head = held_to_outcome(heads["process"], {}, encoder=ENCODER, demos=[*DEMOS, *other])
    assert set(head.degrees) | set(head.untold) == {GOAL, "close the drawer"}
    unknown = head.toward("stack the cups")
    assert_allclose(unknown.score(DEMOS[0].features), unknown.head.score(DEMOS[0].features))
    assert not hasattr(OutcomeBound(heads["demonstration"], {}, GOAL), "toward")


def test_a_goal_in_other_words_is_read_by_its_own_text(heads):
    head = held_to_outcome(heads["process"].toward("pull it out"), {}, encoder=ENCODER, demos=DEMOS)
    assert {*head.degrees, *head.untold} == {"pull it out"}
    told = held_to_outcome(heads["process"].toward("pull it out"), {"goal": GOAL}, encoder=ENCODER, demos=DEMOS)
    assert torch.equal(told.degrees["pull it out"].text, ENCODER.encode_texts([GOAL])[0])


@pytest.mark.parametrize(
    ("outcome", "message"),
    [({"dense": 1.0}, "dense must be in"), ({"goals": "x"}, "must hold goal and dense; got goals besides")],
)
def test_settings_out_of_range_are_refused(outcome, message):
    with pytest.raises(ValueError, match=message):
        demonstration_scorer(encoder=ENCODER, demos=DEMOS, outcome=outcome)
