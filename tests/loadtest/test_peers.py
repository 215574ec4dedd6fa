"""`farm bench peers`: the plain peer answers as the service does, and what is made of blocks is exact."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from feature_store.store import open_store
from loadtest.bench.parts import UnknownPartError
from loadtest.bench.peers import run
from loadtest.bench.peers_answers import OtherAnswerError, require_same
from loadtest.bench.peers_blocks import Block, Contestant
from loadtest.bench.peers_claims import claims_of, figures_of
from loadtest.bench.peers_environments import PEERS, peer_python, requirements
from loadtest.bench.peers_ratios import paired_ratio
from loadtest.bench.peers_servers import PeerFailedError, PeerServer, ask, running_peer
from loadtest.peers.model import PeerSettings
from loadtest.process import running_service
from loadtest.redis_servers import free_port, wait_until

ROOT = Path(__file__).parent.parent.parent
T_OF_ONE = 12.706204736432095  # Student's t of 95% with one degree of freedom


@pytest.fixture(scope="module")
def bodies(store_url: str) -> list[bytes]:
    """Known users, one unknown; known authors, one unknown."""

    async def known() -> tuple[list[int], list[int]]:
        async with open_store(store_url) as store:
            authors = [int(records["author_id"][0]) async for page in store.scan_authors() for records, _ in page]
            return await store.users(3), authors[:30]

    users, authors = asyncio.run(known())
    now_ms = 1_790_000_000_000
    return [
        json.dumps({"user_id": user, "candidates": authors, "top_k": 10, "now_ms": now_ms}).encode() for user in users
    ] + [
        json.dumps({"user_id": 2**40, "candidates": [2**41, *authors], "page": 1, "now_ms": now_ms}).encode(),
        json.dumps({"user_id": users[0], "candidates": authors[:1], "now_ms": now_ms}).encode(),
    ]


@pytest.fixture(scope="module")
def answers(artifact: Path, store_url: str, bodies: list[bytes]) -> list[bytes]:
    """The service's."""
    with running_service(artifact, store_url) as service:
        return [ask(service.url, body) for body in bodies]


@pytest.fixture(scope="module", params=[False, True], ids=["towers", "tiled"])
def peer(request: pytest.FixtureRequest, artifact: Path, store_url: str, bodies: list[bytes]) -> Iterator[PeerServer]:
    """Plain FastAPI needs no more than our own environment."""
    settings = PeerSettings(artifact, store_url, request.param, free_port())
    with running_peer(Path(sys.executable), "fastapi", settings, bodies[0]) as server:
        yield server


def test_plain_peer_answers_as_the_service(peer: PeerServer, bodies: list[bytes], answers: list[bytes]) -> None:
    for body, answer in zip(bodies, answers, strict=True):
        assert require_same(answer, ask(peer.url, body)) <= 1e-5


def test_stopped_server_runs_only_while_awake(peer: PeerServer, bodies: list[bytes]) -> None:
    one = Contestant("fastapi", peer.url, peer.pids)
    one.stop()
    wait_until(lambda: states(peer) == {"T"}, "all are stopped")  # a signal takes its time
    with one.awake():
        wait_until(lambda: "T" not in states(peer), "none is stopped")
        ask(peer.url, bodies[0])
    wait_until(lambda: states(peer) == {"T"}, "all are stopped again")
    with one.awake():
        ask(peer.url, bodies[0])
    one.resume()


def states(server: PeerServer) -> set[str]:
    return {Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] for pid in server.pids()}


def test_peer_that_does_not_start_is_named_with_its_error(tmp_path: Path, store_url: str) -> None:
    settings = PeerSettings(tmp_path / "nothing", store_url, False, free_port())
    with (
        pytest.raises(PeerFailedError, match=r"(?s)fastapi: exit status 1: .*no manifest\.json"),
        running_peer(Path(sys.executable), "fastapi", settings, b"{}"),
    ):
        pass


def test_unknown_peer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownPartError, match="no peer 'flask'; there are fastapi, litserve"):
        run(None, "mosec,flask", tmp_path, quick=True)


def row(author: int, score: float, ctr: float = 0.5) -> dict[str, Any]:
    return {"author_id": author, "live_id": 7, "score": score, "xtr": {"ctr": ctr}}


def answer(*rows: dict[str, Any], **other: Any) -> bytes:
    fields = {"request_id": "a", "model_version": "v", "ranking": rows, "degraded": [], "timing_ms": {}}
    return json.dumps({**fields, **other}).encode()


def test_near_scores_may_change_places() -> None:
    ours = answer(row(1, 0.9), row(2, 0.5), row(3, 0.499999))
    assert require_same(ours, ours) == 0
    assert require_same(ours, answer(row(1, 0.9), row(3, 0.499999), row(2, 0.5))) == pytest.approx(1e-6)
    cut_elsewhere = answer(row(1, 0.9), row(2, 0.5), row(4, 0.499998))
    assert require_same(ours, cut_elsewhere) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        (answer(row(1, 0.9), row(2, 0.4999)), "scores or probabilities differ by 0.0001"),
        (answer(row(1, 0.9), row(2, 0.5, 0.6)), "differ by 0.1"),
        (answer(row(3, 0.9), row(2, 0.5)), "differ by 0.4"),
        (answer(row(1, 0.9)), "2 ranked authors here, 1 there"),
        (answer(row(1, 0.9), row(2, 0.5), degraded=["no_history"]), "degraded"),
        (answer(row(1, 0.9), row(2, 0.5), model_version="w"), "model_version"),
        (answer(row(1, 0.9), row(2, 0.5), debug=1), "fields"),
    ],
)
def test_other_answers_are_refused(theirs: bytes, why: str) -> None:
    with pytest.raises(OtherAnswerError, match=why):
        require_same(answer(row(1, 0.9), row(2, 0.5)), theirs)


def test_ratio_of_blocks_in_proportion_is_exact() -> None:
    found = paired_ratio([30.0, 60.0, 90.0], [10.0, 20.0, 30.0])
    assert (found.ratio, found.low, found.high) == pytest.approx((3, 3, 3))


def test_interval_of_two_blocks() -> None:
    """Logarithms 0.5 and 0.7: mean 0.6, standard error 0.1."""
    found = paired_ratio([math.exp(0.5), 2 * math.exp(0.7)], [1.0, 2.0])
    expected = [math.exp(0.6 + t * 0.1) for t in (0, -T_OF_ONE, T_OF_ONE)]
    assert [found.ratio, found.low, found.high] == pytest.approx(expected)


def test_ratio_needs_two_blocks() -> None:
    with pytest.raises(ValueError, match="two or more"):
        paired_ratio([1.0], [1.0])


def contestant(name: str, rates: list[float], p99: float | None = None, error: str | None = None) -> Contestant:
    closed = [Block(rate, 1.0, 2.0, 0.5) for rate in rates]
    opened = [] if p99 is None else [Block(9.0, 1.0, p99 * (1 + k), 0.5) for k in range(2)]
    return Contestant(name, "", list, closed=closed, open=opened, error=error)


def test_claims_of_blocks() -> None:
    ours = contestant("service", [600.0, 660.0], 4.0)
    rivals = [
        contestant("fastapi towers", [400.0, 440.0], 8.0),
        contestant("fastapi tiled", [30.0, 33.0]),
        contestant("mosec towers", [500.0, 550.0], 5.0),
        contestant("mosec tiled", [], error="gone"),
    ]
    failed = {"ray": "ray: cannot be installed: no network"}
    figures = figures_of(ours, rivals, failed)
    claims = {claim["claim"]: claim for claim in claims_of(["fastapi", "mosec", "ray"], figures)}
    values = {text: claim["value"] for text, claim in claims.items()}
    start = "requests/s, ours / "
    assert values[f"{start}fastapi, saturated, two towers"] == pytest.approx(1.5)
    assert values[f"{start}fastapi, saturated, tiled histories"] == pytest.approx(20)
    assert values[f"{start}mosec, saturated, two towers, lower end of 95%"] == pytest.approx(1.2)
    assert values["p99 at equal load, ours / mosec towers"] == pytest.approx(0.8)
    missing = {text for text, claim in claims.items() if not claim["holds"]}
    assert missing == {
        f"{start}mosec, saturated, tiled histories",
        f"{start}ray, saturated, tiled histories",
        f"{start}ray, saturated, two towers",
    }
    assert failed["mosec tiled"] == "gone"


@cache
def shared_imports() -> frozenset[str]:
    """Distributions that the code of this project which peers share imports where it has the store of the bench."""
    code = (
        "import sys, loadtest.peers.model, feature_store.redis.store\n"
        "print(*(module.__file__ for name, module in sys.modules.items()"
        " if name.partition('.')[0] in ('feature_store', 'loadtest', 'model') and module.__file__))"
    )
    files = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found: set[str] = set()
    for file in files.split():
        for node in ast.parse(Path(file).read_text()).body:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    owners = packages_distributions()
    tops = {name.partition(".")[0] for name in found} - {"feature_store", "loadtest", "model"}
    return frozenset(canonicalize_name(owners[top][0]) for top in tops & owners.keys())


@pytest.mark.parametrize("app", sorted({peer.app for peer in PEERS.values()}))
def test_requirements_are_plain_pins_of_what_the_service_runs_on(app: str) -> None:
    pins = [Requirement(line) for line in requirements(app).read_text().splitlines()]
    assert all(len(pin.specifier) == 1 and str(pin.specifier).startswith("==") and pin.url is None for pin in pins)
    names = {pin.name for pin in pins}
    assert shared_imports() <= names
    locked = (ROOT / "requirements" / "serve-cpu.txt").read_text()
    for pin in pins:
        if pin.name in (
            "numpy",
            "onnxruntime",
            "orjson",
            "redis",
            "hiredis",
            "pydantic",
            "uvicorn",
            "uvloop",
            "prometheus-client",
        ):
            assert f"\n{pin.name}{pin.specifier} " in locked, f"{app}: {pin} is not what the service is locked to"


def test_environment_of_the_same_pins_is_kept(tmp_path: Path) -> None:
    home = tmp_path / "mosec"
    home.mkdir()
    (home / "pins.sha256").write_text(hashlib.sha256(requirements("mosec").read_bytes()).hexdigest())
    assert peer_python("mosec", tmp_path) == home / "bin" / "python"
    assert [path.name for path in home.iterdir()] == ["pins.sha256"]
