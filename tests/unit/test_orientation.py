import numpy as np
import pytest

from embodied.envs import bridge
from embodied.finetuning.orientation import misplaced

TURNS = {"mirrored": np.s_[:, ::-1], "upside down": np.s_[::-1], "turned by 180°": np.s_[::-1, ::-1]}


def first_frames(seeds, size, camera="front", world="desk-place"):
    env = bridge.make(world)
    frames = []
    for seed in seeds:
        env.reset(seed=seed)
        frames.append(env.get_wrapper_attr("frame")(camera=camera, image_size=size))
    env.close()
    return frames


@pytest.mark.parametrize("camera", ["front", "wrist", "side"])
def test_turned_pictures_are_named_and_upright_ones_are_not(camera):
    shown, recorded = first_frames(range(3), 96, camera), first_frames(range(100, 103), 64, camera)
    assert misplaced(recorded, shown) is None
    if camera == "front":
        for word, way in TURNS.items():
            assert misplaced([each[way] for each in recorded], shown) == word


def test_pictures_may_have_several_sizes():
    shown = first_frames(range(2), 96)
    mixed = [*first_frames([100], 48), *first_frames([101], 64)]
    assert misplaced(mixed, shown) is None
    assert misplaced([each[:, ::-1] for each in mixed], shown) == "mirrored"


def test_pictures_of_something_else_tell_nothing():
    shown = first_frames(range(2), 96)
    noise = np.random.default_rng(0).integers(0, 255, (2, 48, 48, 3), np.uint8)
    assert misplaced(list(noise), shown) is None
    assert misplaced([np.zeros((48, 48, 3), np.uint8)], shown) is None
