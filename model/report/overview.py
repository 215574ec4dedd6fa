"""Summary: what the study claims and whether it holds."""

from __future__ import annotations

from model.report.markup import Html, Table, element, note, paragraph
from model.report.page import section
from model.report.subject import Figures, Subject

TITLE = "Summary"


def measure(subject: Subject) -> Figures:
    claims = subject.record.get("claims", [])
    return {
        "source": subject.data.info.source,
        "variants": subject.variants,
        "seeds": subject.record.get("study", {}).get("seeds"),
        "test_samples": len(subject.data.rows("test")),
        "claims": claims,
        "hold": sum(bool(claim["holds"]) for claim in claims if not claim.get("goal")),
        "needed": sum(not claim.get("goal") for claim in claims),
        "command": subject.command,
    }


def render(figures: Figures) -> Html:
    variants = ", ".join(figures["variants"]) or "none"
    counted = paragraph(
        f"{len(figures['variants'])} variants ({variants}) on {figures['source']}, {_seeds(figures['seeds'])},"
        f" {figures['test_samples']:,} test samples."
    )
    if not figures["claims"]:
        return section("summary", TITLE, counted, note("The study states no claims."))
    held = paragraph(f"{figures['hold']} of {figures['needed']} claims hold.{_goals(figures['claims'])}")
    rows = [
        [claim["claim"], _value(claim["value"]), f"{claim['op']} {_value(claim['bound'])}", _verdict(claim)]
        for claim in figures["claims"]
    ]
    return section(
        "summary", TITLE, counted, held, Table("Claims", ["claim", "figure", "needed", "holds"], rows).html()
    )


def _seeds(seeds: object) -> str:
    count = len(seeds) if isinstance(seeds, list) else seeds
    return "seeds not stated" if count is None else f"{count} seed{'s' if count != 1 else ''}"


def _goals(claims: list[Figures]) -> str:
    return " Goals are reported beside them." if any(claim.get("goal") for claim in claims) else ""


def _verdict(claim: Figures) -> str:
    if claim.get("goal"):
        return "goal reached" if claim["holds"] else "goal not reached"
    return "✓ holds" if claim["holds"] else element("strong", "✗ does not")


def _value(value: object) -> str:
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else "–" if value is None else str(value)
