"""Without any extra: a number for a picture, a film, a dataset; and one line that names the extra for the rest."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from embodied.datasets import Writer
from embodied.extras import extras_of, missing

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = ("train", "serve", "watch", "robots", "suites")
IMPORTED = {"rerun-sdk": "rerun", "pyzmq": "zmq"}  # by another name than the distribution's
HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""
PICTURE = """
import json, sys, torch
from rewards.clip_goal import clip_scorer
from rewards.encoders import embedded_encoder
scorer = clip_scorer(encoder=embedded_encoder(), goal="the drawer is open")
score = scorer.score(torch.zeros(1, 96, 96, 3, dtype=torch.uint8))
print(json.dumps({"shape": list(score.shape), "loaded": sorted(sys.modules)}))
"""


def names(requirements):
    found = {re.split(r"[\\[<>=!~ ]", each)[0].lower() for each in requirements}
    return found - {"embodied-rewards"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Runs Python where nothing can be imported that an extra brings."""
    core = names(PROJECT["dependencies"])
    hidden = set().union(*(names(PROJECT["optional-dependencies"][each]) for each in EXTRAS)) - core
    assert {"mujoco", "stable-baselines3", "fastapi", "tensorboard", "rerun-sdk"} <= hidden
    hidden = {IMPORTED.get(each, each).replace("-", "_") for each in hidden} - {"packaging"}
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "sitecustomize.py").write_text(HIDE.format(hidden=hidden))

    def run(*words, cwd=folder):
        environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, env=environment)

    return run


def test_a_picture_gets_its_number(bare):
    done = bare("-c", PICTURE)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["shape"] == [1]
    assert not {"gymnasium", "embodied", "policies"} & set(told["loaded"])


def test_list_and_label_need_no_extra(bare, tmp_path):
    done = bare("-m", "embodied.cli", "list", "what=worlds")
    assert done.returncode == 0, done.stderr
    assert "put the red cube in the tray" in done.stdout
    with Writer(tmp_path / "data", fps=10, features={}, cameras={"main": (32, 32)}, env=None) as writer:
        writer.add({}, {"main": np.zeros((4, 32, 32, 3), np.uint8)}, instruction="open the drawer")
    done = bare("-m", "embodied.cli", "label", "data=data", "reward.goal=the drawer is open", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("clip_progress.parquet"))


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [
        ("train env=desk-drawer reward.goal=x", "tensorboard", "train"),
        ("collect env=desk-drawer", "mujoco", "train"),
        ("serve reward.goal=x", "fastapi", "serve"),
    ],
)
def test_what_an_extra_brings_is_named_in_one_line(bare, words, module, extra):
    done = bare("-m", "embodied.cli", *words.split())
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"{module} is not installed" in line
    assert f'pip install "embodied-rewards[{extra}]"' in line


def test_only_modules_of_extras_are_told_of():
    assert extras_of("stable_baselines3.common") == ["train"]
    assert extras_of("numpy") == []
    assert missing(ModuleNotFoundError("No module named 'nothing'", name="nothing")) is None
    assert missing(ImportError("cannot import name")) is None
