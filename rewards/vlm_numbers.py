"""The numbers in a chat model's answer: one score, or a percentage a frame; whatever cannot be meant is missing.

Models wrap what they were asked for: in bold, in LaTeX, after their reasoning, with a typographic minus, or bare. Every
form here has one meaning; where an answer could mean two numbers, it has none.
"""

from __future__ import annotations

import re

from rewards.chat import answered, plain

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
NUMBERED = re.compile(rf"\(?(\d+)\s*[.):]\s+({NUMBER}){UNIT}")
LISTED = re.compile(rf"[\[(]?\s*((?:{NUMBER}){UNIT}(?:\s*[,;\n]\s*(?:{NUMBER}){UNIT})*)\s*[\])]?\.?")


def parse_score(text: str) -> list[float]:
    """[hop] of a `score` tag, or of an answer that is a score alone; a percentage clipped to ±100, in [-1, 1].

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


def parse_percentages(text: str, count: int) -> list[float]:
    """Progress of frames 1 to `count` in their order, each in [0, 1].

    Read as "Frame 1: 0%" wherever that is said; else from an answer that is nothing but a numbered list, or `count`
    numbers.

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
