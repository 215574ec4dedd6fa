"""Something done with a link to a server of a test."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from feature_store.redis.link import RedisLink
from feature_store.redis.settings import RedisSettings
from feature_store.store import StoreError

SECRET = "correct/horse@battery"  # has to be encoded in a URL
ENCODED = "correct%2Fhorse%40battery"
T = TypeVar("T")


def use(url: str, act: Callable[[RedisLink], Awaitable[T]], **settings: Any) -> T:
    """What `act` returns, in an event loop of its own."""

    async def run() -> T:
        link = RedisLink.open(url, RedisSettings(**settings))
        try:
            return await act(link)
        finally:
            await link.aclose()

    return asyncio.run(run())


def refused(url: str, **settings: Any) -> str:
    """The one line that check says."""
    with pytest.raises(StoreError) as raised:
        use(url, RedisLink.check, **settings)
    shown = "".join(traceback.format_exception(raised.value))
    assert SECRET not in shown
    assert ENCODED not in shown
    line = str(raised.value)
    assert "\n" not in line
    return line
