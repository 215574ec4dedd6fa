"""`farm models`: every verb, from a pushed artifact to a rollback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from registry_facts import make_artifact
from typer.testing import CliRunner, Result

from model.artifact.formula import Formula, Term
from model.registry.errors import RegistryError
from model.registry.signing import key_id
from model.registry.store import ArtifactStore
from model.registry.verbs import models


def farm_models(*words: object) -> Result:
    """What a verb did; what it raises is raised, as `farm` makes one line of it."""
    done = CliRunner().invoke(models, list(map(str, words)), env={"COLUMNS": "200"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def url(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def versions(url: Path, tmp_path: Path) -> list[str]:
    """Of three models that were pushed."""
    folders = [make_artifact(tmp_path, seed).path for seed in range(3)]
    return [farm_models("push", "--models", url, "--artifact", folder).stdout.strip() for folder in folders]


@pytest.mark.parametrize("verb", ["list", "push", "fetch", "activate", "rollback", "sign", "keygen"])
def test_every_verb_has_an_example(verb: str) -> None:
    assert f"farm models {verb}" in farm_models(verb, "--help").stdout


def test_from_push_to_rollback(url: Path, versions: list[str], tmp_path: Path) -> None:
    assert "nothing is active" in farm_models("list", "--models", url).stdout
    said = farm_models("activate", versions[0], "--models", url, "--by", "me").stderr
    assert said == f"pointer 1: {versions[0]} serves; nothing to roll back to\n"
    said = farm_models("activate", versions[1], "--models", url).stderr
    assert said == f"pointer 2: {versions[1]} serves; a rollback returns to {versions[0]}\n"
    assert farm_models("activate", versions[1], "--models", url).stderr.startswith("nothing to change: pointer 2")
    listed = farm_models("list", "--models", url, "--json", tmp_path / "list.json").stdout
    lines = {version: line for line in listed.splitlines() for version in versions if version in line}
    assert "active" in lines[versions[1]]
    assert "previous" in lines[versions[0]]
    written = json.loads((tmp_path / "list.json").read_text())
    assert written["pointer"]["model"] == versions[1]
    assert [one["version"] for one in written["models"]] == sorted(versions)
    said = farm_models("rollback", "--models", url, "--by", "me").stderr
    assert said == f"pointer 3: {versions[0]} serves; nothing to roll back to\n"


def test_what_serves_is_fetched_and_verified(url: Path, versions: list[str], tmp_path: Path) -> None:
    words = ["fetch", "--models", url, "--models-cache", tmp_path / "cache"]
    with pytest.raises(ValueError, match="nothing serves"):
        farm_models(*words)
    farm_models("activate", versions[0], "--models", url, "--split", versions[1], "--split-share", 0.25)
    fetched = farm_models(*words).stdout.split()
    assert fetched == [str(tmp_path / "cache" / version) for version in versions[:2]]
    assert farm_models(*words, versions[2]).stdout.split() == [str(tmp_path / "cache" / versions[2])]
    graph = url / "models" / versions[0] / "user_tower.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="user_tower"):
        farm_models("fetch", "--models", url, "--models-cache", tmp_path / "other")
    assert not (tmp_path / "other" / versions[0]).exists()


def test_split_shadow_and_formula_are_told(url: Path, versions: list[str], tmp_path: Path) -> None:
    formula = tmp_path / "formula.json"
    formula.write_text(Formula(version="f7", tasks={"ctr": Term(weight=2)}).model_dump_json())
    words = ["--split", versions[1], "--split-share", 0.25, "--shadow", versions[2], "--shadow-share", 0.1]
    said = farm_models("activate", versions[0], "--models", url, "--formula", formula, *words).stderr
    told = f"formula f7; {versions[1]} answers 0.25 of the users; {versions[2]} shadows 0.1 of the requests"
    assert told in said
    pointer = ArtifactStore.open(url).read_pointer()
    assert pointer is not None
    assert pointer.split is not None
    assert pointer.split.salt == versions[1]
    assert "formula f7" in farm_models("activate", versions[0], "--models", url).stderr
    assert "formula" not in farm_models("activate", versions[0], "--models", url, "--formula", "default").stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--split", "V"], "--split / --split-share"),
        (["--split-share", "0.5"], "--split / --split-share"),
        (["--split", "V", "--split-share", "0"], "--split / --split-share"),
        (["--split", "V", "--split-share", "1"], "activate that version instead"),
        (["--shadow", "V"], "--shadow / --shadow-share"),
        (["--shadow", "V", "--shadow-share", "1.5"], "--shadow-share"),
    ],
)
def test_options_that_do_not_fit_are_named(url: Path, versions: list[str], words: list[str], problem: str) -> None:
    given = [versions[1] if word == "V" else word for word in words]
    done = farm_models("activate", versions[0], "--models", url, *given)
    assert done.exit_code == 2
    assert problem in done.stderr
    assert ArtifactStore.open(url).read_pointer() is None


def test_keys_are_made_used_and_asked_for(url: Path, tmp_path: Path) -> None:
    folder, key, trusted = make_artifact(tmp_path, 9).path, tmp_path / "key.pem", tmp_path / "trusted"
    public = farm_models("keygen", "--out", key).stdout.strip()
    trusted.write_text(public)
    strict = ["--models", url, "--trusted-keys", trusted]
    with pytest.raises(RegistryError, match="no trusted key"):
        farm_models("push", *strict, "--artifact", folder)
    assert key_id(public) in farm_models("sign", "--artifact", folder, "--signing-key", key).stderr
    version = farm_models("push", *strict, "--artifact", folder).stdout.strip()
    assert version in farm_models("activate", version, *strict).stderr
    assert key_id(public) in farm_models("list", *strict).stdout
