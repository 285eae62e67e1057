"""Goal-image discriminators: they tell, refit, repeat; pictures from files, an editor and the simulator."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from embodied.building.goal_images import simulated
from embodied.envs.desk import Desk
from rewards.core import Episode, Features
from rewards.goal_image import GoalDiscriminators, augment, edit_images, goal_image_scorer, read_images
from tests.fakes import FakeEncoder

RNG = torch.Generator().manual_seed(0)


def rows(centre: float, count: int = 40) -> dict[str, torch.Tensor]:
    return {c: centre + 0.3 * torch.randn(count, 6, generator=RNG) for c in ("front", "side")}


GOALS, OTHERS, ELSEWHERE = rows(1.0), rows(0.0), rows(-2.0)


def value(head, views) -> torch.Tensor:
    return head.score(Features(views={c: v[None] for c, v in views.items()}))[0]


@pytest.fixture(scope="module")
def head() -> GoalDiscriminators:
    return GoalDiscriminators(GOALS, OTHERS, members=3, steps=60)


@pytest.mark.parametrize("form", ["mean", "log_ratio"])
def test_goals_score_above_others(form, head):
    head.form = form
    assert value(head, rows(1.0)).min() > value(head, rows(0.0)).max()
    head.form = "mean"


def test_refitting_repeats_and_learns_from_replay(head, tmp_path):
    again = GoalDiscriminators(GOALS, ELSEWHERE, members=3, steps=60)
    probe = rows(0.0)
    fooled = value(again, probe).mean()
    again.refit(OTHERS)
    assert value(again, probe).mean() < fooled - 0.2
    assert_close(value(again, probe), value(head, probe), rtol=0, atol=0)  # as if never fitted otherwise
    head.save(tmp_path / "head", FakeEncoder(dim=6))
    loaded = GoalDiscriminators.load(tmp_path / "head", FakeEncoder(dim=6))
    assert_close(value(loaded, probe), value(head, probe), rtol=0, atol=0)
    loaded.refit(OTHERS)
    assert_close(value(loaded, probe), value(head, probe), rtol=0, atol=0)


def test_a_missing_view_never_raises_it(head):
    views = rows(1.0)
    assert (value(head, {"side": views["side"]}) <= value(head, views) + 1e-6).all()


def test_files_and_their_errors(tmp_path):
    for k, size in enumerate(((8, 8), (8, 8), (8, 9))):
        Image.fromarray(np.full((*size, 3), 10 * k, np.uint8)).save(tmp_path / f"{k}.png")
    found = read_images([tmp_path / "0.png", tmp_path / "1.png"])
    assert found.shape == (2, 8, 8, 3)
    assert int(found[1].max()) == 10
    with pytest.raises(ValueError, match=r"one size; got \(8, 8\), \(8, 9\)"):
        read_images([tmp_path / "0.png", tmp_path / "2.png"])
    with pytest.raises(FileNotFoundError, match="there is no"):
        read_images([tmp_path / "none.png"])
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(ValueError, match="not a picture"):
        read_images([tmp_path / "bad.png"])


def test_augmented_copies_differ_and_repeat():
    pictures = torch.randint(0, 256, (2, 32, 32, 3), generator=RNG).to(torch.uint8)
    found = augment(pictures, 3, 0)
    assert found.shape == (8, 32, 32, 3)
    assert (found[:2] == pictures).all()
    assert (found[2:4] != pictures).float().mean() > 0.5
    assert (augment(pictures, 3, 0) == found).all()


def test_the_factory_fits_on_pictures_and_beginnings():
    encoder = FakeEncoder(dim=16, size=8)
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    views = encoder.encode_images(torch.from_numpy(np.stack([black] * 8)))[None]
    demo = Episode(features=Features(views={"front": views}), success=True)
    scorer = goal_image_scorer(
        encoder=encoder, goal_images=[white, white], demos=[demo, demo], discriminators={"steps": 60}
    )
    seen = encoder.encode_images(torch.from_numpy(np.stack([black, white])))[None]
    low, high = scorer.potentials(Features(views={"front": seen}))["goal_image"][0]
    assert high > 0.8 > 0.2 > low
    with pytest.raises(ValueError, match="goal_images must be pictures of the goal"):
        goal_image_scorer(encoder=encoder, demos=[demo])
    with pytest.raises(ValueError, match="cameras front; got top"):
        goal_image_scorer(encoder=encoder, demos=[demo], goal_images={"top": [white]})


def test_editing_goes_through_diffusers(monkeypatch):
    """The package stands aside here: a module of its shape that inverts pictures."""
    asked = {}

    class Pipeline:
        @classmethod
        def from_pretrained(cls, model):
            if model == "missing":
                raise OSError("missing does not appear to have a file named model_index.json")
            return cls()

        def to(self, device):
            return self

        def set_progress_bar_config(self, **how):
            asked.update(how)

        def __call__(self, *, prompt, image, generator, **settings):
            asked.update(settings, prompt=prompt)
            return types.SimpleNamespace(images=[Image.fromarray(255 - np.asarray(image))])

    pictures = torch.full((2, 8, 8, 3), 55, dtype=torch.uint8)
    with pytest.raises(ModuleNotFoundError, match="pip install diffusers"):
        edit_images(pictures, "open the drawer", model="any")
    module = types.ModuleType("diffusers")
    module.__spec__ = types.SimpleNamespace(name="diffusers")
    module.DiffusionPipeline = Pipeline
    monkeypatch.setitem(sys.modules, "diffusers", module)
    assert (edit_images(pictures, "open the drawer", model="any", guidance_scale=7.5) == 200).all()
    assert asked["prompt"] == "open the drawer"
    assert asked["guidance_scale"] == 7.5
    with pytest.raises(FileNotFoundError, match="hf download missing"):
        edit_images(pictures, "x", model="missing")


def test_pictures_from_the_simulator_show_the_task_done(monkeypatch):
    world = Desk(task="press")
    done = []
    monkeypatch.setattr(world, "frame", lambda camera, size: done.append(world.success()) or np.zeros((size, size, 3)))
    found = simulated(world, 2, cameras=["front", "side"], image_size=8, seed=1)
    assert {camera: len(frames) for camera, frames in found.items()} == {"front": 2, "side": 2}
    assert done == [True] * 4
    world.close()
