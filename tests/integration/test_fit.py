"""`embodied fit` keeps a reward fitted to datasets in a folder that other verbs take."""

import json
from functools import partial

import numpy as np
import pytest

from embodied import cli
from embodied.datasets import Writer
from rewards import process
from rewards.encoders import OpenCLIPEncoder

STATE = {"dtype": "float32", "shape": [1], "names": ["gripper_opening"]}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Two of two episodes each: a bright square that moves right, and one that moves down."""
    folder = tmp_path_factory.mktemp("data")
    for name, axis in (("right", 2), ("down", 1)):
        features = {"observation.state": STATE, "action": STATE | {"names": None}}
        writer = Writer(folder / name, fps=20, features=features, cameras={"front": (32, 32)}, env={"id": "w"})
        with writer:
            for shift in (0, 4):
                frames = np.full((10, 32, 32, 3), 30, np.uint8)
                frames[:, 8 + shift : 14 + shift, 2:8] = 220
                moved = [np.roll(frame, 2 * t, axis - 1) for t, frame in enumerate(frames)]
                columns = {key: np.zeros((10, 1), np.float32) for key in features}
                writer.add(columns, {"front": np.stack(moved)}, instruction=f"move it {name}", steps=[9])
    return folder


def test_a_head_for_several_tasks_is_fitted_and_taken(datasets, tiny_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(process, "Recipe", partial(process.Recipe, steps=5))
    out = tmp_path / "head"
    words = ["fit", "reward=process", f"demos=[{datasets / 'right'},{datasets / 'down'}]", f"out={out}"]
    assert cli.main([*words, "encoder=open_clip", f"encoder.model={tiny_clip}"]) == 0
    told = capsys.readouterr().out
    assert "fitted to 4 episodes of 2 tasks" in told
    assert f"reward.model={out}" in told
    encoder = OpenCLIPEncoder(tiny_clip)
    head = process.ProcessReward.load(out, encoder, goal="move it down")
    assert head.views == ("front",)
    assert [len(demo.rows) for demo in head.demos] == [10] * 4
    scorer = process.process_scorer(encoder=encoder, model=str(out), goal="move it right")
    assert list(scorer.heads) == ["process"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["reward=clip", "reward.goal=a goal"], "must be one that is fitted to demonstrations"),
        (["reward=process", "reward.model=here"], "reward.model must be null"),
        (["reward=process", "demos=nowhere-at-all"], "must be a LeRobot folder or a name"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(words, match, tiny_clip, tmp_path, capsys):
    settings = ["demos=nothing", f"out={tmp_path / 'head'}", "encoder=open_clip", f"encoder.model={tiny_clip}"]
    assert cli.main(["fit", *settings, *words]) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "head").exists()


def test_another_folder_is_never_overwritten(tiny_clip, tmp_path, capsys):
    (tmp_path / "letters.txt").write_text("dear")
    settings = ["demos=nothing", f"out={tmp_path}", "encoder=open_clip", f"encoder.model={tiny_clip}"]
    assert cli.main(["fit", *settings]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_a_head_is_not_written_over_another_task_s(datasets, tiny_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(process, "Recipe", partial(process.Recipe, steps=2))
    out = tmp_path / "head"

    def fit(name, *words):
        settings = [f"demos={datasets / name}", f"out={out}", "encoder=open_clip", f"encoder.model={tiny_clip}"]
        capsys.readouterr()
        return cli.main(["fit", "reward=process", *settings, *words])

    assert fit("right") == 0
    kept = (out / "head.json").read_bytes()
    assert json.loads(kept)["fitted_to"] == {"goal": "move it right", "tasks": ["move it right"]}
    assert fit("down") == 2
    told = capsys.readouterr().err
    assert "hold a head for 'move it down'" in told
    assert "a process head for 'move it right'" in told
    assert fit("right", "reward=demonstration") == 2
    assert (out / "head.json").read_bytes() == kept
    assert fit("right", "reward.seed=1") == 0  # the same again
    assert [path.name for path in tmp_path.iterdir()] == ["head"]
    older = {key: value for key, value in json.loads(kept).items() if key != "fitted_to"}
    (out / "head.json").write_text(json.dumps(older))
    assert fit("right") == 2
    assert "a head that does not say its tasks" in capsys.readouterr().err


@pytest.mark.parametrize(("reward", "advice"), [("success", "say with goal="), ("xirl", "Leave the others out.")])
def test_demonstrations_of_several_tasks_are_not_taken_for_the_first(
    datasets, tiny_clip, tmp_path, capsys, reward, advice
):
    demos = f"demos=[{datasets / 'right'},{datasets / 'down'}]"
    settings = [demos, f"out={tmp_path / 'head'}", "encoder=open_clip", f"encoder.model={tiny_clip}"]
    assert cli.main(["fit", f"reward={reward}", *settings]) == 2
    told = capsys.readouterr().err
    assert f"demos must be of one task for {reward}; they are of 2: 'move it right', 'move it down'" in told
    assert advice in told


def test_all_episodes_of_the_goal_are_fitted_to_and_counted(tiny_clip, tmp_path, capsys):
    """The first ten were, of however many, and those of the other task were counted among them."""
    features = {"action": STATE | {"names": None}, "next.success": {"dtype": "bool", "shape": [1], "names": None}}
    with Writer(tmp_path / "data", fps=20, features=features, cameras={"front": (32, 32)}, env={"id": "w"}) as writer:
        for k in range(18):
            frames = np.full((4, 32, 32, 3), 30, np.uint8)
            frames[-2:] += np.uint8(200 * (k % 2))  # it ends bright where it succeeds
            columns = {"action": np.zeros((4, 1), np.float32), "next.success": np.zeros((4, 1), bool)}
            columns["next.success"][-1] = k % 2
            writer.add(columns, {"front": frames}, instruction="move it" if k < 12 else "leave it", steps=[3])
    words = [f"demos={tmp_path / 'data'}", "reward.goal=move it", "encoder=open_clip", f"encoder.model={tiny_clip}"]
    words += ["reward.thresholds.precision=0.5", f"out={tmp_path / 'head'}"]
    assert cli.main(["fit", "reward=success", *words]) == 0
    assert "success: fitted to 12 episodes of 1 task in" in capsys.readouterr().out
    assert json.loads((tmp_path / "head" / "head.json").read_text())["config"]["quality"]["episodes"] == 12
