"""A client of the service, blocking and asyncio: the contract's types over httpx (docs/client.md)."""

from __future__ import annotations

from service.client.errors import BusyError, DeadlineError, HttpxMissingError, NoAnswerError, RankError

try:
    import httpx  # noqa: F401
except ModuleNotFoundError:
    raise HttpxMissingError("service.client needs the package `httpx`: install the extra `client`") from None

from service.client.asking import Exchange
from service.client.clients import AsyncRankClient, RankClient

__all__ = [
    "AsyncRankClient",
    "BusyError",
    "DeadlineError",
    "Exchange",
    "HttpxMissingError",
    "NoAnswerError",
    "RankClient",
    "RankError",
]
