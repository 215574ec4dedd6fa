"""Which release of this software runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Of this software; "unknown" when it runs from a folder that was not installed."""
    try:
        return version("farm-ranker")
    except PackageNotFoundError:
        return "unknown"
