"""`embodied train` and `embodied evaluate` from the command line, on real worlds with a tiny encoder."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import load_file

from embodied import files, paths, runs
from embodied.cli import main
from embodied.config import compose
from embodied.datasets import Dataset
from embodied.envs import WORLDS, world_id
from embodied.training.labeller import Labeller

SMALL = ["final_episodes=1", "videos=0", "eval_every=0", "num_worlds=2", "policy=sac", "policy.network=[16]"]
SMALL += ["env.max_episode_steps=30"]
QUICK = ["policy.learning_starts=30", "policy.batch_size=16", "policy.rollout_steps=5"]
TIMED = ("time/fps", "time/time_elapsed", "reward/latency_ms_p50", "reward/latency_ms_p95")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs land in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


def goal(tiny_clip):
    return ["reward=clip", "reward.goal=the pole stands up", "encoder=open_clip", f"encoder.model={tiny_clip}"]


def progress(folder):
    with (folder / "progress.csv").open() as stream:
        return [{key: row[key] for key in sorted(row) if key not in TIMED} for row in csv.DictReader(stream)]


def parameters(folder):
    found = load_file(files.latest_checkpoint(folder) / "learner.safetensors")
    return [found[name] for name in sorted(found)]


def test_from_a_sentence_to_a_report_and_an_evaluation(tiny_clip, capsys):
    words = [
        "train",
        "env=cartpole",
        *goal(tiny_clip),
        "reward.baseline=a pole on a cart",
        "steps=120",
        "log_every=40",
    ]
    small = [*SMALL, "final_episodes=2", "eval_every=60", "eval_episodes=1", "videos=1", *QUICK]
    assert main([*words, *small]) == 0
    (folder,) = Path("runs/train").iterdir()
    assert folder.name.endswith("-cartpole-clip-s0")
    told = capsys.readouterr().out
    assert "of 2 episodes (95 % interval" in told
    assert f"{folder}/report.html" in told
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [line["steps"] for line in lines] == [60, 120]
    assert {"success_rate", "ci_low", "ci_high", "episodes", "mean_reward", "mean_env_reward"} <= set(lines[0])
    rows = progress(folder)
    wanted = {"rollout/ep_rew_mean", "rollout/ep_env_rew_mean", "rollout/success_rate", "reward/clip_mean"}
    assert wanted <= set(rows[-1])
    assert rows[-1]["rollout/ep_rew_mean"] != rows[-1]["rollout/ep_env_rew_mean"]
    about = json.loads((folder / "run.json").read_text())
    assert (about["status"], about["steps"], about["seed"]) == ("finished", 120, 0)
    assert list(folder.glob("events.out.tfevents.*"))
    assert len(list((folder / "videos").glob("final_0_*.mp4"))) == 1

    assert main(["evaluate", "run=latest", "episodes=3", "num_worlds=2", "videos=0"]) == 0
    judged = json.loads((folder / "evaluation.json").read_text())
    assert (judged["episodes"], judged["steps"]) == (3, 120)
    assert 0 <= judged["ci_low"] <= judged["success_rate"] <= judged["ci_high"] <= 1


@pytest.mark.parametrize("policy", ["sac", "ppo", "rlpd", "tdmpc2"])
def test_a_run_stopped_and_resumed_has_the_same_curve(tiny_clip, policy, monkeypatch, capsys):
    """150 steps straight, and 150 with a crash after 100 that goes back to the checkpoint at 60."""
    ppo = ["policy.rollout_steps=15", "policy.batch_size=15", "policy.n_epochs=2"]
    small = [word for word in SMALL if not word.startswith("policy")]
    planner = [
        *QUICK,
        "policy.size=0.1M",
        "policy.burst=0",
        "policy.updates_per_step=0.1",
        "policy.iterations=1",
    ]
    more = {"ppo": ppo, "tdmpc2": planner}.get(policy, QUICK)
    words = ["train", "env=cartpole", *goal(tiny_clip), f"policy={policy}", "steps=150", "log_every=30"]
    words += [*small, *more, "checkpoint_every=60", "eval_every=60", "eval_episodes=1"]
    assert main([*words, "run=straight"]) == 0

    label, made = Labeller.label, []

    def crash(self, collected):
        if self._watches:
            made.append(collected.rollout.first.size)
            if sum(made) > 100:
                raise MemoryError("crash")
        return label(self, collected)

    with monkeypatch.context() as patch:
        patch.setattr(Labeller, "label", crash)
        with pytest.raises(MemoryError):
            main([*words, "run=stopped"])
    assert json.loads(Path("stopped/run.json").read_text())["status"] == "failed"
    assert "run=stopped resume=true" in capsys.readouterr().err
    assert files.latest_checkpoint(Path("stopped")).name == "0000000060"
    assert main(["train", "run=stopped", "resume=true"]) == 0

    straight, stopped = Path("straight"), Path("stopped")
    assert len(progress(straight)) == 5
    assert progress(straight) == progress(stopped)
    assert (straight / "evaluations.jsonl").read_text() == (stopped / "evaluations.jsonl").read_text()
    for one, two in zip(parameters(straight), parameters(stopped), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_learner_on_pictures_resumes_with_frames_and_looks_and_is_judged_in_others(capsys):
    words = ["train", "env=cartpole", "env.obs=mixed", "env.image_size=20", "env.looks=2", "env.max_episode_steps=10"]
    words += ["reward=true", "policy=drm", "policy.looks=2", "policy.prediction=1.0", "policy.noise_steps=50"]
    words += ["policy.hidden=[16]", "policy.features=8", "policy.learning_starts=20", "policy.batch_size=8"]
    words += [*(word for word in SMALL if not word.startswith("policy")), "log_every=24"]
    assert main([*words, "steps=96", "run=straight"]) == 0
    assert main([*words, "steps=48", "run=longer"]) == 0
    saved = load_file(files.latest_checkpoint(Path("longer")) / "state.safetensors")
    assert saved["collector/memory/history/pixels"].any()
    assert set(saved["replay/look"].flatten().tolist()) == {0, 1}
    assert not any("look" in name for name in saved if name.startswith(("collector/obs", "collector/memory")))
    assert main(["train", "run=longer", "resume=true", "steps=96"]) == 0
    assert progress(Path("straight")) == progress(Path("longer"))
    for one, two in zip(parameters(Path("straight")), parameters(Path("longer")), strict=True):
        np.testing.assert_array_equal(one, two)
    assert {"dormant_actor", "sigma", "prediction_error", "look_accuracy"} <= set(progress(Path("longer"))[-1])
    assert main(["evaluate", "run=longer", "episodes=1", "videos=0", "looks=[100,101]"]) == 0
    assert json.loads(Path("longer/evaluation.json").read_text())["looks"] == [100, 101]
    assert main([*words, "env.looks=null", "steps=48", "run=same"]) == 2
    assert "no look is known. Vary them: env.looks=4" in capsys.readouterr().err


def kill(words):
    """Begin a run in the folder "killed", and kill it after its first checkpoint."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "embodied.cli", *words, "run=killed"]
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(Path("killed/checkpoints").glob("0*")):
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()


def test_a_killed_run_resumes_to_the_same_curve(tiny_clip):
    words = ["train", "env=reacher-red", *goal(tiny_clip), "steps=200", "log_every=50", "checkpoint_every=50"]
    words += [*SMALL, *QUICK, "workers=2"]
    assert main([*words, "run=straight"]) == 0
    kill(words)
    assert json.loads(Path("killed/run.json").read_text())["status"] == "running"
    assert main(["train", "run=killed", "resume=true"]) == 0
    assert progress(Path("straight")) == progress(Path("killed"))
    for one, two in zip(parameters(Path("straight")), parameters(Path("killed")), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_killed_run_with_a_person_resumes_to_the_same_curve():
    """In a suite's world, whose episodes a person helps with: both stores go on."""
    words = ["train", "env=gym", "env.id=tests.helped:HelpedPendulum-v0", "reward=true", "log_every=50", "steps=500"]
    words += ["num_worlds=2", "final_episodes=1", "videos=0", "eval_every=0", "checkpoint_every=100", "policy=rlpd"]
    words += ["policy.batch_size=8", "policy.learning_starts=50", "policy.actor=[8]", "policy.critic=[8]"]
    assert main([*words, "run=straight"]) == 0
    kill(words)
    assert main(["train", "run=killed", "resume=true"]) == 0
    assert progress(Path("straight")) == progress(Path("killed"))
    assert float(progress(Path("straight"))[-1]["interventions/share"]) > 0.05
    one, two = (load_file(files.latest_checkpoint(Path(each)) / "state.safetensors") for each in ("straight", "killed"))
    assert one["demos/drawn"].size
    for name, array in one.items():
        if name.startswith(("demos/", "replay/")):
            np.testing.assert_array_equal(array, two[name], err_msg=name)


def test_demonstrations_for_a_policy_that_would_not_draw_them_are_refused(capsys):
    assert main(["train", "env=desk-reach", "reward=true", "policy=sac", "env.obs=state", "demos=2", "run=r"]) == 2
    assert (
        "demos must be left out: policy=sac learns from none. Use policy=rlpd, the default." in capsys.readouterr().err
    )
    assert not Path("r").exists()


def test_a_finished_run_goes_on_to_more_steps(tiny_clip, capsys):
    words = ["train", "env=cartpole", *goal(tiny_clip), "log_every=50", *SMALL, *QUICK]
    assert main([*words, "steps=200", "run=straight"]) == 0
    assert main([*words, "steps=100", "run=longer"]) == 0
    file = Path("longer/config.yaml")
    old = OmegaConf.load(file)
    del old["encode_threads"], old.env["cameras"]  # as if it were from before these settings
    file.write_text(OmegaConf.to_yaml(old))
    assert main(["train", "run=longer", "resume=true", "steps=50"]) == 2
    assert "steps must be at least 100, as longer was begun; got 50" in capsys.readouterr().err
    for words, named in (
        (["seed=1"], "seed"), (["policy.batch_size=64"], "policy.batch_size"), (["env=desk-drawer"], "env.id"),
        (["num_worlds=8", "log_every=50"], "num_worlds"),  # the default, which the run has not
        (["policy.rollout_steps=4"], "policy.rollout_steps"),  # so too
    ):  # fmt: skip
        assert main(["train", "run=longer", "resume=true", *words]) == 2
        assert f"goes on with its own settings; got others for {named}" in capsys.readouterr().err
    with runs.working(Path("longer")):
        assert main(["train", "run=longer", "resume=true", "steps=200"]) == 2
        assert "another process is at work in longer. Wait for it, or begin a new run" in capsys.readouterr().err
        assert OmegaConf.load(file).steps == 100
    assert main(["train", "run=longer", "resume=true", "steps=200"]) == 0
    assert json.loads(Path("longer/run.json").read_text())["steps"] == OmegaConf.load(file).steps == 200
    assert progress(Path("straight")) == progress(Path("longer"))
    for one, two in zip(parameters(Path("straight")), parameters(Path("longer")), strict=True):
        np.testing.assert_array_equal(one, two)
    assert main(["train", "run=longer", "resume=true"]) == 0  # done already: no step more
    assert json.loads(Path("longer/run.json").read_text())["steps"] == 200


def test_two_rewards_on_two_views_train_resume_and_are_logged_apart(tiny_clip):
    words = ["train", "env=desk-reach", "env.cameras=[front,side]", "reward=[clip,softmax]", "reward.goal=it touches"]
    words += ["reward.softmax.negative=[it waits]", "encoder=open_clip", f"encoder.model={tiny_clip}"]
    words += [*SMALL, *QUICK, "log_every=20", "env.max_episode_steps=15"]
    assert main([*words, "steps=80", "run=straight"]) == 0
    assert main([*words, "steps=40", "run=longer"]) == 0
    assert main(["train", "run=longer", "resume=true", "steps=80"]) == 0
    assert progress(Path("straight")) == progress(Path("longer"))
    assert {"reward/clip_mean", "reward/softmax_std"} <= set(progress(Path("straight"))[-1])
    assert main(["evaluate", "run=longer", "episodes=1", "videos=1"]) == 0


@pytest.mark.parametrize(("policy", "env", "obs"), [
    ("td3", "desk-reach", "state"), ("sac", "cartpole", "mixed"),
    ("ppo", "cartpole", "pixels"), ("dqn", "gym", "state"),
    ("rlpd", "desk-reach", "points"), ("rlpd", "desk-reach", "features"),
])  # fmt: skip
def test_every_learner_and_observation_form_trains(tiny_clip, policy, env, obs):
    words = ["train", f"env={env}", f"env.obs={obs}", "env.image_size=40", *goal(tiny_clip)]
    small = SMALL if policy != "rlpd" else [word for word in SMALL if not word.startswith("policy")]
    words += [*small, f"policy={policy}", *(["env.id=CartPole-v1"] if env == "gym" else [])]
    words += ["env.points=[the red cube]"] if obs == "points" else []
    more = ["policy.rollout_steps=20", "policy.batch_size=20", "policy.n_epochs=1"] if policy == "ppo" else QUICK
    if obs in ("mixed", "pixels"):
        more = [*more, "policy.buffer_size=200"] if policy != "ppo" else more
    assert main([*words, *more, "steps=80", "run=here"]) == 0
    assert main(["evaluate", "run=here", "episodes=1", "videos=0"]) == 0


def test_the_true_reward_trains_without_frames(monkeypatch):
    monkeypatch.setattr("embodied.envs.world.World.frame", None)  # a render would fail
    assert main(["train", "env=cartpole", "reward=true", *SMALL, *QUICK, "steps=80", "log_every=40", "run=here"]) == 0
    row = [each for each in progress(Path("here")) if each["rollout/ep_env_rew_mean"]][-1]
    assert float(row["rollout/ep_rew_mean"]) == pytest.approx(float(row["rollout/ep_env_rew_mean"]), rel=1e-4)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_stop_writes_a_checkpoint_first(tiny_clip, number, status, monkeypatch, capsys):
    """No step is lost, though the first checkpoint was far off; the run says how it ended and goes on exactly."""
    words = ["train", "env=cartpole", *goal(tiny_clip), "steps=150", "log_every=50", *SMALL, *QUICK]
    assert main([*words, "run=straight"]) == 0
    label, made = Labeller.label, []

    def ask(self, collected):
        made.append(1)
        if len(made) == 6:
            os.kill(os.getpid(), number)
        return label(self, collected)

    with monkeypatch.context() as patch:
        patch.setattr(Labeller, "label", ask)
        if status == 130:
            assert main([*words, "run=asked"]) == status
        else:
            with pytest.raises(SystemExit) as ended:
                main([*words, "run=asked"])
            assert ended.value.code == status
    assert json.loads(Path("asked/run.json").read_text())["status"] == "interrupted"
    told = capsys.readouterr().err
    assert "The checkpoint at step 60 is written." in told
    assert "Go on with: embodied train run=asked resume=true" in told
    assert main(["train", "run=asked", "resume=true"]) == 0
    assert progress(Path("straight")) == progress(Path("asked"))
    for one, two in zip(parameters(Path("straight")), parameters(Path("asked")), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_short_run_has_a_row_in_its_log():
    small = ["reward=true", "env=cartpole", *SMALL, *QUICK, "steps=20", "log_every=1000", "run=here"]
    assert main(["train", *small]) == 0
    assert [row["time/total_timesteps"] for row in progress(Path("here"))] == ["20"]


def test_demonstrations_are_seen_as_the_worlds_are_and_start_the_policy(tiny_clip, capsys):
    words = ["train", "env=desk-reach", "env.obs=points", "env.points=[the red cube]", *goal(tiny_clip), "policy=rlpd"]
    words += ["demos=data", "policy.pretraining=5", "policy.batch_size=8", "num_worlds=2", "steps=40", "eval_every=0"]
    words += ["final_episodes=1", "videos=0", "policy.learning_starts=10"]
    assert main(["collect", "env=desk-reach", "policy=expert", "episodes=2", "image_size=64", "out=data"]) == 0
    assert main([*words, "run=here"]) == 0
    assert float(progress(Path("here"))[0]["imitation_error"]) > 0
    assert main([*words, "run=there", "env.cameras=[front,wrist]"]) == 2
    assert "must have the cameras front, wrist; wrist is missing" in capsys.readouterr().err
    assert main([*words, "run=there", "demos=3", "env=cartpole"]) == 2
    assert "demos must be a dataset where the world has no expert" in capsys.readouterr().err
    assert main([*words, "run=there", "demos=3", "env=desk-lift", "env.kwargs={target: green}"]) == 2
    told = capsys.readouterr().err
    assert (
        "demos must be a dataset where env.kwargs change the task; got 3, which would show 'lift the red cube'" in told
    )


def test_demonstrations_of_an_expert_are_filmed_by_the_cameras_that_the_policy_sees(tiny_clip, capsys):
    """They were filmed by the world's first two cameras alone, and refused where the policy sees another."""
    words = ["train", "env=desk-reach", "env.obs=points", "env.points=[the red cube]", *goal(tiny_clip), "demos=1"]
    words += ["policy.pretraining=2", "policy.batch_size=8", "num_worlds=1", "steps=8", "eval_every=0", "videos=0"]
    words += ["env.max_episode_steps=12"]
    assert main([*words, "final_episodes=1", "run=two"]) == 0
    assert main([*words, "final_episodes=1", "run=wrist", "env.policy_cameras=[wrist]"]) == 0
    assert Dataset(Path("runs/collect/desk-reach-expert")).cameras == ("front", "side")
    assert Dataset(Path("runs/collect/desk-reach-expert-front-wrist")).cameras == ("front", "wrist")
    assert main([*words, "final_episodes=1", "run=wrong", "env.policy_cameras=wrist"]) == 2
    assert "env.policy_cameras must be a list of cameras" in capsys.readouterr().err


def test_places_are_learned_from_the_demonstrations_and_kept_in_the_run(capsys):
    short = "env.max_episode_steps=12"
    words = ["train", "env=desk-reach", "env.obs=places", "env.places=2", "reward=true", "policy=rlpd", "demos=2"]
    words += ["policy.pretraining=2", "policy.batch_size=8", "num_worlds=1", "eval_every=0", "videos=0"]
    words += ["final_episodes=1", "policy.learning_starts=10", short]
    assert main(["collect", "env=desk-reach", short, "policy=expert", "episodes=3", "image_size=96", "out=data"]) == 0
    assert main([*words, "demos=data", "steps=16", "run=straight", "videos=1"]) == 0
    assert json.loads(Path("straight/run.json").read_text())["observation"] == "places"
    assert main([*words, "demos=data", "steps=8", "run=halves"]) == 0
    kept = Path("halves/places/policy.safetensors").read_bytes()
    assert main(["train", "run=halves", "resume=true", "steps=16"]) == 0
    assert list(Path("straight/videos").glob("final_0_*.mp4"))
    assert Path("halves/places/policy.safetensors").read_bytes() == kept
    assert all(
        np.array_equal(*pair) for pair in zip(parameters(Path("straight")), parameters(Path("halves")), strict=True)
    )
    assert main(["evaluate", "run=straight", "episodes=1", "videos=0"]) == 0
    assert main(["collect", "policy=run:straight", "episodes=1", "out=own"]) == 0

    taken = [*words, "env.places=straight/places", "policy=residual", "steps=8", "run=taken"]
    assert main([word for word in taken if not word.startswith("policy.pre") and word != "demos=2"]) == 0
    told = Path("taken/places/policy.safetensors").read_bytes()
    assert told == Path("straight/places/policy.safetensors").read_bytes()
    capsys.readouterr()
    for wrong, message in {
        "demos=null": "env.obs=places needs demonstrations",
        "env.places=nowhere": "env.places must be a number of updates, or a folder of embodied finetune; got 'nowhere'",
        "env.cameras=[wrist]": "must have the cameras wrist; wrist is missing",
    }.items():
        assert main([*words, "demos=data", wrong, "steps=8", "run=wrong"]) == 2
        assert message in capsys.readouterr().err
    assert not Path("wrong").exists()


def test_only_the_demonstrations_asked_for_teach_where_to_look():
    """A named dataset may hold more episodes than `demos` says."""
    words = ["train", "env=desk-reach", "env.obs=places", "env.places=2", "reward=true", "policy=rlpd", "demos=1"]
    words += ["policy.pretraining=2", "policy.batch_size=8", "num_worlds=1", "eval_every=0", "videos=0"]
    words += ["final_episodes=1", "steps=4", "env.max_episode_steps=12"]
    assert main([*words, "run=one"]) == 0
    assert main([*words, "demos=2", "run=two"]) == 0
    assert main([*words, "run=again"]) == 0
    one, two, again = (Path(name, "places/policy.safetensors").read_bytes() for name in ("one", "two", "again"))
    assert one == again
    assert one != two


def test_nan_stops_the_run_with_one_line(tiny_clip, monkeypatch, capsys):
    monkeypatch.setattr("rewards.clip_goal.ClipGoal.score", lambda self, features: features.main[..., 0] * float("nan"))
    assert main(["train", "env=cartpole", *goal(tiny_clip), *SMALL, *QUICK, "steps=80"]) == 2
    assert "head 'clip' must give finite numbers" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    (["env=cartpol"], "did you mean cartpole"),
    (["env=gym", "env.id=Hopper"], "no environment 'Hopper'"),
    (["run=there"], "run must be a new folder; got there. Add resume=true"),
    (["run=nowhere", "resume=true"], "run must be a run folder"),
    (["num_worlds=0"], "num_worlds must be at least 1; got 0"),
    (["workers=9"], "workers must be from 0 to num_worlds (2); got 9"),
    (["policy=dqn"], "actions must be Discrete"),
    (["env=gym", "env.id=CartPole-v1", "policy=dqn", "reward=clip"], "reward.goal must be a text"),
])  # fmt: skip
def test_mistakes_end_in_one_line_and_write_nothing(tiny_clip, words, message, capsys):
    Path("there").mkdir()
    encoder = ["encoder=open_clip", f"encoder.model={tiny_clip}"]
    common = ["train", "env=cartpole", "reward=true", *encoder, *SMALL, "steps=10"]
    assert main([*common, *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert sorted(path.name for path in Path().iterdir()) == ["there"]


def test_every_world_has_a_config_and_every_config_composes():
    names = {path.stem for path in (paths.configs() / "env").glob("*.yaml")}
    assert set(WORLDS) <= names
    for name in WORLDS:
        assert compose("train", [f"env={name}"]).env.id == world_id(name)
    for policy in (paths.configs() / "policy").glob("*.yaml"):
        assert OmegaConf.is_missing(compose("train", [f"policy={policy.stem}"]), "policy") is False
