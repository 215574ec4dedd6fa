"""Signatures: Ed25519 over the bytes of manifest.json, which holds the checksum of every other file.

A signature lies beside the manifest as manifest.<key id>.sig, so that several keys may sign
while one replaces another.  The package `cryptography` is needed to sign and to verify only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model.artifact.manifest import MANIFEST, Artifact
from model.registry.errors import SignatureError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_PREFIX, _KEY_BYTES = "ed25519:", 32
_SUFFIX = ".sig"


def make_key(path: Path) -> str:
    """Write a new private key (PEM, for its owner only) and return the public one.  SignatureError if it exists."""
    _need_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise SignatureError(f"{path}: is there already; a key is never overwritten") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return _public_text(key)


def sign(folder: str | Path, key: Path) -> str:
    """Sign an artifact folder, verified first, and return the id of the key.  ArtifactError, SignatureError."""
    artifact = Artifact.open(folder)
    private = _private_key(key)
    identity = key_id(_public_text(private))
    signature = private.sign((artifact.path / MANIFEST).read_bytes())
    (artifact.path / signature_name(identity)).write_bytes(base64.b64encode(signature) + b"\n")
    return identity


def verify(manifest: bytes, read: Callable[[str], bytes], trusted_keys: Sequence[str], name: str) -> str:
    """The id of a trusted key that signed a manifest; `read` gives a file beside it or raises FileNotFoundError.

    SignatureError, with the name of the artifact, when there is none, or one that does not hold.
    """
    for key in trusted_keys:
        try:
            signature = read(signature_name(key_id(key)))
        except FileNotFoundError:
            continue
        if not _holds(key, signature, manifest):
            raise SignatureError(
                f"{name}: its signature by {key_id(key)} does not hold: the manifest is not what was signed"
            )
        return key_id(key)
    known = ", ".join(map(key_id, trusted_keys))
    raise SignatureError(f"{name}: no trusted key ({known}) has signed it; sign with `farm models sign` and push again")


def read_keys(path: Path) -> tuple[str, ...]:
    """Trusted public keys, one a line; empty lines and those that begin with # are skipped.  SignatureError."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SignatureError(f"{path}: cannot be read ({error})") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise SignatureError(
            f"{path}: holds no key; write one `{_PREFIX}...` a line, as `farm models keygen` prints it"
        )
    return check_keys(keys)


def check_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """The keys themselves.  SignatureError names the one that is none, or says what to install."""
    for key in keys:
        _raw(key)
    if keys:
        _need_cryptography()
    return tuple(keys)


def key_id(public: str) -> str:
    return hashlib.sha256(_raw(public)).hexdigest()[:16]


def signature_name(identity: str) -> str:
    return f"{Path(MANIFEST).stem}.{identity}{_SUFFIX}"


def signers(names: Sequence[str]) -> tuple[str, ...]:
    """Ids of the keys whose signatures are among the files of an artifact; nothing is verified."""
    start = f"{Path(MANIFEST).stem}."
    return tuple(sorted(n[len(start) : -len(_SUFFIX)] for n in names if n.startswith(start) and n.endswith(_SUFFIX)))


def _holds(key: str, signature: bytes, manifest: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(_raw(key)).verify(
            base64.b64decode(signature.strip(), validate=True), manifest
        )
    except (InvalidSignature, binascii.Error):
        return False
    return True


def _raw(public: str) -> bytes:
    try:
        raw = base64.b64decode(public.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raw = b""
    if not public.startswith(_PREFIX) or len(raw) != _KEY_BYTES:
        raise SignatureError(f"{public!r}: no public key; must be `{_PREFIX}` and {_KEY_BYTES} bytes in base64")
    return raw


def _private_key(path: Path) -> Ed25519PrivateKey:
    _need_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise SignatureError(
            f"{path}: no private key that can be read ({error}); make one with `farm models keygen`"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{path}: no Ed25519 key; make one with `farm models keygen`")
    return key


def _public_text(key: Ed25519PrivateKey) -> str:
    return _PREFIX + base64.b64encode(key.public_key().public_bytes_raw()).decode()


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise SignatureError("signatures need the package `cryptography`: install the extra `signing`") from None
