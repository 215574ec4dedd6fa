"""`farm bench fuzz`: whatever is sent, no answer is an undocumented 5xx, shows a stack trace, or does not come."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, seed
from hypothesis import settings as hypothesis_settings
from hypothesis.strategies import SearchStrategy
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks as openapi_checks

from loadtest.bench import fuzz_requests
from loadtest.bench.parts import choose
from loadtest.bench.service_lab import Lab, Service, open_lab
from loadtest.bench.service_stores import Backend
from loadtest.bench.untrained import given_or_untrained
from model.figures import claim, report

DOCUMENTED = (503, 504)  # of 5xx
CONFORMANCE = [
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]

_TRACE = re.compile(rb'Traceback \(most recent|File ".*", line \d|site-packages|object at 0x')
_USERS = 300
_PATIENCE_S = 10.0  # for an answer
_ROUND = 1_000  # requests that hypothesis makes at once: it remembers each
_SHOWN = 5  # of each kind of finding
_SHOWN_BYTES = 300


@dataclass(frozen=True)
class Sizes:
    """Requests."""

    openapi: int = 12_000  # by schemathesis
    bodies: int = 42_000  # by hypothesis
    wire: int = 3_000  # connections with what is hardly HTTP
    backends: tuple[Backend, ...] = ("lmdb", "redis")  # share them


QUICK = Sizes(openapi=200, bodies=800, wire=60, backends=("lmdb",))


@dataclass
class Findings:
    """What came back."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    server_errors: list[str] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)  # connections that ended without an answer
    nonconforming: list[str] = field(default_factory=list)  # against the OpenAPI document

    def take(self, asked: object, status: int, answer: bytes) -> None:
        """An answer."""
        self.requests += 1
        self.statuses[status] += 1
        shown = f"{_short(asked)} -> {status} {_short(answer)}"
        if status >= 500 and status not in DOCUMENTED:
            self.server_errors.append(shown)
        if _TRACE.search(answer):
            self.traces.append(shown)

    def figures(self) -> dict[str, Any]:
        """Counts, and the first of each kind."""
        lists = ("server_errors", "traces", "hangs", "unanswered", "nonconforming")
        found = {name: getattr(self, name) for name in lists}
        counts = {name: len(items) for name, items in found.items()}
        examples = {name: items[:_SHOWN] for name, items in found.items() if items}
        return {
            "requests": self.requests,
            "statuses": dict(sorted(self.statuses.items())),
            **counts,
            "examples": examples,
        }


def run(artifact: Path | None, only: str | None, quick: bool) -> dict[str, Any]:
    """All parts, or the one of a name.  UnknownPartError when there is none of that name."""
    names = choose(only, PARTS)
    with given_or_untrained(artifact) as path:
        return measure(path, names, QUICK if quick else Sizes())


def measure(artifact: Path, names: list[str], sizes: Sizes) -> dict[str, Any]:
    """The report on some parts."""
    results: dict[str, Any] = {}
    with open_lab(artifact, _USERS) as lab:
        for backend in sizes.backends:
            results[backend] = _of_backend(lab, backend, names, sizes)
    found = [figures for parts in results.values() for figures in parts.values()]
    return report("fuzz", asdict(sizes), results, claims_of(found, len(names) == len(PARTS)))


def claims_of(found: list[dict[str, Any]], whole: bool) -> list[dict[str, Any]]:
    """found: figures of parts."""

    def total(name: str) -> int:
        return sum(figures[name] for figures in found)

    claims = [
        claim("5xx that is not a documented 503 or 504", total("server_errors"), "<=", 0),
        claim("answers with a stack trace", total("traces"), "<=", 0),
        claim(f"requests without an answer within {_PATIENCE_S:g} s", total("hangs") + total("unanswered"), "<=", 0),
        claim("answers that the OpenAPI document does not have", total("nonconforming"), "<=", 0),
        claim("times that the service did not rank afterwards", sum(not f["ranks_after"] for f in found), "<=", 0),
    ]
    return [*claims, claim("requests", total("requests"), ">=", 50_000)] if whole else claims


def _of_backend(lab: Lab, backend: Backend, names: list[str], sizes: Sizes) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with lab.another(lab.store(backend)) as service:
        for name in names:
            start, findings = time.monotonic(), Findings()
            PARTS[name](service, getattr(sizes, name) // len(sizes.backends), findings)
            took_s = time.monotonic() - start
            results[name] = {**findings.figures(), "ranks_after": _ranks(service), "took_s": took_s}
            print(f"{backend}, {name}: {took_s:.0f} s", file=sys.stderr, flush=True)
    return results


def openapi(service: Service, count: int, findings: Findings) -> None:
    """schemathesis over every operation of the document, with what it allows and what it forbids."""
    url = service.process.url
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    with_body = [operation for operation in operations if len(operation.body)]
    modes = list(schemathesis.GenerationMode)
    tasks = [(operation, mode, count // (len(with_body) * len(modes))) for operation in with_body for mode in modes]
    # without a body there is one way to ask, and none to ask wrongly
    tasks += [(operation, modes[0], 1) for operation in operations if operation not in with_body]
    with requests.Session() as session:
        session.trust_env = False
        for number, (operation, mode, share) in enumerate(tasks):
            cases = operation.as_strategy(generation_mode=mode)
            _each(cases, share, number, partial(_call, url, session, findings))


def _call(url: str, session: requests.Session, findings: Findings, case: schemathesis.Case) -> None:
    try:
        answer = case.call(base_url=url, session=session, timeout=_PATIENCE_S)
    except requests.Timeout:
        findings.hangs.append(_short(case.as_curl_command()))
        return
    except requests.ConnectionError:
        findings.unanswered.append(_short(case.as_curl_command()))
        return
    findings.take(case.as_curl_command(), answer.status_code, answer.content)
    try:
        case.validate_response(answer, checks=CONFORMANCE)
    except FailureGroup as failures:
        findings.nonconforming.append(_short(" ".join(map(str, failures.exceptions))))


def bodies(service: Service, count: int, findings: Findings) -> None:
    """Bodies and headers by hypothesis, to both routes and beside them."""
    with _link(service) as link:
        _each(fuzz_requests.requests(), count, 1, partial(_send, link, findings))


def _send(link: http.client.HTTPConnection, findings: Findings, asked: fuzz_requests.FuzzedRequest) -> None:
    headers = {name: value.strip().encode("latin-1") for name, value in asked.headers.items()}
    try:
        link.request(asked.method, asked.path, asked.body, headers)
        answer = link.getresponse()
        findings.take(asked, answer.status, answer.read())
        if answer.will_close:
            link.close()
    except TimeoutError:
        findings.hangs.append(_short(asked))
        link.close()
    except (http.client.HTTPException, ConnectionError):
        findings.unanswered.append(_short(asked))
        link.close()


def wire(service: Service, count: int, findings: Findings) -> None:
    """Connections with bytes that are hardly HTTP, of which we then end our half: the service must end its own."""
    parts = urlsplit(service.process.url)
    address = parts.hostname or "127.0.0.1", parts.port or 80
    _each(fuzz_requests.wire_bytes(), count, 2, partial(_splash, address, findings))


def _splash(address: tuple[str, int], findings: Findings, sent: bytes) -> None:
    answer = b""
    with socket.create_connection(address, _PATIENCE_S) as link, contextlib.suppress(ConnectionError):
        try:
            link.sendall(sent)
            link.shutdown(socket.SHUT_WR)
            while piece := link.recv(1 << 16):
                answer += piece
        except TimeoutError:
            findings.hangs.append(_short(sent))
    status = re.match(rb"HTTP/1\.1 (\d{3})", answer)
    findings.take(sent, int(status[1]) if status else 0, answer)


PARTS: dict[str, Callable[[Service, int, Findings], None]] = {"openapi": openapi, "bodies": bodies, "wire": wire}


def _each(cases: SearchStrategy[Any], count: int, number: int, take: Callable[[Any], None]) -> None:
    """`count` cases, always the same."""
    for first in range(0, count, _ROUND):

        @seed(1_000 * number + first // _ROUND)
        @hypothesis_settings(
            max_examples=min(_ROUND, count - first),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases)
        def one(case: Any) -> None:
            take(case)

        one()


@contextmanager
def _link(service: Service) -> Iterator[http.client.HTTPConnection]:
    parts = urlsplit(service.process.url)
    link = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=_PATIENCE_S)
    try:
        yield link
    finally:
        link.close()


def _ranks(service: Service) -> bool:
    """Whether it still answers a plain request."""
    with _link(service) as link:
        link.request("POST", "/rank", b'{"user_id":1,"candidates":[1,2]}', {"Content-Type": "application/json"})
        return link.getresponse().status == 200


def _short(value: object) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= _SHOWN_BYTES else f"{text[:_SHOWN_BYTES]}... ({len(text)})"
