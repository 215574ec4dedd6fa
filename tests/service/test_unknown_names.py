"""A setting that is misspelt is told, and every one that is read is known."""

from __future__ import annotations

import pytest

from service.unknown_names import unknown_names

OPTIONS = {"FARM_PORT", "FARM_STORE"}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("FARM_WACH_S", "FARM_WACH_S: nothing has this name, it is ignored; is FARM_WATCH_S meant?"),
        ("FARM_STOR", "FARM_STOR: nothing has this name, it is ignored; is FARM_STORE meant?"),
        ("FARM_ZZZZZZZZ", "FARM_ZZZZZZZZ: nothing has this name, it is ignored"),
    ],
)
def test_what_nothing_reads_is_told(name: str, line: str) -> None:
    assert list(unknown_names([name, "FARM_PORT", "PATH"], OPTIONS)) == [line]


@pytest.mark.parametrize(
    "name",
    [
        *("FARM_PORT", "FARM_WATCH_S", "FARM_REDIS_PASSWORD", "FARM_READING_FORBID", "FARM_LOG_LEVEL", "FARM_API_KEY"),
        *("FARM_LOAD_RATE", "FARM_SERVICE_HOST", "FARM_PORT_8080_TCP_ADDR", "FARMER"),
    ],
)
def test_what_is_read_or_is_nobodys_setting_is_not(name: str) -> None:
    assert list(unknown_names([name], OPTIONS)) == []
