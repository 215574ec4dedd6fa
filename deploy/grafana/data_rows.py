"""Rows of the dashboard about what the model reads and says."""

from __future__ import annotations

from deploy.grafana.chart import Chart, mean, of, quantile, quantiles, rate, shares

_SCORES = "job_task_figure:farm_score_probability:rate1h"
_EMPTY = 'le="0.0"'  # histories
_MODEL = "version, provider, precision, arm"

DATA_ROWS: dict[str, tuple[Chart, ...]] = {
    "Freshness": (
        Chart(
            "Events visible after",
            "s",
            quantiles("farm_event_visible_seconds"),
            "From when events were accepted until a ranking can see them.",
        ),
        Chart(
            "Events",
            "ops",
            {
                "accepted": rate("farm_events_accepted_total"),
                "merged": rate("farm_events_applied_total"),
                "dropped: {{reason}}": rate("farm_events_dropped_total", "reason"),
                "requests refused: {{reason}}": rate("farm_events_rejected_total", "reason"),
            },
        ),
        Chart(
            "Entries of the log that wait",
            "short",
            {"{{partition}}": f"max by (partition) ({of('farm_event_lag_entries')})"},
            "By partition; every worker reports all.",
            stacked=True,
        ),
        Chart(
            "Age of the newest event of a history",
            "s",
            {
                "{{domain}} p50": quantile(0.5, "farm_history_age_seconds", "domain"),
                "{{domain}} p95": quantile(0.95, "farm_history_age_seconds", "domain"),
            },
        ),
        Chart(
            "Age of remembered authors",
            "s",
            {
                "p50": quantile(0.5, "farm_author_cache_age_seconds"),
                "p99": quantile(0.99, "farm_author_cache_age_seconds"),
            },
        ),
        Chart(
            "Age of kept user states",
            "s",
            {
                "p50": quantile(0.5, "farm_state_cache_age_seconds"),
                "p99": quantile(0.99, "farm_state_cache_age_seconds"),
            },
        ),
        Chart(
            "Age of last good records",
            "s",
            {"p50": quantile(0.5, "farm_last_good_age_seconds"), "p99": quantile(0.99, "farm_last_good_age_seconds")},
            "Of those that stood in for the store.",
        ),
    ),
    "Model quality": (
        Chart("Mean probability", "percentunit", {"{{task}}": mean("farm_score_probability", "task")}),
        Chart(
            "Spread of the probabilities",
            "percentunit",
            {
                "{{task}} p10": quantile(0.1, "farm_score_probability", "task"),
                "{{task}} p90": quantile(0.9, "farm_score_probability", "task"),
            },
        ),
        Chart(
            "Probability to that of a day ago",
            "percentunit",
            {"{{job}} {{task}} {{figure}}": f"{_SCORES} / ({_SCORES} offset 1d)"},
            "Mean, p10 and p90 over an hour. FarmScoreDrift looks at it.",
        ),
        Chart(
            "Answers that lack something",
            "percentunit",
            {"{{reason}}": shares("farm_rank_degraded_total", "reason", "farm_rank_candidates_count")},
            "By reason; an answer may count under several.",
        ),
        Chart(
            "Users without history",
            "percentunit",
            {
                "{{domain}}": f"{rate('farm_history_events_bucket', 'domain', _EMPTY)} / "
                f"{rate('farm_history_events_count', 'domain')}"
            },
            most=1,
        ),
        Chart("Events of a history", "short", {"{{domain}}": mean("farm_history_events", "domain")}, "Mean."),
        Chart(
            "Values of events that are not known",
            "percentunit",
            {"{{domain}}": mean("farm_history_missing_ratio", "domain")},
            "Mean share.",
        ),
        Chart(
            "Candidates whose author is not known",
            "percentunit",
            {"share": f"{rate('farm_rank_unknown_candidates_total')} / {rate('farm_rank_candidates_sum')}"},
        ),
        Chart(
            "Models that answer",
            "short",
            {"{{version}} {{provider}} {{precision}} {{arm}}": f"count by ({_MODEL}) ({of('farm_model_info')} == 1)"},
            "Instances.",
            stacked=True,
        ),
        Chart(
            "Changes of the model",
            "short",
            {
                "{{instance}} {{result}}": f"increase({of('farm_model_changes_total')}[$__rate_interval])",
                "{{instance}} refuses the newest": of("farm_model_pointer_refused"),
            },
            "Of services with a model registry.",
        ),
        Chart(
            "Shadow model: mean difference",
            "percentunit",
            {"{{task}}": mean("farm_shadow_mean_difference", "task")},
            "Of a task's probabilities, to what was answered.",
        ),
        Chart(
            "Shadow model: share of the first ten",
            "percentunit",
            {"both have": mean("farm_shadow_top10_overlap_ratio")},
            most=1,
        ),
    ),
}
