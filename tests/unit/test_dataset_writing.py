"""A dataset goes on with what LeRobot, a kill, or other settings left in its folder, and loses nothing of it."""

import gc
import json
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embodied.datasets import Dataset, Writer, copying, layout
from embodied.datasets.columns import with_columns
from embodied.errors import UserError

FEATURES = {"action": {"dtype": "float32", "shape": [2], "names": None}}
SETTINGS = {"fps": 10, "features": FEATURES, "cameras": {"cam": (32, 32)}, "env": {"id": "w"}}


def add(to, value, length=4, **more):
    size, width = to._videos["observation.images.cam"][0], to.features["action"]["shape"][0]
    frames = np.full((length, size, size, 3), 20 * value, np.uint8)
    to.add({"action": np.full((length, width), value, np.float32)}, {"cam": frames}, instruction="a", **more)


def values(root):
    """What each episode holds, by its rows and by its pictures."""
    dataset = Dataset(root)
    rows = [int(dataset.columns(i, ["action"])["action"][0, 0]) for i in range(len(dataset))]
    assert [round(dataset.frames(i, "cam").mean() / 20) for i in range(len(dataset))] == rows
    return rows


def put(table, values):
    for name, value in values.items():
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(value, table.schema.field(name).type))
    return table


# Going on ------------------------------------------------------------------------------------------------


@pytest.fixture
def resumed(tmp_path):
    """A dataset of ours with one more episode by LeRobot, which begins new files and keeps whole numbers as such."""
    root = tmp_path / "a"
    with Writer(root, **SETTINGS) as to:
        add(to, 1)
    with Writer(tmp_path / "b", **SETTINGS) as to:
        add(to, 2)
    film = "videos/observation.images.cam"
    for file in ("data/chunk-000/file-000.parquet", f"{film}/chunk-000/file-000.mp4"):
        (tmp_path / "b" / file).rename((root / file).with_stem("file-001"))
    data = root / "data/chunk-000/file-001.parquet"
    pq.write_table(put(pq.read_table(data), {"episode_index": [1] * 4, "index": range(4, 8)}), data)
    episodes = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet")
    row = {"episode_index": [1], "data/file_index": [1], f"{film}/file_index": [1], "dataset_from_index": [4],
           "dataset_to_index": [8], "meta/episodes/file_index": [1]}  # fmt: skip
    more = put(episodes, row)
    name = "stats/index/min"
    more = more.set_column(more.column_names.index(name), name, pa.array([[4]], pa.list_(pa.int64())))
    pq.write_table(more, root / "meta/episodes/chunk-000/file-001.parquet")
    info = json.loads((root / "meta/info.json").read_text()) | {"total_episodes": 2, "total_frames": 8}
    (root / "meta/info.json").write_text(json.dumps(info))
    assert values(root) == [1, 2]
    return root


def test_episodes_that_lerobot_added_stay(resumed):
    with Writer(resumed, **SETTINGS) as to:
        assert len(to) == 2
        add(to, 3)
    assert values(resumed) == [1, 2, 3]
    (file,) = (resumed / "meta/episodes").glob("*/*.parquet")
    rows = pq.read_table(file).to_pylist()
    assert [row["data/file_index"] for row in rows] == [0, 1, 2]
    assert {row["meta/episodes/file_index"] for row in rows} == {0}
    assert [row["stats/index/min"] for row in rows] == [[0.0], [4.0], [8.0]]


def test_a_dataset_whose_episodes_are_not_all_named_takes_no_more(resumed):
    (resumed / "meta/episodes/chunk-000/file-001.parquet").unlink()
    before = sorted(resumed.rglob("*"))
    with pytest.raises(UserError, match=r"must name episodes 0 to 1, each once, .*; got \[0\]. Write elsewhere"):
        Writer(resumed, **SETTINGS)
    assert sorted(resumed.rglob("*")) == before


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"fps": 30}, "fps"),
        ({"cameras": {"cam": (64, 64)}}, "cameras"),
        ({"features": {"action": {"dtype": "float32", "shape": [3], "names": None}}}, "features"),
        ({"env": {"id": "v"}}, "env"),
    ],
)
def test_a_killed_dataset_goes_on_as_it_began(changed, told, tmp_path):
    """Before the first packing no meta data say what the episodes are; the next writer's settings took their place."""
    root = tmp_path / "a"
    to = Writer(root, **SETTINGS)
    add(to, 1)
    to.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with pytest.raises(UserError, match=rf"must have the {told}\S* of those there, .*; got .*\. Write elsewhere"):
        Writer(root, **SETTINGS | changed)
    with Writer(root, **SETTINGS) as to:
        add(to, 2)
    assert values(root) == [1, 2]


def test_the_disk_keeps_what_meta_data_name_before_the_staged_copies_go(tmp_path, monkeypatch):
    """A power cut left meta data that named empty films."""
    root, synced, sync = tmp_path / "a", [], os.fsync

    def noted(handle):
        staged = any(root.glob(".staging/episode-*"))
        synced.append((os.fstat(handle).st_ino, (root / "meta").is_dir(), staged))
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    with Writer(root, **SETTINGS) as to:
        add(to, 1, last={"cam": np.zeros((32, 32, 3), np.uint8)})
    for path in root.rglob("*"):
        assert (path.stat().st_ino, False, True) in synced, path
    assert (root / "last/cam/episode-000000.png").is_file()
    assert synced[-1] == (root.stat().st_ino, True, True)


# Many episodes ---------------------------------------------------------------------------------------------


def test_a_staged_episode_costs_those_after_it_nothing(tmp_path, monkeypatch):
    """Each looked at every film before it, and kept its statistics in memory."""
    root, looked, state = tmp_path / "a", [], os.stat
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **how: looked.append(self) or stat(self, **how))
    to, counts = Writer(root, **SETTINGS), []
    for k in range(6):
        looked.clear()
        add(to, k)
        counts.append(sum(path.suffix == ".mp4" for path in looked))
    assert counts == [1] * 6
    assert len(pickle.dumps(to._staged)) < 6 * 300
    to.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    held = sum(state(file).st_size for file in root.glob(".staging/*/*.mp4"))
    with Writer(root, **SETTINGS, video_mb=(held + 1) / 1e6) as to:  # what a killed one staged counts
        add(to, 6)
        assert to.staged == 0
        add(to, 7)
        assert to.staged == 1
    assert values(root) == list(range(8))


def test_statistics_are_pooled_as_numbers():
    """As Python's objects those of 50,000 episodes took 2 GB."""
    rng = np.random.default_rng(0)
    parts = [{"a": layout.statistics(rng.random((n, 20, 30))), "b": layout.statistics(rng.random(n))} for n in (3, 5)]
    rows = [{f"stats/{name}/{s}": v for name, of in part.items() for s, v in of.items()} for part in parts * 100]
    table = pa.Table.from_pylist(rows)
    tracemalloc.start()
    found = layout.pooled(table, parts[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * table.nbytes
    counts = np.array([3, *[3, 5] * 100], np.float64)
    share = counts / counts.sum()
    for name in ("a", "b"):
        of = {s: np.array([part[name][s] for part in (parts[0], *parts * 100)]) for s in parts[0][name]}
        np.testing.assert_allclose(found[name]["mean"], np.tensordot(share, of["mean"], 1), rtol=1e-12)
        np.testing.assert_allclose(found[name]["q10"], np.tensordot(share, of["q10"], 1), rtol=1e-12)
        np.testing.assert_array_equal(found[name]["max"], of["max"].max(0))
        assert found[name]["count"] == [int(counts.sum())]
    rows[5] = rows[5] | {"stats/b/std": None}
    assert list(layout.pooled(pa.Table.from_pylist(rows))) == ["a"]  # what is not there for all is told for none


def test_new_columns_keep_their_statistics_as_numbers(tmp_path, monkeypatch):
    root, peaks, pool = tmp_path / "a", [], layout.pool
    with Writer(root, **SETTINGS) as to:
        for _ in range(40):
            add(to, 1, length=2)
    monkeypatch.setattr(layout, "pool", lambda of: peaks.append(tracemalloc.get_traced_memory()[0]) or pool(of))
    dataset, feature = Dataset(root), {"dtype": "float32", "shape": [2000], "names": None}
    monkeypatch.setattr(copying, "copy", lambda root, part, change: shutil.copytree(root, part))
    tracemalloc.start()
    with_columns(dataset, tmp_path / "b", {"x": feature}, lambda i: {"x": np.full((2, 2000), i, np.float32)}, {})
    tracemalloc.stop()
    assert peaks[0] < 1.3 * 40 * 9 * 2000 * 8  # nine statistics of 2000 numbers
    stats = json.loads((tmp_path / "b/meta/stats.json").read_text())["x"]
    assert (stats["min"][0], stats["max"][0], stats["mean"][0], stats["count"]) == (0, 39, pytest.approx(19.5), [80])
    (file,) = (tmp_path / "b/meta/episodes").glob("*/*.parquet")
    assert [row["stats/x/q50"][7] for row in pq.read_table(file).to_pylist()] == list(range(40))


def test_many_episodes_are_no_objects_each(tmp_path):
    """As Python's objects, where 50,000 episodes lie took 34 MB."""
    with Writer(tmp_path / "a", **SETTINGS) as to:
        add(to, 3, length=1)
    few, many = (held(repeated(tmp_path / "a", tmp_path / str(count), count)) for count in (20, 220))
    assert many - few < 100


def repeated(one, root, count):
    """A dataset that has its one episode, of one row, so many times."""
    shutil.copytree(one, root)
    index = np.arange(count)
    counters = {"dataset_from_index": index, "dataset_to_index": index + 1}
    for part, changed in (("meta/episodes", counters), ("data", {"index": index})):
        (file,) = (root / part).rglob("*.parquet")
        table = pq.read_table(file).take(pa.array(0 * index))
        pq.write_table(put(table, {"episode_index": index} | changed), file)
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"total_episodes": count, "total_frames": count}))
    return root


def held(root):
    """How many objects a dataset that has been read from keeps."""
    gc.collect()
    before = len(gc.get_objects())
    dataset = Dataset(root)
    at = len(dataset) - 1
    assert dataset.columns(at, ["action"])["action"].tolist() == [[3, 3]]
    assert (dataset.span(at).index, dataset.length(at), dataset.instruction(at)) == (at, 1, "a")
    gc.collect()
    return len(gc.get_objects()) - before
