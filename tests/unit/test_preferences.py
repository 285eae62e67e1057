"""Comparisons, and the rewards fitted to them: one user's, and several users'."""

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rewards.chat.asking import VLMError
from rewards.comparisons import ask_preference, compare, draw_pairs, labels_by_text, labels_by_vlm, read_labels
from rewards.core import Episode, Features
from rewards.metrics import spearman
from rewards.preference import PreferenceReward, fixed_set, preference_scorer
from rewards.vpl import VPLReward, fit_vpl, vpl_scorer
from tests.advancing import check_advance
from tests.fakes import FakeEncoder

WIDTH = 4


def episodes(count: int = 6, length: int = 20, cameras=("front",)) -> list[Episode]:
    rng = torch.Generator().manual_seed(0)
    return [
        Episode(features=Features(views={c: torch.randn(1, length, WIDTH, generator=rng) for c in cameras}))
        for _ in range(count)
    ]


EPISODES = episodes()


def judge(pairs: np.ndarray, wanted: torch.Tensor, length: int = 1) -> np.ndarray:
    """A person who likes rows along a direction."""
    worth = [episode.features.main[0] @ wanted for episode in EPISODES]
    total = np.array([[float(worth[e][t - length + 1 : t + 1].sum()) for e, t in pair] for pair in pairs])
    return (total[:, 1] > total[:, 0]).astype(np.int64)


ALONG = torch.tensor([1.0, -1.0, 0.5, 0.0])


@pytest.mark.parametrize("length", [1, 4])
def test_the_ensemble_learns_what_is_liked(length, tmp_path):
    pairs = draw_pairs(EPISODES, 120, length=length)
    told = compare(EPISODES, pairs, judge(pairs, ALONG, length), length=length)
    head = PreferenceReward(told, fixed_set(EPISODES), epochs=150)
    fresh = torch.randn(1, 200, WIDTH, generator=torch.Generator().manual_seed(5))
    features = Features(views={"front": fresh})
    assert spearman(head.score(features)[0], fresh[0] @ ALONG) > 0.9
    assert head.accuracy >= 0.9
    again = PreferenceReward(told, fixed_set(EPISODES), epochs=150)
    assert_close(again.score(features), head.score(features), rtol=0, atol=0)
    head.save(tmp_path / "head", FakeEncoder(dim=WIDTH))
    loaded = PreferenceReward.load(tmp_path / "head", FakeEncoder(dim=WIDTH))
    assert_close(loaded.score(features), head.score(features), rtol=0, atol=0)


def test_a_refit_follows_new_labels():
    pairs = draw_pairs(EPISODES, 200)
    head = PreferenceReward(compare(EPISODES, pairs, judge(pairs, ALONG)), fixed_set(EPISODES))
    stored = [episode.features for episode in EPISODES]
    before = torch.cat([head.score(features) for features in stored]).flatten()
    head.refit(compare(EPISODES, pairs, judge(pairs, -ALONG)))
    after = torch.cat([head.score(features) for features in stored]).flatten()
    assert spearman(before, after) < -0.8


def test_fitting_stops_at_97_percent():
    pairs = draw_pairs(EPISODES, 200)
    worth = [episode.features.main[0] @ ALONG for episode in EPISODES]
    clear = np.array([abs(float(worth[a[0]][a[1]] - worth[b[0]][b[1]])) > 1 for a, b in pairs])
    told = compare(EPISODES, pairs[clear], judge(pairs[clear], ALONG))
    few, many = (PreferenceReward(told, fixed_set(EPISODES), epochs=epochs) for epochs in (400, 800))
    assert few.accuracy == many.accuracy >= 0.97  # both stopped at the same epoch, before 400


def test_undecided_and_identical_pairs_are_dropped():
    pairs = np.array([[[0, 1], [0, 1]], [[0, 1], [0, 2]], [[0, 3], [1, 4]]])
    told = compare(EPISODES, pairs, np.array([1, -1, 0]))
    assert len(told) == 1
    assert told.labels.tolist() == [0.0]
    assert_close(told.second["front"][0, 0], EPISODES[1].features.main[0, 4])
    with pytest.raises(ValueError, match="of 1 none was"):
        compare(EPISODES, pairs[:1], np.array([1]))


def test_the_encoder_judges_with_a_margin():
    goal = torch.nn.functional.normalize(ALONG, dim=0)
    encoder = FakeEncoder(dim=WIDTH, vectors={"goal": goal})
    pairs = draw_pairs(EPISODES, 50)
    assert (labels_by_text(EPISODES, pairs, "goal", encoder, margin=0.0) == judge(pairs, ALONG)).mean() > 0.95
    assert (labels_by_text(EPISODES, pairs, "goal", encoder, margin=1e3) == -1).all()


def test_a_person_s_file(tmp_path):
    file = tmp_path / "labels.jsonl"
    lines = [
        {"a": [0, 3], "b": [1, 5], "label": 1, "user": "ann"},
        {"a": [2, 3], "b": [1, 5], "label": 0, "user": "bob"},
        {"a": [2, 3], "b": [1, 5], "label": -1, "user": "bob"},
    ]
    file.write_text("\n\n".join(json.dumps(line) for line in lines))
    told = read_labels(file, EPISODES)
    assert (told.names, told.users.tolist(), told.labels.tolist()) == (("ann", "bob"), [0, 1], [1.0, 0.0])
    assert len(told.of("bob")) == 1
    with pytest.raises(ValueError, match="one of ann, bob; got 'eve'"):
        told.of("eve")
    for bad, problem in (
        ({"a": [0, 3], "b": [1, 20], "label": 1}, "row must be in 0 to 19; got 20"),
        ({"a": [9, 3], "b": [1, 2], "label": 1}, "episode must be in 0 to 5; got 9"),
        ({"a": [0, 3], "b": [1, 2], "label": 2}, "label must be 0, 1 or -1; got 2"),
        ({"a": [0, 3], "label": 1}, "'b' is missing"),
    ):
        file.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=f"line 1 of .*{problem}"):
            read_labels(file, EPISODES)
    with pytest.raises(FileNotFoundError, match="there is no"):
        read_labels(tmp_path / "none", EPISODES)


class Judge:
    """A chat model that sees which image is brighter, and says it in two stages."""

    name = "judge"

    def __init__(self, refuses: bool = False):
        self.asked, self.refuses = [], refuses

    def ask(self, messages):
        text = messages[-1].text
        self.asked.append(text)
        if self.refuses:
            return "I am sorry, I cannot help with that."
        if messages[-1].images:
            first, second = (float(image.mean()) for image in messages[-1].images)
            return "They look alike." if first == second else f"Image {'A' if first > second else 'B'} is better."
        return json.dumps({"preferred": 0 if "Image A" in text else 1 if "Image B" in text else -1})


def grey(level: int, edge: int = 0) -> np.ndarray:
    frame = np.full((4, 4, 3), level, np.uint8)
    frame[0, 0], frame[1, 1] = level + edge, level - edge
    return frame


def test_a_chat_model_compares_in_two_stages(tmp_path):
    model = Judge()
    assert ask_preference(model, "a bright room", grey(9), grey(90), cache=tmp_path) == 1
    assert ask_preference(model, "a bright room", grey(90), grey(9)) == 0
    assert ask_preference(model, "a bright room", grey(90), grey(90, edge=5)) == -1
    assert len(model.asked) == 6
    assert "a bright room" in model.asked[0]
    assert ask_preference(model, "a bright room", grey(9), grey(90), cache=tmp_path) == 1
    assert ask_preference(model, "a bright room", grey(9), grey(9)) == -1
    assert len(model.asked) == 6  # one answer was kept, and identical frames are not asked about
    with pytest.raises(VLMError):
        ask_preference(Judge(refuses=True), "a bright room", grey(9), grey(90))
    with pytest.raises(ValueError, match="must hold the frames of all rows"):
        labels_by_vlm(EPISODES, draw_pairs(EPISODES, 2), "a bright room", model)


def test_the_factory_with_every_judge(tmp_path):
    encoder = FakeEncoder(dim=WIDTH)
    scorer = preference_scorer(encoder=encoder, goal="goal", demos=EPISODES, ensemble={"epochs": 5})
    assert scorer.potentials(EPISODES[0].features)["preference"].shape == (1, 20)
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps({"a": [0, 3], "b": [1, 5], "label": 1}))
    preference_scorer(encoder=encoder, labels=str(file), demos=EPISODES, ensemble={"epochs": 1})
    with pytest.raises(ValueError, match="goal must be given"):
        preference_scorer(encoder=encoder, demos=EPISODES)
    one = vpl_scorer(encoder=encoder, goal="goal", demos=EPISODES, latent_user={"steps": 5})
    assert one.potentials(EPISODES[0].features)["vpl"].shape == (1, 20)


def test_a_person_s_comparisons_are_fitted_once_and_a_goal_s_each_by_itself(tmp_path):
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps({"a": [0, 3], "b": [1, 5], "label": 1}))
    quick = {preference_scorer: {"ensemble": {"epochs": 1}}, vpl_scorer: {"latent_user": {"steps": 2}}}
    for factory, how in quick.items():
        fits, given = {}, {"encoder": FakeEncoder(dim=WIDTH), "demos": EPISODES, **how}
        for labels, alike in ((str(file), True), (None, False)):
            made = [factory(goal=goal, labels=labels, fits=fits, **given).heads for goal in ("goal", "another")]
            (one,), (other,) = (heads.values() for heads in made)
            assert (one is other) == alike


# VPL: people who want opposite things --------------------------------------------------------------------------------


def many_users(count: int = 24, each: int = 40):
    pairs = draw_pairs(EPISODES, count * each, seed=1)
    labels = np.concatenate(
        [judge(pairs[u * each : (u + 1) * each], ALONG * (1 if u % 2 else -1)) for u in range(count)]
    )
    return compare(EPISODES, pairs, labels, users=[f"{u:02}" for u in range(count) for _ in range(each)])


@pytest.fixture(scope="module")
def vpl():
    told = many_users()
    return told, fit_vpl(told, fixed_set(EPISODES), steps=600, hidden=32, latent=2)


def agreement(head, liked: torch.Tensor) -> float:
    fresh = torch.randn(1, 200, WIDTH, generator=torch.Generator().manual_seed(5))
    return spearman(head.score(Features(views={"front": fresh}))[0], fresh[0] @ liked)


def test_one_reward_averages_opposite_users_out_and_vpl_tells_them_apart(vpl):
    told, networks = vpl
    single = PreferenceReward(told, fixed_set(EPISODES), epochs=60)
    assert abs(agreement(single, ALONG)) < 0.6
    assert single.accuracy < 0.7
    pairs = draw_pairs(EPISODES, 16, seed=9)  # somebody new
    for liked in (ALONG, -ALONG):
        head = VPLReward(networks, fixed_set(EPISODES), compare(EPISODES, pairs, judge(pairs, liked)))
        assert agreement(head, liked) > 0.8


def test_the_context_is_a_set_of_any_size(vpl):
    told, networks = vpl
    mine = told.of("01")
    head = VPLReward(networks, fixed_set(EPISODES), mine)
    order = torch.randperm(len(mine), generator=torch.Generator().manual_seed(0))
    shuffled = type(mine)(
        {"front": mine.first["front"][order]}, {"front": mine.second["front"][order]}, mine.labels[order], mine.users
    )
    assert_close(VPLReward(networks, fixed_set(EPISODES), shuffled).q[0], head.q[0])
    pairs = draw_pairs(EPISODES, 3, seed=9)
    head.adapt(compare(EPISODES, pairs, judge(pairs, ALONG)))
    assert_close(head.q[0].shape, torch.Size([2]))


def test_resampling_is_per_episode_and_the_same_at_every_door(vpl):
    _, networks = vpl
    head = VPLReward(networks, fixed_set(EPISODES), None, resample=True)
    both = torch.cat([EPISODES[0].features.main, EPISODES[1].features.main])
    together = head.score(Features(views={"front": both}))
    alone = torch.cat([head.score(Features(views={"front": each[None]})) for each in both])
    assert_close(together, alone)
    assert_close(head.score(Features(views={"front": both[:, :5]})), together[:, :5])  # and while it grows
    check_advance(head, Features(views={"front": both}))
    same = torch.cat([both[:1, :1].expand(1, 20, WIDTH), both[1:, :1].expand(1, 20, WIDTH)])
    drawn = [head._latent({"front": row[0]}) for row in same]
    assert not torch.equal(drawn[0], drawn[1])


def test_vpl_save_load_and_missing_views(tmp_path):
    both = episodes(cameras=("front", "side"))
    pairs = draw_pairs(both, 60)
    told = compare(both, pairs, judge(pairs, ALONG))
    reference = fixed_set(both)
    head = VPLReward(fit_vpl(told, reference, steps=20, hidden=16, latent=2), reference, told)
    head.save(tmp_path / "head", FakeEncoder(dim=WIDTH))
    loaded = VPLReward.load(tmp_path / "head", FakeEncoder(dim=WIDTH))
    features = both[0].features
    assert_close(loaded.score(features), head.score(features), rtol=0, atol=0)
    part = Features(views={"side": features.views["side"]})
    assert (head.score(part) <= head.score(features) + 1e-6).all()
    assert head.score(features).min() >= 0
    assert head.score(features).max() <= 1


def test_a_fitted_reward_follows_the_user_that_it_was_fitted_for_and_no_other(tmp_path):
    told = many_users(2)
    networks = fit_vpl(told, fixed_set(EPISODES), steps=2, hidden=8, latent=2)
    for user in ("01", ""):
        head = VPLReward(networks, fixed_set(EPISODES), told.of(user) if user else None)
        head.save(tmp_path / "head", FakeEncoder(dim=WIDTH))

        def load(user):
            return vpl_scorer(encoder=FakeEncoder(dim=WIDTH), model=str(tmp_path / "head"), user=user)

        load(None)
        if user:
            load("01")
        with pytest.raises(ValueError, match=f"follows, {repr(user) if user else 'nobody in particular'}; got '00'"):
            load("00")
        file = tmp_path / "head" / "head.json"
        config = json.loads(file.read_text())
        del config["config"]["user"]  # as older ones are kept
        file.write_text(json.dumps(config))
        load("00")
