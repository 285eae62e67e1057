"""What benchmarks record: a claim stands only beside its controls, and figures only beside the settings they had."""

import json
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks import distractors, finetune, interventions, libero, metaworld, outcome, practise, safety, tuned
from benchmarks.common import begun_with, train


@pytest.fixture
def recorded(monkeypatch):
    """Claim -> row of what a benchmark recorded last; its options are words."""
    kept: dict[str, dict] = {}

    def run(module, *words, before=()):
        def record(name, rows):
            kept.clear()
            kept.update({row["claim"]: row for row in rows})

        on_record = [{"benchmark": module.__name__.rpartition(".")[2]} | row for row in before]
        monkeypatch.setattr(module, "record", record)
        monkeypatch.setattr("benchmarks.common.load", lambda *_: on_record)
        if hasattr(module, "load"):
            monkeypatch.setattr(module, "load", lambda *_: on_record)
        monkeypatch.setattr(sys, "argv", ["benchmark", *words])
        module.main()
        return kept

    return run


def episodes(solved: int, of: int = 10) -> dict:
    rows = [
        {"seed": k, "success": k < solved, "ever": k < solved, "steps": 3 if k < solved else None} for k in range(of)
    ]
    return {"rows": rows, "execute": 4, "tried": {}}


@pytest.mark.parametrize("seeds", ["seeds=[0]", "seeds=[0,1,2]"])
def test_a_metaworld_control_that_passes_voids_its_claim_for_every_seed(monkeypatch, recorded, seeds):
    solved = {"shipped": 9, "random": 8, "blind": 0}
    monkeypatch.setattr(metaworld, "imitated", lambda task, way, seed, options: episodes(solved[way]))
    rows = recorded(metaworld, 'tasks=["push"]', 'ways=["shipped","random","blind"]', seeds)
    claim = rows[f"push, 25 demonstrations of its expert, {metaworld.WAYS['shipped']}"]
    assert claim["met"] is False
    assert claim["bar"].endswith("void, as a control passes")


def test_a_metaworld_claim_without_its_controls_is_not_met(monkeypatch, recorded):
    monkeypatch.setattr(metaworld, "imitated", lambda task, way, seed, options: episodes(9))
    claim = f"push, 25 demonstrations of its expert, {metaworld.WAYS['shipped']}"
    rows = recorded(metaworld, 'tasks=["push"]', 'ways=["shipped"]')
    assert rows[claim]["met"] is None
    words = [f"push, 25 demonstrations of its expert, {metaworld.WAYS[way]}" for way in ("random", "blind")]
    before: list[dict] = [{"claim": each, "met": True} for each in words]
    assert recorded(metaworld, 'tasks=["push"]', 'ways=["shipped"]', before=before)[claim]["met"] is True
    before[0]["met"] = False
    assert recorded(metaworld, 'tasks=["push"]', 'ways=["shipped"]', before=before)[claim]["met"] is False


def test_a_claim_that_too_few_seeds_meet_is_undecided(monkeypatch, recorded):
    monkeypatch.setattr(metaworld, "imitated", lambda task, way, seed, options: episodes(9 * (way == "shipped")))
    claim = f"push, 25 demonstrations of its expert, {metaworld.WAYS['shipped']}"
    for seeds, met in (("seeds=[0]", None), ("seeds=[0,1,2]", True)):
        rows = recorded(metaworld, 'tasks=["push"]', 'ways=["shipped","random","blind"]', seeds)
        assert rows[claim]["met"] is met
    means = {(way, world): {0: 60.0, 1: 90.0} for way in ("repo", "drawing") for world in ("plain", "moving")}
    kept = distractors.ratio(means, ("repo", "moving"), ("repo", "plain"), "kept", ">= 0.8")[0]
    assert (kept["value"], kept["met"], kept["by_seed"]) == (1.0, None, [1.0, 1.0])
    assert distractors.ratio(means, ("repo", "moving"), ("repo", "plain"), "kept", ">= 1.1")[0]["met"] is False


def test_a_finetune_claim_without_its_controls_is_not_met(monkeypatch, recorded):
    monkeypatch.setattr(finetune, "session", lambda *_: None)
    monkeypatch.setattr(finetune, "played", lambda made, change: episodes(10))
    words = ['tasks=["press"]', "mixed=[]", "language=[]", "chunked=[]", "controls=false", "whole=false"]
    claim = "imitation, press, 50 demonstrations"
    assert recorded(finetune, *words)[claim]["met"] is None
    controls = ["own readings only (control)", "actions of another episode (control)"]
    before = [{"claim": f"imitation, press, {each}", "met": True} for each in controls]
    assert recorded(finetune, *words, before=before)[claim]["met"] is True
    before[1]["met"] = False
    rows = recorded(finetune, *words, before=before)
    assert rows[claim]["met"] is False
    assert rows[claim]["passed"] == [before[1]["claim"]]


def test_a_finished_run_is_taken_for_one_of_the_same_settings_alone(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    command = ["cli.py", "train", "env=desk-drawer", "steps=10", "reward.url=http://a", f"run={folder}"]
    (folder / "run.json").write_text(json.dumps({"status": "finished", "command": command}))
    (folder / "evaluations.jsonl").write_text(json.dumps({"final": True, "success_rate": 0.5}) + "\n")
    free = ("reward.url",)
    settings = ["env=desk-drawer", "steps=10", "reward.url=http://b"]
    assert train(folder, settings, free=free)["success_rate"] == 0.5
    with pytest.raises(SystemExit, match="made with steps=10, and steps=20 is asked for now"):
        train(folder, [word.replace("10", "20") for word in settings], free=free)
    assert (folder / "evaluations.jsonl").exists()


def test_a_folder_goes_on_with_the_settings_that_it_was_begun_with(tmp_path):
    begun_with(tmp_path / "s0", ["steps=10", "execute=2"])
    begun_with(tmp_path / "s0", ["execute=2", "steps=10"])
    with pytest.raises(SystemExit, match="made with execute=2, and execute=4"):
        begun_with(tmp_path / "s0", ["execute=4", "steps=10"])


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """Sessions of `finetune` that begin and train nothing; the datasets that were collected."""
    asked = []
    monkeypatch.setattr(finetune, "ROOT", tmp_path)
    monkeypatch.setattr(tuned, "collect", lambda config: asked.append(config) or range(config.episodes))
    plan = object.__new__(finetune.inputs.PolicyPlan)
    monkeypatch.setattr(finetune.inputs, "plan", lambda config: plan)
    monkeypatch.setattr(finetune.worlds, "worlds_of_data", lambda planned: None)
    monkeypatch.setattr(finetune, "build", lambda encoder: None)
    return asked


def test_episodes_of_other_steps_executed_are_not_told_for_those_asked_for(begun):
    options = finetune.OPTIONS | {"execute": 2}
    made = finetune.session("press", "mixed", 60, 0, options, "all")
    assert finetune.session("press", "mixed", 60, 0, options, "all").folder == made.folder
    more = [f"{key}=1" for key in ("rl.steps", "ranked.moments")]
    assert finetune.session("press", "mixed", 60, 0, options, "all", *more).folder == made.folder
    for other in ({"execute": 4}, {"execute": 0}):
        with pytest.raises(SystemExit, match="execute=2, and"):
            finetune.session("press", "mixed", 60, 0, options | other, "all")
    assert [config.episodes for config in begun] == [60] * 5


def test_more_demonstrations_than_the_claim_says_are_refused(begun, monkeypatch):
    monkeypatch.setattr(tuned, "collect", lambda config: range(80))
    with pytest.raises(SystemExit, match="holds 80 episodes, and 60 are asked for"):
        finetune.session("press", "mixed", 60, 0, finetune.OPTIONS, "all")
    taught = finetune.session("press", "mixed", 60, 0, finetune.OPTIONS, "first-60", exact=False)
    assert taught.config.taught == 60


def test_libero_plays_as_many_starts_as_are_asked_for(begun, monkeypatch, tmp_path):
    monkeypatch.setattr(libero, "ROOT", tmp_path)
    played: list[int] = []
    arena = SimpleNamespace(play=lambda policy, execute, seeds, desc: played.append(len(seeds)) or [*seeds])
    monkeypatch.setattr(libero.judging, "as_rows", lambda rows: rows)
    monkeypatch.setattr(libero.FinetuningRun, "arena", arena)
    policy: Any = None
    for count in (2, 2, 5):
        made = libero.session(2, 0, libero.OPTIONS | {"episodes": count})
        assert len(libero.judged(made, "imitation", policy)["rows"]) == count
    assert played == [2, 5]


def test_interventions_are_judged_on_as_many_episodes_as_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(interventions, "ROOT", tmp_path)
    job = interventions.Job("desk-lift", "alone", 0, 10, 1, 8, "state")
    job.folder.mkdir(parents=True)
    (job.folder / "result.json").write_text(json.dumps({"success_rate": 1.0, "episodes": 4}))
    monkeypatch.setattr(interventions, "compose", lambda *words: pytest.fail("trained anew"))
    with pytest.raises(pytest.fail.Exception, match="trained anew"):
        interventions.run(job)
    (job.folder / "result.json").write_text(json.dumps({"success_rate": 1.0, "episodes": 8}))
    assert interventions.run(job)["episodes"] == 8


def test_outcomes_of_other_numbers_of_starts_are_asked_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(outcome, "ROOT", tmp_path)
    (tmp_path / "drawer-8000-4x3.json").write_text(json.dumps({"kept": 1}))
    options, encoder = outcome.DEFAULTS | {"starts": 4}, cast("Any", None)
    assert outcome.asked("drawer", encoder, options) == {"kept": 1}
    monkeypatch.setattr(outcome, "data", lambda *words: pytest.fail("asked anew"))
    with pytest.raises(pytest.fail.Exception, match="asked anew"):
        outcome.asked("drawer", encoder, options | {"starts": 2})


def test_a_stop_before_a_fault_says_nothing_of_it():
    stop = {"stopped": "observation: late", "expected": False, "commands": 3, "violations": 0, "style": 0,
            "periods": 0.5, "halt_periods": 0.1, "clock_periods": 0.6, "travelled_m": 0.0}  # fmt: skip
    done = [{"index": k, "kind": "camera", "begun": begun, **stop} for k, begun in enumerate((True, False, False))]
    done[2]["periods"] = 3.0
    table = {row["claim"]: row for row in safety.rows(done, safety.OPTIONS)}
    assert table["faults that must stop the arm and did not"]["n"] == 1
    still = table["control periods until the arm stands still after a lost camera, the worst"]
    assert (still["value"], still["n"]) == (0.5, 1)
    assert table["control periods until the arm stands still after any stop, the worst"]["value"] == 3.0


@pytest.mark.parametrize(
    ("seeds", "told"), [((1_000_010, 2_000_010), ", other starts"), ((5, 5), ""), ((None, None), ", other starts")]
)
def test_practice_says_when_it_was_judged_on_other_starts_than_before(seeds, told):
    tally = {
        "said_success": 1,
        "env_said_wrongly": 0,
        "attempts": 2,
        "stuck_resets": 0,
        "planned_resets": 0,
        "stop_resets": 0,
    }
    before, after = (
        {"forward": {"success_rate": rate, "episodes": 20}, "backward": {"success_rate": None, "episodes": 0}}
        | ({} if seed is None else {"seed": seed})
        for rate, seed in zip((0.8, 1.0), seeds, strict=True)
    )
    row = practise.rows([{"seed": 10, "before": before, "after": after, "tally": tally}], 4000)[0]
    assert row["bar"] == f">= 0.95, no seed below its start (0.80 on average{told})"


def test_a_ratio_is_told_of_each_seed():
    rows = [episodes(solved)["rows"] for solved in (5, 8, 0, 4, 8, 3)]
    told = finetune.paired("place, pixels", [{"before": a, "rows": b} for a, b in zip(rows[:3], rows[3:], strict=True)],
                           [0, 1, 2], least=1.5)  # fmt: skip
    assert told["by_seed"] == pytest.approx([0.8, 1.0, 3.0])  # where none succeeds before, as if one had


def test_seeds_that_play_the_same_starts_are_no_more_pairs():
    before, after = episodes(0)["rows"], episodes(5)["rows"]
    once, thrice = tuned.by_start(before, after), tuned.by_start(3 * before, 3 * after)
    assert once == thrice == 0.0625  # five starts of one kind
    told = finetune.paired("place, pixels", 3 * [{"before": before, "rows": after}], [0, 1, 2], least=1.25)
    assert (told["p"], told["better"], told["met"]) == (0.0625, 15, False)
