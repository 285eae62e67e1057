"""`embodied label`: the numbers are the scorer's, the source stays as it was, a killed run goes on."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError

from embodied import cli
from embodied.building.scorers import make_scorer
from embodied.config import compose
from embodied.datasets import Dataset
from embodied.datasets.encoding import encode
from embodied.scoring import labelling
from embodied.scoring.identity import dataset_identity
from rewards import storage
from rewards.encoders import OpenCLIPEncoder
from rewards.xirl import XIRL
from tests.fakes import FakeEncoder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("label") / "reacher"
    words = ["collect", "env=reacher-red", "policy=random", "episodes=3", f"out={root}", "image_size=32"]
    assert cli.main(words) == 0
    return root


def digest(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*")) if path.is_file()
    }  # fmt: skip


def words(data, tiny_clip, *more):
    return ["label", f"data={data}", "reward=clip", "encoder=open_clip", f"encoder.model={tiny_clip}",
            "encoder.precision=fp32", *more]  # fmt: skip


def expected(data, tiny_clip, goal):
    """(potential, reward) of every row by the scorer itself, a frame after the other episode by episode."""
    config = compose("label", words(data, tiny_clip, f"reward.goal={goal}")[1:])
    OmegaConf.set_struct(config, False)
    scorer, dataset = make_scorer(config), Dataset(data)
    potentials, rewards = [], []
    for i in range(len(dataset)):
        potential = scorer.score(torch.from_numpy(dataset.frames(i, dataset.cameras[0])))
        following = torch.cat([potential[1:], potential[-1:]])
        potentials.append(potential.numpy())
        rewards.append(scorer.shaping(potential, following, torch.zeros(len(potential), dtype=torch.bool)).numpy())
    return np.concatenate(potentials), np.concatenate(rewards)


def test_sidecar(data, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = digest(data)
    assert cli.main(words(data, tiny_clip, "goal=a red ball", "batch=2")) == 0
    out = tmp_path / "runs/label/reacher/clip_progress.parquet"
    table = pq.read_table(out)
    assert table.column_names == [
        "index", "episode_index", "frame_index", "progress_sparse", "progress_dense", "potential", "reward",
    ]  # fmt: skip
    potential, reward = expected(data, tiny_clip, "a red ball")
    np.testing.assert_allclose(table["potential"], potential, atol=1e-5)
    np.testing.assert_allclose(table["reward"], reward, atol=1e-5)
    assert np.std(potential) > 1e-3
    np.testing.assert_array_equal(table["index"], np.arange(150))
    np.testing.assert_array_equal(table["frame_index"], np.tile(np.arange(50), 3))
    low, high = (float(table.schema.metadata[key]) for key in (b"low", b"high"))
    np.testing.assert_allclose(np.asarray(table["progress_sparse"]) * (high - low) + low, potential, atol=1e-5)
    assert 0 <= min(table["progress_sparse"].to_pylist()) <= max(table["progress_sparse"].to_pylist()) <= 1
    assert table.schema.metadata[b"reward_model_path"] == b"clip"
    assert digest(data) == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]  # nothing left of the work


def test_columns_go_into_a_copy(data, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = digest(data)
    assert cli.main(words(data, tiny_clip, "columns=columns", "out=labelled", "name=mine")) == 0
    old, new = Dataset(data), Dataset("labelled")
    assert set(new.features) - set(old.features) == {"progress.mine", "reward.mine"}
    potential, reward = expected(data, tiny_clip, old.instruction(0))  # no goal given: the episodes' instructions
    got = [new.columns(i, ["progress.mine", "reward.mine", "next.reward"]) for i in range(3)]
    np.testing.assert_allclose(np.concatenate([each["progress.mine"] for each in got]), potential, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([each["reward.mine"] for each in got]), reward, atol=1e-5)
    for i in range(3):
        np.testing.assert_array_equal(got[i]["next.reward"], old.columns(i, ["next.reward"])["next.reward"])
        np.testing.assert_array_equal(new.frames(i, old.cameras[0]), old.frames(i, old.cameras[0]))
    files = [Path(root, "data/chunk-000/file-000.parquet") for root in (data, "labelled")]
    assert len({pq.ParquetFile(file).num_row_groups for file in files}) == 1
    stats = json.loads((tmp_path / "labelled/meta/stats.json").read_text())
    np.testing.assert_allclose(stats["reward.mine"]["mean"], [reward.mean()], atol=1e-5)
    assert digest(data) == before
    assert cli.main(words("labelled", tiny_clip, "columns=columns", "in_place=true", "name=other", "goal=x")) == 0
    assert {"progress.mine", "progress.other"} <= set(Dataset("labelled").features)
    assert cli.main(words("labelled", tiny_clip, "in_place=true", "goal=x")) == 0
    assert (tmp_path / "labelled" / "clip_progress.parquet").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"labelled", "runs"}


def test_data_of_a_world_that_is_not_here(data, tiny_clip, tmp_path, monkeypatch):
    """Recorded elsewhere, in a world that this machine need not have: nothing asks for it."""
    foreign = tmp_path / "foreign"
    shutil.copytree(data, foreign)
    about = foreign / "meta" / "embodied.json"
    about.write_text(about.read_text("utf-8").replace("embodied/reacher-red-v0", "lab/table-v1"), "utf-8")
    assert Dataset(foreign).env_id == "lab/table-v1"
    monkeypatch.chdir(tmp_path)
    given = words(foreign, tiny_clip, "goal=pick up the red ball")
    config = compose("label", ["reward=keypoint" if word == "reward=clip" else word for word in given][1:])
    scorer = labelling.scorer_for(config, "pick up the red ball", Dataset(foreign))
    assert scorer.frames_read == "all"  # no calibration, no demonstrations


def test_a_killed_run_goes_on(data, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made, score = [], labelling.score

    def killed_after_two(scorer, episodes, terminated):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(len(episodes))
        return score(scorer, episodes, terminated)

    monkeypatch.setattr(labelling, "score", killed_after_two)
    assert cli.main(words(data, tiny_clip, "goal=a red ball", "batch=1")) == 130
    assert not (tmp_path / "runs/label/reacher/clip_progress.parquet").exists()
    made.clear()
    assert cli.main(words(data, tiny_clip, "goal=a red ball", "batch=1")) == 0
    assert made == [1]
    table = pq.read_table("runs/label/reacher/clip_progress.parquet")
    np.testing.assert_allclose(table["potential"], expected(data, tiny_clip, "a red ball")[0], atol=1e-5)


@pytest.mark.parametrize("killed", ["between the renames", "after them"])
def test_a_kill_while_the_copy_takes_the_datasets_place_loses_nothing(killed, data, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data, "mine")
    command = words("mine", tiny_clip, "columns=columns", "in_place=true", "goal=a red ball")
    with monkeypatch.context() as patch:
        if killed == "between the renames":
            patch.setattr(storage, "_exchanged", lambda one, other: False)  # as where it takes two
            patch.setattr(Path, "rename", killed_at(Path.rename, lambda path, _: path.name == ".mine.part"))
        else:
            patch.setattr(shutil, "rmtree", killed_at(shutil.rmtree, lambda path, **_: path.name == ".mine.old"))
        assert cli.main(command) == 130
    assert (tmp_path / ".mine.old").is_dir()
    assert (tmp_path / "mine").is_dir() == (killed == "after them")
    assert cli.main(command) == (2 if killed == "after them" else 0)  # 2: such columns are there already
    np.testing.assert_allclose(
        np.concatenate([Dataset("mine").columns(i, ["reward.clip"])["reward.clip"] for i in range(3)]),
        expected(data, tiny_clip, "a red ball")[1],
        atol=1e-5,
    )
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "runs"}


@pytest.mark.parametrize("where", [["out=runs/one.parquet"], ["columns=columns", "in_place=true"]])
def test_two_at_once_into_one_place(where, data, tiny_clip, tmp_path, monkeypatch, capsys):
    """The second is told so, whatever it would write there, and the first's labels are whole."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data, "mine")
    score, ended = labelling.score, []

    def meanwhile(*given):
        if not ended:
            ended.append(None)
            ended[0] = cli.main(words("mine", tiny_clip, *where, "goal=a red ball", "name=other"))
        return score(*given)

    monkeypatch.setattr(labelling, "score", meanwhile)
    assert cli.main(words("mine", tiny_clip, *where, "goal=a red ball")) == 0
    assert ended == [2]
    assert "out: another process is at work on" in capsys.readouterr().err
    if "in_place=true" in where:
        assert {"reward.clip", "reward.other"} & set(Dataset("mine").features) == {"reward.clip"}
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".last"]


def killed_at(function, here):
    """The function, until it is called so: then, as a kill would, nothing happens any more."""

    def call(*args, **kwargs):
        if here(*args, **kwargs):
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return call


def test_termination_and_length_decide_rewards():
    """Two lengths in one call; a potential of one before a termination is taken back, before a cut it is not."""
    from rewards.combine import WeightedSum
    from rewards.core import Episode, Features, Scorer
    from rewards.shaping import PotentialShaping

    class Ones:
        name = "ones"

        def score(self, features):
            return torch.ones(features.main.shape[:2])

    shaping = PotentialShaping(kind="difference", discount=0.5)
    scorer = Scorer(FakeEncoder(dim=2), {"ones": Ones()}, WeightedSum(), shaping)
    episodes = [Episode(features=Features(views={"a": torch.zeros(1, n, 2)})) for n in (2, 3, 2)]
    endings = [np.array([False, True]), np.zeros(3, bool), np.zeros(2, bool)]
    rewards = [made["reward"].tolist() for made in labelling.score(scorer, episodes, endings)]
    assert rewards == [[-0.5, -1.0], [-0.5, -0.5, -0.5], [-0.5, -0.5]]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["columns=both"], "columns must be sidecar or columns"),
        (["cameras=[roof]"], "has no 'roof'"),
        (["out=a.csv"], "out must end in .parquet"),
        (["name=a/b"], "name must be letters"),
        (["in_place=true", "out=a.parquet"], "out must be left out"),
        (["batch=0"], "batch must be at least 1"),
        (["shard=3"], "shard must be i/n, as 3/16; got 3"),
        (["shard=0/2"], "shard must be i/n with i from 1 to n; got 0/2"),
        (["shard=1/2", "merge=true"], "merge=true must be without shard"),
    ],
)
def test_bad_settings_write_nothing(more, message, data, tiny_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words(data, tiny_clip, *more)) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# What labels are of -------------------------------------------------------------------------------------


def test_labels_say_their_goal_and_are_not_written_over_another_s(data, tiny_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "runs/label/reacher/clip_progress.parquet"
    assert cli.main(words(data, tiny_clip, "goal=a red ball")) == 0
    first = file.read_bytes()
    metadata = pq.read_schema(file).metadata
    assert (metadata[b"goal"], json.loads(metadata[b"goals"])) == (b"a red ball", ["a red ball"])
    assert cli.main(words(data, tiny_clip, "goal=a blue ball")) == 2
    told = capsys.readouterr().err
    assert "hold labels of 'a blue ball'" in told
    assert "holds labels of 'a red ball'" in told
    assert file.read_bytes() == first
    assert cli.main(words(data, tiny_clip, "goal=a red ball")) == 0
    assert cli.main(words(data, tiny_clip, "goal=a blue ball", "name=blue")) == 0
    assert cli.main(words(data, tiny_clip)) == 2  # the episodes' own instruction
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({b"reward_model_path": b"clip"}), file)
    assert cli.main(words(data, tiny_clip, "goal=a red ball")) == 2
    assert "labels that do not say their goal" in capsys.readouterr().err


def test_labels_are_not_written_over_those_of_another_dataset(data, tiny_clip, tmp_path, monkeypatch, capsys):
    """`embodied watch record=…` names each of its datasets `dataset`, and so was the default of out."""
    monkeypatch.chdir(tmp_path)
    for name in ("session1", "session2"):
        shutil.copytree(data, tmp_path / name / "dataset")
    file = tmp_path / "runs/label/dataset/clip_progress.parquet"
    assert cli.main(words("session1/dataset", tiny_clip, "goal=a red ball")) == 0
    first = file.read_bytes()
    assert str(tmp_path).encode() not in first  # it may be pushed
    assert cli.main(words("session2/dataset", tiny_clip, "goal=a red ball")) == 2
    assert "holds labels of the dataset session1/dataset. Give another with out=" in capsys.readouterr().err
    assert file.read_bytes() == first
    assert cli.main(words(tmp_path / "session1/dataset", tiny_clip, "goal=a red ball")) == 0  # however it is named
    assert cli.main(words("session1/dataset", tiny_clip, "goal=a red ball", "in_place=true")) == 0
    (tmp_path / "session1").rename(tmp_path / "session3")  # a file in the dataset's own folder moves with it
    assert cli.main(words("session3/dataset", tiny_clip, "goal=a red ball", "in_place=true")) == 0
    table = pq.read_table(file)
    old = {key: value for key, value in table.schema.metadata.items() if key not in (b"data", b"place")}
    pq.write_table(table.replace_schema_metadata(old), file)  # as they were before
    assert cli.main(words("session2/dataset", tiny_clip, "goal=a red ball")) == 0


def test_columns_say_their_goal(data, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words(data, tiny_clip, "columns=columns", "out=made")) == 0
    about = json.loads((tmp_path / "made/meta/embodied.json").read_text("utf-8"))
    assert about["labels"] == {"clip": {"goals": ["touch the red ball"]}}
    assert Dataset("made").env_id == "embodied/reacher-red-v0"


def test_a_model_that_changed_in_its_folder_makes_all_labels_anew(data, tiny_clip, tmp_path, monkeypatch):
    """Half is labelled, the run is killed, the folder gets another head: nothing of the old one stays."""
    monkeypatch.chdir(tmp_path)
    encoder = OpenCLIPEncoder(tiny_clip, precision="fp32")
    demos = [replace(each, success=True) for each in encode(Dataset(data), encoder)]
    given = [word for word in words(data, tiny_clip, "batch=1", "reward.model=head") if word != "reward=clip"]
    given.append("reward=xirl")

    def fit(seed):
        XIRL.fit(demos, updates=2, seed=seed).save(Path("head"), encoder)

    fit(0)
    score, made = labelling.score, []

    def killed_after_two(scorer, episodes, terminated):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(len(episodes))
        return score(scorer, episodes, terminated)

    with monkeypatch.context() as patch:
        patch.setattr(labelling, "score", killed_after_two)
        assert cli.main([*given, "out=a.parquet"]) == 130
    fit(1)
    assert cli.main([*given, "out=a.parquet"]) == 0
    assert cli.main([*given, "out=fresh.parquet"]) == 0
    resumed, fresh = (np.asarray(pq.read_table(name)["potential"]) for name in ("a.parquet", "fresh.parquet"))
    np.testing.assert_array_equal(resumed, fresh)
    fit(0)
    assert cli.main([*given, "out=old.parquet"]) == 0
    assert not np.allclose(np.asarray(pq.read_table("old.parquet")["potential"])[:100], fresh[:100], atol=1e-4)


def test_a_dataset_is_known_by_its_contents_wherever_it_lies(data, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    was = dataset_identity(Dataset(data), Dataset(data).cameras)
    assert dataset_identity(Dataset(moved), Dataset(data).cameras) == was
    (file,) = moved.glob("data/*/*.parquet")
    table = pq.read_table(file)
    done = pa.array(np.zeros(len(table), bool))
    pq.write_table(table.set_column(table.column_names.index("next.done"), "next.done", done), file)
    assert dataset_identity(Dataset(moved), Dataset(data).cameras) != was


def test_a_full_disk_is_one_line(data, tiny_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(labelling, "save_file", full)
    assert cli.main(words(data, tiny_clip, "goal=a", "columns=columns", "out=made")) == 2
    assert "embodied label: the disk is full" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "made").exists()


def test_a_sidecars_bytes_do_not_depend_on_when_episodes_are_joined(data, tiny_clip, tmp_path, monkeypatch):
    """50,000 of two rows took 215 s and 180 MB to write, each a table of its own until there were 65,536 rows."""
    for name, tables in (("joined", 2), ("apart", 256)):
        monkeypatch.setattr("embodied.commands.label.TABLES", tables)
        assert cli.main(words(data, tiny_clip, f"out={tmp_path / name}.parquet", "goal=x")) == 0
    assert (tmp_path / "joined.parquet").read_bytes() == (tmp_path / "apart.parquet").read_bytes()
