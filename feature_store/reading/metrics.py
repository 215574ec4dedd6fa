"""How readings went, in Prometheus' client."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from prometheus_client import Counter, Gauge, Histogram

from feature_store.metered import metered
from feature_store.reading.breaker import State
from feature_store.reading.settings import WORDS

Result = Literal["whole", "degraded", "forbidden"]
Cause = Literal["", "slow", "down", "open", "corrupt"]
"""Why a reading is less than whole: no answer in time, an error, not asked after such ones, a damaged record."""

_AGES_S = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)

_readings = Counter("farm_readings_total", "Readings of the store, by result.", ["result"])
_degraded = Counter("farm_readings_degraded_total", "Readings that lacked something, by what.", ["word"])
_causes = Counter("farm_readings_failed_total", "Readings that were less than whole, by cause.", ["cause"])
_circuit = Gauge(
    "farm_store_circuit", "Workers by the state of their circuit to the store.", ["state"], multiprocess_mode="livesum"
)
_bytes = Gauge("farm_last_good_bytes", "User records kept for when the store fails.", multiprocess_mode="livesum")
_users = Gauge("farm_last_good_users", "Users of whom a record is kept.", multiprocess_mode="livesum")
_kept = Counter(
    "farm_last_good_requests_total",
    "Readings that the store did not answer, by whether a record of the user was kept.",
    ["result"],
)
_age = Histogram("farm_last_good_age_seconds", "Age of a kept user record that was used.", buckets=_AGES_S)
_corrupt = Counter("farm_store_corrupt_records_total", "Readings of a record that is damaged.", ["record"])

_result = {result: _readings.labels(result) for result in get_args(Result)}  # so that rates see 0
_word: dict[str, Counter] = {word: _degraded.labels(word) for word in WORDS}
_cause = {cause: _causes.labels(cause) for cause in get_args(Cause) if cause}
_state = {state: _circuit.labels(state) for state in get_args(State)}
_hit, _miss = _kept.labels("hit"), _kept.labels("miss")
_record = {record: _corrupt.labels(record) for record in ("user", "author")}

_whole = _result["whole"]


@metered
def count_whole() -> None:
    """A reading that lacks nothing."""
    _whole.inc()


@metered
def count_less(result: Result, words: Iterable[str], cause: Cause) -> None:
    """A reading that is less than whole."""
    _result[result].inc()
    for word in words:
        _word[word].inc()
    if cause:
        _cause[cause].inc()


@metered
def count_corrupt(record: Literal["user", "author"]) -> None:
    _record[record].inc()


@metered
def show_circuit(state: State) -> None:
    for name, gauge in _state.items():
        gauge.set(name == state)


@metered
def show_last_good(users: int, size: int) -> None:
    """size: bytes."""
    _users.set(users)
    _bytes.set(size)


@metered
def count_last_good(age_s: float | None) -> None:
    """Of a kept user record that was used; None: there was none."""
    if age_s is None:
        _miss.inc()
    else:
        _hit.inc()
        _age.observe(age_s)
