"""LIBERO's worlds, where its package is installed (pip install .[libero]); it is not in the lock, for its size."""

import importlib.util

import numpy as np
import pytest

from embodied import cli
from embodied.datasets import Dataset, Writer
from embodied.envs import bridge
from embodied.envs.experts import expert
from embodied.envs.libero import axis_angle
from embodied.envs.spaces import JUDGED
from embodied.errors import UserError

libero = pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="LIBERO is not installed")
TASK = "libero/libero_object/0"


@pytest.fixture
def make():
    made = []

    def _make(id=TASK, **kwargs):
        made.append(bridge.make(id, **kwargs))
        return made[-1]

    yield _make
    for env in made:
        env.close()


@libero
def test_an_episode_begins_at_a_stored_start_where_it_judges_and_elsewhere_where_it_teaches(make):
    env = make()
    basket = slice(15, 18)  # where it stands; the soup stands at one place in all starts
    env.action_space.seed(0)
    first, _ = env.reset(seed=JUDGED.start)
    for _ in range(5):
        env.step(env.action_space.sample())
    again, _ = env.reset(seed=JUDGED.start)
    np.testing.assert_array_equal(first, again)
    stored = env.unwrapped.inner.unwrapped.stored
    np.testing.assert_allclose(first[basket][:2], stored[0, 17:19], atol=0.01)
    around, _ = env.reset(seed=JUDGED.start + len(stored))
    np.testing.assert_array_equal(first, around)
    taught = np.stack([env.reset(seed=seed)[0] for seed in range(3)])
    assert all(np.abs(one[basket] - first[basket]).max() > 1e-4 for one in taught)
    np.testing.assert_array_equal(taught[2], env.reset(seed=2)[0])
    asked, _ = make(starts="stored").reset(seed=0)
    np.testing.assert_array_equal(asked, first)


@libero
def test_it_says_nothing_of_its_own(make, capsys, caplog):
    make().reset(seed=0)
    assert capsys.readouterr() == ("", "")
    assert not caplog.records


@libero
def test_numpy_draws_on_as_if_nobody_had_reset(make):
    env = make()
    np.random.seed(3)
    wanted = np.random.random(4)
    np.random.seed(3)
    env.reset(seed=0)
    np.testing.assert_array_equal(np.random.random(4), wanted)


@libero
def test_its_face(make):
    env = make(obs="mixed", image_size=64)
    obs, info = env.reset(seed=0)
    assert obs["agent_pos"].shape == (8,)
    assert info["is_success"] is False
    assert env.unwrapped.instruction == "pick up the alphabet soup and place it in the basket"
    assert {"agentview", "robot0_eye_in_hand"} <= set(env.unwrapped.cameras)
    assert env.get_wrapper_attr("_max_episode_steps") == 280
    picture = env.get_wrapper_attr("frame")(camera="agentview", image_size=96).astype(int)
    floor, wall = picture[70:].mean((0, 1)), picture[:5].mean((0, 1))
    assert floor[0] - floor[2] > 2 * (wall[0] - wall[2])  # wood below, a grey wall above: upright
    gaudy = (np.ptp(picture[:60, 35:62], axis=-1) > 100).mean()
    assert gaudy < 0.02  # of the arm its shell is seen, and not the coloured shapes that collide
    mirrored = make(mirrored=True)
    mirrored.reset(seed=0)
    twin = mirrored.get_wrapper_attr("frame")(camera="agentview", image_size=96)
    np.testing.assert_array_equal(twin[:, ::-1], picture)


@libero
@pytest.mark.parametrize("id", [TASK, "libero/libero_spatial/2"])
def test_the_script_solves_it_and_rest_does_not(make, id):
    env = make(id)
    env.reset(seed=JUDGED.start)
    act, solved = expert(env.unwrapped), []
    for _ in range(150):
        solved.append(env.step(act(env.unwrapped))[4]["is_success"])
    assert solved[-1]
    assert not solved[40]
    env.reset(seed=JUDGED.start)
    assert not any(env.step(np.zeros(7, np.float32))[4]["is_success"] for _ in range(20))


@libero
@pytest.mark.parametrize(
    ("id", "kwargs", "told"),
    [
        ("libero/libero_objekt/0", {}, "no suite 'libero_objekt'. Did you mean libero_object"),
        ("libero/libero_object/12", {}, "libero_object has no task '12'"),
        ("libero/libero_object/pick_up_the_milk", {}, "did you mean pick_up_the_milk_and_place_it_in_the_basket?"),
        (TASK, {"starts": "any"}, "starts must be one of stored, sampled, or null; got 'any'"),
        (TASK, {"start": "stored"}, "has no setting 'start'. Choose from mirrored, starts"),
        (TASK, {"mirrored": "yes"}, "mirrored must be true or false; got 'yes'"),
    ],
)  # fmt: skip
def test_what_is_not_there(make, id, kwargs, told):
    with pytest.raises(UserError) as error:
        make(id, **kwargs)
    assert told in str(error.value)


@libero
def test_its_demonstrations_are_imitated_and_judged_and_mirrored_ones_are_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["env=gym", f"env.id={TASK}", "env.max_episode_steps=130", "policy=expert", "episodes=1", "image_size=32"]
    assert cli.main(["collect", *words, "cameras=[agentview]", "out=demos"]) == 0
    assert "solved at the end 1" in capsys.readouterr().out
    small = [
        "policy.channels=8", "policy.places=2", "policy.width=16", "steps=2", "batch_size=4", "labels.source=recorded",
        "validation=0", "execute=8", "eval_episodes=1", "num_worlds=1", "videos=0",
    ]  # fmt: skip
    assert cli.main(["finetune", "data=demos", "run=tuned", *small]) == 0
    assert "Careful" not in capsys.readouterr().out
    assert (tmp_path / "tuned" / "imitate" / "episodes.json").is_file()
    mirrored = ["env=gym", f"env.id={TASK}", "+env.kwargs.mirrored=true", "env.max_episode_steps=10"]
    assert cli.main(["finetune", "data=demos", "run=mirrored", *mirrored, *small]) == 0
    told = capsys.readouterr().out
    assert "the data's pictures of agentview are mirrored beside the world's. Say +env.kwargs.mirrored=true." in told
    as_published(Dataset(tmp_path / "demos"), tmp_path / "published")
    named = "policy.names={observation.images.agentview: image}"
    small.remove("labels.source=recorded")  # published data tell no success
    words = [named, *mirrored, *small, "labels.source=all", "labels.weights=uniform"]
    assert cli.main(["finetune", "data=published", "run=foreign", *words]) == 0
    assert "mirrored beside" not in capsys.readouterr().out


def as_published(demos, root):
    """The same episode under the names of LIBERO's published datasets, mirrored as they are."""
    ways = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    features = {
        "observation.state": {"dtype": "float32", "shape": [8], "names": {"motors": [*ways, "gripper"]}},
        "action": {"dtype": "float32", "shape": [7], "names": {"motors": ways}},
    }
    recording = demos.recording(0)
    state = np.stack(list(recording.signals.values()), 1)
    with Writer(root, fps=20, features=features, cameras={"image": (32, 32)}) as writer:
        frames = recording.frames["agentview"][:, :, ::-1]
        writer.add(
            {"observation.state": state, "action": recording.actions}, {"image": frames},
            instruction=recording.instruction,
        )  # fmt: skip


def test_a_rotation_as_axis_times_angle():
    half = np.sqrt(0.5)
    np.testing.assert_allclose(axis_angle(np.array([0, 0, half, half])), [0, 0, np.pi / 2])
    np.testing.assert_allclose(axis_angle(np.array([0, 0, 0, 1.0])), 0)
    np.testing.assert_allclose(axis_angle(np.array([1.0, 0, 0, 0])), [np.pi, 0, 0])


@pytest.mark.skipif(importlib.util.find_spec("libero") is not None, reason="LIBERO is installed")
def test_where_it_is_not_installed_the_command_that_installs_it_is_told():
    with pytest.raises(UserError, match=r"needs the package libero.*embodied-rewards\[libero\]"):
        bridge.make(TASK)
