"""Datasets and fitted rewards by hub id, and back to it, against a stand-in for the hub."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from embodied import cli, hub
from embodied.datasets import Dataset, Writer
from tests.hub_server import hub as hub_server

SIZE = 32
TASK = "fill ```the bar``` ${oc.env:HOME}"


@pytest.fixture
def there(monkeypatch, tmp_path):
    """The hub, and an empty folder to work in."""
    with hub_server() as state:
        monkeypatch.setenv("HF_ENDPOINT", state.url)
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.chdir(tmp_path)
        yield state


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("hub") / "bars", np.random.default_rng(0)
    features = {"next.success": {"dtype": "bool", "shape": (1,), "names": None}}
    with Writer(root, fps=10, features=features, cameras={"front": (SIZE, SIZE)}) as writer:
        for k in range(8):  # every other one gets bright, and succeeds
            frames = rng.integers(0, 60, (6, SIZE, SIZE, 3), np.uint8)
            frames[:, :16] += (np.arange(6) * 38 * (k % 2 == 0)).astype(np.uint8)[:, None, None, None]
            solved = np.arange(6)[:, None] == (5 if k % 2 == 0 else 9)
            writer.add({"next.success": solved}, {"front": frames}, instruction=TASK)
    return root


def uploaded(root) -> dict[str, bytes]:
    return {path: file.read_bytes() for path, file in hub.folder_files(root).items()}


def words(tiny_clip, *more):
    return [*more, "encoder=open_clip", f"encoder.model={tiny_clip}", "encoder.precision=fp32"]


def test_labels_of_a_dataset_of_the_hub_go_to_the_hub(there, data, tiny_clip, tmp_path, capsys):
    there.repos["dataset", "them/bars"] = uploaded(data) | {"run_me.py": b"raise SystemExit", "README.md": b"theirs"}
    there.repos["dataset", "me/labels"] = {"README.md": b"mine"}
    given = ["label", "reward=clip", "data=hub:them/bars", "out=l.parquet", "push=me/labels"]
    assert cli.main(words(tiny_clip, *given)) == 0, capsys.readouterr().err
    assert len(Dataset("runs/hub/datasets/them--bars")) == 8
    assert "run_me.py" not in there.read
    assert not list(Dataset("runs/hub/datasets/them--bars").root.rglob("*.py"))
    pushed = there.repos["dataset", "me/labels"]
    assert set(pushed) == {"README.md", "clip_progress.parquet", "clip_progress.md"}
    assert pushed["README.md"] == b"mine"  # a dataset's own card stays
    assert pushed["clip_progress.parquet"] == (tmp_path / "l.parquet").read_bytes()
    told = pushed["clip_progress.md"].decode()
    fenced = told.split("````json\n")[1].split("\n````")[0]
    assert json.loads(fenced)["goals"] == [TASK]  # a text of others, as data
    assert TASK not in told.split("````json")[0]
    assert "Pushed: http://127.0.0.1" in capsys.readouterr().out


def test_a_labelled_copy_is_pushed_whole(there, data, tiny_clip, capsys):
    given = ["label", "reward=clip", f"data={data}", "columns=columns", "out=labelled", "push=me/labelled"]
    assert cli.main(words(tiny_clip, *given)) == 0, capsys.readouterr().err
    pushed = there.repos["dataset", "me/labelled"]
    assert set(pushed) == {*uploaded(data), "README.md"}
    assert there.made[0].get("private") is True or there.made[0].get("visibility") == "private"
    assert str(data.parent) not in pushed["README.md"].decode()  # nor where it lay
    assert cli.main(words(tiny_clip, "label", "reward=clip", "data=hub:me/labelled", "name=b", "out=b.parquet")) == 0
    assert pq.read_table("b.parquet").num_rows == 48


def test_a_fitted_reward_goes_to_the_hub_and_comes_back(there, data, tiny_clip, capsys):
    given = ["fit", "reward=success", f"demos={data}", "episodes=0", "out=head", "push=me/head", "private=false"]
    assert cli.main(words(tiny_clip, *given)) == 0, capsys.readouterr().err
    pushed = there.repos["model", "me/head"]
    assert {"README.md"} < set(pushed)
    assert "reward=success reward.model=hub:me/head" in pushed["README.md"].decode()
    assert there.made[0].get("private") is False or there.made[0].get("visibility") == "public"
    for source in ("head", "hub:me/head"):
        given = ["label", "reward=success", f"reward.model={source}", f"data={data}", f"out={source[:3]}.parquet"]
        assert cli.main(words(tiny_clip, *given)) == 0, capsys.readouterr().err
    np.testing.assert_array_equal(*(pq.read_table(f"{n}.parquet")["potential"].to_numpy() for n in ("hea", "hub")))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["data=hub:them/none"], "data: the hub must have 'hub:them/none'"),
        (["data=hub:none"], "data must be hub:OWNER/NAME or hub:OWNER/NAME@REVISION; got 'hub:none'"),
        (["data=hub:../x"], "data must be hub:OWNER/NAME"),
        (["data=x", "push=none"], "push must be OWNER/NAME; got 'none'"),
    ],
)
def test_what_is_not_there_is_one_line(there, tiny_clip, capsys, given, text):
    assert cli.main(words(tiny_clip, "label", "reward=clip", *given)) == 2
    told = capsys.readouterr().err
    assert text in told
    assert len(told.strip().splitlines()) == 1
