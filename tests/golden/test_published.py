"""Published models are asked as their repositories ask them: their code was run on the models of `tests/tiny_vlm`.

`published/recorded.npz` holds what it made: token ids, pixels as grey values (before mean and spread), and numbers.

    robometer   huggingface/lerobot 7427f31, rewards/robometer: RobometerEncoderProcessorStep, RobometerRewardModel
    topreward   huggingface/lerobot 7427f31, rewards/topreward: TOPRewardEncoderProcessorStep, TOPRewardModel
    roboreward  robometer/robometer c7f38e2, evals/baselines/roboreward.py: its message, through the model's processor
    (both on a processor that marks films as transformers 4.57 did)
    grm         FlagOpen/Robo-Dopamine 7d4415f, examples/inference.py: its message and bounds on pixels
    rewind      robometer/robometer c7f38e2, models/rewind_transformer.py: ReWiNDTransformer
    montage     philipmit/sole-r1-model 71a61c5, reward_server: create_composite_frame, and the resize after it
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from rewards.chat.local import LocalChat
from rewards.chat.published import (
    GRM_PUBLISHED,
    ROBOREWARD_PROMPT,
    SOLE_BOTH,
    SOLE_EXTERNAL,
    SOLE_SYSTEM,
    TOPREWARD_PROMPT,
    montage,
)
from rewards.core import Features
from rewards.pretrained import MODELS, chat_settings, pretrained_scorer
from rewards.robometer import PROMPT, VLMWithHeads
from tests.fakes import FakeEncoder
from tests.tiny_vlm import save_tiny_qwen3_vlm, save_tiny_rewind, save_tiny_robometer

TASK = "put {the} cup up"  # braces are words
RECORDED = Path(__file__).parent / "published"


def film(count: int, height: int = 70, width: int = 100) -> np.ndarray:
    """(T, H, W, 3) uint8, as recorded."""
    y, x = np.mgrid[:height, :width]
    frames = [
        np.stack([(2 * x + 10 * t) % 256, (3 * y + 5 * t) % 256, np.full_like(x, 40 * t % 256)], -1)
        for t in range(count)
    ]
    return np.stack(frames).astype(np.uint8)


@pytest.fixture(scope="module")
def recorded():
    with np.load(RECORDED / "recorded.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def tiny_qwen3(tmp_path_factory):
    return save_tiny_qwen3_vlm(tmp_path_factory.mktemp("qwen3"))


def grey(pixels: torch.Tensor) -> np.ndarray:
    return ((pixels * 0.5 + 0.5) * 255).numpy()


@pytest.fixture
def read(monkeypatch):
    """What the model on this machine read, question by question."""
    seen = []
    inputs = LocalChat._inputs

    def spied(self, messages, answer):
        seen.append(inputs(self, messages, answer))
        return seen[-1]

    monkeypatch.setattr(LocalChat, "_inputs", spied)
    return seen


def score(model: str, weights: str, frames: np.ndarray, views=("main",), **settings):
    vlm = {"device": "cpu", "precision": "fp32", **settings.pop("vlm", {})}
    scorer = pretrained_scorer(
        encoder=FakeEncoder(), goal=TASK, model=model, weights=weights, vlm=vlm, stride=1, **settings
    )
    shown = torch.from_numpy(frames)[None]
    given = Features(views={"main": torch.zeros(1, len(frames), 4)}, frames=dict.fromkeys(views, shown))
    (head,) = scorer.heads.values()
    return head.score(given)[0]


@pytest.mark.parametrize(
    ("text", "sha256"),
    [
        (PROMPT, "robometer"), (ROBOREWARD_PROMPT, "roboreward"), (TOPREWARD_PROMPT, "topreward"),
        (GRM_PUBLISHED, "grm"), (SOLE_SYSTEM, "sole_system"), (SOLE_BOTH, "sole_both"),
        (SOLE_EXTERNAL, "sole_external"),
    ],
)  # fmt: skip
def test_texts_are_the_repositories_own(text, sha256):
    known = json.loads((RECORDED / "texts.json").read_text())
    assert hashlib.sha256(text.encode()).hexdigest() == known[sha256]


@pytest.mark.parametrize("layout", ["authors", "lerobot"])
def test_robometer_reads_and_says_what_its_code_does(layout, recorded, tmp_path):
    weights = save_tiny_robometer(tmp_path / layout, layout=layout)
    processor = str(tmp_path / layout / "base") if layout == "lerobot" else None
    model = VLMWithHeads(weights, processor=processor, device="cpu", precision="fp32")
    inputs = model.inputs(list(film(3)), task=TASK)
    assert inputs["input_ids"][0].tolist() == recorded["robometer/ids"].tolist()
    assert inputs["image_grid_thw"].tolist() == recorded["robometer/grid"].tolist()
    assert_allclose(grey(inputs["pixel_values"]), recorded["robometer/pixels"], atol=0.5e-4 * 255)
    said = model.judge(list(film(3)), TASK)
    for name in ("progress", "success"):
        assert_allclose(said[name], recorded[f"robometer/{name}"], atol=1e-5)
        assert np.ptp(said[name].numpy()) > 1e-5  # it looks at its frames


def test_topreward_reads_and_says_what_its_code_does(recorded, tiny_qwen3, read):
    low, high = -12.0, 0.0
    value = score("topreward", tiny_qwen3, film(3), calibration=(low, high))[-1]
    inputs = read[-2]  # with " True" after it, then with " False"
    assert inputs["input_ids"][0].tolist() == recorded["topreward/ids"].tolist()
    assert inputs["video_grid_thw"].tolist() == recorded["topreward/grid"].tolist()
    assert_allclose(grey(inputs["pixel_values_videos"]), recorded["topreward/pixels"], atol=0.5e-4 * 255)
    assert_allclose(value, (recorded["topreward/value"][0] - low) / (high - low), atol=1e-5)


def test_roboreward_reads_what_its_adapter_makes(recorded, tiny_qwen3, read):
    score("roboreward-8b", tiny_qwen3, film(3), vlm={"max_tokens": 1}, asking={"max_missing": 1.0})
    inputs = read[-1]
    assert inputs["input_ids"][0].tolist() == recorded["roboreward/ids"].tolist()
    assert inputs["video_grid_thw"].tolist() == recorded["roboreward/grid"].tolist()
    assert_allclose(grey(inputs["pixel_values_videos"]), recorded["roboreward/pixels"], atol=0.5e-4 * 255)


def test_grm_reads_what_its_example_makes(recorded, tiny_qwen3, monkeypatch):
    """Eight images, each after its label; start, goal, three views before, three after."""
    from rewards.chat import Message

    shown = film(8, 140, 200)
    settings = chat_settings(MODELS["grm-2.0-8b"], tiny_qwen3, {"device": "cpu", "precision": "fp32"})
    assert settings["sampling"] == {"temperature": 0.1, "top_p": 0.9, "top_k": 50}
    chat = LocalChat(**settings)
    asked = Message("user", GRM_PUBLISHED.replace("{task}", TASK), list(shown))
    inputs = chat._inputs([asked], "")
    assert inputs["input_ids"][0].tolist() == recorded["grm/ids"].tolist()
    assert inputs["image_grid_thw"].tolist() == recorded["grm/grid"].tolist()
    assert_allclose(grey(inputs["pixel_values"][:60]), recorded["grm/pixels"], atol=0.5e-4 * 255)


@pytest.mark.parametrize("kind", ["tokens", "frames"])
def test_rewind_says_what_its_code_does(kind, recorded, tmp_path):
    weights, images, texts = save_tiny_rewind(tmp_path, tokens=kind == "tokens", bins=7 if kind == "tokens" else 1)
    vlm = {"images": images, "texts": texts, "device": "cpu"}
    for output in ("progress", "success"):
        scorer = pretrained_scorer(
            encoder=FakeEncoder(), goal=TASK, model="rewind", weights=weights, vlm=vlm, stride=1, output=output
        )
        said = scorer.heads["rewind"].model.judge(list(film(4)), TASK)[output]
        assert_allclose(said, recorded[f"rewind/{kind}/{output}"], atol=1e-5)


@pytest.mark.parametrize("size", ["large", "same", "small"])
def test_the_montage_is_that_of_sole_r1(size, recorded):
    height, width = {"large": (480, 640), "same": (384, 384), "small": (100, 70)}[size]
    frames = film(6, height, width)
    made = montage([(frames[1], frames[0]), (frames[3], frames[2]), (frames[5], frames[4])])
    assert made.shape == (784, 1176, 3)
    assert np.array_equal(made[::7, ::7], recorded[f"montage/{size}"])
