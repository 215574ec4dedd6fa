"""Signatures: what no trusted key has signed is refused at every door."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from registry_facts import KINDS, OpenStore, flip, make_artifact, opener, write_manifest

from model.artifact.manifest import MANIFEST, TABLES, Artifact, ArtifactError
from model.registry.errors import SignatureError
from model.registry.signing import key_id, make_key, read_keys, sign, signature_name
from model.registry.store import ArtifactStore


@pytest.fixture(params=KINDS)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    return opener(request.param, tmp_path / "store")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return make_artifact(tmp_path)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    """Public keys whose private ones are ours.pem and theirs.pem."""
    return make_key(tmp_path / "ours.pem"), make_key(tmp_path / "theirs.pem")


def test_a_signed_version_passes_every_door(
    open_store: OpenStore, artifact: Artifact, keys: tuple[str, str], tmp_path: Path
) -> None:
    assert sign(artifact.path, tmp_path / "ours.pem") == key_id(keys[0])
    store = open_store(keys)
    store.push(artifact.path)
    assert store.activate(artifact.version).model == artifact.version
    copy = store.fetch(artifact.version, tmp_path / "cache")
    assert (copy / signature_name(key_id(keys[0]))).is_file()
    assert store.fetch(artifact.version, tmp_path / "cache") == copy  # the copy is verified too
    assert store.list()[0].signers == (key_id(keys[0]),)
    assert store.list()[0].complete


@pytest.mark.parametrize("signed_by", [None, "theirs.pem"])
def test_what_no_trusted_key_signed_is_refused(
    open_store: OpenStore, artifact: Artifact, keys: tuple[str, str], tmp_path: Path, signed_by: str | None
) -> None:
    if signed_by is not None:
        sign(artifact.path, tmp_path / signed_by)
    open_store().push(artifact.path)
    strict = open_store(keys[:1])
    assert strict.list()[0].problem == "no signature by a trusted key that holds"
    for refused in (
        lambda: strict.push(artifact.path),
        lambda: strict.activate(artifact.version),
        lambda: strict.fetch(artifact.version, tmp_path / "cache"),
    ):
        with pytest.raises(SignatureError, match=rf"no trusted key \({key_id(keys[0])}\) has signed it"):
            refused()
    assert not (tmp_path / "cache" / artifact.version).exists()


def test_a_signature_counts_for_one_manifest_only(artifact: Artifact, keys: tuple[str, str], tmp_path: Path) -> None:
    sign(artifact.path, tmp_path / "ours.pem")
    flip(artifact.path / TABLES)
    write_manifest(artifact.path)  # whole again, but not what was signed
    with pytest.raises(SignatureError, match="does not hold"):
        ArtifactStore.open(tmp_path / "store", keys).push(artifact.path)


@pytest.mark.parametrize("signature", [b"", b"AAAA", b"\xff\x00", b"no base64!", b"A" * 88])
def test_a_signature_that_is_none_is_refused(
    artifact: Artifact, keys: tuple[str, str], tmp_path: Path, signature: bytes
) -> None:
    (artifact.path / signature_name(key_id(keys[0]))).write_bytes(signature)
    with pytest.raises(SignatureError, match="does not hold"):
        ArtifactStore.open(tmp_path / "store", keys).push(artifact.path)


def test_signing_again_by_another_key_keeps_both(artifact: Artifact, keys: tuple[str, str], tmp_path: Path) -> None:
    store = ArtifactStore.open(tmp_path / "store")
    for name in ("ours.pem", "theirs.pem"):
        sign(artifact.path, tmp_path / name)
        store.push(artifact.path)
    assert set(store.list()[0].signers) == set(map(key_id, keys))
    for key in keys:
        assert ArtifactStore.open(tmp_path / "store", [key]).list()[0].complete


def test_a_copy_that_was_made_without_keys_is_not_trusted_later(
    artifact: Artifact, keys: tuple[str, str], tmp_path: Path
) -> None:
    store, cache = ArtifactStore.open(tmp_path / "store"), tmp_path / "cache"
    store.push(artifact.path)
    store.fetch(artifact.version, cache)
    strict = ArtifactStore.open(tmp_path / "store", keys)
    with pytest.raises(SignatureError, match="no trusted key"):
        strict.fetch(artifact.version, cache)
    with pytest.raises(SignatureError, match="no trusted key"):
        strict.fetch(artifact.version)


def test_what_is_spoilt_is_not_signed(artifact: Artifact, keys: tuple[str, str], tmp_path: Path) -> None:
    flip(artifact.path / TABLES)
    with pytest.raises(ArtifactError, match=r"tables\.data"):
        sign(artifact.path, tmp_path / "ours.pem")
    assert not (artifact.path / signature_name(key_id(keys[0]))).exists()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_agrees(artifact: Artifact, keys: tuple[str, str], tmp_path: Path) -> None:
    sign(artifact.path, tmp_path / "ours.pem")
    encoded = (artifact.path / signature_name(key_id(keys[0]))).read_bytes()
    raw = subprocess.run(["openssl", "base64", "-d", "-A"], input=encoded.strip(), capture_output=True, check=True)
    (tmp_path / "signature").write_bytes(raw.stdout)
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-inkey", tmp_path / "ours.pem", "-sigfile"]
    done = subprocess.run([*command, tmp_path / "signature", "-in", artifact.path / MANIFEST], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_private_key_is_its_owners_and_never_overwritten(tmp_path: Path) -> None:
    make_key(tmp_path / "key.pem")
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    before = (tmp_path / "key.pem").read_bytes()
    with pytest.raises(SignatureError, match="never overwritten"):
        make_key(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").read_bytes() == before


def test_files_that_hold_no_keys_are_named(artifact: Artifact, keys: tuple[str, str], tmp_path: Path) -> None:
    trusted = tmp_path / "trusted"
    trusted.write_text(f"# release\n{keys[0]}\n\n {keys[1]} \n")
    assert read_keys(trusted) == keys
    trusted.write_text("# none\n")
    with pytest.raises(SignatureError, match=f"{trusted}: holds no key"):
        read_keys(trusted)
    for text in ("ed25519:AAAA", keys[0].removeprefix("ed25519:"), "ed25519:!!!"):
        with pytest.raises(SignatureError, match="no public key; must be `ed25519:` and 32 bytes"):
            ArtifactStore.open(tmp_path / "store", [text])
    for missing in (tmp_path / "nothing", trusted):
        with pytest.raises(SignatureError, match=f"{missing}: no private key that can be read"):
            sign(artifact.path, missing)
    with pytest.raises(SignatureError, match="cannot be read"):
        read_keys(tmp_path / "nothing")
