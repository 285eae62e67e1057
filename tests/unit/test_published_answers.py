"""What published models say is read, however it is wrapped; what cannot be meant is refused."""

import pytest

from rewards.chat.numbers import parse_answer_percent, parse_grade, parse_score

GRADED = ("{}", "ANSWER: {}", "ANSWER: {}\n", "**ANSWER:** {}", "ANSWER: **{}**", "answer : {}", "ANSWER: {}/5")
GRADED += ("Answer: {}.",)
GRADES = {form.format(grade): (grade - 1) / 4 for grade in (1, 2, 3, 4, 5) for form in GRADED}
GRADES |= {
    f"The cup lies on its side in the end.\n\n{form.format(grade)}": (grade - 1) / 4
    for grade in (1, 2, 3, 4, 5)
    for form in GRADED[1:]
}
GRADES |= {
    "<think>ANSWER: 2? It is upright, so more.</think>ANSWER: 5": 1.0,
    "ANSWER: 4 - Near Completion": 0.75,
    "3 - Partial Completion": 0.5,
    "\\boxed{ANSWER: 2}": 0.25,
    "ANSWER: 3\n\nANSWER: 3": 0.5,
}
TAGGED = ("<score>{:+d}%</score>", "<score>{:d}%</score>", "<score> {:+d} % </score>", "**<score>{:+d}%</score>**")
HOPS = {
    f"{before}{form.format(hop)}": hop / 100
    for hop in (-100, -37, -5, 0, 8, 42, 100)
    for form in TAGGED
    for before in ("", "\n", "AFTER shows the gripper nearer to the cup.\n")
}
HOPS |= {"<score>+250%</score>": 1.0, "<score>\N{MINUS SIGN}12%</score>": -0.12, "<score>+5%": 0.05, "+15%": 0.15}
PERCENTAGES = {
    f"{thought}<answer>{form.format(value)}{end}": value / 100
    for value in (-12, 0, 5, 10, 24, 28, 33, 100)
    for form in ("{}%", "{}", " {}% ")
    for thought in ("<think>At the previous timestep the gripper was at 10%, now nearer.</think>", "")
    for end in ("</answer>", "</answer")
}
PERCENTAGES |= {
    "<think>It was 28% before.</think>\n<answer>**32%**</answer>": 0.32,
    "the gripper is closer; it was 10 %.</think><answer>24%</answer>": 0.24,  # the first mark is part of the prompt
    "<answer>250%</answer>": 1.0,
    "<answer>-300</answer>": -1.0,
    "40%": 0.4,
}
NONSENSE = [
    "",
    "I cannot judge this.",
    "<think>It is done, so",
    "ANSWER:",
    "<score></score>",
    "<answer></answer>",
    "%",
    "NaN",
]
NONSENSE += [
    "ANSWER: lots",
    "<score>lots</score>",
    "<answer>a lot</answer>",
    "between 2 and 4",
    "{}",
    "[[[",
    "\x00",
]


@pytest.mark.parametrize(
    ("parse", "answers"), [(parse_grade, GRADES), (parse_score, HOPS), (parse_answer_percent, PERCENTAGES)]
)
def test_published_forms_are_read(parse, answers):
    assert len(answers) >= 50
    assert {said: parse(said) for said in answers} == {said: [value] for said, value in answers.items()}


@pytest.mark.parametrize("parse", [parse_grade, parse_score, parse_answer_percent])
@pytest.mark.parametrize("said", NONSENSE)
def test_nonsense_is_refused(parse, said):
    with pytest.raises(ValueError, match="there must be one"):
        parse(said)


@pytest.mark.parametrize(
    "said",
    [
        "ANSWER: 0", "ANSWER: 6", "ANSWER: -3", "ANSWER: 3.5", "ANSWER: 2 or 3", "ANSWER: 2-3", "ANSWER: 80%",
        "ANSWER: 2\nANSWER: 4", "The reward is 1", "ANSWER: 45", "0", "6", "3.5",
    ],
)  # fmt: skip
def test_a_grade_that_is_none_is_refused(said):
    with pytest.raises(ValueError, match="ANSWER: from 1 to 5"):
        parse_grade(said)


@pytest.mark.parametrize(
    "said",
    ["<answer>20%</answer> <answer>40%</answer>", "<answer>20-30%</answer>", "<answer>1/2</answer>", "20% or 30%"],
)
def test_two_percentages_are_none(said):
    with pytest.raises(ValueError, match="answer tag; got"):
        parse_answer_percent(said)
