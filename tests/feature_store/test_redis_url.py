"""URLs and settings of Redis stores, and what a server's own words say of it: no server is needed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from feature_store.redis.check import refusal
from feature_store.redis.link import RedisLink, redact
from feature_store.redis.settings import RedisSettings
from feature_store.redis.url import parse_url
from feature_store.store import StoreError

SECRET = "correct/horse@battery"  # has to be encoded in a URL
ENCODED = "correct%2Fhorse%40battery"


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "where"),
        [
            ("redis://h", "redis://h:6379"),
            ("rediss://farm:pw@h:7/3?namespace=x", "rediss://h:7/3"),
            ("redis://[::1]:7", "redis://[::1]:7"),
            ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock"),
            ("redis+unix://u:pw@/run/a@b.sock", "redis+unix:///run/a@b.sock"),
            ("redis+sentinel://a,b:7/mine/2", "redis+sentinel://a:26379,b:7/mine/2"),
            ("rediss+cluster://:pw@a,b:7", "rediss+cluster://a:6379,b:7"),
        ],
    )
    def test_every_scheme_is_read_and_shown_without_its_user(self, url: str, where: str) -> None:
        assert parse_url(url).where == where
        assert redact(url) == where
        assert RedisLink.open(url, RedisSettings()).where == where

    def test_the_parts_are_decoded(self) -> None:
        url = parse_url(f"redis+sentinel://farm%2B:{ENCODED}@h/my%20master/2?namespace=blue")
        assert (url.username, url.password, url.master, url.db, url.namespace) == (
            "farm+",
            SECRET,
            "my master",
            2,
            "blue",
        )
        assert SECRET not in repr(url)
        assert parse_url("unix:///s?db=2").db == 2
        assert parse_url("redis://:pw@h").username is None
        assert parse_url("redis://farm@h").password is None

    @pytest.mark.parametrize(
        ("url", "fault"),
        [
            (f"redsi://:{SECRET}@h", "known are redis://, rediss://"),
            (f"redis://:{ENCODED}", "host 1 must be"),
            ("redis://:pass?word@h", "%3F for ?"),
            ("redis://", "host 1 must be"),
            ("redis://h:port", "host 1 must be"),
            ("redis://h:0", "host 1 must be"),
            ("redis://h/one", "database must be a number"),
            ("redis://h/1/2", "too many parts"),
            ("redis://a,b", "redis+sentinel:// or redis+cluster://"),
            ("redis+sentinel://a,b", "name of the master is missing"),
            ("redis+cluster://a,,b", "host 2 must be"),
            ("redis+cluster://a/1", "only database 0"),
            ("unix://relative", "path of the socket is missing"),
            (f"redis://h?password={ENCODED}", "unknown option; known are db, namespace"),
            ("redis://h?namespace=Blue", "namespace must be 1 to 32"),
        ],
    )
    def test_a_bad_url_is_refused_without_showing_it(self, url: str, fault: str) -> None:
        with pytest.raises(StoreError) as raised:
            parse_url(url)
        assert fault in str(raised.value)
        assert not {"correct", "battery", "pass?word"} & set(
            str(raised.value).replace("/", " ").replace("@", " ").split()
        )
        assert redact(url).endswith("://***")

    def test_other_stores_are_shown_whole(self) -> None:
        assert redact("lmdb:///var/lib/farm") == "lmdb:///var/lib/farm"


class TestSettings:
    def test_the_environment_gives_what_code_does_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FARM_REDIS_PASSWORD", SECRET)
        monkeypatch.setenv("FARM_REDIS_NAMESPACE", "blue")
        settings = RedisSettings(partitions=3)
        assert settings.password is not None
        assert (settings.password.get_secret_value(), settings.namespace, settings.partitions) == (SECRET, "blue", 3)
        assert SECRET not in repr(settings)

    @pytest.mark.parametrize(
        ("options", "fault"),
        [
            ({"namespace": "a:b"}, "namespace"),
            ({"negative_ttl_s": 3}, "negative_ttl_s"),
            ({"log_entries": 10, "max_lag": 11}, "log_entries must be at least max_lag"),
            ({"wait_ms": 1000, "timeout_s": 1.0}, "wait_ms must be less than timeout_s"),
            ({"ca_file": "/none/ca.pem"}, "ca_file"),
            ({"key_file": __file__}, "key_file is given without cert_file"),
        ],
    )
    def test_what_cannot_be_is_named(self, options: dict[str, Any], fault: str) -> None:
        with pytest.raises(ValidationError, match=fault):
            RedisSettings(**options)

    def test_the_url_comes_before_the_settings(self) -> None:
        assert RedisLink.open("redis://h?namespace=url", RedisSettings(namespace="env")).settings.namespace == "url"
        assert RedisLink.open("redis://h", RedisSettings(namespace="env")).settings.namespace == "env"


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({"redis_version": "7.0.0", "role": "master"}, None),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2", "server_mode": "standalone", "role": "master"}, None),
        ({"redis_version": "10.1"}, None),
        ({"redis_version": "6.2.14"}, "Redis 6.2.14 is too old"),
        ({}, "too old"),
        ({"redis_version": "7.2.4", "role": "slave"}, "read-only replica"),
        ({"redis_version": "7.2.4", "maxmemory": 0, "maxmemory_policy": "allkeys-lru"}, None),
        ({"redis_version": "7.2.4", "maxmemory": 1, "maxmemory_policy": "noeviction"}, None),
        ({"redis_version": "7.2.4", "maxmemory": 1, "maxmemory_policy": "allkeys-lru"}, "is allkeys-lru"),
    ],
)
def test_what_a_server_says_of_itself(info: dict[str, Any], reason: str | None) -> None:
    found = refusal(info, allow_eviction=False, cluster=False)
    assert (found or "").count(reason or "") >= 1
    assert (found is None) == (reason is None)


def test_a_wrong_setting_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_REDIS_PARTITIONS", "many")
    monkeypatch.setenv("FARM_REDIS_TIMEOUT_S", "-1")
    with pytest.raises(StoreError) as refused:
        RedisLink.open("redis://127.0.0.1")
    said = str(refused.value)
    assert "FARM_REDIS_PARTITIONS: Input should be a valid integer" in said
    assert "FARM_REDIS_TIMEOUT_S: Input should be greater than 0" in said
    assert "many" not in said
