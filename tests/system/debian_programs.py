"""Programs for tests: Debian's, and those that came with a wheel into this environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def program(name: str, package: str) -> str:
    """The path of a program; the test is skipped, with the reason, where it is absent."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if path is None:
        pytest.skip(f"{name} is absent; install {package}")
    return path


def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a program; its stdout.  What it wrote at all is the message when it fails."""
    settings = {**os.environ, **(environment or {})}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
