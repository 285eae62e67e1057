"""Which demonstrations are imitated: what the success reward says of them from pixels, and how much each row counts."""

import json

import numpy as np
import pytest
import torch

from embodied.config import compose
from embodied.datasets import Writer
from embodied.datasets.windows import EncodedEpisode as Shown
from embodied.datasets.windows import Windows
from embodied.errors import UserError
from embodied.finetuning import inputs, labels
from rewards.metrics import mcnemar

SOLVED = [True, False, True, False, False, True, True, False, True, False, False, True]
LENGTH = 12


class Brightness:
    """Frames to a unit vector that turns with their brightness."""

    name, dim, image_size = "brightness", 3, (16, 16)

    def encode_images(self, frames):
        angle = frames.float().mean((1, 2, 3)) / 255 * 1.5
        return torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], 1)

    def encode_texts(self, texts):
        return torch.tensor([[0.0, 0.0, 1.0]]).repeat(len(texts), 1)


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Twelve episodes of which the solved ones end bright, and the others stay dark."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data", "shine", dark=40, bright=200)

    def make(*words):
        config = compose("finetune", [f"data={tmp_path / 'data'}", *words])
        labels.check_labels(config)
        return config, inputs.plan(config)

    return make


def write(root, instruction, *, dark, bright):
    """Twelve episodes that end `bright` where they are solved, and stay `dark` elsewhere."""
    features = {
        "observation.state": {"dtype": "float32", "shape": [1], "names": ["x"]},
        "action": {"dtype": "float32", "shape": [2], "names": ["a", "b"]},
        "next.success": {"dtype": "bool", "shape": [1], "names": None},
    }
    random = np.random.default_rng(0)
    with Writer(root, fps=10, features=features, cameras={"front": (16, 16)}) as writer:
        for solved in SOLVED:
            done = (np.arange(LENGTH) >= 6) & solved
            shown = np.where(done, bright, dark) + random.integers(-10, 10, LENGTH)
            rows = {"observation.state": np.zeros(LENGTH, np.float32), "action": np.zeros((LENGTH, 2), np.float32)}
            frames = np.broadcast_to(shown[:, None, None, None], (LENGTH, 16, 16, 3)).astype(np.uint8)
            writer.add(rows | {"next.success": done}, {"front": frames}, instruction=instruction)


def rows_of(planned):
    maps = {"front": torch.zeros(LENGTH, 1, 1, 1).half()}
    shown = [Shown(maps, np.zeros((LENGTH, 1), np.float32), np.zeros((LENGTH, 2), np.float32), "shine") for _ in SOLVED]
    return Windows(shown, horizon=4, cameras=planned.cameras, texts={"shine": torch.zeros(3)})


def test_the_success_reward_labels_what_nobody_did(plan):
    config, planned = plan("labels.known=8", "labels.hold=2")
    found, teacher = labels.label(config, planned, Brightness())
    assert [word == "solved" for word in found.words] == SOLVED
    assert found.said_by == ("person",) * 8 + ("success",) * 4
    assert teacher is not None
    bright = np.full((4, 16, 16, 3), 200, np.uint8)
    assert teacher.word({"front": bright}, "shine") == "solved"
    assert teacher.word({"front": bright // 5}, "shine") == "not"
    assert "6 solved, 6 not, 0 unsure; a person labelled 8 of them" in found.told()

    weights = labels.row_weights(config, found, planned, Brightness(), rows_of(planned))
    assert weights.reshape(len(SOLVED), LENGTH).all(1).tolist() == SOLVED
    assert weights.sum() == sum(SOLVED) * LENGTH


def test_rows_that_lead_forward_by_a_process_reward_count_most(plan):
    """Its default was no folder, and not fitted either: no run could ask for it."""
    config, planned = plan("labels.source=recorded", "labels.weights=progress")
    found, _ = labels.label(config, planned, Brightness())
    weights = labels.row_weights(config, found, planned, Brightness(), rows_of(planned)).reshape(len(SOLVED), LENGTH)
    rising = weights[:, 2:6]  # their chunks of four reach the bright part, where the episode is solved
    assert rising[SOLVED].mean() > 2 * rising[np.logical_not(SOLVED)].mean()


def test_each_task_is_judged_by_a_success_model_of_its_own(plan, tmp_path):
    write(tmp_path / "dim", "dim the light", dark=200, bright=40)
    both = [f"data=[{tmp_path / 'data'},{tmp_path / 'dim'}]", "labels.known=8", "labels.hold=2"]
    config, planned = plan(*both)
    found, teacher = labels.label(config, planned, Brightness())
    assert [word == "solved" for word in found.words] == SOLVED * 2
    assert found.said_by == (("person",) * 8 + ("success",) * 4) * 2
    assert found.quality is not None
    assert set(found.quality) == {"shine", "dim the light"}
    assert teacher is not None
    bright = {"front": np.full((4, 16, 16, 3), 200, np.uint8)}
    assert [teacher.word(bright, sentence) for sentence in ("shine", "dim the light")] == ["solved", "not"]
    with pytest.raises(UserError, match="none can judge “glow”"):
        teacher.word(bright, "glow")
    with pytest.raises(UserError, match=r"cannot be fitted to 1 labelled episodes of “shine”"):
        labels.label(plan(*both, "labels.known=1")[0], planned, Brightness())


def test_a_success_model_of_another_task_is_told(plan, tmp_path, capsys):
    config, planned = plan("labels.known=8", "labels.hold=2")
    _, teacher = labels.label(config, planned, Brightness())
    teacher.head.save(tmp_path / "head", Brightness())
    file = tmp_path / "head" / "head.json"
    for fitted, told in (
        ({"goal": "glow", "tasks": ["glow"]}, True),
        ({"goal": "Shine.", "tasks": []}, False),
        ([], False),
    ):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"fitted_to": fitted}))
        labels.label(plan(f"labels.model={tmp_path / 'head'}")[0], planned, Brightness())
        said = capsys.readouterr().err
        assert ("was fitted to 'glow', and 12 of 12 episodes are of 'shine'" in said) is told


def test_labels_that_were_recorded_and_none_at_all(plan):
    config, planned = plan("labels.source=recorded")
    found, teacher = labels.label(config, planned, Brightness())
    assert [word == "solved" for word in found.words] == SOLVED
    assert teacher is None
    config, planned = plan("labels.source=all", "labels.weights=uniform")
    found, _ = labels.label(config, planned, Brightness())
    assert labels.row_weights(config, found, planned, Brightness(), rows_of(planned)).all()


def test_what_cannot_be_labelled_is_refused(plan):
    config, planned = plan("labels.known=1")
    with pytest.raises(UserError, match=r"cannot be fitted to 1 labelled episodes.*labels\.source=recorded"):
        labels.label(config, planned, Brightness())
    config, planned = plan("labels.known=0")
    with pytest.raises(UserError, match=r"needs labelled episodes.*labels\.model=FOLDER"):
        labels.label(config, planned, Brightness())
    nothing = labels.EpisodeLabels(("not",) * len(SOLVED), ("success",) * len(SOLVED))
    with pytest.raises(UserError, match="nothing is left to imitate"):
        labels.row_weights(config, nothing, planned, Brightness(), rows_of(planned))


def test_mcnemar_is_the_exact_two_sided_binomial():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(8, 1) == mcnemar(1, 8) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar(26, 0) == pytest.approx(2 / 2**26)
    with pytest.raises(ValueError, match="0 or more"):
        mcnemar(-1, 2)
