"""Settings of the ladder, from code and from the environment."""

from __future__ import annotations

import pytest

from feature_store.reading.settings import WORDS, ReadingSettings, reading_settings
from feature_store.store import StoreError


def test_a_comma_list_forbids_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_READING_FORBID", " no_history, corrupt_history,")
    monkeypatch.setenv("FARM_READING_BUDGET_MS", "20")
    settings = reading_settings()
    assert (settings.forbid, settings.budget_ms) == ({"no_history", "corrupt_history"}, 20.0)
    monkeypatch.setenv("FARM_READING_FORBID", "")
    assert reading_settings().forbid == frozenset()
    assert ReadingSettings(forbid=frozenset(WORDS)).forbid == set(WORDS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FORBID", "no_history,everything"),
        ("BUDGET_MS", "0"),
        ("LAST_GOOD_MB", "-1"),
        ("FAILURE_SHARE", "1.5"),
        ("PROBE_INTERVAL_S", "2"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"FARM_READING_{name}", value)
    with pytest.raises(StoreError, match=f"^FARM_READING_{name}: ") as raised:
        reading_settings()
    assert "\n" not in str(raised.value)
