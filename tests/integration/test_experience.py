"""`embodied train experience=…`: a second goal begins with what the first one saw."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from embodied.cli import main
from embodied.files import latest_checkpoint

FORM = ["env=cartpole", "env.max_episode_steps=15", "num_worlds=2"]
SMALL = ["final_episodes=1", "videos=0", "eval_every=0", "policy.batch_size=16", "policy.rollout_steps=5"]
RANDOM = "policy.learning_starts=60"
ONE, TWO = "the pole stands up", "a cart on the right"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs land in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


def train(tiny_clip, run, goal, *words):
    given = [f'reward.goal="{goal}"', "encoder=open_clip", f"encoder.model={tiny_clip}", f"run={run}"]
    return main(["train", *FORM, *SMALL, *given, *words])


@pytest.fixture(scope="module")
def first(tiny_clip, tmp_path_factory):
    """A run of twenty steps towards the first goal."""
    folder = tmp_path_factory.mktemp("earlier") / "first"
    assert train(tiny_clip, folder, ONE, "steps=20") == 0
    return folder


def replay(run, name="replay"):
    arrays = load_file(latest_checkpoint(Path(run)) / "state.safetensors")
    return {key: arrays[f"{name}/{key}"] for key in ("reward", "action", "obs", "rows", "env_reward")}


def test_a_second_goal_pays_for_what_the_first_one_saw(tiny_clip):
    """As if it had been there from the start, to the features' half precision; resumed, the run keeps all of it."""
    assert train(tiny_clip, "first", ONE, "steps=60", RANDOM) == 0
    assert train(tiny_clip, "other", TWO, "steps=60", RANDOM) == 0  # the same actions
    pace = ["policy.learning_starts=30", "policy.updates_per_step=0.5", "num_worlds=3"]
    assert train(tiny_clip, "second", TWO, "steps=30", "experience=first", *pace) == 0
    first, other, past = replay("first"), replay("other"), replay("second", "past")
    np.testing.assert_array_equal(first["action"], other["action"])
    for name in ("action", "obs", "rows", "env_reward"):
        np.testing.assert_array_equal(past[name], first[name], err_msg=name)
    np.testing.assert_allclose(past["reward"], other["reward"], atol=2e-3)
    assert np.abs(first["reward"] - other["reward"]).max() > 0.02
    learner = json.loads((latest_checkpoint(Path("second")) / "learner.json").read_text())
    assert (learner["steps"], learner["updates"]) == (90, 37)  # 45 less those of the newest rollout

    assert main(["train", "run=second", "resume=true", "steps=60"]) == 0
    np.testing.assert_array_equal(replay("second", "past")["reward"], past["reward"])


@pytest.mark.parametrize(("words", "message"), [
    (["env.obs=features"], "must have this run's env.obs, features; got state"),
    (["env=reacher-red", "env.obs=state"], "must have this run's env, embodied/reacher-red-v0; got embodied/cartpole"),
    (["encoder.precision=bf16"], "must have this run's encoder"),
    (["experience=nowhere"], "run must be a run folder"),
    (["policy=imitation"], "experience needs a learner from its own steps"),
])  # fmt: skip
def test_what_another_run_could_not_use_is_refused_by_name(tiny_clip, first, words, message, capsys):
    assert train(tiny_clip, "second", ONE, "steps=20", f"experience={first}", *words) != 0
    assert message in capsys.readouterr().err
    assert not Path("second").exists()


def test_other_readings_of_the_same_number_are_refused(tiny_clip, first, capsys):
    """They would be taken for this world's own."""
    other = Path(shutil.copytree(first, "other"))
    state = latest_checkpoint(other) / "state.json"
    values = json.loads(state.read_text())
    values["rewards"]["signals"] = [f"{name}_of_another" for name in values["rewards"]["signals"]] or ["another"]
    state.write_text(json.dumps(values))
    assert train(tiny_clip, "second", ONE, "steps=20", f"experience={other}") != 0
    assert "must have this run's signals, " in capsys.readouterr().err


def test_rewards_that_cannot_pay_for_it_and_runs_that_kept_no_features_are_told(tiny_clip, capsys):
    assert main(["train", *FORM, *SMALL, "reward=true", "steps=20", "experience=latest"]) != 0
    assert "experience needs a reward that reads features alone; the task's own reward" in capsys.readouterr().err
    words = ["reward=true", "steps=20", "run=third", "encoder=open_clip", f"encoder.model={tiny_clip}"]
    assert main(["train", *FORM, *SMALL, *words]) == 0
    assert train(tiny_clip, "second", ONE, "steps=20", "experience=third") != 0
    assert "third must have kept its steps with their features; it kept none" in capsys.readouterr().err
