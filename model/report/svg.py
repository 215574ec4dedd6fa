"""Charts as inline SVG: lines, steps, intervals, a heat map.

Colours and dashes are classes of the page's style sheet (s0 to s5), so that a chart follows light, dark and print;
lines differ by dash and marks by shape too, for eyes and printers that see no colour.
Letters: R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.report.markup import Html, element

STYLES = 6
_WIDTH, _HEIGHT = 340, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 26, 42
_CHARACTER = 6.2  # px of a character of a label, about


@dataclass(frozen=True)
class Scale:
    """Values low..high to pixels start..stop."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, about: int = 5, least: float = 0.0) -> tuple[list[float], int]:
        """Round values within low..high, `least` apart or more, and how many decimals they need."""
        raw = max((self.high - self.low) / about, least)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)], max(0, -math.floor(math.log10(step) + 1e-9))


def scale(values: Sequence[float], start: float, stop: float, margin: float = 0.05) -> Scale:
    """The scale that holds all finite values; of unit length when they are all alike."""
    finite = [v for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    spread = high - low if high > low else max(abs(high) * 0.1, 1e-6)
    if high == low:
        low, high = low - spread / 2, high + spread / 2
    return Scale(low - margin * spread, high + margin * spread, start, stop)


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str  # in the legend; "" is not in it
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    marks: bool = False


@dataclass(frozen=True)
class Interval:
    """One row of a chart of intervals: a point in its interval, the middle half of it perhaps thicker."""

    label: str
    value: float
    low: float
    high: float
    inner: tuple[float, float] | None = None
    style: int = 0


def lines(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
    whole_x: bool = False,
) -> Html:
    """Lines over two linear axes; `diagonal` adds y = x, `whole_x` marks whole numbers of x only."""
    legend = _legend([s for s in series if s.name])
    top = _TOP + 14 * len(legend)
    x = _axis([v for s in series for v in s.x], x_range, _LEFT, _WIDTH - _RIGHT)
    y = _axis([v for s in series for v in s.y], y_range, _HEIGHT - _BOTTOM + 14 * len(legend), top)
    parts = _frame(x, y, x_label, y_label, 1.0 if whole_x else 0.0)
    if diagonal:
        low, high = max(x.low, y.low), min(x.high, y.high)
        parts.append(element("path", d=_path([(x(low), y(low)), (x(high), y(high))]), class_="guide"))
    for one in series:
        parts += _line(one, x, y)
    rows = [part for i, row in enumerate(legend) for part in _legend_row(row, _TOP + 14 * i)]
    return _chart(title, _WIDTH, _HEIGHT + 14 * len(legend), [*parts, *rows])


def steps(title: str, edges: Sequence[float], series: Sequence[Series], x_label: str, y_label: str) -> Html:
    """Histograms as outlines.  Each series' y is the height between two neighbouring edges; its x is not read."""
    outlined = [
        replace(
            s,
            x=[edge for edge in edges for _ in (0, 1)],
            y=[0.0, *(height for height in s.y for _ in (0, 1)), 0.0],
        )
        for s in series
    ]
    top = max((max(s.y, default=0.0) for s in series), default=0.0) or 1.0
    return lines(title, outlined, x_label, y_label, x_range=(edges[0], edges[-1]), y_range=(0.0, 1.05 * top))


def intervals(
    title: str, rows: Sequence[Interval], x_label: str, zero: bool = False, holds: Sequence[float] = ()
) -> Html:
    """Points with intervals, a row each; `zero` marks 0, and the axis holds the values `holds` too."""
    values = [*(v for row in rows for v in (row.low, row.high, row.value)), *holds, *([0.0] if zero else [])]
    left = 16 + _CHARACTER * max((len(row.label) for row in rows), default=0)
    bottom = _TOP + 17.0 * max(len(rows), 1)
    x = scale(values, left, _WIDTH - _RIGHT)
    parts = _grid_x(x, _TOP, bottom)
    if zero:
        parts.append(element("path", d=_path([(x(0), _TOP), (x(0), bottom)]), class_="guide"))
    for i, row in enumerate(rows):
        parts += _interval(row, x, _TOP + 17.0 * i + 9, left)
    parts.append(_label((left + _WIDTH - _RIGHT) / 2, bottom + 32, x_label, "middle"))
    return _chart(title, _WIDTH, bottom + _BOTTOM, parts)


def heat_map(
    title: str,
    matrix: np.ndarray,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    x_label: str,
    y_label: str,
    outlined: np.ndarray,
) -> Html:
    """matrix [R, C] from 0 up, darker is more; outlined [R, C] bool.  A label like the one before it is left out."""
    rows, columns = matrix.shape
    size = max(5.0, min(16.0, 600 / max(columns, 1)))
    left = 26 + _CHARACTER * max(map(len, row_labels), default=0)
    top = _TOP + 22
    bottom, right = top + rows * size, left + columns * size
    peak = float(matrix.max(initial=0)) or 1.0
    parts = [
        _cell(left + c * size, top + r * size, size, matrix[r, c] / peak) for r in range(rows) for c in range(columns)
    ]
    parts += [
        element("rect", x=left + c * size, y=top + r * size, width=size, height=size, class_="outlined")
        for r, c in np.argwhere(outlined).tolist()
    ]
    parts += [_label(left - 4, top + (r + 0.5) * size + 3, t, "end") for r, t in _changes(row_labels)]
    parts += [_turned(left + (c + 0.5) * size + 3, bottom + 5, t, "end") for c, t in _changes(column_labels)]
    below = bottom + 12 + _CHARACTER * max(map(len, column_labels), default=0)
    parts += [
        _label((left + right) / 2, below + 12, x_label, "middle"),
        _turned(12, (top + bottom) / 2, y_label, "middle"),
    ]
    parts += _key(left, _TOP, peak)
    return _chart(title, max(right + 8, left + 170), below + 20, parts)


def _axis(values: Sequence[float], given: tuple[float, float] | None, start: float, stop: float) -> Scale:
    return Scale(*given, start, stop) if given else scale(values, start, stop)


def _chart(title: str, width: float, height: float, parts: Sequence[Html]) -> Html:
    heading = _label(4, 14, title, "start", "title")
    return element(
        "svg",
        element("title", title),
        heading,
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:.6g} {height:.6g}",
        width=float(width),
        role="img",
        aria_label=title,
    )


def _frame(x: Scale, y: Scale, x_label: str, y_label: str, least_x: float) -> list[Html]:
    parts = _grid_x(x, y.stop, y.start, least_x)
    ticks, places = y.ticks()
    for tick in ticks:
        parts.append(element("path", d=_path([(x.start, y(tick)), (x.stop, y(tick))]), class_="grid"))
        parts.append(_label(x.start - 5, y(tick) + 4, _tick(tick, places), "end"))
    parts.append(_label((x.start + x.stop) / 2, y.start + 34, x_label, "middle"))
    return [*parts, _turned(12, (y.start + y.stop) / 2, y_label, "middle")]


def _grid_x(x: Scale, top: float, bottom: float, least: float = 0.0) -> list[Html]:
    ticks, places = x.ticks(least=least)
    parts = [element("path", d=_path([(x(t), top), (x(t), bottom)]), class_="grid") for t in ticks]
    parts += [_label(x(t), bottom + 16, _tick(t, places), "middle") for t in ticks]
    return [*parts, element("path", d=_path([(x.start, bottom), (x.stop, bottom)]), class_="axis")]


def _tick(value: float, places: int) -> str:
    return f"{value + 0.0:.{places}f}".replace("-", "−")


def _line(one: Series, x: Scale, y: Scale) -> list[Html]:
    points = [(x(a), y(b)) for a, b in zip(one.x, one.y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if not points:
        return []
    parts = [element("path", d=_path(points), class_=f"line s{one.style % STYLES}")]
    return [*parts, *(_mark(a, b, one.style) for a, b in points)] if one.marks else parts


def _mark(x: float, y: float, style: int) -> Html:
    """A disc, a square, a triangle or a diamond."""
    name, r = f"mark s{style % STYLES}", 3.2
    shape = style % 4
    if shape == 0:
        return element("circle", cx=x, cy=y, r=r, class_=name)
    corners = {
        1: [(-r, -r), (r, -r), (r, r), (-r, r)],
        2: [(0, -1.3 * r), (1.2 * r, r), (-1.2 * r, r)],
        3: [(0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)],
    }[shape]
    return element("path", d=_path([(x + a, y + b) for a, b in corners]) + "Z", class_=name)


def _interval(row: Interval, x: Scale, y: float, left: float) -> list[Html]:
    style = f"s{row.style % STYLES}"
    parts = [_label(left - 8, y + 4, row.label, "end")]
    parts.append(element("path", d=_path([(x(row.low), y), (x(row.high), y)]), class_=f"bar {style}"))
    if row.inner is not None:
        low, high = row.inner
        parts.append(element("path", d=_path([(x(low), y), (x(high), y)]), class_=f"thick {style}"))
    return [*parts, _mark(x(row.value), y, row.style)]


def _legend(series: Sequence[Series]) -> list[list[Series]]:
    """Named series in rows that fit the width."""
    rows: list[list[Series]] = []
    room = 0.0
    for one in series:
        need = 30 + _CHARACTER * len(one.name)
        if not rows or need > room:
            rows.append([])
            room = _WIDTH - 10
        rows[-1].append(one)
        room -= need
    return rows


def _legend_row(series: Sequence[Series], y: float) -> list[Html]:
    parts, x = [], 8.0
    for one in series:
        parts.append(element("path", d=_path([(x, y), (x + 18, y)]), class_=f"line s{one.style % STYLES}"))
        if one.marks:
            parts.append(_mark(x + 9, y, one.style))
        parts.append(_label(x + 22, y + 4, one.name, "start"))
        x += 30 + _CHARACTER * len(one.name)
    return parts


def _cell(x: float, y: float, size: float, share: float) -> Html:
    return element("rect", x=x, y=y, width=size, height=size, class_="cell", fill_opacity=round(float(share), 3))


def _key(x: float, y: float, peak: float) -> list[Html]:
    """What the darkness of a heat map's cell means."""
    parts = [_cell(x + 12 * i, y, 12, i / 5) for i in range(6)]
    return [*parts, _label(x + 78, y + 10, f"weight 0 to {peak:.2g}", "start")]


def _changes(labels: Sequence[str]) -> list[tuple[int, str]]:
    return [(i, label) for i, label in enumerate(labels) if i == 0 or label != labels[i - 1]]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _label(x: float, y: float, text: str, anchor: str, name: str | None = None) -> Html:
    return element("text", text, x=round(x, 1), y=round(y, 1), text_anchor=anchor, class_=name)


def _turned(x: float, y: float, text: str, anchor: str) -> Html:
    turn = f"rotate(-90 {x:.1f} {y:.1f})"
    return element("text", text, x=round(x, 1), y=round(y, 1), text_anchor=anchor, transform=turn)
