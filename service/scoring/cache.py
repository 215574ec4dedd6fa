"""States of users that are kept, so that the user tower need not run again.

The key is what the user tower reads, so no event, attribute, erasure or generation of the store makes an entry wrong.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from feature_store.matrices import UserInputs
from model.artifact.engine import UserState

_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Kept:
    """A state and since when it is kept."""

    state: UserState
    since_s: float


class StateCache:
    """At most `limit_bytes` of states of one model, the least recently used are let go.  Thread safe.

    A job under way still holds the state that was let go; a device frees it with the last reference.
    """

    def __init__(
        self,
        version: str,
        lag_quantum_s: int,
        state_bytes: int,
        limit_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """version: of the model;  state_bytes: of one user;  limit_bytes: 0 keeps nothing."""
        self._version = hashlib.blake2b(version.encode(), digest_size=_DIGEST_BYTES)
        self._quantum_ms, self._state_bytes = 1000 * lag_quantum_s, state_bytes
        self._most = limit_bytes // state_bytes
        self._clock = clock
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        return len(self._kept) * self._state_bytes

    def key(self, users: UserInputs) -> bytes | None:
        """128 bits of everything that the user tower reads of one user (U = 1); None when nothing is kept."""
        if not self._most:
            return None
        digest = self._version.copy()
        now = users.now - users.now % self._quantum_ms  # as the graph reads it
        # of one shape each, so that their bytes in a row are of one meaning
        read = (users.video, users.video_length, users.live, users.live_length, users.user, now)
        digest.update(b"".join([values.tobytes() for values in read]))
        return digest.digest()

    def get(self, key: bytes | None) -> Kept | None:
        if key is None:
            return None
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
        return kept

    def put(self, key: bytes | None, state: UserState) -> int:
        """Bytes that are kept more now.  A state that is already there stays."""
        if key is None:
            return 0
        with self._lock:
            if key in self._kept:
                return 0
            self._kept[key] = Kept(state, self._clock())
            if len(self._kept) <= self._most:
                return self._state_bytes
            self._kept.popitem(last=False)
            return 0

    def age_s(self, kept: Kept) -> float:
        return self._clock() - kept.since_s

    def clear(self) -> int:
        """Bytes that were kept."""
        with self._lock:
            freed = self.size_bytes
            self._kept.clear()
        return freed
