"""Fine-tuning from the command line: data to a page, a stop and its resumption, what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embodied import cli
from embodied.building.build import build
from embodied.commands import serve
from embodied.config import compose
from embodied.datasets import Dataset, Writer
from embodied.finetuning import inputs, judging, labels
from embodied.finetuning.rollouts import RolloutWorlds
from embodied.finetuning.stages import FinetuningRun
from embodied.finetuning.trying import lerobot_policy
from embodied.reports.page import read_progress
from embodied.serving.limits import RequestLimits
from policies.vla.chunked import ChunkedRL
from policies.vla.imitation import ChunkImitation
from tests.lerobot_folders import add_column
from tests.tiny_vla import save_tiny_backbone

SMALL = [
    "policy.horizon=4", "policy.channels=8", "policy.places=2", "policy.width=16",
    "steps=6", "batch_size=4", "checkpoint_every=2", "log_every=2", "validation=1",
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
    assert "Careful" not in told
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
    capsys.readouterr()
    assert run("run=tuned", "steps=9", "policy.width=32") == cli.EXIT_USER_ERROR  # neither would be heeded
    assert "goes on with its own settings; got others for policy.width, steps." in capsys.readouterr().err
    assert (tmp_path / "tuned" / "imitate" / "episodes.json").read_bytes() == episodes
    assert cli.main(["evaluate", "run=tuned", "episodes=2", "num_worlds=1", "videos=0"]) == 0
    again = json.loads((tmp_path / "tuned" / "evaluate.json").read_text())
    assert again["episodes"] == 2
    assert again["env"] == "embodied/desk-reach-v0"
    assert cli.main(["evaluate", "run=tuned", "env=desk-press", "episodes=1", "videos=0"]) == 0


def test_an_experts_corrections_are_imitated_too(demos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["baseline=false", "execute=4", "eval_episodes=1", "videos=0", "own.starts=3", "num_worlds=2"]
    assert run(f"data={demos}", "run=tuned", "labels.source=recorded", *SMALL, *quick[:4], "num_worlds=2") == 0
    assert run("run=tuned", "stages=[corrections]", "own.starts=3") == 0  # a later stage has settings of its own
    assert run("run=tuned", "own.starts=4") == cli.EXIT_USER_ERROR  # until it is begun
    gathered = json.loads((tmp_path / "tuned" / "corrections" / "gathered.json").read_text())
    assert gathered["starts"] == gathered["accepted"] == 3
    assert gathered["wrongly"] <= 1  # the expert takes over with at least eight of twenty steps left
    grown = Dataset(tmp_path / "tuned" / "corrections" / "data")
    assert [grown.kind(i) for i in range(3)] == ["correction"] * 3
    assert all(grown.length(i) < 20 for i in range(3))
    assert set(grown.last(0)[0]) == {"front", "wrist"}
    judged = json.loads((tmp_path / "tuned" / "evaluation.json").read_text())
    assert (judged["compared"]["before"], judged["compared"]["after"]) == ("imitate", "corrections")


@pytest.fixture(scope="module")
def pressing(demos):
    """An expert and a random episode of another short task."""
    root = demos.parent
    common = ["collect", "env=desk-press", "+env.kwargs.max_episode_steps=20", "image_size=32"]
    shares = "shares={expert: 0.5, noisy: 0, near_miss: 0, failure: 0, random: 0.5}"
    common += ["cameras=[front,wrist]", "policy=mixed", shares]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert cli.main([*common, "episodes=2", "out=pressing"]) == 0
    return root / "pressing"


def test_data_of_several_tasks_are_judged_in_each_world_by_its_own_sentence(
    demos, pressing, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    both = [f"data=[{demos},{pressing}]", "run=both", "labels.source=recorded", "baseline=false", *SMALL]
    assert run(*both, "own.starts=2", "stages=[imitate,corrections]") == 0
    told = capsys.readouterr().out
    assert "Careful" not in told
    for world in ("desk-reach", "desk-press"):
        assert f"{world}: " in told
    folder = tmp_path / "both"
    rows = json.loads((folder / "imitate" / "episodes.json").read_text())
    assert [row["world"] for row in rows] == ["desk-reach"] * 2 + ["desk-press"] * 2
    assert rows[0]["seed"] == rows[2]["seed"]  # the same starts in each
    summary = json.loads((folder / "evaluation.json").read_text())["summaries"]["imitate"]
    assert summary["episodes"] == 4
    assert {name: each["episodes"] for name, each in summary["worlds"].items()} == {"desk-reach": 2, "desk-press": 2}
    corrected = {name: Dataset(folder / "corrections/data" / name) for name in ("desk-reach", "desk-press")}
    sentences = {name: dataset.recording(0).instruction for name, dataset in corrected.items()}
    assert sentences == {"desk-reach": "touch the red cube", "desk-press": "press the button"}
    assert json.loads((folder / "corrections" / "gathered.json").read_text())["starts"] == 4
    page = (folder / "report.html").read_text()
    assert "desk-reach, desk-press" in page
    assert page.count("<video") == 4  # a start of each world, before and after

    assert cli.main(["evaluate", "run=both", "episodes=1", "videos=0"]) == 0
    again = json.loads((folder / "evaluate.json").read_text())
    assert again["env"] == ["embodied/desk-reach-v0", "embodied/desk-press-v0"]
    assert set(again["worlds"]) == {"desk-reach", "desk-press"}
    capsys.readouterr()
    told = refused(capsys, both[0], "run=new", "stages=[imitate,world]")
    assert "needs data of one world; they come from desk-reach, desk-press" in told
    assert not (tmp_path / "new").exists()


def test_a_column_grades_what_tells_no_success_itself(demos, tmp_path, monkeypatch, capsys):
    """In place of next.success; one that is not there, or that tells nobody's success, is refused before a run."""
    monkeypatch.chdir(tmp_path)
    data = Path(shutil.copytree(demos, "data"))
    add_column(data, "graded", "string", ["failure", "successful", "", "successful"])
    add_column(data, "ordered", "int64", [10, 20, 30, 40])
    words = [f"data={data}", "run=tuned", "labels.source=recorded", "baseline=false", "evaluate=false", *SMALL]
    for column, told in (("grade", "has no column 'grade'. Choose from action"), ("ordered", "it tells of none")):
        assert told in refused(capsys, *words, f"labels.quality={column}")
        assert not Path("tuned").exists()
    for ignored in ("labels.source=all", "labels.model=somewhere"):
        asks = [word for word in words if not word.startswith("labels.")]
        more = ["labels.weights=uniform"] if ignored.endswith("all") else []
        assert "labels.quality must be left out" in refused(capsys, *asks, "labels.quality=graded", ignored, *more)
    assert run(*words, "labels.quality=graded") == 0
    assert "recorded: 2 solved, 1 not, 1 unsure" in capsys.readouterr().out
    assert json.loads(Path("tuned/labels.json").read_text())["words"] == ["not", "solved", "abstained", "solved"]


def test_a_policy_can_be_told_another_sentence_and_shown_other_looks(demos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["labels.source=recorded", "baseline=false", "evaluate=false", *SMALL]
    assert run(f"data={demos}", "run=tuned", *words) == 0
    said, looked = [], []
    say, make = inputs.Sentences.__call__, RolloutWorlds.__init__

    def heard(self, texts):
        said.extend(texts)
        return say(self, texts)

    def made(self, make_one, *given, **more):
        make(self, make_one, *given, **more)
        looked.extend(env.spec.kwargs["looks"] for env in self.envs)

    monkeypatch.setattr(inputs.Sentences, "__call__", heard)
    monkeypatch.setattr(RolloutWorlds, "__init__", made)
    judge = ["evaluate", "run=tuned", "episodes=1", "num_worlds=1", "videos=0", "env=desk-press"]
    assert cli.main([*judge, "instruction=open the drawer", "looks=[100]"]) == 0
    assert set(said) == {"open the drawer"}
    assert looked == [[100]]
    assert json.loads((tmp_path / "tuned" / "evaluate.json").read_text())["instruction"] == "open the drawer"
    for word in ("imagined=3", "align=100"):
        assert cli.main([*judge, word]) == cli.EXIT_USER_ERROR
        assert f"{word.partition('=')[0]} is for runs of embodied train" in capsys.readouterr().err


def test_a_sentence_that_no_demonstration_says_is_pointed_out(demos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["labels.source=recorded", "baseline=false", "policy.instruction=poke it", *SMALL, "execute=4", "videos=0"]
    assert run(f"data={demos}", "run=tuned", *words) == 0
    told = capsys.readouterr().out
    assert "judged by “poke it”, which no demonstration says; they say “touch the red cube”" in told


def test_what_is_held_out_is_of_what_is_imitated(demos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose("finetune", [f"data={demos}", "labels.source=recorded", *SMALL, "validation=3"])
    made = FinetuningRun(config, tmp_path, build(config.encoder), inputs.plan(config))
    words = np.array(made.labelled[0].words)
    assert sorted(words) == ["not", "not", "solved", "solved"]
    assert words[made.held_out].tolist() == ["solved"]  # one is left to learn from
    made.config.labels.weights = "uniform"
    assert made.held_out.tolist() == [False, True, True, True]


class Judge(labels.Teacher):
    """In the success reward's place: refuses all first tries, and every other one of those that follow."""

    def __init__(self, starts):
        self.starts, self.asked = starts, 0

    def word(self, frames, sentence):
        assert set(frames) == {"front", "wrist"}
        assert sentence == "touch the red cube"
        self.asked += 1
        return "solved" if self.asked > self.starts and self.asked % 2 else "not"

    def words(self, episodes):
        return ["solved" if each.instruction else "not" for each in episodes]

    def rewards(self, episode):
        return np.zeros(len(episode.features.main[0]), np.float32)


RL = ["rl.steps=6", "rl.batch_size=4", "rl.width=8", "rl.heads=2", "ranked.moments=2", "ranked.chunks=2"]
QUICK = ["baseline=false", "execute=4", "eval_episodes=1", "videos=0", "own.starts=2", "own.tries=2", "num_worlds=2"]


@pytest.fixture
def judged(monkeypatch):
    """Recorded labels, and a judge of what the policy does."""
    label = labels.label
    monkeypatch.setattr(labels, "label", lambda *given: (label(*given)[0], Judge(2)))


def test_own_tries_that_are_accepted_are_imitated_and_chunked_rl_learns_from_the_others_too(
    demos, judged, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = [f"data={demos}", "run=tuned", "labels.source=recorded", *SMALL, *QUICK]
    assert run(*words, "stages=[imitate,rollouts]") == 0
    gathered = json.loads((tmp_path / "tuned" / "rollouts" / "gathered.json").read_text())
    assert (gathered["starts"], gathered["failed"], gathered["tries"], gathered["accepted"]) == (2, 2, 4, 2)
    assert 0 <= gathered["wrongly"] <= 2
    own, other = (Dataset(tmp_path / "tuned" / "rollouts" / name) for name in ("data", "refused"))
    assert [own.kind(i) for i in range(len(own))] == ["own"] * 2
    assert [other.kind(i) for i in range(len(other))] == ["refused"] * 4
    assert not np.array_equal(other.columns(0, ["action"])["action"], other.columns(2, ["action"])["action"])
    told = capsys.readouterr().out
    assert "40 of 80 rows" in told  # of the demonstrations
    assert "80 of 120 rows" in told  # and of the tries
    first = (tmp_path / "tuned" / "rollouts" / "episodes.json").read_bytes()

    assert run("run=tuned", "stages=[chunked_rl]", *RL) == 0  # what was done before stays
    told = capsys.readouterr().out
    assert (tmp_path / "tuned" / "rollouts" / "episodes.json").read_bytes() == first
    found = json.loads((tmp_path / "tuned" / "evaluation.json").read_text())
    assert (found["compared"]["before"], found["compared"]["after"]) == ("rollouts", "chunked_rl")
    assert found["policy"] == "rollouts"
    assert "The former policy, rollouts, is kept." in told
    assert "the critic at 2 moments" in told
    ranking = json.loads((tmp_path / "tuned" / "chunked_rl" / "ranking.json").read_text())
    assert np.isfinite([each["scores"] for each in ranking["table"]]).all()
    page = (tmp_path / "tuned" / "report.html").read_text()
    assert "The former policy is kept: with own rollouts." in page
    assert "The critic" in page
    assert json.loads((tmp_path / "tuned" / "run.json").read_text())["policy"] == "rollouts"
    assert "needs the success reward" in refused(capsys, "run=tuned", "stages=[world]")  # and not: not both
    began = tmp_path / "tuned" / "chunked_rl" / "began.json"
    assert json.loads(began.read_text()) == {"from": "rollouts"}
    began.write_text('{"from": "imitate"}')  # as if the rollouts had come later
    told = refused(capsys, "run=tuned", "stages=[chunked_rl]")
    assert "chunked_rl went on from imitate, and rollouts was added since. Remove tuned/chunked_rl to do it" in told
    assert run("run=tuned", "stages=[rollouts]") == 0
    assert "chunked_rl is left out from now on, as it went on from imitate" in capsys.readouterr().out
    found = json.loads((tmp_path / "tuned" / "evaluation.json").read_text())
    assert list(found["summaries"])[-1] == "rollouts"
    began.write_text('{"from": "rollouts"}')
    assert run("run=tuned", "stages=[chunked_rl]", "videos=1") == 0
    assert len([*(tmp_path / "tuned" / "videos").glob("*_chunked_rl_*.mp4")]) == 1
    assert read_progress(tmp_path / "tuned" / "chunked_rl" / "progress.csv")["train/critic"][0] == [2, 4, 6]

    assert run("run=tuned", "rl.actor=td3_bc") == cli.EXIT_USER_ERROR
    assert "rl.actor must stay distil" in capsys.readouterr().err


def test_chunked_rl_that_is_better_is_kept_and_can_choose_when_it_acts(demos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judging, "LEVEL", 1.1)
    monkeypatch.setattr(judging, "compare", lambda before, after: {
        "starts": 2, "better": 2, "worse": 0, "p": 0.5, "difference": 1.0, "both": 0, "steps_saved": None,
        "steps_saved_interval": None,
    })  # fmt: skip
    words = [f"data={demos}", "run=tuned", "labels.source=recorded", *SMALL, *QUICK, *RL, "ranked.moments=0"]
    assert run(*words, "stages=[imitate,chunked_rl]", "rl.actor=best_of_n", "rl.held=conrft") == 0
    assert "Better: 2 starts gained" in capsys.readouterr().out
    assert json.loads((tmp_path / "tuned" / "run.json").read_text())["policy"] == "chunked_rl"
    assert cli.main(["evaluate", "run=tuned", "episodes=1", "videos=0"]) == 0
    assert not (tmp_path / "tuned" / "chunked_rl" / "ranking.json").exists()


def test_a_stopped_critic_goes_on_to_the_same_curve(demos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["labels.source=recorded", "evaluate=false", "baseline=false", *SMALL, *RL, "stages=[imitate,chunked_rl]"]
    assert run(f"data={demos}", "run=straight", *words) == 0
    step, left = ChunkedRL.step, [5]

    def stops(self):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(ChunkedRL, "step", stops)
    assert run(f"data={demos}", "run=stopped", *words) == cli.EXIT_INTERRUPTED
    monkeypatch.setattr(ChunkedRL, "step", step)
    assert run("run=stopped", "resume=true") == 0
    names = ("straight", "stopped")
    assert all(json.loads((tmp_path / name / "run.json").read_text())["policy"] == "imitate" for name in names)
    curves = [read_progress(tmp_path / name / "chunked_rl" / "progress.csv") for name in names]
    assert curves[0] == curves[1]
    for file in ("critic.safetensors", "policy/policy.safetensors"):
        one, other = ((tmp_path / name / "chunked_rl" / file).read_bytes() for name in names)
        assert one == other


def test_a_stopped_run_goes_on_to_the_same_curve(demos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["labels.source=all", "labels.weights=uniform", "evaluate=false", *SMALL]
    assert run(f"data={demos}", "run=straight", *words) == 0
    step, left = ChunkImitation.step, [5]

    def stops(self):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(ChunkImitation, "step", stops)
    assert run(f"data={demos}", "run=stopped", *words) == cli.EXIT_INTERRUPTED
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["status"] == "interrupted"
    monkeypatch.setattr(ChunkImitation, "step", step)
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
    assert "data must be a LeRobot folder, or a list of them; got none, and no run to go on with" in refused(capsys)
    assert f"but holds such: {demos}" in refused(capsys, f"data={demos.parent}")
    assert "did you mean demos?" in refused(capsys, f"data={demos.parent / 'demo'}")
    assert "did you mean wrist" in refused(capsys, data, "policy.cameras=[front,wrst]")
    assert "did you mean flow" in refused(capsys, data, "policy.head=flw")
    assert "stages must be of" in refused(capsys, data, "stages=[rl]")
    assert "labels.weights must be one of" in refused(capsys, data, "labels.weights=best")
    assert "must not be solved" in refused(capsys, data, "labels.source=all")
    for words, said in (
        (["execute=9"], "execute must be a whole number from 1 to 8"), (["execute=2.5"], "from 1 to 8, the actions of"),
        (["seed=-1"], "seed must be at least 0"), (["learning_rate=-1"], "learning_rate must be more than 0; got -1"),
        (["policy.width=9"], "policy.width must be even; got 9"), (["own.noise=-1"], "noise must be at least 0"),
        (["labels.kappa=-1"], "labels.kappa must be 0 or more"), (["stages=rollouts"], "Write stages=[rollouts]"),
        (["policy.cameras=front"], "Write policy.cameras=[front]"),
    ):  # fmt: skip
        assert said in refused(capsys, data, *words)
    assert "policy.keep" in refused(capsys, data, "policy.keep=[gripper]", "labels.source=recorded", "run=x")
    assert "steps must be at least 1" in refused(capsys, data, "steps=0")
    assert "rl: actor must be one of td3_bc" in refused(capsys, data, "rl.actor=ppo")
    world = ["labels.source=recorded", "run=w", *SMALL]  # it was trained first, and refused then
    assert "camera 'front', which the policy reads" in refused(capsys, data, "env=reacher-red", *world)
    front = ["env=drive-town", "policy.cameras=[front]"]
    assert "env must take the policy's 4 numbers as actions; got Box" in refused(capsys, data, *front, *world)
    assert not (tmp_path / "w").exists()
    everything = ("labels.source=all", "labels.weights=uniform", "stages=[imitate,chunked_rl]", "run=z", *SMALL)
    assert "must know which episodes succeeded" in refused(capsys, data, *everything)
    assert "policy.layer must be one of" in refused(capsys, data, "policy.layer=top", "labels.source=recorded", "run=y")
    assert not list(tmp_path.glob("[xy]/*/policy"))


# Pretrained bodies --------------------------------------------------------------------------------------


def test_a_backbone_is_tuned_judged_elsewhere_and_stops_without_memory(demos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = save_tiny_backbone(tmp_path / "smolvlm", "smolvlm")
    words = [f"data={demos}", "labels.source=recorded", "baseline=false", f"policy.backbone={source}", *SMALL]
    step, left = ChunkImitation.step, [5]

    def runs_out(self):
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self)

    monkeypatch.setattr(ChunkImitation, "step", runs_out)
    told = refused(capsys, *words, "run=tuned", "policy.lora.rank=2")
    assert "not enough memory for batch_size=4. Try batch_size=2, policy.checkpointing=true" in told
    monkeypatch.setattr(ChunkImitation, "step", step)
    assert run("run=tuned", "resume=true") == 0
    about = json.loads((tmp_path / "tuned/imitate/policy/policy.json").read_text())["spec"]
    assert (about["backbone"]["rank"], about["backbone"]["source"], about["cameras"]) == (
        2,
        source,
        {"front": 3, "wrist": 3},
    )
    assert set(load_file(tmp_path / "tuned/imitate/policy/policy.safetensors")) >= {"network/fusion.slots"}
    assert cli.main(["evaluate", "run=tuned", "episodes=1", "num_worlds=1", "videos=0"]) == 0
    app = serve.policy_served(compose("serve", ["policy=tuned"]), limits=RequestLimits(), token=None)
    told = app.state.service.describe()
    app.state.service.close()
    assert (told["cameras"], told["horizon"]) == ({"front": [32, 32], "wrist": [32, 32]}, 4)
    random = torch.Generator().manual_seed(0)
    seen = {f"observation.images.{name}": torch.rand(1, 3, 32, 32, generator=random) for name in ("front", "wrist")}
    policy = lerobot_policy("tuned")
    state = torch.zeros(1, len(policy.policy.spec.states))
    assert policy.select_action(seen | {"observation.state": state, "task": ["reach"]}).shape == (1, 4)
    (tmp_path / "smolvlm").rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert cli.main(["evaluate", "run=tuned", "episodes=1"]) == cli.EXIT_USER_ERROR
    assert "policy.backbone must be a hub id" in capsys.readouterr().err


def test_what_is_no_backbone_is_refused_before_data_are_read(demos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "llama"}')
    data = [f"data={demos}", "labels.source=recorded"]
    for words, told in (
        (["policy.backbone=nowhere"], "policy.backbone must be a hub id (OWNER/NAME), or a folder with config.json"),
        (["policy.backbone=text"], "policy.backbone must be an image-text model"),
        (["policy.backbone=text", "policy.train=lra"], "did you mean lora"),
        (["policy.backbone=text", "policy.lora.rank=0"], "policy.lora must have a rank of at least 1"),
        (["policy.head=tokens"], "policy.head must be one of l1, flow, diffusion"),
    ):
        assert told in refused(capsys, *data, *words)
    source = save_tiny_backbone(tmp_path / "smolvlm", "smolvlm")
    assert "policy.size must be a multiple of 16" in refused(
        capsys, *data, f"policy.backbone={source}", "policy.size=9"
    )
    assert not (tmp_path / "runs").exists()


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


def test_a_world_of_another_rate_is_told_and_nothing_is_recorded_there(demos, tmp_path, monkeypatch, capsys):
    """Each action did half as much, and a policy that had solved all solved nothing, without a word."""
    monkeypatch.chdir(tmp_path)
    assert run(f"data={demos}", "run=tuned", "labels.source=recorded", *SMALL, *QUICK, "policy.fps=10") == 0
    told = capsys.readouterr().out
    assert "Careful: the policy gives 10 actions a second, embodied/desk-reach-v0 takes 20. Leave policy.fps" in told
    assert "stages=[rollouts] needs a world of the policy's rate" in refused(capsys, "run=tuned", "stages=[rollouts]")
    assert cli.main(["evaluate", "run=tuned", "episodes=1", "videos=0"]) == 0
    assert "Careful: the policy gives 10 actions a second" in capsys.readouterr().err


def test_data_with_other_names_are_labelled_by_them_and_a_run_is_judged_and_filmed_later(
    demos, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    names = ["policy.names={observation.images.side: front}", "policy.cameras=[side]"]
    words = ["labels.precision=0.5", "baseline=false", "evaluate=false", "execute=4"]
    assert run(f"data={demos}", f"labels.labelled={demos}", "run=tuned", *names, *SMALL, *words) == 0
    assert "It was trained, and not judged." in capsys.readouterr().out
    assert not (tmp_path / "tuned" / "videos").exists()
    assert run("run=tuned", "evaluate=true", "eval_episodes=2", "videos=0") == 0
    assert "of 2 starts" in capsys.readouterr().out
    before = (tmp_path / "tuned" / "imitate" / "episodes.json").read_bytes()
    assert run("run=tuned", "videos=2") == 0
    assert len([*(tmp_path / "tuned" / "videos").glob("*_imitate_*.mp4")]) == 2
    assert (tmp_path / "tuned" / "imitate" / "episodes.json").read_bytes() == before
    for words, told in ((["execute=0"], "execute must be a whole number from 1 to 4"), (["seed=-1"], "seed must be")):
        assert cli.main(["evaluate", "run=tuned", "episodes=1", *words]) == cli.EXIT_USER_ERROR
        assert told in capsys.readouterr().err
