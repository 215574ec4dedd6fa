"""Our class of the client's values against the client's own: threads, a fork, a file that grows, SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from feature_store.cells import FOLDER

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, signal, sys, threading
if sys.argv[1] == "ours":
    import feature_store.metered
from prometheus_client import Counter, Gauge, Histogram, values

assert (values.ValueClass.__name__ == "Cell") is (sys.argv[1] == "ours")
answers = Counter("answers_total", "Help.", ["route"])
seconds = Histogram("seconds", "Help.", ["stage"], buckets=(0.1, 1)).labels("a")
kept = Gauge("kept", "Help.", multiprocess_mode="livesum")
model = Gauge("model", "Help.", multiprocess_mode="mostrecent")

def count():
    for _ in range(2000):
        answers.labels("/rank").inc()
        seconds.observe(0.5)

threads = [threading.Thread(target=count) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
kept.set(1)
model.set(1)
child = os.fork()
if not child:
    for number in range(1500):  # more than the file has room for at first
        answers.labels(f"/{number}").inc(0.25)
    seconds.observe(7)
    kept.set(2)
    model.set(2)
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
answers.labels("/rank").inc(2)
kept.dec(0.5)
assert kept._value.get() == 0.5
os.kill(os.getpid(), signal.SIGKILL)
"""


def counted(whose: str, folder: Path) -> dict[tuple[str, tuple[str, ...]], float]:
    folder.mkdir()
    environment = {**os.environ, FOLDER: str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SCRIPT, whose], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))
    families = registry.collect()
    return {(s.name, tuple(sorted(s.labels.values()))): s.value for family in families for s in family.samples}


def test_files_are_as_the_client_writes_them(tmp_path: Path) -> None:
    ours, theirs = counted("ours", tmp_path / "ours"), counted("theirs", tmp_path / "theirs")
    assert ours == theirs
    assert ours["answers_total", ("/rank",)] == 8002
    assert ours["answers_total", ("/1499",)] == 0.25
    assert ours["seconds_sum", ("a",)] == pytest.approx(4007)
    assert ours["seconds_bucket", ("1.0", "a")] == 8000
    assert (ours["kept", ()], ours["model", ()]) == (2.5, 2)
