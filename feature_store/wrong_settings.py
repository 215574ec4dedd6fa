"""What is wrong with settings, in words that name the option or the environment variable."""

from __future__ import annotations

from pydantic import ValidationError


def wrong_settings(error: ValidationError, prefix: str) -> str:
    """One line that names each wrong variable, and not what it holds: it may be a secret.

    prefix: of the environment variables, such as FARM_REDIS_.
    """
    names = [f"{prefix}{str(e['loc'][0]).upper()}" if e["loc"] else f"{prefix}*" for e in error.errors()]
    messages = [e["msg"].removeprefix("Value error, ") for e in error.errors()]
    return "; ".join(f"{name}: {message}" for name, message in zip(names, messages, strict=True))
