"""Small SVG charts for the report; colours come from the page's CSS variables, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

HEIGHT = 240  # px
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 34  # margins, px


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: for the legend and the tooltips.
        x, y: the points, in order of x.
        low, high: the interval around each y, or empty.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    percent: bool = False,
    marks: bool = False,
    colour: int = 1,
    width: int = 470,
) -> str:
    """An inline SVG with one panel.

    Args:
        series: lines that share both axes; a point that is not finite is left out.
        x_label: what x counts.
        percent: y lies in [0, 1] and reads as per cent.
        marks: draw each point, with a tooltip.
        colour: the first line's colour, 1 to 3; later lines follow.
        width: in px, at which the text has its natural size.
    """
    series = [_finite(s) for s in series]
    x_low, x_high = _range([x for s in series for x in s.x], include=0.0)
    if percent:
        y_low, y_high, y_ticks = 0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]
    else:
        y_low, y_high = _range([y for s in series for y in (*s.y, *s.low, *s.high)])
        y_ticks = ticks(y_low, y_high)
        y_low, y_high = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])

    def px(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (width - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    def path(xs: Sequence[float], ys: Sequence[float]) -> str:
        return " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in zip(xs, ys, strict=True))

    parts = []
    for tick in y_ticks:
        text = f"{tick:.0%}" if percent else number(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{py(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in ticks(x_low, x_high):
        if tick <= x_high:
            x = px(tick)
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{number(tick)}</text>'
            )
    parts.append(f'<text class="tick" x="{width - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>')
    for index, s in enumerate(series):
        c = f"c{(colour - 1 + index) % 3 + 1}"
        if s.low:
            band = path(s.x, s.high) + " " + path(list(reversed(s.x)), list(reversed(s.low)))
            parts.append(f'<polygon class="band {c}" points="{band}"/>')
        parts.append(f'<polyline class="line {c}" points="{path(s.x, s.y)}"/>')
        shown = range(len(s.x)) if marks else range(max(len(s.x) - 1, 0), len(s.x))
        for i in shown:
            tip = _tip(s, i, x_label, percent)
            parts.append(
                f'<circle class="dot {c}" cx="{px(s.x[i]):.1f}" cy="{py(s.y[i]):.1f}" r="3.5">'
                f"<title>{tip}</title></circle>"
            )
    label = escape(", ".join(s.name for s in series))
    return f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def sparkline(values: Sequence[float], width: int = 120, height: int = 26) -> str:
    """A line without axes; values that are not finite are left out."""
    values = [v for v in values if math.isfinite(v)]
    low, high = _range(values)
    step = (width - 6) / max(len(values) - 1, 1)
    points = " ".join(
        f"{3 + i * step:.1f},{height - 4 - (v - low) / (high - low) * (height - 8):.1f}" for i, v in enumerate(values)
    )
    line = f'<polyline class="line c1" points="{points}"/>'
    return f'<svg class="spark" viewBox="0 0 {width} {height}" aria-hidden="true">{line}</svg>'


def interval_bar(value: float, low: float, high: float) -> str:
    """A share with its interval on a scale from 0 to 1."""
    return (
        '<svg class="interval" viewBox="0 0 200 22" aria-hidden="true">'
        '<rect class="track" x="0" y="9" width="200" height="4" rx="2"/>'
        f'<rect class="span" x="{200 * low:.1f}" y="7" width="{max(200 * (high - low), 2):.1f}" height="8" rx="4"/>'
        f'<circle class="dot c1" cx="{min(max(200 * value, 6), 194):.1f}" cy="11" r="6"/></svg>'
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from at or below low to at or above high.

    Steps are 1, 2, 2.5 or 5 times a power of ten.
    """
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [0.0 if i == 0 else i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """A short form: 1200000 → 1.2M, 0.04213 → 0.0421."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.3g}{suffix}"
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.3g}"


def _finite(s: Series) -> Series:
    """The points that can be drawn: a browser draws nothing after the first one that is no number."""
    columns = [column for column in (s.x, s.y, s.low, s.high) if len(column)]
    kept = [point for point in zip(*columns, strict=True) if all(map(math.isfinite, point))]
    return Series(s.name, *map(list, zip(*kept, strict=True))) if kept else Series(s.name, [], [])


def _range(values: Sequence[float], include: float | None = None) -> tuple[float, float]:
    """Lowest and highest value, never equal."""
    inside = [v for v in values if math.isfinite(v)] + ([] if include is None else [include])
    low, high = min(inside, default=0.0), max(inside, default=1.0)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-3):
        pad = 0.1 * abs(high) or 1.0
        return (low, high + pad) if include is not None else (low - pad, high + pad)
    return low, high


def _tip(s: Series, i: int, x_label: str, percent: bool) -> str:
    show = (lambda v: f"{v:.0%}") if percent else number
    interval = f" ({show(s.low[i])} to {show(s.high[i])})" if s.low else ""
    return escape(f"{s.name}: {show(s.y[i])}{interval} at {number(s.x[i])} {x_label}")
