"""Sinks: what is watched can be read back by others' readers, also after a kill and on a full disk."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from embodied.cameras.camera import Frame
from embodied.datasets import Dataset
from embodied.errors import UserError
from embodied.sinks import make_sinks
from embodied.sinks.background import Background
from embodied.sinks.dataset import Episodes
from embodied.sinks.files import Appended
from embodied.sinks.jsonl import LinesOut, Readings, make_parquet, read_lines
from embodied.sinks.overlay import Overlay, Painter
from embodied.sinks.record import recover
from embodied.sinks.recover import main as recover_main
from embodied.watching.watched import line
from tests.watching_moments import image, moment

ALL = ("jsonl", "parquet", "overlay", "lerobot", "rerun", "mcap")
DEADLINE_S = 90


def write_all(sinks, moments):
    for each in moments:
        for sink in sinks:
            sink.write(each)
    for sink in sinks:
        sink.close()


def decoded(path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def mcap_messages(path) -> list[tuple[str, dict]]:
    from mcap.reader import make_reader

    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        assert reader.get_summary().chunk_indexes
        return [(channel.topic, json.loads(message.data)) for _, channel, message in reader.iter_messages()]


def rrd(verb, path) -> str:
    from embodied.sinks.rerun_live import viewer_binary

    done = subprocess.run([viewer_binary(), "rrd", verb, path], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


class TestLine:
    def test_everything_but_images_and_no_nan(self):
        made = line(replace(moment(3), smoothed=float("nan")))
        json.dumps(made, allow_nan=False)
        assert (made["row"], made["smoothed"], made["frame_index"]) == (3, None, {"front": 3})
        assert made["potentials"] == moment(3).reading.potentials

    def test_a_stale_moment_has_no_numbers(self):
        made = line(moment(3, stale=True))
        assert made["stale"]
        assert (made["reward"], made["potentials"], made["latency_s"]) == (None, {}, None)


class TestAppended:
    def test_a_piece_that_does_not_fit_leaves_none_of_itself(self, tmp_path, size_limit):
        with Appended(tmp_path / "a") as file:
            file.write(b"x" * 3000)
            with size_limit(5000), pytest.raises(OSError, match="too large"):
                file.write(b"y" * 3000)
            file.write(b"z" * 10)
        assert (tmp_path / "a").read_bytes() == b"x" * 3000 + b"z" * 10

    def test_a_full_device_is_an_oserror(self, tmp_path):
        (tmp_path / "full").symlink_to("/dev/full")
        sink = Readings(tmp_path / "full", parquet=False)
        with pytest.raises(OSError, match="No space left"):
            sink.write(moment(0))
        sink.close()


class TestLinesOut:
    def test_a_slow_reader_of_a_live_source_misses_whole_lines(self):
        reads, writes = os.pipe()
        with os.fdopen(reads, "rb") as reader, os.fdopen(writes, "wb") as writer:
            sink = LinesOut(writer.fileno(), live=True)
            began = time.monotonic()
            for k in range(400):  # far more than a pipe holds
                sink.write(moment(k, goal="g" * 900))
            assert time.monotonic() - began < 10  # it did not wait
            assert sink.skipped > 100
            os.set_blocking(reader.fileno(), False)
            got = reader.read()
            sink.write(moment(1000))
            sink.close()
            got += reader.read()
        rows = [json.loads(each)["row"] for each in got.splitlines()]  # every line is whole
        assert rows[:3] == [0, 1, 2]
        assert rows[-1] == 1000
        assert len(rows) + sink.skipped == 401

    def test_a_reader_that_went_away_is_an_oserror(self):
        reads, writes = os.pipe()
        os.close(reads)
        with os.fdopen(writes, "wb") as writer, pytest.raises(BrokenPipeError):
            LinesOut(writer.fileno(), live=False).write(moment(0))


class TestReadings:
    def test_parquet_has_a_row_a_line_and_a_column_a_head(self, tmp_path):
        sink = Readings(tmp_path / "readings.jsonl", parquet=True)
        write_all([sink], [moment(0), moment(1, stale=True), moment(2, event="a mark")])
        table = pq.read_table(tmp_path / "readings.parquet").to_pydict()
        assert table["row"] == [0, None, 2]
        assert table["potential/clip"] == [0.0, None, moment(2).reading.potentials["clip"]]
        assert table["stale"] == [False, True, False]
        assert table["event"] == [None, None, "a mark"]
        assert table["frame_index/front"] == [0, 0, 2]

    def test_a_line_cut_short_ends_the_lines(self, tmp_path):
        path = tmp_path / "readings.jsonl"
        write_all([Readings(path, parquet=False)], [moment(k) for k in range(3)])
        path.write_bytes(path.read_bytes()[:-20])
        assert [each["row"] for each in read_lines(path)] == [0, 1]
        assert pq.read_table(make_parquet(path)).num_rows == 2

    def test_no_room_for_the_table_leaves_the_lines(self, tmp_path, size_limit):
        path = tmp_path / "readings.jsonl"
        sink = Readings(path, parquet=True)
        for k in range(3):
            sink.write(moment(k))
        with size_limit(100), pytest.raises(OSError, match="too large"):
            sink.close()
        assert [each.name for each in tmp_path.iterdir()] == ["readings.jsonl"]
        assert len(list(read_lines(path))) == 3
        assert recover(tmp_path) == ["readings.parquet: made from readings.jsonl"]


class TestBackground:
    class Slow:
        name = "slow"

        def __init__(self):
            self.taken, self.closed, self.fail = [], 0, None

        def write(self, watched):
            time.sleep(0.02)
            if self.fail:
                raise self.fail
            self.taken.append(watched.reading.row)

        def close(self):
            self.closed += 1

    def test_recorded_sources_wait_and_live_ones_skip(self):
        slow = self.Slow()
        write_all([Background(slow, live=False, room=2)], [moment(k) for k in range(20)])
        assert slow.taken == list(range(20))
        slow = self.Slow()
        sink = Background(slow, live=True, room=2)
        write_all([sink], [moment(k) for k in range(20)])
        assert sink.skipped > 0
        assert len(slow.taken) + sink.skipped == 20
        assert slow.closed == 1

    @pytest.mark.parametrize("live", [True, False])
    def test_its_error_reaches_the_writer_once(self, live):
        slow = self.Slow()
        slow.fail = OSError(28, "full")
        sink = Background(slow, live=live, room=2)
        until = time.monotonic() + DEADLINE_S
        with pytest.raises(OSError, match="full"):  # noqa: PT012
            while time.monotonic() < until:
                sink.write(moment(0))
        sink.close()
        sink.close()
        assert slow.closed == 1


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
        write_all([Episodes(tmp_path, live=False, fps=10)], moments)
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

    def test_live_moments_lie_on_an_even_grid_and_no_reward_is_lost(self, tmp_path):
        at = [0.0, 0.04, 0.11, 0.52, 0.6]  # rows 0, 0, 1, 5, 6 at 10 fps; rows 2 to 4 repeat row 1
        moments = [replace(moment(k), at_s=100 + at_s) for k, at_s in enumerate(at)]
        write_all([Episodes(tmp_path, live=True, fps=10)], moments)
        dataset = Dataset(tmp_path / "dataset")
        rows = dataset.columns(0, ["reward.combined", "potential.clip", "timestamp"])
        np.testing.assert_allclose(rows["potential.clip"].ravel(), [0, 0.2, 0.2, 0.2, 0.2, 0.3, 0.4], atol=1e-6)
        np.testing.assert_allclose(rows["reward.combined"].ravel(), [0.2, 0, 0, 0, 0.1, 0.1, 0], atol=1e-6)
        np.testing.assert_allclose(rows["timestamp"].ravel(), np.arange(7) / 10, atol=1e-6)

    def test_old_pictures_are_marked_and_then_end_the_episode(self, tmp_path):
        moments = [replace(moment(k), at_s=k / 10) for k in range(5)]
        moments += [replace(moment(k, stale=True), at_s=k / 10) for k in range(5, 30)]
        moments += [replace(moment(k), at_s=k / 10) for k in range(30, 33)]
        write_all([Episodes(tmp_path, live=True, fps=10)], moments)
        dataset = Dataset(tmp_path / "dataset")
        lengths = [dataset.length(i) for i in range(len(dataset))]
        assert lengths == [16, 3]  # five fresh, a second of stale ones; then what came after
        assert dataset.columns(0, ["stale"])["stale"].ravel().tolist() == [False] * 5 + [True] * 11

    def test_odd_sizes_other_views_and_unscored_moments(self, tmp_path):
        odd = {"a/b": Frame(image=image(0, 33, 47), captured_s=0.0, index=0)}
        moments = [replace(moment(0), frames=odd), replace(moment(1), frames=odd, reading=None)]
        write_all([Episodes(tmp_path, live=False, fps=10)], moments)
        dataset = Dataset(tmp_path / "dataset")
        assert dataset.recording(0).frames["a_b"].shape == (2, 32, 46, 3)
        assert dataset.columns(0, ["scored"])["scored"].ravel().tolist() == [True, False]

    def test_another_run_goes_on_in_the_dataset_or_beside_it(self, tmp_path):
        for views in (("front",), ("front",), ("front", "side")):
            frames = {view: Frame(image=image(0), captured_s=0.0, index=0) for view in views}
            write_all([Episodes(tmp_path, live=False, fps=10)], [replace(moment(k), frames=frames) for k in range(3)])
        assert len(Dataset(tmp_path / "dataset")) == 2
        assert len(Dataset(tmp_path / "dataset-002")) == 1

    def test_a_full_disk_keeps_the_journal_and_recovery_packs_it_once(self, tmp_path, size_limit):
        sink = Episodes(tmp_path, live=False, fps=10)
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

    def test_a_kill_between_packing_and_clearing_records_nothing_twice(self, tmp_path, monkeypatch):
        sink = Episodes(tmp_path, live=False, fps=10)
        with monkeypatch.context() as patch:
            patch.setattr("embodied.sinks.dataset.shutil.rmtree", lambda folder, **_: None)
            write_all([sink], [moment(k) for k in range(4)])
        assert list((tmp_path / ".journal").iterdir())
        recover(tmp_path)
        assert len(Dataset(tmp_path / "dataset")) == 1
        assert not (tmp_path / ".journal").exists()


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


class TestRecord:
    def test_every_format_of_one_run_and_the_next(self, tmp_path):
        for run in range(2):
            write_all(make_sinks(live=False, record=tmp_path, formats=ALL), [moment(k) for k in range(12)])
            tail = "-002" if run else ""
            assert len(list(read_lines(tmp_path / f"readings{tail}.jsonl"))) == 12
            assert pq.read_table(tmp_path / f"readings{tail}.parquet").num_rows == 12
            assert len(decoded(tmp_path / f"overlay{tail}.mp4")) == 12
            assert len(mcap_messages(tmp_path / f"watch{tail}.mcap")) == 24
            shown = rrd("stats", tmp_path / f"watch{tail}.rrd")
            for path in ("/observation.images.front", "/reward/clip", "/reward/combined", "/success", "frame_index"):
                assert path in shown
            assert len(Dataset(tmp_path / "dataset")) == run + 1

    def test_one_writer_at_a_time(self, tmp_path):
        sinks = make_sinks(live=False, record=tmp_path, formats=["jsonl"])
        with pytest.raises(UserError, match="another process records there"):
            make_sinks(live=False, record=tmp_path)
        write_all(sinks, [moment(0)])
        write_all(make_sinks(live=False, record=tmp_path, formats=["jsonl"]), [moment(0)])

    def test_what_cannot_be_asked_for(self, tmp_path):
        with pytest.raises(UserError, match="did you mean parquet"):
            make_sinks(live=False, record=tmp_path, formats=["parket"])
        with pytest.raises(UserError, match="view must be web or window"):
            make_sinks(live=False, view="tv")
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="cannot be written"):
            make_sinks(live=False, record=tmp_path / "file")
        assert recover_main([str(tmp_path / "none")]) == 2

    def test_a_missing_extra_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "rerun", None)
        monkeypatch.setitem(sys.modules, "mcap.records", None)
        for name in ("rerun", "mcap"):
            with pytest.raises(UserError, match=rf'pip install "embodied-rewards\[{name}\]"'):
                make_sinks(live=False, record=tmp_path, formats=[name])

    def test_rerun_with_nothing_left_to_write(self, tmp_path):
        from embodied.sinks.rerun_view import RerunFile

        write_all([RerunFile(tmp_path / "w.rrd", live=False)], [moment(0)])
        assert "/reward/clip" in rrd("stats", tmp_path / "w.rrd")

    def test_rerun_takes_any_name(self, tmp_path):
        from embodied.sinks.rerun_view import RerunFile

        named = moment(1)
        reading = named.reading._replace(potentials={"the cup/mug is upright!": 0.5})
        write_all([RerunFile(tmp_path / "w.rrd", live=False)], [replace(named, reading=reading)])
        assert r"/reward/the\ cup\/mug\ is\ upright\!" in rrd("stats", tmp_path / "w.rrd")

    def test_curves_in_rerun_break_where_there_was_no_reading(self, tmp_path):
        from embodied.sinks.rerun_view import RerunFile

        for gap in ((), (3, 4)):
            write_all([RerunFile(tmp_path / "w.rrd", live=False)], [moment(k, stale=k in gap) for k in range(8)])
            cleared = set(re.findall(r" - (/\S+) - .*Clear", rrd("print", tmp_path / "w.rrd")))
            paths = {"/reward/clip", "/reward/combined", "/normalised/clip", "/latency_ms/total"}
            assert cleared & paths == (paths if gap else set())

    def test_rerun_says_when_the_disk_is_full(self, tmp_path, size_limit):
        from embodied.sinks.rerun_view import RerunFile

        sink = RerunFile(tmp_path / "w.rrd", live=False)
        with size_limit(300_000):
            with pytest.raises(OSError, match="too large"):  # noqa: PT012
                for k in range(2000):
                    sink.write(moment(k, noise=True))
            with contextlib.suppress(OSError):
                sink.close()
        assert "/reward/clip" in rrd("stats", tmp_path / "w.rrd")


class TestKill:
    def test_a_killed_run_loses_at_most_its_last_second(self, tmp_path):
        """A real process, killed in the middle of writing; 20 moments a second by their own clock."""
        code = (
            "import sys, time; from pathlib import Path; from dataclasses import replace\n"
            "from embodied.sinks import make_sinks; from tests.watching_moments import moment\n"
            f"sinks = make_sinks(live=True, record=Path(sys.argv[1]), formats={ALL!r}, fps=20)\n"
            "for k in range(10**6):\n"
            "    for sink in sinks: sink.write(replace(moment(k, episode=int(k > 20)), at_s=k / 20))\n"
            "    while any(sink.waiting for sink in sinks if hasattr(sink, 'waiting')):\n"
            f"        time.sleep(0.001); assert time.monotonic() < {time.monotonic() + DEADLINE_S}\n"
            "    print(k, flush=True)\n"
        )
        root = tmp_path / "session"
        process = subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout:
            last = next(int(each) for each in process.stdout if int(each) >= 50)
            process.send_signal(signal.SIGKILL)
            last = max([last, *(int(each) for each in process.stdout if each.endswith("\n"))])  # still on its way
        process.wait()
        last_s = last / 20
        before = {each["row"]: each["at_s"] for each in read_lines(root / "readings.jsonl")}
        assert max(before.values()) > last_s - 0.11
        assert decoded(root / "overlay.mp4")[-1].time > last_s - 1
        assert "/reward/clip" in rrd("stats", root / "watch.rrd")
        assert recover_main([str(root)]) == 0
        assert pq.read_table(root / "readings.parquet").num_rows == len(before)
        seen = [each["at_s"] for topic, each in mcap_messages(root / "watch.mcap") if topic == "reading"]
        assert max(seen) > last_s - 1
        dataset = Dataset(root / "dataset")
        assert len(dataset) == 2
        assert sum(dataset.length(i) for i in range(2)) / 10 > last_s - 0.3
        assert dataset.recording(1).frames["front"].shape[0] == dataset.length(1)


class TestLiveView:
    def test_a_viewer_gets_what_was_written(self, tmp_path):
        from embodied.sinks.rerun_live import LOOPBACK, LiveView, free_port, viewer_binary

        view = LiveView(window=False, live=True, grpc_port=0, web_port=0)
        saved = tmp_path / "got.rrd"
        command = [viewer_binary(), "--bind", LOOPBACK, "--port", str(free_port(0)), "--save", saved]
        reader = subprocess.Popen(
            [*command, view.address.split("=")[1].replace("%2B", "+")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            k, until = 0, time.monotonic() + DEADLINE_S
            while time.monotonic() < until:
                view.write(moment(k))
                k += 1
                time.sleep(0.02)
                if k % 50 == 0 and saved.exists() and b"observation.images.front" in saved.read_bytes():
                    break
        finally:
            reader.terminate()
            reader.wait()
            view.close()
        shown = rrd("stats", saved)
        for path in ("/observation.images.front", "/reward/clip", "/latency_ms/total", "/goal"):
            assert path in shown

    def test_served_on_loopback_alone_and_gone_with_its_owner(self, tmp_path):
        from urllib.request import urlopen

        from embodied.sinks.rerun_live import LiveView

        view = LiveView(window=False, live=True, grpc_port=0, web_port=0)
        try:
            with urlopen(view.address, timeout=DEADLINE_S) as page:
                assert b"rerun" in page.read().lower()
            ports = {int(part.split("/")[0]) for part in view.address.split(":") if part.split("/")[0].isdigit()}
            assert len(ports) == 2
            assert listening(ports) == {"127.0.0.1"}
        finally:
            view.close()
        assert soon(lambda: listening(ports) == set())

    def test_a_viewer_that_was_closed_is_an_oserror(self):
        from embodied.sinks.rerun_live import LiveView

        view = LiveView(window=False, live=True, grpc_port=0, web_port=0)
        for each in viewers(view._process.pid):
            os.kill(each, signal.SIGKILL)
        until = time.monotonic() + DEADLINE_S
        with pytest.raises(ConnectionError, match="viewer was closed"):  # noqa: PT012
            while time.monotonic() < until:
                view.write(moment(0))
        view.close()

    def test_a_viewer_that_hangs_stops_nobody(self, monkeypatch):
        from embodied.sinks import rerun_live

        monkeypatch.setattr(rerun_live, "END_S", 0.5)
        view = rerun_live.LiveView(window=False, live=True, grpc_port=0, web_port=0)
        hung = viewers(view._process.pid)
        for each in hung:
            os.kill(each, signal.SIGSTOP)
        k, until = 0, time.monotonic() + DEADLINE_S
        while not view.skipped and time.monotonic() < until:
            began = time.monotonic()
            view.write(moment(k, noise=True))
            assert time.monotonic() - began < 5
            k += 1
            time.sleep(0.002)
        assert view.skipped
        view.close()
        assert soon(lambda: not any(alive(each) for each in hung))


def soon(true) -> bool:
    """Whether it becomes true: the kernel takes its time to bury a process."""
    until = time.monotonic() + DEADLINE_S
    while not true() and time.monotonic() < until:
        time.sleep(0.02)
    return true()


def viewers(group) -> list[int]:
    """Processes of Rerun in a group."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            same = int(each.joinpath("stat").read_text().rsplit(")", 1)[1].split()[2]) == group
            if same and each.joinpath("comm").read_text().strip() == "rerun":
                found.append(int(each.name))
    assert found
    return found


def alive(process) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def listening(ports) -> set[str]:
    """Addresses on which this machine listens at these ports, IPv4 and IPv6."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for each in Path(table).read_text().splitlines()[1:]:
            address, port = each.split()[1].split(":")
            if int(port, 16) in ports and each.split()[3] == "0A":
                packed = bytes.fromhex(address)[::-1]
                found.add(".".join(map(str, packed)) if len(packed) == 4 else address)
    return found


@pytest.fixture
def size_limit():
    """A file size that this process cannot pass: writing fails as on a full disk."""

    @contextlib.contextmanager
    def limit(size):
        former = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)
            signal.signal(signal.SIGXFSZ, handler)

    return limit
