"""Overlay films, LeRobot datasets and MCAP files that a stream writes."""

import contextlib
import fcntl
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from embodied.cameras.camera import Frame
from embodied.datasets import Dataset, layout
from embodied.sinks import dataset, packing
from embodied.sinks.dataset import DatasetSink
from embodied.sinks.overlay import Overlay, Painter
from embodied.sinks.record import recover
from tests.unit.test_sinks import decoded, mcap_messages, write_all
from tests.watching_moments import image, moment

ALL = ("jsonl", "parquet", "overlay", "lerobot", "rerun", "mcap")
DEADLINE_S = 90


class TestOverlay:
    def test_moments_keep_their_times_and_the_size_stays(self, tmp_path):
        times = [10.0, 10.1, 10.5, 12.0]  # a gap is a gap
        moments = [replace(moment(k), at_s=at_s) for k, at_s in enumerate(times)]
        moments[2] = replace(moments[2], frames={"front": Frame(image=image(2, 40, 90), captured_s=0.0, index=2)})
        write_all([Overlay(tmp_path / "o.mp4")], moments)
        frames = decoded(tmp_path / "o.mp4")
        assert [round(frame.time, 3) for frame in frames] == [0, 0.1, 0.5, 2.0]
        assert len({(frame.width, frame.height) for frame in frames}) == 1

    def test_stale_and_success_show(self):
        painter = Painter()
        plain, stale, success = (
            painter.paint(each).astype(int) for each in (moment(0), moment(1, stale=True), moment(2, success=True))
        )
        assert tuple(plain[100, 1]) != (240, 84, 84)
        assert tuple(stale[100, 1]) == (240, 84, 84)
        assert tuple(success[100, 1]) == (72, 199, 116)

    def test_before_the_first_frame_there_is_nothing_to_show(self, tmp_path):
        write_all([Overlay(tmp_path / "o.mp4")], [replace(moment(0), frames={}, reading=None)])
        assert (tmp_path / "o.mp4").stat().st_size == 0

    def test_two_views_of_other_sizes_and_strange_texts(self):
        views = {"front": image(0, 64, 96), "side": image(0, 50, 30)}
        frames = {name: Frame(image=each, captured_s=0.0, index=0) for name, each in views.items()}
        made = Painter().paint(replace(moment(0), frames=frames, goal="ζ\n開" * 400, normalised={"clip": float("nan")}))
        assert made.shape[0] % 2 == made.shape[1] % 2 == 0

    def test_a_clock_that_stands_still_is_survived(self, tmp_path):
        write_all([Overlay(tmp_path / "o.mp4")], [replace(moment(k), at_s=5.0) for k in range(4)])
        assert len(decoded(tmp_path / "o.mp4")) == 4

    def test_a_full_disk_leaves_a_video_that_plays(self, tmp_path, size_limit):
        sink = Overlay(tmp_path / "o.mp4")
        with size_limit(120_000), pytest.raises(OSError, match="too large"):  # noqa: PT012
            for k in range(600):
                sink.write(moment(k, noise=True))
        with contextlib.suppress(OSError):
            sink.close()
        assert len(decoded(tmp_path / "o.mp4")) > 3


class TestEpisodes:
    def test_recorded_moments_are_rows_and_episodes_are_the_streams(self, tmp_path):
        moments = [moment(k, episode=0) for k in range(5)]
        moments += [moment(k, episode=1, goal="another") for k in range(3)]
        write_all([DatasetSink(tmp_path, live=False, fps=10)], moments)
        dataset = Dataset(tmp_path / "dataset")
        assert [dataset.length(i) for i in range(len(dataset))] == [5, 3]
        first, second = dataset.recording(0), dataset.recording(1)
        assert (first.instruction, second.instruction, first.kind) == ("the drawer is open", "another", "watched")
        assert np.abs(first.frames["front"][3].astype(int) - image(3)).mean() < 4
        rows = dataset.columns(0, ["reward.combined", "potential.clip", "next.done", "scored", "success.predicted"])
        np.testing.assert_allclose(rows["potential.clip"].ravel(), [k / 10 for k in range(5)], atol=1e-6)
        np.testing.assert_allclose(rows["reward.combined"].ravel(), [0.1, 0.1, 0.1, 0.1, 0], atol=1e-6)
        assert rows["next.done"].ravel().tolist() == [False] * 4 + [True]
        assert not (tmp_path / ".journal").exists()

    def test_success_that_is_not_told_has_no_column_and_a_gap_keeps_the_last_word(self, tmp_path):
        silent, told = tmp_path / "silent", tmp_path / "told"
        write_all([DatasetSink(silent, live=False, fps=10)], [moment(k, success=None) for k in range(3)])
        assert "success.predicted" not in Dataset(silent / "dataset").features
        words = [None, True, None, False]
        write_all([DatasetSink(told, live=False, fps=10)], [moment(k, success=word) for k, word in enumerate(words)])
        said = Dataset(told / "dataset").columns(0, ["success.predicted"])["success.predicted"]
        assert said.ravel().tolist() == [True, True, False, False]  # of the next row, and of the last one itself

    def test_live_moments_lie_on_an_even_grid_and_no_reward_is_lost(self, tmp_path):
        at = [0.0, 0.04, 0.11, 0.52, 0.6]  # rows 0, 0, 1, 5, 6 at 10 fps; rows 2 to 4 repeat row 1
        moments = [replace(moment(k), at_s=100 + at_s) for k, at_s in enumerate(at)]
        write_all([DatasetSink(tmp_path, live=True, fps=10)], moments)
        dataset = Dataset(tmp_path / "dataset")
        rows = dataset.columns(0, ["reward.combined", "potential.clip", "timestamp"])
        np.testing.assert_allclose(rows["potential.clip"].ravel(), [0, 0.2, 0.2, 0.2, 0.2, 0.3, 0.4], atol=1e-6)
        np.testing.assert_allclose(rows["reward.combined"].ravel(), [0.2, 0, 0, 0, 0.1, 0.1, 0], atol=1e-6)
        np.testing.assert_allclose(rows["timestamp"].ravel(), np.arange(7) / 10, atol=1e-6)

    def test_old_pictures_are_marked_and_then_end_the_episode(self, tmp_path):
        moments = [replace(moment(k), at_s=k / 10) for k in range(5)]
        moments += [replace(moment(k, stale=True), at_s=k / 10) for k in range(5, 30)]
        moments += [replace(moment(k), at_s=k / 10) for k in range(30, 33)]
        write_all([DatasetSink(tmp_path, live=True, fps=10)], moments)
        dataset = Dataset(tmp_path / "dataset")
        lengths = [dataset.length(i) for i in range(len(dataset))]
        assert lengths == [16, 3]  # five fresh, a second of stale ones; then what came after
        assert dataset.columns(0, ["stale"])["stale"].ravel().tolist() == [False] * 5 + [True] * 11

    def test_odd_sizes_other_views_and_unscored_moments(self, tmp_path):
        odd = {"a/b": Frame(image=image(0, 33, 47), captured_s=0.0, index=0)}
        moments = [replace(moment(0), frames=odd), replace(moment(1), frames=odd, reading=None)]
        write_all([DatasetSink(tmp_path, live=False, fps=10)], moments)
        dataset = Dataset(tmp_path / "dataset")
        assert dataset.recording(0).frames["a_b"].shape == (2, 32, 46, 3)
        assert dataset.columns(0, ["scored"])["scored"].ravel().tolist() == [True, False]

    def test_a_picture_too_small_for_a_film_is_an_oserror_and_leaves_no_journal(self, tmp_path):
        row = moment(0)
        small = {"front": replace(row.frames["front"], image=np.zeros((1, 9, 3), np.uint8))}
        sink = DatasetSink(tmp_path, live=True, fps=10)
        with pytest.raises(OSError, match="got 1 x 9"):
            sink.write(replace(row, frames=small))
        sink.close()
        assert list(tmp_path.iterdir()) == []

    def test_another_run_goes_on_in_the_dataset_or_beside_it(self, tmp_path):
        for views in (("front",), ("front",), ("front", "side")):
            frames = {view: Frame(image=image(0), captured_s=0.0, index=0) for view in views}
            write_all(
                [DatasetSink(tmp_path, live=False, fps=10)], [replace(moment(k), frames=frames) for k in range(3)]
            )
        assert len(Dataset(tmp_path / "dataset")) == 2
        assert len(Dataset(tmp_path / "dataset-002")) == 1

    def test_a_full_disk_keeps_the_journal_and_recovery_packs_it_once(self, tmp_path, size_limit):
        sink = DatasetSink(tmp_path, live=False, fps=10)
        size = image(0).nbytes
        with size_limit(size * 5 + 100):
            with pytest.raises(OSError, match="too large"):  # noqa: PT012
                for k in range(20):
                    sink.write(moment(k))
            sink.close()
        assert not (tmp_path / "dataset").exists()
        recover(tmp_path)
        assert Dataset(tmp_path / "dataset").length(0) == 5
        assert recover(tmp_path) == []
        assert len(Dataset(tmp_path / "dataset")) == 1

    def test_a_kill_between_packing_and_clearing_records_nothing_twice(self, tmp_path):
        sink, journal, copy = DatasetSink(tmp_path, live=False, fps=10), tmp_path / ".journal", tmp_path / "copy"
        for k in range(4):
            sink.write(moment(k))
        (name,) = (each.name for each in journal.iterdir())
        shutil.copytree(journal / name, copy)
        sink.close()
        assert Dataset(tmp_path / "dataset").length(0) == 4
        journal.mkdir()
        copy.rename(journal / name)
        assert recover(tmp_path) == ["dataset: 1 episodes of a run that was killed"]
        assert len(Dataset(tmp_path / "dataset")) == 1
        assert not journal.exists()

    def test_packing_that_dies_is_told_and_loses_nothing(self, tmp_path, monkeypatch):
        sink, killed = DatasetSink(tmp_path, live=False, fps=10), tmp_path / "killed"
        killed.write_text("#!/bin/sh\nkill -9 $$\n")
        killed.chmod(0o700)
        moments = [moment(k, episode=episode) for episode in range(3) for k in range(4)]
        with monkeypatch.context() as patch:
            patch.setattr("sys.executable", str(killed))
            with pytest.raises(OSError, match="exit status -9"):
                write_all([sink], moments)
        sink.close()
        recover(tmp_path)
        dataset = Dataset(tmp_path / "dataset")
        assert len(dataset) >= 1
        assert {dataset.length(i) for i in range(len(dataset) - 1)} <= {4}

    def test_an_episode_s_notes_are_read_once_however_many_are_staged(self, tmp_path, monkeypatch):
        """Each journal read those of all that were staged before it, and those of the finished ones, again."""
        with monkeypatch.context() as patch:
            patch.setattr(dataset, "pack_elsewhere", lambda root, folder=None: None)  # a run that is killed in time
            moments = [moment(k, episode=episode) for episode in range(6) for k in range(3)]
            write_all([DatasetSink(tmp_path, live=False, fps=10)], moments)
        left = sorted((tmp_path / ".journal").iterdir())
        assert len(left) == 6
        read, read_json = [], layout.read_json
        monkeypatch.setattr(layout, "read_json", lambda file: read.append(file.name) or read_json(file))
        for folder in left[:4]:
            read.clear()
            packing._stage(tmp_path, folder)
            staged = len(list((tmp_path / "dataset/.staging").glob("episode-*")))
            assert read.count("episode.json") == staged - 1
        read.clear()
        recover(tmp_path)
        assert read.count("episode.json") == 4 + 6  # to go on, and to pack all
        assert [Dataset(tmp_path / "dataset").length(i) for i in range(6)] == [3] * 6

    def test_a_dataset_that_another_process_writes_is_not_passed_over(self, tmp_path):
        moments = [moment(k) for k in range(4)]
        write_all([DatasetSink(tmp_path, live=False, fps=10)], moments)
        sink = DatasetSink(tmp_path, live=False, fps=10)
        for each in moments:
            sink.write(each)
        lock = tmp_path / "dataset" / ".staging" / "lock"
        lock.parent.mkdir()
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(OSError, match="another process is writing"):
                sink.close()
        assert sorted(each.name for each in tmp_path.iterdir()) == [".journal", "dataset"]
        recover(tmp_path)
        assert len(Dataset(tmp_path / "dataset")) == 2

    def test_what_lies_in_the_working_directory_does_not_run(self, tmp_path, monkeypatch):
        for name in ("queue.py", "embodied.py"):
            (tmp_path / name).write_text("raise SystemExit(9)")
        monkeypatch.chdir(tmp_path)
        write_all([DatasetSink(tmp_path / "record", live=False, fps=10)], [moment(k) for k in range(4)])
        assert Dataset(tmp_path / "record" / "dataset").length(0) == 4

    def test_packing_ends_with_who_wanted_it(self, tmp_path):
        sink = DatasetSink(tmp_path, live=False, fps=10)
        for k in range(4):
            sink.write(moment(k))
        command = [sys.executable, "-m", "embodied.sinks.packing", str(tmp_path)]
        assert subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == 1
        sink.close()
        assert Dataset(tmp_path / "dataset").length(0) == 4


class TestMcap:
    def test_the_reader_finds_messages_and_images(self, tmp_path):
        from embodied.sinks.mcap_file import McapFile

        moments = [moment(k) for k in range(12)]
        moments.append(replace(moment(12, stale=True), frames=moments[-1].frames, at_s=1.3))
        moments[6] = replace(moments[6], time=5.0)  # the wall clock jumps; the record's does not
        write_all([McapFile(tmp_path / "w.mcap")], moments)
        messages = mcap_messages(tmp_path / "w.mcap")
        assert [each["row"] for topic, each in messages if topic == "reading"] == [*range(12), None]
        images = [each for topic, each in messages if topic == "observation.images.front"]
        assert len(images) == 12  # an old picture is not written again
        stamps = [each["timestamp"]["sec"] + each["timestamp"]["nsec"] / 1e9 for each in images]
        np.testing.assert_allclose(np.diff(stamps), [0.1] * 11, atol=1e-6)
        assert images[0]["format"] == "jpeg"

    def test_an_image_s_stamp_is_when_it_was_taken(self, tmp_path):
        from embodied.sinks.mcap_file import McapFile

        late = [replace(each, at_s=each.at_s + 2, time=each.time + 2) for each in map(moment, range(3))]
        write_all([McapFile(tmp_path / "w.mcap")], late)
        images = [each for topic, each in mcap_messages(tmp_path / "w.mcap") if topic != "reading"]
        stamps = [each["timestamp"]["sec"] + each["timestamp"]["nsec"] / 1e9 - 1_700_000_000 for each in images]
        np.testing.assert_allclose(stamps, [0.0, 0.1, 0.2], atol=1e-5)

    def test_a_file_cut_anywhere_is_finished(self, tmp_path):
        from embodied.sinks.mcap_file import McapFile, finish

        path = tmp_path / "w.mcap"
        write_all([McapFile(path)], [moment(k) for k in range(30)])
        whole = path.read_bytes()
        assert not finish(path)
        for keep in (0.3, 0.6, 0.9, (len(whole) - 3) / len(whole)):
            path.write_bytes(whole[: int(len(whole) * keep)])
            assert finish(path)
            rows = [each["row"] for topic, each in mcap_messages(path) if topic == "reading"]
            assert rows == list(range(len(rows)))
            assert len(rows) >= 30 * keep - 8

    def test_without_room_for_the_summary_the_last_chunk_gives_its_own(self, tmp_path, size_limit):
        from mcap.reader import make_reader

        from embodied.sinks.mcap_file import McapFile, finish

        path = tmp_path / "w.mcap"
        write_all([McapFile(path)], [moment(k) for k in range(30)])
        with path.open("rb") as file:
            last = make_reader(file).get_summary().chunk_indexes[-1]
        end = last.chunk_start_offset + last.chunk_length + last.message_index_length
        path.write_bytes(path.read_bytes()[:end])
        with size_limit(end):
            assert finish(path)
        rows = [each["row"] for topic, each in mcap_messages(path) if topic == "reading"]
        assert rows == list(range(len(rows)))
        assert 20 <= len(rows) < 30

    def test_a_full_disk_leaves_a_file_that_reads(self, tmp_path, size_limit):
        from embodied.sinks.mcap_file import McapFile

        sink = McapFile(tmp_path / "w.mcap")
        with size_limit(30_000):
            with pytest.raises(OSError, match="too large"):  # noqa: PT012
                for k in range(500):
                    sink.write(moment(k))
            sink.close()
        rows = [each["row"] for topic, each in mcap_messages(tmp_path / "w.mcap") if topic == "reading"]
        assert rows == list(range(len(rows)))
        assert len(rows) > 4
