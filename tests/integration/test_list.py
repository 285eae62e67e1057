"""`embodied list` says of everything that may be chosen what it is and what it needs."""

from __future__ import annotations

import json

import pytest

from embodied import catalogue, cli
from embodied.config import choices
from embodied.envs import WORLDS
from embodied.envs.bridge import make
from embodied.envs.world import World


def listed(capsys, *words: str) -> str:
    capsys.readouterr()
    assert cli.main(["list", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_every_choice_of_every_group_has_a_line(capsys):
    out = listed(capsys, "format=json")
    found = json.loads(out)
    assert set(found) == set(catalogue.KINDS)
    names = {kind: [entry["name"] for entry in of] for kind, of in found.items()}
    assert set(names["worlds"]) == set(choices("env")) == {*WORLDS, "gym"}
    assert names["rewards"] == choices("reward")
    assert names["combinations"] == choices("reward/combine")
    assert names["encoders"] == choices("encoder")
    assert names["learners"] == choices("policy")
    assert all(entry["text"] for of in found.values() for entry in of)


def test_what_it_is_and_what_it_needs_are_two_sentences(capsys):
    lines = [line for line in listed(capsys).splitlines() if " Needs " in line]
    assert len(lines) > 30
    assert [line for line in lines if line.partition(" Needs ")[0][-1] != "."] == []


def test_a_person_reads_the_same(capsys):
    lines = listed(capsys, "what=rewards").splitlines()
    assert lines[0] == "rewards (reward=NAME, or several: reward=[a,b])"
    (clip,) = [line for line in lines if line.startswith("  clip ")]
    assert clip.endswith("Needs a sentence true of success (goal).")
    assert len(lines) == 1 + len(choices("reward"))


@pytest.mark.parametrize(
    "name", ["desk-reach", "desk-stack", "reacher-blue", "humanoid-kneel", "cartpole", "drive-town"]
)
def test_a_worlds_task_is_the_one_it_has(name):
    (entry,) = [entry for entry in catalogue.entries("worlds") if entry.name == name]
    env = make(name)
    world = env.unwrapped
    assert isinstance(world, World)
    assert entry.text.partition(";")[0] == world.instruction
    env.close()


@pytest.mark.parametrize(("word", "nearest"), [("what=reward", "rewards"), ("format=jsn", "json")])
def test_a_wrong_word_gets_the_nearest_right_one(capsys, word, nearest):
    capsys.readouterr()
    assert cli.main(["list", word]) == 2
    assert f"did you mean {nearest}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("train env=desk-drawr", "worlds"),
        ("train reward=clap", "rewards"),
        ("train reward=[clap]", "rewards"),
        ("train encoder=embeded", "encoders"),
        ("train policy=rldp", "learners"),
        ("judge reward=[clip,contrast] reward.contrast.negative=x reward.combine=produkt", "combinations"),
        ("label data=desk-drawr-mixed", "worlds"),
        ("watch source=rtps://host/stream", "sources"),
    ],
)
def test_errors_name_it(capsys, words, kind):
    capsys.readouterr()
    assert cli.main(words.split()) == 2
    assert capsys.readouterr().err.rstrip().endswith(f"embodied list what={kind} says what each is.")
