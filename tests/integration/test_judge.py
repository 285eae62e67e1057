"""`embodied judge` from a LeRobot folder to a page, with a tiny encoder; what it says of data that lack something."""

from __future__ import annotations

import itertools
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embodied import cli
from embodied.datasets import Writer
from tests.lerobot_folders import add_column
from tests.pages import Page

T, SIZE = 10, 32
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (1,), "names": ["gripper_x"]},
    "action": {"dtype": "float32", "shape": (1,), "names": ["a"]},
    "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    "next.success": {"dtype": "bool", "shape": (1,), "names": None},
}


def pictures(progress: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A red bar that grows with progress over noisy grey."""
    frames = np.full((len(progress), SIZE, SIZE, 3), 120, np.uint8)
    frames += rng.integers(0, 20, frames.shape, np.uint8)
    for frame, share in zip(frames, progress, strict=True):
        frame[:, : round(share * SIZE)] = (220, 20, 20)
    return frames


def write(root, kinds, *, leave: tuple[str, ...] = (), tasks: tuple[str, ...] = ("fill the bar",)):
    """Experts, near misses and random episodes of tasks, one after another, that are solved at full progress."""
    rngs = {task: np.random.default_rng(number) for number, task in enumerate(tasks)}
    features = {name: feature for name, feature in FEATURES.items() if name not in leave}
    ends = {"expert": 1.0, "near_miss": 0.7, "random": 0.05}
    with Writer(root, fps=10, features=features, cameras={"front": (SIZE, SIZE)}) as writer:
        for kind, task in itertools.product(kinds, tasks):
            progress = ends[kind] * np.clip(np.arange(T + 1) / 7, 0, 1)
            columns = {
                "observation.state": progress[:-1, None].astype(np.float32),
                "action": np.zeros((T, 1), np.float32),
                "next.reward": progress[1:, None].astype(np.float32),
                "next.success": (progress[1:, None] >= 1),
            }
            frames = {"front": pictures(progress[:-1], rngs[task])}
            writer.add({k: columns[k] for k in features}, frames, instruction=task, kind=kind)
    return root


@pytest.fixture
def judge(tiny_clip, tmp_path, monkeypatch):
    """Run the verb in an empty folder; returns its exit status."""
    monkeypatch.chdir(tmp_path)

    def run(data, *words) -> int:
        encoder = ["encoder=open_clip", f"encoder.model={tiny_clip}"]
        return cli.main(["judge", f"data={data}", "resamples=20", "run=out", *encoder, *words])

    return run


def test_a_folder_becomes_a_page_a_table_and_figures(judge, tmp_path, capsys):
    data = write(tmp_path / "data", ["expert", "near_miss", "random"] * 4)
    assert judge(data, "reward=clip", "wrong=[press the button, fill the bar]") == 0
    out = capsys.readouterr().out
    header, *rows = out.splitlines()
    named = "reward order reversed margin tau_a D AUROC AP precision recall frames EPIC ECE still ms"
    assert header.split() == named.split()
    assert [row.split()[0] for row in rows[:3]] == ["clip", "constant", "clock"]
    assert rows[1].split()[2:7] == ["0.00", "0.00", "\N{EN DASH}", "0.00", "0.00"]
    assert rows[2].split()[2:4] == ["1.00", "-1.00"]
    result = json.loads((tmp_path / "out" / "judgement.json").read_text())
    clip = next(iter(result["rewards"].values()))
    assert clip["canaries"]["wrong instruction"]["films"] == clip["canaries"]["frozen"]["films"]  # its own is left out
    assert set(clip["potentials"]) <= {str(i) for i in range(12)}
    assert result["verdicts"]["clock"]["level"] == "avoid"
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    tags = Page()
    tags.feed(page)
    assert tags.open == []
    assert all(link.startswith("data:") for link in tags.links)
    assert not re.search(r"https?://|url\(|@import", page)
    assert sum(link.startswith("data:image/jpeg") for link in tags.links) == 4  # two of each kind
    for text in (
        "fill the bar",
        "Canaries",
        "Reliability",
        "judged on",
        "thresholds from",
        "Where this comes from",
        "ms a frame",
    ):
        assert text in page, text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower()
    assert not list((tmp_path / "out").glob(".*.part*"))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["verb"] == "judge"


def test_episodes_that_a_person_marks_ask_for_the_outcome(judge, tmp_path, capsys):
    """The bar is the goal; marked near misses are poses that end where the bar is not full."""
    kinds = ["expert", "near_miss", "random"] * 4
    notes = ("", "mimed", "", "", "mimed", "") + ("",) * 6
    data = write(tmp_path / "data", kinds)
    add_column(data, "note", "string", notes)
    assert judge(data, "reward=clip", "kind=note") == 0
    clip = next(iter(json.loads((tmp_path / "out" / "judgement.json").read_text())["rewards"].values()))
    assert set(clip["credit"]) == {"mimed"}
    assert clip["figures"]["margin"]["value"] == pytest.approx(1 - clip["credit"]["mimed"]["value"], abs=1e-5)
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    for text in ("Outcome or pose", "mimed: the robot moves as in the success", "outcome margin"):
        assert text in page
    assert "part ways, so a reward" not in page
    capsys.readouterr()
    assert judge(data, "reward=clip", "kind=next.reward", "run=other") == 2
    assert "kind must name a column of texts" in capsys.readouterr().err


def test_data_without_successes_leave_figures_undefined_and_say_so(judge, tmp_path, capsys):
    data = write(tmp_path / "data", ["near_miss", "random"] * 3, leave=("next.reward",))
    assert judge(data, "worst=0") == 0
    out = capsys.readouterr().out
    assert "clip: Cannot be judged: the data hold no successes." in out
    assert out.splitlines()[1].split()[1] == "\N{EN DASH}"
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "There are no successes" in page
    assert "EPIC is undefined" in page
    assert "no reward to recommend" in page


def test_unlabelled_demonstrations_are_refused_or_taken_for_successes(judge, tmp_path, capsys):
    data = write(tmp_path / "data", ["expert"] * 4, leave=("next.success",))
    assert judge(data) == 2
    assert "add unlabelled=success" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert judge(data, "unlabelled=success") == 0
    assert "the data hold no failures beside successes" in capsys.readouterr().out
    assert "There are only successes" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_a_killed_judgement_leaves_no_report(judge, tmp_path, monkeypatch):
    from embodied.judging import report as judge_report

    def stop(*args):
        raise KeyboardInterrupt

    data = write(tmp_path / "data", ["expert", "random"] * 2)
    monkeypatch.setattr(judge_report, "film", stop)
    assert judge(data) == 130
    assert not list((tmp_path / "out").glob("report*"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["fit=1.0"], "fit must be between 0 and 1"),
        (["canaries=0"], "canaries must be at least 1; got 0"),
        (["unlabelled=maybe"], "unlabelled must be skip or success; got 'maybe'"),
        (["reward=true"], "reward must be one that sees"),
        (["data=desk-drawr-mixed"], "desk-drawer-mixed"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(judge, tmp_path, capsys, words, text):
    data = write(tmp_path / "data", ["expert", "random"]) if words == ["reward=true"] else tmp_path / "nowhere"
    assert judge(data, *words) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_reward_is_not_judged_on_what_it_is_fitted_to(judge, tmp_path, capsys):
    data = write(tmp_path / "data", ["expert", "random"] * 2)
    assert judge(data, "reward=process", f"++reward.demos={data}") == 2
    assert "reward.process.demos must be other episodes than the judged ones" in capsys.readouterr().err


def test_without_a_world_demonstrations_are_successes_that_are_not_judged():
    from embodied.judging.rewards import demos_wanted, with_other_goal

    parts = {
        "clip": {"goal": "a"},
        "process": {"goal": "a", "demos": 3},
        "stored": {"goal": "a", "model": "m", "demos": 3},
    }
    assert {name: demos_wanted(part) for name, part in parts.items()} == {"clip": 0, "process": 3, "stored": 0}
    assert with_other_goal(parts, "b") == {"clip": {"goal": "b"}}  # the others were shown what to do


def judgement(tmp_path, run: str = "out"):
    return json.loads((tmp_path / run / "judgement.json").read_text())["rewards"]["clip"]


def test_tasks_in_one_dataset_are_judged_as_if_they_were_apart(judge, tmp_path):
    """Two tasks merged: each one's figures are those of its own dataset, and the mean is told."""
    kinds, tasks = ["expert", "near_miss", "random"] * 3, ("fill the bar", "paint it red")
    merged = write(tmp_path / "merged", kinds, tasks=tasks)
    assert judge(merged, "reward=clip", "run=both", "confusion=2") == 0
    both = judgement(tmp_path, "both")
    alone = {}
    for number, task in enumerate(tasks):
        data = only(merged, tmp_path / f"task-{number}", number, len(tasks))
        assert judge(data, "reward=clip", f"run=one-{number}") == 0
        alone[task] = judgement(tmp_path, f"one-{number}")
        assert np.isnan(float(alone[task]["figures"]["confusion_margin"]["value"] or "nan"))
    for name in (
        "auroc",
        "ap",
        "tau_a",
        "voc_pearson",
        "kendall_tau",
        "ranking_acc",
        "succ_fail_diff",
        "success_auprc",
    ):
        each = [alone[task]["figures"][name]["value"] for task in tasks]
        assert [both["tasks"][task]["figures"][name]["value"] for task in tasks] == pytest.approx(each, abs=1e-6), name
        assert both["figures"][name]["value"] == pytest.approx(np.mean(each), abs=2e-6), name
    matrix = np.array([[both["confusion"][asked][task] for task in tasks] for asked in tasks])
    expected = (matrix[0, 0] + matrix[1, 1] - matrix[0, 1] - matrix[1, 0]) / 2
    assert both["figures"]["confusion_margin"]["value"] == pytest.approx(expected, abs=2e-6)
    page = (tmp_path / "both" / "report.html").read_text("utf-8")
    assert "confusion_margin" in page
    assert "mean over the tasks in which it is defined" in page


def only(merged, root, number: int, tasks: int):
    """A copy of a dataset whose other tasks' episodes have no label and are left out."""
    shutil.copytree(merged, root)
    file, info = root / "data/chunk-000/file-000.parquet", root / "meta/info.json"
    rows = pq.read_table(file)
    mine = [i % tasks == number for i in rows["episode_index"].to_pylist()]
    told = [value if own else None for value, own in zip(rows["next.success"].to_pylist(), mine, strict=True)]
    place = rows.column_names.index("next.success")
    pq.write_table(rows.set_column(place, "next.success", pa.array(told, pa.bool_())), file)
    assert json.loads(info.read_text())["features"]["next.success"]["dtype"] == "bool"
    return root


@pytest.mark.parametrize(
    ("dtype", "values", "defined"),
    [
        ("string", ["successful", "suboptimal", "failure"], {"kendall_tau", "ranking_acc", "succ_fail_diff"}),
        ("int64", [5, 4, 1], {"kendall_tau", "ranking_acc", "succ_fail_diff", "mae_ordinal"}),
        ("float32", [1.0, 0.7, 0.05], {"kendall_tau", "ranking_acc", "succ_fail_diff"}),
    ],
)
def test_foreign_data_are_graded_by_a_column(judge, tmp_path, dtype, values, defined):
    """Without next.success, the column says what succeeded as well."""
    data = write(tmp_path / "data", ["expert", "near_miss", "random"] * 4, leave=("next.success",))
    add_column(data, "level", dtype, values * 4)
    assert judge(data, "reward=clip", "quality=level") == 0
    figures = judgement(tmp_path)["figures"]
    asked = {"kendall_tau", "ranking_acc", "succ_fail_diff", "mae_ordinal"}
    ends = [values[-1] for values in judgement(tmp_path)["potentials"].values()]
    if min(ends) < 0 or max(ends) > 1:  # a potential in another unit has no level
        defined = defined - {"mae_ordinal"}
    assert {name for name in asked if figures[name]["value"] is not None} == defined
    assert judgement(tmp_path)["successes"] == 3  # one of the four is for the threshold
    if dtype == "string":
        assert judgement(tmp_path)["canaries"]["near miss"]["films"] == 3


def test_a_quality_column_that_cannot_be_read_is_named(judge, tmp_path, capsys):
    data = write(tmp_path / "data", ["expert", "random"] * 2)
    add_column(data, "level", "string", ["good", "bad"] * 2)
    assert judge(data, "reward=clip", "quality=level") == 2
    assert "level" in (told := capsys.readouterr().err)
    assert "must hold failure, suboptimal, successful; got 'good'" in told
    assert judge(data, "reward=clip", "quality=levels") == 2
    assert "did you mean level?" in capsys.readouterr().err
    assert judge(data, "reward=clip", "quality=observation.images.front") == 2
    assert "a column of texts or numbers" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["judge", "label", "audit"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["reward=pretrained", "reward.model=roboreward-4b", "reward.weights=nowhere"], "give reward.weights=FOLDER"),
        (["reward=topreward_chat", "reward.vlm.url=null", "reward.vlm.model=nowhere"], "nowhere"),
        (["reward=process", "reward.model=nowhere"], "must be a folder with head.json"),
    ],
)
def test_missing_weights_are_told_before_anything_is_collected(
    tiny_clip, tmp_path, monkeypatch, capsys, verb, words, told
):
    monkeypatch.chdir(tmp_path)
    encoder = ["encoder=open_clip", f"encoder.model={tiny_clip}"]
    assert cli.main([verb, "data=desk-drawer-mixed", *encoder, *words]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_are_told_before_counterfactual_episodes_are_collected(judge, tmp_path, capsys):
    data = write(tmp_path / "data", ["expert", "random"] * 2)
    about = json.loads((data / "meta" / "embodied.json").read_text())
    (data / "meta" / "embodied.json").write_text(json.dumps(about | {"env": {"id": "embodied/desk-drawer-v0"}}))
    words = ["reward=[clip,pretrained]", "reward.pretrained.model=grm-3b", "reward.pretrained.weights=nowhere"]
    assert judge(data, *words) == 2
    assert "give reward.weights=FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
