"""`farm store` and `farm ingest`, as processes, with LMDB and with a real server."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cli import farm, refused

from feature_store.schema import default_schema
from feature_store.store import open_store
from loadtest.redis_servers import Server, valkey

BACKENDS = ("lmdb", "redis")
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with valkey() as one:
        yield one


@pytest.fixture
def url(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> str:
    """An empty store of the default schema."""
    kind: str = request.param
    name = f"lmdb://{tmp_path}/store" if kind == "lmdb" else f"{server.url}?namespace=n{time.time_ns()}"
    open_store(name, default_schema(), create=True)
    return name


def view(number: int, user: int = 17, **fields: Any) -> dict[str, Any]:
    now = int(1000 * time.time())
    return {
        "type": "video_view",
        "user_id": user,
        "view_id": number,
        "event_time": now - 60_000 + number,
        "known_at": now - 50_000 + number,
        "author_id": 5,
        "behaviours": ["click"],
        **fields,
    }


def as_lines(*events: object) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


def shown(*words: str) -> Any:
    done = farm(*words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Worker:
    """`farm ingest --worker`, when the store has a log."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-m", "farm", "ingest", "--store", url, "--worker", "--metrics-port", "0"]
        self.process = None if url.startswith("lmdb") else subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            _, said = self.process.communicate(timeout=PATIENCE_S)
            assert self.process.returncode == 0, said
            assert said.rstrip().endswith("stopped")


def wait_for_views(url: str, user: int, count: int) -> None:
    async def wait() -> None:
        async with open_store(url) as store:
            ends = time.monotonic() + PATIENCE_S
            while time.monotonic() < ends:
                found = (await store.read(user, [])).user
                if found is not None and len(found.video) >= count:
                    return
                await asyncio.sleep(0.02)
        raise AssertionError(f"{count} views of user {user} did not come")

    asyncio.run(wait())


@pytest.mark.parametrize("url", BACKENDS, indirect=True)
def test_from_a_file_to_what_is_stored(url: str, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    author = {"type": "author", "author_id": 5, "live_id": 8, "updated_at": int(1000 * time.time()), "tag": 3}
    file.write_text(as_lines(view(1), view(2, behaviours=["click", "like"], play_time=None), author))
    with Worker(url):
        done = farm("ingest", "--store", url, "--from", file)
        assert done.returncode == 0, done.stderr
        assert "3 events accepted, 0 skipped" in done.stderr
        wait_for_views(url, 17, 2)
    found = shown("store", "get", "--store", url, "--user", "17")
    assert [event["behaviours"] for event in found["video"]] == [["click"], ["click", "like"]]
    assert found["video"][1]["play_time"] is None
    assert found["live"] == []
    assert shown("store", "get", "--store", url, "--author", "5")["lives"] == [
        {"author_id": 5, "live_id": 8, "tag": 3, "cluster": None}
    ]
    stats = shown("store", "stats", "--store", url)
    assert (stats["users"], stats["authors"], stats["erased"]) == (1, 1, 0)
    if "log" in stats:
        assert (stats["log"]["lag"], stats["log"]["dead_letters"]) == (0, 0)


@pytest.mark.parametrize("url", BACKENDS, indirect=True)
def test_erasure_outlives_what_is_on_its_way(url: str, tmp_path: Path) -> None:
    """Events of before the erasure that are in the log, unmerged, or sent again later do not bring the user back."""
    file, backup = tmp_path / "events.jsonl", tmp_path / "backup"
    file.write_text(as_lines(view(1), view(2), view(3, user=18)))
    if url.startswith("redis"):
        farm("ingest", "--store", url, "--from", file)  # nobody merges it yet
    else:
        farm("ingest", "--store", url, "--from", file)
        farm("store", "backup", "--store", url, "--out", backup)
    erased = farm("store", "delete-user", "--store", url, "--user", "17")
    assert erased.returncode == 0, erased.stderr
    with Worker(url):
        farm("ingest", "--store", url, "--from", file)
        wait_for_views(url, 18, 1)
        if backup.exists():
            assert farm("store", "restore", "--store", url, "--from", backup).returncode == 0
        assert "user 17: nothing is stored" in refused("store", "get", "--store", url, "--user", "17")
        assert shown("store", "stats", "--store", url)["erased"] == 1


@pytest.mark.parametrize("url", BACKENDS, indirect=True)
def test_a_bad_line_is_named_and_may_be_skipped(url: str, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(as_lines(view(1), view(2, event_time=1_719_500_000), view(3)))
    assert "line 2, event_time" in refused("ingest", "--store", url, "--from", file)
    done = farm("ingest", "--store", url, "--from", file, "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    assert "2 events accepted, 1 skipped" in done.stderr


@pytest.mark.parametrize("url", BACKENDS, indirect=True)
def test_from_standard_input(url: str) -> None:
    command = [sys.executable, "-m", "farm", "ingest", "--store", url, "--from", "-"]
    done = subprocess.run(command, input=as_lines(view(1)), capture_output=True, text=True, check=False)
    assert (done.returncode, "1 events accepted" in done.stderr) == (0, True), done.stderr


@pytest.mark.parametrize("url", ["lmdb"], indirect=True)
def test_a_store_without_a_log_says_so(url: str) -> None:
    assert "needs no worker" in refused("ingest", "--store", url, "--worker")
    assert "needs no worker" in refused("ingest", "--store", url, "--dead-letters")


@pytest.mark.parametrize("url", ["redis"], indirect=True)
def test_dead_letters_are_listed_and_discarded(url: str, server: Server) -> None:
    namespace = url.partition("namespace=")[2]
    with server.client() as client:
        client.xadd(f"farm:{namespace}:log:0", {"b": b"nonsense", "t": 1})
        with Worker(url):
            ends = time.monotonic() + PATIENCE_S
            while not client.xlen(f"farm:{namespace}:dead") and time.monotonic() < ends:
                time.sleep(0.02)
    listed = shown("ingest", "--store", url, "--dead-letters")
    assert listed["dead_letters"] == 1
    assert listed["newest"][0]["entry"].startswith("0/")
    replayed = shown("ingest", "--store", url, "--dead-letters", "--replay", "all")
    assert (replayed["replayed"], replayed["unreadable"], replayed["dead_letters"]) == (0, 1, 1)
    gone = shown("ingest", "--store", url, "--dead-letters", "--discard", listed["newest"][0]["id"])
    assert (gone["discarded"], gone["dead_letters"]) == (1, 0)
    assert "no dead letter 1-1" in refused("ingest", "--store", url, "--dead-letters", "--discard", "1-1")


@pytest.mark.parametrize(
    "words",
    [
        ["ingest", "--store", "lmdb:///x"],
        ["ingest", "--store", "lmdb:///x", "--worker", "--dead-letters"],
        ["ingest", "--store", "lmdb:///x", "--from", "-", "--replay", "all"],
        ["ingest", "--store", "lmdb:///x", "--from", "-", "--metrics-port", "9000"],
        ["store", "get", "--store", "lmdb:///x"],
        ["store", "get", "--store", "lmdb:///x", "--user", "1", "--author", "1"],
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str]) -> None:
    assert farm(*words).returncode == 2


def test_a_store_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "no store at" in refused("store", "stats", "--store", f"lmdb://{tmp_path}/nothing")
    assert "127.0.0.1:9" in refused("store", "stats", "--store", "redis://127.0.0.1:9")
