"""A built wheel, away from the checkout, finds its configs and assets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import json, embodied, rewards, policies
from embodied import cli, paths
from embodied.worlds import env_maker
config = cli.compose("train", ["env=desk-drawer", "reward.goal=the drawer is open"])
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
    assert {"embodied/cli.py", "embodied/report.html", "rewards/core.py", "policies/sb3.py"} <= names
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
