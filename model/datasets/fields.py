"""Fields that the recommended model views of several sources have in common, and their boundaries."""

from __future__ import annotations

from feature_store.view import ViewField

_S, _MIN, _H, _DAY = 1_000, 60_000, 3_600_000, 86_400_000  # ms
PLAY_TIME_MS = tuple(int(s * _S) for s in (0.001, 0.5, 1, 2, 3, 5, 7, 10, 14, 20, 30, 45, 60, 90, 120, 180, 300, 600))
LAG_MS = (
    *(n * _MIN for n in (1, 2, 5, 10, 20, 30)),
    *(n * _H for n in (1, 2, 4, 8, 12)),
    *(n * _DAY for n in (1, 2, 3, 5, 7, 14, 28)),
)
DURATION_MS = tuple(s * _S for s in (7, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 600))

# One table for what both histories and the candidate name: what is learnt in one domain is known in the other.
AUTHOR_ID = ViewField(name="author_id", kind="id", width=24, rows=16_384, table="author_id")
TAG = ViewField(name="tag", kind="category", width=16, rows=128, table="tag")
LIVE_ID = ViewField(name="live_id", kind="id", width=16, rows=16_384)
USER_ID = ViewField(name="user_id", kind="id", width=16, rows=32_768)
LOCAL_HOUR = ViewField(name="local_hour", kind="hour", width=4)


def number(name: str, width: int, boundaries: tuple[int, ...]) -> ViewField:
    return ViewField(name=name, kind="number", width=width, boundaries=boundaries)


def category(name: str, width: int, values: int, table: str = "") -> ViewField:
    """A category of values 0 to `values` - 1, each with a row of its own."""
    return ViewField(name=name, kind="category", width=width, rows=values + 1, table=table)


def play_time(width: int) -> ViewField:
    return number("play_time", width, PLAY_TIME_MS)


def lag(width: int) -> ViewField:
    return ViewField(name="lag", column="event_time", kind="time", width=width, boundaries=LAG_MS)


def behaviours(width: int, bits: int) -> ViewField:
    return ViewField(name="behaviours", kind="behaviours", width=width, rows=bits)
