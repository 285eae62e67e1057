"""`embodied judge` from a LeRobot folder to a page, with a tiny encoder; what it says of data that lack something."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest

from embodied import cli
from embodied.datasets import Writer

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


def write(root, kinds, *, leave: tuple[str, ...] = ()):
    """Experts, near misses and random episodes of a task that is solved at full progress."""
    rng = np.random.default_rng(0)
    features = {name: feature for name, feature in FEATURES.items() if name not in leave}
    ends = {"expert": 1.0, "near_miss": 0.7, "random": 0.05}
    with Writer(root, fps=10, features=features, cameras={"front": (SIZE, SIZE)}) as writer:
        for kind in kinds:
            progress = ends[kind] * np.clip(np.arange(T + 1) / 7, 0, 1)
            columns = {
                "observation.state": progress[:-1, None].astype(np.float32),
                "action": np.zeros((T, 1), np.float32),
                "next.reward": progress[1:, None].astype(np.float32),
                "next.success": (progress[1:, None] >= 1),
            }
            frames = {"front": pictures(progress[:-1], rng)}
            writer.add({k: columns[k] for k in features}, frames, instruction="fill the bar", kind=kind)
    return root


@pytest.fixture
def judge(tiny_clip, tmp_path, monkeypatch):
    """Run the verb in an empty folder; returns its exit status."""
    monkeypatch.chdir(tmp_path)

    def run(data, *words) -> int:
        encoder = ["encoder=open_clip", f"encoder.model={tiny_clip}"]
        return cli.main(["judge", f"data={data}", "resamples=20", "run=out", *encoder, *words])

    return run


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href")]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


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
    file, info = data / "data/chunk-000/file-000.parquet", data / "meta/info.json"
    rows = pq.read_table(file)
    pq.write_table(rows.append_column("note", [[notes[i] for i in rows["episode_index"].to_pylist()]]), file)
    about = json.loads(info.read_text())
    about["features"]["note"] = {"dtype": "string", "shape": [1], "names": None}
    info.write_text(json.dumps(about))
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
    from embodied.commands.judge import _demos, _with_goal

    parts = {
        "clip": {"goal": "a"},
        "process": {"goal": "a", "demos": 3},
        "stored": {"goal": "a", "model": "m", "demos": 3},
    }
    assert {name: _demos(part) for name, part in parts.items()} == {"clip": 0, "process": 3, "stored": 0}
    assert _with_goal(parts, "b") == {"clip": {"goal": "b"}}  # the others were shown what to do
