"""Logs of all processes: each record is one line on stderr, JSON or text."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from feature_store.wrong_settings import wrong_settings

FIELDS = "fields"
"""Of a record: `extra={FIELDS: {...}}` adds these to its line."""

Context = Callable[[], Mapping[str, Any]]
"""What is known of whoever logs: the request that is being answered."""


class LogSettings(BaseSettings):
    """Environment variables FARM_LOG_FORMAT and FARM_LOG_LEVEL."""

    model_config = SettingsConfigDict(env_prefix="FARM_", frozen=True, extra="forbid", allow_inf_nan=False)

    log_format: Literal["auto", "json", "text"] = "auto"  # auto: text on a terminal, JSON elsewhere
    log_level: Literal["debug", "info", "warning", "error"] = "warning"


def read_log_settings() -> LogSettings:
    """From the environment.  ValueError names what is wrong."""
    try:
        return LogSettings()
    except ValidationError as error:
        raise ValueError(wrong_settings(error, "FARM_")) from None


def set_up_logs(role: str, context: Context = dict) -> None:
    """Of this process, once; where logging is set up already nothing changes.

    role: of the process, named by each line.  ValueError when the settings are wrong.
    """
    settings = read_log_settings()
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextLines(role, context) if as_text else JsonLines(role, context))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    logging.captureWarnings(True)


class _Lines(logging.Formatter):
    def __init__(self, role: str, context: Context) -> None:
        super().__init__()
        self._role, self._context = role, context

    def _more(self, record: logging.LogRecord) -> dict[str, Any]:
        """Of the request, and the record's own."""
        return {**self._context(), **getattr(record, FIELDS, {})}


class JsonLines(_Lines):
    """An object: ts, level, logger, message, pid, role; request_id, trace_id, span_id; the record's; exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            "role": self._role,
            **self._more(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(_Lines):
    """For people.  Only tracebacks have more than one line."""

    def format(self, record: logging.LogRecord) -> str:
        more = "".join(f" {name}={_shown(value)}" for name, value in self._more(record).items())
        message = record.getMessage().replace("\n", "\\n")
        line = f"{_time(record)} {record.levelname} {self._role}[{record.process}] {record.name}: {message}{more}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    """RFC 3339, milliseconds."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _shown(value: object) -> str:
    """On one line."""
    return value if isinstance(value, str) and value and value.isprintable() else json.dumps(value, default=str)
