"""From stored records to the int64 matrices that the towers read.

Letters: U users, L events of a history, N candidates, F fields.  A value that is not known is MISSING, in pads too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feature_store.records import UserRecord, known_at
from feature_store.schema import DOMAINS, MISSING, Domain, widen
from feature_store.view import ModelView


@dataclass(frozen=True)
class UserInputs:
    """What the user tower reads, raw: ids, ms, bit sets.  Field names are the graph's input names."""

    video: np.ndarray  # [U, L, Fv] int64, oldest event first, events at 0..n-1, pads after; columns of view "video"
    video_length: np.ndarray  # [U] int64
    live: np.ndarray  # [U, L, Fl] int64
    live_length: np.ndarray  # [U] int64
    user: np.ndarray  # [U, Fu + Fx] int64: columns of view "user", then those of "context"
    now: np.ndarray  # [U] int64, request time, ms since 1970

    def feeds(self) -> dict[str, np.ndarray]:
        """The inputs by graph input name."""
        return dict(vars(self))


def history_matrix(
    history: np.ndarray, columns: Sequence[str], now_ms: int, delay_ms: int, length: int
) -> tuple[np.ndarray, int]:
    """The `length` newest views whose outcome was known at now - delay, oldest first: [L, F] int64, and how many.

    history: records of one domain in history order (merge.py).
    """
    matrix = np.full((length, len(columns)), MISSING)
    known = known_at(history)
    rows = np.flatnonzero((known != MISSING) & (known <= now_ms - delay_ms))[-length:]
    for index, column in enumerate(columns):
        matrix[: len(rows), index] = widen(history[column][rows])
    return matrix, len(rows)


def user_inputs(
    view: ModelView, user: UserRecord | None, user_id: int, context: Mapping[str, int], now_ms: int
) -> UserInputs:
    """What the user tower reads of one user (U = 1); None is an unknown user, with empty histories.

    context: values by name of view "context"; what is absent is MISSING.
    """
    matrices, lengths = {}, {}
    for domain in DOMAINS:
        matrix, count = _domain_matrix(view, domain, user, now_ms)
        matrices[domain], lengths[domain] = matrix[None], np.array([count])
    return UserInputs(
        video=matrices["video"],
        video_length=lengths["video"],
        live=matrices["live"],
        live_length=lengths["live"],
        user=np.array([_user_row(view, user, user_id, context)], np.int64),
        now=np.array([now_ms], np.int64),
    )


def candidate_matrix(
    view: ModelView, author_ids: np.ndarray, live_ids: np.ndarray, authors: Mapping[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What the candidate tower reads: [N, F] int64 in columns of view "candidate", and which authors are unknown [N].

    Attributes are those of the requested live room; of the author's newest when the request names none (MISSING) or it
    is not kept.  The live_id is the requested one, or the newest when the request names none.

    author_ids, live_ids: [N] int64;  authors: records "author" of each known author, newest live room last.
    """
    records, rows = _chosen_rows(author_ids, live_ids, authors)
    unknown = rows < 0
    columns = view.columns("candidate")
    matrix = np.full((len(author_ids), len(columns)), MISSING)
    for index, column in enumerate(columns):
        if column == "author_id":
            matrix[:, index] = author_ids
            continue
        if records is not None:
            matrix[:, index] = np.where(unknown, MISSING, widen(records[column])[rows])
        if column == "live_id":
            matrix[:, index] = np.where(live_ids == MISSING, matrix[:, index], live_ids)
    return matrix, unknown


def _domain_matrix(view: ModelView, domain: Domain, user: UserRecord | None, now_ms: int) -> tuple[np.ndarray, int]:
    columns = view.columns(domain)
    if user is None:
        return np.full((view.history_length, len(columns)), MISSING), 0
    return history_matrix(user.history(domain), columns, now_ms, view.history_delay_s * 1000, view.history_length)


def _user_row(view: ModelView, user: UserRecord | None, user_id: int, context: Mapping[str, int]) -> list[int]:
    attributes = None if user is None else user.attributes
    row = []
    for column in view.columns("user"):
        if column == "user_id":
            row.append(user_id)
        else:
            row.append(MISSING if attributes is None else int(widen(np.atleast_1d(attributes[column]))[0]))
    return row + [context.get(column, MISSING) for column in view.columns("context")]


def _chosen_rows(
    author_ids: np.ndarray, live_ids: np.ndarray, authors: Mapping[int, np.ndarray]
) -> tuple[np.ndarray | None, np.ndarray]:
    """All records of the candidates' authors, and each candidate's row in them, -1 where the author is unknown [N]."""
    kept = [authors.get(author_id, ()) for author_id in author_ids.tolist()]
    counts = np.array([len(lives) for lives in kept], np.int64)
    rows = np.where(counts > 0, np.cumsum(counts) - 1, -1)
    if not counts.any():
        return None, rows
    known = [lives for lives in kept if isinstance(lives, np.ndarray)]
    # np.concatenate takes 3 us for each structured array
    records = np.frombuffer(b"".join([lives.tobytes() for lives in known]), known[0].dtype)
    owners = np.repeat(np.arange(len(kept)), counts)
    wanted = live_ids[owners]
    matches = np.flatnonzero((widen(records["live_id"]) == wanted) & (wanted != MISSING))
    rows[owners[matches]] = matches
    return records, rows
