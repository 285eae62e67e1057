"""progress.csv and evaluations.jsonl: resumed ones one end, links are not written through."""

import csv
import json

from embodied import runs
from embodied.reports.page import read_progress
from embodied.training.log import RunLog


def rows(file):
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_row_has_what_was_recorded_and_is_read_by_the_report(tmp_path):
    log = RunLog(tmp_path)
    for value in (1.0, 3.0):
        log.record_mean("rollout/ep_env_rew_mean", value)
    log.write(64)
    log.close()
    assert rows(tmp_path / "progress.csv") == [{"rollout/ep_env_rew_mean": "2.0", "time/total_timesteps": "64"}]
    assert read_progress(tmp_path / "progress.csv")["rollout/ep_env_rew_mean"] == ([64.0], [2.0])


def test_a_resumed_log_goes_on_along_its_own_curve(tmp_path):
    (tmp_path / "progress.csv").write_text("rollout/ep_env_rew_mean,time/total_timesteps\n2.0,64\n")
    log = RunLog(tmp_path, steps=64)
    log.load_state({"last": {}, "means": {"rollout/ep_env_rew_mean": [3.0, 1.0]}})
    log.record_mean("rollout/ep_env_rew_mean", 5.0)
    log.write(128)
    log.close()
    assert [row["rollout/ep_env_rew_mean"] for row in rows(tmp_path / "progress.csv")] == ["2.0", "4.0"]


def test_a_linked_file_is_replaced_and_not_written_through(tmp_path):
    other, folder = tmp_path / "other.csv", tmp_path / "run"
    folder.mkdir()
    other.write_text('time/total_timesteps,a b\n10,"x,y"\n20,z\n')
    before = other.read_text()
    (folder / "progress.csv").symlink_to(other)
    log = RunLog(folder, steps=10)
    log.record({"new": 1.5})
    log.write(15)
    log.close()
    assert other.read_text() == before
    assert not (folder / "progress.csv").is_symlink()
    assert rows(folder / "progress.csv") == [
        {"time/total_timesteps": "10", "a b": "x,y", "new": ""},
        {"time/total_timesteps": "15", "a b": "", "new": "1.5"},
    ]


def test_half_a_row_and_half_a_line_of_a_killed_run_are_dropped(tmp_path):
    (tmp_path / "progress.csv").write_text("time/total_timesteps,a\n10,1\n,")
    (tmp_path / "evaluations.jsonl").write_text('{"steps": 10}\n{"steps": 30}\n{"ste')
    RunLog(tmp_path, steps=20).close()
    assert rows(tmp_path / "progress.csv") == [{"time/total_timesteps": "10", "a": "1"}]
    assert (tmp_path / "evaluations.jsonl").read_text() == '{"steps": 10}\n'


def test_a_run_has_one_last_evaluation_however_often_it_is_resumed(tmp_path):
    file = tmp_path / "evaluations.jsonl"
    for line in ({"steps": 5}, {"steps": 10, "final": True}, {"steps": 10, "final": True}, {"steps": 12}):
        runs.append_line(file, line)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"steps": 5}, {"steps": 10, "final": True}, {"steps": 12},
    ]  # fmt: skip
    runs.append_line(file, {"steps": 20, "final": True})
    assert [json.loads(line)["steps"] for line in file.read_text().splitlines()] == [5, 12, 20]
