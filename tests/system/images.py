"""The Dockerfile's images, really built on a minimal Debian, and containers of them."""

from __future__ import annotations

import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from debian_programs import ROOT, program, run

_NAME = "localhost/farm-test-{}"
_CONFIGURATION = """
[engine]
runtime = "runc"
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
"""  # limits that root without all capabilities may set


@cache
def debian(name: str, packages: Sequence[str]) -> str:
    """An image of a minimal Debian with some packages."""
    for needed in ("mmdebstrap", "buildah", "podman", "runc"):
        program(needed, needed)
    image = _fresh(name)
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "base.tar"
        run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", "bookworm", tar)
        container = run("buildah", "from", "scratch").strip()
        run("buildah", "add", container, tar, "/")
    run("buildah", "commit", "--rm", container, image)
    return image


def base() -> str:
    """What stands in for Python's image: a minimal Debian with Python."""
    return debian("base", ("ca-certificates", "python3", "python3-venv"))


@cache
def built(target: str) -> str:
    """The image of a target of the Dockerfile.  serve-gpu has no CUDA here: its base is the same minimal Debian."""
    bases = ["--build-arg", f"BASE={base()}", "--build-arg", f"GPU_BASE={base()}"]
    image = _fresh(target)
    options = ["--isolation", "chroot", "--format", "docker", *bases, *_certificates(), *_wheels()]
    run("buildah", "bud", *options, "--target", target, "--tag", image, ROOT)
    return image


def _fresh(name: str) -> str:
    """The name of an image, and the one that an earlier run left under it removed."""
    image = _NAME.format(name)
    subprocess.run(["buildah", "rmi", "--force", image], capture_output=True, check=False)
    return image


def _certificates() -> list[str]:
    """This machine's authorities, for pip inside the build: a package index may be behind one of them."""
    file = ssl.get_default_verify_paths().cafile
    return [] if file is None else _mounted(os.path.realpath(file), "/run/certificates.pem", "PIP_CERT")


def _wheels() -> list[str]:
    """A folder of wheels that pip is told of on this machine, for pip inside the build."""
    folder = os.environ.get("PIP_FIND_LINKS", "")
    return _mounted(folder, "/run/wheels", "PIP_FIND_LINKS") if Path(folder).is_absolute() else []


def _mounted(source: str, inside: str, variable: str) -> list[str]:
    return ["--volume", f"{source}:{inside}:ro", "--env", f"{variable}={inside}"]


@cache
def podman_environment() -> dict[str, str]:
    """Variables for podman and what calls it."""
    file = Path(tempfile.mkdtemp()) / "containers.conf"
    file.write_text(_CONFIGURATION)
    return {"CONTAINERS_CONF": str(file)}


def podman(*words: str | Path) -> str:
    """Run podman; its stdout."""
    return run("podman", *words, environment=podman_environment())


def logs(name: str) -> str:
    """What a container wrote to both streams."""
    return run("sh", "-c", 'exec podman logs "$0" 2>&1', name, environment=podman_environment())


def healthy(name: str) -> bool:
    """Whether the health check of a container passes now."""
    command = ["podman", "healthcheck", "run", name]
    environment = {**os.environ, **podman_environment()}
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


def exit_code(name: str) -> int:
    """Of a container that ended."""
    return int(podman("inspect", "--format", "{{.State.ExitCode}}", name))


def once(image: str, *command: str, entrypoint: str = "farm", options: Sequence[str] = ()) -> str:
    """What a command in a container wrote, which has a read-only root and no network."""
    locked = ("--rm", "--read-only", "--network", "none", *options)
    return podman("run", *locked, "--entrypoint", entrypoint, image, *command)


@contextmanager
def container(image: str, *options: str) -> Iterator[str]:
    """A container that runs as it is, with a read-only root; its name.  It is killed at the end."""
    name = podman("run", "--detach", "--read-only", "--tmpfs", "/tmp", *options, image).strip()
    try:
        yield name
    finally:
        podman("rm", "--force", "--time", "0", name)


def until(holds: Callable[[], Any], within_s: float, explain: Callable[[], str]) -> None:
    """Wait for a condition; `explain` says what is seen instead."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.2)
