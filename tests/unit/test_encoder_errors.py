"""What encoders refuse, and in which words; and the cure of a torchvision that does not fit."""

import json
import subprocess
import sys

import pytest
import torch

from embodied.building.build import build
from embodied.config import compose
from rewards.encoders import OpenCLIPEncoder, TransformersEncoder, embedded_encoder, loading
from tests.conftest import TINY_CLIP

# Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "error", "got"),
    [
        (torch.zeros(8, 3, 32, 32), TypeError, r"float32 \(8, 3, 32, 32\)"),
        (torch.zeros(8, 3, 32, 32, dtype=torch.uint8), ValueError, r"uint8 \(8, 3, 32, 32\)"),
        (torch.zeros(32, 32, 3, dtype=torch.uint8), ValueError, r"uint8 \(32, 32, 3\)"),
        (torch.zeros(2, 0, 32, 3, dtype=torch.uint8), ValueError, r"uint8 \(2, 0, 32, 3\)"),
    ],
)
def test_wrong_frames_are_refused(tiny_clip, frames, error, got):
    message = rf"OpenCLIPEncoder.encode_images: frames must be uint8 \(B, H, W, 3\); got {got}\. Pass unresized"
    with pytest.raises(error, match=message):
        OpenCLIPEncoder(tiny_clip).encode_images(frames)


def test_long_and_empty_texts_are_refused_not_cut(tiny_clip):
    encoder = OpenCLIPEncoder(tiny_clip)
    assert encoder.encode_texts(["open " * 22]).shape == (1, 32)  # 22 and two marks: exactly the context
    with pytest.raises(ValueError, match=r"at most 24 tokens, the context of local-dir:.*; got 25 for 'open open"):
        encoder.encode_texts(["a robot", "open " * 23])
    with pytest.raises(ValueError, match=r"every text must say something; got '  '"):
        encoder.encode_texts(["  "])


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        ("ViT-B-33", {}, ValueError, r"model must be one that open_clip knows; got 'ViT-B-33'\. Nearest: ViT-B-32"),
        ("ViT-B-32:laion2b", {}, ValueError, r"weights of ViT-B-32 must be .*; got 'laion2b'\. Nearest: laion2b_e16"),
        ("ViT-B-32", {}, ValueError, r"weights of ViT-B-32 must be .*; got ''\. Nearest: openai"),
        ("ViT-B-32:random", {"precision": "fp8"}, ValueError, "be auto, fp32, bf16, fp16, int8; got 'fp8'"),
        ("ViT-B-32:random", {"batch_size": 0}, ValueError, "batch_size must be ≥ 1; got 0"),
        ("ViT-B-32:random", {"device": "gpu"}, ValueError, "device must be auto, cpu, cuda or cuda:N; got 'gpu'"),
        ("local-dir:/nowhere", {}, FileNotFoundError, "folder /nowhere must hold open_clip_config.json"),
    ],
)
def test_unknown_models_are_named(model, options, error, message):
    with pytest.raises(error, match=message):
        OpenCLIPEncoder(model, **options)


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(TINY_CLIP))
    with pytest.raises(FileNotFoundError, match=r"must hold open_clip_model\.safetensors; it does not"):
        OpenCLIPEncoder(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (
            lambda: OpenCLIPEncoder("ViT-B-32:laion2b_s34b_b79k"),
            r"hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K --local-dir FOLDER.*model=local-dir:FOLDER",
        ),
        (lambda: OpenCLIPEncoder("hf-hub:owner/name"), "hf download owner/name .*model=local-dir:FOLDER"),
        (lambda: TransformersEncoder("owner/name"), "hf download owner/name .*model=FOLDER"),
    ],
)
def test_missing_weights_offline_say_what_to_put_where(make, advice, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(loading, "_reachable", lambda url: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"is not on this machine and was not fetched\. .*{advice}"):
        make()
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("name", "model", "given"),
    [("open_clip", "hf-hub:owner/name", "local-dir:FOLDER"), ("transformers", "owner/name", "FOLDER")],
)
def test_a_verb_asks_for_missing_weights_by_its_setting(name, model, given, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(loading, "_reachable", lambda url: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"and give encoder.model={given}"):
        build(compose("preview", [f"encoder={name}", f"encoder.model={model}"]).encoder)
    chat = compose("preview", ["reward=grm_vlm", "reward.vlm.url=null", "reward.vlm.model=owner/name", "goal=x"]).reward
    with pytest.raises(FileNotFoundError, match=r"and give reward\.vlm\.model=FOLDER"):
        build(chat, encoder=embedded_encoder())


# The torchvision cure ---------------------------------------------------------------------------------------


def test_torchvision_is_cured_only_where_its_operators_do_not_load():
    """In a fresh process: the cure declares exactly what is missing, twice over, and then the import works."""
    code = """
import torch, rewards.encoders.loading as loading
def declared(): return torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "CPU")
loading.cure_torchvision()
loading.cure_torchvision()
broken = bool(loading._TORCHVISION)
import torchvision
assert torchvision.extension._has_ops() is not broken
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_the_cure_declares_schemas_when_loading_fails_and_nothing_otherwise():
    code = """
import sys, torch, rewards.encoders.loading as loading
loads = sys.argv[1] == "loads"
def load_library(path):
    if not loads: raise OSError("no such symbol")
torch.ops.load_library = load_library
loading.cure_torchvision()
assert bool(loading._TORCHVISION) is not loads
if not loads: torch.library.register_fake("torchvision::nms", lambda dets, scores, iou_threshold: dets)
"""
    for case in ("loads", "fails"):
        subprocess.run([sys.executable, "-c", code, case], check=True, timeout=120)
