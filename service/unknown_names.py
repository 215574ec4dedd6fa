"""Environment variables named like settings that are none: a misspelt one would be ignored without a word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from difflib import get_close_matches

_PREFIX = "FARM_"
_READ_ELSEWHERE = frozenset({"FARM_API_KEY", "FARM_DEBUG", "FARM_METRICS"})  # client, farm.py, feature_store.metered
_OF_OTHERS = ("FARM_LOAD_", "FARM_PEER_")  # programs of loadtest
_OF_KUBERNETES = ("_SERVICE_HOST", "_SERVICE_PORT", "_TCP", "_TCP_ADDR", "_TCP_PORT", "_TCP_PROTO")  # service links


def unknown_names(environment: Iterable[str], options: Set[str]) -> Iterator[str]:
    """A line of each name in `environment` that nothing reads, with the nearest one that is.

    options: names that options of the command line are read from.
    """
    strange = [name for name in environment if name.startswith(_PREFIX) and name not in options | _READ_ELSEWHERE]
    strange = [name for name in strange if not name.startswith(_OF_OTHERS) and not name.endswith(_OF_KUBERNETES)]
    if not strange:
        return
    known = options | _READ_ELSEWHERE | _of_settings()
    for name in sorted(set(strange) - known):
        near = get_close_matches(name, known, n=1)
        yield f"{name}: nothing has this name, it is ignored" + (f"; is {near[0]} meant?" if near else "")


def _of_settings() -> set[str]:
    """Of all classes of settings.  They are imported here only: most commands need none."""
    from feature_store.logs import LogSettings
    from feature_store.reading.settings import ReadingSettings
    from feature_store.redis.settings import RedisSettings
    from service.lifecycle.settings import LifecycleSettings
    from service.settings import Settings

    classes = (Settings, LifecycleSettings, ReadingSettings, RedisSettings, LogSettings)
    return {f"{one.model_config['env_prefix']}{name}".upper() for one in classes for name in one.model_fields}
