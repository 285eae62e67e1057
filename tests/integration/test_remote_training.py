"""Training through a server is training here: the same rewards, the same policy, and a server may die under it."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from embodied import files
from embodied.building.scorers import make_scorer
from embodied.cli import main
from embodied.config import compose
from embodied.envs.bridge import make
from embodied.envs.wrappers import ScoredEnv
from embodied.serving.http_client import Client
from tests.reward_server import serving

SMALL = ["env=cartpole", "seed=3", "num_worlds=2", "steps=90", "log_every=30", "eval_every=0", "final_episodes=1"]
SMALL += ["videos=0", "policy=sac", "policy.network=[16]", "policy.learning_starts=40", "policy.batch_size=16"]
TIMED = ("time/fps", "time/time_elapsed", "reward/latency_ms_p50", "reward/latency_ms_p95")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs land in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


def local(tiny_clip):
    return ["reward=clip", "reward.goal=the pole stands up", "encoder=open_clip", f"encoder.model={tiny_clip}"]


def numbers(folder):
    """Every logged number, and the parameters of the policy at the end."""
    with (Path(folder) / "progress.csv").open() as stream:
        log = [float(v or 0) for row in csv.DictReader(stream) for k, v in sorted(row.items()) if k not in TIMED]
    found = load_file(files.latest_checkpoint(Path(folder)) / "learner.safetensors")
    return np.array(log), np.concatenate([found[name].ravel() for name in sorted(found)])


def test_a_policy_learns_the_same_through_a_server(tiny_clip):
    words = local(tiny_clip)
    assert main(["train", *SMALL, *words, "run=here"]) == 0
    scorer = make_scorer(compose("train", ["env=cartpole", *words]))
    with serving(scorer) as running:
        assert main(["train", *SMALL, "reward=remote", f"reward.url={running.url}", "run=there"]) == 0
        assert main(["evaluate", "run=there", "episodes=1", "videos=0"]) == 0
    (log, weights), (remote_log, remote_weights) = numbers("here"), numbers("there")
    np.testing.assert_allclose(remote_log, log, atol=1e-4, rtol=1e-3)
    np.testing.assert_allclose(remote_weights, weights, atol=1e-6)
    last = [json.loads(Path(run, "evaluations.jsonl").read_text().splitlines()[0]) for run in ("here", "there")]
    # What weights differ by in their last digit, a hundred steps of a falling pole make larger.
    assert last[0]["mean_reward"] == pytest.approx(last[1]["mean_reward"], rel=2e-4)


def test_features_rewards_and_views_are_equal_in_every_world(tiny_clip):
    words = ["env=desk-drawer", "env.cameras=[front,side]", *local(tiny_clip)]
    ours = make_scorer(compose("train", words))
    with serving(ours) as running:
        theirs = make_scorer(compose("train", ["env=desk-drawer", "reward=remote", f"reward.url={running.url}"]))
        envs = [ScoredEnv(make("desk-drawer"), each, ("front", "side")) for each in (ours, theirs)]
        for env in envs:
            env.reset(seed=0)
        actions = np.random.default_rng(0).uniform(-1, 1, (4, *envs[0].action_space.shape)).astype(np.float32)
        for action in actions:
            (_, here, *_, info), (_, there, *_, remote_info) = (env.step(action) for env in envs)
            assert there == pytest.approx(here, abs=1e-5)
            assert remote_info["reward/clip"] == pytest.approx(info["reward/clip"], abs=1e-5)
        frames = torch.from_numpy(np.stack([envs[0].get_wrapper_attr("frame")(image_size=size) for size in (32, 32)]))
        torch.testing.assert_close(theirs.encode(frames), ours.encode(frames), atol=1e-5, rtol=0)
        for env in envs:
            env.close()
        theirs.encoder.client.close()


def start(words, port):
    """A server process that answers, on a port; 0 takes a free one."""
    command = [sys.executable, "-m", "embodied.cli", "serve", *words, f"port={port}"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    line = process.stdout.readline()
    assert "http://" in line, line
    return process, line.split(" at ")[1].split()[0]


def test_a_server_killed_under_a_training_run(tiny_clip, monkeypatch, capsys):
    process, url = start(local(tiny_clip), 0)
    processes, asked, ask = [process], [], Client.ask

    def killing(self, *words):
        asked.append(words)
        if len(asked) == 12:
            processes[0].kill()
            processes[0].wait()
            command = [*processes[0].args[:-1], f"port={url.rpartition(':')[2]}"]
            env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env))
        return ask(self, *words)

    monkeypatch.setattr(Client, "ask", killing)
    try:
        began = time.monotonic()
        words = ["reward=remote", f"reward.url={url}", "reward.patience_s=200.0", "run=there"]
        assert main(["train", *SMALL, *words]) == 0
        assert time.monotonic() - began < 250
        assert len(processes) == 2
    finally:
        for each in processes:
            each.kill()
            each.wait()
            if each.stdout is not None:
                each.stdout.close()
    told = capsys.readouterr().err
    assert "Waiting for" in told
    assert f"{url} answers again" in told
    assert json.loads(Path("there", "run.json").read_text())["status"] == "finished"


def test_no_server_is_one_line_before_anything_is_written(capsys):
    words = ["reward=remote", "reward.url=http://127.0.0.1:9", "run=there"]  # with all its patience, told at once
    assert main(["train", "env=cartpole", *words]) == 2
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9 gave no answer: Connection refused. No reward server listens there" in error
    assert "again" not in error
    assert not Path("there").exists()
