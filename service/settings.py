"""Settings of the service.  Environment variables FARM_<OPTION> give what is not given in code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, FilePath, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from feature_store.wrong_settings import wrong_settings
from service.contract import MAX_CANDIDATES, MAX_DEADLINE_MS

_PROVIDERS = ("cpu", "cuda", "tensorrt")


class Settings(BaseSettings):
    """What one service runs, and within which limits.  pydantic's ValidationError names the option that is wrong."""

    model_config = SettingsConfigDict(env_prefix="FARM_", frozen=True, extra="forbid", allow_inf_nan=False)

    artifact: Path | None = None  # folder made by `farm export`; None: an artifact store says what serves
    store: str  # URL, e.g. lmdb:///var/lib/farm/store
    record_schema: FilePath | None = None  # of a store that cannot be reached at the start; None: the default schema
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535)  # 0 takes a free one and prints it
    workers: int = Field(default=1, ge=1, le=256)  # processes on the port
    admin_host: str = "127.0.0.1"  # of the parent: metrics, health of all workers, administration
    admin_port: int = Field(default=8081, ge=0, le=65_535)  # 0 takes a free one and prints it
    provider: str = "cpu"  # one of cpu, cuda and tensorrt; several, by comma, are an order of fallback
    engine: Literal["auto", "inline", "process"] = "auto"  # auto: a process of its own with CUDA
    engine_threads: int = Field(default=1, ge=1, le=256)  # of one run of a tower
    executors: int | None = Field(
        default=None, ge=0, le=256
    )  # threads of a worker that run the engine; 0: its event loop does; None: its cores, 0 for one core
    tile: int = Field(default=32, ge=1, le=2048)  # K, candidates of a tile of a batch of several requests
    batch_tiles: int | None = Field(default=None, ge=1, le=65_536)  # greatest cost of a batch; None: by provider
    state_cache_mb: int = Field(default=64, ge=0)  # user states kept, of all workers together; 0: none
    cuda_graphs: bool = True
    devices: str = "0"  # numbers of GPUs, by comma; an engine process for each
    trt_cache: Path | None = None  # folder of TensorRT's engines; None: a temporary one
    formula: FilePath | None = None  # JSON file of the score formula; None: every weight and power is 1
    max_body_bytes: int = Field(default=1 << 20, ge=1024)  # of POST /rank
    max_events_body_bytes: int = Field(default=1 << 20, ge=1024)  # of POST /events
    max_candidates: int = Field(default=MAX_CANDIDATES, ge=1, le=MAX_CANDIDATES)
    deadline_ms: int = Field(default=500, ge=1, le=MAX_DEADLINE_MS)  # of a request without X-Deadline-Ms
    queue_tiles: int = Field(default=1024, ge=1)  # greatest cost of what waits in a worker
    queue_ms: float = Field(default=30.0, ge=0)  # longest predicted wait at which a request still enters, in overload
    burst_ms: float = Field(default=200.0, ge=0)  # the same in a burst
    low_share: float = Field(default=0.25, ge=0, le=1)  # of the queue that requests of low priority may fill
    keep_alive_s: int = Field(default=65, ge=1)  # idle connections; longer than the 60 s of common load balancers
    open: bool = False  # whether a service without keys may listen where other machines reach it
    api_keys_file: Path | None = None  # keys made by `farm keys new`; read again when it changes
    api_keys: SecretStr = SecretStr("")  # more of them, as the file would hold them
    max_connections: int = Field(default=2048, ge=1)  # of one worker, and what its file descriptors allow
    head_timeout_s: float = Field(default=5.0, gt=0)  # from the first byte of a request to the end of its headers
    body_timeout_s: float = Field(default=10.0, gt=0)  # from there to the end of its body
    max_target_bytes: int = Field(default=4096, ge=64)  # path and query
    max_head_bytes: int = Field(default=16_384, ge=1024)  # names and values of all headers
    max_headers: int = Field(default=64, ge=8)
    metrics: bool = True  # False: nothing is counted, GET /metrics tells of processes only
    drain_timeout_s: int = Field(default=10, ge=1)  # for requests under way when the service is stopped
    slow_ms: float = Field(default=250.0, ge=0)  # requests that take longer are logged; 0: none

    @field_validator("provider")
    @classmethod
    def _known_providers(cls, value: str) -> str:
        if not set(value.split(",")) <= set(_PROVIDERS):
            raise ValueError(f"must be one of {', '.join(_PROVIDERS)}, or several separated by commas")
        return value

    @field_validator("devices")
    @classmethod
    def _numbers(cls, value: str) -> str:
        if not all(device.isdecimal() for device in value.split(",")):
            raise ValueError("must be numbers of GPUs separated by commas, such as 0,1")
        return value

    @property
    def providers(self) -> tuple[str, ...]:
        """In order of fallback."""
        return tuple(self.provider.split(","))

    @property
    def gpus(self) -> tuple[int, ...]:
        return tuple(int(device) for device in self.devices.split(","))

    @property
    def engine_processes(self) -> int:
        """How many processes run the towers for the workers; 0: each worker runs them."""
        process = self.engine == "process" or (self.engine == "auto" and self.providers[0] != "cpu")
        return len(self.gpus) if process else 0

    @property
    def executor_count(self) -> int:
        """Threads of one worker that run the engine; 0: its event loop does."""
        if self.executors is not None:
            return self.executors
        cores = usable_cores() // self.workers
        return cores if cores > 1 else 0


def read_settings(**given: Any) -> Settings:
    """Settings from the environment, but for those given.  ValueError names each that is wrong."""
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ValueError(wrong_settings(error, "FARM_")) from None


def usable_cores() -> int:
    """Of this process."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
