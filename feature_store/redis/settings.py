"""Settings of the Redis store and its event log.  Environment variables FARM_REDIS_<OPTION> give what code does not."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, FilePath, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from feature_store.store import StoreError
from feature_store.wrong_settings import wrong_settings

NAMESPACE_PATTERN = r"^[a-z0-9_-]{1,32}$"
DAY_S = 86_400


class RedisSettings(BaseSettings):
    """How to reach a server, what to keep there and for how long.  ValidationError names the wrong option."""

    model_config = SettingsConfigDict(env_prefix="FARM_REDIS_", frozen=True, extra="forbid", allow_inf_nan=False)

    username: str | None = None  # of an ACL user; those in the URL come first
    password: SecretStr | None = None
    sentinel_username: str | None = None  # of the sentinels themselves
    sentinel_password: SecretStr | None = None
    ca_file: FilePath | None = None  # PEM; None: the authorities that the system trusts
    cert_file: FilePath | None = None  # PEM, of this client, for servers that ask for one
    key_file: FilePath | None = None  # PEM, unencrypted; None: cert_file holds the key too
    namespace: str = Field(default="default", pattern=NAMESPACE_PATTERN)  # environments that share a server

    timeout_s: float = Field(default=1.0, gt=0)  # of one try of a command
    connect_timeout_s: float = Field(default=1.0, gt=0)  # of one try to connect
    retries: int = Field(default=1, ge=0, le=10)  # of a command whose connection broke or timed out
    max_connections: int = Field(default=64, ge=1)  # to each server, of each event loop
    allow_eviction: bool = False  # run although the server may drop histories when its memory is full

    user_ttl_s: int = Field(default=90 * DAY_S, ge=0)  # since the user's last write; 0: for ever
    tombstone_ttl_s: int = Field(default=400 * DAY_S, ge=1)  # longer than any log, dead letter or backup is kept
    author_cache_size: int = Field(default=200_000, ge=1)  # authors, of each process
    author_ttl_s: float = Field(default=30.0, gt=0)  # of a cached author
    negative_ttl_s: float = Field(default=2.0, ge=0, le=2)  # of a cached "no such author"
    pointer_cache_s: float = Field(default=1.0, gt=0)  # how late a reader may learn of another active generation

    durability: Literal["master", "replica"] = "master"  # who has an event before it is acknowledged
    wait_ms: int = Field(default=200, ge=1)  # for the replica
    partitions: int = Field(default=8, ge=1, le=256)  # of the event log; fixed when the namespace is made
    max_lag: int = Field(default=100_000, ge=1)  # entries of a partition not yet merged; beyond it events are refused
    claim_idle_ms: int = Field(default=30_000, ge=100)  # after which a dead worker's entries go to another one
    log_entries: int = Field(default=250_000, ge=1)  # of a partition, kept for replay

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.log_entries < self.max_lag:
            raise ValueError("log_entries must be at least max_lag, else little is left to replay")
        if self.wait_ms >= 1000 * self.timeout_s:
            raise ValueError("wait_ms must be less than timeout_s, else the connection gives up before the replica")
        if self.key_file and not self.cert_file:
            raise ValueError("key_file is given without cert_file")
        return self


def settings_of_environment() -> RedisSettings:
    """StoreError names the environment variable that is wrong, and not what it holds."""
    try:
        return RedisSettings()
    except ValidationError as error:
        raise StoreError(wrong_settings(error, "FARM_REDIS_")) from None
