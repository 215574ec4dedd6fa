"""Settings of the service.  Environment variables FARM_<OPTION> give what is not given in code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.contract import MAX_CANDIDATES


class Settings(BaseSettings):
    """What one service runs, and within which limits.  pydantic's ValidationError names the option that is wrong."""

    model_config = SettingsConfigDict(env_prefix="FARM_", frozen=True, extra="forbid")

    artifact: Path  # folder made by `farm export`
    store: str  # URL, e.g. lmdb:///var/lib/farm/store
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535)  # 0 takes a free one and prints it
    workers: int = Field(default=1, ge=1, le=256)  # processes on the port
    provider: Literal["cpu", "cuda"] = "cpu"
    engine_threads: int = Field(default=1, ge=1, le=256)  # of one run of a tower
    executors: int | None = Field(
        default=None, ge=1, le=256
    )  # threads of a worker that run the engine; None: its cores
    formula: Path | None = None  # JSON file of the score formula; None: every weight and power is 1
    max_body_bytes: int = Field(default=1 << 20, ge=1024)  # of POST /rank
    max_events_body_bytes: int = Field(default=1 << 20, ge=1024)  # of POST /events
    max_candidates: int = Field(default=MAX_CANDIDATES, ge=1, le=MAX_CANDIDATES)
    keep_alive_s: int = Field(default=65, ge=1)  # idle connections; longer than the 60 s of common load balancers
    drain_timeout_s: int = Field(default=10, ge=1)  # for requests under way when the service is stopped

    @property
    def executor_count(self) -> int:
        """Threads of one worker that run the engine."""
        return self.executors or max(1, _usable_cores() // self.workers)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
