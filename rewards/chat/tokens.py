"""What a model's first token says of short answers: its text is compared, not its place in a list."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rewards.chat import VLMError

TOP = 20  # most likely tokens to read, what the API allows
LEAST_MASS = 0.5  # of the probability must lie on the answers: a model that mostly says something else is not answering
PIECES = str.maketrans({"\u0120": " ", "\u2581": " ", "\u010a": " "})  # how tokenizers write a space or a new line
AROUND = " \t\r\n\"'`*_.,:;!?()[]{}<>|\u201c\u201d\u2018\u2019\u00ab\u00bb"


def normal(token: str) -> str:
    """A token's or an answer's word: without case, spaces, quotes, Markdown and a tokenizer's own marks."""
    return token.translate(PIECES).strip(AROUND).casefold()


def answer_logprobs(asked: str, top: Sequence[tuple[str, float]], answers: Sequence[str]) -> list[float]:
    """log P of each answer from the likeliest first tokens.

    Tokens that are the same word count together. An answer that is not among them gets what is left at most: no more
    than the least of them, and than the probability that they leave over.

    Args:
        asked: who was asked, for errors.
        top: tokens and natural logarithms of their probabilities, ≤ 0.
        answers: words that differ from each other.

    Raises:
        VLMError: less than `LEAST_MASS` of the probability lies on the answers, as where a model reasons first
            (`<think>`): then a share of what little is left would be no answer.
    """
    words = [(normal(token), value) for token, value in top]
    found = [[value for word, value in words if word == normal(answer)] for answer in answers]
    if not any(found):
        raise VLMError(
            asked,
            f"one of {', '.join(map(repr, answers))} among its {TOP} most likely tokens",
            ", ".join(repr(token) for token, _ in top[:5]),
        )
    mass = sum(math.exp(value) for values in found for value in values)
    check_mass(asked, mass, answers, [token for token, _ in top])
    least, left = min(value for _, value in top), 1 - sum(math.exp(value) for _, value in top)
    rest = min(least, math.log(left)) if left > 1e-6 else least  # probabilities are rounded on their way
    return [min(0.0, float(np.logaddexp.reduce(values))) if values else min(0.0, rest) for values in found]


def check_mass(
    asked: str, mass: float, answers: Sequence[str], said: Sequence[str] = (), *, least: float = LEAST_MASS
) -> None:
    """Refuse probabilities of answers that the model would hardly give.

    Args:
        asked: what was asked, for the error.
        mass: probability of all answers together.
        said: the likeliest tokens.
        least: mass that must be there.

    Raises:
        VLMError: says how much of the probability is missing.
    """
    if mass < least:
        tokens = f", before {', '.join(repr(token) for token in said[:5])}" if said else ""
        raise VLMError(
            asked,
            f"{' or '.join(map(repr, answers))} as its first word",
            f"them with {mass:.3g} of the probability ({1 - mass:.2%} is missing){tokens}",
            "A model that reasons first must be told not to.",
        )
