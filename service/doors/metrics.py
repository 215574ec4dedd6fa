"""Who was sent away at the door, in Prometheus' client."""

from __future__ import annotations

from prometheus_client import Counter

from feature_store.metered import metered

REFUSED = (
    "malformed-request",
    "slow-request",
    "target-too-long",
    "headers-too-large",
    "too-many-connections",
)

_refused = Counter(
    "farm_connections_refused_total", "Connections closed because of what their client sent, or left out.", ["reason"]
)
_keys = Counter("farm_key_refusals_total", "Requests that were refused for their key, by problem type.", ["reason"])
_connections = {reason: _refused.labels(reason) for reason in REFUSED}  # named from the start, so that rates see 0
_requests = {reason: _keys.labels(reason) for reason in ("unauthorized", "forbidden")}


@metered
def count_refused_connection(reason: str) -> None:
    """reason: one of REFUSED."""
    _connections[reason].inc()


@metered
def count_refused_key(reason: str) -> None:
    """reason: unauthorized or forbidden."""
    _requests[reason].inc()
