"""What benchmarks record: a claim stands only beside its controls, and figures only beside the settings they had."""

import sys

import pytest

from benchmarks import finetune, metaworld


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
