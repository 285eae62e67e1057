"""`embodied practise` from the command line: the desk's drawer, opened and closed by turns."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

from embodied import files
from embodied.building.worlds import env_maker
from embodied.cli import main
from embodied.collecting.collect import collect
from embodied.commands import practise as verb
from embodied.config import compose
from embodied.practice.demos import open_pair
from embodied.practice.loop import Practice

TASKS = ("drawer", "close")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Three expert episodes of each task, small pictures."""
    folder = tmp_path_factory.mktemp("demos")
    for task in TASKS:
        words = [f"env=desk-{task}", "episodes=3", "image_size=64", "cameras=[front]", f"out={folder / task}"]
        collect(compose("collect", words))
    return folder


@pytest.fixture
def words(datasets, tiny_clip, tmp_path, monkeypatch):
    """A small practice; its features are of random weights, so nobody says anything of worth."""
    monkeypatch.chdir(tmp_path)
    data = [f"forward.demos={datasets / 'drawer'}", f"forward.labelled={datasets / 'drawer'}"]
    data += [f"backward.demos={datasets / 'close'}", f"backward.labelled={datasets / 'close'}"]
    small = ["steps=40", "attempt_steps=8", "policy.pretraining=3", "policy.batch_size=16", "policy.actor=[16]"]
    small += [
        "policy.learning_starts=8",
        "policy.warmup=4",
        "policy.updates_per_step=0.5",
        "eval_episodes=1",
        "videos=0",
        "success.precision=0.5",
        "stuck_after=2",
    ]
    return ["practise", *data, *small, "encoder=open_clip", f"encoder.model={tiny_clip}", "run=run"]


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def parameters(folder):
    found = load_file(files.latest_checkpoint(folder) / "learner.safetensors")
    return [found[name] for name in sorted(found)]


def test_from_demonstrations_to_a_report(words, tmp_path, capsys):
    assert main([*words, "videos=1", "eval_every=20"]) == 0
    folder = tmp_path / "run"
    attempts = lines(folder / "attempts.jsonl")
    assert attempts[-1]["steps_done"] == 40
    assert sum(each["steps"] for each in attempts) == 40
    assert {each["task"] for each in attempts} <= {"forward", "backward"}
    assert all(isinstance(each["env_success"], bool) for each in attempts)
    evaluations = lines(folder / "evaluations.jsonl")
    assert evaluations[0]["steps"] == 0
    assert [each["seed"] for each in evaluations] == [2_000_000, 1_000_000, 2_000_000]  # before and after: one's starts
    assert evaluations[-1]["final"]
    assert evaluations[-1]["forward"]["episodes"] == 1
    about = json.loads((folder / "run.json").read_text())
    assert about["status"] == "finished"
    assert about["tally"]["steps"] == 40
    assert list((folder / "videos").glob("final_0_forward_*.mp4"))
    assert "embodied/desk-drawer-v0" in (folder / "report.html").read_text()
    told = capsys.readouterr()
    assert "a person reset the world" in told.out
    assert "episodes it was not fitted to" in told.err


def test_it_goes_on_exactly_after_a_kill(words, tmp_path):
    assert main([*words, "observe=state", "checkpoint_every=1"]) == 0
    folder, first = tmp_path / "run", tmp_path / "whole"
    shutil.copytree(folder, first)
    shutil.rmtree(files.latest_checkpoint(folder))  # as if killed after the one before
    assert int(files.latest_checkpoint(folder).name) < 40
    with (folder / "attempts.jsonl").open("a") as stream:
        stream.write('{"attempt": ')
    assert main(["practise", "run=run", "resume=true"]) == 0
    assert lines(folder / "attempts.jsonl") == lines(first / "attempts.jsonl")
    assert lines(folder / "evaluations.jsonl")[-1] == lines(first / "evaluations.jsonl")[-1]
    for one, two in zip(parameters(folder), parameters(first), strict=True):
        np.testing.assert_array_equal(one, two)


def test_ctrl_c_keeps_what_was_practised(words, tmp_path, monkeypatch, capsys):
    attempt, calls = Practice.attempt, []

    def interrupted(self, *args, **kwargs):
        calls.append(kwargs)
        if len(calls) == 4:  # early enough that no luck of later attempts ends the run first
            os.kill(os.getpid(), signal.SIGINT)
        return attempt(self, *args, **kwargs)

    monkeypatch.setattr(Practice, "attempt", interrupted)
    assert main([*words, "observe=state"]) == 130
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert "resume=true" in capsys.readouterr().err
    done = lines(tmp_path / "run" / "attempts.jsonl")[-1]["steps_done"]
    assert int(files.latest_checkpoint(tmp_path / "run").name) == done < 40
    monkeypatch.setattr(Practice, "attempt", attempt)
    assert main(["practise", "run=run", "resume=true", "steps=48"]) == 0
    assert lines(tmp_path / "run" / "attempts.jsonl")[-1]["steps_done"] == 48


def test_it_goes_on_in_the_world_that_it_began_in(words, monkeypatch):
    made = []
    monkeypatch.setattr(verb, "env_maker", lambda config: made.append(str(config.env.id)) or env_maker(config))
    monkeypatch.setattr(verb, "_simulated_robot", lambda config: made.append("robot") or env_maker(config)())
    assert main([*words, "env=desk-place", "forward.fact=red_in_tray", "steps=8"]) == 0
    assert main(["practise", "run=run", "resume=true", "steps=16"]) == 0
    assert main([*words, "run=robot", "robot=simulated", "steps=8"]) == 0
    before = made.count("robot")
    assert main(["practise", "run=robot", "resume=true", "steps=16"]) == 0
    assert set(made) == {"embodied/desk-place-v0", "robot"}
    assert made.count("robot") > before


def test_it_practises_on_a_simulated_robot(words, tmp_path):
    assert main([*words, "robot=simulated", "steps=12", "attempt_steps=6"]) == 0
    attempts = lines(tmp_path / "run" / "attempts.jsonl")
    assert sum(each["steps"] for each in attempts) == 12
    assert all(isinstance(each["env_success"], bool) for each in attempts)
    assert lines(tmp_path / "run" / "evaluations.jsonl")[-1]["final"]


def test_demonstrations_by_turns_begin_where_the_other_task_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forward, backward = open_pair(["desk-drawer-turns", "desk-close-turns"], 2)
    states = [
        [dataset.columns(i, ["observation.environment_state"])["observation.environment_state"] for i in range(2)]
        for dataset in (forward, backward)
    ]
    for opened, closed in zip(*states, strict=True):
        assert np.linalg.norm(opened[-1] - closed[0]) < 0.5 * np.linalg.norm(opened[0] - closed[0])
    assert [dataset.recording(1, cameras=()).success[-1] for dataset in (forward, backward)] == [True, True]
    assert [dataset.instruction(0) for dataset in (forward, backward)] == ["open the drawer", "close the drawer"]
    before = (forward.root / "meta" / "info.json").stat().st_mtime_ns
    open_pair(["desk-drawer-turns", "desk-close-turns"], 2)
    assert (forward.root / "meta" / "info.json").stat().st_mtime_ns == before
    more = open_pair(["desk-drawer-turns", "desk-close-turns"], 3)  # as many as are asked for, the first ones as before
    assert [len(dataset) for dataset in more] == [3, 3]
    for dataset, known in zip(more, states, strict=True):
        (first,) = dataset.columns(0, ["observation.environment_state"]).values()
        np.testing.assert_array_equal(first, known[0])


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ("observe=pixels", "observe must be features or state"),
        ("policy=ppo ~policy.updates_per_step policy.rollout_steps=64", "policy must learn from a replay"),
        ("policy=imitation", "policy must learn from a replay"),
        ("policy=ppo", "policy must learn from a replay"),
        ("forward.fact=drawer_ajar", "forward.fact must be one of the world's, or null; got 'drawer_ajar'"),
        ("forward.episodes=-1", "forward.episodes must be at least 0; got -1"),
        ("success.hold=0", "success.hold must be at least 1; got 0"),
        ("turns=0", "turns must be at least 1; got 0"),
        ("robot=simulated env=desk-lift", "env must be left out with robot=simulated"),
        ("steps=0", "steps must be at least 1"),
        ("robot=mine", "robot must be null or simulated"),
        ("forward.labelled=null", "forward must have labelled episodes"),
        ("env=cartpole", "must have the world's actions"),
        ("forward.demos=reacher-red-turns backward.demos=desk-close-turns", "needs desk worlds"),
        ("forward.demos=nowhere-at-all", "must be a LeRobot folder or a name"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(words, wrong, match, tmp_path, capsys):
    words = [word for word in words if not (wrong.startswith("policy=") and word.startswith("policy."))]
    assert main([*words, *wrong.split()]) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
