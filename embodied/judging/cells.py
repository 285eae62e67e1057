"""Figures as text: what stands in a cell of a page's table, and of the terminal's."""

from __future__ import annotations

import math

from embodied.judging.figures import Figure
from embodied.judging.judgement import Judged

UNDEFINED = "\N{EN DASH}"


def cell(figure: Figure) -> str:
    """HTML: the value, and the interval below it."""
    if math.isnan(figure.value):
        return UNDEFINED
    if math.isnan(figure.low):
        return shown(figure.value)
    return f"{shown(figure.value)}<small>{shown(figure.low)} … {shown(figure.high)}</small>"


def shown(value: float) -> str:
    """Two decimals; a dash where it is undefined."""
    return UNDEFINED if math.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")


def row_class(judged: Judged) -> str:
    """HTML: what marks the row of a control."""
    return ' class="control"' if judged.control else ""


def lines(rows: list[list[str]]) -> list[str]:
    """A table for the terminal, a row a line; the first column is flush left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
