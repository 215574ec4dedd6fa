"""A chart of the dashboard, and the PromQL of its queries, of the instances that are chosen in Grafana."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_INSTANCE = 'instance=~"$instance"'
_WINDOWS = ("5m", "1h", "6h", "3d")


@dataclass(frozen=True)
class Chart:
    """One panel of lines."""

    title: str
    unit: str  # Grafana's name of it
    queries: Mapping[str, str]  # PromQL by legend
    description: str = ""
    stacked: bool = False
    most: float | None = None  # end of the axis; None: by the data


def of(metric: str, labels: str = "") -> str:
    """A selector of the chosen instances."""
    return f"{metric}{{{', '.join(filter(None, [labels, _INSTANCE]))}}}"


def total(metric: str, by: str = "", labels: str = "") -> str:
    """A gauge, summed."""
    return f"sum{_by(by)} ({of(metric, labels)})"


def rate(metric: str, by: str = "", labels: str = "") -> str:
    """A counter's rate, summed."""
    return f"sum{_by(by)} (rate({of(metric, labels)}[$__rate_interval]))"


def share_of(metric: str, labels: str) -> str:
    """Of a counter, that with these labels."""
    return f"{rate(metric, labels=labels)} / {rate(metric)}"


def shares(metric: str, by: str, of_metric: str = "") -> str:
    """Of a counter, by a label.  of_metric: the whole; the counter's own by default."""
    return f"{rate(metric, by)} / ignoring ({by}) group_left () {rate(of_metric or metric)}"


def mean(histogram: str, by: str = "") -> str:
    """Of what a histogram observed."""
    return f"{rate(f'{histogram}_sum', by)} / {rate(f'{histogram}_count', by)}"


def quantile(share: float, histogram: str, by: str = "", labels: str = "") -> str:
    """Of what a histogram observed."""
    every = ", ".join(filter(None, [by, "le"]))
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', every, labels)})"


def quantiles(histogram: str, labels: str = "") -> dict[str, str]:
    """By legend."""
    return {f"p{100 * share:g}": quantile(share, histogram, labels=labels) for share in (0.5, 0.95, 0.99)}


def burn(objective: str) -> dict[str, str]:
    """How fast the budget of an objective is spent, over several windows, by legend."""
    return {
        f"{{{{job}}}} {window}": f'job_objective:farm_rank_burn:rate{window}{{objective="{objective}"}}'
        for window in _WINDOWS
    }


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""
