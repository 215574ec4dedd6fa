"""From stored records to the int64 matrices that the towers read.

Letters: U users, L events of a history, N candidates, F fields.  A value that is not known is MISSING, in pads too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feature_store.authors import Authors, columns, single
from feature_store.records import UserRecord, known_at
from feature_store.schema import DOMAINS, MISSING, Domain
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
    history: np.ndarray, names: Sequence[str], now_ms: int, delay_ms: int, length: int
) -> tuple[np.ndarray, int]:
    """The `length` newest views whose outcome was known at now - delay, oldest first: [L, F] int64, and how many.

    history: records of one domain in history order (merge.py).
    """
    matrix = np.full((length, len(names)), MISSING)
    latest = now_ms - delay_ms
    known = known_at(history)
    keep = (known <= latest) & (known != MISSING)
    kept = (history if np.count_nonzero(keep) == len(history) else history[keep])[-length:]
    matrix[: len(kept)] = columns(kept, tuple(names))
    return matrix, len(kept)


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
    names = view.columns("candidate")
    packed = authors if isinstance(authors, Authors) else Authors.of(authors)
    newest, known = packed.take(author_ids)
    fields = packed.dtype.names
    if fields:
        matrix = newest.take([fields.index(name) for name in names], axis=1)
    else:
        matrix = np.full((len(author_ids), len(names)), MISSING)
    if packed.several:
        _put_older_rooms(matrix, names, author_ids, live_ids, packed.several)
    if "author_id" in names:
        matrix[:, names.index("author_id")] = author_ids
    if "live_id" in names:
        np.copyto(matrix[:, names.index("live_id")], live_ids, where=live_ids != MISSING)
    return matrix, ~known


def _domain_matrix(view: ModelView, domain: Domain, user: UserRecord | None, now_ms: int) -> tuple[np.ndarray, int]:
    names = view.columns(domain)
    if user is None:
        return np.full((view.history_length, len(names)), MISSING), 0
    return history_matrix(user.history(domain), names, now_ms, view.history_delay_s * 1000, view.history_length)


def _user_row(view: ModelView, user: UserRecord | None, user_id: int, context: Mapping[str, int]) -> list[int]:
    names = view.columns("user")
    attributes = None if user is None else user.attributes
    row = [MISSING] * len(names) if attributes is None else single(attributes, names)
    if "user_id" in names:
        row[names.index("user_id")] = user_id
    return row + [context.get(column, MISSING) for column in view.columns("context")]


def _put_older_rooms(
    matrix: np.ndarray,
    names: tuple[str, ...],
    author_ids: np.ndarray,
    live_ids: np.ndarray,
    several: Mapping[int, np.ndarray],
) -> None:
    """Into `matrix` [N, F], which is of the newest rooms, the requested ones where they are kept."""
    for row in np.flatnonzero(live_ids != MISSING).tolist():
        rooms = several.get(int(author_ids[row]))
        if rooms is not None and len(found := np.flatnonzero(rooms["live_id"] == live_ids[row])):
            matrix[row] = columns(rooms[found[-1:]], names)[0]
