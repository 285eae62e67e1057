"""Mimed episodes pasted from a success's pictures, held to those that the simulator makes of the same success."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch

from embodied import cli
from embodied.datasets import Writer
from embodied.envs.bridge import make
from embodied.envs.experts import expert
from embodied.judging.pasted import mimed
from rewards.encoders import embedded_encoder
from rewards.grounding import Grounder

ARM = ("the robot arm", "the gripper")
STEPS = 10


class Success(NamedTuple):
    """Frames (STEPS + 1, H, W, 3) of an expert's episode, and of one in which the arm does the same alone."""

    frames: np.ndarray
    alone: np.ndarray


def success(env, seed: int) -> Success:
    world = env.unwrapped
    env.reset(seed=seed)
    act, rows, over = expert(world), [world.data.qpos.copy()], False
    while not over:
        *_, terminated, truncated, _ = env.step(act(world))
        rows.append(world.data.qpos.copy())
        over = terminated or truncated
    assert world.success()
    chosen, frames, alone = np.linspace(0, len(rows) - 1, STEPS + 1).round().astype(int), [], []
    for i in chosen:
        start = rows[0].copy()
        for row, kept in ((rows[i], frames), (start, alone)):
            row[world.robot_qpos] = rows[i][world.robot_qpos]
            world.put_qpos(row)
            world.settle()
            kept.append(world.frame())
    return Success(np.stack(frames), np.stack(alone))


@pytest.fixture(scope="module")
def drawer():
    env = make("desk-drawer", image_size=96)
    made = [success(env, seed) for seed in range(4)]
    env.close()
    return made


@pytest.fixture(scope="module")
def grounder():
    return Grounder(embedded_encoder(precision="fp32", device="cpu"))


def credit(grounder, text: str, frames: np.ndarray, last: np.ndarray) -> float:
    seen = torch.from_numpy(np.stack([frames[0], frames[-1], last]))
    start, end, asked = (grounder.encoder.encode_images(seen) @ grounder.encoder.encode_texts([text])[0]).tolist()
    return (asked - start) / (end - start)


def test_a_pasted_arm_is_worth_what_the_simulators_is(grounder, drawer):
    text = "the drawer is open"
    for each in drawer:
        film = mimed(grounder, each.frames, ARM, ["the drawer"])
        assert film is not None
        true, told = credit(grounder, text, each.frames, each.alone[-1]), credit(grounder, text, each.frames, film[-1])
        assert abs(told - true) < 0.15
        far = np.abs(film[-1].astype(int) - each.alone[-1]).mean()
        assert far < 0.5 * np.abs(each.frames[-1].astype(int) - each.alone[-1]).mean()
        np.testing.assert_array_equal(film[0], each.frames[0])


def test_what_the_arm_hides_at_the_end_is_not_made(grounder):
    env = make("desk-press", image_size=96)
    assert mimed(grounder, success(env, 5).frames, ARM, ["the button"]) is None
    env.close()


def test_without_a_named_thing_or_a_map_nothing_is_made(grounder, drawer):
    assert mimed(grounder, drawer[0].frames, ARM, []) is None
    assert mimed(None, drawer[0].frames, ARM, ["the drawer"]) is None
    assert mimed(grounder, np.zeros_like(drawer[0].frames), ARM, ["the drawer"]) is None


def test_judge_pastes_what_recorded_data_lack_and_says_so(drawer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    columns = ("observation.state", "action")
    features = {name: {"dtype": "float32", "shape": (1,), "names": None} for name in columns}
    features["next.success"] = {"dtype": "bool", "shape": (1,), "names": None}
    with Writer(tmp_path / "data", fps=10, features=features, cameras={"front": (96, 96)}) as writer:
        for each in drawer:
            for frames, done in ((each.frames, True), (each.frames[:1].repeat(STEPS + 1, 0), False)):
                rows = {name: np.zeros((STEPS + 1, 1), np.float32) for name in columns}
                solved = np.zeros((STEPS + 1, 1), bool)
                solved[-1] = done
                rows["next.success"] = solved
                writer.add(rows, {"front": frames}, instruction="open the drawer")
    words = ["judge", "data=data", "reward=clip", "goal=the drawer is open", "resamples=20"]
    assert cli.main([*words, "run=one"]) == 0
    assert "margins are approximate: mimed episodes were pasted" in capsys.readouterr().out
    found = json.loads((tmp_path / "one" / "judgement.json").read_text())["rewards"]["clip"]
    assert set(found["credit"]) == {"mimed"}
    assert found["credit"]["mimed"]["value"] < 0.3
    assert "approximate" in json.loads((tmp_path / "one" / "run.json").read_text())["counterfactual"]
    assert "pasted from pictures of successes" in (tmp_path / "one" / "report.html").read_text()
    for word in ("arm=null", "counterfactual=false"):
        assert cli.main([*words, word, f"run={word}"]) == 0
        assert "approximate" not in capsys.readouterr().out
