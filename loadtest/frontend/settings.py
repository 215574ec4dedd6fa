"""Settings of the load.  Environment variables FARM_LOAD_<NAME>; docs: loadtest/README.md."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from feature_store.wrong_settings import wrong_settings

PREFIX = "FARM_LOAD_"
Id = int | str


class LoadSettings(BaseSettings):
    """Who asks for what, how often, and what is promised.  pydantic's ValidationError names what is wrong."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    ids: Path | None = None  # JSON {"users": [...], "authors": [...]}; None: the two ranges
    users: str = "0-999"
    authors: str = "0-999"
    now_ms: int | None = None  # time at which the load begins, of stores of old logs; None: the clock
    candidates: str = "50:15,100:25,200:35,500:20,1000:5"  # count:share
    rate: float | None = Field(default=None, gt=0)  # rankings/s that come whether answered or not; None: closed loop
    arrivals: Literal["constant", "poisson"] = "constant"
    shape: Literal["", "step", "spike", "soak", "choose"] = ""  # choose: of Locust's --class-picker
    seconds: float | None = Field(default=None, gt=0)  # of the shape; None: its own length
    pace: float = Field(default=0.05, ge=0)  # seconds of the test for one that somebody watches
    events: bool = True  # tell the service what was watched
    visible_ms: float = Field(default=1000.0, ge=0)  # from "accepted" until a ranking must know of it
    connections: int = Field(default=128, ge=1)  # of one process, at most
    models: str = ""  # versions, by comma, that may answer beside those of /version
    seed: int | None = Field(default=None, ge=0)  # None: another load each time
    warm_up_s: float = Field(default=2.0, ge=0)  # requests due before it are sent and not judged
    patience_s: float = Field(default=10.0, gt=0)  # for the last answers
    late_ms: float = Field(default=50.0, gt=0)  # a request begun later than that after it was due is late
    max_p50_ms: float = Field(default=20.0, gt=0)
    max_p95_ms: float = Field(default=50.0, gt=0)
    max_p99_ms: float = Field(default=100.0, gt=0)
    max_error_share: float = Field(default=0.001, ge=0, le=1)
    max_degraded_share: float = Field(default=0.01, ge=0, le=1)
    min_arrivals_share: float = Field(default=0.99, ge=0, le=1)
    report: Path | None = None  # JSON file for the figures and the objectives

    @field_validator("users", "authors")
    @classmethod
    def _is_range(cls, value: str) -> str:
        first, dash, last = value.partition("-")
        if not (dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
            raise ValueError("must be a range of ids, such as 0-999")
        return value

    @field_validator("shape")
    @classmethod
    def _is_known_beforehand(cls, value: str, info: ValidationInfo) -> str:
        if value == "choose" and info.data.get("rate") is not None:
            raise ValueError(f"choose is for viewers: with {PREFIX}RATE name the shape here")
        return value

    @field_validator("candidates")
    @classmethod
    def _is_distribution(cls, value: str) -> str:
        words = [word for part in value.split(",") for word in part.split(":")]
        whole = len(words) == 2 * len(value.split(",")) and all(w.isdecimal() and int(w) > 0 for w in words)
        if not whole or any(int(count) > 2000 for count in words[::2]):
            raise ValueError("must be counts from 1 to 2000 and their shares, such as 50:1,200:3,500:1")
        return value

    @property
    def candidate_shares(self) -> dict[int, int]:
        """Share by count."""
        pairs = (part.split(":") for part in self.candidates.split(","))
        return {int(count): int(share) for count, share in pairs}

    def known_ids(self) -> tuple[list[Id], list[Id]]:
        """Users and authors.  ValueError when the file of ids holds none."""
        if self.ids is None:
            return _range(self.users), _range(self.authors)
        try:
            found = json.loads(self.ids.read_text())
            users, authors = list(found["users"]), list(found["authors"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{PREFIX}IDS: must be a JSON file {{"users": [...], "authors": [...]}}: {error}'
            ) from None
        if not users or not authors:
            raise ValueError(f"{PREFIX}IDS: {self.ids} names no users or no authors")
        return users, authors


def read_load_settings(**given: Any) -> LoadSettings:
    """Settings from the environment, but for those given.  ValueError names each that is wrong or that there is not."""
    names = {PREFIX + name.upper() for name in LoadSettings.model_fields}
    if unknown := sorted(name for name in os.environ if name.startswith(PREFIX) and name not in names):
        raise ValueError(f"{', '.join(unknown)}: there is no such setting; there are {', '.join(sorted(names))}")
    try:
        return LoadSettings(**given)
    except ValidationError as error:
        raise ValueError(wrong_settings(error, PREFIX)) from None


def _range(text: str) -> list[Id]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last) + 1))
