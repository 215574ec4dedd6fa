"""What is counted when the store does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from prometheus_client import REGISTRY

from feature_store.absent import AbsentStore
from feature_store.reading.reader import LadderReader
from feature_store.reading.settings import ReadingSettings
from feature_store.records import UserRecord
from feature_store.schema import RecordSchema


def test_whether_a_record_was_kept_and_how_old_it_was(
    schema: RecordSchema, make_events: Callable[..., np.ndarray]
) -> None:
    def counts() -> list[float]:
        names = [("requests_total", {"result": result}) for result in ("hit", "miss")]
        names += [("age_seconds_count", {}), ("age_seconds_sum", {})]
        return [REGISTRY.get_sample_value(f"farm_last_good_{name}", labels) or 0.0 for name, labels in names]

    now = 100.0
    reader = LadderReader(AbsentStore("nobody answers", schema), ReadingSettings(), lambda: now)
    kept = UserRecord(None, make_events("video", 1), make_events("live", 0), 1)
    reader.last_good.put(17, kept, now)
    now += 12.0
    before = counts()
    words = [asyncio.run(reader.read(user, [1], None, None)).degraded[0] for user in (17, 17, 18)]
    assert words == ["stale_history", "stale_history", "no_history"]
    assert np.subtract(counts(), before).tolist() == pytest.approx([2, 1, 2, 24.0])
