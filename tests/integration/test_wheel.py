"""A built wheel, away from the checkout, finds its configs and assets."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import json, embodied, rewards, policies
from embodied import cli, paths
from embodied.config import compose
from embodied.building.worlds import env_maker
config = compose("train", ["env=desk-drawer", "reward.goal=the drawer is open"])
env = env_maker(config)()
env.reset(seed=0)
frame = env.get_wrapper_attr("frame")()
print(json.dumps({
    "packages": [embodied.__file__, rewards.__file__, policies.__file__],
    "data": [str(paths.configs()), str(paths.asset("desk"))],
    "goal": config.reward.goal, "shape": frame.shape, "spread": float(frame.std()),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def run(installed: Path, cwd: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_packages_and_every_data_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("configs", "sim_assets"):
        tracked = subprocess.run(["git", "ls-files", folder], capture_output=True, text=True, cwd=ROOT).stdout.split()
        files = tracked or [str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*") if p.is_file()]
        assert files
        assert {f"embodied/{file}" for file in files if (ROOT / file).is_file()} <= names
    assert {"embodied/cli.py", "embodied/reports/report.html", "rewards/core.py", "policies/sb3.py"} <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "configs", "sim_assets", "runs"))]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_outside_the_checkout_it_finds_configs_and_assets(installed, tmp_path):
    found = json.loads(run(installed, tmp_path, "-c", PROBE).splitlines()[-1])
    for path in found["packages"] + found["data"]:
        assert Path(path).is_relative_to(installed), path
    assert found["goal"] == "the drawer is open"
    assert found["shape"] == [96, 96, 3]
    assert found["spread"] > 5


def test_its_command_line_works(installed, tmp_path):
    script = installed / "bin" / "embodied"
    assert "train" in run(installed, tmp_path, str(script), "--help")
    assert "desk-drawer" in run(installed, tmp_path, str(script), "train", "--help")
    assert run(installed, tmp_path, str(script), "--version").startswith("embodied-rewards ")


PICTURE = """
import torch
from rewards.clip_goal import clip_scorer
from rewards.encoders import embedded_encoder
scorer = clip_scorer(encoder=embedded_encoder(), goal="the drawer is open")
print(float(scorer.score(torch.zeros(1, 96, 96, 3, dtype=torch.uint8))[0]))
"""
DATASET = """
import numpy as np
from embodied.datasets import Writer
with Writer("data", fps=10, features={}, cameras={"main": (32, 32)}, env=None) as writer:
    writer.add({}, {"main": np.zeros((4, 32, 32, 3), np.uint8)}, instruction="open the drawer")
"""


def test_outside_the_checkout_it_lists_scores_a_picture_and_labels(installed, tmp_path):
    script = str(installed / "bin" / "embodied")
    assert "desk-drawer" in run(installed, tmp_path, script, "list", "what=worlds")
    assert -1 <= float(run(installed, tmp_path, "-c", PICTURE)) <= 1
    run(installed, tmp_path, "-c", DATASET)
    run(installed, tmp_path, script, "label", "data=data", "goal=the drawer is open")
    (file,) = tmp_path.rglob("clip_progress.parquet")
    assert pq.read_metadata(file).num_rows == 4


def test_a_package_index_can_show_what_the_wheel_says_of_itself(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    told = email.message_from_bytes(archive.read(name))
    assert told["Description-Content-Type"] == "text/markdown"
    assert str(told.get_payload()).startswith("# embodied")
    assert told["License-Expression"] == "MIT"
