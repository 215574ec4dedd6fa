"""What the tests read a page with."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = ("meta", "br")


@dataclass
class Element:
    name: str
    attributes: dict[str, str | None]
    children: list[Element | str] = field(default_factory=list)

    def all(self, name: str) -> list[Element]:
        """Elements of that name below this one."""
        below = [c for c in self.children if isinstance(c, Element)]
        return [found for c in below for found in ([c] if c.name == name else []) + c.all(name)]

    @property
    def text(self) -> str:
        parts = [c if isinstance(c, str) else c.text for c in self.children]
        return (" " if self.name in ("td", "th", "br", "p") else "").join(["", *parts, ""])

    def find(self, identity: str) -> Element:
        return next(e for name in ("section", "nav") for e in self.all(name) if e.attributes.get("id") == identity)


class Reader(HTMLParser):
    """A tree of the page; AssertionError where elements are not closed in the order they were opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open = [Element("document", {})]
        self.feed(text)
        self.close()
        assert [e.name for e in self.open] == ["document"]

    @property
    def root(self) -> Element:
        return self.open[0]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def rows_of(section: Element, caption: str) -> dict[str, list[str]]:
    """The body of the table whose caption begins so, by row heading: the texts of its cells."""
    table = next(t for t in section.all("table") if t.all("caption")[0].text.startswith(caption))
    return {
        r.all("th")[0].text.strip(): [" ".join(c.text.split()) for c in r.all("td")]
        for r in table.all("tbody")[0].all("tr")
    }
