"""The command line: verbs, options, environment variables, and one clear line on bad input."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import farm as cli
from model.registry.signing import make_key
from service.unknown_names import unknown_names

VERBS = {
    "simulate": ["--out", "--users", "--days", "--seed", "--without", "--null"],
    "prepare": ["--data", "--out", "--test-from", "--on-error"],
    "train": ["--data", "--out", "--arch", "--epochs", "--seed", "--set"],
    "evaluate": ["--run", "--data", "--degraded", "--json"],
    "study": ["--data", "--out", "--variant", "--seeds", "--jobs", "--epochs", "--set", "--json"],
    "report": ["--study", "--data", "--out"],
    "export": ["--run", "--out"],
    "materialize": ["--data", "--store", "--as-of", "--jobs", "--allow-gap", "--keep-previous"],
    "ingest": ["--store", "--from", "--on-error", "--worker", "--metrics-port", "--dead-letters", "--replay"],
    "store stats": ["--store"],
    "store get": ["--store", "--user", "--author"],
    "store delete-user": ["--store", "--user"],
    "store backup": ["--store", "--out"],
    "store restore": ["--store", "--from"],
    "serve": ["--artifact", "--models", "--store", "--host", "--port", "--workers", "--open"],
    "models list": ["--models", "--trusted-keys", "--json"],
    "models push": ["--models", "--artifact", "--trusted-keys"],
    "models activate": [
        *("--models", "--formula", "--split", "--split-share", "--split-salt", "--shadow", "--shadow-share", "--by"),
        "--trusted-keys",
    ],
    "models rollback": ["--models", "--by", "--trusted-keys"],
    "models sign": ["--artifact", "--signing-key"],
    "models keygen": ["--out"],
    "keys new": ["--scopes", "--name", "--limit", "--expires", "--file"],
    "rank": ["--url", "--user", "--candidates", "--page", "--now"],
    "bench engine": ["--artifact", "--threads", "--candidates", "--json", "--quick"],
    "bench quality": ["--data", "--seeds", "--json", "--quick"],
    "bench prepare": ["--events", "--data", "--json", "--quick"],
    "bench train": ["--data", "--batch-size", "--device", "--precision", "--steps", "--json", "--quick"],
    "bench faults": ["--artifact", "--only", "--json", "--quick"],
    "bench soak": ["--artifact", "--minutes", "--only", "--json", "--quick"],
    "bench fuzz": ["--artifact", "--only", "--json", "--quick"],
}


def farm(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a verb in a process of its own."""
    command = [sys.executable, "-m", "farm", *map(str, words)]
    settings = {**os.environ, **environment, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=settings, check=False)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(verb: str) -> None:
    done = farm(*verb.split(), "--help")
    assert done.returncode == 0
    assert f"farm {verb}" in done.stdout
    assert "Example" in done.stdout
    for option in VERBS[verb]:
        assert option in done.stdout


def refused(*words: str | Path, **environment: str) -> str:
    """The one line with which a verb refuses."""
    done = farm(*words, **environment)
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("farm")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def test_a_folder_that_is_not_there_is_named_with_the_verb_that_makes_it(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    assert f"{nothing}: no prepared.json; make the folder with `farm prepare`" in refused(
        "train", "--data", nothing, "--out", tmp_path / "run"
    )
    assert "farm train" in refused("export", "--run", nothing, "--out", tmp_path / "artifact")
    assert "farm export" in refused("serve", "--artifact", nothing, "--store", "lmdb:///nowhere")
    assert not (tmp_path / "artifact").exists()


def test_settings_that_do_not_exist_or_fit_are_named(prepared: object, workshop: Path, tmp_path: Path) -> None:
    data = workshop / "prepared"
    assert "cutof" in refused("train", "--data", data, "--out", tmp_path / "run", "--set", "cutof=5")
    assert "odd" in refused("train", "--data", data, "--out", tmp_path / "run", "--set", "cutoff=4")
    assert "spectrum" in refused("train", "--data", data, "--out", tmp_path / "run", "--set", "spectrum=none")


def test_a_run_with_other_settings_is_not_overwritten(run_folder: Path, workshop: Path) -> None:
    before = (run_folder / "model.pt").read_bytes()
    message = refused("train", "--data", workshop / "prepared", "--out", run_folder, "--arch", "ple")
    assert "holds a run with arch=farm, not ple" in message
    assert "give another folder" in message
    assert (run_folder / "model.pt").read_bytes() == before


def test_a_cut_manifest_is_one_line(artifact: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(artifact, tmp_path / "cut")
    (cut / "manifest.json").write_text('{"arch": "farm"')
    message = refused("serve", "--artifact", cut, "--store", "lmdb:///nowhere")
    assert "manifest.json: Invalid JSON" in message
    assert message.endswith("; export or copy the artifact again")


def test_an_artifact_that_no_trusted_key_signed_does_not_serve(artifact: Path, tmp_path: Path) -> None:
    trusted = tmp_path / "trusted-keys.txt"
    trusted.write_text(f"{make_key(tmp_path / 'farm.pem')}\n")
    words = ("serve", "--artifact", artifact, "--store", "lmdb:///nowhere", "--port", "0", "--admin-port", "0")
    assert "no trusted key" in refused(*words, FARM_TRUSTED_KEYS=str(trusted))


def test_an_option_may_come_from_the_environment(tmp_path: Path) -> None:
    message = refused("train", FARM_DATA=str(tmp_path / "from-environment"), FARM_OUT=str(tmp_path / "run"))
    assert "from-environment" in message


def test_an_unknown_store_names_the_known_ones(artifact: Path) -> None:
    assert "lmdb" in refused("serve", "--artifact", artifact, "--store", "mongodb://somewhere")


def test_a_time_that_is_none_is_refused() -> None:
    done = farm("rank", "--url", "http://127.0.0.1:9", "--user", "1", "--candidates", "1", "--now", "yesterday")
    assert done.returncode == 2
    assert "ISO" in done.stderr


def test_no_service_is_one_line() -> None:
    assert "127.0.0.1:9" in refused("rank", "--url", "http://127.0.0.1:9", "--user", "1", "--candidates", "1,2")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate", "--out", "x", "--null", "--without", "memory"], "nothing is planted that could be left out"),
        (["train", "--data", "x", "--out", "x", "--set", "arch=cgc"], "--arch cgc"),
        (["train", "--data", "x", "--out", "x", "--set", "seed=3"], "--seed 3"),
    ],
)
def test_what_would_be_passed_over_is_refused(words: list[str], said: str) -> None:
    done = farm(*words)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_misspelt_setting_is_told_and_one_that_the_documents_name_is_not(tmp_path: Path) -> None:
    documents = " ".join(path.read_text() for path in sorted((Path(cli.__file__).parent / "docs").glob("*.md")))
    named = set(re.findall(r"`(FARM_[A-Z_]*[A-Z])`", documents))
    assert len(named) > 50
    options = cli._name_environment(typer.main.get_command(cli.app))
    assert list(unknown_names(sorted(named), options)) == []
    done = farm("models", "list", "--models", tmp_path, FARM_MODLES="x")
    assert "farm: FARM_MODLES: nothing has this name, it is ignored; is FARM_MODELS meant?" in done.stderr
