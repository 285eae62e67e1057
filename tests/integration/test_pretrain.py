"""`embodied pretrain` from renders to an encoder that runs, killed and resumed on the way."""

import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from embodied import cli
from embodied.commands import pretrain
from embodied.config import compose
from embodied.envs.captions import Captions
from embodied.errors import UserError
from embodied.paths import asset
from embodied.pretraining.renders import render
from rewards.encoders import OpenCLIPEncoder

SMALL = (
    "use=[cartpole]",
    "scenes.cartpole.frames=96",
    "test_frames=120",
    "recipe.epochs=2",
    "recipe.batch_size=32",
    "workers=1",
    "judge_on=val",
)


def test_pretrain_adapts_a_model_and_resumes(tiny_clip, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["pretrain", f"model={tiny_clip}", f"run={run}", *SMALL]
    assert cli.main(words) == 0
    assert "retrieval at 1" in capsys.readouterr().out
    judgement = json.loads((run / "encoder" / "judgement.json").read_text())
    facts = judgement["scenes"]["cartpole"]["own_look"]["facts"]
    assert facts
    assert all(0 <= area <= 1 for row in facts.values() for area in row["unseen"].values())
    encoder = OpenCLIPEncoder(f"local-dir:{run / 'encoder'}", device="cpu")
    before = encoder.encode_texts(["the pole is up"])

    assert cli.main(words) == 2  # the folder is taken
    assert "resume=true" in capsys.readouterr().err
    assert cli.main([*words, "resume=true"]) == 0  # nothing left to do but judge
    again = OpenCLIPEncoder(f"local-dir:{run / 'encoder'}", device="cpu").encode_texts(["the pole is up"])
    torch.testing.assert_close(again, before, rtol=0, atol=0)
    adapted = OpenCLIPEncoder(tiny_clip, device="cpu").encode_texts(["the pole is up"])
    assert not torch.allclose(adapted, before)

    kept = (run / "config.yaml").read_text()
    for other in ("recipe.epochs=3", "scenes.cartpole.frames=48", "use=[reacher]"):
        assert cli.main(["pretrain", f"run={run}", "resume=true", other]) == 2
        told = capsys.readouterr().err
        assert f"goes on with its own settings; got others for {other.partition('=')[0]}" in told
    # without a word on them, by its own settings
    renders = {file.name: file.stat().st_mtime_ns for file in (run / "renders").iterdir()}
    assert cli.main(["pretrain", f"run={run}", "resume=true", "workers=2"]) == 0
    assert (run / "config.yaml").read_text() == kept
    assert {file.name: file.stat().st_mtime_ns for file in (run / "renders").iterdir()} == renders
    told = json.loads((run / "encoder" / "judgement.json").read_text())
    assert list(told["scenes"]) == ["cartpole"]


@pytest.mark.parametrize("scene", [{}, {"data": "path"}])
def test_a_desk_of_ones_own_is_judged_without_the_goals_that_it_lacks(scene, tiny_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "_rendered", lambda *args: None)
    monkeypatch.setattr(pretrain, "judge_scene", lambda *args: {})
    monkeypatch.setattr(pretrain, "retrieval", lambda *args: 0.5)
    ordered = []
    monkeypatch.setattr(pretrain, "order_along_expert", lambda encoder, env, goal, seeds: ordered.append((env, goal)))
    ours = Captions.load(asset("desk") / "captions.yaml")
    goals = ours.goals if "data" in scene else {"drawer_open": "pull it out"}
    config = compose("pretrain", ["use=[desk]"])
    OmegaConf.set_struct(config, False)
    config.scenes.desk.update(scene)
    encoder = OpenCLIPEncoder(tiny_clip, device="cpu")
    pretrain.judge(encoder, config, {"desk": Captions(ours.facts, goals)}, tmp_path, 32)
    assert ordered == ([] if scene else [("embodied/desk-drawer-v0", "pull it out")])


def test_two_that_begin_in_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain, "datetime", SimpleNamespace(now=lambda zone: datetime(2026, 1, 1, tzinfo=zone)))

    def far_enough(*args):
        raise UserError("far enough")

    monkeypatch.setattr(pretrain, "Towers", lambda model, **settings: None)
    monkeypatch.setattr(pretrain.runs, "save_config", far_enough)
    for _ in range(2):
        with pytest.raises(UserError, match="far enough"):
            pretrain.run(compose("pretrain", []))
    assert sorted(path.name for path in Path("runs/pretrain").iterdir()) == ["20260101-000000", "20260101-000000-2"]


def test_renders_depend_on_the_seed_alone():
    one, same, other = (
        render(["embodied/reacher-red-v0"], 12, seed=seed, image_size=32, workers=1)
        for seed in ((5, 0), (5, 0), (6, 0))
    )
    assert np.array_equal(one.frames, same.frames)
    assert np.array_equal(one.degrees, same.degrees)
    assert not np.array_equal(one.frames, other.frames)
    assert one.degrees.shape == (12, len(one.facts))
    assert ((one.degrees == 1) | (one.degrees < 0.9)).all()


def test_a_batch_of_more_frames_than_there_are_is_told_before_anything_is_rendered(tiny_clip, tmp_path, capsys):
    words = ["pretrain", f"model={tiny_clip}", f"run={tmp_path / 'run'}", *SMALL, "recipe.batch_size=5000"]
    assert cli.main(words) == 2
    assert "recipe.batch_size must be at most" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
