"""Lines, appended files and sinks in the background: what is watched can be read back, whatever happens."""

import json
import os
import subprocess
import threading
import time
from dataclasses import replace

import av
import pyarrow.parquet as pq
import pytest

from embodied.sinks.background import Background
from embodied.sinks.files import Appended, read_lines
from embodied.sinks.jsonl import LinesOut, ReadingsFile, make_parquet
from embodied.sinks.record import recover
from embodied.watching.watched import line
from tests.waiting import until
from tests.watching_moments import moment

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
        sink = ReadingsFile(tmp_path / "full", parquet=False)
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
        sink = ReadingsFile(tmp_path / "readings.jsonl", parquet=True)
        write_all([sink], [moment(0), moment(1, stale=True), moment(2, event="a mark")])
        table = pq.read_table(tmp_path / "readings.parquet").to_pydict()
        assert table["row"] == [0, None, 2]
        assert table["potential/clip"] == [0.0, None, moment(2).reading.potentials["clip"]]
        assert table["stale"] == [False, True, False]
        assert table["event"] == [None, None, "a mark"]
        assert table["frame_index/front"] == [0, 0, 2]

    def test_a_line_cut_short_ends_the_lines(self, tmp_path):
        path = tmp_path / "readings.jsonl"
        write_all([ReadingsFile(path, parquet=False)], [moment(k) for k in range(3)])
        path.write_bytes(path.read_bytes()[:-20])
        assert [each["row"] for each in read_lines(path)] == [0, 1]
        assert pq.read_table(make_parquet(path)).num_rows == 2

    def test_zeros_of_a_power_cut_end_the_lines(self, tmp_path):
        path = tmp_path / "readings.jsonl"
        write_all([ReadingsFile(path, parquet=False)], [moment(k) for k in range(3)])
        path.write_bytes(path.read_bytes() + b"\0" * 512 + b"\n5\n")
        assert recover(tmp_path) == ["readings.parquet: made from readings.jsonl"]
        assert pq.read_table(tmp_path / "readings.parquet").num_rows == 3

    def test_no_room_for_the_table_leaves_the_lines(self, tmp_path, size_limit):
        path = tmp_path / "readings.jsonl"
        sink = ReadingsFile(path, parquet=True)
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
            self.free = threading.Event()

        def write(self, watched):
            assert self.free.wait(DEADLINE_S)
            if self.fail:
                raise self.fail
            self.taken.append(watched.reading.row)

        def close(self):
            self.closed += 1

    def test_recorded_sources_wait_and_live_ones_skip(self):
        slow = self.Slow()
        sink = Background(slow, live=False, room=2)
        writer = threading.Thread(target=write_all, args=([sink], [moment(k) for k in range(20)]))
        writer.start()
        until(lambda: sink.waiting == 2)
        assert writer.is_alive()  # it waits
        slow.free.set()
        writer.join(DEADLINE_S)
        assert slow.taken == list(range(20))
        slow = self.Slow()
        sink = Background(slow, live=True, room=2)
        for k in range(20):
            sink.write(moment(k))
        assert sink.skipped >= 17  # one in hand, two that wait
        slow.free.set()
        sink.close()
        assert len(slow.taken) + sink.skipped == 20
        assert slow.closed == 1

    @pytest.mark.parametrize("live", [True, False])
    def test_its_error_reaches_the_writer_once(self, live):
        slow = self.Slow()
        slow.fail = OSError(28, "full")
        slow.free.set()
        sink = Background(slow, live=live, room=2)
        ends = time.monotonic() + DEADLINE_S
        with pytest.raises(OSError, match="full"):  # noqa: PT012
            while time.monotonic() < ends:
                sink.write(moment(0))
        sink.close()
        sink.close()
        assert slow.closed == 1
