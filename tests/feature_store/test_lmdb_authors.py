"""Authors that an LMDB store remembers are never other than what is stored."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
from builders import author_updates

from feature_store.lmdb_store import LmdbStore
from feature_store.schema import default_schema

SCHEMA = default_schema()
_OTHER_PROCESS = """
import asyncio, sys
import numpy as np
from feature_store.lmdb_store import LmdbStore
from feature_store.records import records_from_columns

async def main():
    async with LmdbStore(sys.argv[1]) as store:
        records = records_from_columns(store.schema, "author", {"author_id": [7, 8], "live_id": [73, 81]})
        await store.put_authors(records, np.array([30, 30]))

asyncio.run(main())
"""


def test_remembered_authors_are_what_is_stored(tmp_path: Path) -> None:
    async def rooms(store: LmdbStore) -> dict[int, list[int]]:
        found = (await store.read(1, [7, 8, 9])).authors
        return {author: lives["live_id"].tolist() for author, lives in found.items()}

    async def run() -> None:
        async with LmdbStore(tmp_path, SCHEMA, create=True) as store:
            assert await rooms(store) == {}
            first = author_updates(SCHEMA, [10], author_id=[7], live_id=[71])
            await store.put_authors(first.authors, np.array([10]))
            assert await rooms(store) == {7: [71]}
            await store.apply(author_updates(SCHEMA, [20], author_id=[7], live_id=[72]))
            assert await rooms(store) == {7: [72]}
            subprocess.run([sys.executable, "-c", _OTHER_PROCESS, str(tmp_path)], check=True)
            assert await rooms(store) == await rooms(store) == {7: [73], 8: [81]}

    asyncio.run(run())
