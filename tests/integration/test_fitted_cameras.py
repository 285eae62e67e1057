"""Heads that were fitted on several cameras, in verbs that show others: named, said or refused, never silently 0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from embodied import cli
from embodied.datasets import Dataset, Writer
from embodied.datasets.encoding import encode
from rewards.calibration import Decision
from rewards.encoders import OpenCLIPEncoder
from rewards.success import SuccessClassifier
from rewards.xirl import XIRL

ACTION = {"dtype": "float32", "shape": (1,), "names": ["a"]}
T = 8


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, tiny_clip) -> Path:
    """A folder with a dataset of two cameras, `data`, and heads that were fitted on both, `xirl` and `success`."""
    root = tmp_path_factory.mktemp("fitted")
    sizes = {"front": (32, 32), "side": (32, 32)}
    frames = {camera: np.full((T, 32, 32, 3), 60, np.uint8) for camera in sizes}
    for t in range(T):
        frames["front"][t, :, : 4 * t] = 220
        frames["side"][t, : 4 * t] = 200
    with Writer(root / "data", fps=10, features={"action": ACTION}, cameras=sizes) as writer:
        writer.add({"action": np.zeros((T, 1), np.float32)}, frames, instruction="fill it")
    encoder = OpenCLIPEncoder(tiny_clip, precision="fp32")
    (episode,) = encode(Dataset(root / "data"), encoder, cache=root / "cache")
    XIRL.fit([replace(episode, success=True)], updates=2).save(root / "xirl", encoder)
    weights = {camera: torch.zeros(1, encoder.dim) for camera in sizes}
    floors = {camera: torch.zeros(1) for camera in sizes}
    SuccessClassifier(weights, torch.ones(1), floors, Decision()).save(root / "success", encoder)
    return root


def run(fitted, tiny_clip, verb, kind, *words):
    encoder = ["encoder=open_clip", f"encoder.model={tiny_clip}", "encoder.precision=fp32"]
    return cli.main([verb, f"reward={kind}", f"reward.model={fitted / kind}", *encoder, *words])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_labels_of_one_of_two_cameras(fitted, tiny_clip, capsys):
    data = f"data={fitted / 'data'}"
    assert run(fitted, tiny_clip, "label", "xirl", data, "cameras=[front]") == 0
    assert "xirl was fitted on front, side, and is shown front: it judges without side" in capsys.readouterr().err
    assert run(fitted, tiny_clip, "label", "success", data, "cameras=[front]") == 2
    assert "Add cameras=[front,side], or fit it again" in capsys.readouterr().err
    assert run(fitted, tiny_clip, "label", "success", data) == 0
    assert "fitted on" not in capsys.readouterr().err


def test_a_dataset_s_camera_is_watched_by_its_name(fitted, tiny_clip, capsys):
    """Called "main", it would be none of those that the head knows."""
    quiet = ["view=none", "json=false"]
    source = f"dataset:{fitted / 'data'}#0/side"
    assert run(fitted, tiny_clip, "watch", "xirl", f"source={source}", *quiet) == 0
    told = capsys.readouterr().err
    assert "is shown side: it judges without front" in told
    assert f"{T} moments scored" in told
    assert run(fitted, tiny_clip, "watch", "success", f"source={source}", *quiet) == 2
    told = capsys.readouterr().err
    assert "was fitted on front, side, and is shown side" in told
    assert "Watched" not in told  # nothing was
    rig = f"source={{front: 'dataset:{fitted / 'data'}#0/front', side: '{source}'}}"
    assert run(fitted, tiny_clip, "watch", "success", rig, *quiet) == 0
