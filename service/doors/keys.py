"""API keys: `farm_<id>_<secret>`.  Only a hash of each is kept.

The hash is one SHA-256 without salt: a secret has 256 random bits, so nobody can guess it or look it up in a table,
which is what salts and slow hashes are for; and a slow one would be paid by each request.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

Scope = Literal["rank", "events", "explain", "admin"]

_SECRET_BYTES = 32
_ID_BYTES = 6


class StoredKey(BaseModel):
    """What is kept of a key: a line of the file of keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[a-z0-9]{4,32}$")]
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # SHA-256 of the whole key
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    name: Annotated[str, Field(max_length=100)] = ""  # whose it is, for people
    limit: Annotated[int | None, Field(ge=1)] = None  # requests at one time, of one worker
    expires: AwareDatetime | None = None

    def line(self) -> str:
        """For the file."""
        return self.model_dump_json(exclude_defaults=True)


def new_key(
    scopes: Iterable[Scope], name: str = "", limit: int | None = None, expires: datetime | None = None
) -> tuple[str, StoredKey]:
    """A key, which is known to nobody else, and what to keep of it.  ValidationError names what is wrong."""
    key_id = secrets.token_hex(_ID_BYTES)
    key = f"farm_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    given = {"id": key_id, "hash": _digest(key.encode()), "scopes": frozenset(scopes)}
    return key, StoredKey.model_validate({**given, "name": name, "limit": limit, "expires": expires})


def parse_keys(text: str, source: str) -> dict[str, StoredKey]:
    """Keys by id, from lines of JSON; empty lines and those that begin with # say nothing.

    ValueError names the line of `source`, and not what it holds.
    """
    keys: dict[str, StoredKey] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        key = _parsed(line, f"{source}, line {number}")
        if key.id in keys:
            raise ValueError(f"{source}, line {number}: the id {key.id} is there already; each key has its own")
        keys[key.id] = key
    return keys


def matching(keys: dict[str, StoredKey], given: bytes) -> StoredKey | None:
    """The key that `given` is, compared in constant time; None: none of them."""
    known = keys.get(given[5 : given.find(b"_", 5)].decode("latin-1")) if given.startswith(b"farm_") else None
    if known is not None and hmac.compare_digest(known.hash, _digest(given)):
        return known
    return None


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def _parsed(line: str, where: str) -> StoredKey:
    try:
        return StoredKey.model_validate_json(line)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'the line'}: {e['msg'].lower()}" for e in error.errors()]
        raise ValueError(f"{where}: {'; '.join(wrong)}; `farm keys new` makes such a line") from None
