"""How good each episode of foreign data is, from a column that a person names.

Three forms are read, as public benchmarks have them: words (failure, suboptimal, successful), whole numbers from 1 to 5
(RoboReward's levels), and shares of the task that was done, in [0, 1]. Any other numbers are an order alone, higher
being better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from embodied.datasets import Dataset
from embodied.errors import UserError, nearest

LEVELS = 5  # of the ordinal scale
WORDS = {"failure": 0.0, "suboptimal": 1.0, "successful": 2.0}
SUCCESS = "successful"


@dataclass(frozen=True)
class Grade:
    """What one episode is worth.

    Attributes:
        quality: higher is better.
        success: whether the column says that it ended well; None where it is an order alone.
        ordinal: 1 to `LEVELS`, where the column has such.
    """

    quality: float
    success: bool | None = None
    ordinal: int | None = None


SUBOPTIMAL = Grade(WORDS["suboptimal"], False)


def grades(dataset: Dataset, column: str) -> list[Grade | None]:
    """Each episode's grade, from its first row; None where the column is empty.

    Raises:
        UserError: no such column, or values that are none of the three forms.
    """
    if column not in dataset.features:
        raise UserError(f"quality: {dataset.root} has no column {column!r}. {nearest(column, dataset.features)}")
    told = str(dataset.features[column]["dtype"])
    if told != "string" and not told.startswith(("int", "uint", "float", "bool")):
        raise UserError(f"quality must name a column of texts or numbers in {dataset.root}; {column!r} is of {told}.")
    values = [dataset.columns(i, [column], nulls=True)[column].reshape(-1)[0] for i in range(len(dataset))]
    if told == "string":
        return [_word(dataset, column, str(value)) if value else None for value in values]
    numbers = [float(value) for value in values]
    known = [number for number in numbers if not math.isnan(number)]
    whole = "int" in told and all(1 <= number <= LEVELS for number in known)
    share = "int" not in told and all(0 <= number <= 1 for number in known)
    return [None if math.isnan(number) else _number(number, whole=whole, share=share) for number in numbers]


def _word(dataset: Dataset, column: str, value: str) -> Grade:
    if value not in WORDS:
        raise UserError(f"quality: {column} of {dataset.root} must hold {', '.join(WORDS)}; got {value[:80]!r}.")
    return Grade(WORDS[value], value == SUCCESS)


def _number(value: float, *, whole: bool, share: bool) -> Grade:
    if whole:
        return Grade(value, value == LEVELS, int(value))
    return Grade(value, value == 1 if share else None)
