"""The record schema and the model view of KuaiRand-Pure: names, dtypes, table rows, boundaries, widths.

Sizes are those of the official release: 27,285 users, 7,583 videos of 6,510 authors, tags 1 to 68.
"""

from __future__ import annotations

from typing import get_args

from feature_store.schema import RecordSchema, StoredField, StoredType
from feature_store.view import ModelView, ViewField
from model.datasets import fields

TASKS = ("ctr", "etr", "lvtr", "ltr", "cmtr", "wtr")  # the logs have no gift, and no task is called so
UTC_OFFSET_S = 8 * 3600  # the logs' `date` and `hourmin` are of Beijing
GROUPS = ("low", "mid", "high", "full", "new")
"""Activity groups by value: the paper's four (Table 4), and users too new to have one."""
UPLOAD_TYPES = (
    *("LongImport", "Web", "ShortImport", "Kmovie", "LongPicture", "PictureSet", "LongCamera", "ShortCamera"),
    *("ShareFromOtherApp", "FollowShoot", "AiCutVideo", "LipsSync", "PhotoCopy"),
)
VIDEO_TYPES = ("NORMAL", "AD")
USER_FLAGS = ("is_live_streamer", "is_video_author")
USER_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
ONEHOT_VALUES = (2, 7, 50, 1471, 15, 34, 3, 118, 454, 7, 5, 5, 2, 2, 2, 2, 2, 2)
"""Distinct values of onehot_feat0 to onehot_feat17, each 0 to n - 1."""
ONEHOTS = tuple(f"onehot_feat{i}" for i in range(len(ONEHOT_VALUES)))

COUNT_BOUNDARIES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 100_000)
REGISTER_DAYS = (30, 60, 90, 180, 365, 730, 1_095, 1_460, 1_825, 2_190, 2_555, 2_920)


def _stored(columns: str) -> tuple[StoredField, ...]:
    """Fields from "name:dtype name:dtype"."""
    pairs = [column.split(":") for column in columns.split()]
    return tuple(StoredField(name=name, dtype=_stored_type(dtype)) for name, dtype in pairs)


def _stored_type(name: str) -> StoredType:
    return next(dtype for dtype in get_args(StoredType) if dtype == name)


_EVENT = (
    "view_id:i8 event_time:i8 known_after:i4 author_id:i8 play_time:i4 page:i2 tag:i2 duration:i4 upload_type:i1"
    " behaviours:i2"
)
_USER = "user_id:i8 activity_group:i1"

KUAIRAND_SCHEMA = RecordSchema(
    name="kuairand",
    version=1,
    history_length=50,
    author_lives=64,  # a live is a video here; no author of the release has more than 26
    behaviours=(
        *("click", "effective_view", "long_view", "like", "comment", "follow", "share", "hate", "profile_enter"),
    ),
    video=_stored(_EVENT),
    live=_stored(_EVENT),
    author=_stored(
        "author_id:i8 live_id:i8 tag:i2 second_tag:i2 upload_type:i1 duration:i4 music_type:i1 video_type:i1"
    ),
    user=_stored(
        " ".join(
            (
                _USER,
                *(f"{name}:i1" for name in USER_FLAGS),
                *(f"{name}:i4" for name in USER_COUNTS),
                *(f"{name}:i2" for name in ONEHOTS),
            )
        )
    ),
)

_PAGE = fields.category("page", 4, 16, table="page")  # tab is 0 to 14
_UPLOAD = fields.category("upload_type", 4, 16, table="upload_type")
_BITS = len(KUAIRAND_SCHEMA.behaviours)
_HISTORY = (fields.AUTHOR_ID, fields.TAG, _UPLOAD)


def _onehot(name: str, values: int) -> ViewField:
    return fields.category(name, 8 if values > 100 else 4 if values > 10 else 2, values)


KUAIRAND_VIEW = ModelView(
    history_length=50,
    utc_offset_s=UTC_OFFSET_S,
    tasks=TASKS,
    video=(  # D1 = 92; the page of this domain is always 1
        *(*_HISTORY, fields.play_time(16), fields.lag(16), fields.behaviours(12, _BITS)),
        fields.number("duration", 4, fields.DURATION_MS),
    ),
    live=(  # D2 = 64
        *(*_HISTORY, _PAGE, fields.play_time(4), fields.lag(4), fields.behaviours(5, _BITS)),
        fields.number("duration", 3, fields.DURATION_MS),
    ),
    candidate=(
        *(fields.AUTHOR_ID, fields.LIVE_ID, fields.TAG, fields.TAG.model_copy(update={"name": "second_tag"}), _UPLOAD),
        fields.number("duration", 8, fields.DURATION_MS),
        fields.category("music_type", 4, 15),
        fields.category("video_type", 2, len(VIDEO_TYPES)),
    ),
    user=(
        *(fields.USER_ID, fields.category("activity_group", 8, len(GROUPS))),
        *(fields.category(name, 2, 2) for name in USER_FLAGS),
        *(fields.number(name, 4, COUNT_BOUNDARIES) for name in USER_COUNTS[:3]),
        fields.number("register_days", 4, REGISTER_DAYS),
        *(_onehot(name, values) for name, values in zip(ONEHOTS, ONEHOT_VALUES, strict=True)),
    ),
    context=(_PAGE, fields.LOCAL_HOUR),
)
