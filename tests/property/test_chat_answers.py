"""Two hundred forms in which models give the numbers they were asked for, each with the value it must be read as."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from rewards.chat.messages import VLMError, answered
from rewards.chat.numbers import parse_percentages, parse_score
from rewards.chat.tokens import answer_logprobs

MISSING = math.nan
MINUS = "\N{MINUS SIGN}"
WIDE = {ord(each): ord(each) + 0xFEE0 for each in "0123456789+%"}  # full-width signs
BEFORE = {
    "": True,
    "The gripper closed on the cup. ": True,
    "<think>It was 10 before, so <score>+10</score>?</think>\n": True,
    "It moved by 3.\n</think>\n\n": True,  # the first mark was part of the prompt
    "◁think▷maybe <score>90</score>◁/think▷": True,
    "<think>I should look closer: <score>": False,  # never ends
}
SCORES = {  # how a tag is written, and whether its number can be meant
    "<score>{}</score>": True,
    "<score> {} % </score>": True,
    "**<score>{}</score>**": True,
    "<score>**{}**</score>": True,
    "<SCORE>{}%</SCORE>": True,
    "`<score>{}</score>`": True,
    "&lt;score&gt;{}&lt;/score&gt;": True,
    "<score>{}</score> and again <score>{}</score>": True,
    "<score>{}": True,
    "Score: {}": True,
    "The score is **{}**": True,
    "<score>{} or 99</score>": False,
    "<score>none</score> {}": False,
    "Score: {}-99": False,
    "Score: {}/50": False,
    "Score: {},5": False,
    "from {} to 99": False,
}
BARE = {
    "{}": True,
    "**{}**": True,
    "{}%": True,
    "${}$": True,
    "\\boxed{{{}}}": True,
    "{}.": True,
    "{} percent": True,
    "{}/100": True,
    "{}/7": False,
    "{} 7": False,
    "": False,
}
NUMBERS = {"25": 0.25, "+40": 0.4, "-7.5": -0.075, f"{MINUS}30": -0.3, "0": 0.0, "250": 1.0, "-101": -1.0}


def score_forms() -> list[tuple[str, float]]:
    """Every tag after every beginning, with numbers in turn; every bare form with every number."""
    numbers = itertools.cycle(NUMBERS.items())
    forms = []
    for (before, whole), (form, readable) in itertools.product(BEFORE.items(), SCORES.items()):
        text, value = next(numbers)
        forms.append((before + form.format(text, text), value if whole and readable else MISSING))
    for (form, readable), (text, value) in itertools.product(BARE.items(), NUMBERS.items()):
        forms.append((form.format(text), value if readable else MISSING))
    forms += [(text.translate(WIDE), value) for text, value in NUMBERS.items() if MINUS not in text]
    return forms


def read(parse, *given) -> float:
    try:
        return parse(*given)[0]
    except ValueError:
        return MISSING


SCORE_FORMS = score_forms()


def test_there_are_two_hundred_forms_of_both_kinds():
    values = [value for _, value in SCORE_FORMS]
    assert len(values) >= 180
    assert 40 < sum(map(math.isnan, values)) < 140
    assert len(SCORE_FORMS) + len(LISTS) * len(WRAPPED) >= 200


@pytest.mark.parametrize(("said", "value"), SCORE_FORMS)
def test_a_score_is_read_or_missing(said, value):
    assert read(parse_score, said) == pytest.approx(value, nan_ok=True), said


LISTS = {
    "Frame {k}: {v}%": True,
    "**Frame {k}:** {v}%": True,
    "- Frame {k}: **{v}**": True,
    "Frame {k} - {v} %": True,
    "Frame {k} (after the grasp): {v}%": True,
    "| Frame {k} | {v}% |": True,
    '"Frame {k}": {v},': True,
    "Image {k} is {v} percent": True,
    "frame {k} = {v}/100": True,
    "{k}. {v}%": True,
    "({k}) {v}%": True,
    "{v}%": True,
    "{v}": True,
    "Frame {k}: {v}-99%": False,
    "Frame {k}: {v},5%": False,
    "Frame {k}: {v}/50": False,
    "Frame {k}: unknown": False,
    "Frame {k}: {v}% or 99%": False,
    "Frame {k}: -{v}%": False,
    "Frame 1{k}: {v}%": False,
}
WRAPPED = {
    "{}": True,
    "<think>Frame 1: 99%\nFrame 2: 99%</think>{}": True,
    "{}\nFrame 1: 98.5%": False,  # two values of one frame
    "<think>{}": False,
}


@pytest.mark.parametrize(("form", "readable"), LISTS.items())
@pytest.mark.parametrize(("around", "whole"), WRAPPED.items())
def test_a_list_is_read_or_missing(form, readable, around, whole):
    values = [10.0, 62.5, 100.0]
    lines = "\n".join(form.format(k=k + 1, v=f"{value:g}") for k, value in enumerate(values))
    said = around.format(lines)
    if readable and whole:
        assert parse_percentages(said, 3) == [0.1, 0.625, 1.0], said
    else:
        with pytest.raises(ValueError, match="value"):
            parse_percentages(said, 3)


def test_no_answer_breaks_a_reader():
    rng = random.Random(0)
    signs = ["<score>", "</score>", "<think>", "</think>", "Frame 1:", "50", "%", "-", MINUS, "{", "[", "**", "\n", " "]
    for _ in range(300):
        said = "".join(rng.choice(signs) for _ in range(rng.randint(0, 12)))
        assert isinstance(answered(said), str)
        value = read(parse_score, said)
        assert math.isnan(value) or -1 <= value <= 1
        value = read(parse_percentages, said, 1)
        assert math.isnan(value) or 0 <= value <= 1


WORDS = ("True", "true", " True", "\u0120True", "\u2581True", '"True', "**True", "TRUE", "True.", "\u201cTrue")


@pytest.mark.parametrize("word", WORDS)
def test_a_first_token_is_the_answer_by_its_text(word):
    true, false = answer_logprobs("it", [(word, -0.1), ("False", -2.4)], ["True", "False"])
    assert (true, false) == (-0.1, -2.4)


@pytest.mark.parametrize("word", ["<think>", "Truth", "Untrue", "T", "Not", "1", "", "\u0120"])
def test_a_first_token_that_is_another_is_none(word):
    """What is left for the answers is no probability of them."""
    with pytest.raises(VLMError, match=r"0\.000459 of the probability \(99\.95% is missing\)"):
        answer_logprobs("it", [(word, -0.0004), ("True", -8.0), ("False", -9.0)], ["True", "False"])


def test_the_same_word_counts_together_and_a_rest_is_no_more_than_is_left():
    top = [("True", math.log(0.5)), (" true", math.log(0.25)), ("The", math.log(0.2))]
    true, false = answer_logprobs("it", top, ["True", "False"])
    assert true == pytest.approx(math.log(0.75))
    assert false == pytest.approx(math.log(0.05))
