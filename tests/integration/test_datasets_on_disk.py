"""Datasets whose parts are links, copies that must hold everything, full disks, and recordings that were killed."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embodied import cli
from embodied.collecting.opening import open_dataset
from embodied.datasets import Dataset, Writer, copying
from embodied.errors import UserError
from tests.lerobot_folders import number_of, picture

LENGTHS, SIZE = (3, 4), 32
FILM = "videos/observation.images.cam/chunk-000/file-000.mp4"


@pytest.fixture
def root(tmp_path):
    """Two episodes whose pictures show 0, 1, 2, …"""
    root, features = tmp_path / "here" / "set", {"action": {"dtype": "float32", "shape": [1], "names": None}}
    with Writer(root, fps=20, features=features, cameras={"cam": (SIZE, SIZE)}) as writer:
        for k, n in enumerate(LENGTHS):
            frames = {"cam": np.stack([picture(3 * k + t) for t in range(n)])}
            writer.add({"action": np.arange(n, dtype=np.float32)}, frames, instruction="open it")
    return root


def label(tiny_clip, root, *more):
    return cli.main(["label", f"data={root}", "reward=clip", "goal=open", "encoder=open_clip",
                     f"encoder.model={tiny_clip}", "columns=columns", *more])  # fmt: skip


def link(path, disk):
    """`path` becomes a link to where it was moved."""
    disk.mkdir(exist_ok=True)
    path.rename(disk / path.name)
    path.symlink_to(os.path.relpath(disk / path.name, path.parent))


def check(root):
    dataset = Dataset(root)
    shown = [[number_of(image) for image in dataset.frames(i, "cam")] for i in range(2)]
    assert shown == [[0, 1, 2], [3, 4, 5, 6]]
    for i in range(2):
        assert dataset.columns(i, ["reward.clip", "progress.clip"])["reward.clip"].shape == (LENGTHS[i],)
        np.testing.assert_array_equal(dataset.recording(i, cameras=()).actions[:, 0], np.arange(LENGTHS[i]))


@pytest.mark.parametrize(
    ("part", "in_place"),
    [("videos", True), ("videos", False), ("data", True), ("meta", True), (FILM, True), ("data/chunk-000", False)],
)
def test_linked_folders_and_files_are_copied_whole(root, tmp_path, tiny_clip, monkeypatch, part, in_place):
    monkeypatch.chdir(tmp_path)
    disk = tmp_path / "disk"
    link(root / part, disk)
    kept = sorted(path.relative_to(disk) for path in disk.rglob("*"))
    assert label(tiny_clip, root, "in_place=true" if in_place else "out=made") == 0
    check(root if in_place else tmp_path / "made")
    assert sorted(path.relative_to(disk) for path in disk.rglob("*")) == kept  # what the link led to is as it was
    shutil.rmtree(disk)
    check(root if in_place else tmp_path / "made")
    assert [path.name for path in root.parent.iterdir()] == ["set"]


def test_a_link_to_nothing_or_to_a_folder_above_is_refused_and_nothing_is_lost(root, tmp_path, tiny_clip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for target, message in ((tmp_path / "gone", "link to nothing"), (root, "a folder above it")):
        (root / "more").symlink_to(target)
        with pytest.raises(UserError, match=message):
            copying.files(root)
        assert label(tiny_clip, root, "in_place=true") == 2
        assert label(tiny_clip, root, "out=made") == 2
        (root / "more").unlink()
        assert not (tmp_path / "made").exists()
        assert len(Dataset(root)) == 2


def test_a_copy_that_lacks_something_never_takes_the_old_one_s_place(root, tmp_path, tiny_clip, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    real = copying._link

    def lost(source, target):
        if source.suffix != ".mp4":
            real(source, target)

    for wrong in (lost, lambda source, target: target.write_bytes(source.read_bytes()[:-1])):
        monkeypatch.setattr(copying, "_link", wrong)
        assert label(tiny_clip, root, "in_place=true") == 2
        assert f"{FILM}" in capsys.readouterr().err
        assert sorted(path.name for path in root.iterdir()) == ["data", "meta", "videos"]
        assert [path.name for path in root.parent.iterdir() if path.name.endswith((".part", ".old"))] == []
    monkeypatch.setattr(copying, "_link", real)
    assert label(tiny_clip, root, "in_place=true") == 0
    check(root)


def test_a_full_disk_is_told_in_one_line_and_leaves_what_was(root, tmp_path, tiny_clip, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(copying, "_link", full)
    assert label(tiny_clip, root, "out=made") == 2
    error = capsys.readouterr().err
    assert "disk is full" in error
    assert "Traceback" not in error
    assert not (tmp_path / "made").exists()
    assert len(Dataset(root)) == 2


def test_rows_of_an_episode_that_nobody_names_have_no_label(root, tmp_path, tiny_clip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = root / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file).slice(0, 1), file)
    assert label(tiny_clip, root, "out=made", "surplus=after") == 0
    values = pq.read_table(tmp_path / "made/data/chunk-000/file-000.parquet")["reward.clip"].to_numpy()
    assert np.isnan(values).tolist() == [False] * 3 + [True] * 4


def test_a_recording_that_was_killed_is_finished_by_whoever_reads_it(tmp_path):
    """A real process, killed with one episode packed, one a journal, and one in the middle."""
    code = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from embodied.sinks import make_sinks; from tests.watching_moments import moment\n"
        "sinks = make_sinks(live=False, record=Path(sys.argv[1]), formats=['lerobot'], fps=29.97)\n"
        "for k in range(10**6):\n"
        "    for sink in sinks: sink.write(replace(moment(k, episode=k // 20), at_s=k / 20))\n"
        "    print(k, flush=True)\n"
    )
    root = tmp_path / "session"
    process = subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        next(each for each in process.stdout if int(each) >= 50)
        process.send_signal(signal.SIGKILL)
    process.wait()
    dataset = open_dataset(root / "dataset")
    assert dataset.fps == 29.97
    assert len(dataset) >= 2
    assert [dataset.length(i) for i in range(2)] == [20, 20]
    assert dataset.recording(1).frames["front"].shape[0] == 20
    assert not (root / ".journal").exists()
    assert len(open_dataset(root / "dataset")) == len(dataset)


def test_a_recording_that_goes_on_is_left_alone(tmp_path):
    from embodied.sinks import make_sinks
    from tests.watching_moments import moment

    sinks = make_sinks(live=False, record=tmp_path / "session", formats=["lerobot"], fps=10.0)
    for k in range(5):
        for sink in sinks:
            sink.write(moment(k))
    try:
        ends = time.monotonic() + 60
        while not list((tmp_path / "session" / ".journal").glob("*/rows.jsonl")):
            assert time.monotonic() < ends
        with pytest.raises(UserError, match="must be a LeRobot dataset"):
            open_dataset(tmp_path / "session" / "dataset")
    finally:
        for sink in reversed(sinks):
            sink.close()
    assert open_dataset(tmp_path / "session" / "dataset").length(0) == 5


def test_episodes_of_several_tasks_are_labelled_by_a_goal_and_not_by_one_of_them(root, tmp_path, tiny_clip, capsys,
                                                                                 monkeypatch):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    column = pa.array([0, 1, 1, 0, 0, 0, 0])
    pq.write_table(table.set_column(table.column_names.index("task_index"), "task_index", column), file)
    pq.write_table(pa.table({"task_index": [0, 1], "task": ["open it", "shut it"]}), root / "meta/tasks.parquet")
    words = ["label", f"data={root}", "reward=clip", "encoder=open_clip", f"encoder.model={tiny_clip}", "out=a.parquet"]
    assert cli.main(words) == 2
    assert "goal must be given: the frames of episode 0" in capsys.readouterr().err
    assert cli.main([*words, "goal=open it"]) == 0
    assert pq.read_table("a.parquet").num_rows == sum(LENGTHS)
    watch = ["watch", f"source=dataset:{root}#0", "reward=clip", "encoder=open_clip", f"encoder.model={tiny_clip}",
             "view=none", "json=false"]  # fmt: skip
    assert cli.main(watch) == 2
    assert "goal must be given" in capsys.readouterr().err
    assert cli.main([*watch, "goal=shut it"]) == 0
