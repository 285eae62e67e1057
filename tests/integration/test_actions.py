"""`embodied actions`: films get the actions they lack; what is no good is not written, nothing is half-written."""

import hashlib
import json
import re

import numpy as np
import pytest

from benchmarks.inverse import shuffled, strip
from embodied import cli
from embodied.datasets import Dataset
from policies.inverse import r_squared

QUICK = ["read=state", "members=1", "steps=150", "network=[]", "learning_rate=0.01", "places=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`play`, `true` episodes and `films`, the same without their actions; `shown`, an expert's episode."""
    root = tmp_path_factory.mktemp("actions")
    for name, policy, seed, episodes in (("play", "random", 1, 4), ("true", "random", 2, 4), ("shown", "expert", 0, 1)):
        words = ["env=desk-reach", f"episodes={episodes}", "image_size=32", "cameras=[front,wrist]"]
        words += ["hold=3"] if policy == "random" else []
        assert cli.main(["collect", *words, f"policy={policy}", f"seed={seed}", f"out={root / name}"]) == 0
    strip(root / "true", root / "films")
    return root


@pytest.fixture
def acted(folder, tmp_path, monkeypatch, capsys):
    """Run the verb in an empty folder; its status and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*words, data="films", play="play"):
        status = cli.main(["actions", f"data={folder / data}", f"play={folder / play}", *QUICK, *words])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def digest(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def done(dataset):
    return [dataset.recording(i, cameras=()).actions for i in range(len(dataset))]


def test_films_get_their_actions(folder, acted, tmp_path):
    before = digest(folder)
    status, said = acted("out=acted")
    assert status == 0
    assert "action" not in Dataset(folder / "films").features
    made, true = Dataset("acted"), Dataset(folder / "true")
    assert made.features["action"] == true.features["action"]
    assert r_squared(np.concatenate(done(made)), np.concatenate(done(true))) > 0.7
    for i in range(4):
        np.testing.assert_array_equal(made.frames(i, "wrist"), true.frames(i, "wrist"))
        assert made.instruction(i) == true.instruction(i)
    told = json.loads((tmp_path / "acted/meta/embodied.json").read_text())["actions"]
    held = re.search(r"held out +R² ([\d.]+) over 50 steps \(action_0 [\d.]+, action_1", said)
    assert told["held_out_r_squared"] == pytest.approx(float(held[1]), abs=1e-3)
    assert told["inferred_from"] == "play"
    assert "of their changes lie outside play's" in said
    assert "recorded" not in said  # they had none
    assert digest(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["acted"]


def test_recorded_actions_are_compared_and_replaced(acted, tmp_path):
    """They are wrong here; they change nothing but what is told of them."""
    status, said = acted("out=acted")
    assert status == 0
    right = done(Dataset("acted"))
    shuffled(Dataset(tmp_path / "acted"), tmp_path / "wrong", 0)
    status, said = acted("out=again", data=tmp_path / "wrong")
    assert status == 0
    assert float(re.search(r"recorded +R² (-?[\d.]+)", said)[1]) < 0
    for one, other in zip(right, done(Dataset("again")), strict=True):
        np.testing.assert_array_equal(one, other)


def test_play_that_teaches_nothing_is_refused(folder, acted, tmp_path):
    shuffled(Dataset(folder / "play"), tmp_path / "wrong", 0)
    status, said = acted("out=acted", play=tmp_path / "wrong")
    assert status == 2
    assert "R² on episodes held out must be 0.5 or more; got -" in said
    assert [path.name for path in tmp_path.iterdir()] == ["wrong"]
    status, said = acted("out=acted", "least=null", play=tmp_path / "wrong")
    assert status == 0
    assert "is low; least=null writes all the same" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["out=taken"], "out must be a new folder; got taken"),
        (["held_out=1"], "held_out must be at least 2; got 1"),
        (["learning_rate=0"], "learning_rate must be above 0; got 0"),
        (["cameras=[side]", "read=auto"], "cameras: 'side' must be in data and in play"),
        (["read=sound"], "read must be one of auto, state, pictures, both; got 'sound'"),
    ],
)
def test_a_mistake_is_named_before_anything_is_learned(acted, tmp_path, words, expected):
    (tmp_path / "taken").mkdir()
    status, said = acted(*words)
    assert status == 2
    assert expected in said
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_data_and_play_must_be_two(acted, folder):
    status, said = acted(data="play")
    assert status == 2
    assert "play must be another dataset than data" in said
    status, said = acted(data="play", play="films")
    assert status == 2
    assert "must have actions, floats of one axis; it has no action" in said


def test_pictures_alone_and_what_is_made_is_imitated(acted, tiny_clip, tmp_path, capsys):
    """With an encoder of random weights, and films whose places nobody taught: the parts fit; R² is not asked for."""
    words = ["read=pictures", "cameras=[wrist]", "least=null", "steps=3", "encoder=open_clip", "out=acted"]
    status, said = acted(*words, f"encoder.model={tiny_clip}", data="shown")
    assert status == 0
    assert "reads cameras wrist" in said
    assert "recorded  R²" in said
    encoder = ["encoder=open_clip", f"encoder.model={tiny_clip}", "encoder.precision=fp32"]
    small = ["num_worlds=1", "steps=4", "final_episodes=1", "eval_episodes=1", "videos=0", "policy.pretraining=2"]
    train = ["train", "env=desk-reach", "reward=clip", "goal=x", "policy=imitation", "env.cameras=[front]",
             "env.obs=features", f"demos={tmp_path / 'acted'}", "run=trained", *small, *encoder]  # fmt: skip
    assert cli.main(train) == 0
    capsys.readouterr()
