"""`embodied label` by shards and of long episodes: the bits of one run, whatever is killed on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from embodied import cli
from embodied.config import compose
from embodied.datasets import Dataset, Writer
from embodied.datasets.encoding import Encoded, encode
from embodied.scoring import labelling
from rewards import process
from rewards.hop_model import Recipe
from tests.fakes import FakeEncoder
from tests.integration.test_label import digest, words

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Eight episodes of two tasks and of several lengths."""
    root = tmp_path_factory.mktemp("many") / "many"
    episodes(root, 8)
    return root


def episodes(root, number):
    rng = np.random.default_rng(0)
    features = {"observation.state": {"dtype": "float32", "shape": (1,), "names": ["x"]}}
    with Writer(root, fps=10, features=features, cameras={"front": (32, 32)}) as writer:
        for i in range(number):
            count = (5, 5, 9, 5, 7, 5, 9, 5)[i % 8]
            frames = rng.integers(0, 255, (count, 32, 32, 3), np.uint8)
            state = np.linspace(0, 1, count, dtype=np.float32)[:, None]
            writer.add({"observation.state": state}, {"front": frames}, instruction=("a red ball", "a cup")[i % 3 == 0])


@pytest.mark.parametrize("shards", [3, 16])
@pytest.mark.parametrize("columns", ["sidecar", "columns"])
def test_shards_merged_have_the_bits_of_one_run(tiny_clip, tmp_path, monkeypatch, capsys, shards, columns):
    monkeypatch.chdir(tmp_path)
    episodes(tmp_path / "data", 2 * shards + 1)  # each shard has work
    given = words(tmp_path / "data", tiny_clip, "batch=2", f"columns={columns}")
    name = "labels.parquet" if columns == "sidecar" else "labels"
    assert cli.main([*given, f"out=one/{name}"]) == 0
    for number in reversed(range(1, shards + 1)):
        assert cli.main([*given, f"out=parts/{name}", f"shard={number}/{shards}"]) == 0
        assert not (tmp_path / "parts" / name).exists()
    assert "When all are done: the same with merge=true" in capsys.readouterr().out
    assert cli.main([*given, f"out=parts/{name}", "merge=true"]) == 0
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [name]
    if columns == "sidecar":
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    else:
        assert digest(tmp_path / "one" / name) == digest(tmp_path / "parts" / name)


def test_demonstrations_are_fitted_once_for_all_instructions(many, tiny_clip, tmp_path, monkeypatch):
    """They were fitted anew for every instruction of the data, to the same numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "Recipe", lambda: Recipe(steps=5, pairs=32))
    fitted, train = [], process.train

    def counted(*args, **more):
        fitted.append(args)
        return train(*args, **more)

    monkeypatch.setattr(process, "train", counted)
    given = [word.replace("reward=clip", "reward=process") for word in words(many, tiny_clip, f"reward.demos={many}")]
    assert cli.main([*given, "out=one.parquet"]) == 0
    assert len(fitted) == 1
    for shard in ("shard=1/2", "shard=2/2", "merge=true"):
        assert cli.main([*given, "out=parts.parquet", shard]) == 0
    assert len(fitted) == 4
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "parts.parquet").read_bytes()
    dataset, potential = Dataset(many), np.asarray(pq.read_table("one.parquet")["potential"])
    config, first = compose("label", given[1:]), 0
    for i in range(2):  # of two instructions, each by a reward that is made for it alone
        scorer = labelling.scorer_for(config, dataset.instruction(i), dataset, dataset.cameras)
        (episode,) = encode(dataset, scorer.encoder, indices=[i])
        expected = labelling.score(scorer, [episode], [np.zeros(len(episode), bool)])[0]["potential"]
        np.testing.assert_allclose(potential[first : first + len(episode)], expected, atol=1e-6)
        first += len(episode)


def test_a_merge_names_what_is_missing_and_a_killed_shard_repeats_alone(many, tiny_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = words(many, tiny_clip, "batch=2", "out=parts/labels.parquet")
    assert cli.main([*given, "shard=1/2"]) == 0
    made, save = [], labelling.save_file

    def killed_in_a_batch(labels, part):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(part)
        save(labels, part)

    with monkeypatch.context() as patch:
        patch.setattr(labelling, "save_file", killed_in_a_batch)
        assert cli.main([*given, "shard=2/2"]) == 130
    capsys.readouterr()
    assert cli.main([*given, "merge=true"]) == 2
    told = capsys.readouterr().err
    assert "must hold labels of all 8 episodes" in told
    assert "Run the shards that have them again" in told
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*.safetensors")}
    assert cli.main([*given, "shard=2/2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # what was there is not made again
    assert cli.main([*given, "merge=true"]) == 0
    assert cli.main(words(many, tiny_clip, "batch=2", "out=one.parquet")) == 0
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "parts/labels.parquet").read_bytes()


@pytest.mark.timeout(600)
def test_a_shard_that_is_killed_at_any_file_repeats_alone(tiny_clip, tmp_path, monkeypatch):
    """kill -9 before each file and each renaming, and in the middle of each file of labels."""
    monkeypatch.chdir(tmp_path)
    episodes(tmp_path / "data", 6)
    given = words(tmp_path / "data", tiny_clip, "batch=1")[1:]
    command = [sys.executable, "-m", "tests.killed_labels", "2", "3", "parts/labels.parquet", "--", *given]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert [each["killed"] for each in told] == [True] * (len(told) - 1) + [False]
    assert len(told) > 2 * 4  # of both episodes: features begun and renamed, labels cut short and renamed
    for each in told:
        assert (len(each["before"]), len(each["after"])) == (4, 6)
        assert each["before"].items() <= each["after"].items()  # the other shards' files are as they were
    assert {json.dumps([kept[0] for kept in each["after"].values()]) for each in told} == {
        json.dumps([kept[0] for kept in told[-1]["after"].values()])
    }
    assert cli.main(["label", *given, "out=one.parquet"]) == 0
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "parts/labels.parquet").read_bytes()
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["labels.parquet"]


def test_a_long_episode_is_scored_in_pieces(many, tiny_clip, tmp_path, monkeypatch):
    """The same numbers, and never more of its features in memory than a piece."""
    monkeypatch.chdir(tmp_path)
    given = words(many, tiny_clip)
    assert cli.main([*given, "out=whole.parquet"]) == 0
    read, windows = [], Encoded.windows

    def counted(self, i, rows):
        for features in windows(self, i, rows):
            read.append(features.main.shape[1])
            yield features

    monkeypatch.setattr(labelling, "LONG", 4)
    monkeypatch.setattr(Encoded, "windows", counted)
    assert cli.main([*given, "out=pieces.parquet"]) == 0
    assert max(read) == 4
    assert sum(read) == 50
    whole, pieces = (pq.read_table(f"{name}.parquet") for name in ("whole", "pieces"))
    for name in whole.column_names:
        np.testing.assert_allclose(whole[name], pieces[name], atol=1e-6)


@pytest.mark.parametrize("frames_read", ["none", "first", "all"])
def test_windows_are_the_episode_cut_up(many, tmp_path, frames_read):
    encoded = Encoded(Dataset(many), FakeEncoder(size=32), frames_read=frames_read, cache=tmp_path)
    whole, parts = encoded[2].features, list(encoded.windows(2, 4))
    assert [part.main.shape[1] for part in parts] == [4, 4, 1]
    torch.testing.assert_close(torch.cat([part.main for part in parts], 1), whole.main, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([part.signals["x"] for part in parts], 1), whole.signals["x"])
    if frames_read == "all":
        seen = torch.cat([part.frames["front"] for part in parts], 1)
        torch.testing.assert_close(seen, whole.frames["front"], rtol=0, atol=0)
    else:
        assert all(part.frames.keys() == whole.frames.keys() for part in parts)
