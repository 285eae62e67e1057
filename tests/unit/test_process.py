"""The process reward on a toy world: features move from a start to a goal that differ from layout to layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from embodied.scoring.identity import scorer_identity
from rewards.core import Episode, Features
from rewards.hop_model import CAP, HopModel, LabelledDemo, Pairs, Recipe, demonstrations, train
from rewards.hops import FUSIONS
from rewards.metrics import value_order_correlation
from rewards.process import ProcessReward, process_scorer
from tests.advancing import check_advance
from tests.fakes import FakeEncoder

QUICK = Recipe(steps=150, pairs=128, lr=5e-3)
TASKS = ("open it", "lift it", "press it")
ENCODER = FakeEncoder(dim=16)


def directions(task: str) -> Tensor:
    return ENCODER.encode_texts([task + where for where in (" at first", " midway", " at last")])


def episode(task: str, seed: int, *, until: float = 1.0, rows: int = 24, views=("front", "side"), **more) -> Episode:
    """Start → midway → goal, moved aside by the layout; `until` stops early and stays there."""
    g = torch.Generator().manual_seed(seed)
    begin, middle, end = directions(task)
    at = torch.linspace(0, 1, rows).clamp(max=until)[:, None]
    path = (1 - at) * begin + at * (1 - at) * middle + at * end
    found = {}
    for i, view in enumerate(views):
        layout = 0.3 * torch.nn.functional.normalize(torch.randn(16, generator=g), dim=0)
        found[view] = torch.nn.functional.normalize((path + layout).roll(i, -1), dim=-1)[None]
    return Episode(features=Features(views=found), instruction=task, **more)


def expert_demos(tasks=TASKS, count=4) -> list[Episode]:
    return [episode(task, 10 * i + seed) for i, task in enumerate(tasks) for seed in range(count)]


@pytest.fixture(scope="module")
def fitted() -> ProcessReward:
    return ProcessReward.fit(expert_demos(), encoder=ENCODER, recipe=QUICK, goal=TASKS[0])


def progress(head: ProcessReward, one: Episode) -> Tensor:
    return head.score(one.features)[0]


def reverse(one: Episode) -> Episode:
    views = {name: view.flip(1) for name, view in one.features.views.items()}
    return replace(one, features=Features(views=views))


@pytest.mark.parametrize("task", TASKS)
def test_it_orders_new_episodes_forwards_and_backwards(fitted, task):
    head, new = fitted.toward(task), episode(task, 999)
    assert value_order_correlation(progress(head, new)) > 0.95
    assert value_order_correlation(progress(head, reverse(new)), rewound=True) > 0.95
    assert progress(head, new)[-1] > 0.8


def test_what_does_not_reach_the_goal_scores_less(fitted):
    solved, stopped = (progress(fitted, episode(TASKS[0], 998, until=share))[-1] for share in (1.0, 0.5))
    wrong = progress(fitted, episode(TASKS[1], 998))[-1]
    assert solved > stopped + 0.15
    assert stopped > wrong
    assert wrong < solved / 2


def test_standing_still_earns_nothing(fitted):
    frozen = episode(TASKS[0], 997, until=0.0)
    assert progress(fitted, frozen).max() < 0.1


def test_it_is_causal_and_batches_do_not_mix(fitted):
    some = [episode(TASKS[0], seed) for seed in (1, 2)]
    both = Features(views={k: torch.cat([e.features.views[k] for e in some]) for k in ("front", "side")})
    together = fitted.score(both)
    for i, one in enumerate(some):
        assert torch.allclose(together[i], progress(fitted, one), atol=1e-5)
    cut = Features(views={k: view[:, :9] for k, view in both.views.items()})
    assert torch.allclose(fitted.score(cut), together[:, :9], atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("goal", [TASKS[0], "a text without demonstrations"])
def test_rows_can_come_one_by_one(fitted, fusion, goal):
    if fusion == "backward" and goal != TASKS[0]:
        return  # there is none without a reference
    head = ProcessReward(fitted.model, fitted.demos, encoder=ENCODER, goal=goal, views=fitted.views, fusion=fusion)
    some = [episode(TASKS[0], seed).features.views for seed in (1, 2)]
    views = {name: torch.cat([each[name] for each in some]) for name in ("front", "side")}
    check_advance(head, Features(views=views))
    views["front"][0, 4:7] = views["side"][0, 5:9] = torch.nan  # cameras lost for a while
    check_advance(head, Features(views=views))


def test_no_change_is_no_hop(fitted):
    same = fitted.model.hops(*[torch.rand(5, 64)] * 2)
    assert same.abs().max() == 0


def test_a_lost_camera_is_left_out_and_no_camera_holds_progress(fitted):
    whole = episode(TASKS[0], 996)
    one_eyed = Features(views={"front": whole.features.views["front"]})
    assert value_order_correlation(fitted.score(one_eyed)[0]) > 0.9
    views = {name: view.clone() for name, view in whole.features.views.items()}
    views["side"][:, 5:9] = torch.nan
    assert torch.isfinite(fitted.score(Features(views=views))).all()
    views["front"][:, 5:9] = torch.nan
    dark = fitted.score(Features(views=views))[0]
    assert torch.equal(dark[5:9], dark[4].expand(4))
    assert torch.equal(dark[:5], progress(fitted, whole)[:5])


def test_an_unnamed_camera_is_the_first_and_an_unknown_one_is_refused(fitted):
    front = episode(TASKS[0], 995).features.views["front"]
    assert torch.equal(fitted.score(Features(views={"main": front})), fitted.score(Features(views={"front": front})))
    extra = Features(views={"front": front, "ceiling": torch.zeros_like(front)})
    assert torch.equal(fitted.score(extra), fitted.score(Features(views={"front": front})))
    with pytest.raises(ValueError, match="must show front or side; got ceiling"):
        fitted.score(Features(views={"ceiling": front}))


def test_a_text_without_demonstrations_has_no_reference_goal(fitted):
    head = fitted.toward("something never shown")
    inc, fwd, bwd = head.hops(episode(TASKS[0], 994).features)
    assert bwd is None
    assert inc.shape == fwd.shape
    assert torch.isfinite(head.score(episode(TASKS[0], 994).features)).all()


def test_one_demonstration_teaches_a_new_task_and_keeps_the_old(fitted):
    new = "stack it"
    before = {name: value.clone() for name, value in fitted.model.state_dict().items()}
    adapted = fitted.adapt([episode(new, 50)], recipe=replace(QUICK, steps=100))
    assert adapted.goal == new
    assert value_order_correlation(progress(adapted, episode(new, 990))) > 0.9
    assert value_order_correlation(progress(adapted, reverse(episode(new, 990))), rewound=True) > 0.9
    assert progress(adapted, episode(new, 990))[-1] > progress(fitted.toward(new), episode(new, 990))[-1] + 0.2
    assert value_order_correlation(progress(adapted.toward(TASKS[1]), episode(TASKS[1], 990))) > 0.9
    assert all(torch.equal(before[name], value) for name, value in fitted.model.state_dict().items())


def test_failures_bound_progress():
    stopped = [episode(TASKS[0], seed, until=0.7, success=False) for seed in range(4)]
    new = episode(TASKS[0], 991, until=0.7)
    plain, told = (
        ProcessReward.fit(expert_demos(TASKS[:1]) + more, encoder=ENCODER, recipe=QUICK, fusion="forward", epsilon=0.1)
        for more in ([episode(TASKS[0], seed, until=0.7) for seed in range(4)], stopped)
    )
    assert progress(plain, new)[-1] > progress(told, new)[-1]  # called successes, they look like success
    assert progress(told, new)[-1] < CAP + 0.05


def test_saved_and_loaded_it_says_exactly_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "head", ENCODER)
    loaded = ProcessReward.load(tmp_path / "head", ENCODER, goal=TASKS[0])
    one = episode(TASKS[0], 989)
    assert torch.equal(progress(loaded, one), progress(fitted, one))
    with pytest.raises(ValueError, match="Fit it again"):
        ProcessReward.load(tmp_path / "head", FakeEncoder(dim=8), goal=TASKS[0])
    retrained = FakeEncoder(dim=16)
    retrained.projection = -retrained.projection
    with pytest.raises(ValueError, match="other weights"):
        ProcessReward.load(tmp_path / "head", retrained, goal=TASKS[0])


def test_the_same_seed_fits_the_same_model():
    quick = replace(QUICK, steps=3)
    first, again, other = (
        ProcessReward.fit(expert_demos(), encoder=ENCODER, recipe=quick, seed=seed, goal=TASKS[0]).model.pool.weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_rest_at_the_end_is_no_progress():
    moving = episode(TASKS[0], 5, rows=12).features.views
    resting = {name: torch.cat([view, view[:, -1:].expand(-1, 30, -1)], 1) for name, view in moving.items()}
    for steps, middle in (((), None), ((5, 41), 5)):
        (demo,) = demonstrations(
            [Episode(features=Features(views=resting), instruction="open it", steps=steps)], ("front", "side")
        )
        assert demo.progress[11:].eq(1).all()
        assert len(demo.rows) == 16  # of the rest a little is kept
        assert demo.progress[10] < 1
        if middle is not None:
            assert demo.progress[middle] == 0.5


def test_pairs_told_another_task_make_no_progress():
    demos = demonstrations(expert_demos(), ("front", "side"))
    texts = dict(zip(TASKS, ENCODER.encode_texts(TASKS), strict=True))
    always = replace(QUICK, mismatched=1.0, goal_dropout=0.0, anchored=0.4)
    given, target, _ = Pairs(demos, texts, always, torch.Generator().manual_seed(0), {}).draw()
    assert set(target.tolist()) == {0.0, -1.0}  # −1 from a goal, 0 otherwise
    never = replace(always, mismatched=0.0)
    _, target, _ = Pairs(demos, texts, never, torch.Generator().manual_seed(0), {}).draw()
    assert target.max() > 0.5
    assert given["rows"].shape == (128, 2, 2, 16)


def test_a_view_is_never_dropped_with_the_last_one():
    demos = [LabelledDemo(torch.randn(6, 2, 16), torch.linspace(0, 1, 6), "open it")]
    texts = {"open it": torch.zeros(16)}
    given, _, _ = Pairs(demos, texts, replace(QUICK, view_dropout=0.9), torch.Generator(), {}).draw()
    hidden = given["rows"].isnan().any(-1)
    assert hidden.any()
    assert not hidden.all(-1).any()


@pytest.mark.parametrize(
    ("demos", "match"),
    [
        ([episode("open it", 0, success=False)], "must hold a successful demonstration; got none in 1"),
        ([episode(" ", 0)], "must have an instruction"),
        ([episode("open it", 0, rows=1)], "at least 2 rows"),
    ],
)
def test_fit_refuses(demos, match):
    with pytest.raises(ValueError, match=match):
        ProcessReward.fit(demos, encoder=ENCODER)


def test_adapt_refuses(fitted):
    with pytest.raises(ValueError, match="all of one instruction"):
        fitted.adapt([episode("a", 0), episode("b", 0)])
    with pytest.raises(ValueError, match="must show front or side; got wrist"):
        fitted.adapt([episode("a", 0, views=("wrist",))])


def test_several_tasks_need_a_goal(fitted):
    with pytest.raises(ValueError, match="Known: open it; lift it; press it"):
        ProcessReward(fitted.model, fitted.demos, encoder=ENCODER, views=fitted.views)


def test_the_scorer(fitted, tmp_path):
    fitted.save(tmp_path / "head", ENCODER)
    scorer = process_scorer(
        encoder=ENCODER, model=str(tmp_path / "head"), goal=TASKS[0], shaping={"kind": "difference"}
    )
    one = episode(TASKS[0], 980)
    rewards = scorer.rewards(one.features, torch.zeros(1, 23, dtype=torch.bool))[0]
    phi = progress(fitted, one)
    assert torch.allclose(rewards, 0.99 * phi[1:] - phi[:-1], atol=1e-6)
    with pytest.raises(ValueError, match="model or demos must be given"):
        process_scorer(encoder=ENCODER)


def test_size_on_disk(tmp_path):
    """Eight tasks of four demonstrations, two cameras, the embedded encoder's width: at most 1 MB."""
    encoder = FakeEncoder(dim=256)
    demos = [LabelledDemo(torch.randn(16, 2, 256), torch.linspace(0, 1, 16), f"task {i // 4}") for i in range(32)]
    head = ProcessReward(HopModel(256), demos, encoder=encoder, goal="task 0", views=("front", "side"))
    head.save(tmp_path / "head", ENCODER)
    assert sum(path.stat().st_size for path in (tmp_path / "head").iterdir()) < 1e6


@pytest.mark.parametrize("adapted", [False, True])
def test_demonstrations_are_fitted_once_for_all_goals_and_each_goal_s_reward_is_its_own(adapted, monkeypatch):
    """What was fitted for one goal is taken for the others; bounds by the goal's text and references are not."""
    monkeypatch.setattr("rewards.process.Recipe", lambda: replace(QUICK, steps=20))
    fitted = []

    def counted(*args, **more):
        fitted.append(args)
        return train(*args, **more)

    monkeypatch.setattr("rewards.process.train", counted)
    given = {"demos": expert_demos(count=2), "adapt": [episode("stack it", 50)] if adapted else None, "outcome": {}}
    fits = {}
    for goal in (*TASKS[:2], "a text without demonstrations"):
        one, alone = (process_scorer(encoder=ENCODER, goal=goal, fits=each, **given) for each in (fits, None))
        assert scorer_identity(one) == scorer_identity(alone)
        film = episode(TASKS[0], 3).features
        assert torch.equal(one.potentials(film)["process"], alone.potentials(film)["process"])
    assert len(fitted) == (1 + adapted) * (1 + 3)
    nameless = [replace(each, instruction=TASKS[2]) for each in given["demos"]]  # as of episodes without a text
    process_scorer(encoder=ENCODER, goal=TASKS[2], fits=fits, **given | {"demos": nameless})
    assert len(fitted) == (1 + adapted) * (1 + 3 + 1)
