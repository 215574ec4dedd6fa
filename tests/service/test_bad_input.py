"""Bad requests: 4xx problem details that name the field and the limit."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

JSON = {"Content-Type": "application/json"}
LIMIT = 1 << 20


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content = response.json()
    assert set(content) == {"type", "title", "status", "detail", "errors", "request_id"}
    assert content["status"] == status
    assert content["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return content


def request(**fields: object) -> dict[str, object]:
    return {"user_id": 1, "candidates": [1, 2], **fields}


INVALID = [
    (request(limit=3), "limit", "unknown field; known are user_id, candidates, page, top_k, now_ms"),
    (request(candidates=[1, {"author_id": 2, "room": 3}]), "candidates[1].room", "known are author_id, live_id"),
    (request(candidates=[]), "candidates", "must be 1 to 2000 candidates, not 0"),
    (request(candidates=list(range(2001))), "candidates", "must be at most 2000 candidates, not 2001"),
    (request(candidates=None), "candidates", "a list of 1 to 2000"),
    (request(candidates={"1": 2}), "candidates", "not an object"),
    (request(candidates=[7, 8, 7]), "candidates[2]", "the same author_id and live_id as candidates[0]"),
    (request(candidates=[7, {"author_id": "7"}]), "candidates[1]", "as candidates[0]"),
    (
        request(candidates=[{"author_id": 7, "live_id": 1}, {"author_id": 7, "live_id": "1"}]),
        "candidates[1]",
        "as candidates[0]",
    ),
    *[
        (request(candidates=[5, bad]), "candidates[1]", f"an integer or a decimal string of one, not {shown}")
        for bad, shown in [
            (1.5, "1.5"),
            (1.0, "1.0"),
            (True, "true"),
            ("abc", "'abc'"),
            (None, "null"),
            ([1], "a list"),
        ]
    ],
    *[
        (request(candidates=[5, bad]), "candidates[1]", "decimal string of one, not")
        for bad in ("", "1.0", "+1", " 1", "1_0", "0x1", "007", "٣")
    ],
    (request(candidates=[{"author_id": 1.5}]), "candidates[0].author_id", "an integer or a decimal string"),
    (request(candidates=[{"author_id": None}]), "candidates[0].author_id", "not null"),
    (request(candidates=[{"author_id": 1, "live_id": False}]), "candidates[0].live_id", "not false"),
    (request(candidates=[{"live_id": 1}]), "candidates[0].author_id", "is required"),
    (request(candidates=[2**63]), "candidates[0]", "within -9223372036854775807 and 9223372036854775807"),
    (request(candidates=[{"author_id": 1, "live_id": str(-(2**63))}]), "candidates[0].live_id", "must be within"),
    (request(user_id=1.5), "user_id", "an integer or a decimal string of one, not 1.5"),
    (request(user_id=True), "user_id", "not true"),
    (request(user_id=None), "user_id", "not null"),
    (request(user_id="abc"), "user_id", "not 'abc'"),
    (request(user_id=-(2**63)), "user_id", "must be within"),
    ({"candidates": [1]}, "user_id", "is required"),
    ({"user_id": 1}, "candidates", "is required"),
    (request(page="1"), "page", "an integer of 64 bits"),
    (request(page=2**63), "page", "an integer of 64 bits"),
    (request(top_k=0), "top_k", "from 1 to 2000, not 0"),
    (request(top_k=2001), "top_k", "from 1 to 2000, not 2001"),
    (request(top_k=2.5), "top_k", "from 1 to 2000, not 2.5"),
    (request(now_ms=1_700_000_000), "now_ms", "ms since 1970, from 946684800000 (2000-01-01) to 4102444800000"),
    (request(now_ms=1_700_000_000_000_000), "now_ms", "to 4102444800000 (2100-01-01)"),
    (request(now_ms="2024-01-01"), "now_ms", "ms since 1970"),
    (request(debug="yes"), "debug", "must be true or false, not 'yes'"),
    (request(debug=1), "debug", "must be true or false, not 1"),
    ([1], "body", "a JSON object, not a list"),
    (None, "body", "a JSON object, not null"),
]


@pytest.mark.parametrize(("body", "field", "message"), INVALID)
def test_invalid_request(http: httpx.Client, body: object, field: str, message: str) -> None:
    content = problem(http.post("/rank", content=json.dumps(body), headers=JSON), 422)
    assert content["type"] == "urn:farm:problem:invalid-request"
    assert [error["field"] for error in content["errors"]] == [field]
    assert message in content["errors"][0]["message"]
    assert content["detail"].startswith(f"{field}: ")


def test_every_wrong_field_is_named_at_once(http: httpx.Client) -> None:
    content = problem(http.post("/rank", json={"user_id": None, "candidates": [True], "top_k": 0, "x": 1}), 422)
    assert [error["field"] for error in content["errors"]] == ["user_id", "candidates[0]", "top_k", "x"]


@pytest.mark.parametrize("body", [b"", b"{", b'{"user_id": 1,}', b"\xff\xfe", b"user_id=1", b"[" * 5000, b"9" * 5000])
def test_malformed_json(http: httpx.Client, body: bytes) -> None:
    assert "not JSON" in problem(http.post("/rank", content=body, headers=JSON), 400)["detail"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", ""]
)
def test_wrong_content_type(http: httpx.Client, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    content = problem(http.post("/rank", content=json.dumps(request()), headers=headers), 415)
    assert content["errors"] == [{"field": "Content-Type", "message": "must be application/json"}]


def test_compressed_body(http: httpx.Client) -> None:
    content = problem(http.post("/rank", content=b"x", headers={**JSON, "Content-Encoding": "gzip"}), 415)
    assert content["errors"][0]["field"] == "Content-Encoding"


def test_charset_utf_8_is_accepted(http: httpx.Client) -> None:
    headers = {"Content-Type": 'Application/JSON; charset="UTF-8"'}
    assert http.post("/rank", content=json.dumps(request()), headers=headers).status_code == 200


def padded(size: int) -> bytes:
    body = json.dumps(request()).encode()
    return body + b" " * (size - len(body))


def test_body_over_a_mebibyte(http: httpx.Client) -> None:
    assert http.post("/rank", content=padded(LIMIT), headers=JSON).status_code == 200
    content = problem(http.post("/rank", content=padded(LIMIT + 1), headers=JSON), 413)
    assert content["errors"] == [{"field": "body", "message": "must be at most 1048576 bytes"}]


def test_body_over_a_mebibyte_without_a_declared_length(http: httpx.Client) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        body = padded(size)
        yield from (body[start : start + 50_000] for start in range(0, size, 50_000))

    assert http.post("/rank", content=chunks(LIMIT), headers=JSON).status_code == 200
    problem(http.post("/rank", content=chunks(LIMIT + 1), headers=JSON), 413)


def test_a_declared_length_over_the_limit_is_refused_before_the_body(service_url: str) -> None:
    with socket.create_connection((urlsplit(service_url).hostname, urlsplit(service_url).port), 10) as raw:
        raw.sendall(
            b"POST /rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2000000\r\n\r\n"
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")


def test_unknown_route_and_method(http: httpx.Client) -> None:
    assert problem(http.get("/ranks"), 404)["title"] == "Not Found"
    assert problem(http.post("/rank/", json=request()), 404)
    response = http.get("/rank")
    assert problem(response, 405)["title"] == "Method Not Allowed"
    assert response.headers["allow"] == "POST"


def test_bad_requests_leave_the_service_well(http: httpx.Client) -> None:
    assert http.post("/rank", json=request()).status_code == 200
