"""The arithmetic of VLM progress readers, in float64 NumPy, without a model; asking is in tests/integration."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from rewards.chat import Message, VLMError
from rewards.chat.grm import GenerativeGRM, parse_score
from rewards.chat.reading import Questions, asked_rows, fill, thinned
from rewards.core import Features
from rewards.vlm_progress import calibrated, parse_percentages


@pytest.mark.parametrize(
    ("said", "hop"),
    [
        ("<score>+25</score>", 0.25),
        ("It fell back. <score> -7.5 % </score>", -0.075),
        ("<score>0</score>", 0.0),
        ("<score>250</score>", 1.0),  # clipped to ±100
        ("<score>-101</score>", -1.0),
        ("<score>5</score>, I repeat: <score>5</score>", 0.05),
    ],
)
def test_scores(said, hop):
    assert parse_score(said) == [hop]


@pytest.mark.parametrize("said", ["", "25 or 30", "<score>", "<score>nan</score>", "<score>1</score><score>2</score>"])
def test_what_is_no_score(said):
    with pytest.raises(ValueError, match="one number in a score tag"):
        parse_score(said)


def test_percentages_keep_their_values():
    """OpenGVL makes a list with decimals sum to 100; here each stays what was said of its frame."""
    assert parse_percentages("Frame 2: 50%\nFrame 1: 12.5 %\nFrame 3: 100%", 3) == [0.125, 0.5, 1.0]


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ("Frame 1: 5%", r"each of 2 frames; got frames \[1\]"),
        ("Frame 1: 5%\nFrame 2: 6%\nFrame 3: 7%", r"got frames \[1, 2, 3\]"),
        ("Frame 1: 5%\nFrame 2: -6%", "in 0 to 100"),
        ("Frame 1: 5%\nFrame 2: 6%\nFrame 2: 7%", "two of frame 2"),
    ],
)
def test_what_is_no_list(said, match):
    with pytest.raises(ValueError, match=match):
        parse_percentages(said, 2)


def test_a_calibration_is_of_medians():
    first, last = [-9.0, -7.0, -100.0, math.nan], [-1.0, -0.5, -3.0]
    assert calibrated(first, last) == (-9.0, -1.0)
    with pytest.raises(ValueError, match="higher at the end of demonstrations than at their start; got -9 and -1"):
        calibrated(last, first)


def test_rows_asked_do_not_move_as_time_goes_on():
    for rows in range(1, 30):
        assert asked_rows(rows, 4) == [row for row in asked_rows(30, 4) if row < rows]


def test_thinned_rows_keep_both_ends():
    rows = list(range(0, 100, 3))
    for count in range(2, 40):
        kept = thinned(rows, count)
        assert len(kept) == min(count, len(rows)) == len(set(kept))
        assert (kept[0], kept[-1]) == (rows[0], rows[-1])
        assert np.diff(kept).max() - np.diff(kept).min() <= 3


def test_fill():
    values, at = [math.nan, 0.2, math.nan, 0.8], [0, 2, 4, 6]
    assert_allclose(fill(values, at, 8, "hold"), [0, 0, 0.2, 0.2, 0.2, 0.2, 0.8, 0.8])
    assert_allclose(fill(values, at, 8, "linear"), np.interp(np.arange(8), [2, 6], [0.2, 0.8]), atol=1e-6)
    assert torch.equal(fill([math.nan], [0], 3, "hold"), torch.zeros(3))


def test_a_spent_budget_asks_no_more():
    class Model:
        name, asked = "counting", 0

        def ask(self, messages):
            self.asked += 1
            return "7"

    model = Model()
    ask = Questions(model, max_calls=2)
    for text in ("a", "b", "a"):
        assert ask.numbers([Message("user", text)], lambda said: [float(said)], "number") == [7.0]
    with pytest.raises(VLMError, match="no more than 2 answers") as caught:
        ask.numbers([Message("user", "c")], lambda said: [float(said)], "number")
    assert not caught.value.answered
    assert (model.asked, ask.calls, ask.remembered) == (2, 2, 1)


def test_a_prompt_of_a_model_s_own_may_hold_braces_and_a_task_too():
    """As published prompts do, whose form is JSON; `str.format` would end in a KeyError."""

    class Asked:
        name = "asked"

        def ask(self, messages):
            (self.message,) = messages
            return "<score>+50</score>"

    model, frames = Asked(), np.zeros((1, 2, 4, 4, 3), np.uint8)
    prompt = '{"task": "{task}", "form": {"score": 0}} {start} {goal} {before} {after}'
    head = GenerativeGRM("close {task} ${x}", ask=Questions(model), prompt=prompt, stride=1, fusion="incremental")
    features = Features(views={"main": torch.zeros(1, 2, 4)}, frames={"main": torch.from_numpy(frames)})
    assert head.score(features)[0].tolist() == [0.0, 0.5]
    assert model.message.text == ('{"task": "close {task} ${x}", "form": {"score": 0}} <image>  <image> <image>')
    with pytest.raises(ValueError, match=r"prompt must have a place \{after\}"):
        GenerativeGRM("close it", ask=Questions(model), prompt="{start} {before}")
