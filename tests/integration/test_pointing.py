"""Segmented renders, coverage, and training an encoder to point at parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embodied import cli
from embodied.errors import UserError
from embodied.pretraining import pointing
from embodied.pretraining.pointing import Parts, Segmented, coverage, judge, segmented, train
from rewards.encoders import OpenCLIPEncoder
from rewards.grounding import FILE, Grounder
from tests.conftest import save_open_clip
from tests.unit.test_grounding import TINY_RESNET


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    name = save_open_clip(tmp_path_factory.mktemp("resnet"), TINY_RESNET)
    return OpenCLIPEncoder(name, precision="fp32", device="cpu")


@pytest.mark.parametrize("scene", pointing.WORLDS)
def test_every_scene_has_parts_with_wordings_apart(scene):
    parts = Parts.load(scene)
    data = segmented(scene, 6, seed=(1, 2), image_size=64)
    assert data.names == parts.names
    assert data.frames.shape == (6, 64, 64, 3)
    seen = set(np.unique(data.parts).tolist())
    assert seen <= set(range(len(parts.names) + 1))
    assert len(seen) > len(parts.names) * 0.7  # nearly every part is in sight somewhere
    again = segmented(scene, 6, seed=(1, 2), image_size=64)
    np.testing.assert_array_equal(data.frames, again.frames)
    np.testing.assert_array_equal(data.parts, again.parts)


def test_masks_lie_on_their_part():
    data = segmented("desk", 8, seed=(5,), image_size=96, own_look=1.0)
    for channel, name in enumerate(("red cube", "green cube", "blue cube")):
        inside = data.frames[data.parts == 1 + data.names.index(name)].mean(0)
        assert inside.argmax() == channel
        assert inside[channel] > 1.5 * np.delete(inside, channel).max()


def test_coverage_is_the_share_of_each_cell():
    parts = torch.zeros(8, 8, dtype=torch.uint8)
    parts[:4, :3] = 2
    got = coverage(parts, 3, (2, 2))
    assert got.shape == (3, 2, 2)
    torch.testing.assert_close(got[1], torch.tensor([[0.75, 0.0], [0.0, 0.0]]))
    assert got[[0, 2]].sum() == 0


def test_it_learns_to_point(encoder, tmp_path):
    """Two coloured squares on grey, told apart by name, after some seconds on random towers."""
    rng = np.random.default_rng(0)
    frames, parts = np.full((160, 64, 64, 3), 128, np.uint8), np.zeros((160, 64, 64), np.uint8)
    for frame, part in zip(frames, parts, strict=True):
        near, far = rng.integers(0, 20), rng.integers(30, 48)
        columns = [near, far] if rng.random() < 0.5 else [far, near]
        for number, (x, y) in enumerate(zip(columns, rng.integers(0, 48, 2), strict=True)):
            frame[y : y + 14, x : x + 14] = [(220, 20, 20), (20, 30, 230)][number]
            part[y : y + 14, x : x + 14] = number + 1
    names, wordings = Parts.load("cartpole").names, Parts.load("cartpole").captions.facts
    for column, name in enumerate(names):  # a text tower of random weights says nearly the same of all texts
        said = torch.nn.functional.one_hot(torch.tensor(column), encoder.dim).float()
        encoder._texts |= dict.fromkeys(wordings[name]["train"].all(), said)
    made = train(
        encoder, [Segmented("cartpole", names, frames[:130], parts[:130])], epochs=20, batch_size=13, lr=1e-2, hidden=32
    )
    made.save(tmp_path, encoder)
    assert (tmp_path / FILE).stat().st_size < 1e6
    grounder = Grounder(encoder)
    assert grounder.projector is None  # nothing beside its weights yet
    grounder.projector = made
    held = Segmented("cartpole", names, frames[130:], parts[130:])
    rows = judge(grounder, held, "train")
    assert np.mean([row["hit"] for row in rows]) > 0.8
    assert np.median([row["error_px"] for row in rows]) < 6
    swapped = Segmented("cartpole", names, held.frames, np.array([0, 2, 1], np.uint8)[held.parts])
    assert np.mean([row["hit"] for row in judge(grounder, swapped, "train")]) < 0.2
    assert {"pole", "cart"} == {row["part"] for row in rows}
    table = pointing.summary(rows)
    assert "median px" in table
    assert "pole" in table


def test_wrong_arguments_are_told():
    with pytest.raises(UserError, match=r"arguments must be encoder=FOLDER.*got frames=many"):
        pointing.main(["frames=many"])
    with pytest.raises(ValueError, match="must be an open_clip ResNet"):
        train(_vit(), [])


@pytest.mark.parametrize("word", ["frames=20", "frames=1", "epochs=0", "pointer=1"])
def test_counts_that_teach_nothing_are_told_before_anything_is_rendered(word, monkeypatch, capsys):
    name, _, value = word.partition("=")
    monkeypatch.setattr(pointing, "segmented", None)
    monkeypatch.setattr("sys.argv", ["pointing", word])
    assert cli.run_module(pointing.main, "pointing") == 2
    told = capsys.readouterr().err
    assert told.startswith(f"pointing: {name} must be ")
    least = {"frames": 100, "epochs": 1, "pointer": 256}[name]
    assert told.endswith(f"at least {least}; got {value}.\n")


def _vit():
    class Vit:
        name, _image_tower = "vit", torch.nn.Identity()

    fake = OpenCLIPEncoder.__new__(OpenCLIPEncoder)
    fake.name, fake._image_tower = Vit.name, Vit._image_tower
    return fake
