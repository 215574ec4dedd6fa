"""A running service over the session's small artifact and store, and what is known of both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from service_facts import Client, Facts, gather_facts

from loadtest.process import running_service
from model.artifact.manifest import Artifact
from service.app import create_app
from service.runtime import Runtime, load_runtime
from service.settings import Settings


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


@pytest.fixture(scope="session")
def opened(artifact: Path, store_url: str) -> Client:
    """The application in this process over these settings, and its runtime."""

    @contextmanager
    def open_app(**options: object) -> Iterator[tuple[TestClient, Runtime]]:
        runtime = load_runtime(Settings(**{"artifact": artifact, "store": store_url, **options}))
        with TestClient(create_app(runtime), raise_server_exceptions=False) as client:
            yield client, runtime

    return open_app
