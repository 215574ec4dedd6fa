"""The doors of a service that runs: keys on both ports, rotation, limits of connections, a start that is refused."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from loadtest.process import ServiceFailedError, ServiceProcess, running_service
from service.doors.keys import StoredKey, new_key

BODY = {"user_id": 1, "candidates": [1, 2]}


@dataclass
class Keyed:
    """A service that asks for keys."""

    service: ServiceProcess
    file: Path
    keys: dict[str, str]  # by scope
    lines: list[StoredKey]

    def rank(self, key: str | None, **more: object) -> httpx.Response:
        return httpx.post(f"{self.service.url}/rank", json=BODY | more, headers=bearer(key), trust_env=False)


@pytest.fixture(scope="module")
def keyed(artifact: Path, store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    made = {scope: new_key([scope]) for scope in ("rank", "events", "admin")}
    made["explain"] = new_key(["rank", "explain"])
    lines = [stored for _, stored in made.values()]
    file = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    write(file, lines)
    settings = {"FARM_API_KEYS_FILE": str(file), "FARM_HEAD_TIMEOUT_S": "1", "FARM_GRACE_S": "0"}
    with running_service(artifact, store_url, **settings) as service:
        yield Keyed(service, file, {scope: key for scope, (key, _) in made.items()}, lines)


def _refusals(text: str) -> float:
    return float(text.partition('farm_key_refusals_total{reason="forbidden"} ')[2].splitlines()[0])


def test_both_ports_ask_for_keys(keyed: Keyed) -> None:
    assert keyed.rank(keyed.keys["rank"]).status_code == 200
    assert keyed.rank(keyed.keys["events"]).status_code == 403
    refused = keyed.rank(None)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert refused.json()["request_id"] == refused.headers["x-request-id"]
    metrics = f"{keyed.service.admin_url}/metrics"
    told = [
        httpx.get(metrics, headers=bearer(key), trust_env=False)
        for key in (None, keyed.keys["rank"], keyed.keys["admin"])
    ]
    assert [answer.status_code for answer in told] == [401, 403, 200]
    again = [httpx.get(metrics, headers=bearer(keyed.keys[scope]), trust_env=False).text for scope in ("rank", "admin")]
    assert _refusals(again[1]) == _refusals(told[2].text) + 1  # those of the admin port count too
    for url in (keyed.service.url, keyed.service.admin_url):
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200


def test_debug_needs_its_own_scope(keyed: Keyed) -> None:
    assert keyed.rank(keyed.keys["rank"], debug=True).status_code == 403
    answer = keyed.rank(keyed.keys["explain"], debug=True)
    assert (answer.status_code, "debug" in answer.json()) == (200, True)


def test_keys_are_rotated_while_it_runs(keyed: Keyed) -> None:
    key, stored = new_key(["rank"])
    write(keyed.file, [*keyed.lines, stored])
    wait_for(lambda: keyed.rank(key).status_code == 200)
    write(keyed.file, keyed.lines)
    wait_for(lambda: keyed.rank(key).status_code == 401)
    assert keyed.rank(keyed.keys["rank"]).status_code == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"a" * 5_000 + b" HTTP/1.1\r\n\r\n", b" 414 "),
        (b"GET /livez HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b" 431 "),
        (b"\x16\x03\x01", b" 400 "),
    ],
)
@pytest.mark.parametrize("port", ["url", "admin_url"])
def test_both_ports_limit_what_a_connection_may_send(keyed: Keyed, port: str, sent: bytes, status: bytes) -> None:
    host, _, number = getattr(keyed.service, port).removeprefix("http://").partition(":")
    with socket.create_connection((host, int(number)), 10.0) as connection:
        connection.sendall(sent)
        with connection.makefile("rb") as answer:
            told = answer.read()
    assert status in told.split(b"\r\n")[0]
    assert json.loads(told.split(b"\r\n\r\n")[1])["status"] == int(status)


def test_a_slow_request_is_a_408(keyed: Keyed) -> None:
    host, _, number = keyed.service.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(number)), 10.0) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        assert b" 408 " in connection.recv(4_096)


def test_it_does_not_start_open_to_strangers(artifact: Path, store_url: str, tmp_path: Path) -> None:
    broken = tmp_path / "keys.jsonl"
    broken.write_text('{"id": "abcd"}\n')
    wrong = [
        (["--host", "0.0.0.0"], {}, "--host 0.0.0.0 lets everybody in: give keys"),
        (["--admin-host", "0.0.0.0"], {}, "--admin-host 0.0.0.0 lets everybody in: give keys"),
        ([], {"FARM_API_KEYS_FILE": str(broken)}, f"{broken}, line 1: hash: field required; scopes: field required"),
    ]
    for options, environment, says in wrong:
        service = running_service(artifact, store_url, *options, **environment)
        with pytest.raises(ServiceFailedError, match="exit status 1") as failed, service:
            pass
        assert says in failed.value.errors
        assert len(failed.value.errors.strip().splitlines()) == 1
    with running_service(artifact, store_url, "--host", "0.0.0.0", FARM_OPEN="true", FARM_GRACE_S="0") as opened:
        assert httpx.get(f"{opened.url.replace('0.0.0.0', '127.0.0.1')}/livez", trust_env=False).status_code == 200


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}


def write(file: Path, lines: list[StoredKey]) -> None:
    """By renaming."""
    written = file.with_suffix(".new")
    written.write_text("".join(f"{stored.line()}\n" for stored in lines))
    written.replace(file)


def wait_for(done: object, within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)
