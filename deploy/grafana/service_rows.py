"""Rows of the dashboard about the service: how it answers, and what it needs for that."""

from __future__ import annotations

from deploy.grafana.chart import Chart, burn, mean, of, quantile, quantiles, rate, share_of, shares, total

_ROLE = 'role!=""'  # of the service's processes; event workers have none
_RANK = 'route="/rank"'
_SPENT = "1 spends the budget in exactly 30 days."
_STAGE = "farm_rank_stage_duration_seconds"

SERVICE_ROWS: dict[str, tuple[Chart, ...]] = {
    "Objectives": (
        Chart("Availability: burn rate", "none", burn("availability"), f"99.9 % of /rank are no 5xx. {_SPENT}"),
        Chart("Latency: burn rate", "none", burn("latency"), f"99 % of /rank are answered within 50 ms. {_SPENT}"),
        Chart(
            "Alerts",
            "short",
            {"{{alertname}}": 'sum by (alertname) (ALERTS{alertname=~"Farm.*"})'},
            "Pending or firing.",
        ),
    ),
    "Traffic": (
        Chart(
            "Requests",
            "reqps",
            {"{{route}} {{status}}": rate("farm_http_requests_total", "route, status")},
            stacked=True,
        ),
        Chart(
            "Time of /rank",
            "s",
            quantiles("farm_http_request_duration_seconds", _RANK),
            "From arrival to the last byte of the answer.",
        ),
        Chart(
            "Candidates of a ranking",
            "short",
            quantiles("farm_rank_candidates") | {"mean": mean("farm_rank_candidates")},
        ),
        Chart(
            "Refused and dropped",
            "reqps",
            {
                "{{reason}} {{priority}}": rate("farm_admission_refused_total", "reason, priority"),
                "dropped in the queue": rate("farm_admission_dropped_total"),
            },
            stacked=True,
        ),
        Chart(
            "Connections and keys refused",
            "reqps",
            {
                "{{reason}}": rate("farm_connections_refused_total", "reason"),
                "key: {{reason}}": rate("farm_key_refusals_total", "reason"),
            },
        ),
        Chart("Workers", "short", {"{{role}} {{state}}": total("farm_workers", "role, state")}, stacked=True),
        Chart(
            "Workers replaced",
            "short",
            {"{{instance}} {{role}}": f"increase({of('farm_worker_restarts_total')}[$__rate_interval])"},
        ),
        Chart(
            "CPU", "none", {"{{role}}": rate("process_cpu_seconds_total", "role", _ROLE)}, "Cores in use.", stacked=True
        ),
        Chart(
            "Memory",
            "bytes",
            {"{{role}}": total("process_resident_memory_bytes", "role", _ROLE)},
            "Resident.",
            stacked=True,
        ),
    ),
    "Latency by stage": (
        Chart(
            "Mean",
            "s",
            {"{{stage}}": mean(_STAGE, "stage")},
            "The stages of a ranking, one after the other.",
            stacked=True,
        ),
        Chart("Median", "s", {"{{stage}}": quantile(0.5, _STAGE, "stage")}),
        Chart("99th percentile", "s", {"{{stage}}": quantile(0.99, _STAGE, "stage")}),
    ),
    "Batching": (
        Chart("Tiles of a batch", "short", quantiles("farm_batch_tiles") | {"mean": mean("farm_batch_tiles")}),
        Chart("Requests of a batch", "short", quantiles("farm_batch_requests") | {"mean": mean("farm_batch_requests")}),
        Chart(
            "Padding",
            "percentunit",
            {"mean": mean("farm_batch_padding_ratio")},
            "Places of a batch without a candidate.",
            most=1,
        ),
        Chart(
            "Queue",
            "short",
            {"{{priority}}": total("farm_admission_queue_tiles", "priority")},
            "Tiles that wait.",
            stacked=True,
        ),
        Chart(
            "Wait",
            "s",
            {"worst worker": f"max({of('farm_admission_wait_seconds')})"},
            "Until all that is in the queue is done.",
        ),
        Chart(
            "Slowdown",
            "none",
            {"worst worker": f"max({of('farm_admission_slowdown_ratio')})"},
            "What requests take to what their work alone would.",
        ),
        Chart(
            "Executors busy",
            "percentunit",
            {"share": f"{rate('farm_executor_busy_seconds_total')} / {total('farm_executors')}"},
            most=1,
        ),
        Chart(
            "CPU of the towers",
            "none",
            {"{{tower}}": rate("farm_tower_cpu_seconds_total", "tower")},
            "Cores in use.",
            stacked=True,
        ),
        Chart("Batches that failed", "ops", {"{{result}}": rate("farm_batch_failures_total", "result")}),
    ),
    "Store": (
        Chart("Readings", "ops", {"{{result}}": rate("farm_readings_total", "result")}, stacked=True),
        Chart(
            "Readings that were less than whole",
            "ops",
            {
                "{{word}}": rate("farm_readings_degraded_total", "word"),
                "because {{cause}}": rate("farm_readings_failed_total", "cause"),
            },
        ),
        Chart(
            "Circuits", "short", {"{{state}}": total("farm_store_circuit", "state")}, "Workers by state.", stacked=True
        ),
        Chart(
            "Author cache",
            "percentunit",
            {"{{result}}": shares("farm_author_cache_lookups_total", "result")},
            "Look-ups of authors: remembered, remembered as unknown, asked of the store.",
            most=1,
        ),
        Chart(
            "User states",
            "percentunit",
            {"kept": share_of("farm_state_cache_requests_total", 'result="hit"')},
            "Rankings that need no user tower.",
            most=1,
        ),
        Chart(
            "Memory of caches",
            "bytes",
            {"user states": total("farm_state_cache_bytes"), "last good records": total("farm_last_good_bytes")},
            stacked=True,
        ),
        Chart(
            "Last good records",
            "percentunit",
            {"found": share_of("farm_last_good_requests_total", 'result="hit"')},
            "Of readings without the store.",
            most=1,
        ),
        Chart("Damaged records", "ops", {"{{record}}": rate("farm_store_corrupt_records_total", "record")}),
    ),
}
