"""The names of what a store keeps in Redis.  All that is of one user is in one slot of a cluster.

farm:<ns>:meta            hash: schema (JSON), format, partitions of the event log
farm:<ns>:active          string: the generation that is read        farm:<ns>:generations  how many were made
farm:<ns>:u<g>:{<user>}   hash: a = attributes, stamped; v, l = histories; n = version       g: generation
farm:<ns>:x:{<user>}      string: a tombstone: erased_until
farm:<ns>:a<g>:<author>   string: live rooms, stamped, newest last
"""

from __future__ import annotations

from collections.abc import Iterable


class RedisKeys:
    """Names in one namespace."""

    def __init__(self, namespace: str) -> None:
        self.prefix = f"farm:{namespace}"
        self.meta = f"{self.prefix}:meta"
        self.active = f"{self.prefix}:active"
        self.generations = f"{self.prefix}:generations"

    def user(self, generation: int, user_id: int) -> str:
        return f"{self.prefix}:u{generation}:{{{user_id}}}"

    def author(self, generation: int, author_id: int) -> str:
        return f"{self.prefix}:a{generation}:{author_id}"

    def tombstone(self, user_id: int) -> str:
        return f"{self.prefix}:x:{{{user_id}}}"

    def users(self, generation: int) -> str:
        """Pattern of the keys of all users."""
        return f"{self.prefix}:u{generation}:*"

    def authors(self, generation: int) -> str:
        return f"{self.prefix}:a{generation}:*"

    def tombstones(self) -> str:
        return f"{self.prefix}:x:*"

    def generation(self, generation: int) -> str:
        """Pattern of all keys of a generation."""
        return f"{self.prefix}:[ua]{generation}:*"


def ids_of(keys: Iterable[bytes]) -> list[int]:
    """The users or authors that keys are of."""
    return [int(key[key.rindex(b":") + 1 :].strip(b"{}")) for key in keys]
