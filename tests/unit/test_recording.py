"""Every format of a recording together: full disks, kills, one writer at a time; and the live view."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embodied.datasets import Dataset
from embodied.errors import UserError
from embodied.sinks import make_sinks
from embodied.sinks.files import read_lines
from embodied.sinks.recover import main as recover_main
from tests.unit.test_sinks import decoded, mcap_messages, rrd, write_all
from tests.watching_moments import moment

ALL = ("jsonl", "parquet", "overlay", "lerobot", "rerun", "mcap")
DEADLINE_S = 90


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

    def test_what_others_keep_in_the_folder_stays_theirs(self, tmp_path):
        theirs = {
            "film.mp4.part": b"half a download", "watch_robot.mcap": b"\x89MCAP0\r\nnot ours",
            "readings_of_mine.jsonl": b'{"a": 1}\n',
        }  # fmt: skip
        for name, data in theirs.items():
            (tmp_path / name).write_bytes(data)
        (tmp_path / "readings-002.parquet.part").touch()  # ours, of a run that was killed
        write_all(make_sinks(live=False, record=tmp_path, formats=["jsonl", "parquet"]), [moment(0)])
        assert {name: (tmp_path / name).read_bytes() for name in theirs} == theirs
        left = {each.name for each in tmp_path.iterdir()} - set(theirs)
        assert left == {".lock", "readings.jsonl", "readings.parquet"}

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
