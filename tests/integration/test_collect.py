"""`embodied collect`: kinds are what they say, frames are the simulator's, a killed run goes on to the same dataset."""

import json
import re
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embodied import cli, config
from embodied.collecting.collect import KINDS, _kinds
from embodied.collecting.opening import open_dataset
from embodied.config import compose
from embodied.datasets import Dataset
from embodied.envs.bridge import make

SMALL = ["image_size=32", "env.image_size=32"]


def seeds(root):
    return {int(k): v["seed"] for k, v in json.loads((root / "meta/embodied.json").read_text())["episodes"].items()}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    root = tmp_path_factory.mktemp("collect") / "mixed"
    assert cli.main(["collect", "env=desk-press", "policy=mixed", "episodes=8", f"out={root}", "image_size=64"]) == 0
    return Dataset(root)


def test_kinds_are_what_they_say(mixed):
    kinds = [mixed.kind(i) for i in range(len(mixed))]
    assert set(kinds) == set(KINDS)
    assert kinds[:5] == ["expert", "noisy", "near_miss", "failure", "random"]
    best = {}
    for i, kind in enumerate(kinds):
        got = mixed.recording(i, cameras=())
        assert got.instruction == "press the button"
        assert len(got) == 50
        if kind == "expert":
            assert got.success[-1]
            reach, last = got.steps
            assert last == 49
            assert 5 < reach < int(got.success.argmax())
        if kind in ("near_miss", "failure"):
            assert not got.success.any()
            assert got.steps == ()
        best.setdefault(kind, []).append(got.env_rewards.max())
    assert min(best["near_miss"]) > max(best["random"] + best["failure"]) - 0.25
    assert min(best["near_miss"]) > 0.5


def test_shares_hold_for_any_number_of_first_episodes():
    """A step an episode: the ten thousandth took as long as all before it."""
    for given in ([0.3, 0.2, 0.2, 0.15, 0.15], [0, 1, 0, 0, 0], [0.5, 0.125, 0.25, 0.1, 0.025]):
        shares = dict(zip(KINDS, given, strict=True))
        settings = compose("collect", ["policy=mixed", *(f"shares.{kind}={share}" for kind, share in shares.items())])
        begin = time.process_time()
        found = list(islice(_kinds(settings), 20_000))
        assert time.process_time() - begin < 2
        before = []
        for n in range(1, 201):  # as they were always drawn
            before.append(max(KINDS, key=lambda kind, n=n: shares[kind] * n - before.count(kind)))
        assert found[:200] == before
        assert all(abs(found.count(kind) - 20_000 * share) < 2 for kind, share in shares.items())


def test_rows_are_the_simulators(mixed):
    """Replayed from seeds and actions: readings and rewards exactly, frames but for compression, none of them late."""
    env = make("desk-press")
    for i in (0, 4):
        got = mixed.recording(i)
        state = mixed.columns(i, ["observation.environment_state"])["observation.environment_state"]
        obs, _ = env.reset(seed=seeds(mixed.root)[i])
        seen = {name: [] for name in ("front", "side")}
        for t, action in enumerate(got.actions):
            np.testing.assert_array_equal(state[t], obs)
            for name, value in env.unwrapped.signals().items():
                assert got.signals[name][t] == np.float32(value)
            for name, frames in seen.items():
                frames.append(env.unwrapped.frame(camera=name, image_size=64))
            obs, reward, _, _, info = env.step(action)
            assert got.env_rewards[t] == np.float32(reward)
            assert got.success[t] == info["is_success"]
        for name, frames in seen.items():
            frames = np.stack(frames).astype(int)
            assert np.abs(got.frames[name] - frames).mean() < 6
            checked = 0
            for t in range(1, len(frames)):  # where something moved, it shows what is there now, not before
                moved = np.abs(frames[t] - frames[t - 1]).max(-1) > 60
                if moved.sum() > 20:
                    now, before = (np.abs(got.frames[name][t] - frames[u])[moved].mean() for u in (t, t - 1))
                    assert now < 0.5 * before
                    checked += 1
            assert checked > 5


def test_a_killed_run_goes_on_to_the_same_dataset(tmp_path, capsys):
    words = ["collect", "env=cartpole", "policy=random", "episodes=6", *SMALL]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.main([*words, f"out={whole}"]) == 0
    process = subprocess.Popen([sys.executable, "-m", "embodied.cli", *words, f"out={cut}"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (cut / ".staging" / "episode-000001").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.wait()
    staged = sorted(path.name for path in (cut / ".staging").glob("episode-*"))
    assert 2 <= len(staged) < 6
    assert not (cut / "meta").exists()
    assert cli.main([*words, f"out={cut}"]) == 0
    assert seeds(cut) == seeds(whole)
    file = "data/chunk-000/file-000.parquet"
    assert pq.read_table(cut / file).equals(pq.read_table(whole / file))
    for i in range(6):
        np.testing.assert_array_equal(Dataset(cut).frames(i, Dataset(cut).cameras[0]),
                                      Dataset(whole).frames(i, Dataset(whole).cameras[0]))  # fmt: skip
    assert cli.main([*words, f"out={cut}", "episodes=7"]) == 0  # and a finished one grows
    assert len(Dataset(cut)) == 7
    assert "random        7 episodes" in capsys.readouterr().out


def test_a_dataset_by_name_is_collected_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "compose", lambda verb, words: compose(verb, [*words, "episodes=2", *SMALL]))
    dataset = open_dataset("reacher-red-random")
    assert (len(dataset), dataset.env_id) == (2, "embodied/reacher-red-v0")
    stamp = (dataset.root / "meta" / "info.json").stat().st_mtime_ns
    assert (open_dataset("reacher-red-random").root / "meta" / "info.json").stat().st_mtime_ns == stamp


def test_success_that_the_world_does_not_tell_is_unknown_and_not_no(tmp_path, monkeypatch, capsys):
    """Of Pendulum nobody knows; of CartPole, whose own pictures are not square, it is told, and frames are train's."""
    monkeypatch.chdir(tmp_path)
    for id in ("Pendulum-v1", "CartPole-v1"):
        words = ["collect", "env=gym", f"env.id={id}", "policy=random", "episodes=2", "image_size=64", f"out={id}"]
        assert cli.main([*words, "env.max_episode_steps=5"]) == 0
    unknown, told = Dataset("Pendulum-v1"), Dataset("CartPole-v1")
    assert "next.success" not in unknown.features
    assert unknown.recording(0).success is None
    assert told.recording(0).success.tolist() == [True] * 5
    lines = capsys.readouterr().out.splitlines()
    assert "success is not told" in lines[0]
    assert "solved at the end 2" in lines[2]
    env = make("CartPole-v1")
    env.reset(seed=seeds(told.root)[0])
    frame = env.get_wrapper_attr("frame")(image_size=64).astype(int)
    assert np.abs(told.recording(0).frames["default"][0] - frame).mean() < 3
    env.close()


def test_success_told_at_some_steps_only_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "late_world.py").write_text(LATE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["collect", "env=gym", "env.id=late_world:Late-v0", "policy=random", "episodes=1", *SMALL]
    assert cli.main(words) == 2
    assert "is_success must be told at every step, or at none; this world told 1 of 3" in capsys.readouterr().err


LATE = """
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv


class Late(PendulumEnv):
    def reset(self, **how):
        self.steps = 0
        return super().reset(**how)

    def step(self, action):
        self.steps += 1
        *rest, info = super().step(action)
        return *rest, info | ({"is_success": True} if self.steps == 3 else {})


gymnasium.register("Late-v0", entry_point=Late, max_episode_steps=3)
"""


def test_only_what_is_asked_for_is_collected_and_grows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "compose", lambda verb, words: compose(verb, [*words, *SMALL]))
    assert len(open_dataset("reacher-red-random", episodes=2)) == 2
    first = seeds(tmp_path / "runs/collect/reacher-red-random")
    assert len(open_dataset("reacher-red-random", episodes=1)) == 2
    assert len(open_dataset("reacher-red-random", episodes=3)) == 3
    assert {k: seeds(tmp_path / "runs/collect/reacher-red-random")[k] for k in first} == first


def test_a_trained_policy_acts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = [
        "train",
        "env=cartpole",
        "reward=true",
        "policy=ppo",
        "steps=64",
        "num_worlds=2",
        "policy.rollout_steps=32",
    ]
    train += ["eval_every=0", "final_episodes=1", "videos=0", "run=runs/train/one"]
    assert cli.main(train) == 0
    assert cli.main(["collect", "policy=run:latest", "episodes=1", "image_size=32", "out=a"]) == 0
    dataset = Dataset("a")
    assert (dataset.kind(0), dataset.env_id) == ("policy", "embodied/cartpole-v0")
    assert dataset.recording(0).actions.std() > 0 or len(dataset.recording(0)) > 1
    for words in (["env=desk-drawer"], ["env.looks=4"]):  # neither would be heeded
        assert cli.main(["collect", "policy=run:latest", "out=b", *words]) == 2
        assert "policy=run:… plays in its run's own world; got env." in capsys.readouterr().err
    assert not Path("b").exists()


def test_meta_worlds_own_experts(tmp_path):
    """Demonstrations with the hand's own readings and the task's words, that play again as they were."""
    pytest.importorskip("metaworld")
    root = tmp_path / "reach"
    words = ["env=gym", "env.id=metaworld/reach-v3", "env.max_episode_steps=60", "policy=mixed", "episodes=5"]
    assert cli.main(["collect", *words, "image_size=32", "cameras=[corner2]", f"out={root}"]) == 0
    dataset = Dataset(root)
    assert [dataset.kind(i) for i in range(5)] == ["expert", "noisy", "near_miss", "failure", "random"]
    got = dataset.recording(0)
    assert got.instruction == "reach"
    assert got.success[-1]
    assert not dataset.recording(3, cameras=()).success.any()
    own = dataset.columns(0, ["observation.state"])["observation.state"]
    state = dataset.columns(0, ["observation.environment_state"])["observation.environment_state"]
    np.testing.assert_array_equal(own, state[:, :4])  # hand and gripper
    env = make("metaworld/reach-v3", max_episode_steps=60)
    obs, _ = env.reset(seed=seeds(root)[0])
    for action, row in zip(got.actions, state, strict=True):
        np.testing.assert_array_equal(obs, row)
        obs, _, _, _, info = env.step(action)
    assert info["is_success"]
    env.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env=cartpole", "policy=expert"], "needs a scripted expert, which embodied/cartpole-v0 lacks"),
        (["policy=exprt"], "did you mean expert"),
        (["image_size=33"], "image_size must be even"),
        (["cameras=[front,top]"], "'top' is none of this world's"),
        (["policy=mixed", "shares.random=0.9"], "sum to 1"),
        (["episodes=0"], "episodes must be at least 1"),
        (["policy=run:nowhere"], "run must be a run folder"),
    ],
)
def test_bad_settings_write_nothing(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["collect", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_two_that_want_the_same_dataset_take_turns(tmp_path, monkeypatch):
    """The second was refused, as another process was writing there."""
    monkeypatch.chdir(tmp_path)
    script = (
        "from embodied.collecting.opening import open_dataset\n"
        "print(len(open_dataset('reacher-red-random', episodes=2)))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120) for process in both]
    assert [out.strip() for out, _ in told] == ["2", "2"], told
    assert len(Dataset(tmp_path / "runs/collect/reacher-red-random")) == 2


@pytest.mark.parametrize("cameras", [("front", "wrist"), ("front",)])
def test_a_dataset_grows_with_the_cameras_that_it_has(cameras, tmp_path, monkeypatch):
    """More episodes for fewer cameras were collected from the world's first two, which the dataset refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "compose", lambda verb, words: compose(verb, [*words, *SMALL]))
    words = ["env=desk-reach", "policy=random", "episodes=1", f"cameras=[{','.join(cameras)}]"]
    assert cli.main(["collect", *words, *SMALL]) == 0
    grown = open_dataset("desk-reach-random", episodes=2, cameras=["front"])
    assert (len(grown), grown.cameras) == (2, cameras)


def test_random_actions_are_held_for_a_few_steps(tmp_path):
    made = {}
    for hold in (1, 4):
        words = ["env=reacher-red", "policy=random", "episodes=2", f"hold={hold}", f"out={tmp_path / str(hold)}"]
        assert cli.main(["collect", *words, "image_size=32"]) == 0
        made[hold] = [Dataset(tmp_path / str(hold)).recording(i, cameras=()).actions for i in range(2)]
    assert (np.diff(made[1][0], axis=0) != 0).any(1).all()  # each step another
    for actions in made[4]:
        changed = np.flatnonzero((np.diff(actions, axis=0) != 0).any(1))
        lengths = np.diff([-1, *changed])
        assert set(lengths) == {1, 2, 3, 4}
    assert cli.main(["collect", "policy=random", "hold=0"]) == 2


def test_a_dataset_grows_by_the_settings_that_it_began_with(tmp_path, monkeypatch, capsys):
    """Others than asked for were given out, and a killed run's were followed by those of another size."""
    monkeypatch.chdir(tmp_path)
    words = ["collect", "env=reacher-red", "policy=random", *SMALL]
    assert cli.main([*words, "episodes=1", "seed=3", "hold=4"]) == 0
    for changed, told in (("hold=4", "seed must be 3, .*; got 0"), ("seed=3", "hold must be 4, .*; got 1")):
        capsys.readouterr()
        assert cli.main([*words, "episodes=1", changed]) == 2
        assert re.search(told, capsys.readouterr().err)
    monkeypatch.setattr(config, "compose", lambda verb, words: compose(verb, [*words, *SMALL]))
    grown = open_dataset("reacher-red-random", episodes=2)
    assert (len(grown), grown.made) == (2, {"seed": 3, "hold": 4})
    assert cli.main([*words, "episodes=2", "seed=3", "hold=4", "out=other"]) == 0
    assert seeds(tmp_path / "other") == seeds(grown.root)
    assert cli.main([*words, "episodes=2", "seed=3", "hold=4", "noise=0.1", "out=other"]) == 2  # which is not heeded


def test_a_held_action_is_a_frame_of_its_own_length(tmp_path):
    words = ["env=humanoid-stand", "env.action_repeat=3", "env.max_episode_steps=4", "policy=random", "episodes=1"]
    assert cli.main(["collect", *words, "image_size=32", "cameras=[front]", f"out={tmp_path / 'data'}"]) == 0
    assert Dataset(tmp_path / "data").fps == pytest.approx(1 / 0.045)
