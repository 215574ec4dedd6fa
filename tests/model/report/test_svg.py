"""Charts: marks where the values are, at every edge."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.report.markup import Table, element, join, points
from model.report.svg import Interval, Scale, Series, heat_map, intervals, lines, scale, steps

SVG = "{http://www.w3.org/2000/svg}"


def of_class(chart: str, name: str) -> list[ElementTree.Element]:
    return [e for e in ElementTree.fromstring(chart).iter() if name in (e.get("class") or "").split()]


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split() for pair in path[1:].split("L"))]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_few_and_inside(low: float, width: float) -> None:
    s = Scale(low, low + width, 0, 100)
    ticks, decimals = s.ticks()
    assert 2 <= len(ticks) <= 8
    step = ticks[1] - ticks[0]
    assert all(low - 0.01 * step <= t <= low + width + 0.01 * step for t in ticks)
    texts = [f"{t:.{decimals}f}" for t in ticks]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [math.nan, 1.0, 2.0], [-1e-9, 1e-9]])
def test_a_scale_holds_all_finite_values(values: list[float]) -> None:
    s = scale(values, 0, 100)
    assert s.low < s.high
    assert all(0 <= s(v) <= 100 for v in values if math.isfinite(v))


def test_a_line_goes_through_its_points() -> None:
    chart = lines("t", [Series("a", [0, 1, 2], [0, 10, 5], marks=True)], "x", "y", (0, 2), (0, 10))
    (x0, y0), (x1, y1), (x2, y2) = places(of_class(chart, "line")[0].get("d", ""))
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y0 - y1 == pytest.approx(2 * (y2 - y1), abs=0.2)
    assert len(of_class(chart, "mark")) == 4  # three points and the legend's


def test_values_that_are_not_finite_are_left_out() -> None:
    chart = lines("t", [Series("", [0, 1, 2], [1, math.nan, 2])], "x", "y")
    assert len(places(of_class(chart, "line")[0].get("d", ""))) == 2
    assert not of_class(lines("t", [Series("", [], [])], "x", "y"), "line")


def test_a_histogram_is_an_outline() -> None:
    chart = steps("t", [0, 1, 2], [Series("a", [], [0.25, 0.75])], "x", "y")
    path = places(next(e for e in of_class(chart, "line") if e.get("d", "").count("L") > 1).get("d", ""))
    assert len(path) == 6
    (_, base), (_, first), (_, second_from), (_, second), (_, _), (_, end) = path
    assert first == second_from
    assert base == end
    assert base - second == pytest.approx(3 * (base - first), abs=0.2)


def test_intervals_are_where_they_are() -> None:
    rows = [Interval("a", 1.0, 0.0, 2.0), Interval("b", -1.0, -2.0, 0.0, inner=(-1.5, -0.5))]
    chart = intervals("t", rows, "x", zero=True)
    bars = [places(e.get("d", "")) for e in of_class(chart, "bar")]
    assert bars[0][0][0] == bars[1][1][0]  # 0 is the end of one and the start of the other
    assert bars[0][0][1] < bars[1][0][1]
    assert len(of_class(chart, "thick")) == 1
    assert places(of_class(chart, "guide")[0].get("d", ""))[0][0] == bars[0][0][0]


def test_no_rows_make_a_chart_too() -> None:
    assert ElementTree.fromstring(intervals("t", [], "x")).tag == f"{SVG}svg"


def test_a_heat_map_s_cells() -> None:
    outlined = np.array([[True, False], [False, False], [False, True]])
    matrix = np.array([[0.0, 0.5], [1.0, 0.25], [0.0, 0.0]])
    chart = heat_map("t", matrix, ["a", "a", "b"], ["c", "d"], "x", "y", outlined)
    cells = [float(e.get("fill-opacity", "nan")) for e in of_class(chart, "cell")]
    assert cells[:6] == matrix.ravel().tolist()
    assert len(of_class(chart, "outlined")) == 2
    labels = [e.text for e in ElementTree.fromstring(chart).iter(f"{SVG}text")]
    assert labels.count("a") == labels.count("b") == labels.count("c") == 1


def test_text_is_escaped_once() -> None:
    inner = element("b", "1 < 2 & 'x'")
    assert join(inner, "<i>") == "<b>1 &lt; 2 &amp; &#x27;x&#x27;</b>&lt;i&gt;"
    assert element("p", title='"a"') == '<p title="&quot;a&quot;"></p>'
    assert "&lt;th&gt;" in Table("c", ["<th>"], [["r"]]).html()


def test_points() -> None:
    assert [points(v) for v in (0.01234, -0.00321, -0.00001, None)] == ["+1.23", "−0.32", "+0.00", "–"]
