"""What TAB offers: what the command line would take, nothing else, and at once."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from embodied import cli
from embodied.commands.completion import BASH, ZSH
from embodied.completion import candidates
from embodied.config import choices, composed, flatten

ROOT = Path(__file__).resolve().parents[2]


def offered(line: str) -> list[str]:
    return [word for word, _ in candidates(line)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("embodied tr", ["train"]),
        ("embodied help tr", ["train"]),
        ("embodied train --d", ["--debug"]),
        ("embodied train rew", ["reward=", "reward."]),
        ("embodied train reward=cl", ["reward=clip"]),
        ("embodied train reward=[cl", ["reward=[clip"]),
        ("embodied train reward=[clip,pro", ["reward=[clip,process"]),
        ("embodied train reward=[clip,process] reward.cl", ["reward.clip."]),
        ("embodied train reward=[clip,process] reward.combine=w", ["reward.combine=weighted_sum"]),
        ("embodied train reward=[clip,process] reward.combine=product reward.combine.n", ["reward.combine.names="]),
        ("embodied train reward.ba", ["reward.baseline="]),
        ("embodied train reward=process reward.outcome.d", ["reward.outcome.dense="]),
        ("embodied train go", ["goal="]),
        ("embodied train goal=the", []),
        ('embodied train goal="the drawer ', []),
        ("embodied train overlap=", ["overlap=true", "overlap=false"]),
        ("embodied train experiment=d", ["experiment=demo"]),
        ("embodied watch exp", []),
        ("embodied serve policy=", []),  # a run there, not a learner
        ("embodied evaluate run=l", ["run=latest"]),
        ("embodied list what=wo", ["what=worlds"]),
        ("embodied completion shell=", ["shell=bash", "shell=zsh"]),
        ("embodied trian rew", []),
        ("embodied train nothing.", []),
    ],
)
def test_what_a_line_may_go_on_with(line, words):
    assert offered(line) == words


def test_every_verb_is_offered_with_what_it_does():
    told = dict(candidates("embodied "))
    assert set(told) == {*cli.verbs(), "help"}
    assert all(told.values())


def walk(line: str, word: str = "") -> set[str]:
    """Every setting that can be come to by TAB alone."""
    found: set[str] = set()
    for each in offered(f"{line} {word}"):
        found |= walk(line, each) if each.endswith(".") else {each.removesuffix("=")}
    return found


@pytest.mark.parametrize("verb", cli.verbs())
def test_settings_are_those_of_the_verb(verb):
    base, chosen = composed(verb, [])
    known = {key for key, node in flatten(base) if not key.rpartition(".")[2].startswith("_")}
    leaves = {key for key in known if not any(other.startswith(f"{key}.") for other in known)}
    assert walk(f"embodied {verb}") - {"goal", "experiment"} == leaves | set(chosen)


@pytest.mark.parametrize("reward", [*choices("reward"), "[clip,process]"])
def test_settings_are_those_of_the_choices_on_the_line(reward):
    base, _ = composed("train", [f"reward={reward}"])
    known = {key.replace("reward.parts.", "reward.") for key, _ in flatten(base)}
    found = {key for key in walk(f"embodied train reward={reward}", "reward.") if key != "reward.combine"}
    assert found <= known
    assert found or reward == "true"  # the task's own has none


def test_it_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; from embodied.completion import candidates\n"
        "print(len(list(candidates('embodied train reward.'))))\n"
        "print([m for m in ('torch', 'mujoco', 'gymnasium', 'hydra', 'omegaconf') if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    count, heavy = done.stdout.splitlines()
    assert int(count) > 5
    assert heavy == "[]"
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 1  # seconds of CPU: load cannot fail it


@pytest.fixture
def script(tmp_path, capsys) -> Path:
    """What bash is given."""
    assert cli.main(["completion", "shell=bash"]) == 0
    (tmp_path / "embodied.bash").write_text(capsys.readouterr().out)
    return tmp_path / "embodied.bash"


def test_bash_gets_the_part_that_it_replaces(script):
    lines = ("embodied tra", "embodied train reward=proc", "embodied train rew")
    press = [f'COMP_LINE={line!r} COMP_POINT={len(line)}; _embodied; echo "${{COMPREPLY[*]}}"' for line in lines]
    told = subprocess.run(
        ["bash", "-c", "\n".join([f"source {script}", *press])], capture_output=True, text=True, cwd=ROOT
    )
    assert told.stderr == ""
    assert told.stdout.splitlines() == ["train", "process", "reward= reward."]


def test_a_folder_that_a_person_is_in_is_no_source_of_modules(tmp_path):
    (tmp_path / "yaml.py").write_text("raise SystemExit('not ours')")
    command = [sys.executable, "-P", "-m", "embodied.completion", "embodied tra"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout.split("\t")[0]) == (0, "train")
    assert " -P -m embodied.completion " in BASH
    assert " -P -m embodied.completion " in ZSH


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_reads_its_script(tmp_path):
    (tmp_path / "_embodied").write_text(ZSH)
    done = subprocess.run(["zsh", "-n", str(tmp_path / "_embodied")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_refused(capsys):
    assert cli.main(["completion", "shell=fish"]) == 2
    assert "shell must be bash or zsh; got 'fish'" in capsys.readouterr().err
