"""`embodied fit` keeps a reward fitted to datasets in a folder that other verbs take."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from embodied import cli
from embodied.datasets import Writer
from rewards import process, storage
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


@pytest.mark.parametrize("steps", [1, 2])
def test_a_kill_while_a_head_takes_anothers_place_leaves_one_of_them(steps, datasets, tiny_clip, tmp_path, monkeypatch):
    """In one step, or where the system has no such: in two."""
    monkeypatch.setattr(process, "Recipe", partial(process.Recipe, steps=2))
    out = tmp_path / "head"
    words = ["fit", f"demos={datasets / 'right'}", f"out={out}", "encoder=open_clip", f"encoder.model={tiny_clip}"]
    assert cli.main(words) == 0
    rename, remove = Path.rename, shutil.rmtree

    def renamed(path, target):
        if target == out:
            raise KeyboardInterrupt
        return rename(path, target)

    def removed(path, **how):
        if (Path(path) / "head.json").is_file():
            (Path(path) / "head.json").unlink()
            raise KeyboardInterrupt
        return remove(path, **how)

    with monkeypatch.context() as patch:
        if steps == 2:
            patch.setattr(storage, "_exchanged", lambda one, other: False)
            patch.setattr(Path, "rename", renamed)
        else:
            patch.setattr(shutil, "rmtree", removed)
        assert cli.main(words) == 130
    if steps == 1:
        process.ProcessReward.load(out, OpenCLIPEncoder(tiny_clip), goal="move it right")
    assert cli.main([*words, "reward.seed=1"]) == 0
    process.ProcessReward.load(out, OpenCLIPEncoder(tiny_clip), goal="move it right")
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


def test_two_fits_into_one_folder_at_once(datasets, tiny_clip, tmp_path, monkeypatch, capsys):
    out, ended = tmp_path / "head", []
    words = ["fit", f"demos={datasets / 'right'}", f"out={out}", "encoder=open_clip", f"encoder.model={tiny_clip}"]
    recipe = process.Recipe

    def second(**how):
        if not ended:
            ended.append(None)
            ended[0] = cli.main(words)
        return recipe(**how, steps=2)

    monkeypatch.setattr(process, "Recipe", second)
    assert cli.main(words) == 0
    assert ended == [2]
    assert f"out: another process is at work on {out}." in capsys.readouterr().err
    process.ProcessReward.load(out, OpenCLIPEncoder(tiny_clip), goal="move it right")


def test_a_head_that_is_replaced_while_it_is_read_is_never_mixed(datasets, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "Recipe", partial(process.Recipe, steps=2))
    encoder = OpenCLIPEncoder(tiny_clip)
    for name in ("old", "new"):
        storage.save_fitted(tmp_path / name, kind="process", encoder=encoder, config={"of": name},
                            tensors={"of": torch.tensor(float(name == "new"))})  # fmt: skip
    load, turn = storage.load_file, [tmp_path / "new"]

    def loaded(file):
        if turn:
            storage.replace_folder(turn.pop(), tmp_path / "old")
        return load(file)

    monkeypatch.setattr(storage, "load_file", loaded)
    config, tensors = storage.load_fitted(tmp_path / "old", kind="process", encoder=encoder)
    assert (config["of"], float(tensors["of"])) == ("new", 1.0)


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


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """Four tries of one task in two ways of writing, half of them solved, and two of another."""
    root = tmp_path_factory.mktemp("tried") / "data"
    features = {"action": STATE | {"names": None}, "next.success": {"dtype": "bool", "shape": [1], "names": None}}
    with Writer(root, fps=20, features=features, cameras={"front": (32, 32)}, env={"id": "w"}) as writer:
        texts = ["open it", "Open it.", "open it", "Open it.", "close it", "close it"]
        for i, text in enumerate(texts):
            frames = np.full((8, 32, 32, 3), 30, np.uint8)
            if i % 2:
                frames[4:, 8:20, 8:20] = 220 - 100 * (text == "close it")
            columns = {"action": np.zeros((8, 1), np.float32), "next.success": np.arange(8) >= (5 if i % 2 else 8)}
            writer.add(columns, {"front": frames}, instruction=text)
    return root


@pytest.mark.parametrize("goal", ["open it", " OPEN  it."])
def test_a_task_is_one_however_it_is_written(goal, tried, tiny_clip, tmp_path, capsys):
    words = ["fit", "reward=success", f"demos={tried}", f"out={tmp_path / 'head'}", "encoder=open_clip"]
    assert cli.main([*words, f"encoder.model={tiny_clip}", f"goal={goal}"]) == 0
    told = capsys.readouterr()
    assert "success: fitted to 4 of the 6 episodes of 1 task in" in told.out
    assert "no demonstration is of" not in told.err
    assert cli.main([*words, f"encoder.model={tiny_clip}", "goal=open it!"]) == 0  # the same head again


def test_a_goal_without_demonstrations_of_its_own_is_told(tried, tiny_clip, tmp_path, capsys):
    words = ["fit", "reward=success", f"demos={tried}", f"out={tmp_path / 'head'}", "encoder=open_clip"]
    assert cli.main([*words, f"encoder.model={tiny_clip}", "goal=open them"]) == 0
    told = capsys.readouterr()
    assert "success: fitted to 6 episodes of 2 tasks in" in told.out
    assert "no demonstration is of 'open them': all 6 of 2 tasks count as its own." in told.err
    assert "did you mean open it?" in told.err


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
    assert "success: fitted to 12 of the 18 episodes of 1 task in" in capsys.readouterr().out
    assert json.loads((tmp_path / "head" / "head.json").read_text())["config"]["quality"]["episodes"] == 12
