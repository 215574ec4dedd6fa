"""Whether a server can be FARM's: its version, its role, and that it does not forget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEAST_VERSION = (7, 0)  # functions


def server_name(info: Mapping[str, Any]) -> str:
    """Product and version, from the reply to INFO."""
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info.get('redis_version', '?')}"


def refusal(info: Mapping[str, Any], allow_eviction: bool, cluster: bool) -> str | None:
    """Why a server cannot be used, or None.  info: the reply to INFO.  cluster: it is used as a node of one."""
    mode = info.get("redis_mode", info.get("server_mode", "standalone"))
    if mode == "sentinel":
        return "this is a sentinel; use redis+sentinel://host:port/<name of the master>"
    if _version(info) < LEAST_VERSION:
        return f"{server_name(info)} is too old; FARM needs Redis 7.0 or Valkey 7.2"
    if bool(int(info.get("cluster_enabled", 0))) != cluster:
        if cluster:
            return "the server is no node of a cluster; use redis://host:port"
        return "the server is a node of a cluster; use redis+cluster://host:port"
    if info.get("role", "master") != "master":
        return "the server is a read-only replica; give the address of the master"
    return None if allow_eviction else _forgets(info)


def _forgets(info: Mapping[str, Any]) -> str | None:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction" or int(info.get("maxmemory", 0)) == 0:
        return None
    return (
        f"maxmemory-policy is {policy}: histories would vanish silently when the memory is full; "
        "set it to noeviction, or FARM_REDIS_ALLOW_EVICTION=true"
    )


def _version(info: Mapping[str, Any]) -> tuple[int, int]:
    """Valkey tells the version of Redis that it is like, too."""
    parts = str(info.get("redis_version", "0.0")).split(".")
    return int(parts[0]), int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0
