"""The judge's plots: SVG panels in the page's colours, and films with the potential drawn under them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from embodied.reports.charts import number, ticks

WIDTH, HEIGHT = 330, 220  # of a panel, px
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 34
FILM_FRAMES, TILE, GAP = 6, 104, 3  # pictures of a film, their height and what is between them, px


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        name: for the tooltip.
        x, y: the points.
        colour: 1 to 6, a CSS class of the page.
        low, high: a band around y, or empty.
        dots: draw the points too.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: int = 1
    low: Sequence[float] | np.ndarray = ()
    high: Sequence[float] | np.ndarray = ()
    dots: bool = False


def panel(
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
    level: float | None = None,
) -> str:
    """An SVG of curves over x in [0, 1].

    Args:
        curves: drawn in this order.
        x_label: what x is.
        y_range: None: what the curves need.
        diagonal: draw y = x.
        level: draw a horizontal line there.
    """
    values = [float(v) for c in curves for part in (c.y, c.low, c.high) for v in part]
    low, high = y_range or spread([*values, *([] if level is None else [level])])

    def point(x: float, y: float) -> str:
        across = LEFT + x * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM):.1f}"

    def path(xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray) -> str:
        return " ".join(point(float(x), float(y)) for x, y in zip(xs, ys, strict=True))

    def line(kind: str, start: str, stop: str) -> str:
        (x1, y1), (x2, y2) = start.split(","), stop.split(",")
        return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'

    parts = []
    for tick in ticks(low, high, 4):
        if low - 1e-9 <= tick <= high + 1e-9:
            y = point(0.0, tick).split(",")[1]
            parts.append(line("grid", point(0.0, tick), point(1.0, tick)))
            parts.append(
                f'<text class="tick" x="{LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
            )
    for share in (0.0, 0.5, 1.0):
        x = point(share, low).split(",")[0]
        anchor = "end" if share == 1 else "middle"
        parts.append(f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 15}" text-anchor="{anchor}">{share:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    if diagonal:
        parts.append(line("axis dashed", point(0.0, 0.0), point(1.0, 1.0)))
    if level is not None:
        parts.append(line("axis dashed", point(0.0, level), point(1.0, level)))
    for c in curves:
        if len(c.low):
            band = f"{path(c.x, c.high)} {path(c.x[::-1], c.low[::-1])}"
            parts.append(f'<polygon class="band c{c.colour}" points="{band}"/>')
        title = f"<title>{escape(c.name)}</title>"
        parts.append(f'<polyline class="line c{c.colour}" points="{path(c.x, c.y)}">{title}</polyline>')
        for x, y in zip(c.x, c.y, strict=True) if c.dots else ():
            px, py = point(float(x), float(y)).split(",")
            tip = escape(f"{c.name}: {x:.2f}, {y:.2f}")
            parts.append(f'<circle class="dot c{c.colour}" cx="{px}" cy="{py}" r="4"><title>{tip}</title></circle>')
    return _svg(WIDTH, HEIGHT, ", ".join(c.name for c in curves), parts)


def dot_rows(rows: Sequence[tuple[str, int, Sequence[tuple[float, str]]]], level: float | None) -> str:
    """Values as dots, one row a group, and a vertical line at the threshold.

    Args:
        rows: (name, colour, [(value, tooltip), …]).
        level: the threshold, or None.
    """
    left, step, top = 72, 26, 6
    height = top + step * len(rows) + 26
    low, high = spread([v for *_, dots in rows for v, _ in dots] + ([] if level is None else [level]))

    def px(value: float) -> float:
        return left + 6 + (value - low) / (high - low) * (WIDTH - left - RIGHT - 12)

    parts = []
    for r, (name, colour, dots) in enumerate(rows):
        y = top + step * (r + 0.5)
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        for value, tip in dots:
            parts.append(
                f'<circle class="dot c{colour}" cx="{px(value):.1f}" cy="{y:.1f}" r="4.5" opacity="0.75">'
                f"<title>{escape(tip)}</title></circle>"
            )
    bottom = top + step * len(rows)
    if level is not None:
        x = f"{px(level):.1f}"
        parts.append(f'<line class="axis dashed" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')
    for value in (tick for tick in ticks(low, high, 4) if low <= tick <= high):
        parts.append(
            f'<text class="tick" x="{px(value):.1f}" y="{bottom + 16}" text-anchor="middle">{number(value)}</text>'
        )
    return _svg(WIDTH, height, "potential at the end, by group", parts)


def film(frames: np.ndarray, said: np.ndarray, level: float | None, colour: int) -> str:
    """Evenly spaced frames of an episode, and under them its potential with the threshold.

    Args:
        frames: (T, H, W, 3) uint8.
        said: (T,) potentials.
        level: the threshold, or None.
        colour: of the curve.
    """
    count = min(FILM_FRAMES, len(frames))
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    image = strip(frames[chosen])
    long, tall = 460, 64
    low, high = spread([*said.tolist(), *([] if level is None else [level])])

    def py(value: float) -> str:
        return f"{tall - 5 - (value - low) / (high - low) * (tall - 10):.1f}"

    half = long / count / 2  # the curve meets each frame in its middle
    points = " ".join(
        f"{half + i / max(len(said) - 1, 1) * (long - 2 * half):.1f},{py(float(value))}" for i, value in enumerate(said)
    )
    parts = [f'<polyline class="line c{colour}" points="{points}"/>']
    if level is not None:
        parts.insert(0, f'<line class="axis dashed" x1="0" x2="{long}" y1="{py(level)}" y2="{py(level)}"/>')
        above = float(py(level)) - 4
        y = above if above > 10 else above + 18
        parts.append(f'<text class="tick" x="2" y="{y:.1f}">threshold</text>')
    return image + _svg(long, tall, "potential under the frames", parts)


def strip(frames: np.ndarray) -> str:
    """Frames side by side, (N, H, W, 3) uint8, as an image of the page."""
    tiles = [Image.fromarray(frame) for frame in frames]
    width = round(TILE * tiles[0].width / tiles[0].height)
    sheet = Image.new("RGB", (len(tiles) * (width + GAP) - GAP, TILE), "white")
    for k, tile in enumerate(tiles):
        sheet.paste(tile.resize((width, TILE), Image.Resampling.LANCZOS), (k * (width + GAP), 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    picture = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="frames from start to end" src="data:image/jpeg;base64,{picture}">'


def legend(names: Sequence[tuple[str, int]]) -> str:
    """Names in their colours."""
    return '<p class="legend">' + "".join(f'<span><i class="c{c}"></i>{escape(n)}</span>' for n, c in names) + "</p>"


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest, a little apart at least."""
    low, high = (float(min(values)), float(max(values))) if values else (0.0, 1.0)
    pad = 0.04 * (high - low) if high - low > 1e-9 * max(1.0, abs(low)) else 0.5 * max(abs(low), 1.0)
    return low - pad, high + pad


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{body}</svg>'
