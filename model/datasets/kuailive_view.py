"""The record schema and the model view of KuaiLive-M3: names, dtypes, table rows, boundaries, widths.

Sizes are those of the published catalogue: 21,938 users, 6.56 M live rooms.
"""

from __future__ import annotations

from feature_store.schema import RecordSchema, StoredField, StoredType
from feature_store.view import ModelView, ViewField
from model.datasets import fields

TASKS = ("ctr", "etr", "lvtr", "ltr", "cmtr", "gtr")
UTC_OFFSET_S = 8 * 3600  # the logs' `p_date` is of Beijing
CODES = 8
"""Codes that stand for a room's embedding: one for each eighth of its 64 numbers."""
CODE_VALUES = 256
VIEWED_BITS = 25
"""Of the id of a room or a video, so that a view id has room for the time too: 33.5 M; the release has 6.7 M."""
LIVE_ACTS = ("like", "comment", "gift", "follow", "share", "report")
"""Acts of an entry that the release counts."""

_AUTHOR_ROWS = 2**18
_LIVE_ROWS = 2**18
_CODE_NAMES = tuple(f"emb_{i}" for i in range(CODES))


def _stored(*columns: tuple[str, StoredType]) -> tuple[StoredField, ...]:
    return tuple(StoredField(name=name, dtype=dtype) for name, dtype in columns)


_VIEW = _stored(
    *(("view_id", "i8"), ("event_time", "i8"), ("known_after", "i4"), ("author_id", "i8"), ("play_time", "i4")),
    ("behaviours", "i2"),
)
_PROFILE = _stored(("gender", "i2"), ("age", "i2"), ("fans", "i2"))

_SCHEMA = RecordSchema(
    name="kuailive",
    version=1,
    history_length=50,
    author_lives=8,
    behaviours=(*("click", "effective_view", "long_view", *LIVE_ACTS, "complete_play"),),
    video=(*_VIEW, *_stored(("tag", "i2"), ("duration", "i4")), *_PROFILE),
    live=(*_VIEW, *_stored(("page", "i2"), ("enter_action", "i2"), ("following", "i1")), *_PROFILE),
    author=(*_stored(("author_id", "i8"), ("live_id", "i8"), ("start_hour", "i1")), *_PROFILE),
    user=_stored(("user_id", "i8")),
)

_AUTHOR_ID = fields.AUTHOR_ID.model_copy(update={"rows": _AUTHOR_ROWS})
_LIVE_ID = fields.LIVE_ID.model_copy(update={"rows": _LIVE_ROWS})
_OF_AUTHOR = (
    fields.category("gender", 2, 4, table="gender"),
    fields.category("age", 4, 12, table="age"),
    fields.category("fans", 4, 24, table="fans"),
)
_BITS = len(_SCHEMA.behaviours)


def kuailive_schema(content: bool = False) -> RecordSchema:
    """The record schema; with content, an author record has the codes of its room's embedding too (version 2)."""
    if not content:
        return _SCHEMA
    codes = tuple(StoredField(name=name, dtype="i2") for name in _CODE_NAMES)
    return _SCHEMA.model_copy(update={"version": 2, "author": (*_SCHEMA.author, *codes)})


def kuailive_view(content: bool = False) -> ModelView:
    """The recommended model view; with content, a candidate has the codes of its room's embedding too.

    The page is read of the live history only: an impression has none, so that the page of a request would tell an
    entry from an impression.
    """
    codes = tuple(fields.category(name, 4, CODE_VALUES) for name in _CODE_NAMES) if content else ()
    return ModelView(
        history_length=50,
        utc_offset_s=UTC_OFFSET_S,
        tasks=TASKS,
        video=_video(),
        live=_live(),
        candidate=(_AUTHOR_ID, _LIVE_ID, fields.category("start_hour", 4, 24), *_OF_AUTHOR, *codes),
        user=(fields.USER_ID,),
        context=(fields.LOCAL_HOUR,),
    )


def _video() -> tuple[ViewField, ...]:
    """D1 = 92"""
    return (
        *(_AUTHOR_ID, fields.TAG, fields.play_time(16), fields.lag(12), fields.behaviours(10, _BITS), *_OF_AUTHOR),
        fields.number("duration", 4, fields.DURATION_MS),
    )


def _live() -> tuple[ViewField, ...]:
    """D2 = 64"""
    return (
        *(_AUTHOR_ID, fields.play_time(8), fields.lag(6), fields.behaviours(6, _BITS), *_OF_AUTHOR),
        *(fields.category("page", 4, 31), fields.category("enter_action", 4, 15), fields.category("following", 2, 2)),
    )
