"""Two hundred LeRobot folders of many makers: every frame, task and time is what was written."""

import numpy as np
import pytest

from embodied.datasets import Dataset
from embodied.errors import UserError
from tests.lerobot_folders import folder, number_of

SEEDS, PARTS = 200, 25


def shown(images):
    return [number_of(image) for image in images]


@pytest.mark.parametrize("part", range(PARTS))
def test_what_was_written_is_read(tmp_path, part, monkeypatch):
    monkeypatch.setenv("SVT_LOG", "1")  # errors alone
    for seed in range(part, SEEDS, PARTS):
        check(tmp_path / f"набор {seed}", seed)


def check(root, seed):
    made = folder(root, seed)
    dataset, rng = Dataset(root), np.random.default_rng(seed)
    assert dataset.fps == made.fps, seed
    assert set(dataset.cameras) == made.cameras, seed
    assert [span.index for span in dataset.spans] == [each["index"] for each in made.episodes], seed
    for i, expected in enumerate(made.episodes):
        assert dataset.position(expected["index"]) == i
        assert dataset.length(i) == expected["length"], seed
        assert dataset.instructions(i) == expected["tasks"], seed
        if len(set(expected["tasks"])) == 1:
            assert dataset.instruction(i) == expected["tasks"][0], seed
        else:
            with pytest.raises(UserError, match="goal must be given"):
                dataset.instruction(i)
        recording = dataset.recording(i, cameras=())
        np.testing.assert_array_equal(recording.actions, expected["action"])
        told = None if recording.success is None else recording.success.tolist()
        assert told == expected["success"], seed
        if "timestamp" in dataset.features:
            np.testing.assert_array_equal(dataset.columns(i, ["timestamp"])["timestamp"], expected["times"])
        for camera, numbers in expected["pictures"].items():
            if numbers is None:
                with pytest.raises(UserError, match="has no film"):
                    dataset.frames(i, camera)
                continue
            assert shown(dataset.frames(i, camera)) == numbers, (seed, i, camera)
            assert [n for batch in dataset.batches(i, camera, 3) for n in shown(batch)] == numbers, (seed, i, camera)
            rows = rng.integers(0, len(numbers), 4)
            assert shown(dataset.frames(i, camera, rows.tolist())) == [numbers[row] for row in rows], (seed, i, camera)
