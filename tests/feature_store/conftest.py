"""Builders of records of the default schema."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from feature_store.records import records_from_columns
from feature_store.schema import Domain, RecordSchema, default_schema

START_MS = 1_700_000_000_000


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
