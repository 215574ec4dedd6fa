"""What rankings read and put out, in Prometheus' client: to see that data, or scores, drift.

Of each process at most RANKINGS_PER_S rankings a second are looked at, the first of each equal part of it; of each, the
histories of its user, and the probabilities of one candidate, drawn at random.  So shares, means and quantiles are
those of the traffic, but for bursts; totals are not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from prometheus_client import Histogram

from feature_store.matrices import UserInputs
from feature_store.metered import metered
from feature_store.records import UserRecord
from feature_store.schema import DOMAINS, MISSING
from feature_store.throttle import Throttle
from service.freshness import newest_age_ms

RANKINGS_PER_S = 20.0

_EVENTS = (0, 1, 2, 5, 10, 20, 50, 100, 200)
_AGES_S = (1, 10, 60, 300, 900, 3600, 6 * 3600, 86_400, 3 * 86_400, 7 * 86_400, 30 * 86_400)
_SHARES = (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
_PROBABILITIES = (
    *(step * 10.0**-power for power in range(5, 1, -1) for step in (1, 2, 5)),
    0.1,
    0.2,
    0.3,
    0.5,
    0.7,
    0.9,
    1,
)

_events = Histogram(
    "farm_history_events", "Events of a history that the model read; sampled.", ["domain"], buckets=_EVENTS
)
_age = Histogram(
    "farm_history_age_seconds",
    "Age of the newest stored event of a history, at the time of the request; sampled.",
    ["domain"],
    buckets=_AGES_S,
)
_missing = Histogram(
    "farm_history_missing_ratio",
    "Share of the values of the events that the model read which are not known; sampled.",
    ["domain"],
    buckets=_SHARES,
)
_probability = Histogram(
    "farm_score_probability",
    "Calibrated probability of a candidate, by task; sampled.",
    ["task"],
    buckets=_PROBABILITIES,
)
_of_domain = {domain: (_events.labels(domain), _age.labels(domain), _missing.labels(domain)) for domain in DOMAINS}
_throttle = Throttle(RANKINGS_PER_S)


@metered
def watch_drift(
    user: UserRecord | None, inputs: UserInputs, now_ms: int, probabilities: np.ndarray, tasks: Sequence[str]
) -> None:
    """A ranking, now and then.

    user: as read, None when not known;  inputs: what the model read of it (U = 1);  now_ms: the time of the request;
    probabilities [C, T], calibrated.
    """
    if _throttle.is_due():
        observe_histories(user, inputs, now_ms)
        observe_probabilities(probabilities[random.randrange(len(probabilities))], tasks)


def observe_histories(user: UserRecord | None, inputs: UserInputs, now_ms: int) -> None:
    """As `watch_drift`, of one ranking."""
    values = inputs.feeds()
    for domain, (events, age, missing) in _of_domain.items():
        read = values[domain][0, : int(values[f"{domain}_length"][0])]  # [E, F]
        events.observe(len(read))
        if len(read):
            missing.observe(float((read == MISSING).mean()))
        newest = None if user is None else newest_age_ms(user.history(domain), now_ms)
        if newest is not None:
            age.observe(max(0, newest) / 1000)


def observe_probabilities(probabilities: np.ndarray, tasks: Sequence[str]) -> None:
    """Of one candidate: [T], calibrated."""
    for task, probability in zip(tasks, probabilities.tolist(), strict=True):
        _probability.labels(task).observe(probability)
