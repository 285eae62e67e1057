"""Text to pixels: maps of each kind of tower, cells to pixels, regions, the projector on disk."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from rewards.encoders import OpenCLIPEncoder, TransformersEncoder
from rewards.grounding import FILE, Grounder, Projector, _region, resnet_maps
from tests.conftest import save_open_clip
from tests.fakes import FakeEncoder

TINY_RESNET = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
}
FRAMES = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), np.uint8))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    name = save_open_clip(tmp_path_factory.mktemp("resnet"), TINY_RESNET)
    return OpenCLIPEncoder(name, precision="fp32", device="cpu")


class Everywhere(nn.Module):
    """The same tokens, or channels, at every place, whatever comes in."""

    def __init__(self, channels: int, axis: int) -> None:
        super().__init__()
        self.value, self.axis = torch.randn(channels, generator=torch.Generator().manual_seed(1)), axis

    def forward(self, x, *_, **__):
        shape = [1] * x.ndim
        shape[self.axis] = -1
        out = list(x.shape)
        out[self.axis] = len(self.value)
        return self.value.view(shape).expand(out)


def same_as_pooled(grounder: Grounder, encoder, atol: float = 1e-5) -> None:
    """Where every patch is alike, attention changes nothing, so each cell must be what the tower pools."""
    vectors = grounder.vectors(FRAMES)
    pooled = encoder.encode_images(FRAMES)
    torch.testing.assert_close(vectors, pooled[..., None, None].expand_as(vectors), atol=atol, rtol=0)


def test_a_resnets_map_is_its_pooled_vector_where_all_patches_are_alike(tmp_path):
    encoder = OpenCLIPEncoder(save_open_clip(tmp_path, TINY_RESNET), precision="fp32", device="cpu")
    grounder = Grounder(encoder)
    assert grounder.vectors(FRAMES).shape == (2, 32, 2, 2)
    tower = encoder._image_tower
    tower.layer4 = Everywhere(256, 1)  # at the 4 x 4 places of layer 3
    tower.attnpool.positional_embedding = nn.Parameter(torch.zeros(17, 256))
    same_as_pooled(grounder, encoder)


def test_a_vits_map_is_its_pooled_vector_where_all_patches_are_alike(tiny_clip):
    encoder = OpenCLIPEncoder(tiny_clip, precision="fp32", device="cpu")
    grounder = Grounder(encoder)
    assert grounder.vectors(FRAMES).shape == (2, 32, 4, 4)
    assert grounder.vectors(FRAMES).std((-1, -2)).min() > 1e-4  # patches differ
    encoder._image_tower.transformer.resblocks[-2] = Everywhere(64, 2)
    same_as_pooled(grounder, encoder)


def test_maps_of_transformers_towers(tmp_path):
    import transformers

    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**vision, "vocab_size": 99, "max_position_embeddings": 16}
    sizes = {"image_size": 32, "patch_size": 8}
    size = {"height": 32, "width": 32}
    for kind, config in (
        ("clip", transformers.CLIPConfig(text_config=text, vision_config=vision | sizes, projection_dim=24)),
        ("siglip", transformers.SiglipConfig(text_config=text, vision_config=vision | sizes)),
    ):
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(tmp_path / kind)
        transformers.SiglipImageProcessor(size=size).save_pretrained(tmp_path / kind)
        words = {"<unk>": 0, "a": 1}
        from tokenizers import Tokenizer, models

        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(
            tmp_path / kind
        )
        encoder = TransformersEncoder(str(tmp_path / kind), precision="fp32", device="cpu")
        grounder = Grounder(encoder)
        assert grounder.vectors(FRAMES).shape == (2, encoder.dim, 4, 4)
        layers = encoder._network.vision_model.encoder.layers
        if kind == "clip":
            layers[-2] = Everywhere(32, 2)
        else:
            layers[-1] = Everywhere(32, 2)  # what attends is the pooling head
        same_as_pooled(grounder, encoder)


def test_an_encoder_without_maps_is_refused():
    with pytest.raises(ValueError, match=r"must be an open_clip or transformers encoder.*got FakeEncoder"):
        Grounder(FakeEncoder())


def test_cells_go_through_the_resize_and_the_crop(tiny_clip):
    encoder = OpenCLIPEncoder(tiny_clip, precision="fp32", device="cpu")  # short side to 32, middle crop
    grid = Grounder(encoder)._cells(64, 128, (4, 4))
    np.testing.assert_allclose(grid[0, 0], [32 + 7.5, 7.5])
    np.testing.assert_allclose(grid[3, 3], [32 + 55.5, 55.5])


def test_a_region_is_the_connected_cells_about_the_peak():
    heat = np.zeros((6, 6))
    heat[1, 1], heat[1, 2], heat[2, 2], heat[5, 5] = 0.8, 0.8, 0.4, 0.7
    grid = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), -1) * 10
    region = _region(heat, grid)
    assert region.peak == 0.8
    assert sorted(map(tuple, region.points.tolist())) == [(10, 10), (20, 10), (20, 20)]
    np.testing.assert_allclose(region.centre, [(10 * 0.8 + 20 * 0.8 + 20 * 0.4) / 2, (10 * 1.6 + 20 * 0.4) / 2])


# The projector -------------------------------------------------------------------------------------------------


def projector(encoder) -> Projector:
    torch.manual_seed(0)
    model = Projector([32, 64, 128, 256], encoder.dim, hidden=16)
    nn.init.normal_(model.text[2].weight, std=0.1)  # pyright: ignore[reportArgumentType]
    return model.eval()


def test_a_projector_is_kept_beside_its_encoder_and_used(resnet):
    from pathlib import Path

    folder = Path(resnet.name.partition(":")[2])
    made = projector(resnet)
    made.save(folder, resnet)
    try:
        grounder = Grounder(resnet)
        assert grounder.projector is not None
        heat = grounder.heat(FRAMES, ["a cup", "a plate"])
        assert heat.shape == (2, 2, 16, 16)
        images = resnet._preprocess(FRAMES, resnet.device, torch.float32)
        vectors = made(resnet_maps(resnet._image_tower, images))
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2, 16, 16))
        expected = made.logits(vectors, resnet.encode_texts(["a cup", "a plate"])).sigmoid()
        torch.testing.assert_close(heat, expected, atol=2e-2, rtol=0)  # half precision on disk
        each = made.logits(vectors, resnet.encode_texts(["a cup", "a plate"]).expand(2, 2, -1)).sigmoid()
        torch.testing.assert_close(each, expected)
        with torch.no_grad():
            resnet._texts.clear()
            resnet._text_model.text_projection.mul_(-1)
        with pytest.raises(ValueError, match=r"must be trained for this encoder.*embodied.pretraining.pointing"):
            Grounder(resnet)
    finally:
        with torch.no_grad():
            resnet._texts.clear()
            resnet._text_model.text_projection.mul_(-1)
        (folder / FILE).unlink()


def test_frames_are_searched_in_batches_as_one_by_one(resnet, monkeypatch):
    grounder, texts, frames = Grounder(resnet), ["the red cube", "the tray"], torch.cat([FRAMES, FRAMES.flip(1)])[:3]
    monkeypatch.setattr(resnet, "batch_size", 2)
    together = grounder.locate(frames, texts)
    for frame, found in zip(frames, together, strict=True):
        (alone,) = grounder.locate(frame[None], texts)
        for one, other in zip(found, alone, strict=True):
            np.testing.assert_allclose(one.centre, other.centre, atol=1e-3)
            assert math.isclose(one.peak, other.peak, rel_tol=1e-4)


def test_what_is_not_there_is_an_error(resnet, monkeypatch):
    grounder = Grounder(resnet)
    faint = torch.full((1, 1, 4, 4), 0.01)
    monkeypatch.setattr(grounder, "heat", lambda frames, texts: faint)
    with pytest.raises(ValueError, match=r"must show 'a unicorn'; its best match is 0.01 likely"):
        grounder.find(FRAMES[:1], ["a unicorn"])
    faint[0, 0, 1, 2] = 0.9
    ((found,),) = grounder.find(FRAMES[:1], ["a unicorn"])
    np.testing.assert_allclose(found.centre, [39.5, 23.5])
    np.testing.assert_allclose(grounder.track(FRAMES[:1], "a unicorn"), [[39.5, 23.5]])
    assert math.isclose(found.peak, 0.9, rel_tol=1e-6)
