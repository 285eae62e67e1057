"""Fine-tuning from the command line: data to a page, a stop and its resumption, what is refused."""

import json
import re

import numpy as np
import pytest

from embodied import cli
from embodied.datasets import Dataset, Writer
from embodied.finetuning import judging, labels
from embodied.report import read_progress
from policies.vla.imitation import Imitation

SMALL = [
    "policy.horizon=4", "policy.channels=8", "policy.places=2", "policy.width=16", "policy.heads=2",
    "policy.layers=[1,1]", "steps=6", "batch_size=4", "checkpoint_every=2", "log_every=2", "validation=1",
    "choose_episodes=1", "eval_episodes=2", "num_worlds=2", "videos=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Two expert and two random episodes of a short task, two cameras."""
    root = tmp_path_factory.mktemp("demos")
    common = ["collect", "env=desk-reach", "+env.kwargs.max_episode_steps=20", "image_size=32"]
    shares = "shares={expert: 0.5, noisy: 0, near_miss: 0, failure: 0, random: 0.5}"
    common += ["cameras=[front,wrist]", "policy=mixed", shares]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert cli.main([*common, "episodes=4", "out=demos"]) == 0
    return root / "demos"


def run(*words):
    return cli.main(["finetune", *words])


def test_from_demonstrations_to_a_page(demos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status = run(f"data={demos}", "run=tuned", "labels.source=recorded", *SMALL)
    told, errors = capsys.readouterr()
    assert status == 0, errors
    for part in ("4 episodes, 2 cameras (front, wrist), 80 rows, 20 fps", "recorded: 2 solved, 2 not", "of 4 steps",
                 "McNemar", "Report: tuned/report.html"):  # fmt: skip
        assert part in told
    judged = json.loads((tmp_path / "tuned" / "evaluation.json").read_text())
    assert set(judged["summaries"]) == {"baseline", "imitate"}
    assert judged["execute"]["imitate"]["chosen"] in (1, 2, 4)
    page = (tmp_path / "tuned" / "report.html").read_text()
    assert "Before and after" in page
    assert page.count("<video") == 2
    error = read_progress(tmp_path / "tuned" / "imitate" / "progress.csv")["validation/error"]
    assert error[0] == [2, 4, 6]

    episodes = (tmp_path / "tuned" / "imitate" / "episodes.json").read_bytes()
    assert run("run=tuned") == 0  # nothing is done again
    assert (tmp_path / "tuned" / "imitate" / "episodes.json").read_bytes() == episodes
    assert cli.main(["evaluate", "run=tuned", "episodes=2", "num_worlds=1", "videos=0"]) == 0
    again = json.loads((tmp_path / "tuned" / "evaluate.json").read_text())
    assert again["episodes"] == 2
    assert again["env"] == "embodied/desk-reach-v0"
    assert cli.main(["evaluate", "run=tuned", "env=desk-press", "episodes=1", "videos=0"]) == 0


def test_an_experts_corrections_are_imitated_too(demos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["baseline=false", "execute=4", "eval_episodes=1", "videos=0", "own.starts=3", "num_worlds=2"]
    assert (
        run(f"data={demos}", "run=tuned", "labels.source=recorded", *SMALL, *quick, "stages=[imitate,corrections]") == 0
    )
    gathered = json.loads((tmp_path / "tuned" / "corrections" / "gathered.json").read_text())
    assert gathered["starts"] == gathered["accepted"] == 3
    assert gathered["wrongly"] <= 1  # the expert takes over with at least eight of twenty steps left
    grown = Dataset(tmp_path / "tuned" / "corrections" / "data")
    assert [grown.kind(i) for i in range(3)] == ["correction"] * 3
    assert all(grown.length(i) < 20 for i in range(3))
    assert set(grown.last(0)[0]) == {"front", "wrist"}
    judged = json.loads((tmp_path / "tuned" / "evaluation.json").read_text())
    assert (judged["compared"]["before"], judged["compared"]["after"]) == ("imitate", "corrections")


def test_a_stopped_run_goes_on_to_the_same_curve(demos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["labels.source=all", "labels.weights=uniform", "evaluate=false", *SMALL]
    assert run(f"data={demos}", "run=straight", *words) == 0
    step, left = Imitation.step, [5]

    def stops(self):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Imitation, "step", stops)
    assert run(f"data={demos}", "run=stopped", *words) == cli.EXIT_INTERRUPTED
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["status"] == "interrupted"
    monkeypatch.setattr(Imitation, "step", step)
    assert run("run=stopped", "resume=true") == 0
    curves = [read_progress(tmp_path / name / "imitate" / "progress.csv") for name in ("straight", "stopped")]
    assert curves[0]["train/error"] == curves[1]["train/error"]
    weights = [(tmp_path / name / "imitate/policy/policy.safetensors").read_bytes() for name in ("straight", "stopped")]
    assert weights[0] == weights[1]


def refused(capsys, *words):
    assert run(*words) == cli.EXIT_USER_ERROR
    return capsys.readouterr().err


def test_what_cannot_be_is_refused_before_anything_is_written(demos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = f"data={demos}"
    assert "latest" in refused(capsys)
    assert "did you mean wrist" in refused(capsys, data, "policy.cameras=[front,wrst]")
    assert "did you mean flow" in refused(capsys, data, "policy.head=flw")
    assert "stages must be of" in refused(capsys, data, "stages=[rl]")
    assert "labels.weights must be one of" in refused(capsys, data, "labels.weights=best")
    assert "must not be solved" in refused(capsys, data, "labels.source=all")
    assert "execute must be from 1" in refused(capsys, data, "execute=9")
    assert "policy.keep" in refused(capsys, data, "policy.keep=[gripper]", "labels.source=recorded", "run=x")
    assert "steps must be at least 1" in refused(capsys, data, "steps=0")
    assert "policy.layer must be one of" in refused(capsys, data, "policy.layer=top", "labels.source=recorded", "run=y")
    assert not list(tmp_path.glob("*/*/policy"))


def test_rates_and_cameras_of_several_datasets_must_agree(demos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dataset = Dataset(demos)
    features = {name: dataset.features[name] for name in ("observation.state", "action")}
    with Writer(tmp_path / "slow", fps=10, features=features, cameras={"front": (32, 32)}) as writer:
        rows = dataset.recording(0)
        state = np.stack(list(rows.signals.values()), 1)
        writer.add(
            {"observation.state": state, "action": rows.actions}, {"front": rows.frames["front"]}, instruction=""
        )
    both = f"data=[{demos},{tmp_path / 'slow'}]"
    assert "must have the camera 'wrist'" in refused(capsys, both)
    assert "must have one rate; got 10, 20 fps" in refused(capsys, both, "policy.missing=zeros")
    words = ["labels.source=all", "labels.weights=uniform", "policy.fps=20", "policy.missing=zeros", "evaluate=false"]
    assert run(both, "run=both", *words, *SMALL) == 0
    assert "5 episodes" in capsys.readouterr().out


# Judging ------------------------------------------------------------------------------------------------


def rows(successes, steps=None):
    return [
        {"seed": k, "success": done, "ever": done, "steps": (steps or [10] * len(successes))[k] if done else None,
         "env_reward": 0.0}
        for k, done in enumerate(successes)
    ]  # fmt: skip


def test_policies_are_compared_start_by_start():
    before, after = rows([False] * 8 + [True] * 3), rows([True] * 8 + [False] + [True] * 2, [7] * 11)
    found = judging.compare(before, after)
    assert (found["better"], found["worse"], found["both"], found["steps_saved"]) == (8, 1, 2, 3.0)
    assert found["p"] == pytest.approx(2 * 10 / 2**9)
    assert judging.verdict(found).startswith("Better: 8 starts gained, 1 lost of 11")
    assert judging.verdict(judging.compare(after, before)).startswith("Worse")
    assert judging.verdict(judging.compare(after, after)).startswith("No difference")
    assert judging.compare(rows([None]), rows([True])) is None


def test_of_equal_numbers_of_steps_the_one_that_looks_less_is_executed(tmp_path):
    assert judging.candidates(8) == [8, 4, 2, 1]
    assert judging.candidates(6) == [6, 3, 1]


def test_labels_are_told_and_kept():
    found = labels.Labels(("solved", "not", "abstained", "solved"), ("person", "person", "success", "success"))
    assert re.fullmatch("success: 2 solved, 1 not, 1 abstained, 2 of them said by a person", found.told())
    assert labels.Labels.from_dict(json.loads(json.dumps(found.as_dict()))) == found
