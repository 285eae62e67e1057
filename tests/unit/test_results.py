"""Benchmark results are recorded whole, with where they come from; pages and the README's table are made of them."""

import json

import pytest

from benchmarks.common import load, record, record_part
from benchmarks.public_protocol import mean_of
from benchmarks.table import BEGIN, END, HEADLINES, Headline, files, headlines, pages, stale, updated

ROW = {
    "claim": "ten goals | one",
    "value": 1.0512,
    "unit": "x",
    "bar": "<= 1.1",
    "met": True,
    "n": 5,
    "seeds": [0, 1, 2],
}


def test_a_record_says_where_it_comes_from(tmp_path):
    file = record("goals", [ROW | {"interval": [1.01, 1.09], "note": "kept"}], folder=tmp_path)
    (row,) = json.loads(file.read_text())
    assert {"hardware", "versions", "commit", "command", "date", "note", "interval"} <= set(row)
    assert row["hardware"]["cores"] >= 1
    assert {"python", "torch", "mujoco", "gymnasium", "stable_baselines3", "open_clip_torch"} <= set(row["versions"])
    assert [p.name for p in tmp_path.iterdir()] == ["goals.json"]


def test_a_row_recorded_before_keeps_where_it_comes_from(tmp_path):
    record("goals", [ROW | {"commit": "abc", "date": "2026-01-01"}], folder=tmp_path)
    before = load(tmp_path)
    record("goals", [*before, ROW | {"claim": "new"}], folder=tmp_path)
    first, second = load(tmp_path)
    assert [first] == before
    assert second["date"] != "2026-01-01"


def test_a_part_that_is_measured_again_leaves_the_rest_on_record(tmp_path):
    record("goals", [ROW | {"claim": "drawer: 0.5"}, ROW | {"claim": "place: 0.1"}], folder=tmp_path)
    record("poses", [ROW], folder=tmp_path)
    record_part("goals", [ROW | {"claim": "place: 0.2"}], folder=tmp_path)
    assert [row["claim"] for row in load(tmp_path) if row["benchmark"] == "goals"] == ["place: 0.2", "drawer: 0.5"]


@pytest.mark.parametrize("rows", [[], [{"claim": "x", "unit": "s"}], [ROW, {"value": 1}]])
def test_an_incomplete_record_is_refused_and_nothing_written(tmp_path, rows):
    with pytest.raises(ValueError, match="record: "):
        record("goals", rows, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missed_bar_stays_visible(tmp_path):
    record("b", [ROW | {"met": False, "value": 1.3}], folder=tmp_path)
    record("a", [ROW | {"interval": [1.01, 1.09]}], folder=tmp_path)
    made = pages(load(tmp_path))
    assert "| ten goals \\| one | 1.051 x (1.01 to 1.09) | <= 1.1 | yes | n = 5, 3 seeds |" in made["a.md"].splitlines()
    assert "| ten goals \\| one | 1.3 x | <= 1.1 | **no** | n = 5, 3 seeds |" in made["b.md"].splitlines()
    index = made["README.md"].splitlines()
    assert any(line.startswith("| [a](a.md) |") and line.endswith("| 1 of 1 bars met |") for line in index)
    assert any(line.startswith("| [b](b.md) |") and line.endswith("| 0 of 1 bars met |") for line in index)


def test_a_page_tells_how_far_seeds_are_apart_and_what_was_otherwise_before(tmp_path):
    rows = [ROW | {"by_seed": [0.9, 1.0, 0.5]}, ROW | {"claim": "no", "value": 0.0, "interval": [3e-18, 0.2]}]
    record("families_press_earlier", rows, folder=tmp_path)
    page = pages(load(tmp_path))["families_press_earlier.md"]
    assert "| n = 5, 3 seeds (0.5 to 1) |" in page
    assert "| 0 x (0 to 0.2) |" in page
    assert "read the simulator's state" in page
    assert "3 seeds |" in headlines(load(tmp_path), [Headline("families_press_earlier", "ten goals")])


def test_a_headline_is_the_first_row_that_begins_so(tmp_path):
    record("b", [ROW | {"claim": "other"}, ROW | {"met": False}, ROW | {"value": 9.0}], folder=tmp_path)
    rows = load(tmp_path)
    assert headlines(rows, [Headline("b", "ten goals")]).splitlines()[2:] == [
        "| ten goals \\| one | 1.051 x | <= 1.1 | **no** | n = 5, 3 seeds | [b](docs/results/b.md) |"
    ]
    with pytest.raises(ValueError, match="must begin with 'nine goals'; none does"):
        headlines(rows, [Headline("b", "nine goals")])


def test_a_headline_is_rather_the_very_claim(tmp_path):
    record("b", [ROW | {"claim": "place: over whole chunks"}, ROW | {"claim": "place"}], folder=tmp_path)
    assert headlines(load(tmp_path), [Headline("b", "place")]).splitlines()[2].startswith("| place |")


def test_missed_bars_are_among_the_headlines():
    rows = headlines(load()).splitlines()[2:]
    assert len(rows) == len(HEADLINES) == 8
    assert sum("**no**" in row for row in rows) >= 2


def test_a_page_without_results_goes_and_a_changed_one_is_seen(tmp_path):
    readme, folder = tmp_path / "README.md", tmp_path / "pages"
    folder.mkdir()
    readme.write_text(f"{BEGIN}\n{END}\n")
    (folder / "gone.md").write_text("old")
    wanted = files(load(), readme, folder)
    assert wanted[folder / "gone.md"] is None
    assert set(stale(wanted)) == set(wanted)
    for file, text in wanted.items():
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text, "utf-8")
    assert stale(files(load(), readme, folder)) == []
    (folder / "demo.md").write_text("by hand")
    assert stale(files(load(), readme, folder)) == [folder / "demo.md"]


def test_only_what_lies_between_the_markers_changes():
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert updated(text, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert updated(updated(text, "new"), "new") == updated(text, "new")
    with pytest.raises(ValueError, match="once each"):
        updated("no markers", "new")


def test_the_readme_and_the_pages_show_what_was_measured():
    assert stale(files(load())) == [], "run: python -m benchmarks.table"


def test_a_mean_over_tasks_is_as_sure_as_independent_terms_make_it():
    value, interval = mean_of([{"value": 1.0, "low": 0.7, "high": 1.3}, {"value": 0.0, "low": -0.4, "high": 0.8}])
    assert value == 0.5
    assert interval == pytest.approx([0.5 - 0.25, 0.5 + (0.3**2 + 0.8**2) ** 0.5 / 2])
