"""Writes the Grafana dashboard: `python -m deploy.grafana.dashboard`, after a change of its rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableHide,
    VariableOption,
    VariableRefresh,
)

from deploy.grafana.chart import Chart
from deploy.grafana.data_rows import DATA_ROWS
from deploy.grafana.service_rows import SERVICE_ROWS

ROWS = SERVICE_ROWS | DATA_ROWS
FILE = Path(__file__).parent / "dashboards" / "farm.json"

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT, _WIDTH = 8, 8  # of 24 columns


def text() -> str:
    """The dashboard's JSON."""
    return json.dumps(_dashboard().build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _dashboard() -> dashboard.Dashboard:
    board = (
        dashboard.Dashboard("FARM ranker")
        .uid("farm-ranker")
        .description("Made by deploy/grafana/dashboard.py.  What the alerts mean: docs/alerts.md.")
        .tags(["farm"])
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-1h", "now")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_instances())
        .annotation(_alerts())
    )
    number = 0
    for title, charts in ROWS.items():
        number += 1
        board = board.with_row(dashboard.Row(title).id(number))
        for chart in charts:
            number += 1
            board = board.with_panel(_panel(chart, number))
    return board


def _instances() -> dashboard.QueryVariable:
    every = VariableOption(text="All", value="$__all", selected=True)
    return (
        dashboard.QueryVariable("instance")
        .label("Instance")
        .datasource(_SOURCE)
        .query('label_values(up{job=~"farm.*"}, instance)')
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(True)
        .all_value(".*")
        .multi(True)
        .current(every)
        .hide(VariableHide.DONT_HIDE)
    )


def _alerts() -> dashboard.AnnotationQuery:
    """Vertical lines where an alert began to fire."""
    return (
        dashboard.AnnotationQuery()
        .name("Alerts")
        .datasource(_SOURCE)
        .enable(True)
        .icon_color("red")
        .expr('ALERTS{alertname=~"Farm.*", alertstate="firing"}')
    )


def _panel(chart: Chart, number: int) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .id(number)
        .title(chart.title)
        .description(chart.description)
        .datasource(_SOURCE)
        .unit(chart.unit)
        .min(0)
        .height(_HEIGHT)
        .span(_WIDTH)
        .show_points(VisibilityMode.NEVER)
        .fill_opacity(30 if chart.stacked else 0)
        .stacking(common.StackingConfig().mode(StackingMode.NORMAL if chart.stacked else StackingMode.NONE))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .legend(_legend())
        .targets(list(_targets(chart)))
    )
    return panel if chart.most is None else panel.max(chart.most)


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )


def _targets(chart: Chart) -> Iterable[prometheus.Dataquery]:
    for at, (legend, expression) in enumerate(chart.queries.items()):
        yield prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + at)).range()


if __name__ == "__main__":
    FILE.write_text(text())
    print(f"{FILE}: {sum(map(len, ROWS.values()))} panels")
