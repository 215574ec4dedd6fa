"""Settings of models that change, of the start and of the stop.  Environment variables FARM_<OPTION> give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, FilePath, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from feature_store.wrong_settings import wrong_settings


class LifecycleSettings(BaseSettings):
    """Defaults suit a service behind a load balancer that asks /readyz every second or two."""

    model_config = SettingsConfigDict(env_prefix="FARM_", frozen=True, extra="forbid", allow_inf_nan=False)

    models: str | None = None  # URL of an artifact store, whose pointer says what serves; None: one artifact for ever
    models_cache: Path | None = None  # folder for what is fetched; None: a temporary one
    trusted_keys: FilePath | None = None  # file of public keys, one of which must have signed; None: unsigned too
    models_poll_s: float = Field(default=1.0, gt=0)  # how often the pointer is read
    keep_previous: bool = True  # loaded, so that a rollback takes no time
    prepare_within_s: float = Field(default=300.0, gt=0)  # for loading and checking, which waits for idle processors
    switch_within_s: float = Field(default=15.0, gt=0)  # for requests under way; then their worker is replaced
    watch_s: float = Field(default=60.0, ge=0)  # after a switch, during which faults roll it back; 0: never by itself
    watch_faults: float = Field(default=0.02, gt=0, le=1)  # share of requests that may fail
    watch_requests: int = Field(default=200, ge=1)  # seen before a share is judged
    grace_s: float = Field(default=5.0, ge=0)  # from the order to stop, during which requests are still taken
    wedged_s: float = Field(default=30.0, gt=0)  # without progress, after which a worker is killed and replaced


def read_lifecycle(**given: Any) -> LifecycleSettings:
    """Settings from the environment, but for those given.  ValueError names each that is wrong."""
    try:
        return LifecycleSettings(**given)
    except ValidationError as error:
        raise ValueError(wrong_settings(error, "FARM_")) from None
