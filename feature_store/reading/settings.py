"""Settings of the ladder.  Environment variables FARM_READING_<OPTION> give what code does not."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from feature_store.store import StoreError
from feature_store.wrong_settings import wrong_settings

Word = Literal["stale_history", "no_history", "corrupt_history", "unknown_authors", "stale_authors"]
"""What an answer lacks because of the store."""

WORDS: tuple[Word, ...] = get_args(Word)


def _words(value: object) -> object:
    """A comma list as its parts; anything else as it is."""
    return frozenset(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


class ReadingSettings(BaseSettings):
    """When a reading steps down, and how far it may.  ValidationError names the wrong option."""

    model_config = SettingsConfigDict(env_prefix="FARM_READING_", frozen=True, extra="forbid", allow_inf_nan=False)

    budget_ms: float = Field(default=100.0, gt=0)  # of one reading of a server; then it is given up
    last_good_mb: int = Field(default=128, ge=0)  # of user records kept, in each process; 0: none
    last_good_age_s: float = Field(default=600.0, gt=0)  # of a user record, when it is no longer used
    stale_author_age_s: float = Field(default=3600.0, ge=0)  # of an author, since it was read; 0: none past its ttl

    failures_in_row: int = Field(default=5, ge=1)  # that open the circuit
    failure_share: float = Field(default=0.5, gt=0, le=1)  # of the last `failure_window` readings, that opens it
    failure_window: int = Field(default=50, ge=1)
    probe_interval_s: float = Field(default=0.25, gt=0, le=1)  # between tries while the circuit is open

    forbid: Annotated[frozenset[Word], NoDecode, BeforeValidator(_words)] = frozenset()  # steps that are errors instead


def reading_settings() -> ReadingSettings:
    """Of the environment.  StoreError names the variable that is wrong."""
    try:
        return ReadingSettings()
    except ValidationError as error:
        raise StoreError(wrong_settings(error, "FARM_READING_")) from None
