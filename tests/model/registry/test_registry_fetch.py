"""Copies on this machine: complete and verified or not there, whoever dies or tampers."""

from __future__ import annotations

from pathlib import Path

import pytest
from registry_facts import flip, killed, make_artifact, started

from model.artifact.manifest import MANIFEST, TABLES, Artifact, ArtifactError
from model.registry.cache import prune
from model.registry.errors import RegistryError
from model.registry.store import ArtifactStore

DIES_AT_GET = """
import os, signal, sys
from pathlib import Path
from model.registry.files import DirectoryFiles
from model.registry.store import ArtifactStore

class Dies(DirectoryFiles):
    left = 3
    def get(self, path, target):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        super().get(path, target)

ArtifactStore(Dies(Path(sys.argv[1]))).fetch(sys.argv[2], Path(sys.argv[3]))
"""
FETCHES = """
import sys
from pathlib import Path
from registry_barrier import meet
from model.registry.files import DirectoryFiles
from model.registry.store import ArtifactStore

class Counts(DirectoryFiles):
    copied = 0
    def get(self, path, target):
        Counts.copied += 1
        super().get(path, target)

meet(Path(sys.argv[4]), 3)
ArtifactStore(Counts(Path(sys.argv[1]))).fetch(sys.argv[2], Path(sys.argv[3]))
print(Counts.copied)
"""


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path)


@pytest.fixture
def store(artifact: Artifact, tmp_path: Path) -> ArtifactStore:
    """A directory that holds the artifact."""
    store = ArtifactStore.open(tmp_path / "store")
    store.push(artifact.path)
    return store


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_processes_at_once_make_one_copy(store: ArtifactStore, artifact: Artifact, cache: Path) -> None:
    racers = [started(FETCHES, store.name, artifact.version, cache, cache.parent / "racers") for _ in range(3)]
    copied = sorted(int(racer.communicate(timeout=60)[0]) for racer in racers)
    assert copied == [0, 0, len(artifact.manifest.files) + 1]
    assert Artifact.open(cache / artifact.version).version == artifact.version


def test_a_fetch_that_dies_leaves_nothing_that_could_be_taken_for_a_model(
    store: ArtifactStore, artifact: Artifact, cache: Path
) -> None:
    assert killed(DIES_AT_GET, store.name, artifact.version, cache)
    assert not (cache / artifact.version).exists()
    assert len(list(cache.glob(".part-*"))) == 1
    assert Artifact.open(store.fetch(artifact.version, cache)).version == artifact.version
    assert not list(cache.glob(".part-*"))


def test_a_spoilt_copy_is_made_anew_and_its_readers_keep_theirs(
    store: ArtifactStore, artifact: Artifact, cache: Path
) -> None:
    folder = store.fetch(artifact.version, cache)
    flip(folder / TABLES)
    spoilt = (folder / TABLES).read_bytes()
    with (folder / TABLES).open("rb") as open_file:
        assert store.fetch(artifact.version, cache) == folder
        assert open_file.read() == spoilt
    assert (folder / TABLES).read_bytes() == (artifact.path / TABLES).read_bytes()
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [artifact.version]


def test_what_is_spoilt_in_the_store_is_not_kept(store: ArtifactStore, artifact: Artifact, cache: Path) -> None:
    flip(Path(store.name, "models", artifact.version, TABLES))
    with pytest.raises(ArtifactError, match=r"tables\.data: its sha256"):
        store.fetch(artifact.version, cache)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


def test_a_copy_is_still_there_when_the_store_is_gone(store: ArtifactStore, artifact: Artifact, cache: Path) -> None:
    folder = store.fetch(artifact.version, cache)
    Path(store.name).rename(Path(store.name).with_name("gone"))
    assert ArtifactStore.open(store.name).fetch(artifact.version, cache) == folder


def test_only_what_the_manifest_names_is_copied(store: ArtifactStore, artifact: Artifact, cache: Path) -> None:
    Path(store.name, "models", artifact.version, "surprise.bin").write_bytes(b"x")
    folder = store.fetch(artifact.version, cache)
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *artifact.manifest.files}


def test_a_cache_that_cannot_be_written_is_named(store: ArtifactStore, artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match=f"{tmp_path}/file: .*exist"):
        store.fetch(artifact.version, tmp_path / "file")


def test_copies_that_nobody_needs_are_removed(store: ArtifactStore, artifact: Artifact, cache: Path) -> None:
    other = make_artifact(cache.parent, seed=1)
    store.push(other.path)
    for version in (artifact.version, other.version):
        store.fetch(version, cache)
    prune(cache, {other.version})
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [other.version]
    prune(cache.parent / "no cache", set())
