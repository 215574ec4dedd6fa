"""Debian programs for tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def program(name: str, package: str) -> str:
    """The path of a program; the test is skipped, with the reason, where it is absent."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is absent; Debian's package {package} has it")
    return path


def run(*command: str | Path) -> str:
    """Run a program; its stdout.  What it wrote at all is the message when it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
