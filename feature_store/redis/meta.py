"""Opening a namespace: what it holds is agreed on, or it is made."""

from __future__ import annotations

from dataclasses import dataclass

from feature_store.redis.keys import RedisKeys
from feature_store.redis.link import RedisLink
from feature_store.schema import RecordSchema, default_schema
from feature_store.store import StoreError, require_same_schema

_FORMAT = 1  # of keys and values


@dataclass(frozen=True)
class Opened:
    """What there is at the other end."""

    server: str  # product and version
    schema: RecordSchema
    generation: int  # that is read


async def open_namespace(link: RedisLink, keys: RedisKeys, asked: RecordSchema | None, create: bool) -> Opened:
    """The servers checked, the schema agreed on.  StoreError, SchemaMismatch as `open_store`."""
    try:
        server = await link.check()
        with link.errors():
            stored = await _stored_schema(link, keys)
            if stored is None:
                if not create:
                    raise StoreError(f"no store at {_place(link)}: make one with `farm materialize`")
                stored = await _make(link, keys, asked or default_schema())
            require_same_schema(stored, asked or stored, _place(link))
            active = await link.client.get(keys.active)
        if active is None:
            raise StoreError(f"store {_place(link)}: {keys.active} is gone, which names the generation to read")
        return Opened(server, stored, int(active))
    finally:
        await link.aclose()


async def _stored_schema(link: RedisLink, keys: RedisKeys) -> RecordSchema | None:
    text, form = await link.client.execute_command("HMGET", keys.meta, "schema", "format")
    if text is None:
        return None
    if form != str(_FORMAT).encode():
        found = None if form is None else form.decode(errors="replace")
        raise StoreError(f"store {_place(link)}: it has format {found}, this version reads {_FORMAT}")
    return RecordSchema.model_validate_json(text)


async def _make(link: RedisLink, keys: RedisKeys, schema: RecordSchema) -> RecordSchema:
    """Make what is not there, the schema last, so that who finds it finds all.  Returns the schema of who was first."""
    client = link.client
    await client.setnx(keys.generations, 1)
    await client.setnx(keys.active, 1)
    for field, value in (("partitions", link.settings.partitions), ("format", _FORMAT)):
        await client.hsetnx(keys.meta, field, str(value))
    await client.hsetnx(keys.meta, "schema", schema.model_dump_json())
    stored = await _stored_schema(link, keys)
    assert stored is not None, "it was just written"
    return stored


def _place(link: RedisLink) -> str:
    return f"{link.where} (namespace {link.settings.namespace})"
