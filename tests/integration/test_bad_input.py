"""Whatever a person gets wrong ends in one clear line, status 2, and nothing half-written."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from embodied import cli
from embodied.building.build import build
from embodied.config import compose
from embodied.reports.page import write_report
from embodied.reports.video import write_video
from rewards.clip_goal import ClipGoal

FULL = Path("/dev/full")  # every write there fails with "no space left on device"
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """The folder in which commands run; empty at first."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *words: str) -> str:
    """The one line that a command says as it refuses."""
    capsys.readouterr()
    assert cli.main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("embodied")
    return err


def tiny(model: str) -> list[str]:
    return ["encoder=open_clip", f"encoder.model={model}", "env=cartpole"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trian", ["unknown verb 'trian'", "did you mean train?"]),
        ("train env=desk-drawr", ["unknown env 'desk-drawr'", "did you mean desk-drawer?"]),
        ("train reward=clib", ["unknown reward 'clib'", "did you mean clip?"]),
        ("train encoder=embeded", ["unknown encoder 'embeded'", "did you mean embedded?"]),
        ("train policy=rlpf", ["unknown policy 'rlpf'", "did you mean rlpd?"]),
        ("train experiment=dmeo", ["unknown experiment 'dmeo'", "did you mean demo?"]),
        ("train reward.gaol=x", ["unknown setting 'reward.gaol'", "reward.goal"]),
        ("train stpes=10", ["unknown setting 'stpes'", "Did you mean steps"]),
        ("train steps=many", ["steps must be a whole number; got 'many'"]),
        ("train steps", ["settings are written key=value; got 'steps'"]),
        ("train --steps=10", ["unknown option --steps=10", "key=value"]),
        ("train env=gym env.id=HalfCheetah-v9 reward=true", ["HalfCheetah-v9", "HalfCheetah-v5"]),
        ("train env=gym", ["env.id is missing"]),
        ("train env.camera=rear reward=true", ["camera", "rear", "front"]),
        ("train env.obs=sound reward=true", ["obs", "sound", "state"]),
        ("train policy=dqn reward=true", ["dqn: actions must be Discrete", "policy=rlpd"]),
        ("train num_worlds=0 reward=true", ["num_worlds must be at least 1; got 0"]),
        ("train steps=-5 reward=true", ["steps must be at least 1; got -5"]),
        ("train threads=0 reward=true", ["threads must be at least 1; got 0"]),
        ("train device=gpu reward=true", ["device must be auto, cpu, cuda, mps or cuda:N; got 'gpu'", "cpu"]),
        ("train env=cartpole reward=process", ["reward.demos=path/to/lerobot", "reward.model=FOLDER"]),
        ("fit demos=nowhere out=head", ["demos must be a LeRobot folder", "got 'nowhere'"]),
        ("judge data=nowhere reward=true", ["reward must be one that sees"]),
        ("practise robot=so101", ["robot must be null or simulated; got 'so101'", "RobotEnv"]),
        ("train run=. reward=true", ["run must be a new folder; got ."]),
        ("train resume=true", ["runs/train must hold a run"]),
        ("evaluate run=nowhere", ["run must be a run folder", "nowhere"]),
        ("preview reward=true columns=0", ["columns must be at least 1; got 0"]),
        ("preview reward=true out=sheet.gif", ["out must end in .png; got sheet.gif"]),
        ("collect policy=expert noise=0.5", ["noise is for policy=mixed; got it for expert"]),
        ("collect policy=counterfactual hold=5", ["hold is for policy=random and mixed; got it for counterfactual"]),
        ("collect policy=random shares.expert=0.2", ["shares is for policy=mixed; got it for random"]),
        ("judge benchmark=oxe data=x success=next.reward", ["success must be left out with benchmark=…"]),
        ("collect policy=mixed noise=-1", ["noise must be at least 0; got -1"]),
        ("serve proxies=10.0.0.2", ["proxies must be a list; got 10.0.0.2. Write proxies=[10.0.0.2]."]),
        ("pretrain resume=true", ["run must say which run resume=true goes on with"]),
        ("pretrain judge_on=tset", ["judge_on must be test or val; got 'tset'"]),
        ("pretrain use=[]", ["use must name scenes of the config"]),
        ("pretrain device=gpu", ["device must be auto", "got 'gpu'"]),
        ("pretrain workers=0", ["workers must be at least 1; got 0"]),
        ("pretrain recipe.lr=0", ["recipe.lr must be above 0; got 0"]),
        ("pretrain recipe.epochs=0", ["recipe.epochs must be at least 1; got 0"]),
        ("pretrain use=[cartpole] model=ViT-B-33 run=x", ["'ViT-B-33'", "ViT-B-32"]),
        ("serve policy=x goal=y", ["reward is of reward models", "Drop reward"]),
        ("serve policy=x encoder=town", ["encoder is of reward models", "Drop encoder"]),
        ("fit demos=x out=y reward.demos=3", ["reward.demos must be left out"]),
        ("finetune", ["data must be a LeRobot folder", "no run to go on with"]),
        ("train steps=null reward=true", ["steps must be at least 1; got None"]),
        ("train run=latest reward=true", ["run must be a new folder; latest means the newest", "Add resume=true"]),
        ("collect policy=null", ["policy must be expert, mixed", "got None"]),
        ("label data=null", ["data must be given; got null"]),
        ("label data=[a,b]", ["data must be one text; got ['a', 'b']"]),
        ("judge data=[a,b]", ["data must be one text; got ['a', 'b']"]),
        ("train run=[a]", ["run must be one text; got ['a']"]),
        ("judge wrong=press", ["wrong must be a list; got press. Write wrong=[press]."]),
        ("evaluate run=[a]", ["run must be one text; got ['a']"]),
    ],
)
def test_a_wrong_word_gets_the_nearest_right_one(capsys, here, words, expected):
    line = refused(capsys, *words.split())
    for part in expected:
        assert part in line, line
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        "train reward=true run=file/x", "practise run=file/x", "judge run=file/x", "preview out=file/x/y.png",
        "fit demos=desk-drawer-expert out=file/x", "fit demos=desk-drawer-expert out=file",
        "audit data=desk-drawer-mixed run=file/x", "finetune data=desk-drawer-mixed run=file/x",
    ],
)  # fmt: skip
def test_a_place_that_cannot_be_is_told_before_anything_is_made(capsys, here, words):
    (here / "file").write_text("mine")
    line = refused(capsys, *words.split())
    assert re.search(r"(run|out) must (lie in|be) a folder; got file", line), line
    assert [path.name for path in here.iterdir()] == ["file"]
    assert (here / "file").read_text() == "mine"


def test_an_unknown_model_gets_the_nearest(capsys, here):
    line = refused(capsys, "train", "reward.goal=x", "encoder=open_clip", "encoder.model=ViT-B-33:laion2b_s34b_b79k")
    assert "'ViT-B-33'" in line
    assert "ViT-B-32" in line
    line = refused(capsys, "train", "reward.goal=x", "encoder=open_clip", "encoder.model=ViT-B-32:laion2b_s34b")
    assert "laion2b_s34b_b79k" in line
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        ("reward.goal=", "goal must be a text, or several; got ''"),
        ("reward.goal=   ", "goal must be a text, or several; got ' '"),
        ("reward.goal=[]", "goal must be a text, or several; got []"),
        ("reward.goal=" + "open the drawer " * 20, "24"),
    ],
)
def test_an_empty_or_over_long_prompt(capsys, here, tiny_clip, goal, expected):
    line = refused(capsys, "train", *tiny(tiny_clip), goal)
    assert expected in line
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("encoder", "model"),
    [
        ("open_clip", "ViT-B-32:laion400m_e32"),
        ("open_clip", "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("transformers", "google/siglip2-base-patch16-224"),
    ],
)
def test_missing_weights_without_a_network_say_what_to_put_where(capsys, here, monkeypatch, encoder, model):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "cache"))
    line = refused(capsys, "train", "reward.goal=x", f"encoder={encoder}", f"encoder.model={model}")
    assert model.rpartition(":")[2] in line
    assert "is not on this machine" in line
    assert "hf download" in line
    assert "model=" in line
    assert [p.name for p in here.iterdir() if p.name != "cache"] == []


def test_a_folder_without_weights_says_what_it_must_hold(capsys, here):
    line = refused(capsys, "train", "reward.goal=x", "encoder=open_clip", "encoder.model=local-dir:nowhere")
    assert "must hold open_clip_config.json and open_clip_model.safetensors" in line


@pytest.mark.parametrize(
    ("frames", "error", "got"),
    [
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), ValueError, r"got uint8 \(2, 3, 32, 32\)"),
        (torch.zeros(32, 32, 3, dtype=torch.uint8), ValueError, r"got uint8 \(32, 32, 3\)"),
        (torch.zeros(2, 32, 32, 4, dtype=torch.uint8), ValueError, r"got uint8 \(2, 32, 32, 4\)"),
        (torch.zeros(2, 32, 32, 3), TypeError, r"got float32 \(2, 32, 32, 3\)"),
    ],
)
def test_frames_of_a_wrong_shape_or_dtype(tiny_clip, frames, error, got):
    config = compose("train", [*tiny(tiny_clip), "reward.goal=the pole stands up"])
    scorer = build(config.reward, encoder=build(config.encoder))
    with pytest.raises(error, match=rf"frames must be uint8 \(B, H, W, 3\); {got}\. Pass unresized RGB") as caught:
        scorer.encode(frames)
    assert "\n" not in (cli.explain(caught.value) or "\n")


def test_nan_from_a_reward_names_the_head(capsys, here, tiny_clip, monkeypatch):
    def broken(self, features):
        return torch.full(features.main.shape[:2], torch.nan)

    monkeypatch.setattr(ClipGoal, "score", broken)
    small = [
        "steps=200",
        "num_worlds=2",
        "policy=sac",
        "policy.network=[8]",
        "policy.buffer_size=1000",
        "final_episodes=1",
    ]
    assert cli.main(["train", *tiny(tiny_clip), "reward.goal=the pole stands up", *small]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "head 'clip' must give finite numbers; got nan" in err
    (folder,) = (here / "runs" / "train").iterdir()
    assert '"status": "failed"' in (folder / "run.json").read_text()


# A full disk -------------------------------------------------------------------------------------------


@needs_full
def test_a_full_disk_in_preview(capsys, here):
    (here / f".preview.part{os.getpid()}.png").symlink_to(FULL)
    line = refused(capsys, "preview", "env=cartpole", "reward=true", "columns=2", "max_steps=2")
    assert "the disk is full" in line
    assert "write elsewhere with out=" in line
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(("verb", "key"), [
    ("train", "run"), ("collect", "out"), ("fit", "out"), ("label", "out"), ("preview", "out"), ("judge", "run"),
    ("watch", "record"), ("serve", None),
])  # fmt: skip
def test_the_advice_on_a_full_disk_names_a_setting_that_the_verb_has(verb, key):
    told = cli.explain(OSError(errno.ENOSPC, "No space left on device"), verb)
    assert ("write elsewhere" in told) is (key is not None)
    if key:
        assert f"with {key}=" in told
        assert re.search(rf"^  {key}:", cli.verb_help(verb), re.MULTILINE)


@needs_full
def test_a_full_disk_in_a_video(here):
    (here / f".v.part{os.getpid()}.mp4").symlink_to(FULL)
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    with pytest.raises(OSError, match="No space left") as caught:
        write_video(here / "v.mp4", list(noise), np.zeros(40))
    assert "the disk is full" in (cli.explain(caught.value) or "")
    assert list(here.iterdir()) == []


@needs_full
def test_a_full_disk_in_a_report_keeps_the_old_one(here):
    old = write_report(here).read_text()
    (here / f".report.part{os.getpid()}.html").symlink_to(FULL)
    with pytest.raises(OSError, match="No space left"):
        write_report(here)
    assert (here / "report.html").read_text() == old
    assert [p.name for p in here.iterdir()] == ["report.html"]
