"""The page: whole, self-contained, valid, and of the study's own figures."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from page_reader import Element, Reader, rows_of
from small_study import study_of

from model.datasets.prepared import Prepared
from model.report import write_report
from model.report.subject import ReportError
from model.report.write import SECTIONS

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def study(prepared: Prepared, workshop: Path) -> Path:
    return study_of(prepared, workshop)


@pytest.fixture(scope="module")
def page(study: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(study, prepared.path, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def root(page: Path) -> Element:
    return Reader(page.read_text()).root


def test_the_page_is_whole(root: Element, page: Path) -> None:
    assert page.read_text().startswith("<!DOCTYPE html>")
    sections = {e.attributes["id"]: e for e in root.all("section")}
    assert list(sections) == list(SECTIONS)
    assert [a.attributes["href"] for a in root.all("nav")[0].all("a")] == [f"#{name}" for name in SECTIONS]
    assert [s.all("h2")[0].text for s in sections.values()] == [module.TITLE for module in SECTIONS.values()]
    assert list(json.loads(page.with_suffix(".json").read_text())) == list(SECTIONS)


def test_nothing_is_loaded_and_nothing_runs(root: Element, page: Path) -> None:
    text = page.read_text()
    assert not {e.name for e in _everything(root)} & {"script", "link", "img", "iframe", "object", "image", "use"}
    links = [v or "" for e in _everything(root) for k, v in e.attributes.items() if k in ("src", "href", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert not any(name.startswith("on") for e in _everything(root) for name in e.attributes)
    assert "@import" not in text
    assert "url(" not in text
    assert "prefers-color-scheme:dark" in text
    assert "@media print" in text


def _everything(root: Element) -> list[Element]:
    below = [c for c in root.children if isinstance(c, Element)]
    return [e for c in below for e in (c, *_everything(c))]


def test_every_chart_is_xml_with_a_title_axis_labels_and_finite_places(page: Path) -> None:
    charts = re.findall(r"<svg.*?</svg>", page.read_text(), re.DOTALL)
    assert len(charts) >= 10
    for text in charts:
        chart = ElementTree.fromstring(text)
        assert chart.find(f"{SVG}title") is not None
        assert len([t for t in chart.iter(f"{SVG}text") if t.get("text-anchor") == "middle"]) >= 2
        assert not re.search(r"\b(nan|inf)\b", text)
        width, height = map(float, chart.get("viewBox", "").split()[2:])
        for mark in chart.iter(f"{SVG}text"):
            assert 0 <= float(mark.get("x", "-1")) <= width
            assert 0 <= float(mark.get("y", "-1")) <= height


def test_nothing_of_the_study_is_markup(root: Element, page: Path) -> None:
    assert not root.all("b")
    assert "--variant &lt;b&gt;" in page.read_text()
    assert "FARM &gt; ple" in page.read_text()


def test_the_machine_is_not_named(page: Path) -> None:
    assert "secret-machine" not in page.read_text() + page.with_suffix(".json").read_text()
    assert "numpy 2.1.0" in page.read_text()


def test_tables_1_and_2_hold_the_study_s_figures(root: Element, study: Path) -> None:
    results = json.loads((study / "study.json").read_text())["results"]
    section = root.find("performance")
    for metric in ("auc", "uauc", "gauc"):
        rows = rows_of(section, f"{metric.upper()} (%): mean")
        assert list(rows) == ["ple", "farm", "align_weight=0"]
        for variant, cells in rows.items():
            for cell, of in zip(cells, results[variant].values(), strict=True):
                mean, std = of[metric]["mean"], of[metric]["std"]
                spread = f" ± {100 * std:.2f}" if variant == "farm" else ""  # the others have one seed
                expected = "–" if mean is None else f"{100 * mean:.2f}{spread}"
                assert cell.replace(" ★", "") == expected
    best = max(results, key=lambda name: results[name]["ctr"]["auc"]["mean"])
    starred = [name for name, cells in rows_of(section, "AUC (%)").items() if "★" in cells[0]]
    assert starred == [best]


def test_differences_are_in_points_with_intervals(root: Element) -> None:
    cells = rows_of(root.find("performance"), "AUC: paired differences")["farm − ple"]
    assert cells[:3] == ["+1.23 ▲ [+1.03, +1.43]", "−0.32 [−1.32, +0.68]", "–"]


def test_claims(root: Element) -> None:
    claims = rows_of(root.find("summary"), "Claims")
    assert claims["FARM > ple"] == ["0.0104", "> 0", "✓ holds"]
    assert claims["something else"] == ["–", "> 0", "✗ does not"]
    assert claims["a share"][-1] == "goal not reached"
    assert "1 of 2 claims hold" in root.find("summary").text


def test_bounds_groups_and_parameters(root: Element, study: Path) -> None:
    results = json.loads((study / "study.json").read_text())["results"]
    base, farm = (results[name]["ctr"]["auc"]["mean"] for name in ("ple", "farm"))
    row = rows_of(root.find("bounds"), "AUC")["ctr"]
    assert row[2:5] == ["98.77", "99.00", f"{round(100 * (farm - base) / (0.98765 - base)):d}".replace("-", "−")]
    assert rows_of(root.find("bounds"), "AUC")["etr"][2] == "–"
    gains = rows_of(root.find("groups"), "AUC by activity group")
    assert gains["ctr: gain"] == ["+4.44 ▲ [+4.34, +4.54]"] * 4
    assert gains["ctr: farm"] == ["65.43"] * 4
    assert "gain of low+mid - high+full: +4.44 points [+4.34, +4.54]" in root.find("groups").text
    weights = rows_of(root.find("performance"), "Number of weights")
    assert weights["align_weight=0"] == ["align_weight=0.0", "3,210", "2,000", "1,210", "1.00"]


def test_the_data_card_counts_the_data(root: Element, prepared: Prepared) -> None:
    section, rows = root.find("datacard"), prepared.rows("test")
    positives = int((prepared.samples["labels"][rows, 0] == 1).sum())
    card = rows_of(section, "Samples, and per task")
    assert card["test"][1] == f"{len(rows):,}"
    assert card["test"][2] == f"{100 * positives / len(rows):.2f} % {positives:,}"
    assert card["test"][0] == str(prepared.info.test_from)
    events = rows_of(section, "Events, share")
    assert events["video"][0] == f"{len(prepared.events['video']):,}"


def test_a_study_without_farm_says_what_is_missing(study: Path, prepared: Prepared, tmp_path: Path) -> None:
    record = json.loads((study / "study.json").read_text())
    for part in ("results", "groups", "variants"):
        record[part] = {name: of for name, of in record[part].items() if name == "ple"}
    record |= {"comparisons": [], "claims": [], "bounds": {}}
    shutil.copytree(study / "runs" / "ple", tmp_path / "study" / "runs" / "ple")
    (tmp_path / "study" / "runs" / "ple" / "0" / "test.npy").unlink()  # predicted anew
    (tmp_path / "study" / "runs" / "ple" / "0" / "calibration.json").unlink()
    (tmp_path / "study" / "study.json").write_text(json.dumps(record))
    root = Reader(write_report(tmp_path / "study", prepared.path, tmp_path / "out" / "page.html").read_text()).root
    for name in ("performance", "gates", "align", "fuse", "groups", "calibration", "degraded"):
        notes = [p.text for p in root.find(name).all("p") if p.attributes.get("class") == "note"]
        assert any("--variant farm" in text and "farm study --data prepared" in text for text in notes), name
    assert (tmp_path / "out" / "page.json").is_file()


def test_probabilities_of_other_data_are_refused(study: Path, prepared: Prepared, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "study")
    scores = np.load(study / "runs" / "farm" / "0" / "test.npy")
    np.save(tmp_path / "study" / "runs" / "farm" / "0" / "test.npy", scores[1:])
    with pytest.raises(ReportError, match=r"test\.npy: .*other data"):
        write_report(tmp_path / "study", prepared.path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_what_is_no_study_is_refused(study: Path, prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"no study\.json"):
        write_report(tmp_path, prepared.path, tmp_path / "report.html")
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ReportError, match="not JSON"):
        write_report(tmp_path, prepared.path, tmp_path / "report.html")
    (tmp_path / "study.json").write_text('{"results": {"farm": {"xtr": {}}}}')
    with pytest.raises(ReportError, match="'xtr'"):
        write_report(tmp_path, prepared.path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
