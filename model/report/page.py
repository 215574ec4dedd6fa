"""The page: one HTML5 document with its style sheet, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from model.report.markup import Html, element, join

_LIGHT = (
    "--ink:#1a1a1a;--soft:#595959;--rule:#c8c8c8;--paper:#ffffff;--tint:#f3f3f1;"
    "--c0:#0072b2;--c1:#c44e00;--c2:#007a5a;--c3:#9b3d86;--c4:#7a6000;--c5:#555555"
)
_DARK = (
    "--ink:#e8e6e3;--soft:#aba8a3;--rule:#4b4b4b;--paper:#161616;--tint:#212121;"
    "--c0:#6bbcf0;--c1:#f29a5c;--c2:#4fc9a2;--c3:#dd9fd3;--c4:#e0c35a;--c5:#bdbdbd"
)
_DASHES = ("none", "6 3", "2 2", "8 3 2 3", "10 4", "4 4 1 4")
_STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:64rem;background:var(--paper);color:var(--ink);
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .25rem}
h2{font-size:1.3rem;margin:2.75rem 0 .5rem;padding-top:.5rem;border-top:1px solid var(--rule)}
h3{font-size:1.02rem;margin:1.5rem 0 .25rem}
p{margin:.5rem 0;max-width:46rem}
a{color:var(--c0)}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
nav ul{columns:2;padding-left:1.2rem;margin:.75rem 0}
.lead,.note,small,caption,footer{color:var(--soft)}
.note{border-left:3px solid var(--rule);padding-left:.75rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:1rem 0;font-size:.82rem;line-height:1.35;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:.35rem;font-size:.85rem}
th,td{padding:.28rem .55rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--rule)}
th:first-child{text-align:left}
th{font-weight:600}
thead th{border-bottom:2px solid var(--soft);vertical-align:bottom}
td.text,th.text{text-align:left}
small{white-space:nowrap;font-size:.86em}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(19rem,1fr));gap:.75rem;margin:1rem 0}
figure{margin:0}
.alone{margin:1rem 0}
th small{white-space:normal}
svg{max-width:100%;height:auto;font-size:11px;font-variant-numeric:tabular-nums}
svg text{fill:var(--soft)}
svg .title{fill:var(--ink);font-weight:600;font-size:12px}
.grid{stroke:var(--rule);stroke-width:.6;fill:none}
.axis{stroke:var(--soft);fill:none}
.guide{stroke:var(--soft);stroke-dasharray:3 3;fill:none}
.line{fill:none;stroke-width:1.7;stroke-linejoin:round}
.bar{stroke-width:1.4;fill:none}
.thick{stroke-width:4.5;fill:none}
.cell{fill:var(--c0);stroke:var(--rule);stroke-width:.25}
.outlined{fill:none;stroke:var(--c1);stroke-width:1.1}
@page{size:A4;margin:15mm 13mm}
@media print{
 body{max-width:none;padding:0;font-size:9.5pt}
 h2{break-after:avoid}
 section.page{break-before:page}
 table,figure{break-inside:avoid}
 table{font-size:7.6pt}
 th,td{padding:1.2pt 4pt}
 .wide{overflow:visible}
 .panels{grid-template-columns:repeat(2,1fr)}
 nav{display:none}
 *{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""


def _style() -> str:
    series = "".join(
        f".s{i}{{stroke:var(--c{i})}}.line.s{i}{{stroke-dasharray:{dash}}}.mark.s{i}{{fill:var(--c{i});stroke:none}}"
        for i, dash in enumerate(_DASHES)
    )
    schemes = f":root{{color-scheme:light dark;{_LIGHT}}}@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    printed = f"@media print{{:root{{color-scheme:light;{_LIGHT}}}}}"
    return schemes + _STYLE + series + printed


def section(name: str, title: str, *parts: str) -> Html:
    """A section that the contents link to."""
    return element("section", element("h2", title), *parts, id=name)


def document(title: str, lead: str, contents: Sequence[tuple[str, str]], sections: Sequence[Html]) -> Html:
    """The page.  contents: name and title of each section."""
    links = [element("li", element("a", text, href=f"#{name}")) for name, text in contents]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(_style())),
    )
    body = element(
        "body",
        element("header", element("h1", title), element("p", lead, class_="lead")),
        element("nav", element("ul", *links), aria_label="Contents"),
        element("main", *sections),
        element("footer", element("p", "Made by farm report. The figures are in the JSON file of the same name too.")),
    )
    return join(Html("<!DOCTYPE html>\n"), element("html", head, body, lang="en"), Html("\n"))
