"""A study from end to end: small, real processes, killed and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.datasets.logs import prepare_logs
from model.datasets.prepared import Prepared, fingerprint
from model.datasets.simulator import simulate
from model.evaluate import measure, predict
from model.study import run
from model.study.runs import Job, StudyError, run_job
from model.train import load_model

SMALL = {"batch_size": 512, "heads": 1, "head_width": 4, "expert_width": 4, "align_width": 4, "tower_hidden": 4}
VARIANTS = ["ple"]
FOLDERS = [f"{variant}/{seed}" for seed in (0, 1) for variant in ("farm", "ple")]  # in the order that they are made
SCRIPT = """
import json, sys
from pathlib import Path
from model.study import run
if __name__ == "__main__":
    data, out, settings = sys.argv[1:]
    run(Path(data), Path(out), ["ple"], 2, 1, 1, json.loads(settings), draws=20)
"""


def silent(text: str) -> None:
    """No progress."""


def study_of(
    data: Path, out: Path, variants: list[str] = VARIANTS, progress: Callable[[str], None] = silent
) -> dict[str, Any]:
    """A small study, its runs in one worker."""
    return run(data, out, variants, 2, 1, 1, SMALL, progress=progress, draws=20)


def times(out: Path) -> dict[str, int]:
    """When each finished run was made."""
    done = [folder for folder in FOLDERS if (out / "runs" / folder / "done.json").is_file()]
    return {folder: (out / "runs" / folder / "test.npy").stat().st_mtime_ns for folder in done}


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not path.is_file():
        assert process.poll() is None, "the study ended"
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)


def children(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def ended(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return not status.is_file() or status.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Data with enough clicks on the test day, and not much more."""
    folder = tmp_path_factory.mktemp("little")
    made = simulate(folder / "logs", users=80, days=3, seed=1)
    return prepare_logs(folder / "logs", folder / "prepared", made.last_day)


@pytest.fixture(scope="module")
def killed(little: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The folder of a study that kill -9 met after its first run, and when its finished runs were made."""
    out = tmp_path_factory.mktemp("studies") / "study"
    arguments = [sys.executable, "-c", SCRIPT, str(little.path), str(out), json.dumps(SMALL)]
    process = subprocess.Popen(arguments, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    wait_for(out / "runs" / FOLDERS[0] / "done.json", process)
    workers = children(process.pid)
    assert workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while not all(ended(pid) for pid in workers):  # a worker that lived on would write into the next study's folder
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return out, times(out)


@pytest.fixture(scope="module")
def failed(little: Prepared, killed: tuple[Path, dict[str, int]]) -> tuple[Path, str]:
    """That study gone on with, and with a variant that fails: its folder, and what was said."""
    out, before = killed
    said: list[str] = []
    with pytest.raises(StudyError) as caught:
        study_of(little.path, out, ["ple", "bad:learning_rate=-1"], said.append)
    assert before
    assert any(f"{len(before)} of 6 runs are done already" in text for text in said)
    assert {folder: when for folder, when in times(out).items() if folder in before} == before
    return out, str(caught.value)


@pytest.fixture(scope="module")
def study(little: Prepared, failed: tuple[Path, str]) -> tuple[Path, dict[str, Any]]:
    """That study without what fails."""
    out, _ = failed
    before = times(out)
    report = study_of(little.path, out)
    assert times(out) == before
    return out, report


def test_a_run_that_fails_is_named_and_the_others_kept(failed: tuple[Path, str]) -> None:
    out, message = failed
    assert message.startswith("2 of 6 runs failed; the others are kept. bad, seed 0: ValueError: ")
    assert "\n" not in message
    assert list(times(out)) == FOLDERS
    assert "Traceback" in (out / "runs" / "bad" / "0" / "error.txt").read_text()


def test_a_killed_study_goes_on_to_its_end(study: tuple[Path, dict[str, Any]]) -> None:
    out, report = study
    assert json.loads((out / "study.json").read_text()) == report
    assert set(report) == {
        *("study", "environment", "data", "variants", "results", "groups", "bounds", "comparisons", "claims"),
    }


def test_figures_are_those_of_the_runs(study: tuple[Path, dict[str, Any]], little: Prepared) -> None:
    out, report = study
    rows = little.rows("test")
    for folder in FOLDERS:
        _, model = load_model(out / "runs" / folder)
        probabilities = np.load(out / "runs" / folder / "test.npy")
        assert probabilities.dtype == np.float32
        assert (probabilities == predict(model, little, rows)).all()
        exact = measure(little, rows, probabilities)
        variant, _, seed = folder.partition("/")
        for task, figures in report["results"][variant].items():
            seeds = figures["gauc"]["seeds"]
            assert bool(seeds) == exact[task].measurable
            assert not seeds or seeds[int(seed)] == pytest.approx(exact[task].gauc, abs=1e-12)


def test_a_study_says_what_it_was_made_of(study: tuple[Path, dict[str, Any]], little: Prepared) -> None:
    _, report = study
    assert report["study"]["seeds"] == 2
    assert report["study"]["command"].startswith("farm study --data prepared --out study --variant ple --seeds 2")
    assert report["data"]["fingerprint"] == fingerprint(little.path)
    assert report["data"]["measurable"]["ctr"]
    assert report["data"]["positives"]["ctr"] == (little.samples["labels"][little.rows("test"), 0] == 1).sum()
    assert list(report["variants"]) == ["farm", "ple"]
    farm, ple = (report["variants"][name] for name in ("farm", "ple"))
    assert (farm["settings"]["arch"], farm["settings"]["epochs"], farm["settings"]["head_width"]) == ("farm", 1, 4)
    assert ple["settings"]["expert_width"] != 4  # matched
    assert ple["parameters"]["total"] == ple["parameters"]["tables"] + ple["parameters"]["dense"]
    assert "base" in {c["family"] for c in report["comparisons"]}
    assert str(little.path.parent) not in json.dumps(report)


def test_a_run_of_other_settings_or_data_is_made_anew(study: tuple[Path, dict[str, Any]], little: Prepared) -> None:
    out, report = study
    settings = {**report["variants"]["ple"]["settings"], "seed": 0}
    job = Job("ple, seed 0", out / "runs" / "ple" / "0", little.path, settings, report["data"]["fingerprint"])
    assert job.done()
    for other in (replace(job, settings={**settings, "dropout": 0.5}), replace(job, fingerprint="of other data")):
        before = times(out)["ple/0"]
        assert not other.done()
        assert run_job(other) is None
        assert other.done()
        assert times(out)["ple/0"] > before


def test_a_run_that_stopped_before_its_predictions_is_not_trained_again(
    study: tuple[Path, dict[str, Any]], little: Prepared
) -> None:
    out, report = study
    folder = out / "runs" / "farm" / "0"
    settings = {**report["variants"]["farm"]["settings"], "seed": 0}
    job = Job("farm, seed 0", folder, little.path, settings, report["data"]["fingerprint"])
    probabilities, trained = np.load(folder / "test.npy"), (folder / "model.pt").stat().st_mtime_ns
    for name in ("test.npy", "done.json"):
        (folder / name).unlink()
    assert not job.done()
    assert run_job(job) is None
    assert (np.load(folder / "test.npy") == probabilities).all()
    assert (folder / "model.pt").stat().st_mtime_ns == trained


# Bad input


@pytest.mark.parametrize(
    ("variants", "settings", "why"),
    [
        (["same:cutoff=5"], {}, "'same': its settings are those of 'farm'"),
        (["ple"], {"seed": 3}, "--set seed"),
        (["ple"], {"cutof": 3}, "unknown setting 'cutof'"),
    ],
)
def test_a_study_that_cannot_be_is_refused_before_any_run(
    little: Prepared, tmp_path: Path, variants: list[str], settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        run(little.path, tmp_path / "out", variants, 2, settings=settings)
    assert not (tmp_path / "out").exists()


def test_one_seed_is_refused(little: Prepared, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="--seeds 1: at least 2"):
        run(little.path, tmp_path, ["ple"], 1)


def test_a_folder_of_something_else_is_refused(little: Prepared, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(StudyError, match="holds something else"):
        run(little.path, tmp_path, ["ple"], 2)


@pytest.mark.parametrize(("content", "why"), [("{", "not JSON"), ('{"planted": ["ctr"]}', "planted: a list of tasks")])
def test_a_bad_simulation_file_is_named(little: Prepared, tmp_path: Path, content: str, why: str) -> None:
    data = tmp_path / "prepared"
    shutil.copytree(little.path, data)
    (data / "simulation.json").write_text(content)
    with pytest.raises(StudyError, match=f"simulation.json: {why}"):
        run(data, tmp_path / "out", ["ple"], 2)


def test_the_fingerprint_is_of_every_file(little: Prepared, tmp_path: Path) -> None:
    data = tmp_path / "prepared"
    shutil.copytree(little.path, data)
    whole = fingerprint(data)
    assert whole == fingerprint(little.path)
    labels = data / "samples" / "labels.npy"
    content = bytearray(labels.read_bytes())
    content[-1] ^= 1
    labels.write_bytes(bytes(content))
    assert fingerprint(data) != whole
