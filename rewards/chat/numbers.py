"""The numbers in a chat model's answer: a score, a grade, a percentage; whatever cannot be meant is missing.

Models wrap what they were asked for: in bold, in LaTeX, after their reasoning, with a typographic minus, or bare. Every
form here has one meaning; where an answer could mean two numbers, it has none.
"""

from __future__ import annotations

import re

from rewards.chat.messages import answered, plain

NUMBER = r"[+-]?\s?\d+(?:\.\d+)?"
UNIT = r"\s*(?:/\s*100(?!\d)|%|percent\b)?"
# A number that goes on is another number: 20-30, 25/50, 1,5, 3 or 4.
ALONE = r"(?!\d|[.,]\d|\s*%?\s*(?:[-\u2012-\u2015~]|/(?!\s*100(?!\d))|to\b|or\b|and\b)\s*[+-]?\d)"
TAG = re.compile(rf"<\s*score\s*>\s*({NUMBER}){UNIT}\s*(?:<\s*/\s*score\s*>|$)", re.IGNORECASE)
ANY_TAG = re.compile(r"<\s*/?\s*score\s*>", re.IGNORECASE)
LABELLED = re.compile(rf"\bscore\s*(?:[:=]|is\b|of\b)\s*({NUMBER}){ALONE}{UNIT}{ALONE}", re.IGNORECASE)
BARE = re.compile(rf"({NUMBER}){UNIT}\s*\.?")
FRAME = re.compile(
    rf"\b(?:frame|image)\s*(\d+)\s*(?:\([^()]*\)\s*)?(?:[:=|]|->|\u2192|\s[-\u2012-\u2015]\s|\bis\b)\s*[~\u2248]?\s*"
    rf"({NUMBER}){ALONE}{UNIT}{ALONE}",
    re.IGNORECASE,
)
GRADE = re.compile(rf"\banswer\s*(?:[:=]|is\b)\s*({NUMBER})(?:\s*/\s*5(?!\d))?{ALONE}(?![\w%])", re.IGNORECASE)
BARE_GRADE = re.compile(
    r"\(?([1-5])\)?(?:\s*/\s*5)?\s*\.?|([1-5])\s*[-\u2012-\u2015:.]\s*[a-z][a-z ]*\.?", re.IGNORECASE
)
ANSWER = re.compile(rf"<\s*answer\s*>\s*({NUMBER}){UNIT}\s*\.?\s*(?:<\s*/\s*answer\s*>?|$)", re.IGNORECASE)
ANY_ANSWER = re.compile(r"<\s*/?\s*answer\b", re.IGNORECASE)
NUMBERED = re.compile(rf"\(?(\d+)\s*[.):]\s+({NUMBER}){UNIT}")
LISTED = re.compile(rf"[\[(]?\s*((?:{NUMBER}){UNIT}(?:\s*[,;\n]\s*(?:{NUMBER}){UNIT})*)\s*[\])]?\.?")


def parse_score(text: str) -> list[float]:
    """[hop] of a `score` tag, or of an answer that is a score alone; a percentage clipped to ±100, in [-1, 1].

    Args:
        text: the answer.

    Raises:
        ValueError: no number that must be the score, or several that differ.
    """
    said = plain(answered(text))
    found = TAG.findall(said)
    if not found and not ANY_TAG.search(said):
        whole = BARE.fullmatch(said.strip())
        found = [whole[1]] if whole else LABELLED.findall(said)
    values = {_number(each) for each in found}
    if len(values) != 1:
        raise ValueError(f"there must be one number in a score tag; got {len(values)}")
    return [min(max(values.pop(), -100.0), 100.0) / 100]


def parse_grade(text: str) -> list[float]:
    """[progress] of a grade from 1 to 5, as `ANSWER: 4`, or of an answer that is a grade alone: (grade − 1) / 4.

    RoboReward's form. Its repository's adapter takes any digit where this form is missing, and 1 where there is none;
    here both are missing.

    Args:
        text: the answer.

    Raises:
        ValueError: no grade, several that differ, or one that is not a whole number from 1 to 5.
    """
    said = plain(answered(text)).strip()
    found = GRADE.findall(said)
    if not found and (whole := BARE_GRADE.fullmatch(said)):
        found = [whole[1] or whole[2]]
    values = {_number(each) for each in found}
    if len(values) != 1 or (grade := values.pop()) not in (1, 2, 3, 4, 5):
        raise ValueError(f"there must be one ANSWER: from 1 to 5; got {', '.join(found) or 'none'}")
    return [(grade - 1) / 4]


def parse_answer_percent(text: str) -> list[float]:
    """[progress] of a percentage in `answer` tags, or of an answer that is a number alone; clipped to ±100, in [-1, 1].

    SOLE-R1's form, `<think>…</think><answer>28%</answer>`, whose last tag may be cut short.

    Args:
        text: the answer.

    Raises:
        ValueError: no number that must be the answer, or several that differ.
    """
    said = plain(answered(text)).strip()
    found = ANSWER.findall(said)
    if not found and not ANY_ANSWER.search(said) and (whole := BARE.fullmatch(said)):
        found = [whole[1]]
    values = {_number(each) for each in found}
    if len(values) != 1:
        raise ValueError(f"there must be one number in an answer tag; got {len(values)}")
    return [min(max(values.pop(), -100.0), 100.0) / 100]


def parse_percentages(text: str, count: int) -> list[float]:
    """Progress of frames 1 to `count` in their order, each in [0, 1].

    Read as "Frame 1: 0%" wherever that is said; else from an answer that is nothing but a numbered list, or `count`
    numbers.

    Args:
        text: the answer.

    Raises:
        ValueError: a frame is left out, unknown or given two values, or a value is outside 0 to 100.
    """
    said = plain(answered(text)).strip()
    pairs = FRAME.findall(said) or _numbered(said) or _listed(said, count)
    found: dict[int, float] = {}
    for number, value in pairs:
        if found.setdefault(int(number), _number(value)) != _number(value):
            raise ValueError(f"every frame must have one value; got two of frame {number}")
    if sorted(found) != list(range(1, count + 1)):
        raise ValueError(f"there must be a value of each of {count} frames; got frames {sorted(found)}")
    if not all(0 <= value <= 100 for value in found.values()):
        raise ValueError(f"values must be in 0 to 100; got {sorted(found.values())}")
    return [found[number] / 100 for number in range(1, count + 1)]


def _numbered(said: str) -> list[tuple[str, str]]:
    """`1. 50%` on every line."""
    found = [NUMBERED.fullmatch(line.strip()) for line in said.splitlines() if line.strip()]
    return [(each[1], each[2]) for each in found if each] if all(found) else []


def _listed(said: str, count: int) -> list[tuple[str, str]]:
    """As many numbers as there are frames, and nothing else."""
    whole = LISTED.fullmatch(said)
    values = re.findall(NUMBER, re.sub(r"/\s*100\b", "", whole[1])) if whole else []
    return [(str(k + 1), value) for k, value in enumerate(values)] if len(values) == count else []


def _number(text: str) -> float:
    return float(re.sub(r"\s", "", text))
