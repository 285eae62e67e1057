"""Every script of examples/ runs as its first lines say, as a user runs it."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embodied.datasets.video import write_video
from rewards.clip_goal import clip_scorer
from rewards.encoders import embedded_encoder
from tests.reward_server import serving

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
IMPORTED = ("button_facts.py", "drawer_facts.py")  # by a verb; test_own_scenes runs them
RUN = sorted(file.name for file in EXAMPLES.glob("*.py") if file.name not in IMPORTED)


def example(name: str, *arguments: str, cwd: Path) -> str:
    """What a script prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_reward_on_the_frames_of_a_film(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    write_video(tmp_path / "film.mp4", frames, fps=10)
    lines = example("reward_on_frames.py", "film.mp4", "the drawer is open", cwd=tmp_path).splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"frame {i}" for i in range(4)]
    assert all(-1 <= float(line.split()[-1]) <= 1 for line in lines)


def test_a_world_of_ones_own_with_a_sentence(tmp_path):
    told = example("gym_world.py", cwd=tmp_path)
    assert told.startswith("after 64 steps: reward ")
    assert told.rstrip().endswith("the task's own 0.0")


def test_the_same_by_our_learner(tmp_path):
    assert example("own_learner.py", "run", cwd=tmp_path).startswith("64 steps, mean return ")
    assert (tmp_path / "run" / "progress.csv").read_text().count("\n") == 2


def test_two_rewards_judged(tmp_path):
    right, wrong = example("judge_two_rewards.py", cwd=tmp_path).splitlines()
    assert right.startswith("'the drawer is open'")
    assert float(right.split()[-1]) == 1.0
    order = [float(line.split("success ")[1].split(",")[0]) for line in (right, wrong)]
    assert order[0] > order[1]


def test_a_robot_of_ones_own(tmp_path):
    lines = example("own_robot_driver.py", cwd=tmp_path).splitlines()
    assert len(lines) == 10
    places = [float(line.split()[2]) for line in lines]
    assert places == sorted(places)
    assert max(places) <= 0.1
    assert max(np.diff(places)) <= 0.0105  # 0.2 m/s at 20 Hz, as printed
    assert all("clamped True, stopped None" in line for line in lines)


def test_a_client_of_the_server(tmp_path):
    encoder = embedded_encoder()
    scorer = clip_scorer(encoder=encoder, goal="the drawer is open")
    with serving(scorer, goal_scorer=lambda goal: clip_scorer(encoder=encoder, goal=goal)) as server:
        lines = example("serve_client.py", server.url, cwd=tmp_path).splitlines()
    assert [line.split(":")[0] for line in lines[:6]] == [f"episode {e} row {r}" for e in range(2) for r in range(3)]
    assert lines[6].startswith("with another goal, ")
    assert len(lines) == 7


def test_a_policy_from_demonstrations(tmp_path):
    *told, end = example("finetune_demonstrations.py", "made", cwd=tmp_path).splitlines()
    assert any(line.startswith("data      4 episodes, 2 cameras (front, wrist), 80 rows") for line in told)
    assert re.fullmatch(r"acted for 20 steps; the cube was (not )?reached", end)
    assert (tmp_path / "made" / "tuned" / "report.html").is_file()


def test_every_example_is_listed_and_run():
    listed = (EXAMPLES / "README.md").read_text("utf-8")
    source = Path(__file__).read_text("utf-8")
    assert RUN
    for script in (*RUN, *IMPORTED):
        assert f"`{script}" in listed
    for script in RUN:
        assert f'"{script}"' in source


@pytest.mark.parametrize("name", RUN)
def test_an_example_says_how_it_is_run(name):
    assert f"python examples/{name}" in (EXAMPLES / name).read_text("utf-8").split('"""')[1]


NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+\.\d+")
RUNNER = """
import json, sys, importlib.util
spec = importlib.util.spec_from_file_location("notebook", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps(module.executed(json.loads(open(sys.argv[2], encoding="utf-8").read()))))
"""


def shown(cell: dict) -> tuple[str, list[float], list[tuple[int, int]]]:
    """What a cell says, without its numbers; these; and the sizes of its pictures."""
    text, sizes = "", []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            text += "".join(output["text"])
        elif "image/png" in output["data"]:
            picture = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
            sizes.append(picture.size)
        else:
            text += "".join(output["data"]["text/plain"])
    return NUMBER.sub("#", text), [float(each) for each in NUMBER.findall(text)], sizes


@pytest.mark.parametrize("file", NOTEBOOKS, ids=[file.name for file in NOTEBOOKS])
def test_a_notebook_shows_what_it_says_it_shows(file, tmp_path):
    """Every cell runs, and says and draws what is kept in the file; numbers may differ a little by machine."""
    kept = json.loads(file.read_text("utf-8"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUNNER, str(ROOT / "docs" / "making" / "notebook.py"), str(file)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    cells = [(a, b) for a, b in zip(kept["cells"], made["cells"], strict=True) if a["cell_type"] == "code"]
    assert cells
    for before, after in cells:
        (text, numbers, sizes), (text_now, numbers_now, sizes_now) = shown(before), shown(after)
        assert (text_now, sizes_now) == (text, sizes)
        np.testing.assert_allclose(numbers_now, numbers, atol=0.05)
    assert any(shown(cell)[2] for cell, _ in cells)


def test_a_notebook_is_listed_and_can_be_opened():
    assert NOTEBOOKS
    for file in NOTEBOOKS:
        assert f"`{file.name}" in (EXAMPLES / "README.md").read_text("utf-8")
        notebook = json.loads(file.read_text("utf-8"))
        assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
        assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
        for cell in notebook["cells"]:
            for link in re.findall(r"\]\(([^)#\s]+)\)", "".join(cell["source"])):
                assert (EXAMPLES / link).exists(), link
