"""Encoders against the libraries' own transforms and models, on tiny random weights and real renders."""

import logging
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity, interpolate, normalize
from torch.testing import assert_close

from embodied.datasets.encoding import fingerprint
from embodied.envs.rendering import FrameRenderer
from rewards.encoders import OpenCLIPEncoder, TransformersEncoder, embedded_encoder, models
from rewards.encoders.loading import cure_torchvision, import_open_clip, load_open_clip
from rewards.encoders.preprocess import Preprocess
from tests.conftest import TINY_CLIP, save_open_clip

HUMANOID = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "humanoid.xml"
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
SIZES = [(480, 480), (96, 96), (96, 160), (101, 75), (32, 32)]
RESNET = TINY_CLIP | {
    "model_cfg": {
        **TINY_CLIP["model_cfg"],
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "patch_size": None},
    },
    "preprocess_cfg": {**TINY_CLIP["preprocess_cfg"], "interpolation": "bilinear", "resize_mode": "squash"},
}


@pytest.fixture(scope="module")
def renders() -> dict[tuple[int, int], torch.Tensor]:
    """(H, W) -> (4, H, W, 3) uint8 frames of a falling humanoid."""
    model = mujoco.MjModel.from_xml_path(str(HUMANOID))
    data = mujoco.MjData(model)
    renderer = FrameRenderer(model)
    frames = {size: [] for size in SIZES}
    for _ in range(4):
        mujoco.mj_step(model, data, 40)
        for size in SIZES:
            frames[size].append(renderer.frame(data, "track", *size))
    renderer.close()
    return {size: torch.from_numpy(np.stack(each)) for size, each in frames.items()}


@pytest.fixture(scope="module")
def tiny_resnet(tmp_path_factory) -> str:
    return save_open_clip(tmp_path_factory.mktemp("tiny_resnet"), RESNET)


# Preprocessing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("target", [32, 224])
@pytest.mark.parametrize(
    ("mode", "interpolation"), [("shortest", "bicubic"), ("squash", "bilinear"), ("longest", "bicubic")]
)
def test_fused_preprocessing_is_the_models_own_transform(renders, size, target, mode, interpolation):
    transform = import_open_clip().transform
    config = transform.PreprocessCfg(size=target, resize_mode=mode, interpolation=interpolation)
    own = transform.image_transform_v2(config, is_train=False)
    expected = torch.stack([own(Image.fromarray(frame.numpy())) for frame in renders[size]])
    std = (0.26862954, 0.26130258, 0.27577711)
    fused = Preprocess(
        mode=mode, resize=(target, target), crop=(target, target), interpolation=interpolation,
        mean=(0.48145466, 0.4578275, 0.40821073), std=std,
    )  # fmt: skip
    images = fused(renders[size], torch.device("cpu"), torch.float32)
    levels = (images - expected).abs() * torch.tensor(std).view(3, 1, 1) * 255
    assert images.shape == expected.shape
    assert levels.max() < 2.01  # grey levels of 255: rounding alone
    assert levels.mean() < 0.05


STRIPS = [(1, 1_000_000), (24, 900), (900, 24), (300, 40), (3, 3000)]  # (H, W)


@pytest.mark.parametrize("size", STRIPS, ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_of_a_long_strip_only_the_crop_is_resized(size, interpolation):
    """Pillow's resize and crop, in time and memory of the crop; whole, the widest would be 150 GB."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels = np.sort(pixels, axis=int(size[1] > size[0]))  # smooth, as pictures are
    pixels[:: max(size[0] // 7, 1), :: max(size[1] // 7, 1)] = 255
    fused = Preprocess(mode="shortest", resize=(32, 32), crop=(28, 28), interpolation=interpolation, **PLAIN)
    height, width = fused.resized(*size)
    top, left = round((height - 28) / 2), round((width - 28) / 2)
    # What Pillow makes of the part that is kept: it samples a box as it samples the whole.
    box = tuple(each * side / new for each, side, new in (
        (left, size[1], width), (top, size[0], height), (left + 28, size[1], width), (top + 28, size[0], height)
    ))  # fmt: skip
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    kept = Image.fromarray(pixels).resize((28, 28), filters[interpolation], box=box)
    images = fused(torch.from_numpy(pixels)[None], torch.device("cpu"), torch.float32)
    levels = (255 * images[0].permute(1, 2, 0) - torch.from_numpy(np.asarray(kept).astype(np.float32))).abs()
    assert levels.max() < 1.01


def test_the_crop_of_a_frame_is_the_same_by_either_way(renders, monkeypatch):
    fused = Preprocess(mode="shortest", resize=(32, 32), crop=(32, 32), interpolation="bicubic", **PLAIN)
    for size in ((96, 160), (101, 75)):
        whole = fused(renders[size], torch.device("cpu"), torch.float32)
        with monkeypatch.context() as patch:
            patch.setattr("rewards.encoders.preprocess.WASTE", 1.0)
            cropped = fused(renders[size], torch.device("cpu"), torch.float32)
        assert (255 * (whole - cropped)).abs().max() < 1.01


def test_a_strip_that_is_padded_keeps_a_line_of_pixels():
    fused = Preprocess(mode="longest", resize=(32, 32), crop=(32, 32), interpolation="bicubic", **PLAIN)
    images = fused(torch.full((1, 1, 3000, 3), 255, dtype=torch.uint8), torch.device("cpu"), torch.float32)
    assert images.sum() == pytest.approx(3 * 32)


def test_without_antialias_the_same_comparison_fails(renders):
    frames = renders[480, 480].permute(0, 3, 1, 2)
    sharp = interpolate(frames, (32, 32), mode="bicubic", antialias=False).float()
    smooth = interpolate(frames, (32, 32), mode="bicubic", antialias=True).float()
    assert (sharp - smooth).abs().mean() > 2


def test_the_float_resize_of_other_devices_agrees_with_the_cpu_s(renders):
    fused = Preprocess(mode="squash", resize=(32, 32), crop=(32, 32), interpolation="bicubic", **PLAIN)
    for size in ((480, 480), (101, 75)):
        images = renders[size].permute(0, 3, 1, 2)
        floats = fused._resize_floats(images, (32, 32))
        assert (floats - fused._resize(images, (32, 32)).float()).abs().max() < 1.01


def test_frames_of_the_right_size_are_not_resized(renders, monkeypatch):
    monkeypatch.setattr(Preprocess, "_resize", None)  # calling it would raise
    fused = Preprocess(mode="shortest", resize=(96, 96), crop=(80, 80), interpolation="bicubic", **PLAIN)
    images = fused(renders[96, 96], torch.device("cpu"), torch.float32)
    assert_close(images * 255, renders[96, 96].permute(0, 3, 1, 2)[..., 8:88, 8:88].float())


# open_clip --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["tiny_clip", "tiny_resnet"])
def test_embeddings_are_open_clip_s(request, renders, kind, size):
    """Against open_clip's own model and PIL transform: batch norms folded here, not there."""
    name = request.getfixturevalue(kind)
    open_clip = import_open_clip()
    model, own = open_clip.create_model_from_pretrained(name)
    images = torch.stack([own(Image.fromarray(frame.numpy())) for frame in renders[size]])
    with torch.no_grad():
        expected = model.eval().encode_image(images, normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer(name)(["a robot", "a fallen robot"]), normalize=True)
    encoder = OpenCLIPEncoder(name, precision="fp32", batch_size=3)  # 4 frames: a full batch and a rest
    embeddings = encoder.encode_images(renders[size])
    assert cosine_similarity(embeddings, expected).min() >= 0.999
    assert cosine_similarity(embeddings - expected.mean(0), expected - expected.mean(0)).min() > 0.97
    assert_close(encoder.encode_texts(["a robot", "a fallen robot"]), texts, atol=1e-5, rtol=0)
    assert encoder.dim == 32
    assert encoder.encode_images(renders[size][:0]).shape == (0, 32)


@pytest.mark.parametrize("kind", ["tiny_clip", "tiny_resnet"])
def test_bf16_is_close_to_fp32(request, renders, kind):
    name = request.getfixturevalue(kind)
    exact = OpenCLIPEncoder(name, precision="fp32").encode_images(renders[96, 96])
    fast = OpenCLIPEncoder(name, precision="bf16").encode_images(renders[96, 96])
    assert fast.dtype == torch.float32
    assert_close(fast.norm(dim=-1), torch.ones(4), atol=1e-5, rtol=0)
    assert cosine_similarity(exact, fast).min() > 0.999
    assert not torch.equal(exact, fast)


@pytest.mark.parametrize(("has", "precision"), [
    ({"neon": True, "bf16": True}, "fp32"), ({"sse4a": True}, "fp32"), ({"avx512_bf16": True}, "fp32"),
    ({"avx512_bf16": True, "sse4a": True}, "bf16"), ({"avx512_bf16": True, "amx_bf16": True}, "bf16"),
])  # fmt: skip
def test_auto_precision_follows_the_hardware(tiny_clip, monkeypatch, has, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert OpenCLIPEncoder(tiny_clip, device="cpu").precision == precision


def test_auto_precision_of_a_torch_that_does_not_tell_the_hardware(tiny_clip, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert OpenCLIPEncoder(tiny_clip, device="cpu").precision == "fp32"


def test_batch_equals_one_by_one_and_compiled_batches_keep_one_shape(tiny_clip, renders, monkeypatch):
    encoder = OpenCLIPEncoder(tiny_clip, precision="fp32")
    together = encoder.encode_images(renders[96, 96])
    alone = torch.cat([encoder.encode_images(frame[None]) for frame in renders[96, 96]])
    assert_close(together, alone, atol=1e-5, rtol=0)

    shapes = []

    def compile_nothing(tower, dynamic):
        return lambda images: (shapes.append(len(images)), tower(images))[1]

    monkeypatch.setattr(torch, "compile", compile_nothing)
    compiled = OpenCLIPEncoder(tiny_clip, precision="fp32", batch_size=3, compile=True)
    assert_close(compiled.encode_images(renders[96, 96]), together, atol=1e-5, rtol=0)
    assert shapes == [3, 3]


def test_texts_are_embedded_once(tiny_clip, monkeypatch):
    encoder = OpenCLIPEncoder(tiny_clip)
    first = encoder.encode_texts(["a robot", "a cup", "a robot"])
    assert_close(first[0], first[2])
    monkeypatch.setattr(encoder, "_embed_texts", None)  # calling it would raise
    assert_close(encoder.encode_texts(["a cup"]), first[1:2])


def test_texts_without_end_are_not_kept_without_end(tiny_clip, monkeypatch):
    monkeypatch.setattr("rewards.encoders.frozen.MAX_TEXTS", 8)
    encoder = OpenCLIPEncoder(tiny_clip)
    first = encoder.encode_texts([f"cup {k}" for k in range(20)])
    assert first.shape == (20, 32)  # more at once than are kept
    assert len(encoder._texts) == 8
    assert_close(encoder.encode_texts(["cup 3", "cup 19"]), first[[3, 19]], atol=1e-5, rtol=0)
    assert len(encoder._texts) == 8


def test_random_weights_that_were_asked_for_are_not_warned_of(tiny_clip, caplog):
    load_open_clip(tiny_clip, "random")
    assert caplog.records == []
    logging.warning("others are heard")
    assert len(caplog.records) == 1


def test_random_weights_are_the_same_each_time(tiny_clip, renders):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = (OpenCLIPEncoder(tiny_clip, pretrained="random") for _ in range(2))
    assert_close(first.encode_images(renders[96, 96]), second.encode_images(renders[96, 96]))
    assert torch.equal(torch.get_rng_state(), before)


def test_embedded_encoder_reads_the_folder_that_ships(tmp_path, monkeypatch, renders):
    monkeypatch.setattr(models, "__file__", str(tmp_path / "rewards" / "encoders" / "models.py"))
    with pytest.raises(FileNotFoundError, match=r"sim_assets/encoder must hold open_clip_config\.json, denials"):
        embedded_encoder()
    for folder in (tmp_path / "embodied" / "sim_assets" / "encoder", tmp_path / "sim_assets" / "encoder"):
        save_open_clip(folder, TINY_CLIP)  # a wheel, then a checkout, which goes first
        save_file({"logit_scale": torch.zeros(())}, folder / "denials.safetensors")
        encoder = embedded_encoder(precision="fp32")
        assert encoder.name == "embedded"
        assert encoder.encode_images(renders[96, 96]).shape == (4, 32)
    with pytest.raises(FileNotFoundError, match=r"must hold open_clip_config\.json, town\.safetensors"):
        embedded_encoder(knows="town")
    with pytest.raises(ValueError, match="knows must be one of desk, town; got 'sea'"):
        embedded_encoder(knows="sea")


def test_the_town_and_the_humanoid_have_weights_of_their_own():
    from embodied.config import compose

    desk, town = (embedded_encoder(knows=knows, precision="fp32", device="cpu") for knows in ("desk", "town"))
    assert (desk.name, town.name) == ("embedded", "embedded-town")
    texts = ["two cars have collided with each other on the road", "the road is clear with no car accidents"]
    assert float(town.encode_texts(texts)[0] @ town.encode_texts(texts)[1]) < 0.8
    assert not torch.allclose(desk.encode_texts(texts), town.encode_texts(texts), atol=0.1)
    for words, knows in (
        (["env=drive-town"], "town"),
        (["env=humanoid-sit"], "town"),
        (["env=desk-press"], "desk"),
        (["env=drive-town", "encoder=embedded"], "desk"),
    ):
        assert compose("train", words).encoder.knows == knows
    assert compose("train", ["env=drive-town", "encoder=open_clip"]).encoder._target_.endswith("OpenCLIPEncoder")
    assert "encoder" not in compose("collect", ["env=drive-town"])


# transformers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers_models(tmp_path_factory) -> dict[str, str]:
    """kind -> folder of a tiny model of random weights, its processor, and a tokenizer of ten words."""
    cure_torchvision()
    import transformers as tf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "<s>", "</s>", "<unk>", "the", "drawer", "is", "open", "a", "robot"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 8}
    ids = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    text = {**small, **ids, "vocab_size": 10, "max_position_embeddings": 12}
    square, crop = {"height": 32, "width": 32}, {"crop_size": {"height": 32, "width": 32}}
    torch.manual_seed(0)
    made = {
        "clip": (
            tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)),
            tf.CLIPImageProcessor(size={"shortest_edge": 32}, **crop),
        ),
        "siglip": (
            tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=vision)),
            tf.SiglipImageProcessor(size=square),
        ),
        "dinov2": (
            tf.Dinov2Model(tf.Dinov2Config(**vision)),
            tf.BitImageProcessor(size={"shortest_edge": 40}, **crop),
        ),
        "dinov3": (tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**vision)), tf.DINOv3ViTImageProcessor(size=square)),
        "siglip2": (
            tf.Siglip2Model(
                tf.Siglip2Config(text_config=text, vision_config={**small, "num_patches": 16, "patch_size": 8})
            ),
            tf.Siglip2ImageProcessor(patch_size=8, max_num_patches=16),
        ),
    }
    folders = {}
    for kind, (model, processor) in made.items():
        folder = tmp_path_factory.mktemp(kind)
        for part in (model, tokenizer, processor):
            part.save_pretrained(folder)
        folders[kind] = str(folder)
    return folders


@pytest.mark.parametrize("size", [(480, 480), (96, 96), (96, 160)], ids=str)
@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "dinov3"])
def test_transformers_embeddings_are_its_own(transformers_models, renders, kind, size):
    import transformers as tf

    folder = transformers_models[kind]
    model, processor = tf.AutoModel.from_pretrained(folder), tf.AutoImageProcessor.from_pretrained(folder)
    inputs = processor([Image.fromarray(frame.numpy()) for frame in renders[size]], return_tensors="pt")
    with torch.no_grad():
        features = model.get_image_features if kind in ("clip", "siglip") else model
        expected = normalize(features(**inputs).pooler_output, dim=-1)
    encoder = TransformersEncoder(folder, precision="fp32")
    embeddings = encoder.encode_images(renders[size])
    assert cosine_similarity(embeddings, expected).min() >= 0.999
    assert cosine_similarity(embeddings - expected.mean(0), expected - expected.mean(0)).min() > 0.97
    assert encoder.dim == expected.shape[1]
    for precision, least in (("bf16", 0.999), ("int8", 0.99)):
        fast = TransformersEncoder(folder, precision=precision, device="cpu").encode_images(renders[size])
        assert cosine_similarity(embeddings, fast).min() > least


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_scores_are_its_own(transformers_models, renders, kind):
    """Cosines against the whole model's logits, which hold both towers' projections."""
    import transformers as tf

    folder = transformers_models[kind]
    model, processor = tf.AutoModel.from_pretrained(folder), tf.AutoImageProcessor.from_pretrained(folder)
    tokens = tf.AutoTokenizer.from_pretrained(folder)(
        ["the drawer is open", "a robot"], padding="max_length", max_length=12, return_tensors="pt"
    )
    if kind == "siglip":
        tokens.pop("attention_mask")
    images = processor([Image.fromarray(frame.numpy()) for frame in renders[96, 96]], return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens, **images)
    encoder = TransformersEncoder(folder, precision="fp32")
    texts = encoder.encode_texts(["the drawer is open", "a robot"])
    assert_close(texts, normalize(output.text_embeds, dim=-1), atol=1e-5, rtol=0)
    cosines = encoder.encode_images(renders[96, 96]) @ texts.T
    logits = (output.logits_per_image - (model.logit_bias if kind == "siglip" else 0)) / model.logit_scale.exp()
    assert_close(cosines, logits.detach(), atol=2e-3, rtol=0)


def test_transformers_texts_that_do_not_fit(transformers_models):
    with pytest.raises(ValueError, match=r"encode_texts: model must have a text tower; got .*dinov2"):
        TransformersEncoder(transformers_models["dinov2"]).encode_texts(["a robot"])
    clip = TransformersEncoder(transformers_models["clip"])
    assert clip.encode_texts(["robot " * 10]).shape == (1, 16)
    with pytest.raises(ValueError, match=r"at most 12 tokens, .*; got 13"):
        clip.encode_texts(["robot " * 11])


def test_naflex_models_are_refused(transformers_models):
    with pytest.raises(ValueError, match=r"model must take images of one size; got .*siglip2.*NaFlex"):
        TransformersEncoder(transformers_models["siglip2"])


def test_siglip_reads_texts_in_lower_case(transformers_models):
    """As its publisher's own pipeline does; the tokenizer of the fixed-size SigLIP 2 leaves it to its user."""
    encoder = TransformersEncoder(transformers_models["siglip"], precision="fp32")
    plain, capitals = encoder.encode_texts(["the drawer is open", "The DRAWER is Open"])
    assert_close(plain, capitals)
    assert not torch.allclose(plain, encoder.encode_texts(["the robot is open"])[0], atol=1e-3)
    clip = TransformersEncoder(transformers_models["clip"], precision="fp32")
    plain, capitals = clip.encode_texts(["the drawer is open", "The DRAWER is Open"])  # to this tokenizer, other words
    assert not torch.allclose(plain, capitals, atol=1e-3)


def test_a_tokenizer_that_wants_another_package_names_it(transformers_models, monkeypatch):
    import transformers as tf

    def missing(*_, **__):
        raise ImportError("SiglipTokenizer requires the SentencePiece library but it was not found")

    monkeypatch.setattr(tf.AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(ValueError, match=r"needs the package sentencepiece .*pip install 'embodied-rewards\[siglip\]'"):
        TransformersEncoder(transformers_models["siglip"])


@pytest.mark.parametrize("kind", ["open_clip", "transformers"])
def test_frames_can_be_squashed_as_vlm_rm_does(request, renders, transformers_models, kind):
    """Both sides to the model's size by bicubic interpolation, the ratio lost; square frames are what they were."""
    model = request.getfixturevalue("tiny_clip") if kind == "open_clip" else transformers_models["clip"]
    make = OpenCLIPEncoder if kind == "open_clip" else TransformersEncoder
    own, squashed = make(model, precision="fp32"), make(model, precision="fp32", resize="squash")
    wide = renders[96, 160]
    pictures = [Image.fromarray(frame.numpy()).resize((32, 32), Image.Resampling.BICUBIC) for frame in wide]
    by_hand = own.encode_images(torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])))
    assert_close(squashed.encode_images(wide), by_hand, atol=2e-2, rtol=0)
    assert cosine_similarity(squashed.encode_images(wide), by_hand).min() > 0.999
    assert cosine_similarity(own.encode_images(wide), by_hand).max() < 0.999
    square = renders[96, 96]
    assert_close(squashed.encode_images(square), own.encode_images(square))
    assert squashed.image_size == (32, 32)
    assert squashed.name == f"{own.name} (squash)"  # so that no head of the one is taken for the other's
    assert fingerprint(squashed) != fingerprint(own)  # nor kept features
    with pytest.raises(ValueError, match="resize must be null, squash, shortest, longest; got 'stretch'"):
        make(model, resize="stretch")


def test_an_encoder_s_weights_are_hashed_again_only_where_they_have_changed(tiny_clip, monkeypatch):
    """They were hashed for every goal and dataset; a hash that is kept must not outlive them."""
    encoder, hashed, detach = OpenCLIPEncoder(tiny_clip, precision="fp32"), [], torch.Tensor.detach
    monkeypatch.setattr(torch.Tensor, "detach", lambda tensor: hashed.append(tensor) or detach(tensor))
    first, count = fingerprint(encoder), len(hashed)
    assert count > 10
    assert fingerprint(encoder) == first
    assert len(hashed) == count
    found = {first}
    module = next(each for each in vars(encoder).values() if isinstance(each, torch.nn.Module))
    weight = next(module.parameters())
    for change in (lambda: weight.add_(1), lambda: setattr(weight, "data", weight.data + 1),
                   lambda: setattr(encoder, "more", torch.ones(2)), lambda: setattr(encoder, "precision", "bf16"),
                   lambda: setattr(encoder, "name", "another")):  # fmt: skip
        with torch.no_grad():
            change()
        found.add(fingerprint(encoder))
    assert len(found) == 6
    assert fingerprint(OpenCLIPEncoder(tiny_clip, precision="fp32")) == first
