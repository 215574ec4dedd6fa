"""The functions that merge in the server: merge.lua and the record schema it is for, as one library, and calling it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib import resources
from typing import Any

import numpy as np
from redis.exceptions import ResponseError

from feature_store.redis.link import RedisLink
from feature_store.redis.replicated import write_replicated
from feature_store.schema import RecordSchema, StoredField

Reply = int | bytes
Call = tuple[str | bytes | int, ...]
"""Function, number of keys, keys, arguments."""

UPDATED_AT = StoredField(name="updated_at", dtype="i8")
"""Before every stored author record and every user's attributes: when it was said, ms since 1970."""


@dataclass(frozen=True)
class MergeLibrary:
    """A Redis function library; its name tells its text, so other versions of it do no harm beside it."""

    name: str
    text: str  # what FUNCTION LOAD takes

    @property
    def user(self) -> str:
        """Merges into one user; keys and arguments of all three: merge.lua."""
        return f"{self.name}_user"

    @property
    def author(self) -> str:
        """Merges into one author."""
        return f"{self.name}_author"

    @property
    def erase(self) -> str:
        """Erases one user."""
        return f"{self.name}_erase"


def merge_library(schema: RecordSchema) -> MergeLibrary:
    """The library for stores of a schema."""
    source = resources.files("feature_store.redis").joinpath("merge.lua").read_text()
    body = f"{_layout(schema)}\n{source}"
    name = f"farm_{blake2b(body.encode(), digest_size=4).hexdigest()}"
    return MergeLibrary(name, f'#!lua name={name}\nlocal LIBRARY = "{name}"\n{body}')


class MergeFunctions:
    """Calls the functions of a library, and loads it where it is not there: on a new server, or after a FLUSHALL."""

    def __init__(self, link: RedisLink, schema: RecordSchema) -> None:
        self.library = merge_library(schema)
        self._link = link

    async def call(self, calls: Sequence[Call]) -> list[Reply]:
        """Replies in the order of the calls, which are sent in one trip to each server.  StoreError when one fails."""
        with self._link.errors():
            replies = await self._send(calls)
            unknown = [at for at, reply in enumerate(replies) if _is_unknown(reply)]
            if unknown:
                await self._load()
                again = await self._send([calls[at] for at in unknown])
                for at, reply in zip(unknown, again, strict=True):
                    replies[at] = reply
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return replies

    async def _send(self, calls: Sequence[Call]) -> list[Any]:
        if self._link.settings.durability == "replica":  # or an event could be acknowledged and lost with its user
            return await write_replicated(self._link, [(str(call[2]), ("FCALL", *call)) for call in calls])
        pipe = self._link.pipeline()
        for call in calls:
            pipe.execute_command("FCALL", *call)
        return await pipe.execute(raise_on_error=False)

    async def _load(self) -> None:
        for server in await self._link.primaries():
            await server.function_load(self.library.text, replace=True)


def _is_unknown(reply: object) -> bool:
    return isinstance(reply, ResponseError) and "unction not found" in str(reply)


def _layout(schema: RecordSchema) -> str:
    """Lua tables: fields, sizes and limits of each kind of record."""
    return "\n".join(
        (
            "local LAYOUT = {}",
            *_kind("video", schema.video, "view_id", schema.history_length, schema.history_spare),
            *_kind("live", schema.live, "view_id", schema.history_length, schema.history_spare),
            *_kind("author", (UPDATED_AT, *schema.author), "live_id", schema.author_lives, 0),
            *_kind("user", (UPDATED_AT, *schema.user), "user_id", 1, 0),
        )
    )


def _kind(name: str, fields: tuple[StoredField, ...], key: str, length: int, spare: int) -> Iterator[str]:
    """One kind; `id` names it among others of its owner, and fields that join in their own way have names."""
    ends = np.cumsum([np.dtype(field.dtype).itemsize for field in fields]).tolist()
    rows = ", ".join(map(_field, fields, ends))
    yield f"LAYOUT.{name} = {{size = {ends[-1]}, length = {length}, spare = {spare}, fields = {{{rows}}}}}"
    names = {key: "id", "event_time": "event_time", "known_after": "known_after", "behaviours": "behaviours"}
    for index, field in enumerate(fields, start=1):
        if field.name in names:
            yield f"LAYOUT.{name}.{names[field.name]} = LAYOUT.{name}.fields[{index}]"


def _field(field: StoredField, end: int) -> str:
    dtype = np.dtype("<" + field.dtype)
    limits = np.iinfo(dtype)
    missing = "".join(f"\\{byte}" for byte in np.array(limits.min, dtype).tobytes())
    return (
        f'{{at = {end - dtype.itemsize + 1}, last = {end}, size = {dtype.itemsize}, format = "<{field.dtype}", '
        f'least = {limits.min}, most = {limits.max}, missing = "{missing}"}}'
    )
