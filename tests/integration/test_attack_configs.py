"""What a stranger's folder tries: a run that sends secrets, an encoder with code, a dataset with settings for texts."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from embodied import cli
from embodied.config import compose
from embodied.datasets import Dataset, Writer
from embodied.literal import saved_text
from rewards.chat.asking import LocalChat
from rewards.encoders import OpenCLIPEncoder, TransformersEncoder
from tests.chat_server import chat_server, probabilities, text
from tests.conftest import TINY_CLIP, save_open_clip

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder, a person with a secret who has run nothing yet, and no input to be asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("MY_SECRET", SECRET)
    monkeypatch.setenv("EMBODIED_TOKEN", SECRET)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is to be asked whether code may run"))


@contextmanager
def listener():
    """A port that notes whoever connects."""
    calls: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(0.2)
                    calls.append(connection.recv(4096))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", calls
        finally:
            stop.set()
            thread.join()


# A run --------------------------------------------------------------------------------------------------


def run_folder(tmp_path, words, change):
    """A run as `embodied train` leaves it, its config changed by a stranger."""
    folder = tmp_path / "theirs"
    (folder / "checkpoints" / "0000000010").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    values = yaml.safe_load(saved_text(compose("train", words)))
    change(values)
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder


def deep(values, key, value):
    *path, last = key.split(".")
    for each in path:
        values = values[each]
    values[last] = value


@pytest.mark.parametrize("words", [["evaluate"], ["train", "resume=true"]])
@pytest.mark.parametrize(
    ("chosen", "changes", "named"),
    [
        ("reward=remote", {"reward.url": "URL"}, "reward.url=URL"),
        ("reward=remote", {"reward.token_env": "MY_SECRET"}, "reward.token_env=MY_SECRET"),
        ("reward=remote", {"reward.token_file": "/etc/passwd"}, "reward.token_file=/etc/passwd"),
        ("reward=remote", {"reward.url": "URL/${oc.env:MY_SECRET}"}, "reward.url=URL/${oc.env:MY_SECRET}"),
        ("reward=topreward_chat", {"reward.goal": "a", "reward.vlm.url": "URL/v1"}, "reward.vlm.url=URL/v1"),
        ("reward=topreward_chat", {"reward.goal": "a", "reward.vlm.api_key_env": "MY_SECRET"}, "api_key_env=MY_SECRET"),
        ("reward=topreward_chat", {"reward.goal": "a", "reward.asking.trace": "/srv/x"}, "reward.asking.trace=/srv/x"),
        ("encoder=remote", {"encoder.url": "URL"}, "encoder.url=URL"),
        ("reward=true", {"env.id": "stranger:World-v0"}, "env.id=stranger:World-v0"),
    ],
)
def test_a_stranger_s_run_reaches_nothing(tmp_path, capsys, words, chosen, changes, named):
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with listener() as (url, calls):

        def change(values):
            for key, value in changes.items():
                deep(values, key, value.replace("URL", url))

        folder = run_folder(tmp_path, ["env=cartpole", chosen], change)
        assert cli.main([*words, f"run={folder}"]) == 2
        told = capsys.readouterr().err
        assert named.replace("URL", url) in told
        assert "add 'trust=[" in told
        assert SECRET not in told
    assert calls == []
    assert not (tmp_path / "ran").exists()


def test_a_saved_text_is_never_resolved(tmp_path, capsys):
    """The goal is too long for the encoder, whose error shows what it was given."""

    def change(values):
        values["reward"]["goal"] = "${oc.env:MY_SECRET}" + " and then once more" * 20

    folder = run_folder(tmp_path, ["env=cartpole", "reward=clip"], change)
    assert cli.main(["evaluate", f"run={folder}"]) == 2
    told = capsys.readouterr().err
    assert "${oc.env:MY_SECRET} and then" in told
    assert SECRET not in told


def test_a_stranger_s_policy_imports_no_world(tmp_path, capsys):
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    folder = run_folder(tmp_path, ["env=cartpole"], lambda values: deep(values, "env.id", "stranger:World-v0"))
    assert cli.main(["collect", f"policy=run:{folder}", "out=made"]) == 2
    assert "env.id=stranger:World-v0" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


# An encoder ---------------------------------------------------------------------------------------------


def with_code(folder, tmp_path):
    """Code beside a model, which leaves a file where it runs."""
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import PreTrainedTokenizer, CLIPModel, CLIPImageProcessor\n"
        "class T(PreTrainedTokenizer): pass\nclass M(CLIPModel): pass\nclass P(CLIPImageProcessor): pass\n"
    )


@pytest.mark.parametrize(
    "text_cfg",
    [
        {"hf_tokenizer_name": "local", "tokenizer_kwargs": {"trust_remote_code": True}},
        {"hf_tokenizer_name": "local", "tokenizer_kwargs": {"code_revision": "main"}},
        {"hf_tokenizer_name": "local"},  # nobody says yes, so transformers would ask
    ],
)
def test_an_open_clip_folder_runs_no_code(tmp_path, text_cfg):
    folder = tmp_path / "model"
    save_open_clip(folder, TINY_CLIP)
    config = json.loads(json.dumps(TINY_CLIP))
    config["model_cfg"]["text_cfg"] |= text_cfg
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "odd"}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}})
    )
    with_code(folder, tmp_path)
    with pytest.raises(ValueError, match="must come without code of its own"):
        OpenCLIPEncoder(f"local-dir:{folder}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("make", [TransformersEncoder, LocalChat])
def test_a_transformers_folder_runs_no_code(tmp_path, make):
    folder = tmp_path / "model"
    folder.mkdir()
    auto = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoModelForImageTextToText": "evil.M"}
    (folder / "config.json").write_text(json.dumps({"model_type": "odd", "auto_map": auto}))
    processors = {"AutoProcessor": "evil.P", "AutoImageProcessor": "evil.P"}
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": processors}))
    with_code(folder, tmp_path)
    with pytest.raises(ValueError, match="must come without code of its own"):
        make(str(folder))
    assert not (tmp_path / "ran").exists()


# A dataset ----------------------------------------------------------------------------------------------

ACTION = {"dtype": "float32", "shape": (1,), "names": ["a"]}


def dataset(root, task, env=None):
    frames = np.full((6, 32, 32, 3), 90, np.uint8)
    frames[:, 8:20] += np.arange(6, dtype=np.uint8)[:, None, None, None] * 9
    with Writer(root, fps=10, features={"action": ACTION}, cameras={"front": (32, 32)}, env=env) as writer:
        writer.add({"action": np.zeros((6, 1), np.float32)}, {"front": frames}, instruction=task)
    return root


TASKS = ["put the ${item} away", "${oc.env:MY_SECRET}", "close {task} {0} <b>", "on <image> go", "\\${a}", "抽屉开着"]


@pytest.mark.parametrize("task", TASKS)
def test_a_dataset_s_task_is_asked_as_it_stands(tmp_path, task):
    data = dataset(tmp_path / "data", task)
    assert Dataset(data).instruction(0) == task
    asked = []

    def answer(body):
        asked.append(text(body))
        return probabilities(Yes=-0.1, No=-2.4)

    with chat_server(answer) as served:
        vlm = f"{{url:'{served.url}',model:m}}"
        words = ["label", f"data={data}", "reward=success", f"reward.vlm={vlm}", "reward.demos=null", "out=a.parquet"]
        assert cli.main(words) == 0
    assert asked
    assert all(f"Its task: {task.replace('<image>', '[image]')}." in each for each in asked)
    assert json.loads(pq.read_schema("a.parquet").metadata[b"goals"]) == [task]


@pytest.mark.parametrize("verb", ["label", "watch", "judge"])
def test_every_verb_takes_a_task_as_text(tmp_path, capsys, verb):
    """The text is too long for the encoder, whose error shows what it was given."""
    data = dataset(tmp_path / "data", "${oc.env:MY_SECRET} ${item}" + " and then once more" * 20)
    where = {
        "label": [f"data={data}"],
        "watch": [f"source=dataset:{data}#0", "view=none"],
        "judge": [f"data={data}", "unlabelled=success"],
    }
    assert cli.main([verb, *where[verb], "reward=clip"]) == 2
    told = capsys.readouterr().err
    assert "${oc.env:MY_SECRET} ${item} and then" in told
    assert SECRET not in told


@pytest.mark.parametrize("verb", ["label", "watch"])
def test_a_dataset_s_world_is_data_too(tmp_path, capsys, verb):
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    env = {"id": "stranger:World-v0", "kwargs": {"a": "${oc.env:MY_SECRET}"}}
    data = dataset(tmp_path / "data", "it is bright", env=env)
    where = {
        "label": [f"data={data}", "out=a.parquet"],
        "watch": [f"source=dataset:{data}#0", "view=none", "json=false"],
    }
    assert cli.main([verb, *where[verb], "reward=clip"]) == 0
    assert not (tmp_path / "ran").exists()


def test_what_a_text_says_to_the_terminal_is_shown(capsys):
    assert cli.main(["\x1b]0;owned\x07"]) == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert "owned" in told
