"""A world of a person's own, from the command line: found, cut, scored, and honest about success."""

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from safetensors.torch import load_file

from embodied import cli
from embodied.datasets import Dataset
from embodied.envs.bridge import make
from embodied.errors import UserError

MINE = """
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.classic_control import PendulumEnv
from embodied.envs.cartpole import CartPole


class Blind(PendulumEnv):
    metadata = {"render_modes": []}

    def __init__(self):
        super().__init__()


class Ball(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"]}
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)  # where the ball is, which no robot reads
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    render_mode = "rgb_array"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.angle = self.np_random.uniform(-1, 1)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.angle += float(action[0])
        return np.zeros(2, np.float32), 0.0, False, False, {}

    def render(self):
        return np.full((32, 32, 3), 90, np.uint8)


class Robot(Ball):
    def signals(self):
        return {"angle": self.angle, "load": np.float32(0.5)}


class Rail(MujocoEnv):
    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"], "render_fps": 50}

    def __init__(self, **kwargs):
        space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
        super().__init__(str(Path(__file__).with_name("rail.xml")), 10, space, **{"camera_name": "above"} | kwargs)

    def step(self, action):
        self.do_simulation(action, self.frame_skip)
        return np.concatenate([self.data.qpos, self.data.qvel]), 0.0, False, False, {}

    def reset_model(self):
        self.set_state(np.zeros(1), np.zeros(1))
        return np.concatenate([self.data.qpos, self.data.qvel])


class Face(CartPole):
    instruction = "stand still"


gymnasium.register("Mine-v0", entry_point=PendulumEnv, max_episode_steps=20)
gymnasium.register("Handover-v0", entry_point="my_worlds:Blind", max_episode_steps=20)
gymnasium.register("Face-v0", entry_point=Face)
gymnasium.register("Ball-v0", entry_point=Ball, max_episode_steps=8)
gymnasium.register("Rail-v0", entry_point=Rail, max_episode_steps=8)
gymnasium.register("Robot-v0", entry_point=Robot, max_episode_steps=8)
gymnasium.register("Lost-v0", entry_point="my_worlds:Lost")
"""
RAIL = """
<mujoco><worldbody>
  <camera name="above" pos="0 0 2"/><camera name="front" pos="0 -2 0.5" xyaxes="1 0 0 0 0 1"/>
  <body><joint name="x" type="slide" axis="1 0 0"/><geom size="0.1" mass="1"/></body>
</worldbody><actuator><motor joint="x" ctrlrange="-1 1"/></actuator></mujoco>
"""
TRAIN = ["steps=32", "num_worlds=2", "eval_every=0", "eval_episodes=1", "final_episodes=4", "videos=0", "run=run"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of own worlds, importable and forgotten again."""
    (tmp_path / "my_worlds.py").write_text(MINE)
    (tmp_path / "rail.xml").write_text(RAIL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield "my_worlds"
    sys.modules.pop("my_worlds", None)
    for name in ("Mine-v0", "Handover-v0", "Face-v0", "Ball-v0", "Robot-v0", "Rail-v0", "Lost-v0"):
        gymnasium.registry.pop(name, None)


def train(*words):
    return cli.main(["train", "env=gym", "reward=true", *TRAIN, *words])


def told():
    return json.loads(Path("run/evaluations.jsonl").read_text().splitlines()[-1])


def test_it_trains_and_does_not_pretend_to_know_success(mine, capsys):
    assert train(f"env.id={mine}:Mine-v0", "env.max_episode_steps=7") == 0
    assert told()["success_rate"] is None
    out = capsys.readouterr().out
    assert "uccess" not in out
    assert out.startswith("4 episodes: mean return")
    page = Path("run/report.html").read_text("utf-8")
    assert "this world does not tell success" in page
    assert "interval 0" not in page


@pytest.mark.parametrize("workers", [0, 1])
def test_its_sparse_reward_is_refused_before_anything_is_written(mine, workers, capsys):
    assert train(f"env.id={mine}:Mine-v0", "sparse=true", f"workers={workers}") == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("embodied train: SparseReward: Mine-v0 must tell is_success at every step; it does not.")
    assert not Path("run").exists()


def test_its_own_time_limit_is_the_one_that_is_set(mine):
    for wanted, expected in ((None, 20), (3, 3)):
        env = make(f"{mine}:Mine-v0", max_episode_steps=wanted)
        env.reset(seed=0)
        ends = [env.step(np.zeros(1, np.float32))[3] for _ in range(expected)]
        assert ends == [False] * (expected - 1) + [True]
        env.close()


def test_without_pictures_it_is_played_but_not_looked_at(mine):
    """Its name begins as a suite's do, and its constructor takes no render_mode."""
    env = make(f"{mine}:Handover-v0")
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    with pytest.raises(UserError, match=r"Handover-v0 has no pictures to score"):
        env.get_wrapper_attr("frame")()
    with pytest.raises(UserError, match=r"obs=pixels needs pictures, which Handover-v0 does not render"):
        make(f"{mine}:Handover-v0", obs="pixels")


@pytest.mark.parametrize(
    ("kwargs", "seen"), [({}, "above"), ({"camera_name": "front"}, "front"), ({"camera_name": None}, "free")]
)
def test_its_usual_camera_is_the_one_that_it_renders_by(mine, kwargs, seen):
    """A free camera's pictures were scored, whatever camera the world was made with."""
    env = make(f"{mine}:Rail-v0", **kwargs)
    env.reset(seed=0)
    assert np.array_equal(env.get_wrapper_attr("frame")(), env.get_wrapper_attr("frame")(camera=seen))
    shown = {name: env.get_wrapper_attr("frame")(camera=name).tobytes() for name in ("above", "front", "free")}
    assert len(set(shown.values())) == 3
    env.close()


def test_its_robots_own_readings_are_what_the_policy_reads(mine, capsys):
    """Points and features were without them, and `mixed` was all of the state by another name."""
    env = make(f"{mine}:Robot-v0", obs="mixed")
    obs, _ = env.reset(seed=3)
    angle = env.unwrapped.inner.unwrapped.angle
    assert obs["agent_pos"].tolist() == pytest.approx([angle, 0.5])
    assert env.observation_space.contains(obs)
    env.close()
    assert train(f"env.id={mine}:Robot-v0", "env.obs=features") == 0
    assert "own readings" not in capsys.readouterr().err
    weights = load_file(next(Path("run/checkpoints").glob("*/learner.safetensors")))
    assert 256 + 2 in {tensor.shape[-1] for tensor in weights.values() if tensor.ndim > 1}  # what the actor reads
    words = ["env=gym", f"env.id={mine}:Robot-v0", "policy=random", "episodes=1", "out=data"]
    assert cli.main(["collect", *words]) == 0
    assert list(Dataset("data").recording(0).signals) == ["angle", "load"]


def test_one_without_own_readings_is_told_and_its_state_is_called_so(mine, capsys):
    for obs, called in (("features", "features"), ("mixed", "pixels and simulator state")):
        assert train(f"env.id={mine}:Ball-v0", f"env.obs={obs}", "policy=sac", f"run={obs}") == 0
        told = f"env.obs=features: {mine}:Ball-v0 tells no own readings, so the policy sees pictures alone."
        assert (told in capsys.readouterr().err) == (obs == "features")
        assert json.loads(Path(f"{obs}/run.json").read_text())["observation"] == called


def test_one_that_is_a_world_of_ours_keeps_its_face(mine):
    env = make(f"{mine}:Face-v0", camera="angle", image_size=24)
    assert env.unwrapped.instruction == "stand still"
    assert env.get_wrapper_attr("camera") == "angle"
    assert env.reset(seed=0)[1] == {"is_success": False} or env.reset(seed=0)[1] == {"is_success": True}
    assert env.get_wrapper_attr("_max_episode_steps") == 1000
    env.close()


@pytest.mark.parametrize(
    ("id", "steps", "words"),
    [
        ("nowhere:Mine-v0", None, "the module 'nowhere' cannot be imported: ModuleNotFoundError.*PYTHONPATH"),
        ("my_worlds:Min-v0", None, "the module 'my_worlds' registers no environment 'Min-v0'.*[Dd]id you mean Mine-v0"),
        ("my_worlds:Zz-v0", None, "registers no environment 'Zz-v0'.*(Mine|Handover|Face|Lost)-v0"),
        ("my_worlds:Lost-v0", None, "Lost-v0 cannot be made: module 'my_worlds' has no attribute 'Lost'"),
        ("my_worlds:Mine-v0", 0, "max_episode_steps must be a whole number, at least 1; got 0"),
        ("my_worlds:Mine-v0", "ten", "max_episode_steps must be a whole number, at least 1; got 'ten'"),
    ],
)
def test_what_is_not_there_is_named(mine, id, steps, words):
    with pytest.raises((UserError, TypeError), match=words if steps != "ten" else "."):
        make(id, max_episode_steps=steps)


def test_a_module_that_registers_none_is_told_how(tmp_path, monkeypatch):
    (tmp_path / "my_classes.py").write_text("class Mine: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r'registers no environment .Mine-v0.\. Add gymnasium\.register\("Mine-v0", entry'
    ):
        make("my_classes:Mine-v0")
