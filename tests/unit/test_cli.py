"""The command line on a small config tree and a fake verb: what a person types, what they read back."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
import types
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf
from safetensors import SafetensorError

from embodied import cli
from embodied.config import compose, given
from embodied.errors import UserError
from rewards.chat import VLMError

ROOT = """\
defaults:
  - env: drawer
  - reward: clip
  - _self_
seed: 0
steps: 1000
rate: 0.5
videos: true
run: null
list: []
shares: {one: 0.5, two: 0.5}
"""


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """A verb `go` with its configs; the list it fills with the configs it ran on."""
    files = {
        "go.yaml": ROOT,
        "env/drawer.yaml": "id: embodied/drawer-v0\nkwargs: {}\n",
        "env/press.yaml": "id: embodied/press-v0\nkwargs: {}\n",
        "reward/clip.yaml": "goal: ???\nalpha: null\n",
        "reward/true.yaml": "of: task\n",
        "experiment/quick.yaml": "# @package _global_\nsteps: 5\nreward:\n  goal: quick\n",
    }
    for name, text in files.items():
        (tmp_path / "configs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "configs" / name).write_text(text)
    (tmp_path / "commands").mkdir()
    (tmp_path / "commands" / "go.py").write_text('"""Go somewhere.\n\n    embodied go reward.goal=there\n"""\n')
    monkeypatch.setattr(cli.paths, "configs", lambda: tmp_path / "configs")
    monkeypatch.setattr(cli, "COMMANDS", tmp_path / "commands")
    configs: list = []
    monkeypatch.setitem(sys.modules, "embodied.commands.go", types.SimpleNamespace(run=configs.append))
    return configs


def raising(error: BaseException, monkeypatch) -> None:
    def run(config):
        raise error

    monkeypatch.setitem(sys.modules, "embodied.commands.go", types.SimpleNamespace(run=run))


def test_values_reach_the_verb(ran):
    assert cli.main(["go", "reward.goal=there", "env=press", "steps=7", "run=runs/a"]) == 0
    config = OmegaConf.to_container(ran[0])
    assert config["env"]["id"] == "embodied/press-v0"
    assert (config["reward"]["goal"], config["steps"], config["run"]) == ("there", 7, "runs/a")
    assert "hydra" not in config


@pytest.mark.parametrize(
    "sentence",
    [
        "the drawer is open",
        "the robot's cup, upright",
        'a sign saying "stop" here',
        "100% full: yes = done",
        "back\\ slash",
        "抽屉开着",
        "ящик открыт",
        "引き出し🤖",
        "ouvert(e) à gauche",
        "put the ${item} away",
        "${oc.env:HOME}",
        "{item}",
        "[x] marks it",
        "a}",
        "ends in a back\\",
        "it says, back\\",
        "'red' cube",
        '"stop" is said',
        "5",
        "true",
    ],
)
def test_a_sentence_needs_no_quotes_of_its_own(ran, sentence):
    assert cli.main(["go", f"reward.goal={sentence}"]) == 0
    assert ran[0].reward.goal == sentence


def test_texts_in_lists_need_no_quotes_either(ran):
    assert cli.main(["go", "reward.goal=[抽屉开着,the robot's cup,a=b]"]) == 0
    assert ran[0].reward.goal == ["抽屉开着", "the robot's cup", "a=b"]


@pytest.mark.parametrize("folder", ["2026", "007", "1e3", "true", "a b,c='d'", "C:\\runs\\x\\"])
def test_a_folder_is_a_text_whatever_it_is_called(ran, folder):
    assert cli.main(["go", "reward.goal=x", f"run={folder}"]) == 0
    assert ran[0].run == folder


def test_a_switch_that_is_called_like_a_text_stays_one():
    assert compose("finetune", ["baseline=false"]).baseline is False
    assert compose("train", ["reward.baseline=false"]).reward.baseline == "false"


def test_a_setting_that_is_called_like_a_group_is_a_text_too(ran, tmp_path):
    (tmp_path / "configs" / "do.yaml").write_text("policy: null\n")
    (tmp_path / "configs" / "policy").mkdir()
    for word, value in (("runs/my run", "runs/my run"), ("5", "5"), ("null", None)):
        assert compose("do", [f"policy={word}"]).policy == value


def test_a_home_folder_is_found_where_the_shell_does_not(ran, monkeypatch):
    monkeypatch.setenv("HOME", "/home/some one")
    assert cli.main(["go", "reward.goal=~/x", "run=~/runs", "env.kwargs={data: ~/x}"]) == 0
    assert cli.main(["go", "reward.goal=x", "list=[~/a, ~/b]"]) == 0
    assert (ran[0].run, ran[0].reward.goal) == ("/home/some one/runs", "~/x")
    assert ran[1].list == ["/home/some one/a", "/home/some one/b"]


def test_a_goal_is_written_alike_everywhere(ran):
    assert cli.main(["go", "goal=the drawer, open"]) == 0
    assert ran[0].reward.goal == "the drawer, open"


def test_help_is_a_word_too(ran, capsys):
    assert cli.main(["help"]) == 0
    assert "usage: embodied VERB" in capsys.readouterr().out
    assert cli.main(["help", "go"]) == 0
    assert "Go somewhere." in capsys.readouterr().out
    assert cli.main(["help", "gone"]) == 2


def test_the_package_runs_as_a_module():
    asked = [sys.executable, "-m", "embodied", "list", "what=worlds"]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    assert (told.returncode, "desk-place" in told.stdout) == (0, True), told.stderr
    asked = [sys.executable, "-m", "embodied", "trian"]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    assert told.returncode == 2
    assert "train" in told.stderr


def test_hydra_syntax_still_works(ran):
    assert cli.main(["go", 'reward.goal=["one text", "two"]', "+env.kwargs.size=3", "++seed=4"]) == 0
    assert ran[0].reward.goal == ["one text", "two"]
    assert (ran[0].env.kwargs.size, ran[0].seed) == (3, 4)


def test_a_mapping_that_is_empty_by_default_takes_any_keys(ran):
    assert cli.main(["go", "reward.goal=x", "env.kwargs={size: 3, left.arm: here}"]) == 0
    assert ran[0].env.kwargs == {"size": 3, "left.arm": "here"}


def test_an_experiment_is_a_group_and_the_command_line_wins(ran):
    assert cli.main(["go", "experiment=quick"]) == 0
    assert cli.main(["go", "steps=6", "experiment=quick"]) == 0
    assert [c.steps for c in ran] == [5, 6]
    assert ran[0].reward.goal == "quick"


def test_a_choice_may_look_like_a_switch(ran):
    assert cli.main(["go", "reward=true"]) == 0
    assert ran[0].reward.of == "task"


def test_whole_numbers_may_be_written_as_powers(ran):
    assert cli.main(["go", "reward.goal=x", "steps=1e6"]) == 0
    assert ran[0].steps == 1_000_000
    assert isinstance(ran[0].steps, int)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gp"], "embodied: unknown verb 'gp'. Choose from go; did you mean go?"),
        (["go", "env=drawr"], "embodied go: unknown env 'drawr'. Choose from drawer, press; did you mean drawer?"),
        (["go", "reward=clap"], "embodied go: unknown reward 'clap'. Choose from clip, true; did you mean clip?"),
        (["go", "reward.gaol=x"], "did you mean reward.goal?"),
        (["go", "stesp=3"], "did you mean steps?"),
        (["go", "steps"], "settings are written key=value; got 'steps'"),
        (["go", "steps=lots"], "steps must be a whole number; got 'lots'"),
        (["go", "steps=1.5"], "steps must be a whole number; got 1.5"),
        (["go", "rate=fast"], "rate must be a number; got 'fast'"),
        (["go", "rate=true"], "rate must be a number; got True"),
        (["go", "videos=2"], "videos must be true or false; got 2"),
        (["go"], "reward.goal is missing: add reward.goal=…"),
        (["go", "steps=[1"], "cannot read 'steps=[1'"),
        (["go", "steps=1,2"], "steps must be a whole number; got '1,2'"),
        (["go", "+steps=1"], "Could not append to config. An item is already at 'steps'."),
        (["go", "reward.goal=x", "+stesp=3"], "unknown setting 'stesp'"),
        (["go", "=3"], "settings are written key=value; got '=3'"),
        (["go", "env=null"], "unknown env 'null'. Choose from drawer, press"),
        (["go", "rate=nan"], "rate must be a number; got nan"),
        (["go", "reward.alpha=nan"], "reward.alpha must be a number; got nan"),
        (["go", "seed=null"], "seed must be at least 0; got None"),
        (["go", "list=ab"], "list must be a list; got ab. Write list=[ab]."),
        (["go", "env.kwargs=5"], "env.kwargs must be a mapping, as env.kwargs={name: …}; got 5"),
        (["go", "env=press", "reward=null"], "unknown reward 'null'"),
        (["go", "env={id: x, kwarsg: {}}"], "unknown env '{id: x, kwarsg: {}}'"),
        (["go", "shares=5"], "shares must be a mapping, as shares={one: …}; got 5"),
        (["go", "shares=null"], "shares must be a mapping, as shares={one: …}; got None"),
        (["go", "shares={oen: 1}"], "unknown setting 'shares.oen'"),
        (["go", "shares={one: x}"], "shares.one must be a number; got 'x'"),
        (["go", "--hlep"], "unknown option --hlep"),
        (["go", "-v"], "unknown option -v"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(ran, capsys, words, expected):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert err.count("\n") == 1
    assert (out, ran) == ("", [])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("no such\n  thing"), "embodied go: no such thing"),
        (UserError("go: no such thing"), "embodied go: no such thing"),
        (ValueError("frames must be uint8"), "frames must be uint8"),
        (TypeError("frames must be a tensor"), "frames must be a tensor"),
        (FloatingPointError("head 'clip' must give finite numbers"), "head 'clip'"),
        (FileNotFoundError(errno.ENOENT, "No such file", "weights.bin"), "embodied go: weights.bin: No such file"),
        (VLMError("m", "an answer", "none"), "embodied go: m must give an answer; got none."),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full. Free some space"),
        (OSError(errno.ENOSPC, "No space left on device", "run/a.zip"), "the disk is full while writing run/a.zip"),
    ],
)
def test_a_users_error_while_running(ran, capsys, monkeypatch, error, expected):
    raising(error, monkeypatch)
    assert cli.main(["go", "reward.goal=x"]) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert err.count("\n") == 1


def test_a_full_disk_is_seen_through_another_error(ran, capsys, monkeypatch):
    error = RuntimeError("unexpected pos 64 vs 0")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    raising(error, monkeypatch)
    assert cli.main(["go", "reward.goal=x"]) == 2
    assert "the disk is full" in capsys.readouterr().err


def test_debug_shows_the_traceback(ran, monkeypatch):
    raising(UserError("nothing there"), monkeypatch)
    with pytest.raises(UserError, match="nothing there"):
        cli.main(["go", "reward.goal=x", "--debug"])


def test_a_fault_of_ours_keeps_its_traceback(ran, monkeypatch):
    raising(KeyError("lost"), monkeypatch)
    with pytest.raises(KeyError):
        cli.main(["go", "reward.goal=x"])


def test_ctrl_c(ran, capsys, monkeypatch):
    raising(KeyboardInterrupt(), monkeypatch)
    assert cli.main(["go", "reward.goal=x"]) == 130
    assert capsys.readouterr().err == "embodied go: stopped.\n"


SEVERAL = ["reward=[clip,contrast]", "reward.goal=the robot's cup, upright", "reward.contrast.negative=tipped over"]


def test_several_rewards_compose():
    """On the real configs: one goal for all parts, another setting for one of them."""
    config = compose("train", [*SEVERAL, "reward.clip.alpha=0", "reward.combine=product", "reward.shaping.scale=2"])
    reward = config.reward
    assert reward._target_ == "rewards.compose.composed_scorer"
    assert list(reward.parts) == ["clip", "contrast"]
    assert {part.goal for part in reward.parts.values()} == {"the robot's cup, upright"}
    assert (reward.parts.clip.alpha, reward.parts.contrast.negative) == (0, "tipped over")
    assert (reward.combine._target_, reward.shaping.scale) == ("rewards.combine.Product", 2)
    assert not any("shaping" in part for part in reward.parts.values())
    apart = compose("preview", [*SEVERAL, "reward.clip.goal=full", "reward.combine.weights={clip: 2, contrast: 1}"])
    assert [part.goal for part in apart.reward.parts.values()] == ["full", "the robot's cup, upright"]
    assert apart.reward.combine.weights == {"clip": 2, "contrast": 1}


@pytest.mark.parametrize(("words", "message"), [
    (["reward=[clip,clap]"], "must list rewards to compose; got 'clap'. .*did you mean clip"),
    (["reward=[clip,true]"], "must list rewards to compose; got 'true'"),
    (["reward=[]"], "must list rewards, each once"),
    (["reward=[clip,clip]"], "must list rewards, each once"),
    (["reward=[clip,contrast]"], "reward.contrast.negative is missing: add reward.contrast.negative=…"),
    ([*SEVERAL, "reward.gaol=x"], "unknown setting 'reward.gaol'. .*did you mean reward.goal"),
    ([*SEVERAL, "reward.clip.gaol=x"], "unknown setting 'reward.clip.gaol'. Did you mean reward.clip.goal"),
    ([*SEVERAL, "reward.clip.shaping.scale=2"], "unknown setting 'reward.clip.shaping.scale'"),
    ([*SEVERAL, "reward.combine=produkt"], "reward.combine must be a way to combine.*did you mean product"),
])  # fmt: skip
def test_compositions_that_cannot_be_are_named(words, message):
    with pytest.raises(UserError, match=message):
        compose("train", words)


def test_what_the_user_set_is_known_even_where_it_is_the_default():
    config = compose("train", ["steps=30000", "reward=true"])
    assert [given(config, key) for key in ("steps", "seed")] == [True, False]


def test_help_tells_how_to_compose():
    told = cli.verb_help("train")
    assert "reward=[clip,process]" in told
    assert "weighted_sum" in told
    assert "_composed" not in told


def test_help_shows_what_was_chosen_and_what_the_configs_say():
    told = cli.verb_help("train", ["reward=process", "steps=10"])
    assert "\n    demos: 5  # a number of expert episodes" in told
    assert "\n  reward:  # Process reward (Robo-Dopamine)" in told
    assert "\n  steps: 30000  # transitions" in told
    assert "rtsp://" in cli.verb_help("watch").partition("Settings")[2]
    assert "desk-\n" not in told


def test_a_reader_that_leaves_is_no_error(tmp_path):
    command = f"{sys.executable} -m embodied.cli train --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode in (0, cli.EXIT_PIPE)
    assert done.stderr == ""


def test_help(ran, capsys):
    assert cli.main(["--help"]) == 0
    assert "go          Go somewhere." in capsys.readouterr().out
    assert cli.main([]) == 2
    capsys.readouterr()
    assert cli.main(["go", "--help"]) == 0
    out = capsys.readouterr().out
    assert "embodied go reward.goal=there" in out
    assert "env=drawer\n      drawer press" in out
    assert "goal: ???" in out
    assert "steps: 1000" in out
    assert ran == []


def test_the_list_of_verbs_keeps_each_apart_from_its_text():
    lines = [line for line in cli.usage().splitlines() if line.startswith("  ") and not line.startswith("  embodied")]
    assert [re.match(r"  (\w+) {2,}\S", line)[1] for line in lines] == cli.verbs()


def test_help_shows_a_comment_of_several_lines_whole():
    (line,) = [line for line in cli.verb_help("judge").splitlines() if line.startswith("  counterfactual:")]
    assert "; false: none; null: those that the data mark" in line
    told = cli.verb_help("label", ["reward=keypoint"])
    assert "a LeRobot folder; null: nothing is fitted" in told


def test_help_is_quick_and_imports_nothing_heavy():
    heavy = ("torch", "numpy", "mujoco", "gymnasium", "hydra", "importlib.metadata")
    code = (
        f"import sys; from embodied import cli; cli.main(['--help'])\nprint([m for m in {heavy!r} if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    )  # seconds of CPU: load cannot fail it


def test_a_reader_that_has_left_before_the_first_line_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "embodied.cli", "collect", "--help"], stdout=writing, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("words", [["embodied", "train", "--help"], ["embodied.completion", "embodied watch "]])
def test_an_encoding_that_lacks_characters_keeps_nothing_from_a_reader(words):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, timeout=60, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u2026" in done.stdout


def test_streams_that_the_starter_closed_lead_nowhere():
    done = subprocess.run(
        ["bash", "-c", f"exec {sys.executable} -m embodied list what=worlds <&- >&- 2>&-"], timeout=120
    )
    assert done.returncode == 0
    code = "import os, sys; from embodied import console; console.settle(); print(os.open(os.devnull, os.O_RDONLY) > 2)"
    told = subprocess.run(["bash", "-c", f"{sys.executable} -c '{code}' <&- 2>&-"], capture_output=True, timeout=60)
    assert told.stdout == b"True\n"


def test_who_uses_hydra_too_finds_it_as_it_was(ran, tmp_path):
    with hydra.initialize_config_dir(str(tmp_path / "configs"), version_base=None):
        before = hydra.compose("go", ["reward.goal=up"])
        compose("go", ["reward.goal=down"])
        assert hydra.compose("go", ["reward.goal=up"]) == before


def test_words_of_another_encoding_are_refused_at_once(ran, capsys):
    assert cli.main(["go", "reward.goal=the caf\udce9 is open"]) == cli.EXIT_USER_ERROR  # as Python has Latin-1's é
    assert "settings must be texts in UTF-8; got 'reward.goal=the caf\\udce9 is open'" in capsys.readouterr().err
    assert ran == []
