"""A running service over the session's small artifact and store, and what is known of both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from service_facts import Facts, gather_facts

from loadtest.process import running_service
from model.artifact.manifest import Artifact


@pytest.fixture(scope="session")
def facts(artifact: Path, store_url: str) -> Facts:
    now_ms = Artifact.open(artifact).manifest.data_span["last_ms"]
    return asyncio.run(gather_facts(store_url, now_ms))


@pytest.fixture(scope="session")
def service_url(artifact: Path, store_url: str) -> Iterator[str]:
    with running_service(artifact, store_url) as service:
        yield service.url


@pytest.fixture(scope="session")
def http(service_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service_url, timeout=30.0, trust_env=False) as client:
        yield client
