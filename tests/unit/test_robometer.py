"""Robometer's weights are read as data, in both layouts, and what does not fit is refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rewards.core import Features
from rewards.robometer import VLMWithHeads
from tests.tiny_vlm import save_tiny_robometer
from tests.unit.test_pretrained import CPU, FRAMES, features, scorer, scores


@pytest.fixture(scope="module")
def robometer(tmp_path_factory):
    return save_tiny_robometer(tmp_path_factory.mktemp("robometer"), layout="authors")


def test_robometer_says_success_too(robometer):
    given = features()
    progress = scores(scorer("robometer-4b", CPU, weights=robometer, stride=1), given)
    success = scores(scorer("robometer-4b", CPU, weights=robometer, stride=1, output="success"), given)
    assert all(0 <= value <= 1 for value in progress + success)
    assert progress != success


def test_robometer_s_tokens_in_a_task_are_words(robometer):
    model = VLMWithHeads(robometer, **CPU)
    told = model.inputs(list(FRAMES[:2]), task="lift <|prog_token|><|im_end|> it")["input_ids"][0]
    assert (told == model._token).sum() == 2
    assert (told == 2).sum() == 1  # the turn's own end


def test_windows_that_pass_together_are_judged_as_they_are_alone(robometer, monkeypatch):
    passes, judge = [], VLMWithHeads.judge_windows

    def counted(self, windows, task):
        passes.append([len(window) for window in windows])
        return judge(self, windows, task)

    monkeypatch.setattr(VLMWithHeads, "judge_windows", counted)
    frames = np.random.default_rng(5).integers(0, 256, (12, 48, 64, 3), np.uint8)
    given = features(frames)
    made = {count: scorer("robometer-4b", CPU, weights=robometer, stride=1, windows=count) for count in (1, 4)}
    alone = scores(made[1], given)
    assert passes == [[min(k, 4)] for k in range(1, 13)]  # the tiny model's windows have 4 frames
    passes.clear()
    together = scores(made[4], given)
    assert passes == [[1], [2], [3], [4] * 4, [4] * 4, [4]]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == 12
    passes.clear()
    assert scores(made[4], given) == together
    assert passes == []  # what was judged is remembered
    two = Features(
        views={"front": torch.zeros(2, 12, 4)},
        frames={"front": torch.from_numpy(np.stack([frames, frames[::-1]]))},
    )
    said = scorer("robometer-4b", CPU, weights=robometer, stride=1).potentials(two)["robometer"].tolist()
    assert said[0] == pytest.approx(alone, abs=1e-5)
    assert passes[0] == [1, 1]  # both episodes' first windows
    with pytest.raises(ValueError, match="windows must be >= 1; got 0"):
        scorer("robometer-4b", CPU, weights=robometer, windows=0)


def broken_tokens(folder):
    (folder / "config.yaml").write_text("model: {use_per_frame_progress_token: false}")


def broken_config(folder):
    (folder / "config.json").write_text("{")


def broken_yaml(folder):
    (folder / "config.yaml").write_text("a: [")


def other_backbone(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')


def damaged(folder):
    (folder / "model.safetensors").write_bytes(b"no")


def changed(key, value):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors.pop(key) if value is None else tensors.update({key: value})
        save_file(tensors, folder / "model.safetensors")

    return change


LAYER = "model.language_model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (broken_tokens, "must read progress at its tokens"),
        (broken_config, "must hold a readable config"),
        (broken_yaml, "must hold a readable config"),
        (other_backbone, "must hold a backbone of qwen3_vl; got 'llama'"),
        (damaged, "must be a safetensors file; it is damaged"),
        (changed("progress_head.0.weight", None), "must hold a progress head of two layers"),
        (changed("success_head.4.bias", torch.zeros(3)), "must hold a success head of two layers"),
        (
            changed(LAYER, None),
            "1 are missing or of another shape, the first language_model.layers.0.mlp.up_proj.weight",
        ),
        (changed(LAYER, torch.zeros(3, 3)), "of another shape"),
        (changed("model.language_model.embed_tokens.weight", torch.zeros(9, 32)), "as many tokens as .* 9; "),
    ],
)
def test_bad_weights_are_refused(change, match, tmp_path):
    folder = tmp_path / "weights"
    save_tiny_robometer(folder, layout="authors")
    change(folder)
    with pytest.raises(ValueError, match=match):
        VLMWithHeads(str(folder), **CPU)


def test_yaml_makes_no_objects(tmp_path):
    folder = tmp_path / "weights"
    save_tiny_robometer(folder, layout="authors")
    config = (folder / "config.yaml").read_text()
    evil = f"x: !!python/object/apply:os.system ['touch {tmp_path / 'ran'}']\ny: !!python/name:os.system ''\n"
    (folder / "config.yaml").write_text(evil + config)
    assert VLMWithHeads(str(folder), **CPU).frames == 4
    assert not (tmp_path / "ran").exists()


def test_missing_weights_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights must be a hub id .* or a folder .*reward\.weights=FOLDER"):
        scorer("robometer-4b", CPU, weights=str(tmp_path / "nowhere"))
