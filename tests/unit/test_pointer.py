"""Places from vectors: the pointer on disk, through resize and crop, and learning to tell them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from embodied.pretraining.pointer import SURE, see, teach
from rewards.encoders import OpenCLIPEncoder
from rewards.grounding import Grounder, Region
from rewards.pointer import FILE, Pointer
from rewards.storage import load_half, save_half
from tests.conftest import save_open_clip
from tests.unit.test_grounding import TINY_RESNET

RNG = torch.Generator().manual_seed(0)


@pytest.fixture
def encoder(tmp_path):
    return OpenCLIPEncoder(save_open_clip(tmp_path / "resnet", TINY_RESNET), precision="fp32", device="cpu")


def folder(encoder: OpenCLIPEncoder) -> Path:
    return Path(encoder.name.partition(":")[2])


def pointer(dim: int = 32) -> Pointer:
    torch.manual_seed(0)
    words = torch.nn.functional.normalize(torch.randn(3, dim, generator=RNG))
    return Pointer(words, hidden=16).eval().requires_grad_(False)


def test_a_place_is_read_off_a_vector():
    made, vectors = pointer(), torch.randn(5, 32, generator=RNG)
    made.mean.fill_(0.1)
    made.std.fill_(2.0)
    places = made(vectors)
    assert places.std(0).min() > 1e-3
    hidden = torch.nn.functional.gelu(made.second(torch.nn.functional.gelu(made.first((vectors[4] - 0.1) / 2))))
    torch.testing.assert_close(places[4], 0.5 + made.out(hidden) / 6)


def test_a_pointer_is_kept_beside_its_encoder_and_used(encoder):
    grounder = Grounder(encoder)
    assert grounder.pointer is None
    assert not grounder.points("a cup")
    made = pointer()
    made.words[1] = encoder.encode_texts(["a cup"])[0]
    made.save(folder(encoder), encoder)
    grounder, vectors = Grounder(encoder), torch.randn(4, 32, generator=RNG)
    assert grounder.points("a cup")
    got = grounder.point(vectors, (48, 200))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, made(vectors) * torch.tensor([200.0, 48]) - 0.5, atol=0.3, rtol=0)  # half precision


def test_it_knows_its_words_and_what_is_near_them():
    made, other = pointer(), torch.randn(32, generator=RNG)
    other -= made.words.T @ torch.linalg.lstsq(made.words.T, other).solution
    other /= other.norm()
    assert made.knows(made.words[2])
    assert made.knows(0.95 * made.words[2] + (1 - 0.95**2) ** 0.5 * other)
    assert not made.knows(0.8 * made.words[2] + 0.6 * other)


def test_one_of_other_weights_is_refused_and_so_is_a_damaged_one(encoder):
    pointer().save(folder(encoder), encoder)
    file = folder(encoder) / FILE
    with torch.no_grad():
        encoder._image_tower.attnpool.c_proj.weight.mul_(-1)
    with pytest.raises(ValueError, match=r"must be trained for this encoder, local-dir.*other weights. Run: python -m"):
        Grounder(encoder)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(
        ValueError, match=r"pointer.safetensors is damaged .*Run: python -m embodied.+pointing encoder="
    ):
        Grounder(encoder)


def test_how_alike_a_probe_must_be_is_kept_to(tmp_path):
    probe, near = torch.tensor([1.0, 0.0]), torch.tensor([0.995, (1 - 0.995**2) ** 0.5])
    save_half(tmp_path / "x.safetensors", torch.nn.Linear(2, 1), probe)
    assert set(load_half(tmp_path / "x.safetensors", near, "me")) == {"weight", "bias"}
    with pytest.raises(ValueError, match="trained for other weights"):
        load_half(tmp_path / "x.safetensors", near, "me", same=0.999)


def test_places_go_through_the_resize_and_the_crop(tiny_clip):
    grounder = Grounder(OpenCLIPEncoder(tiny_clip, precision="fp32", device="cpu"))  # short side to 32, middle crop
    grounder.pointer = pointer()
    grounder.pointer.out.weight.zero_()
    grounder.pointer.out.bias.copy_(torch.tensor([-3.0, 1.5]))  # the left edge of the crop, three quarters down
    np.testing.assert_allclose(grounder.point(torch.zeros(1, 32), (64, 128)), [[31.5, 47.5]])


def test_it_learns_places_that_are_hidden_in_vectors():
    mixing, places = torch.randn(2, 16, generator=RNG), torch.rand(1200, 2, generator=RNG)
    vectors = torch.nn.functional.normalize(places @ mixing + 2, dim=1)
    words = torch.nn.functional.normalize(torch.randn(2, 16, generator=RNG))
    options = {"epochs": 40, "batch_size": 100, "lr": 5e-3, "hidden": 64}
    made = teach(vectors[:1000], places[:1000], words, **options)
    assert (made(vectors[1000:]) - places[1000:]).norm(dim=-1).median() < 0.02
    again = teach(vectors[:1000], places[:1000], words, **options)
    torch.testing.assert_close(again.state_dict(), made.state_dict(), rtol=0, atol=0)


def test_frames_teach_where_the_map_is_sure(encoder, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 64, 3), np.uint8)
    grounder, peaks = Grounder(encoder), iter([SURE, SURE / 2, 1.0])

    def locate(batch, texts):
        assert texts == ["a claw"]
        return [[Region(np.array([31.5, 7.5]), next(peaks), np.zeros((1, 2)), np.ones(1))] for _ in batch]

    monkeypatch.setattr(encoder, "batch_size", 2)
    monkeypatch.setattr(grounder, "locate", locate)
    vectors, places = see(grounder, "a claw", frames)
    torch.testing.assert_close(vectors, encoder.encode_images(torch.from_numpy(frames[[0, 2]])))
    torch.testing.assert_close(places, torch.tensor([[0.5, 0.25]] * 2))
    peaks = iter([0.1] * 3)
    with pytest.raises(ValueError, match="must show 'a claw'; in none of 3 is the map sure"):
        see(grounder, "a claw", frames)
