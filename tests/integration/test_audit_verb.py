"""`embodied audit`: what episodes' curves say, which are bad, and a dataset without those."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embodied import cli
from embodied.commands.audit import _told
from embodied.datasets import Dataset, Writer
from embodied.datasets.dropping import drop
from embodied.errors import UserError
from rewards.trace import trace
from tests.lerobot_folders import folder

SIZE, T = 32, 12
ENDS = (1.0, 0.1, 1.0, 0.2, 1.0, 0.9, 0.1, 1.0)
FEATURES = {
    "action": {"dtype": "float32", "shape": (1,), "names": ["a"]},
    "next.success": {"dtype": "bool", "shape": (1,), "names": None},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A bar that grows to a share of the picture; from 0.9 it is a success."""
    root, rng = tmp_path_factory.mktemp("audit") / "bars", np.random.default_rng(0)
    with Writer(
        root, fps=10, features=FEATURES, cameras={"front": (SIZE, SIZE)}, data_mb=1e-5, video_mb=1e-2
    ) as writer:
        for k, end in enumerate(ENDS):
            count = T + k % 3
            frames = rng.integers(100, 120, (count, SIZE, SIZE, 3), np.uint8)
            for t, frame in enumerate(frames):
                frame[:, : round(end * SIZE * t / (count - 1))] = (220, 20, 20)
            solved = (np.arange(count) == count - 1) & (end >= 0.9)
            columns = {"action": np.full((count, 1), k, np.float32), "next.success": solved[:, None]}
            last = {"front": frames[-1], "action": np.float32([k])}
            writer.add(columns, {"front": frames}, instruction=f"fill {k % 2}", kind=f"kind {k}", last=last)
    return root


@pytest.fixture
def audit(tiny_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        encoder = ["encoder=open_clip", f"encoder.model={tiny_clip}", "encoder.precision=fp32"]
        status = cli.main(["audit", "run=out", *encoder, *words])
        file = tmp_path / "out" / "audit.json"
        told = capsys.readouterr()
        return status, json.loads(file.read_text()) if file.is_file() else None, told.out + told.err

    return run


def test_a_success_model_finds_the_bad_episodes_and_they_are_dropped(audit, data, tmp_path):
    words = ["reward=success", f"reward.demos={data}", f"data={data}"]
    status, found, told = audit(*words, "drop=true", "out=clean")
    assert status == 0, told
    said = {each["episode"]: each["verdict"] for each in found["episodes"]}
    assert found["bad"] == [k for k, word in said.items() if word == "bad"]
    sure = {k: word for k, word in said.items() if word != "unsure"}
    assert all((word == "good") == (ENDS[k] >= 0.9) for k, word in sure.items())
    assert len(found["bad"]) >= 2
    assert found["summary"]["agrees_with_recorded"] == 1
    assert f"\nBad: episodes {', '.join(map(str, found['bad']))}\n" in told
    assert found["unsure"] == [k for k, word in said.items() if word == "unsure"]
    kept = [k for k in range(len(ENDS)) if k not in found["bad"]]
    assert [float(Dataset("clean").recording(i).actions[0, 0]) for i in range(len(kept))] == kept
    assert not list((tmp_path / "runs/audit").rglob("*.safetensors"))  # labels on the way are cleared up
    assert len(Dataset(data)) == len(ENDS)  # the source is as it was


def test_a_head_of_another_task_drops_nothing(audit, data, tiny_clip, tmp_path):
    """Every episode of the other task counted as bad, and was left out."""
    encoder = ["encoder=open_clip", f"encoder.model={tiny_clip}", "encoder.precision=fp32"]
    assert cli.main(["fit", "reward=success", f"demos={data}", "goal=fill 0", "out=head", *encoder]) == 0
    words = ["reward=success", "reward.model=head", "goal=fill 0", f"data={data}"]
    status, found, told = audit(*words, "drop=true", "out=clean")
    assert (status, found) == (2, None)
    assert "head was fitted to 'fill 0', and 4 of 8 episodes are of 'fill 1'" in told
    status, found, told = audit(*words)
    assert status == 0, told
    assert "4 of 8 episodes are of 'fill 1'" in told
    assert cli.main(["label", *words, *encoder, "out=labels.parquet"]) == 0


def test_figures_are_those_of_the_curve_of_progress(audit, data, tiny_clip, tmp_path):
    words = ["reward=clip", "goal=a red bar", f"data={data}"]
    status, found, told = audit(*words, "least=0.6")
    assert status == 0, told
    encoder = ["encoder=open_clip", f"encoder.model={tiny_clip}", "encoder.precision=fp32"]
    assert cli.main(["label", *words, *encoder, "out=labels.parquet"]) == 0
    table = pq.read_table("labels.parquet")
    progress, owner = (np.asarray(table[name]) for name in ("progress_sparse", "episode_index"))
    for each in found["episodes"]:
        curve = np.clip(progress[owner == each["episode"]].astype(np.float64), 0, 1)
        expected = trace(curve)
        names = ("reached", "path_efficiency", "regression", "stalls", "recovery")
        assert [each[name] for name in names] == pytest.approx([getattr(expected, name) for name in names], abs=1e-5)
        assert (each["verdict"] == "good") == (curve[-1] >= 0.6)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["reward=true"], "reward=true audits nothing"),
        (["least=1.5"], "least must be between 0 and 1; got 1.5"),
        (["out=x"], "out must be left out without drop=true"),
    ],
)
def test_bad_settings_write_nothing(audit, data, tmp_path, words, text):
    status, found, told = audit("reward=clip", f"data={data}", *words)
    assert (status, found) == (2, None)
    assert text in told
    assert list(tmp_path.iterdir()) == []


def test_an_unsure_episode_is_listed_apart():
    summary = dict.fromkeys(("reached", "path_efficiency", "regression", "stalls", "recovery"), 0.5)
    told = _told(summary | {"good": 1, "bad": 2, "unsure": 1}, {"Bad": [3, 4], "Unsure": [5]}, Path("out"))
    assert "\n1 good, 2 bad, 1 unsure\nBad: episodes 3, 4\nUnsure: episodes 5\n" in told


def test_an_older_dataset_is_refused_before_it_is_audited(audit, tmp_path):
    made = (folder(tmp_path / f"{seed}", seed).root for seed in range(20))
    old = next(root for root in made if "v2.1" in (root / "meta" / "info.json").read_text("utf-8"))
    status, found, told = audit("reward=clip", "goal=a red bar", f"data={old}", "drop=true")
    assert (status, found) == (2, None)
    assert "must be of version 3 to leave episodes out" in told
    assert not (tmp_path / "runs").exists()


# Dropping -----------------------------------------------------------------------------------------------------


def test_what_stays_is_as_it_was(data, tmp_path):
    dataset = Dataset(data)
    made = drop(dataset, [0, 3, 4], tmp_path / "less")
    assert len(made) == 5
    for new, old in enumerate((1, 2, 5, 6, 7)):
        before, after = dataset.recording(old), made.recording(new)
        np.testing.assert_array_equal(before.frames["front"], after.frames["front"])
        np.testing.assert_array_equal(before.actions, after.actions)
        np.testing.assert_array_equal(before.success, after.success)
        assert (before.instruction, before.kind) == (after.instruction, after.kind)
        counters = made.columns(new, ["episode_index", "frame_index", "index"])
        assert set(counters["episode_index"]) == {new}
        start = sum(made.length(i) for i in range(new))
        np.testing.assert_array_equal(counters["index"], start + np.arange(made.length(new)))
        np.testing.assert_array_equal(dataset.last(old)[0]["front"], made.last(new)[0]["front"])
    info = json.loads((tmp_path / "less/meta/info.json").read_text())
    assert (info["total_episodes"], info["total_frames"]) == (5, sum(made.length(i) for i in range(5)))
    stats = json.loads((tmp_path / "less/meta/stats.json").read_text())
    assert stats["action"]["max"] == [7]
    assert stats["action"]["min"] == [1]
    assert stats["action"]["count"] == [info["total_frames"]]
    ends = drop(dataset, [7], tmp_path / "ends")  # the last one of a film
    np.testing.assert_array_equal(ends.frames(6, "front"), dataset.frames(6, "front"))
    again = drop(made, [0], tmp_path / "lesser")  # of what was made so
    assert [float(again.recording(i).actions[0, 0]) for i in range(4)] == [2, 5, 6, 7]


def test_labels_beside_the_data_go_with_their_episodes(data, tmp_path):
    """`embodied label in_place=true` writes them, by the numbers of rows and episodes."""
    root = shutil.copytree(data, tmp_path / "labelled")
    dataset, names = Dataset(root), ["index", "episode_index", "frame_index"]
    columns = {name: np.concatenate([dataset.columns(i, [name])[name] for i in range(8)]) for name in names}
    table = pa.table(columns | {"reward": columns["episode_index"].astype(np.float32)}).replace_schema_metadata(
        {"goals": "[]"}
    )
    pq.write_table(table, root / "clip_progress.parquet", row_group_size=7)
    pq.write_table(pa.table({"reward": [1.0]}), root / "other.parquet")  # nobody knows of what
    made = drop(dataset, [0, 3, 4], tmp_path / "less")
    assert sorted(path.name for path in made.root.glob("*.parquet")) == ["clip_progress.parquet"]
    found = pq.read_table(made.root / "clip_progress.parquet")
    for name in names:
        expected = np.concatenate([made.columns(i, [name])[name] for i in range(len(made))])
        np.testing.assert_array_equal(found[name], expected)
    old = np.array([1, 2, 5, 6, 7])
    np.testing.assert_array_equal(found["reward"], old[np.asarray(found["episode_index"])])
    assert found.schema.metadata[b"goals"] == b"[]"


def test_the_end_of_an_episode_is_its_own_where_another_was_taken_out(data, tmp_path):
    """It was looked up by position, while it is written by number."""
    root = shutil.copytree(data, tmp_path / "some")
    (file,) = (root / "meta/episodes").glob("*/*.parquet")
    rows = [row for row in pq.read_table(file).to_pylist() if row["episode_index"] != 1]
    pq.write_table(pa.Table.from_pylist(rows), file)
    info = json.loads((root / "meta/info.json").read_text()) | {"total_episodes": 7}
    (root / "meta/info.json").write_text(json.dumps(info))
    whole, some = Dataset(data), Dataset(root)
    made = drop(some, [0], tmp_path / "less")
    for i in range(1, 7):
        number = some.span(i).index
        assert number == i + 1
        for found in (some.last(i), made.last(i - 1)):
            np.testing.assert_array_equal(found[0]["front"], whole.last(number)[0]["front"])
            assert found[1]["action"] == [number]


def test_what_cannot_be_dropped_is_told(data, tmp_path):
    dataset = Dataset(data)
    with pytest.raises(UserError, match="all 8 episodes would be left out"):
        drop(dataset, range(8), tmp_path / "none")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="out must be a new folder"):
        drop(dataset, [0], tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_the_curve_of_a_bar():
    assert trace(np.linspace(0, 1, T)).path_efficiency == pytest.approx(1)
