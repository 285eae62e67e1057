"""SARM by LeRobot's own class, where it is installed; what is told where it is not; and where its later frames lack."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from embodied import cli
from embodied.datasets import Dataset, Writer
from embodied.scoring.streaming import EpisodeStream
from rewards.combine import WeightedSum
from rewards.core import Features, Scorer
from rewards.encoders.loading import cure_torchvision
from rewards.sarm import CLIP, Sarm, SarmHead
from rewards.shaping import PotentialShaping
from tests.fakes import FakeEncoder

SIZE, GAP = 32, 2
STATES = ("shoulder", "elbow", "grip")
needs_lerobot = pytest.mark.skipif(importlib.util.find_spec("lerobot") is None, reason="needs LeRobot (Python 3.12)")


class Counting(Sarm):
    """In place of a checkpoint: the row, less a tenth of a reading; remembers what it was shown."""

    def __init__(self):
        self.name, self.asked = "counting", []
        self.config = SimpleNamespace(image_key="observation.images.front", uses_dual_heads=False)

    def judge(self, frames, states, task, row, output):
        self.asked.append((int(frames[0, 0, 0, 0]), task, row, output))
        return row - 0.1 * float(states[row, 1])


def features(rows=6, views=("side", "front"), signals=STATES):
    frames = {name: torch.full((1, rows, 4, 4, 3), k, dtype=torch.uint8) for k, name in enumerate(views)}
    readings = {name: torch.full((1, rows), float(k)) for k, name in enumerate(signals)}
    return Features(views={name: torch.zeros(1, rows, 4) for name in views}, frames=frames, signals=readings)


def test_rows_between_those_asked_are_interpolated():
    model = Counting()
    head = SarmHead("lift the cup", model=model, stride=2).toward("fold the shirt")
    assert head.score(features())[0].tolist() == pytest.approx([row - 0.1 for row in range(6)])
    assert model.asked == [(1, "fold the shirt", row, "progress") for row in (0, 2, 4, 5)]
    assert len(head.score(features(views=("only",)))[0]) == 6  # a lone camera may have any name
    assert model.asked[-1][0] == 0


@pytest.mark.parametrize(
    ("given", "settings", "text"),
    [
        (features(signals=()), {}, "own readings must be there beside the frames"),
        (features(views=("left", "right")), {}, "frames must be all 6 of at least one of front"),
        (features(), {"views": ["top"]}, "at least one of top"),
        (features(), {"output": "success"}, "output must be progress or dense"),
        (features(), {"output": "dense"}, "which has no dense stages"),
    ],
)
def test_what_sarm_lacks_is_told(given, settings, text):
    with pytest.raises(ValueError, match=text):
        SarmHead("lift the cup", model=Counting(), **settings).score(given)


def test_it_is_refused_where_frames_come_one_by_one():
    head = SarmHead("lift the cup", model=Counting())
    scorer = Scorer(FakeEncoder(), {"sarm": head}, WeightedSum(), PotentialShaping())
    with pytest.raises(ValueError, match=r"sarm reads later frames, which are not there yet.*embodied label"):
        EpisodeStream(scorer)


@pytest.fixture
def data(tmp_path):
    rng, root = np.random.default_rng(0), tmp_path / "data"
    state = {"observation.state": {"dtype": "float32", "shape": [3], "names": list(STATES)}}
    with Writer(root, fps=10, features=state, cameras={"front": (SIZE, SIZE)}) as writer:
        for rows in (9, 4):
            frames = rng.integers(0, 256, (rows, SIZE, SIZE, 3), np.uint8)
            readings = rng.normal(size=(rows, 3)).astype(np.float32)
            writer.add({"observation.state": readings}, {"front": frames}, instruction="lift the cup")
    return root


def words(verb, folder, *more):
    return [verb, "reward=pretrained", "reward.model=sarm", f"reward.weights={folder}", "reward.vlm.device=cpu", *more]


def test_without_lerobot_it_says_what_to_install(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "lerobot", None)
    assert cli.main(words("label", tmp_path, f"data={data}")) == 2
    said = capsys.readouterr().err
    assert "in the package lerobot, version 0.6 or newer" in said
    assert "is not installed. Install it (Python 3.12 or newer): pip install 'lerobot[sarm]'" in said


def test_its_checkpoint_must_be_named(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["label", "reward=pretrained", "reward.model=sarm", f"data={data}"]) == 2
    assert "weights must be a folder of your own training for sarm" in capsys.readouterr().err


# With LeRobot -------------------------------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """A tiny CLIP of random weights in a hub's cache, under the name that LeRobot loads."""
    cure_torchvision()
    import transformers
    from huggingface_hub import constants
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {word: i for i, word in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    spelled = Tokenizer(models.BPE(vocab=letters, merges=[]))
    spelled.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=spelled, eos_token="</s>", pad_token="</s>")
    tokenizer.model_max_length = 32
    text = {"vocab_size": len(letters), "max_position_embeddings": 32, "eos_token_id": 1, "bos_token_id": 0}
    vision = {"image_size": SIZE, "patch_size": 16}
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text | small, vision_config=vision | small, projection_dim=16)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    cache = tmp_path / "cache"
    folder = cache / f"models--{CLIP.replace('/', '--')}"
    transformers.CLIPModel(config).save_pretrained(folder / "snapshots/0")
    transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder / "snapshots/0")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def checkpoint(clip, tmp_path):
    """What LeRobot's training would write into pretrained_model, of random weights and three stages."""
    from lerobot.rewards.sarm.configuration_sarm import SARMConfig
    from lerobot.rewards.sarm.modeling_sarm import SARMRewardModel
    from lerobot.rewards.sarm.processor_sarm import make_sarm_pre_post_processors

    stages = {"num_dense_stages": 3, "dense_subtask_names": ["reach", "grasp", "lift"]}
    config = SARMConfig(
        annotation_mode="dense_only", **stages, dense_temporal_proportions=[0.2, 0.5, 0.3], n_obs_steps=4,
        max_rewind_steps=1, frame_gap=GAP, image_dim=16, text_dim=16, hidden_dim=16, num_heads=2, num_layers=1,
        max_state_dim=5, image_key="observation.images.front", device="cpu",
    )  # fmt: skip
    torch.manual_seed(1)
    model = SARMRewardModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) / 3)
    scale = {"observation.state": {"mean": torch.tensor([1.0, -1.0, 0.5]), "std": torch.tensor([2.0, 0.5, 1.0])}}
    folder = tmp_path / "pretrained_model"
    model.save_pretrained(folder)
    make_sarm_pre_post_processors(config, dataset_stats=scale)[0].save_pretrained(folder)
    return folder


def by_lerobot(folder, root, scheme):
    """As `compute_rabc_weights` asks, on windows that LeRobot's own rule names."""
    from lerobot.rewards.sarm.modeling_sarm import SARMRewardModel
    from lerobot.rewards.sarm.processor_sarm import make_sarm_pre_post_processors
    from lerobot.rewards.sarm.sarm_utils import compute_absolute_indices

    scale = {"observation.state": {"mean": torch.tensor([1.0, -1.0, 0.5]), "std": torch.tensor([2.0, 0.5, 1.0])}}
    model = SARMRewardModel.from_pretrained(str(folder))
    model.to("cpu").eval()
    process, _ = make_sarm_pre_post_processors(model.config, dataset_stats=scale)
    for step in process.steps:
        if hasattr(step, "eval"):
            step.eval()
    dataset, said = Dataset(root), []
    for i in range(len(dataset)):
        frames = torch.from_numpy(dataset.frames(i, "front")).permute(0, 3, 1, 2).float() / 255
        states = torch.from_numpy(np.stack(list(dataset.recording(i).signals.values()), 1))
        for row in range(len(frames)):
            around, _ = compute_absolute_indices(row, 0, len(frames), 4, GAP)
            window = torch.cat([around, torch.tensor([max(0, row - GAP)])])  # where training would rewind
            batch = {"observation.images.front": frames[window], "observation.state": states[window]}
            made = process(batch | {"task": "lift the cup", "index": row, "episode_index": i})
            progress = model.calculate_rewards(
                made["text_features"], made["video_features"], made["state_features"], made["lengths"],
                return_all_frames=True, head_mode=scheme,
            )  # fmt: skip
            said.append(progress[0, 2])
    return np.array(said)


@needs_lerobot
@pytest.mark.parametrize(("output", "scheme"), [("null", "sparse"), ("dense", "dense")])
def test_labels_are_what_lerobot_says(data, checkpoint, tmp_path, monkeypatch, capsys, output, scheme):
    monkeypatch.chdir(tmp_path)
    more = ["reward.stride=1", f"reward.output={output}", f"data={data}", "out=said.parquet"]
    assert cli.main(words("label", checkpoint, *more)) == 0, capsys.readouterr().err
    said = pq.read_table(tmp_path / "said.parquet").column("potential").to_numpy()
    expected = by_lerobot(checkpoint, data, scheme)
    np.testing.assert_allclose(said, expected, atol=1e-6)
    assert np.ptp(expected) > 1e-3


@needs_lerobot
def test_it_is_judged_and_refused_live(data, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words("judge", checkpoint, f"data={data}", "unlabelled=success", "resamples=10", "run=out")) == 0
    assert "pretrained" in json.loads((tmp_path / "out/judgement.json").read_text())["rewards"]
    for verb, more in (("watch", f"source=dataset:{data}#0/front"), ("serve", "port=0"), ("train", "env=desk-drawer")):
        capsys.readouterr()
        assert cli.main(words(verb, checkpoint, more, "reward.goal=lift the cup")) == 2
        assert "sarm reads later frames, which are not there yet" in capsys.readouterr().err


@needs_lerobot
@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda folder: (folder / "policy_preprocessor.json").unlink(), "must hold policy_preprocessor.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "must hold the weights of its config"),
        (lambda folder: (folder / "config.json").write_text('{"type": "act"}'), "of type sarm.*got 'act'"),
    ],
)
def test_a_spoilt_checkpoint_is_told(data, checkpoint, tmp_path, monkeypatch, capsys, spoil, text):
    monkeypatch.chdir(tmp_path)
    spoil(checkpoint)
    assert cli.main(words("label", checkpoint, f"data={data}")) == 2
    assert re.search(text, capsys.readouterr().err)


@needs_lerobot
def test_the_clip_that_it_needs_is_told(data, checkpoint, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clip.rename(tmp_path / "elsewhere")
    assert cli.main(words("label", checkpoint, f"data={data}")) == 2
    assert f"Run `hf download {CLIP}` where there is a network" in capsys.readouterr().err
