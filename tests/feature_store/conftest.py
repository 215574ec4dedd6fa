"""Builders of records of the default schema, and every backend of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from builders import START_MS, OpenBackend

from feature_store.records import records_from_columns
from feature_store.schema import Domain, RecordSchema, default_schema
from feature_store.store import FeatureStore, open_store
from loadtest import redis_servers
from loadtest.redis_servers import Cluster, Watched

SERVERS = {"redis": redis_servers.valkey, "sentinel": redis_servers.sentinel, "cluster": redis_servers.cluster}


@pytest.fixture(scope="session")
def schema() -> RecordSchema:
    return default_schema()


@pytest.fixture(scope="session")
def make_events(schema: RecordSchema) -> Callable[..., np.ndarray]:
    """Views first, first + 1, ..., one a second, each known half a second later; other columns as given."""

    def make(domain: Domain, count: int, first: int = 0, **columns: object) -> np.ndarray:
        views = np.arange(first, first + count)
        default = {"view_id": views, "event_time": START_MS + 1000 * views, "known_after": np.full(count, 500)}
        return records_from_columns(schema, domain, {**default, "author_id": views * 10, **columns})

    return make


@pytest.fixture(scope="session")
def server_url() -> Iterator[Callable[[str], str]]:
    """The URL of a kind of server, which is started when it is first asked for and runs until the session ends."""
    with ExitStack() as stack:

        @cache
        def url(kind: str) -> str:
            return stack.enter_context(SERVERS[kind]()).url

        yield url


@pytest.fixture
def backend_url(request: pytest.FixtureRequest, server_url: Callable[[str], str], tmp_path: Path) -> str:
    """The URL of a store that nobody else uses; tests name the backends by indirect parametrization."""
    kind: str = request.param
    return f"lmdb://{tmp_path}/store" if kind == "lmdb" else f"{server_url(kind)}?namespace=t{uuid4().hex[:16]}"


@pytest.fixture
def open_backend(backend_url: str) -> OpenBackend:
    """Opens the store of this test, which is created when it is not there."""

    def open_it(schema: RecordSchema | None = None, create: bool = True) -> FeatureStore:
        return open_store(backend_url, schema, create=create)

    return open_it


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A cluster that a test module may harm."""
    with redis_servers.cluster(extra_args=["--cluster-require-full-coverage", "no"]) as made:  # the living nodes go on
        yield made


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """The same, of a master that sentinels watch."""
    with redis_servers.sentinel() as made:
        yield made
