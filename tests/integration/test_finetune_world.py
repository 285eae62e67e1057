"""Practice in a learned world from the command line: its truth, what is kept, a stop and its resumption, refusals."""

import json
import shutil

import pytest

from embodied import cli
from embodied.finetuning import imagining, truth
from embodied.reports.page import read_progress
from policies.vla.core import ChunkPolicy
from policies.vla.rloo import RLOO
from tests.integration.test_finetune import SMALL, run

TINY = [
    "world.stride=2", "world.steps=4", "world.batch_size=4", "world.unroll=2", "world.members=2", "world.tokens=8",
    "world.width=8", "world.layers=1", "rloo.updates=6", "rloo.groups=2", "rloo.rollouts=2", "rloo.horizon=2",
    "rloo.episodes=2", "world.rollouts=2", "baseline=false", "execute=4", "eval_episodes=1", "videos=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Two expert and two random episodes of a short task, one camera."""
    root = tmp_path_factory.mktemp("demos")
    shares = "shares={expert: 0.5, noisy: 0, near_miss: 0, failure: 0, random: 0.5}"
    words = ["collect", "env=desk-reach", "+env.kwargs.max_episode_steps=20", "image_size=32", "cameras=[front]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert cli.main([*words, "policy=mixed", shares, "episodes=4", "out=demos"]) == 0
    return root / "demos"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(truth, "UPDATES", 3)  # of the inverse model


def test_a_policy_practises_and_is_kept_only_where_it_is_better(demos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [f"data={demos}", "labels.precision=0.5", f"world.data=[{demos}]", *SMALL, *TINY, "stages=[imitate,world]"]
    monkeypatch.setattr(imagining, "refusal", lambda told: None)  # four updates teach no world
    status = run(*words, "run=straight")
    told, errors = capsys.readouterr()
    assert status == 0, errors
    for part in ("after 8 actions", "nothing changed 1", "action read back R²", "Kept: the former policy."):
        assert part in told
    folder = tmp_path / "straight" / "world"
    truth = json.loads((folder / "model" / "truth.json").read_text())
    assert set(truth["error"]) == {"8", "16"}
    assert set(truth["happened"]) == {"real", "world", "blind", "copy"}
    kept = json.loads((folder / "kept.json").read_text())
    assert (kept["kept"], kept["compared"]["starts"]) == ("former", 2)
    former = ChunkPolicy.load(tmp_path / "straight" / "imitate" / "policy")
    stands = ChunkPolicy.load(folder / "policy")
    assert all(value.equal(stands.state_dict()[name]) for name, value in former.state_dict().items())
    page = (tmp_path / "straight" / "report.html").read_text()
    assert "How true the learned world is" in page
    assert "Whether practice is kept" in page

    step, left = RLOO.step, [5]

    def stops(self):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(RLOO, "step", stops)
    assert run(*words, "run=stopped") == cli.EXIT_INTERRUPTED
    monkeypatch.setattr(RLOO, "step", step)
    assert run("run=stopped", "resume=true") == 0
    curves = [read_progress(tmp_path / name / "world/practice/progress.csv") for name in ("straight", "stopped")]
    assert curves[0] == curves[1]
    made = [(tmp_path / name / "world/practised/policy.safetensors").read_bytes() for name in ("straight", "stopped")]
    assert made[0] == made[1]
    assert run("run=stopped", "world.steps=9", "stages=[world]") == cli.EXIT_USER_ERROR
    assert "world.steps must stay 4" in capsys.readouterr().err


def test_nobody_practises_in_a_world_that_is_not_true(demos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    told = {"error": {"8": {"world": 0.9}, "16": {"world": 1.2}}}
    assert "got 1.20 after 16 actions" in str(imagining.refusal(told))
    monkeypatch.setattr(imagining, "refusal", lambda told: "no better than “nothing changed”")
    words = [f"data={demos}", "labels.precision=0.5", *SMALL, *TINY, "world.rollouts=1"]
    assert run(*words, "run=x", "stages=[imitate,world]") == cli.EXIT_USER_ERROR
    assert "no better than “nothing changed”" in capsys.readouterr().err
    assert "How true the learned world is" in (tmp_path / "x" / "report.html").read_text()
    assert not (tmp_path / "x" / "world" / "practised").exists()
    gathered = (tmp_path / "x" / "world" / "gathered.json").stat().st_mtime_ns
    more = ["stages=[world]", f"world.data=[{demos}]"]  # as the refusal advises
    assert run("run=x", *more) == cli.EXIT_USER_ERROR
    assert "world.data must stay [], with which x/world/model was begun" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "x" / "world" / "model")
    assert run("run=x", *more) == cli.EXIT_USER_ERROR
    assert "no better than “nothing changed”" in capsys.readouterr().err
    assert (tmp_path / "x" / "world" / "gathered.json").stat().st_mtime_ns == gathered  # nothing is played again
    assert cli.main(["evaluate", "run=x", "episodes=1", "videos=0"]) == 0  # the former policy stands


def test_what_cannot_be_is_refused_before_anything_is_written(demos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def refused(*words):
        assert run(f"data={demos}", "stages=[imitate,world]", *words) == cli.EXIT_USER_ERROR
        return capsys.readouterr().err

    assert "world.stride must be 1, 2, 4 or 8" in refused("world.stride=3")
    assert "at most policy.horizon (4); got 8" in refused("world.stride=8", "policy.horizon=4")
    assert "members must be at least 2; got 1" in refused("world.members=1")
    assert "world.reward must be one of success, process" in refused("world.reward=clip")
    assert "rloo.scale must be more than 0" in refused("rloo.scale=0")
    assert "policy.backbone=null; got flow and None" in refused("policy.head=flow")
    assert "got l1 and SmolVLM" in refused("policy.backbone=SmolVLM")
    assert "chunked_rl or world, not both" in refused("stages=[imitate,chunked_rl,world]")
    assert "needs the success reward" in refused("labels.source=recorded")
    assert "world.width must be a multiple of 4" in refused("world.width=10")
    assert "world.learning_rate must be more than 0; got -1" in refused("world.learning_rate=-1")
    assert "rloo.learning_rate must be more than 0; got 0" in refused("rloo.learning_rate=0")
    assert "world.data" in refused("world.data=[nowhere]")
    assert not list(tmp_path.iterdir())
