"""Versions of a store: pushed as a whole, listed, half-pushed ones told, spoilt ones refused."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import fsspec
import pytest
from registry_facts import CREATED, KINDS, OpenStore, flip, killed, make_artifact, opener, write_manifest

from model.artifact.manifest import CALIBRATION, GOLDEN, MANIFEST, TABLES, USER_TOWER, Artifact, ArtifactError
from model.registry.errors import RegistryError
from model.registry.store import ArtifactStore

DIES_AT_PUT = """
import os, signal, sys
from pathlib import Path
from model.registry.files import DirectoryFiles
from model.registry.store import ArtifactStore

class Dies(DirectoryFiles):
    left = 3
    def put(self, source, path):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        super().put(source, path)

ArtifactStore(Dies(Path(sys.argv[1]))).push(sys.argv[2])
"""


@pytest.fixture(params=KINDS)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    return opener(request.param, tmp_path / "store")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path)


def test_a_pushed_version_is_listed_and_fetched_byte_for_byte(
    open_store: OpenStore, artifact: Artifact, tmp_path: Path
) -> None:
    assert open_store().list() == ()
    assert open_store().push(artifact.path) == artifact.version
    (found,) = open_store().list()
    assert (found.version, found.arch, found.created) == (artifact.version, "farm", CREATED)
    assert found.complete
    assert found.marks == found.signers == ()
    assert found.bytes == sum(file.stat().st_size for file in artifact.path.iterdir())
    copy = open_store().fetch(artifact.version, tmp_path / "cache")
    assert {f.name: f.read_bytes() for f in copy.iterdir()} == {f.name: f.read_bytes() for f in artifact.path.iterdir()}


def test_versions_are_listed_the_oldest_first(open_store: OpenStore, tmp_path: Path) -> None:
    versions = [
        open_store().push(make_artifact(tmp_path, seed, created=CREATED + timedelta(days=seed)).path)
        for seed in (2, 0, 1)
    ]
    assert [one.version for one in open_store().list()] == sorted(versions)


def test_a_directory_is_used_in_place_but_verified(artifact: Artifact, tmp_path: Path) -> None:
    store = ArtifactStore.open(f"file://{tmp_path}/my%20store")
    store.push(artifact.path)
    folder = store.fetch(artifact.version)
    assert folder == tmp_path / "my store" / "models" / artifact.version
    flip(folder / TABLES)
    with pytest.raises(ArtifactError, match=r"tables\.data: its sha256"):
        store.fetch(artifact.version)


def test_a_remote_store_needs_a_folder_for_copies(artifact: Artifact, tmp_path: Path) -> None:
    store = opener("memory", tmp_path)()
    store.push(artifact.path)
    with pytest.raises(RegistryError, match="give a folder for copies"):
        store.fetch(artifact.version)


def test_what_is_spoilt_is_not_pushed(open_store: OpenStore, artifact: Artifact) -> None:
    flip(artifact.path / USER_TOWER)
    with pytest.raises(ArtifactError, match="user_tower"):
        open_store().push(artifact.path)
    assert open_store().list() == ()


@pytest.mark.parametrize(
    "name", ["../tables.data", "/etc/passwd", "sub/tables.data", "..", ".hidden", "a\\b", MANIFEST]
)
def test_a_manifest_that_names_files_elsewhere_is_refused(directory: ArtifactStore, tmp_path: Path, name: str) -> None:
    artifact = make_artifact(tmp_path)
    (artifact.path / "extra").write_bytes(b"x")
    write_manifest(artifact.path, extra=name)
    version = "20260131T120000Z-00000000"
    folder = Path(directory.name, "models", version)
    shutil.copytree(artifact.path, folder)
    true_version = _true_version(folder / MANIFEST)
    folder.rename(folder.with_name(true_version))
    with pytest.raises(ArtifactError, match="plain file name"):
        directory.fetch(true_version, tmp_path / "cache")
    assert not (tmp_path / "cache" / true_version).exists()


def test_a_model_that_lacks_a_part_is_refused(directory: ArtifactStore, artifact: Artifact) -> None:
    (artifact.path / GOLDEN).unlink()
    write_manifest(artifact.path)
    with pytest.raises(ArtifactError, match=r"golden\.npz missing"):
        directory.push(artifact.path)


def test_a_calibration_that_is_none_is_refused(directory: ArtifactStore, artifact: Artifact) -> None:
    (artifact.path / CALIBRATION).write_text('{"tasks": {"ctr": {"x": [0.5, 0.1], "y": [0.1, 0.5]}}}')
    write_manifest(artifact.path)
    with pytest.raises(ArtifactError, match=r"calibration\.ctr\.x"):
        directory.push(artifact.path)


def test_another_manifest_under_the_same_version_is_refused(directory: ArtifactStore, artifact: Artifact) -> None:
    directory.push(artifact.path)
    manifest = Path(directory.name, "models", artifact.version, MANIFEST)
    manifest.write_text(manifest.read_text().replace('"test"', '"other"'))
    with pytest.raises(RegistryError, match="another manifest; a version is never changed"):
        directory.push(artifact.path)
    (found,) = directory.list()
    assert "its manifest.json is that of" in found.problem


def test_a_push_that_dies_leaves_a_version_that_is_told_and_mended(artifact: Artifact, tmp_path: Path) -> None:
    store = ArtifactStore.open(tmp_path / "store")
    assert killed(DIES_AT_PUT, store.name, artifact.path)
    (found,) = store.list()
    assert found.problem.startswith("half-pushed")
    assert not found.complete
    for refused in (store.check, store.activate, store.fetch):
        with pytest.raises(RegistryError, match="half-pushed: push it again"):
            refused(artifact.version)
    store.push(artifact.path)
    assert store.list()[0].complete
    assert store.check(artifact.version) == artifact.manifest


def test_a_file_that_vanished_or_shrank_is_told_and_mended(open_store: OpenStore, artifact: Artifact) -> None:
    store = open_store()
    store.push(artifact.path)
    tamper = _Files(store)
    tamper.remove(artifact.version, TABLES)
    tamper.write(artifact.version, GOLDEN, b"short")
    assert store.list()[0].problem == "tables.data missing; golden.npz: 5 bytes, the manifest says 3000"
    with pytest.raises(RegistryError, match=r"tables\.data missing.*push the artifact again"):
        store.check(artifact.version)
    store.push(artifact.path)
    assert store.list()[0].complete


def test_a_directory_is_mended_by_checksum(directory: ArtifactStore, artifact: Artifact) -> None:
    directory.push(artifact.path)
    flip(Path(directory.name, "models", artifact.version, TABLES))
    with pytest.raises(ArtifactError, match=r"tables\.data: its sha256"):
        directory.check(artifact.version)
    directory.push(artifact.path)
    assert directory.check(artifact.version) == artifact.manifest


def test_a_version_is_never_a_path(directory: ArtifactStore, tmp_path: Path) -> None:
    for version in ("../artifact", "", "20260131T120000Z-0a1b2c3", "20260131T120000Z-0a1b2c3d/..", "latest"):
        with pytest.raises(RegistryError, match="must look like"):
            directory.fetch(version, tmp_path / "cache")
    with pytest.raises(RegistryError, match="no such version"):
        directory.fetch("20260131T120000Z-0a1b2c3d", tmp_path / "cache")


def test_places_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"nosuch://bucket.*extra `models`"):
        ArtifactStore.open("nosuch://user:secret@bucket")
    with pytest.raises(RegistryError, match="a pointer must be read anew"):
        ArtifactStore.open("simplecache::memory://models")
    with pytest.raises(RegistryError, match="file:///path"):
        ArtifactStore.open("file://models")
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="Not a directory"):
        ArtifactStore.open(tmp_path / "file").push(make_artifact(tmp_path).path)


def test_a_password_in_the_url_is_not_told() -> None:
    with pytest.raises(RegistryError) as caught:
        ArtifactStore.open("nosuch://user:secret@bucket")
    assert "secret" not in str(caught.value)


class _Files:
    """The files of a store, to spoil them."""

    def __init__(self, store: ArtifactStore) -> None:
        memory = store.name.startswith("memory://")
        self._system = fsspec.filesystem("memory" if memory else "file")
        self._root = store.name.removeprefix("memory:/").removeprefix("fsspec ")

    def remove(self, version: str, name: str) -> None:
        self._system.rm_file(f"{self._root}/models/{version}/{name}")

    def write(self, version: str, name: str, content: bytes) -> None:
        self._system.pipe_file(f"{self._root}/models/{version}/{name}", content)


@pytest.fixture
def directory(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore.open(tmp_path / "store")


def _true_version(manifest: Path) -> str:
    from model.artifact.manifest import version_of

    return version_of(CREATED, manifest.read_bytes())
