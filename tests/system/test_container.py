"""The Dockerfile's images, really built and run: `make test-system` where buildah, podman, runc and mmdebstrap are."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from images import base, built, container, exit_code, logs, once, podman, until

from model.datasets.prepared import Prepared
from model.materialize import materialize
from service.client import RankClient

pytestmark = pytest.mark.debian

READY_WITHIN_S = 60
GREATEST_BYTES = 450e6  # of `serve`
GRACE_S = 20  # FARM_GRACE_S and FARM_DRAIN_TIMEOUT_S are 15 together


@pytest.fixture
def data(artifact: Path, prepared: Prepared, tmp_path: Path) -> list[str]:
    """Options that mount the test model and its store."""
    store = tmp_path / "store"
    asyncio.run(materialize(prepared, f"lmdb://{store}"))
    for path in (store, *store.iterdir()):
        path.chmod(0o777)
    return ["-v", f"{artifact}:/var/lib/farm/artifact:ro", "-v", f"{store}:/var/lib/farm/store"]


@contextmanager
def serving(image: str, *options: str) -> Iterator[tuple[str, str]]:
    """A container of the image that answers; its name and its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    published = ("-p", f"127.0.0.1:{port}:8080", "-e", "FARM_OPEN=true")
    with container(image, *published, "--cap-drop", "all", *options) as name:
        url = f"http://127.0.0.1:{port}"
        until(RankClient(url).ready, READY_WITHIN_S, lambda: logs(name))
        yield name, url


def size(target: str) -> int:
    """Bytes of the image of a target, with its base; printed."""
    whole, below = (int(podman("image", "inspect", "--format", "{{.Size}}", name)) for name in (built(target), base()))
    print(f"image {target}: {whole / 1e6:.0f} MB, of which {below / 1e6:.0f} MB are Debian with Python")
    return whole


def test_serve_ranks_as_nobody_on_a_read_only_root(data: list[str], prepared: Prepared) -> None:
    authors = [int(author) for author in set(prepared.authors["author_id"][:50].tolist())]
    with serving(built("serve"), *data) as (name, url), RankClient(url) as client:
        answer = client.rank(int(prepared.user_ids()[0]), authors)
        assert podman("exec", name, "id", "-u").strip() == "10001"
        assert podman("exec", name, "sh", "-c", "touch /opt/farm/x 2>&1 || echo refused").strip().endswith("refused")
        podman("healthcheck", "run", name)
    assert len(answer.ranking) == len(authors)
    assert answer.degraded == []


def test_serve_stops_within_its_grace(data: list[str]) -> None:
    with serving(built("serve"), *data) as (name, _):
        asked = time.monotonic()
        podman("stop", "--time", str(GRACE_S), name)
        print(f"stopped after {time.monotonic() - asked:.1f} s, exit {exit_code(name)}")
        assert exit_code(name) == 0


def test_serve_is_small_and_has_no_torch() -> None:
    assert size("serve") <= GREATEST_BYTES
    look = "from importlib.util import find_spec; print(*filter(find_spec, ('torch', 'polars', 'onnx', 'pip')))"
    assert once(built("serve"), "-c", look, entrypoint="/opt/farm/bin/python3").strip() == ""


@pytest.mark.parametrize("target", ["serve", "train"])
def test_labels_name_the_list_of_parts(target: str) -> None:
    labels = json.loads(podman("image", "inspect", "--format", "{{json .Labels}}", built(target)))
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    parts = json.loads(once(built(target), labels["farm.sbom"], entrypoint="cat"))
    found = {part["name"]: part["version"] for part in parts["components"]}
    listed = "import importlib.metadata as m; print(*sorted(d.name for d in m.distributions()))"
    installed = set(once(built(target), "-c", listed, entrypoint="/opt/farm/bin/python3").split())
    assert installed - {"farm-ranker"} == set(found)
    assert parts["metadata"]["component"]["version"] == labels["org.opencontainers.image.version"]
    print(f"list of parts of {target}: {len(found)} packages in {parts['bomFormat']} {parts['specVersion']}")


def test_train_shows_its_verbs() -> None:
    size("train")
    assert "Train FARM" in once(built("train"), "--help", options=["--tmpfs", "/tmp"])


def test_serve_gpu_refuses_to_run_without_a_gpu(data: list[str]) -> None:
    size("serve-gpu")
    with container(built("serve-gpu"), "-e", "FARM_OPEN=true", *data) as name:
        until(
            lambda: podman("inspect", "--format", "{{.State.Status}}", name).strip() == "exited",
            READY_WITHIN_S,
            lambda: logs(name),
        )
        assert exit_code(name) != 0
        said = logs(name)
    print(said.splitlines()[-1])
    assert "cuda" in said.lower()


def test_serve_gpu_falls_back_where_it_is_told_to(data: list[str]) -> None:
    with serving(built("serve-gpu"), "-e", "FARM_PROVIDER=cuda,cpu", *data) as (_, url):
        assert httpx.get(f"{url}/version").json()["provider"] == "cpu"
