"""`embodied preview` shows the frames a reward model gets, and the numbers it gives them."""

import numpy as np
import pytest
from PIL import Image

from embodied import cli
from embodied.commands.preview import Strip, draw, table
from embodied.envs.bridge import make


def test_a_sheet_of_every_camera_with_the_experts_success(tiny_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["preview", "env=desk-drawer", "reward.goal=the drawer is open", "columns=3", "out=sheets/a.png"]
    assert cli.main([*words, "encoder=open_clip", f"encoder.model={tiny_clip}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if " reward " in line]
    assert [tuple(row[:2]) for row in rows] == [
        (name, camera) for name in ("start", "random", "expert") for camera in ("front", "side", "wrist")
    ]
    solved = {tuple(row[:2]): row[7] for row in rows}
    assert solved["start", "front"] == "0/3"
    assert int(solved["expert", "front"].split("/")[0]) > 0
    assert len(rows[-1]) == 9  # and the mean score of the solved frames
    with Image.open("sheets/a.png") as image:
        assert image.size == (104 + 3 * 138 + 10, 44 + 9 * 164)
    assert [p.name for p in (tmp_path / "sheets").iterdir()] == ["a.png"]


def test_a_world_without_an_expert_shows_states_that_are_solved(tiny_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["preview", "env=humanoid-sit", "reward.goal=it sits", "columns=3", "max_steps=2", "out=a.png"]
    assert cli.main([*words, "encoder=open_clip", f"encoder.model={tiny_clip}"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " reward " in line]
    assert {tuple(row[:2]): row[7] for row in rows if row[0] == "solved"} == {
        ("solved", "front+side"): "3/3",  # one row, as the reward is the mean of both
    }
    assert cli.main(["preview", "env=gym", "env.id=HalfCheetah-v5", "reward=true", "max_steps=2", "out=a.png"]) == 0
    assert "No solved state of HalfCheetah-v5 is shown" in capsys.readouterr().out


@pytest.mark.parametrize("camera", ["free", "{distance: 6.0}"])
def test_a_free_camera_is_shown_as_the_reward_gets_it(camera, tmp_path, monkeypatch, capsys, tiny_clip):
    """MuJoCo gives it as an object without a name; success is unknown here, so no frame counts as unsolved."""
    monkeypatch.chdir(tmp_path)
    words = ["preview", "env=gym", "env.id=HalfCheetah-v5", f"env.camera={camera}", "columns=2", "max_steps=2"]
    words += ["reward.goal=it runs", "encoder=open_clip", f"encoder.model={tiny_clip}", "out=a.png"]
    assert cli.main(words) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " reward " in line]
    assert [tuple(row[:2]) for row in rows] == [(n, c) for n in ("start", "random") for c in ("free", "track")]
    assert {row[7] for row in rows} == {"unknown"}


def test_free_names_the_worlds_own_free_camera():
    env = make("HalfCheetah-v5", camera={"distance": 6.0}, image_size=32)
    env.reset(seed=0)
    frame = env.get_wrapper_attr("frame")
    np.testing.assert_array_equal(frame("free"), frame())
    np.testing.assert_array_equal(frame(env.unwrapped.camera), frame())
    env.close()


@pytest.mark.suites
def test_a_world_of_a_suite_is_previewed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gymnasium_robotics")
    monkeypatch.chdir(tmp_path)
    words = ["preview", "env=gym", "env.id=FetchReach-v4", "reward=true", "columns=2", "max_steps=2", "out=a.png"]
    assert cli.main(words) == 0
    assert "2 rows" in capsys.readouterr().out


def test_scores_stand_under_their_frames_and_solved_ones_are_framed():
    frames = [np.full((64, 64, 3), value, np.uint8) for value in (10, 100, 200)]
    scores = np.array([0.0, 0.5, 1.0], np.float32)
    strip = Strip("random", "front", frames, [False, False, True], [{}] * 3, {"reward": scores})
    sheet = np.asarray(draw([strip], 3, "title"))
    bar = 44 + 128 + 22
    for c, value in enumerate((10, 100, 200)):
        left = 104 + c * 138
        assert (sheet[44 + 10, left + 10] == value).all()
        blue = (sheet[bar, left : left + 128] == (31, 111, 235)).all(-1).sum()
        assert abs(blue - c * 64) <= 1
        framed = (sheet[44 + 60, left - 2] == (15, 157, 120)).all()
        assert framed == (c == 2)
    assert table([strip]).splitlines()[1].split() == [
        "random", "front", "reward", "0.000", "0.500", "1.000", "1.000", "1/3", "1.000",
    ]  # fmt: skip


def test_potentials_of_an_episode_see_its_past():
    """A head that counts steps gives 0, 1, 2 … along an episode, and 0 at each of several starts."""
    import torch

    from embodied.commands.preview import _scores
    from rewards.combine import WeightedSum
    from rewards.core import Scorer
    from rewards.shaping import PotentialShaping

    class Encoder:
        name, dim, image_size = "ones", 4, (8, 8)

        def encode_images(self, frames):
            return torch.ones(len(frames), 4)

        def encode_texts(self, texts):
            return torch.ones(len(texts), 4)

    class Count:
        name = "count"

        def score(self, features):
            return features.main[..., 0].cumsum(1) - 1

    scorer = Scorer(Encoder(), {"count": Count()}, WeightedSum(), PotentialShaping())
    frames = [np.zeros((8, 8, 3), np.uint8)] * 3
    for name, expected in (("random", [0, 1, 2]), ("start", [0, 0, 0])):
        strip = Strip(name, "front", frames, [False] * 3, [{}] * 3)
        assert _scores(scorer, [strip], ("front",))["reward"].tolist() == expected
