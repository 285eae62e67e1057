"""`embodied pretrain` on worlds of other people: what they tell, how they are varied, and what is refused."""

import json
import re
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from embodied import cli
from embodied.datasets import Dataset, Writer
from embodied.envs.scenes import Scene, open_scene
from embodied.errors import UserError
from embodied.pretraining.recorded import recorded
from embodied.pretraining.renders import render

ROOT = Path(__file__).resolve().parents[2]
MODULE = '''
import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv

XML = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <light pos="0 0 3" dir="0 0 -1"/>
    <camera name="above" pos="0 -1 1.5" xyaxes="1 0 0 0 0.8 0.6"/>
    <geom name="floor" type="plane" size="2 2 0.1" rgba="0.3 0.3 0.35 1"/>
    <body name="block" pos="0 0 0.1">
      <joint name="rail" type="slide" axis="1 0 0" range="-0.6 0.6" damping="1"/>
      <geom type="box" size="0.12 0.12 0.1" mass="1" rgba="0.9 0.2 0.1 1"/>
    </body>
  </worldbody>
  <actuator><motor joint="rail" gear="8" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


class Slider(MujocoEnv):
    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"], "render_fps": 20}

    def __init__(self, xml=%r, **kwargs):
        with open(xml, "w") as file:
            file.write(XML)
        super().__init__(xml, 5, spaces.Box(-np.inf, np.inf, (2,)), camera_name="above", **kwargs)

    def step(self, action):
        self.do_simulation(action, self.frame_skip)
        place = float(self.data.qpos[0])
        return self._get_obs(), 0.0, False, False, {"is_success": place > 0.3}

    def reset_model(self):
        self.set_state(self.np_random.uniform(-0.5, 0.5, 1), np.zeros(1))
        return self._get_obs()

    def _get_obs(self):
        return np.concatenate([self.data.qpos, self.data.qvel])


class Telling(Slider):
    facts = ("right", "left")

    def degrees(self):
        place = float(self.data.qpos[0])
        return {"right": 1.0 if place > 0.3 else 0.4 + place / 2, "left": 1.0 if place < -0.3 else 0.4 - place / 2}

    def sample_state(self, rng):
        self.data.qpos[0] = rng.uniform(-0.6, 0.6)


class Wrong(Slider):
    facts = ("right",)

    def degrees(self):
        return {"right": 2.0}


class Blind(Slider):
    def step(self, action):
        return *super().step(action)[:4], {}


for name, kind in (("Plain", Slider), ("Telling", Telling), ("Wrong", Wrong), ("Blind", Blind)):
    gymnasium.register(f"{name}Slider-v0", entry_point=f"my_scene:{kind.__name__}", max_episode_steps=30)
'''
CAPTIONS = """
goals: {right: the block is at the right, success: the block is at the right}
facts:
  scene: {train: ["a [red|] block on a floor"], val: [some block], test: [a box]}
  right: {train: ["the block is [at|on] the right"], val: [the block is right], test: [it is to the right]}
  left: {train: ["the block is [at|on] the left"], val: [the block is left], test: [it is to the left]}
"""
SMALL = ["workers=1", "test_frames=80", "recipe.epochs=1", "recipe.batch_size=16", "use=[mine]"]
TINY = ["+scenes.mine.frames=48", "+scenes.mine.captions=mine.yaml", *SMALL]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module with worlds of one's own, importable here and where worlds are rendered."""
    (tmp_path / "my_scene.py").write_text(MODULE % str(tmp_path / "slider.xml"))
    (tmp_path / "mine.yaml").write_text(CAPTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_scene", None)
    for name in ("Plain", "Telling", "Wrong", "Blind"):
        gymnasium.registry.pop(f"{name}Slider-v0", None)


def test_an_mjcf_of_ones_own_is_taught_by_its_id(mine, tiny_clip, capsys):
    words = ["pretrain", f"model={tiny_clip}", "+scenes.mine.worlds=[my_scene:TellingSlider-v0]", "run=run"]
    assert cli.main([*words, *TINY]) == 0
    out = capsys.readouterr().out
    assert "before: mine, own_look: AUROC of goals " in out
    assert "after: mine, varied_look: AUROC of goals " in out
    told = json.loads((mine / "run/encoder/judgement.json").read_text())
    for judgement in (told, told["before"]):
        assert set(judgement["scenes"]["mine"]["own_look"]["facts"]) == {"right", "left"}
    assert told["before"]["scenes"] == json.loads((mine / "run/before.json").read_text())["scenes"]


def test_a_world_that_tells_success_alone_has_that_as_its_fact(mine):
    made = render(["my_scene:PlainSlider-v0"], 60, seed=(0, 0), image_size=32, workers=1, camera="above")
    assert made.facts == ("success",)
    assert set(np.unique(made.degrees)) == {0.0, 1.0}
    red = made.frames[..., 0].astype(int) - made.frames[..., 2] > 60
    place = np.array([np.argwhere(each)[:, 1].mean() for each in red])
    assert place[made.degrees[:, 0] == 1].min() > 16  # of 32: the pictures belong to the facts
    assert place[made.degrees[:, 0] == 0].mean() < 16


def test_its_look_is_varied_and_comes_back(mine):
    scene = open_scene("my_scene:TellingSlider-v0", 48)
    assert isinstance(scene, Scene)
    scene.reset(seed=0)
    frame, truth, rng = scene.frame(), scene.degrees(), np.random.default_rng(0)
    looks = []
    for _ in range(3):
        scene.randomize_look(rng)
        looks.append(scene.frame())
        assert scene.degrees() == truth
        assert (looks[-1] != frame).mean() > 0.5
        assert np.abs(looks[-1].astype(int) - frame).mean() < 60  # a little
    assert (looks[0] != looks[1]).any()
    scene.restore_look()
    np.testing.assert_array_equal(scene.frame(), frame)
    scene.close()


REFUSED = {
    "no such world": (["my_scene:Nobody-v0"], [], "registers no environment 'Nobody-v0'"),
    "no such module": (["nowhere:Telling-v0"], [], "the module 'nowhere' cannot be imported"),
    "degrees out of range": (["my_scene:WrongSlider-v0"], [], r"must tell 'right' in \[0, 1\]; got 2.0"),
    "nothing told": (["my_scene:BlindSlider-v0"], [], "BlindSlider-v0 must tell is_success at every step, or facts"),
    "facts of nowhere": (
        ["my_scene:PlainSlider-v0"], ["+scenes.mine.facts=my_scene:Lost"],
        "facts 'my_scene:Lost' cannot be had: AttributeError",
    ),
    "facts of one of ours": (["cartpole"], ["+scenes.mine.facts=my_scene:Telling"], "facts must be left out for"),
    "a fact unsaid": (["my_scene:PlainSlider-v0"], [], "must have wordings of every fact of mine.*none of success"),
    "two scenes in one": (["my_scene:TellingSlider-v0", "cartpole"], [], "must tell the same facts"),
    "a misspelt setting": (["my_scene:TellingSlider-v0"], ["+scenes.mine.fact=x"], "has no fact.*did you mean facts"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taught_is_refused_in_a_line(mine, case, tiny_clip, capsys):
    worlds, more, words = REFUSED[case]
    told = ["pretrain", f"model={tiny_clip}", f"+scenes.mine.worlds=[{','.join(worlds)}]", "run=run", *more, *TINY]
    if case == "nothing told":
        (mine / "mine.yaml").write_text(CAPTIONS + "  success: {train: [it is done], val: [done], test: [well]}\n")
    assert cli.main(told) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("embodied pretrain: ")
    assert re.search(words, error), error
    if case not in ("nothing told", "degrees out of range"):  # which only steps can show
        assert not (mine / "run").exists()


# Recorded episodes -------------------------------------------------------------------------------------------

FEATURES = {
    "next.success": {"dtype": "bool", "shape": [1], "names": None},
    "left": {"dtype": "float32", "shape": [1], "names": None},
}


def pictures(place: np.ndarray) -> np.ndarray:
    """(T, 24, 48, 3) a red bar at a share of the width."""
    frames = np.full((len(place), 24, 48, 3), 90, np.uint8)
    for frame, share in zip(frames, place, strict=True):
        frame[:, int(share * 40) : int(share * 40) + 8] = (220, 40, 20)
    return frames


@pytest.fixture
def films(tmp_path):
    """Ten episodes of a bar that goes to the right; `left` is unknown in every other one."""
    with Writer(tmp_path / "films", fps=10, features=FEATURES, cameras={"front": (24, 48)}) as writer:
        for _ in range(10):
            place = np.linspace(0, 1, 60)
            left = np.where(place < 0.3, 1.0, 0.0)
            after = np.append(place[1:], 1.0) > 0.7
            columns = {"next.success": after, "left": left.astype(np.float32)}
            writer.add(columns, {"front": pictures(place)}, instruction="move the bar", kind="expert")
    for file in (tmp_path / "films" / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        odd = pa.array([index % 2 == 1 for index in table["episode_index"].to_pylist()])
        known = pc.if_else(odd, table["left"].combine_chunks(), None)
        pq.write_table(table.set_column(table.column_names.index("left"), table.field("left"), known), file)
    return tmp_path / "films"


def bar(frames: np.ndarray) -> np.ndarray:
    """(T,) where the bar's middle is, as a share of what is seen."""
    red = frames[..., 0].astype(int) - frames[..., 2] > 80
    return np.array([np.argwhere(each)[:, 1].mean() if each.any() else np.nan for each in red]) / frames.shape[2]


def test_recorded_episodes_teach_by_their_labels(films):
    def shrink(frames):
        return frames[:, ::2, ::2]

    labels = {"right": "next.success", "left": "left"}
    made = recorded(Dataset(films), labels, 60, seed=(0,), shrink=shrink)
    assert made.facts == ("right", "left")
    assert made.frames.shape == (60, 12, 24, 3)
    place, (right, left) = bar(made.frames), made.degrees.T
    assert place[right == 1].min() > place[right == 0].max()  # next.success speaks of the row that follows
    assert 0.4 < ((right == 1) | (left == 1)).mean() < 0.6
    assert np.isnan(left).any()
    assert place[left == 1].max() < place[left == 0].min()
    held = recorded(Dataset(films), labels, 1000, seed=(0,), shrink=shrink, held=True)
    every = recorded(Dataset(films), labels, 1000, seed=(0,), shrink=shrink)
    assert len(held.frames) < len(every.frames) <= 8 * 60
    again = recorded(Dataset(films), labels, 60, seed=(0,), shrink=shrink)
    np.testing.assert_array_equal(again.frames, made.frames)


def test_an_encoder_is_taught_recorded_episodes(mine, films, tiny_clip, capsys):
    words = ["pretrain", f"model={tiny_clip}", f"+scenes.mine.data={films}", "run=run", *TINY]
    assert cli.main([*words, "+scenes.mine.labels={right: next.success, left: left}", "test_frames=200"]) == 0
    assert "after: mine, own_look: AUROC of goals " in capsys.readouterr().out
    told = json.loads((mine / "run/encoder/judgement.json").read_text())
    assert set(told["scenes"]["mine"]) == {"own_look"}  # other looks were not recorded
    assert "right" in told["scenes"]["mine"]["own_look"]["facts"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["+scenes.mine.labels={right: next.succes}"], "got 'next.succes'.*did you mean next.success"),
        (["+scenes.mine.labels={up: left}"], "must have wordings of every fact of mine.*none of up"),
        (["+scenes.mine.camera=wrist"], "camera must be one of .*got 'wrist'.*front"),
        (["+scenes.mine.policies=[x]"], "scenes.mine, of recorded episodes, has no policies"),
    ],
)
def test_what_recorded_episodes_cannot_teach_is_refused_in_a_line(mine, films, more, words, tiny_clip, capsys):
    (mine / "mine.yaml").write_text(CAPTIONS + "  success: {train: [it is done], val: [done], test: [well]}\n")
    assert cli.main(["pretrain", f"model={tiny_clip}", f"+scenes.mine.data={films}", "run=run", *more, *TINY]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(words, error), error
    assert not (mine / "run").exists()


def test_labels_out_of_range_and_too_few_episodes_are_refused(films, tmp_path):
    with pytest.raises(UserError, match=r"index of .* must be yes, no or a number in \[0, 1\]; got 0 to 59"):
        recorded(Dataset(films), {"right": "frame_index"}, 9, seed=(0,), shrink=lambda frames: frames)
    with Writer(tmp_path / "few", fps=10, features=FEATURES, cameras={"front": (24, 48)}) as writer:
        columns = {"next.success": np.zeros(2, bool), "left": np.zeros(2, np.float32)}
        writer.add(columns, {"front": pictures(np.zeros(2))}, instruction="", kind="expert")
    with pytest.raises(UserError, match="must hold at least 5 episodes, one of which is kept for judging; got 1"):
        recorded(Dataset(tmp_path / "few"), {"right": "next.success"}, 9, seed=(0,), shrink=lambda frames: frames)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["+scenes.mine.frames=9"], "scenes.mine.worlds must be a list of worlds, as env.id takes them; got None"),
        (["+scenes.mine.worlds=[cartpole]"], "scenes.mine.frames must be a whole number, at least 1; got None"),
        (["+scenes.mine.worlds=[cartpole]", "+scenes.mine.frames=9"], "scenes.mine.captions must be a captions file"),
    ],
)
def test_a_scene_needs_worlds_frames_and_captions(mine, given, words, tiny_clip, capsys):
    assert cli.main(["pretrain", f"model={tiny_clip}", "run=run", *SMALL, *given]) == 2
    assert words in capsys.readouterr().err
    assert not (mine / "run").exists()


@pytest.mark.suites
@pytest.mark.parametrize(
    ("thing", "facts", "camera"),
    [
        ("drawer", ("drawer_open", "drawer_closed", "at_handle"), None),
        ("button", ("button_pressed", "button_out", "at_button"), "corner3"),
    ],
)
def test_meta_worlds_scenes_by_their_ids(thing, facts, camera, monkeypatch):
    pytest.importorskip("metaworld")
    monkeypatch.syspath_prepend(ROOT / "examples")
    world = {"drawer": "metaworld/drawer-open-v3", "button": "metaworld/button-press-v3"}[thing]
    try:
        told = {"facts": f"{thing}_facts:{thing.title()}Facts", "camera": camera}
        made = render([world], 40, seed=(0, 0), image_size=48, own_look=0.5, workers=1, **told)
        assert made.facts == facts
        assert (made.degrees[:, :2] == 1).any(0).all()
        assert not (made.degrees[:, :2] == 1).all(1).any()  # open and closed, or pressed and out, at once
        assert 30 < made.frames.mean() < 220
        scene = open_scene(world, 48)
        assert scene.facts == ("success",)
        scene.close()
        with pytest.raises(UserError, match="no camera 'front' here"):
            open_scene(world, 48, camera="front")
    finally:
        sys.modules.pop(f"{thing}_facts", None)
