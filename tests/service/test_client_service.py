"""Both clients against the running service, by the same tests."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from service_facts import Facts, make_empty_store

from loadtest.process import running_service
from service.client import AsyncRankClient, DeadlineError, RankClient, RankError
from service.doors.keys import new_key

MANUAL = Path(__file__).parents[2] / "docs" / "client.md"
NOW_MS = 1_651_708_800_000


@pytest.fixture(scope="module")
def guarded(artifact: Path, store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A service that wants a key and has a store of its own; its URL and a key."""
    key, stored = new_key(["rank", "events"])
    store = f"lmdb://{tmp_path_factory.mktemp('client') / 'store'}"
    asyncio.run(make_empty_store(store_url, store))
    with running_service(artifact, store, FARM_API_KEYS=stored.line()) as service:
        yield service.url, key


@pytest.fixture(params=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """One call of one of the clients."""

    def call(url: str, name: str, *words: Any, key: str = "", **more: Any) -> Any:
        if request.param == "blocking":
            with RankClient(url, api_key=key, on_exchange=print) as client:  # pytest shows it when the test fails
                return getattr(client, name)(*words, **more)
        return asyncio.run(_await(url, key, name, *words, **more))

    return call


async def _await(url: str, key: str, name: str, *words: Any, **more: Any) -> Any:
    async with AsyncRankClient(url, api_key=key, on_exchange=print) as client:
        return await getattr(client, name)(*words, **more)


def test_rank(ask: Callable[..., Any], service_url: str, facts: Facts) -> None:
    answer = ask(
        service_url,
        "rank",
        facts.users[0],
        [facts.authors[0], {"author_id": 5, "live_id": 6}],
        page=1,
        top_k=1,
        now_ms=facts.now_ms,
        deadline_ms=5000,
        priority="low",
        headers={"X-Request-Id": "front-7"},
    )
    assert (answer.request_id, len(answer.ranking)) == ("front-7", 1)
    assert answer.debug is None


def test_the_service_is_told_the_deadline(ask: Callable[..., Any], service_url: str, facts: Facts) -> None:
    with pytest.raises(DeadlineError):
        ask(service_url, "rank", facts.users[0], list(range(1, 2001)), now_ms=facts.now_ms, deadline_ms=1)


def test_a_refusal_says_what_is_wrong(ask: Callable[..., Any], service_url: str) -> None:
    with pytest.raises(RankError, match=r"422 Invalid request: candidates\[0\]: an id must be") as refused:
        ask(service_url, "rank", 1, ["abc"])
    assert (refused.value.status, refused.value.tries) == (422, 1)
    assert refused.value.problem["errors"][0]["field"] == "candidates[0]"
    assert refused.value.problem["request_id"] == refused.value.request_id


def test_version_and_readiness(ask: Callable[..., Any], service_url: str) -> None:
    assert ask(service_url, "ready") is True
    version = ask(service_url, "version")
    assert (version.provider, version.arch) == ("cpu", "farm")


def test_events_and_a_key(ask: Callable[..., Any], guarded: tuple[str, str]) -> None:
    url, key = guarded
    view = {"type": "live_view", "user_id": 5, "view_id": 1, "event_time": NOW_MS, "known_at": NOW_MS, "author_id": 7}
    assert ask(url, "send_events", [view], key=key) == 1
    assert ask(url, "send_events", [view], key=key) == 1
    debug_refused = pytest.raises(RankError, match=r"403 .*explain")
    with debug_refused:
        ask(url, "rank", 5, [7], debug=True, key=key)
    with pytest.raises(RankError, match="401 ") as stranger:
        ask(url, "rank", 5, [7])
    assert (stranger.value.status, stranger.value.tries) == (401, 1)
    assert ask(url, "rank", 5, [7], now_ms=NOW_MS + 60_000, key=key).degraded == ["unknown_authors"]


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.DOTALL), ids=["0", "1"])
def test_the_manuals_examples(example: str, guarded: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    url, key = guarded
    monkeypatch.setenv("FARM_API_KEY", key)
    example = example.replace("http://127.0.0.1:8080", url).replace("deadline_ms=300", "deadline_ms=30000")
    given: dict[str, Any] = {}
    awaited = eval(compile(example, MANUAL.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), given)
    if awaited is not None:
        asyncio.run(awaited)
    assert {ranked.author_id for ranked in given["answer"].ranking} == {77, 3}
