"""The Dockerfile's `serve` image, really built and run: `make test-system` where buildah, podman and mmdebstrap are."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_programs import ROOT, program, run

from model.datasets.prepared import Prepared
from model.materialize import materialize
from service.client import RankClient

pytestmark = pytest.mark.debian

BASE = "localhost/farm-test-base"
IMAGE = "localhost/farm-test-serve"
READY_WITHIN_S = 60
LIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")  # rootful podman without privileges


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The `serve` image, on a minimal Debian with Python as BASE."""
    for name in ("mmdebstrap", "buildah", "podman", "runc"):
        program(name, name)
    tar = tmp_path_factory.mktemp("base") / "base.tar"
    packages = "--include=ca-certificates,python3,python3-venv,python3-pip"
    run("mmdebstrap", "--quiet", "--variant=minbase", packages, "bookworm", tar)
    container = run("buildah", "from", "scratch").strip()
    run("buildah", "add", container, tar, "/")
    run("buildah", "commit", "--rm", container, BASE)
    options = ["--isolation", "chroot", "--format", "docker", "--build-arg", f"BASE={BASE}", "--target", "serve"]
    run("buildah", "bud", *options, *_certificates(), "--tag", IMAGE, ROOT)
    return IMAGE


def _certificates() -> list[str]:
    """This machine's authorities, for pip inside the build: a package index may be behind one of them."""
    file = ssl.get_default_verify_paths().cafile
    if file is None:
        return []
    inside = "/run/certificates.pem"
    return ["--volume", f"{os.path.realpath(file)}:{inside}:ro", "--env", f"PIP_CERT={inside}"]


@pytest.fixture
def served(image: str, artifact: Path, prepared: Prepared, tmp_path: Path) -> Iterator[str]:
    """The image serving the test model: no root, a read-only root file system.  Its URL."""
    asyncio.run(materialize(prepared, f"lmdb://{tmp_path / 'store'}"))
    for path in (tmp_path / "store", *(tmp_path / "store").iterdir()):
        path.chmod(0o777)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mounts = ["-v", f"{artifact}:/var/lib/farm/artifact:ro", "-v", f"{tmp_path / 'store'}:/var/lib/farm/store"]
    environment = ["-e", "FARM_HOST=127.0.0.1", "-e", f"FARM_PORT={port}"]
    name = run(
        *("podman", "--runtime", "runc", "run", "--detach", "--read-only", "--network", "host"),
        *(*LIMITS, *mounts, *environment, image),
    ).strip()
    try:
        _wait(f"http://127.0.0.1:{port}", name)
        assert run("podman", "--runtime", "runc", "exec", name, "id", "-u").strip() == "10001"
        yield f"http://127.0.0.1:{port}"
    finally:
        subprocess.run(["podman", "--runtime", "runc", "rm", "--force", name], capture_output=True, check=False)


def _wait(url: str, name: str) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not RankClient(url).ready():
        assert time.monotonic() < deadline, run("podman", "logs", name)
        time.sleep(0.2)


def test_the_image_ranks(served: str, prepared: Prepared) -> None:
    user = int(prepared.user_ids()[0])
    authors = [int(author) for author in set(prepared.authors["author_id"][:50].tolist())]
    with RankClient(served) as client:
        answer = client.rank(user, authors)
    assert len(answer.ranking) == len(authors)
    assert answer.degraded == []


def test_the_image_has_no_torch_and_is_small(image: str) -> None:
    size = int(run("podman", "image", "inspect", "--format", "{{.Size}}", image))
    print(f"serve image: {size / 1e6:.0f} MB")
    podman = (
        "podman",
        "--runtime",
        "runc",
        "run",
        "--rm",
        "--network",
        "host",
        *LIMITS,
        "--entrypoint",
        "python3",
        image,
    )
    look = "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('polars'))"
    assert run(*podman, "-c", look).strip() == "None None"
