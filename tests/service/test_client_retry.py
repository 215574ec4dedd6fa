"""What the client repeats, and when: exact, on a clock of the test."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import httpx
import orjson
import pytest
from misbehaving import RANKING

from service.client import BusyError, DeadlineError, NoAnswerError, RankError
from service.client.asking import Asker, Attempt, Exchange, Flow, Outcome, Wait
from service.client.calls import Calls
from service.client.retry import RetryBudget, RetryPolicy, retry_after_s

NOTHING: frozenset[int] = frozenset()
BROKEN = httpx.ConnectError("refused")


class World:
    """A clock, and a service that takes 0.1 s for whatever it is said to do."""

    def __init__(self, retries: int = 2) -> None:
        self.now_s = 1000.0
        self.waits: list[float] = []
        self.sent: list[httpx.Request] = []
        self.told: list[Exchange] = []
        policy = RetryPolicy(retries)
        asker = Asker("http://farm", {}, policy, self.told.append, lambda: self.now_s, draw=lambda: 0.5)
        self.calls = Calls(asker, timeout_s=10.0)

    def run(self, flow: Flow, *outcomes: Outcome) -> object:
        """What the flow returns when its attempts end so; the last outcome stays."""
        outcome: Outcome = None
        try:
            while True:
                step = flow.send(outcome)
                if isinstance(step, Wait):
                    self.waits.append(step.seconds)
                    self.now_s += step.seconds
                    outcome = None
                    continue
                outcome = outcomes[min(len(self.sent), len(outcomes) - 1)]
                self.sent.append(step.request)
                self.now_s += 0.1
                if isinstance(outcome, httpx.Response):
                    outcome = self.read(step, outcome)
        except StopIteration as done:
            return done.value

    def read(self, attempt: Attempt, response: httpx.Response) -> Outcome:
        try:
            attempt.take(response.content)
        except httpx.ReadTimeout as error:
            return error
        return response

    def deadlines(self) -> list[str | None]:
        return [request.headers.get("x-deadline-ms") for request in self.sent]


def says(status: int, answer: object = None, **headers: str) -> httpx.Response:
    return httpx.Response(
        status, content=orjson.dumps(answer), headers={n.replace("_", "-"): v for n, v in headers.items()}
    )


RANKED = says(200, RANKING)


def test_waits_grow_and_the_request_id_stays() -> None:
    world = World(retries=3)
    answer = world.run(world.calls.rank(1, [2], deadline_ms=2000), BROKEN, BROKEN, BROKEN, RANKED)
    assert answer.ranking[0].author_id == 2
    assert world.waits == [0.025, 0.05, 0.1]
    assert world.deadlines() == ["2000", "1875", "1725", "1525"]
    assert len({request.headers["x-request-id"] for request in world.sent}) == 1
    assert [(told.tries, told.status, told.error) for told in world.told] == [
        (1, None, "refused"),
        (2, None, "refused"),
        (3, None, "refused"),
        (4, 200, None),
    ]
    assert world.told[-1].seconds == pytest.approx(0.1)
    assert world.told[-1].bytes == len(RANKED.content)


def test_the_service_says_how_long_to_wait() -> None:
    world = World()
    world.run(world.calls.rank(1, [2]), says(503, retry_after="1"), says(429, retry_after="2"), RANKED)
    assert world.waits == [1.025, 2.05]


@pytest.mark.parametrize("deadline_ms", [500, 1000, 1125])
def test_no_wait_reaches_the_deadline(deadline_ms: int) -> None:
    world = World()
    with pytest.raises(BusyError, match="http://farm: 503") as refused:
        world.run(world.calls.rank(1, [2], deadline_ms=deadline_ms), says(503, retry_after="1"))
    assert (world.waits, len(world.sent)) == ([], 1)
    assert (refused.value.tries, refused.value.retry_after_s) == (1, 1.0)
    assert refused.value.request_id == world.sent[0].headers["x-request-id"]


def test_the_wait_that_just_fits_is_waited() -> None:
    world = World()
    with pytest.raises(DeadlineError, match="no answer within 1126 ms"):  # the next try has 1 ms
        world.run(world.calls.rank(1, [2], deadline_ms=1126), says(503, retry_after="1"), RANKED)
    assert world.waits == [1.025]
    assert world.deadlines() == ["1126", "1"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 422, 500, 502, 503, 504])
def test_a_ranking_is_not_repeated_after(status: int) -> None:
    world = World()
    kind = {503: BusyError, 504: DeadlineError}.get(status, RankError)
    with pytest.raises(RankError, match=f"http://farm: {status}") as refused:
        world.run(world.calls.rank(1, [2]), says(status))
    assert type(refused.value) is kind
    assert (refused.value.status, len(world.sent)) == (status, 1)


@pytest.mark.parametrize("status", [400, 422, 504])
def test_retry_after_changes_nothing_for_what_must_not_be_repeated(status: int) -> None:
    world = World()
    with pytest.raises(RankError):
        world.run(world.calls.rank(1, [2]), says(status, retry_after="0"))
    assert len(world.sent) == 1


@pytest.mark.parametrize("failure", [says(500), says(503), says(503, retry_after="0"), BROKEN], ids=repr)
def test_events_are_sent_again(failure: Outcome) -> None:
    world = World()
    assert world.run(world.calls.send_events([{}]), failure, says(202, {"accepted": 1, "request_id": "r"})) == 1
    assert world.waits == [0.025]
    assert world.sent[0].read() == world.sent[1].read() == b'{"events":[{}]}'


def test_retries_end() -> None:
    for retries in (0, 1, 2):
        world = World(retries)
        with pytest.raises(NoAnswerError, match="refused") as failed:
            world.run(world.calls.rank(1, [2]), BROKEN)
        assert len(world.sent) == failed.value.tries == retries + 1


def test_a_timeout_of_the_connection_leaves_time_for_another() -> None:
    world = World()
    flow = world.calls.rank(1, [2], deadline_ms=3000)
    attempt = next(flow)
    assert isinstance(attempt, Attempt)
    timeouts = attempt.request.extensions["timeout"]
    assert (timeouts.get("connect"), timeouts.get("read"), timeouts.get("pool")) == (1.0, 3.0, 3.0)
    world.now_s += 2.5
    assert (timeouts.get("connect"), timeouts.get("read")) == (0.5, 0.5)
    world.now_s += 1.0
    assert timeouts.get("write") == 0.001
    with pytest.raises(httpx.ReadTimeout):
        attempt.take(b"late")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (httpx.ReadTimeout(""), "no answer within 300 ms"),
        (httpx.PoolTimeout(""), "all connections of this client were in use, no answer within 300 ms"),
    ],
    ids=["read", "pool"],
)
def test_the_clients_own_clock(error: httpx.TransportError, text: str) -> None:
    world = World()
    with pytest.raises(DeadlineError, match=text) as late:
        world.run(world.calls.rank(1, [2], deadline_ms=300), error)
    assert (late.value.status, len(world.sent)) == (None, 1)


def test_ready_heeds_the_first_answer() -> None:
    world = World()
    assert world.run(world.calls.ready(), says(503, retry_after="0"), says(200, {"status": "ready"})) is False
    assert len(world.sent) == 1


def test_ready_is_asked_again_when_there_is_no_answer() -> None:
    world = World()
    assert world.run(world.calls.ready(), BROKEN, says(200, {"status": "ready"})) is True
    assert len(world.sent) == 2
    gone = World()
    assert gone.run(gone.calls.ready(), BROKEN) is False
    assert len(gone.sent) == 3


def test_the_budget_of_a_client() -> None:
    world = World(retries=2)
    for _ in range(1000):
        with pytest.raises(NoAnswerError):
            world.run(world.calls.rank(1, [2]), BROKEN)
    assert 1000 + 100 <= len(world.sent) <= 1000 + 110


def test_the_bucket() -> None:
    budget = RetryBudget(share=0.25, most=2.0)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(3):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    assert [budget.spend() for _ in range(2)] == [True, False]
    for _ in range(100):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def test_the_bucket_is_exact_with_threads() -> None:
    budget, start = RetryBudget(share=0.0, most=1000.0), threading.Barrier(8)

    def spend(_: int) -> int:
        start.wait()
        return sum(budget.spend() for _ in range(200))

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(spend, range(8))) == 1000


def test_the_cap_and_the_jitter() -> None:
    policy, error = RetryPolicy(retries=10, first_wait_s=0.05, longest_wait_s=1.0), NoAnswerError("")
    waits = [policy.wait_s(error, tries, 100.0, 1.0, NOTHING) for tries in range(1, 12)]
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0, None]
    assert policy.wait_s(error, 4, 100.0, 0.0, NOTHING) == 0.0
    assert policy.wait_s(error, 4, 0.1, 0.25, NOTHING) is None
    assert policy.wait_s(error, 4, 0.1001, 0.25, NOTHING) == 0.1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3.0),
        (" 0 ", 0.0),
        (formatdate(1_000_005, usegmt=True), 5.0),
        (formatdate(1_000_005), 5.0),  # of the zone -0000
        (formatdate(999_000, usegmt=True), 0.0),
        ("soon", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),  # of no calendar
        ("-1", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert retry_after_s(text, now_s=1_000_000) == seconds
