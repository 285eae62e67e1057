"""Synthetic rewards of known worth get the figures and the verdicts they deserve."""

from __future__ import annotations

import json
import math
import re
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from embodied.judging import benchmarking
from embodied.judging import figures as figures_module
from embodied.judging.benchmarking import Said, _figures
from embodied.judging.benchmarks import BENCHMARKS, BenchmarkFilm
from embodied.judging.figures import CANARIES, Canary, Case, Figure
from embodied.judging.judgement import (
    Division,
    controls,
    divide,
    films,
    json_parts,
    judge,
    potential,
    to_json,
)
from embodied.judging.quality import Grade
from embodied.judging.report import COLUMNS
from embodied.judging.tasks import over_tasks
from embodied.judging.verdicts import broken_canaries, verdict
from rewards.combine import WeightedSum
from rewards.core import Scorer
from rewards.metrics import policy_ranking_tau
from rewards.shaping import PotentialShaping
from tests.fakes import FakeEncoder
from tests.judged_cases import ENDS, T, case, cases, scorer

REWARDS = {
    "perfect": lambda truth, noise: truth,
    "inverted": lambda truth, noise: -truth,
    "noise": lambda truth, noise: noise,
    "noisy": lambda truth, noise: truth + 0.6 * noise,
    "waits": lambda truth, noise: truth + 0.2 * torch.arange(truth.shape[1]),
    "lingers": lambda truth, noise: truth + 0.6 * (truth.abs() < 0.005),  # a start looks like much
    "detector": lambda truth, noise: (truth > 0.95).float() + 1e-3 * noise,
    "late": lambda truth, noise: torch.cat([0 * truth[:, :2], (truth > 0.95).float()[:, :-2]], 1),  # after two rows
    "faint": lambda truth, noise: 1e-7 * truth,
    "lenient": lambda truth, noise: (truth - 0.6).clamp(min=0).sign() + 1e-3 * truth.round() * noise,
}


@pytest.fixture(scope="module")
def judged():
    division = divide(cases())
    rewards = {name: scorer(function) for name, function in REWARDS.items()} | controls(FakeEncoder())
    return {name: judge(name, each, division, resamples=40) for name, each in rewards.items()}


@pytest.mark.parametrize(
    ("name", "level", "words"),
    [
        ("perfect", "trust", "a dense reward, detecting success and ranking episodes"),
        ("inverted", "avoid", "points the wrong way"),
        ("constant", "avoid", "the same of every frame"),
        ("clock", "avoid", "counts time"),
        ("noise", "avoid", "Do not train on it"),
        ("waits", "avoid", "counts time"),
        ("lingers", "avoid", "pays a motionless policy"),
        ("detector", "trust", "Trust it for detecting success"),
        ("late", "trust", "Trust it for detecting success"),
        ("faint", "avoid", "it is faint"),
    ],
)
def test_each_reward_gets_the_verdict_it_deserves(judged, name, level, words):
    given = verdict(judged[name])
    assert given.level == level, given
    assert words in given.text
    assert ("a dense reward" in given.text) == (name == "perfect")


def test_a_perfect_reward_has_perfect_figures(judged):
    figures = {key: figure.value for key, figure in judged["perfect"].figures.items()}
    best = dict.fromkeys(("voc", "voc_reversed", "somers_d", "auroc", "ap", "precision", "recall", "frame_auroc"), 1.0)
    assert {key: figures[key] for key in best} == pytest.approx(best)
    assert figures["tau_a"] == pytest.approx(192 / 276)  # 8 episodes of each kind: 84 of all pairs are ties
    assert figures["epic"] == pytest.approx(0, abs=1e-6)
    assert figures["motionless"] < 0.05
    canaries = judged["perfect"].canaries
    assert canaries["frozen"].gain.value == pytest.approx(0)
    assert canaries["reversed"].gain.value == pytest.approx(-1)
    assert canaries["near miss"].gain.value == pytest.approx(0.7, abs=0.05)
    assert [canaries[name].fires.value for name in ("frozen", "reversed", "near miss", "random")] == [0, 0, 0, 0]
    assert canaries["wrong instruction"].films == 0


def test_published_names_tell_of_the_perfect_and_the_constant(judged):
    perfect, constant = ({k: v.value for k, v in judged[name].figures.items()} for name in ("perfect", "constant"))
    best = dict.fromkeys(("voc_spearman", "kendall_tau", "ranking_acc", "pairwise_acc", "success_auprc"), 1.0)
    assert {key: perfect[key] for key in best} == pytest.approx(best)
    assert perfect["voc_spearman"] == perfect["voc"]
    assert perfect["voc_pearson"] == pytest.approx(1, abs=1e-6)
    assert perfect["succ_fail_diff"] == pytest.approx(0.9, abs=0.05)
    assert [constant[key] for key in best][:4] == [0, 0, 0, 0]
    assert constant["succ_fail_diff"] == 0
    assert math.isnan(perfect["mae_ordinal"])  # nobody gave levels
    assert math.isnan(perfect["confusion_margin"])  # there is one task


def test_given_levels_are_held_against_the_end():
    grades = {"expert": Grade(5.0, True, 5), "near_miss": Grade(4.0, False, 4), "random": Grade(2.0, False, 2)}
    graded = [replace(each, grade=grades[each.kind]) for each in cases()]
    division = divide(graded)
    ends = [float(case.episode.features.main[0, case.end, 0]) for case in division.judged]
    levels = [1 + round(4 * end) for end in ends]
    away = [abs(level - case.grade.ordinal) for level, case in zip(levels, division.judged, strict=True)]
    figures = judge("perfect", scorer(REWARDS["perfect"]), division, resamples=10).figures
    assert 0.1 < np.mean(away) < 0.5
    assert figures["mae_ordinal"].value == pytest.approx(np.mean(away))
    beyond = judge("more", scorer(lambda truth, noise: 2 * truth), divide(graded), resamples=10).figures
    assert math.isnan(beyond["mae_ordinal"].value)  # no progress in [0, 1]


def test_controls_score_nothing(judged):
    constant, clock = (judged[name].figures for name in ("constant", "clock"))
    assert (constant["voc"].value, constant["voc_reversed"].value, constant["tau_a"].value) == (0, 0, 0)
    assert constant["auroc"].value == 0.5
    assert math.isnan(constant["epic"].value)
    assert math.isnan(constant["motionless"].value)
    assert math.isnan(judged["constant"].threshold)
    assert (clock["voc"].value, clock["voc_reversed"].value) == (pytest.approx(1), pytest.approx(-1))
    assert judged["clock"].canaries["frozen"].gain.value == pytest.approx(1)


def test_an_inverted_reward_is_opposite_in_every_figure(judged):
    figures = judged["inverted"].figures
    assert [figures[k].value for k in ("voc", "voc_reversed", "somers_d", "auroc")] == pytest.approx([-1, -1, -1, 0])
    assert figures["epic"].value == pytest.approx(1)


def test_a_lenient_reward_fires_on_near_misses(judged):
    assert judged["lenient"].canaries["near miss"].fires.value > 0.5
    given = verdict(judged["lenient"])
    assert "near misses for success" in given.text or given.level == "avoid"


def test_nothing_is_trusted_on_a_few_episodes():
    judged = judge("perfect", scorer(REWARDS["perfect"]), divide(cases(4)), resamples=20)
    given = verdict(judged)
    assert (given.level, given.uses) == ("care", ())
    assert given.text.startswith("Too few episodes to trust it: 3 successes and 6 others were judged, and 8 of each")
    assert "a dense reward, detecting success, ranking episodes" in given.text


def test_a_reward_whose_canary_is_red_is_never_green(judged):
    """Whatever film the report shows in red, the verdict warns of."""
    films = {name: Canary(Figure(0.0), Figure(0.0), 8) for name in CANARIES}
    red = {
        "frozen": Canary(Figure(0.3), Figure(0.0), 8),
        "reversed": Canary(Figure(0.1), Figure(0.0), 8),
        "wrong instruction": Canary(Figure(0.6), Figure(0.0), 8),
        "near miss": Canary(Figure(1.2), Figure(0.0), 8),
        "random": Canary(Figure(1.1), Figure(0.0), 8),
    }
    assert verdict(replace(judged["perfect"], canaries=films)).level == "trust"
    for name, canary in red.items():
        one = replace(judged["perfect"], canaries={**films, name: canary})
        assert list(broken_canaries(one)) == [name]
        assert verdict(one).level in ("care", "avoid"), name


def test_several_tasks_are_judged_apart_and_averaged():
    """Of one task the reward says truth, of the other the truth and two: apart both are perfect, in one pot neither."""
    rng = np.random.default_rng(1)
    other = [case(100 + i, kind, rng=rng) for i, kind in enumerate(kind for kind in ENDS for _ in range(12))]
    first, second = divide(cases()), divide(other)
    raised = scorer(lambda truth, noise: truth + 2)
    each = {
        "open it": judge("r", scorer(REWARDS["perfect"]), first, resamples=40),
        "close it": judge("r", raised, second, resamples=40),
    }
    both = over_tasks(each)
    assert both.figures["auroc"].value == both.figures["somers_d"].value == 1
    assert (both.successes, both.others) == (16, 32)
    assert set(both.potentials) == {c.index for c in [*first.judged, *second.judged]}
    assert math.isnan(both.threshold)
    assert list(both.tasks) == ["open it", "close it"]
    assert verdict(both).level == "trust"
    half = over_tasks(each | {"close it": judge("r", scorer(REWARDS["noise"]), second, resamples=40)})
    alone = [half.tasks[task].figures["auroc"].value for task in half.tasks]
    assert half.figures["auroc"].value == pytest.approx(np.mean(alone))
    assert half.figures["auroc"].low < half.figures["auroc"].value < half.figures["auroc"].high
    assert over_tasks({"open it": each["open it"]}) is each["open it"]


def test_a_figure_that_one_task_lacks_is_the_others_mean():
    some, none = divide(cases()), divide([c for c in cases() if c.kind == "expert"])
    each = {"a": judge("r", scorer(REWARDS["perfect"]), some, resamples=20)}
    each["b"] = judge("r", scorer(REWARDS["perfect"]), none, resamples=20)
    assert over_tasks(each).figures["auroc"].value == 1
    json.dumps(to_json(over_tasks(each)), allow_nan=False)


def test_an_interval_of_graded_shares_draws_what_no_level_has_twice():
    rng = np.random.default_rng(2)
    shares = [*rng.uniform(0.1, 0.9, 29).tolist(), 1.0]
    graded = [
        replace(case(i, "expert" if share == 1 else "near_miss", rng=rng), grade=Grade(share, share == 1))
        for i, share in enumerate(shares)
    ]
    figures = judge("noise", scorer(REWARDS["noise"]), Division(judged=graded), resamples=60).figures
    for name in ("kendall_tau", "ranking_acc"):
        assert figures[name].low < figures[name].value < figures[name].high
    gap = figures["succ_fail_diff"]  # of one success and one worst: what its error is nobody knows
    assert not math.isnan(gap.value)
    assert math.isnan(gap.low)
    assert math.isnan(gap.high)


def test_an_interval_over_tasks_of_one_success_and_one_failure_draws_the_tasks():
    rng = np.random.default_rng(3)
    each = {
        f"task {k}": judge(
            "noise",
            scorer(REWARDS["noise"]),
            Division(judged=[case(2 * k, "expert", rng=rng), case(2 * k + 1, "random", rng=rng)]),
            resamples=10,
        )
        for k in range(12)
    }
    assert all(math.isnan(one.figures["auroc"].low) for one in each.values())
    figure = over_tasks(each).figures["auroc"]
    assert 0 < figure.low < figure.value < figure.high < 1


@pytest.mark.parametrize("read", ["first", "all"])
def test_the_frames_of_one_film_are_in_memory_at_a_time(monkeypatch, read):
    """Also of the episodes that are asked about the other tasks."""

    class Bright:
        name, frames_read = "bright", read

        def __init__(self, task: str) -> None:
            self.of = 1.0 if task == "task 0" else 2.0

        def score(self, features):
            seen = features.frames["main"].float().mean((2, 3, 4)).expand(features.main.shape[:2])
            return self.of * seen

    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def film(i: int):
        def frames() -> np.ndarray:
            nonlocal most
            shown = np.full((3, 8, 8, 3), 10 * (i + 1), np.uint8)
            alive.append(weakref.ref(shown))
            most = max(most, sum(each() is not None for each in alive))
            return shown

        return BenchmarkFilm(task=f"task {i // 4}", source="s", frames=frames, success=True, quality=2.0)

    encoder = FakeEncoder()

    def made(parts, *others):
        return {"bright": Scorer(encoder, {"bright": Bright(parts)}, WeightedSum(), PotentialShaping())}

    monkeypatch.setattr(benchmarking, "make_scorers", made)
    monkeypatch.setattr(benchmarking, "reward_parts", lambda config, task: task)
    films = [film(i) for i in range(8)]
    tasks = {("s", f"task {k}"): range(4 * k, 4 * k + 4) for k in range(2)}
    config = OmegaConf.create({"benchmark": "rbm-ood", "confusion": 4})
    said = benchmarking._score(config, encoder, BENCHMARKS["rbm-ood"], films, tasks)["bright"]
    assert said.elsewhere == [(i // 4, [10.0 * (i + 1), 20.0 * (i + 1)]) for i in range(8)]
    assert most <= 2  # the one that is read, and the one before it


@pytest.mark.parametrize("name", ["rbm-ood", "roboreward", "oxe"])
def test_intervals_of_a_benchmark_draw_tasks_and_episodes(name):
    """One episode of each quality and task, or an instruction of its own each: what is drawn must be something else."""
    rng, count = np.random.default_rng(0), 60
    films, ends = [], rng.random(count)
    for i in range(count):
        level = int(rng.integers(1, 6))
        told = {
            "rbm-ood": {"task": f"task {i // 3}", "success": i % 3 == 2, "quality": float(i % 3)},
            "roboreward": {"task": f"task {i}", "success": level == 5, "quality": float(level), "level": level},
            "oxe": {"task": f"task {i}", "success": True, "quality": 2.0},
        }[name]
        films.append(BenchmarkFilm(source=f"source {i // 30}", frames=lambda: np.zeros(0), **told))
    said = Said(ends=list(ends), values=[rng.random(8) for _ in range(count)])
    said.voc_spearman = said.voc_pearson = [rng.random() if film.success else math.nan for film in films]
    benchmark = replace(BENCHMARKS[name], figures=tuple(f for f in BENCHMARKS[name].figures if f != "confusion_margin"))
    figures = _figures(benchmark, films, said, resamples=60, seed=0).figures
    assert set(figures) == set(benchmark.figures)
    for figure in figures.values():
        assert math.isnan(figure.value) or figure.low < figure.value < figure.high


@pytest.mark.parametrize("others", [0, 4])
def test_of_a_source_s_only_task_the_episodes_are_drawn(others):
    """Beside another source, whose tasks all have the same figure, as much as alone."""
    rng, films, ends = np.random.default_rng(1), [], []
    for task in ("only", *(f"other {k}" for k in range(others))):
        for quality in (0.0, 1.0, 2.0) * (8 if task == "only" else 1):
            source = "one" if task == "only" else "many"
            told = {"task": task, "source": source, "success": quality == 2, "quality": quality}
            films.append(BenchmarkFilm(frames=lambda: np.zeros(0), **told))
            ends.append(float(rng.random()) if task == "only" else quality)
    benchmark = replace(BENCHMARKS["rbm-ood"], figures=("kendall_tau", "ranking_acc", "succ_fail_diff"))
    said = Said(ends=ends, values=[rng.random(8) for _ in films])
    found = _figures(benchmark, films, said, resamples=60, seed=0)
    only = policy_ranking_tau(ends[:24], [film.quality for film in films[:24]])
    assert found.figures["kendall_tau"].value == pytest.approx(np.mean([only, 1.0]) if others else only)
    assert found.sources["one"]["kendall_tau"] == only
    for figure in found.figures.values():
        assert figure.low < figure.value < figure.high


def test_noise_widens_intervals_and_they_hold_the_figure(judged):
    for name in ("auroc", "frame_auroc", "epic", "voc"):
        noisy, perfect = judged["noisy"].figures[name], judged["perfect"].figures[name]
        assert noisy.low <= noisy.value <= noisy.high
        assert noisy.high - noisy.low > perfect.high - perfect.low


def test_the_motionless_share_ignores_scale_and_offset_and_knows_shaping():
    division = divide(cases())
    lingers = REWARDS["lingers"]
    plain = judge("plain", scorer(lingers), division, resamples=10).figures["motionless"].value
    moved = judge("moved", scorer(lambda t, n: 7 * lingers(t, n) - 40), division, resamples=10)
    assert moved.figures["motionless"].value == pytest.approx(plain, abs=1e-4)
    by_hand = []
    for group in ("still", "success", "random"):
        rows = []
        for each in division.judged:
            if each.group == ("success" if group == "still" else group):
                said = potential(scorer(lingers), each.episode.features)
                rows.append(said[0] if group == "still" else said[1:].mean())
        by_hand.append(np.mean(rows))
    assert plain == pytest.approx((by_hand[0] - by_hand[2]) / (by_hand[1] - by_hand[2]), abs=1e-5)
    shaped = judge("shaped", scorer(lingers, kind="difference", discount=1.0), division, resamples=10)
    assert abs(shaped.figures["motionless"].value) < 0.6 < plain + 0.6  # standing still earns no difference


def test_wrong_goals_are_paid_by_a_reward_that_does_not_read_them():
    division = divide(cases())
    perfect, deaf = scorer(REWARDS["perfect"]), scorer(lambda truth, noise: 0 * truth)
    reads = judge("reads", perfect, division, wrong=[deaf], resamples=10)
    assert reads.canaries["wrong instruction"].gain.value == 0
    ignores = judge("ignores", perfect, division, wrong=[perfect, deaf], resamples=10)
    assert ignores.canaries["wrong instruction"].gain.value == pytest.approx(0.5)
    assert ignores.canaries["wrong instruction"].films == 2 * reads.canaries["wrong instruction"].films
    given = verdict(ignores)
    assert (given.level, given.uses[0]) == ("care", "a dense reward")
    assert "Beware: it hardly reads the instruction, and pays 50% for another" in given.text


def test_progress_counts_every_film():
    division, seen = divide(cases()), []
    judge("r", scorer(REWARDS["perfect"]), division, wrong=[scorer(REWARDS["noise"])], resamples=5,
          canary_films=3, tick=lambda: seen.append(1))  # fmt: skip
    assert len(seen) == films(division, wrong=1, canary_films=3)


def test_the_threshold_comes_from_other_episodes():
    """A threshold chosen on the judged ends would be at 0.85; the fit split's is elsewhere."""
    rng = np.random.default_rng(1)
    fit = [case(i, kind, rng=rng) for i, kind in enumerate(["expert", "near_miss", "expert", "random"])]
    low = [Case(episode=c.episode, index=10 + c.index, kind=c.kind, solved=c.solved) for c in fit]
    division = Division(fit=fit[2:], judged=low)
    ends = [float(potential(scorer(REWARDS["perfect"]), c.episode.features)[c.end]) for c in fit[2:]]
    assert judge("r", scorer(REWARDS["perfect"]), division, resamples=5).threshold == pytest.approx(np.mean(ends))


def test_the_parts_of_a_division_never_meet_and_keep_the_groups():
    everything = cases(each=10)
    division = divide(everything, demos=4, share=0.25, seed=3)
    indices = [[c.index for c in part] for part in (division.demos, division.fit, division.judged)]
    assert sorted(i for part in indices for i in part) == list(range(30))
    assert [c.group for c in division.demos] == ["success"] * 4
    assert sorted(c.group for c in division.fit) == ["near miss"] * 2 + ["random"] * 2 + ["success"] * 2
    assert len(divide(everything[:3], demos=5).demos) == 1  # half at most
    assert divide(everything[:1]).judged
    for each, share in ((1, 0.9), (2, 0.8), (4, 0.9)):  # the judged part was empty, and the data said to hold none
        assert {c.group for c in divide(cases(each=each), share=share).judged} == {c.group for c in everything}
    drawn = [[c.index for c in divide(everything, seed=seed).judged] for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("kinds", "missing"),
    [(("near_miss", "random"), "successes"), (("expert",), "failures beside successes"), ((), "successes")],
)
def test_figures_that_the_data_cannot_give_are_nan_and_the_verdict_says_why(kinds, missing):
    division = divide([c for c in cases() if c.kind in kinds])
    judged = judge("r", scorer(REWARDS["perfect"]), division, resamples=20)
    assert math.isnan(judged.figures["auroc"].value)
    assert math.isnan(judged.figures["somers_d"].value) or kinds == ("near_miss", "random")
    given = verdict(judged)
    assert given.level == "unknown"
    assert given.text == f"Cannot be judged: the data hold no {missing}."
    assert "NaN" not in json.dumps(to_json(judged), allow_nan=False)


def test_without_labels_of_rows_the_ends_are_calibrated_and_whole_episodes_are_ordered():
    division = divide(cases(labelled=False))
    judged = judge("r", scorer(REWARDS["perfect"]), division, resamples=20)
    assert math.isnan(judged.figures["frame_auroc"].value)
    assert judged.calibration is not None
    assert judged.calibration.counts.sum() == len(division.judged)
    assert 0.9 < judged.figures["voc"].value < 1  # the rest at the end is tied


def test_the_end_of_a_success_is_its_last_solved_row():
    rng = np.random.default_rng(0)
    expert = case(0, "expert", rng=rng)
    assert (expert.end, expert.clip) == (T - 1, 19)
    solved = np.zeros(T, bool)
    solved[[10, 11, 12]] = True
    undone = Case(episode=expert.episode, index=0, solved=solved)
    assert (undone.end, undone.clip) == (12, 11)
    miss = case(1, "near_miss", rng=rng)
    assert (miss.end, miss.clip, miss.group) == (T - 1, T, "near miss")
    assert case(2, "random", rng=rng).group == "random"


def test_a_reward_that_gives_nan_is_named():
    with pytest.raises(FloatingPointError, match="head 'says'"):
        judge("r", scorer(lambda truth, noise: truth / 0), divide(cases(each=2)), resamples=5)


def test_what_is_kept_of_an_episode_is_its_numbers_alone(judged):
    assert all(each.base is None for each in judged["perfect"].potentials.values())  # no tensor stays behind them


def test_json_is_plain(judged):
    plain = to_json(judged["perfect"])
    assert plain["figures"]["auroc"]["value"] == 1
    assert plain["calibration"]["error"] == plain["figures"]["ece"]["value"]
    assert len(plain["potentials"][str(next(iter(judged["perfect"].potentials)))]) == T
    assert to_json(Figure()) == {"value": None, "low": None, "high": None}


def test_a_result_is_written_part_by_part(judged):
    """The same as at once, and no part holds more than one episode's numbers."""
    result = {"rewards": judged, "nothing": {}, "no number": math.nan}
    parts = list(json_parts(result))
    assert json.loads("".join(parts)) == json.loads(json.dumps(to_json(result)))
    assert max(map(len, parts)) < 5000 < len("".join(parts))


def test_of_very_many_rows_some_are_read(monkeypatch):
    division = divide(cases(20))
    every = judge("noisy", scorer(REWARDS["noisy"]), division, resamples=10).figures["frame_auroc"].value
    monkeypatch.setattr(figures_module, "ROWS", 600)
    some = judge("noisy", scorer(REWARDS["noisy"]), division, resamples=10).figures["frame_auroc"].value
    assert some != every
    assert some == pytest.approx(every, abs=0.1)


def test_the_page_on_judge_says_what_each_column_is():
    page = (Path(__file__).parents[2] / "docs" / "howto" / "judge.md").read_text("utf-8")
    (rows,) = re.findall(r"^\| column .*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    told = {name for row in rows.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert told == {short for _, short, *_ in COLUMNS.values()} | {"ms"}
