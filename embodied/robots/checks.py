"""Numbers from outside, checked where they come in: one that is no number would reach a motor as one."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def check_number(where: str, name: str, value: Any, *, above: float, most: float) -> None:
    """Refuse what is not a finite number in a range.

    Args:
        where: who asks, for the error.
        name: of the argument.
        value: what was given.
        above: it must be greater.
        most: it must not be greater.

    Raises:
        ValueError: it is none, or out of range.
    """
    if not is_finite(value) or not above < value <= most:
        raise ValueError(f"{where}: {name} must be above {above:g} and at most {most:g}; got {value!r}.")


def check_count(where: str, name: str, value: Any) -> None:
    """Refuse what is not a whole number of at least 1.

    Args:
        where: begins the error's text.
        name: of the setting.
        value: what came.

    Raises:
        ValueError: it is none, or below.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{where}: {name} must be a whole number of at least 1; got {value!r}.")


def is_finite(value: Any) -> bool:
    """Whether it is a number, and neither infinite nor NaN.

    Args:
        value: anything.
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
