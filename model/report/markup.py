"""HTML and SVG as text that is escaped unless it is markup already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_VOID = ("meta", "br")
Value = float | int | str | None


class Html(str):
    """Markup.  Any other text is escaped where it is put in."""

    __slots__ = ()


def element(tag: str, /, *children: str, **attributes: Value) -> Html:
    """An element of HTML or SVG.  An attribute named `class_` is `class`, `font_size` is `font-size`, None is none.

    >>> element("b", "1 < 2", class_="x")
    '<b class="x">1 &lt; 2</b>'
    """
    given = {key: value for key, value in attributes.items() if value is not None}
    head = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"' for key, value in given.items())
    if tag in _VOID:
        return Html(f"<{tag}{head}>")
    return Html(f"<{tag}{head}>{join(*children)}</{tag}>")


def join(*parts: str) -> Html:
    """Parts one after the other, plain text escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def _text(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Table:
    """A table.  Rows begin with their heading; numbers are aligned right."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1  # first columns that are text, aligned left

    def html(self) -> Html:
        head = [element("th", c, scope="col", class_=self._kind(i)) for i, c in enumerate(self.columns)]
        body = [
            element(
                "tr",
                element("th", row[0], scope="row"),
                *(element("td", c, class_=self._kind(i)) for i, c in enumerate(row[1:], 1)),
            )
            for row in self.rows
        ]
        parts = (element("thead", element("tr", *head)), element("tbody", *body))
        return element("div", element("table", element("caption", self.caption), *parts), class_="wide")

    def _kind(self, column: int) -> str | None:
        return "text" if column < self.texts else None


def paragraph(*parts: str) -> Html:
    return element("p", *parts)


def note(*parts: str) -> Html:
    """What is missing, or how a figure is to be read."""
    return element("p", *parts, class_="note")


def panels(*charts: Html) -> Html:
    """Charts side by side where there is room."""
    return element("div", *(element("figure", chart) for chart in charts), class_="panels")


def cell(value: str, below: str = "", mark: str = "") -> Html:
    """A table cell of one or two lines; the first is bold when it has a mark."""
    first = element("strong", value, " ", mark) if mark else join(value)
    return join(first, element("br"), element("small", below)) if below else first


def percent(value: float | None, places: int = 2) -> str:
    return "–" if value is None else f"{round(100 * value, places) + 0.0:.{places}f}".replace("-", "−")


def points(value: float | None) -> str:
    """A difference of two shares, in percentage points, with its sign."""
    return "–" if value is None else f"{round(100 * value, 2) + 0.0:+.2f}".replace("-", "−")


def interval_points(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"[{points(interval[0])}, {points(interval[1])}]"


def number(value: float | int | None, places: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{round(value, places) + 0.0:.{places}f}".replace("-", "−")
