"""Encoders' maps: what is where in a frame."""

import pytest
import torch

from rewards.encoders import OpenCLIPEncoder, TransformersEncoder, embedded_encoder
from rewards.encoders.loading import cure_torchvision


@pytest.fixture(scope="module")
def dino(tmp_path_factory) -> str:
    """A tiny image-only transformers model, 4 x 4 patches and a class token."""
    cure_torchvision()
    import transformers as tf

    folder = tmp_path_factory.mktemp("dino")
    config = tf.Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8, mlp_ratio=2
    )
    torch.manual_seed(0)
    tf.Dinov2Model(config).save_pretrained(folder)
    processor = tf.BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["tiny_clip", "dino", "embedded"])
def test_maps_say_where(request, kind):
    """A change in a corner of the picture moves the map most in that corner."""
    if kind == "embedded":
        encoder, shape = embedded_encoder(precision="fp32"), (256, 12, 12)
    elif kind == "dino":
        encoder, shape = TransformersEncoder(request.getfixturevalue(kind), precision="fp32"), (32, 4, 4)
    else:
        encoder, shape = OpenCLIPEncoder(request.getfixturevalue(kind), precision="fp32"), (64, 4, 4)
    size = encoder.image_size[0]
    frames = torch.full((2, size, size, 3), 90, dtype=torch.uint8)
    frames[1, : size // 4, -size // 4 :] = 250  # at the top on the right
    maps = encoder.encode_maps(frames)
    assert tuple(maps.shape) == (2, *shape)
    assert maps.dtype == torch.float16
    moved = (maps[1].float() - maps[0].float()).norm(dim=0)
    row, column = divmod(int(moved.argmax()), shape[2])
    assert row < shape[1] / 2
    assert column >= shape[2] / 2
    one = encoder.encode_maps(frames[1:])
    assert torch.allclose(one[0].float(), maps[1].float(), atol=1e-2)


def test_layers_and_frames_are_checked(tiny_clip):
    encoder = embedded_encoder(precision="fp32")
    frames = torch.zeros(1, 96, 96, 3, dtype=torch.uint8)
    assert encoder.encode_maps(frames, "layer3").shape == (1, 512, 6, 6)
    with pytest.raises(ValueError, match="layer must be one of layer2, layer1, layer3, layer4; got 'top'"):
        encoder.encode_maps(frames, "top")
    with pytest.raises(TypeError, match="must be uint8"):
        encoder.encode_maps(frames.float())
    with pytest.raises(ValueError, match="at least one"):
        encoder.encode_maps(frames[:0])
    assert OpenCLIPEncoder(tiny_clip).map_layers == ("patches",)


@pytest.mark.parametrize("kind", ["tiny_clip", "dino", "fp32", "bf16"])
def test_vectors_and_maps_of_one_pass_are_those_of_two(request, kind):
    if kind == "dino":
        encoder = TransformersEncoder(request.getfixturevalue(kind), precision="fp32")
    elif kind == "tiny_clip":
        encoder = OpenCLIPEncoder(request.getfixturevalue(kind), precision="fp32")
    else:
        encoder = embedded_encoder(precision=kind, batch_size=2)
    frames = torch.randint(0, 256, (3, *encoder.image_size, 3), generator=torch.manual_seed(0)).byte()
    vectors, maps = encoder.encode_both(frames)
    assert torch.allclose(vectors, encoder.encode_images(frames), atol=1e-5)
    assert torch.equal(maps, encoder.encode_maps(frames))
    with pytest.raises(ValueError, match=r"encode_both: layer must be one of"):
        encoder.encode_both(frames, "top")
