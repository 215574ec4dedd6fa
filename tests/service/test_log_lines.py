"""Lines of logs, and which slow requests are among them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from feature_store.logs import FIELDS, JsonLines, TextLines, read_log_settings
from service.observe.slow import RateLimit, SlowRequests
from service.observe.trail import begin, log_context
from service.stopwatch import Stopwatch

REQUEST = {"request_id": "r1", "trace_id": "t1", "span_id": "s1"}


def record(message: str, *words: object, exc_info: object = None, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("farm.test", logging.WARNING, __file__, 1, message, words, exc_info)  # type: ignore[arg-type]
    setattr(made, FIELDS, fields)
    return made


def failure() -> object:
    try:
        raise ValueError("no\nway")
    except ValueError:
        return sys.exc_info()


def test_a_json_line_has_everything() -> None:
    one = record("took %d ms\nand %s", 7, 'a "quote"', ms=7.5, degraded=["no_history"])
    text = JsonLines("worker", lambda: REQUEST).format(one)
    assert "\n" not in text
    line = json.loads(text)
    assert abs(datetime.fromisoformat(line.pop("ts")).timestamp() - one.created) < 0.001
    assert line == {
        "level": "warning",
        "logger": "farm.test",
        "message": 'took 7 ms\nand a "quote"',
        "pid": one.process,
        "role": "worker",
        **REQUEST,
        "ms": 7.5,
        "degraded": ["no_history"],
    }


def test_a_traceback_stays_in_its_json_line() -> None:
    text = JsonLines("worker", dict).format(record("failed", exc_info=failure()))
    assert "\n" not in text
    assert "ValueError: no\nway" in json.loads(text)["exception"]


def test_what_json_has_no_words_for_is_written_all_the_same() -> None:
    line = json.loads(JsonLines("worker", dict).format(record("odd %s", "\ud800", at=datetime(2026, 1, 1, tzinfo=UTC))))
    assert (line["message"], line["at"]) == ("odd \ud800", "2026-01-01 00:00:00+00:00")


def test_a_text_line_is_one_line() -> None:
    one = record("took %d ms\nand more", 7, route="/rank", stages_ms={"store": 1.5})
    text = TextLines("worker", lambda: {"request_id": "r1"}).format(one)
    said, more = "took 7 ms\\nand more", 'request_id=r1 route=/rank stages_ms={"store": 1.5}'
    assert text.endswith(f" WARNING worker[{one.process}] farm.test: {said} {more}")


def test_a_field_cannot_begin_another_line() -> None:
    text = TextLines("worker", dict).format(record("odd", path="/a\n2026 WARNING forged"))
    assert text.endswith(r'odd path="/a\n2026 WARNING forged"')


@pytest.mark.parametrize(("name", "value"), [("FARM_LOG_FORMAT", "xml"), ("FARM_LOG_LEVEL", "loud")])
def test_wrong_settings_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=name):
        read_log_settings()


@pytest.mark.parametrize(
    ("environment", "lines"),
    [
        ({}, [{"message": "high"}]),
        ({"FARM_LOG_LEVEL": "info"}, [{"message": "low"}, {"message": "high"}]),
        ({"FARM_LOG_FORMAT": "text", "FARM_LOG_LEVEL": "error"}, []),
    ],
    ids=["default", "info", "error"],
)
def test_a_process_logs_as_its_environment_says(environment: dict[str, str], lines: list[dict[str, str]]) -> None:
    code = (
        "import logging; from feature_store.logs import set_up_logs; set_up_logs('worker')\n"
        "log = logging.getLogger('uvicorn.error'); log.info('low'); log.warning('high')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    written = [json.loads(line) for line in done.stderr.splitlines()]
    assert [{"message": line["message"]} for line in written] == lines


def test_the_task_that_answers_a_request_names_it() -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    begin([(b"x-request-id", b"mine"), (b"traceparent", f"00-{trace}-{span}-01".encode())])
    assert log_context() == {"request_id": "mine", "trace_id": trace}
    trail = begin([(b"x-request-id", b'"not sane"')])
    assert log_context() == {"request_id": trail.request_id}
    assert len(trail.request_id) == 32


def test_the_limit_counts_what_it_refuses() -> None:
    limit = RateLimit(per_s=2)
    assert [limit.admit(now) for now in (5.0, 5.1, 5.2, 5.9)] == [0, 0, None, None]
    assert [limit.admit(now) for now in (6.0, 6.5, 6.9)] == [2, 0, None]
    assert limit.admit(60.0) == 1
    assert limit.left() == 0


def test_a_slow_request_is_told_with_its_stages(caplog: pytest.LogCaptureFixture) -> None:
    slow, watch = SlowRequests(0.25, RateLimit(per_s=1)), Stopwatch()
    watch.lap("parse")
    watch.candidates, watch.model_version = 3, "v1"
    now = watch.started + 0.5
    for _ in range(3):
        slow.tell("POST", "/rank", 504, 0.5, watch, now)
    slow.tell("GET", "/version", 200, 0.3, None, now + 1)
    slow.close()
    first, second = (getattr(one, FIELDS) for one in caplog.records)
    stages = first.pop("stages_ms")
    assert first == {
        "method": "POST",
        "route": "/rank",
        "status": 504,
        "ms": 500.0,
        "candidates": 3,
        "model_version": "v1",
    }
    assert list(stages) == ["parse", "store"]
    assert sum(stages.values()) == pytest.approx(500, abs=0.01)
    assert second == {"method": "GET", "route": "/version", "status": 200, "ms": 300.0, "suppressed": 2}


def test_at_the_end_it_is_told_how_many_were_not(caplog: pytest.LogCaptureFixture) -> None:
    slow = SlowRequests(0.25, RateLimit(per_s=1))
    for _ in range(3):
        slow.tell("GET", "/livez", 200, 0.3, None, 9.0)
    slow.close()
    assert getattr(caplog.records[-1], FIELDS) == {"suppressed": 2}
