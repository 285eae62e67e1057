"""Windows of demonstrations: ends, masks, names, rates, cameras that are missing."""

import functools

import numpy as np
import pytest
import torch

from benchmarks.finetune import shuffled
from embodied.datasets import Dataset, Writer
from embodied.datasets.maps import Eye, fit_eye
from embodied.datasets.windows import EncodedEpisode, Windows, names_of, ordered, read_episode
from embodied.errors import UserError

TEXTS = {"open": torch.tensor([1.0, 0.0]), "close": torch.tensor([0.0, 1.0])}


def episode(length, *, start=0, cameras=("front",), instruction="open", ratio=1.0):
    numbers = np.arange(start, start + length, dtype=np.float32)
    maps = {name: torch.from_numpy(numbers).half().view(-1, 1, 1, 1).expand(-1, 2, 3, 3) for name in cameras}
    return EncodedEpisode(maps, numbers[:, None], np.stack([numbers, -numbers], 1), instruction, ratio)


def windows(episodes, horizon=4, cameras=("front",)):
    return Windows(episodes, horizon=horizon, cameras=cameras, texts=TEXTS)


def write(root, *, features, cameras=("front",), fps=10, lengths=(3, 5), values=None):
    sizes = dict.fromkeys(cameras, (16, 16))
    with Writer(root, fps=fps, features=features, cameras=sizes) as writer:
        for k, length in enumerate(lengths):
            rows = {name: np.zeros((length, *about["shape"]), about["dtype"]) for name, about in features.items()}
            rows |= {name: make(k, length) for name, make in (values or {}).items()}
            frames = {name: np.full((length, 16, 16, 3), 40 * k, np.uint8) for name in cameras}
            writer.add(rows, frames, instruction="open")
    return Dataset(root)


def feature(*names):
    return {"dtype": "float32", "shape": [len(names)], "names": list(names)}


FEATURES = {"observation.state": feature("x", "y"), "action": feature("dx", "dy")}


# Ends and masks -----------------------------------------------------------------------------------------


def test_chunks_end_with_their_episode_and_every_row_is_used():
    rows = windows([episode(3), episode(6, start=10)])
    assert len(rows) == 9
    assert rows.usable.all()
    batch = rows.batch(np.arange(9))
    assert batch.chunk[1, :, 0].tolist() == [1, 2, 2, 2]
    assert batch.pad[1].tolist() == [False, False, True, True]
    assert batch.chunk[2, :, 0].tolist() == [2, 2, 2, 2]
    assert batch.pad[2].tolist() == [False, True, True, True]
    assert batch.chunk[3, :, 0].tolist() == [10, 11, 12, 13]
    assert not batch.pad[3].any()
    assert batch.obs.state[:, 0].tolist() == [0, 1, 2, 10, 11, 12, 13, 14, 15]
    assert batch.obs.maps["front"][4, 0, 0, 0] == 11


def test_a_chunk_may_be_longer_than_an_episode():
    batch = windows([episode(2)], horizon=5).batch(np.array([0]))
    assert batch.pad[0].tolist() == [False, False, True, True, True]


def test_actions_that_are_not_finite_are_masked_and_rows_without_any_are_dropped():
    broken = episode(6)
    broken.actions[3, 1] = np.nan
    broken.actions[5] = np.inf
    broken.state[1] = np.nan
    rows = windows([broken], horizon=2)
    assert rows.usable.tolist() == [True, False, True, True, True, False]
    pad = rows.batch(np.arange(6)).pad
    assert pad.tolist() == [[False, False], [False, False], [False, True], [True, False], [False, True], [True, True]]
    broken.actions[:] = np.nan
    with pytest.raises(UserError, match="finite own readings and actions"):
        windows([broken])


def test_an_episodes_rest_is_told():
    moving, waiting, broken = episode(3), episode(6), episode(4)
    waiting.actions[2:] = [2.0, 0.001]
    waiting.actions[3] += 1e-4
    broken.actions[:, 0], broken.actions[1, 1] = 0, np.nan
    rows = windows([moving, waiting, broken])
    assert rows.resting.tolist() == [False] * 3 + [False] * 3 + [True] * 3 + [False] * 4


def test_sentences_and_cameras_that_are_missing():
    both = windows(
        [episode(2, cameras=("front", "wrist")), episode(3, instruction="close")], cameras=("front", "wrist")
    )
    batch = both.batch(np.array([0, 4]))
    assert batch.obs.text.tolist() == [[1, 0], [0, 1]]
    assert batch.obs.seen["wrist"].tolist() == [True, False]
    assert batch.obs.seen["front"].all()
    assert (batch.obs.maps["wrist"][1] == 0).all()
    with pytest.raises(UserError, match="at least one episode"):
        windows([])


def test_a_faster_recording_is_read_at_the_policys_rate():
    fast = windows([episode(8, ratio=2.0)], horizon=3).batch(np.array([1, 4]))
    assert fast.chunk[0, :, 0].tolist() == [1, 3, 5]
    assert not fast.pad[0].any()
    assert fast.chunk[1, :2, 0].tolist() == [4, 6]
    assert fast.pad[1].tolist() == [False, False, True]
    slow = windows([episode(4, ratio=0.5)], horizon=4).batch(np.array([0]))
    assert slow.chunk[0, :, 0].tolist() == [0, 1, 1, 2]  # the nearest row, halves upwards


# Names --------------------------------------------------------------------------------------------------


def test_names_are_mapped_and_checked_on_both_sides(tmp_path):
    features = {"state": feature("x", "y"), "motor.command": feature("dx", "dy")}
    dataset = write(tmp_path / "data", features=features, cameras=("cam_high", "cam_low"))
    with pytest.raises(UserError, match=r"action must be one of its features; got 'action'.*motor\.command"):
        names_of(dataset)
    mapping = {"action": "motor.command", "observation.state": "state", "observation.images.front": "cam_high"}
    names = names_of(dataset, mapping)
    assert names.cameras == {"front": "cam_high", "cam_low": "cam_low"}
    assert (names.state, names.actions) == ("state", ("dx", "dy"))
    with pytest.raises(UserError, match="did you mean cam_high"):
        names_of(dataset, mapping | {"observation.images.front": "cam_hi"})
    with pytest.raises(UserError, match=r"policy\.names must map .*got 'observation.image.front'"):
        names_of(dataset, mapping | {"observation.image.front": "cam_high"})
    with pytest.raises(UserError, match="different ones"):
        names_of(dataset, mapping | {"observation.images.side": "observation.images.cam_high"})
    assert names_of(dataset, {"action": "motor.command"}).states == ()


def test_order_follows_the_policys_names(tmp_path):
    def actions(k, length):
        return np.tile(np.array([[1.0, 2.0]], np.float32), (length, 1))

    turned = {"observation.state": feature("y", "x"), "action": feature("dy", "dx")}
    dataset = write(tmp_path / "data", features=turned, values={"action": actions})
    found = read_episode(dataset, 1, names_of(dataset), eyes={}, states=("x", "y"), actions=("dx", "dy"), fps=5.0)
    assert found.actions[0].tolist() == [2, 1]
    assert found.ratio == 2
    assert len(found) == 5
    with pytest.raises(UserError, match=r"must have 'dz'.*Choose from dx, dy"):
        ordered(("dx", "dy"), ("dz",), "data: action")


# Maps ---------------------------------------------------------------------------------------------------


class Squares:
    """Maps of four directions, of which two vary."""

    name, dim, image_size, map_layers = "squares", 4, (16, 16), ("only",)

    def encode_images(self, frames):
        return torch.ones(len(frames), 4) / 2

    def encode_texts(self, texts):
        return torch.ones(len(texts), 4) / 2

    def encode_maps(self, frames, layer):
        bright = frames.float().mean(-1)[:, None] / 255
        tilted = bright + torch.linspace(0, 1, 16).view(1, 1, 1, -1)
        return torch.cat([bright, 2 * bright, tilted, torch.ones_like(bright)], 1).half()


def test_compression_keeps_what_varies_and_is_kept_on_disk(tmp_path, monkeypatch):
    dataset = write(tmp_path / "data", features=FEATURES)
    eye = fit_eye([(dataset, "front", [0, 1])], Squares(), layer=None, channels=2)
    assert eye.weight.shape == (4, 2)
    assert eye.weight[3].abs().max() < 1e-3
    maps = eye.of(dataset, 1, "front", cache=tmp_path / "cache")
    assert maps.shape == (5, 2, 16, 16)
    assert maps.dtype == torch.float16
    frames = dataset.frames(1, "front")
    assert torch.equal(maps, eye(frames))

    def never(*args, **kwargs):
        raise AssertionError("must not be decoded again")

    monkeypatch.setattr(Dataset, "frames", never)
    assert torch.equal(eye.of(dataset, 1, "front", cache=tmp_path / "cache"), maps)
    other = Eye(eye.encoder, eye.layer, 2 * eye.weight, eye.offset, eye.mark)
    with pytest.raises(AssertionError, match="decoded again"):
        other.of(dataset, 1, "front", cache=tmp_path / "cache")


def test_a_dataset_may_hold_what_was_there_after_the_last_action(tmp_path):
    root = tmp_path / "data"
    rows = {name: np.zeros((2, 2), np.float32) for name in FEATURES}
    frames = {"front": np.zeros((2, 16, 16, 3), np.uint8)}
    end = {"front": np.full((16, 16, 3), 77, np.uint8), "observation.state": np.array([0.5, -1], np.float32)}
    for _ in range(2):  # the second time it is appended to
        with Writer(root, fps=10, features=FEATURES, cameras={"front": (16, 16)}) as writer:
            writer.add(rows, frames, instruction="open", last=end, kind="expert")
            writer.add(rows, frames, instruction="open")
    dataset = Dataset(root)
    for i in (0, 2):
        images, values = dataset.last(i)
        assert np.array_equal(images["front"], end["front"])
        assert values["observation.state"].tolist() == [0.5, -1]
    assert dataset.last(1) == dataset.last(3) == ({}, {})
    (root / "last" / "front" / "episode-000000.png").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"episode 0, camera front: .*damaged"):
        dataset.last(0)


def test_the_control_of_the_benchmark_is_taught_the_actions_of_other_episodes():
    class Run:
        @functools.cached_property
        def episodes(self):
            return [episode(4, start=10 * k) for k in range(5)]

        @functools.cached_property
        def rows(self):
            return windows(self.episodes)

    run = Run()
    own = run.rows.actions()  # made of the episodes as they are, before the control is
    weights = shuffled(run)
    assert weights.tolist() == [1.0] * 20
    others = run.rows.actions()
    assert (own // 10 != others // 10)[:, 0].all()  # none kept its own
    assert sorted(own[:, 0]) == sorted(others[:, 0])
    assert np.array_equal(run.rows.states(), np.concatenate([each.state for each in run.episodes]))
